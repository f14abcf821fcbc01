package bench

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"penstock.dev/penstock/internal/workload"
)

// list is a source of given requests.
type list []workload.Request

func (l *list) Next() (workload.Request, bool) {
	if len(*l) == 0 {
		return workload.Request{}, false
	}
	r := (*l)[0]
	*l = (*l)[1:]
	return r, true
}

// trial runs a dispatcher in a bubble of fake time. serve is the server: it
// returns when the answer is complete.
type trial struct {
	p     plan
	serve func(ctx context.Context, r *workload.Request)

	started map[int]time.Duration
	peak    int
	d       *dispatcher
	t       *tally
	results []Result
}

func (x *trial) run(ctx context.Context) bool {
	start := time.Now()
	clock := func() time.Duration { return time.Since(start) }
	x.started = map[int]time.Duration{}
	if x.p.MaxInFlight == 0 {
		x.p.MaxInFlight = 100
	}
	x.p.Stream = true
	x.t = newTally(&x.p)
	flying, token := 0, make(chan struct{}, 1)
	token <- struct{}{}
	x.d = &dispatcher{p: &x.p, clock: clock, tick: func() {}, onNew: x.t.begin}
	x.d.onEnd = func(r *Result) { x.t.add(r); x.results = append(x.results, *r) }
	x.d.send = func(ctx context.Context, r *workload.Request, due time.Duration, _ [][]byte) Result {
		<-token
		x.started[r.Index] = clock()
		flying++
		x.peak = max(x.peak, flying)
		token <- struct{}{}
		res := Result{Index: r.Index, intended: due, lag: clock() - due, Measured: due >= x.p.Warmup}
		x.serve(ctx, r)
		<-token
		flying--
		token <- struct{}{}
		res.end = clock()
		if errors.Is(context.Cause(ctx), errInterrupted) {
			res.fail(unfinished, "")
		}
		st := newStream()
		st.tokens, st.first = 1, res.end
		res.finish(st, x.p.targets)
		return res
	}
	return x.d.run(ctx)
}

func everySecond(n int) *list {
	var l list
	for i := range n {
		l = append(l, workload.Request{Index: i, At: time.Duration(i) * time.Second, After: workload.NoRequest, Output: 1})
	}
	return &l
}

func takes(d time.Duration) func(context.Context, *workload.Request) {
	return func(ctx context.Context, _ *workload.Request) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
}

// A server that answers one request in 3 s, offered one per second through one
// place: the k-th answer comes at 3(k+1) s though it was due at k s. Measured
// from the real sends, every latency would be 3 s.
func TestLatencyCountsFromTheIntendedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &trial{serve: takes(3 * time.Second)}
		x.p.source, x.p.MaxInFlight = everySecond(5), 1
		x.run(t.Context())
		r := x.t.report(0, x.d.blocked)
		if d := cmp.Diff(Summary{Count: 5, Mean: 7000, P50: 7000, P90: 11000, P99: 11000, Max: 11000}, r.Latency.TTFT); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff(Summary{Count: 5, Mean: 4000, P50: 4000, P90: 8000, P99: 8000, Max: 8000}, r.Latency.SendLag); d != "" {
			t.Error(d)
		}
		if len(r.Warnings) != 1 || !x.d.blocked {
			t.Errorf("warnings %q", r.Warnings)
		}
	})
}

func TestAStalledServerDoesNotSlowAnOpenLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stall := time.Now().Add(10 * time.Second)
		x := &trial{serve: func(context.Context, *workload.Request) { time.Sleep(time.Until(stall)) }}
		x.p.source = everySecond(8)
		x.run(t.Context())
		for i, at := range x.started {
			if at != time.Duration(i)*time.Second {
				t.Errorf("request %d sent at %v", i, at)
			}
		}
		if r := x.t.report(0, false); r.Latency.E2E.Max != 10000 || r.Latency.E2E.P50 != 6000 || r.Latency.SendLag.Max != 0 || x.peak != 8 {
			t.Errorf("%+v, %d in flight", r.Latency, x.peak)
		}
	})
}

func TestWarmupIsSentButNotMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &trial{serve: takes(time.Second)}
		x.p.source, x.p.Warmup = everySecond(10), 4*time.Second
		x.run(t.Context())
		r := x.t.report(0, false)
		if r.Requests.Sent != 10 || r.Requests.Warmup != 4 || r.Requests.Completed != 6 || r.Seconds != 6 || r.Throughput.Requests != 1 {
			t.Errorf("%+v over %v s, %v req/s", r.Requests, r.Seconds, r.Throughput.Requests)
		}
	})
}

func TestATurnWaitsForTheAnswerBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &trial{serve: takes(5 * time.Second)}
		x.p.source = &list{
			{Index: 0, After: -1},
			{Index: 1, After: 0, Turn: 1, At: time.Second, Think: 2 * time.Second}, // answer 0 ends at 5 s
			{Index: 2, After: -1, At: time.Second},
			{Index: 3, After: 1, Turn: 2, At: 2 * time.Second},  // answer 1 ends at 12 s
			{Index: 4, After: 2, Turn: 1, At: 20 * time.Second}, // answer 2 has long ended
			{Index: 5, After: 2, Turn: 1, At: 20 * time.Second, Think: 15 * time.Second},
		}
		x.run(t.Context())
		want := map[int]time.Duration{0: 0, 1: 7 * time.Second, 2: time.Second, 3: 12 * time.Second, 4: 20 * time.Second, 5: 21 * time.Second}
		if d := cmp.Diff(want, x.started); d != "" {
			t.Error(d)
		}
		if x.d.waited != 2 {
			t.Errorf("%d waited, want 2", x.d.waited)
		}
		for _, r := range x.results {
			if r.e2e != 5*time.Second || r.lag != 0 {
				t.Errorf("request %d: latency %v, lag %v: waiting for a turn is no latency", r.Index, r.e2e, r.lag)
			}
		}
	})
}

func TestClosedLoopKeepsItsConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &trial{serve: takes(time.Second)}
		x.p.source, x.p.closed = everySecond(1000), true
		x.p.stages, x.p.Duration = []workload.Stage{{Concurrency: 7}}, 10*time.Second
		x.run(t.Context())
		r := x.t.report(0, x.d.blocked)
		if r.Requests.Completed != 70 || x.peak != 7 || r.Latency.E2E.Max != 1000 || r.Latency.SendLag.Max != 0 || len(r.Warnings) != 0 {
			t.Errorf("%+v, %d in flight, %+v, %q", r.Requests, x.peak, r.Latency.E2E, r.Warnings)
		}
	})
}

func TestClosedLoopStagesFollowEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &trial{serve: takes(time.Second)}
		load := workload.LoadSpec{Kind: workload.ArrivalClosed, Stages: []workload.Stage{{Concurrency: 1, Requests: 3}, {Concurrency: 4, Requests: 8}}}
		data := workload.DataSpec{Random: &workload.Random{Input: workload.Fixed(1), Output: workload.Fixed(1)}}
		x.p.source, x.p.closed, x.p.stages = data.Source(load, 1), true, load.Stages
		x.run(t.Context())
		var at []int
		for i := range 11 {
			at = append(at, int(x.started[i].Seconds()))
		}
		if d := cmp.Diff([]int{0, 1, 2, 3, 3, 3, 3, 4, 4, 4, 4}, at); d != "" {
			t.Error(d)
		}
	})
}

// Conversations that think hold no place; with all of them thinking the loop
// idles instead of running ahead.
func TestClosedLoopOfThinkingConversations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &trial{serve: takes(time.Second)}
		data := workload.DataSpec{Conversations: &workload.Conversations{
			Slots: 2, Turns: workload.Fixed(100), Input: workload.Fixed(1), Output: workload.Fixed(1),
			DynamicSystem: workload.Fixed(0), ToolLatency: workload.Fixed(4),
		}}
		load := workload.LoadSpec{Kind: workload.ArrivalClosed, Stages: []workload.Stage{{Concurrency: 10}}}
		x.p.source, x.p.closed, x.p.stages, x.p.Duration = data.Source(load, 1), true, load.Stages, 22*time.Second
		x.run(t.Context())
		if n := len(x.results); n != 10 || x.peak != 2 { // turns at 0, 5, 10, 15, 20 s in both slots
			t.Errorf("%d requests, %d in flight", n, x.peak)
		}
	})
}

func TestInterruptStopsSendingAndWaitsTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		x := &trial{serve: func(ctx context.Context, r *workload.Request) {
			takes(map[int]time.Duration{0: time.Second, 1: 4 * time.Second, 2: time.Hour}[r.Index])(ctx, r)
		}}
		x.p.source, x.p.Grace = everySecond(100), 5*time.Second
		begin := time.Now()
		if !x.run(ctx) {
			t.Error("not told as interrupted")
		}
		if took := time.Since(begin); took != 7500*time.Millisecond {
			t.Errorf("took %v", took)
		}
		slices.SortFunc(x.results, func(a, b Result) int { return a.Index - b.Index })
		if len(x.results) != 3 || x.results[1].Error != "" || x.results[2].Error != unfinished {
			t.Errorf("%+v", x.results)
		}
	})
}
