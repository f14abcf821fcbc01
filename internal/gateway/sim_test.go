package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/journal"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
)

const tiny = "penstock/tiny"

// simulated starts n simulated engines that give equal answers.
func simulated(t testing.TB, n int, speedup float64) (nodes []*server.Node, urls []string) {
	t.Helper()
	for i := range n {
		nodes = append(nodes, simulate(t, "127.0.0.1:0", i, speedup))
		urls = append(urls, nodes[i].URL())
	}
	return nodes, urls
}

func simulate(t testing.TB, addr string, replica int, speedup float64) *server.Node {
	t.Helper()
	n, err := server.Listen(addr, server.Config{Options: server.Options{
		Model: tiny, TP: 1, Speedup: speedup, MaxModelLen: 8192, Seed: 3, Replica: replica,
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// question is a request to a simulated engine.
func question(chat, stream bool, prompt string, tokens int) (path, body string) {
	q := map[string]any{"model": tiny, "max_tokens": tokens, "ignore_eos": true, "stream": stream}
	if stream {
		q["stream_options"] = map[string]any{"include_usage": true}
	}
	path = textPath
	if chat {
		path = chatPath
		q["messages"] = []any{map[string]string{"role": "user", "content": prompt}}
	} else {
		q["prompt"] = prompt
	}
	b, err := json.Marshal(q)
	if err != nil {
		panic(err) // strings and numbers always marshal
	}
	return path, string(b)
}

// text returns the answer's text, whether it was streamed or not, with the
// number of events and whether the stream was whole.
func text(t testing.TB, body string) (text string, events int, whole, broken bool) {
	t.Helper()
	type choice struct {
		Text           string
		Message, Delta struct{ Content string }
		FinishReason   string `json:"finish_reason"`
	}
	var a struct {
		Choices []choice
		Error   any
	}
	parts := strings.SplitAfter(body, "\n\n")
	for _, p := range parts {
		data := strings.TrimPrefix(strings.TrimSpace(p), "data: ")
		if data == "" {
			continue
		}
		if data == "[DONE]" {
			whole = true
			continue
		}
		a.Choices, a.Error = nil, nil
		if err := json.Unmarshal([]byte(data), &a); err != nil {
			t.Errorf("event %q: %v", data, err)
		}
		events++
		broken = broken || a.Error != nil
		for _, c := range a.Choices {
			text += c.Text + c.Message.Content + c.Delta.Content
		}
	}
	return text, events, whole, broken
}

func postJSON(t testing.TB, url, body string) answer {
	t.Helper()
	resp, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	return answer{resp.StatusCode, resp.Header, b.String(), err}
}

// TestAnswersEqualTheEngines asks the gateway and an engine behind it the same.
func TestAnswersEqualTheEngines(t *testing.T) {
	goroutinesReturn(t)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	for _, n := range []int{1, 4} {
		nodes, urls := simulated(t, n, 50)
		r := newRig(t, setup{models: []Model{{ID: tiny}}}, urls...)
		for i := range 8 {
			path, body := question(i&1 == 0, i&2 == 0, strings.Repeat("the water comes down the pipe ", 1+i), 20)
			direct := postJSON(t, nodes[0].URL()+path, body)
			a := r.do("POST", path, body)
			want, wantEvents, _, _ := text(t, direct.body)
			got, gotEvents, _, broken := text(t, a.body)
			if a.status != 200 || got != want || gotEvents != wantEvents || broken || want == "" {
				t.Errorf("%d engines, question %d: status %d, %q in %d events, want %q in %d", n, i, a.status, got, gotEvents, want, wantEvents)
			}
			if x := r.access(); !x.Usage.Known || x.Usage.Output != 20 || x.Failure != fleet.FailNone {
				t.Errorf("account %+v", x)
			}
		}
	}
}

// TestNothingIsDoubledByRetries: whatever fails before the first byte, the
// text is that of one answer.
func TestNothingIsDoubledByRetries(t *testing.T) {
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	nodes, urls := simulated(t, 2, 50)
	r := newRig(t, setup{pool: func(o *live.Options) { o.Config.Health.Consecutive, o.Config.Health.MinRequests = 1000, 1000 }}, urls...)
	path, body := question(true, true, "again and again", 15)
	want, _, _, _ := text(t, postJSON(t, urls[0]+path, body).body)
	for _, f := range []server.Fault{
		{Kind: "refuse", Status: 500, Count: 1},
		{Kind: "refuse", Count: 1},
		{Kind: "garbage", Count: 1},
		{Kind: "garbage-body", Count: 1},
		{Kind: "delay", DelayMS: 5, Count: 1},
	} {
		for _, n := range nodes {
			if err := n.Server.SetFault(f); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 4 { // the first two may meet the fault, each on both engines or on one
			a := r.do("POST", path, body)
			got, _, whole, _ := text(t, a.body)
			if a.status == 200 && (got != want || !whole) {
				t.Errorf("%s: answer %d is %q, want %q", f.Kind, i, got, want)
			}
			if a.status != 200 && i > 0 {
				t.Errorf("%s: answer %d has status %d: %s", f.Kind, i, a.status, a.body)
			}
		}
		for _, n := range nodes {
			n.Server.ClearFault("")
		}
	}
}

// TestLeavingFreesTheEngine: the engine's own gauges return to zero.
func TestLeavingFreesTheEngine(t *testing.T) {
	goroutinesReturn(t)
	nodes, urls := simulated(t, 1, 1)
	r := newRig(t, setup{}, urls...)
	for _, stream := range []bool{true, false} {
		path, body := question(true, stream, "a long story", 4000)
		ctx, leave := context.WithCancel(t.Context())
		left := make(chan struct{})
		go func() {
			defer close(left)
			_, _ = r.try(ctx, "POST", path, body) // ends with leave, one way or the other
		}()
		until(t, "the engine to run it", func() bool { return nodes[0].Server.Stats().Running == 1 })
		leave()
		until(t, "the engine to be free", func() bool { return nodes[0].Server.Stats().Running == 0 })
		<-left
		if x := r.access(); x.Status != statusGone {
			t.Errorf("account %+v", x)
		}
	}
	if c := r.pool.Tally(); c.Cancelled != 2 {
		t.Errorf("tally %+v", c)
	}
}

// prober answers a pool's probes over HTTP, as the control loops do.
type prober struct {
	client *engine.Client
	pool   *live.Pool
	work   sync.WaitGroup
}

func (p *prober) probe(e live.Endpoint) {
	p.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		p.pool.Probed(e, p.client.Healthy(ctx, engine.Dialect{Health: "/health"}, e.URL) == nil)
	})
}

// TestKillingOneOfFour: under load an engine is killed, is taken out, comes
// back and is taken in; no client sees an error unless its answer had begun.
func TestKillingOneOfFour(t *testing.T) {
	goroutinesReturn(t)
	nodes, urls := simulated(t, 4, 20)
	fitness := make(chan health.State, 100)
	p := &prober{client: engine.NewClient(engine.Options{})}
	t.Cleanup(p.client.Close)
	t.Cleanup(p.work.Wait)
	r := newRig(t, setup{pool: func(o *live.Options) {
		o.Config.Health.ProbeFirst, o.Config.Health.ProbeMax = 50*time.Millisecond, 100*time.Millisecond
		o.Probe = p.probe
		o.Fitness = func(e live.Endpoint, s health.State, _ fleet.Failure) {
			if e.Name == "e1" {
				fitness <- s
			}
		}
	}}, urls...)
	p.pool = r.pool

	var asked, brokenOff atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for i := range 12 {
		load.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				path, body := question(n%2 == 0, i%3 > 0, fmt.Sprintf("worker %d asks %d", i, n), 30)
				a, err := r.try(t.Context(), "POST", path, body)
				asked.Add(1)
				if err != nil || a.err != nil || a.status != 200 {
					t.Errorf("worker %d: %v, %v, status %d, %.200s", i, err, a.err, a.status, a.body)
					return
				}
				if _, events, whole, broken := text(t, a.body); broken && events > 1 && !whole {
					brokenOff.Add(1)
				} else if broken || i%3 > 0 && !whole {
					t.Errorf("worker %d: %.300q", i, a.body)
				}
			}
		})
	}
	state := func(want health.State) {
		t.Helper()
		select {
		case got := <-fitness:
			if got != want {
				t.Errorf("the endpoint is %v, want %v", got, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("waited 5 s for the endpoint to be %v", want)
		}
	}
	until(t, "load", func() bool { return asked.Load() > 40 })
	killed := time.Now()
	nodes[1].Close()
	state(health.Ejected)
	if d := time.Since(killed); d > time.Second {
		t.Errorf("ejected after %v", d)
	}
	back := time.Now()
	again := simulate(t, strings.TrimPrefix(urls[1], "http://"), 1, 20)
	state(health.Trial)
	state(health.Healthy)
	if d := time.Since(back); d > 5*time.Second {
		t.Errorf("back after %v", d)
	}
	until(t, "the new engine to have work", func() bool { return again.Server.Stats().Steps > 20 })
	stop()
	load.Wait()
	t.Logf("%d requests, %d broken off mid-stream", asked.Load(), brokenOff.Load())
}

// TestSoakReplays sends a few hundred requests of which a third is given up,
// to engines that misbehave, and holds that nothing is left behind and that
// the journal of it all gives the same actions again.
func TestSoakReplays(t *testing.T) {
	goroutinesReturn(t)
	nodes, urls := simulated(t, 4, 2)
	var raw bytes.Buffer
	jw := journal.NewWriter(&raw)
	p := &prober{client: engine.NewClient(engine.Options{})}
	t.Cleanup(p.client.Close)
	t.Cleanup(p.work.Wait)
	r := newRig(t, setup{pool: func(o *live.Options) {
		o.Config = pool.Default()
		o.Config.Room.MaxInFlight = 4
		o.Config.Health.ProbeFirst, o.Config.Health.ProbeMax = 20*time.Millisecond, 50*time.Millisecond
		o.Seed, o.Probe = 11, p.probe
		rec, err := pool.NewRecorder(jw, o.Config, o.Seed)
		if err != nil {
			t.Fatal(err)
		}
		o.Journal = rec
	}}, urls...)
	p.pool = r.pool
	for i, f := range []server.Fault{
		{Kind: "cut", Tokens: 5, Count: 10}, {Kind: "refuse", Status: 500, Count: 10}, {Kind: "garbage", Count: 10}, {Kind: "cut-event", Tokens: 3, Count: 10},
	} {
		if err := nodes[i].Server.SetFault(f); err != nil {
			t.Fatal(err)
		}
	}
	const workers, each = 24, 16
	var load sync.WaitGroup
	for i := range workers {
		load.Go(func() {
			dice := rand.New(rand.NewPCG(1, uint64(i)))
			for n := range each {
				ctx, leave := context.WithCancel(t.Context())
				if dice.IntN(10) < 3 {
					defer time.AfterFunc(time.Duration(dice.IntN(20))*time.Millisecond, leave).Stop()
				}
				path, body := question(n%2 == 0, dice.IntN(4) > 0, strings.Repeat("a shared beginning ", 50)+fmt.Sprint(i, n), 1+dice.IntN(40))
				_, _ = r.try(ctx, "POST", path, body) // what comes of it is the ledger's to tell
				leave()
			}
		})
	}
	load.Wait()
	r.settled()
	p.work.Wait()
	for _, n := range nodes {
		until(t, "the engines to be free", func() bool { return n.Server.Stats().Running+n.Server.Stats().Waiting == 0 })
	}
	tally := r.pool.Tally()
	if tally.Cancelled < workers || tally.Done == 0 || tally.Retried == 0 {
		t.Errorf("the load was not what it should be: %+v", tally)
	}
	r.pool.Close() // no step is recorded any more
	if err := jw.Flush(); err != nil {
		t.Fatal(err)
	}
	size := raw.Len()
	jr, err := journal.NewReader(&raw)
	if err != nil {
		t.Fatal(err)
	}
	b, steps, err := pool.Replay(jr)
	if err != nil || b.Tally() != tally || steps < 3*workers*each/2 {
		t.Errorf("after %d steps: %v; tally %+v, live %+v", steps, err, b.Tally(), tally)
	}
	t.Logf("%+v; %d steps in %d bytes", tally, steps, size)
}
