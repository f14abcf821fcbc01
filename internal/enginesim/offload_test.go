package enginesim

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

func TestOffloadInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, deeds := drawScenario(t)
		drawTiers(t, &c)
		c.EveryToken = rapid.Bool().Draw(t, "every token")
		out, aborted, e := act(t, c, deeds)
		ends := map[fleet.ReqID]int{}
		for _, o := range out {
			if o.FromCPU+o.FromDisk > o.Cached {
				t.Fatalf("more loaded than cached: %+v", o)
			}
			if o.Finish != NotFinished {
				ends[o.Req]++
			}
		}
		for _, d := range deeds {
			if want := 1; !d.drop && !aborted[d.req.ID] && ends[d.req.ID] != want {
				t.Errorf("request %d ended %d times", d.req.ID, ends[d.req.ID])
			}
		}
		s := e.Stats()
		if s.UsedBlocks != 0 || s.Running+s.Waiting+len(e.loads) != 0 {
			t.Errorf("at rest: %+v", s)
		}
		if s.CPU.Hits+s.Disk.Hits > s.PrefixHits {
			t.Errorf("more hits below than in all: %+v", s)
		}
		for _, b := range e.shelves {
			if b.blocks.used != 0 {
				t.Errorf("tier %d is still being read", b.blocks.tier)
			}
		}
	})
}

// Skipping over steps changes no time, no counter and no event.
func TestGlidingWithTiersEqualsStepping(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, deeds := drawScenario(t)
		drawTiers(t, &c)
		type run struct {
			ID    fleet.ReqID
			Depth int
			Tier  kv.Tier
			Last  kv.EngineKey
		}
		var runs []run
		c.Events = true
		c.Describe = func(id fleet.ReqID, depth int, ev *kv.Event) {
			runs = append(runs, run{id, depth, ev.Tier, ev.Blocks[len(ev.Blocks)-1]})
		}
		glided, _, g := act(t, c, deeds)
		atOnce := runs
		runs = nil
		c.EveryToken = true
		stepped, _, s := act(t, c, deeds)
		if d := cmp.Diff(runs, atOnce); d != "" {
			t.Errorf("stored (-stepped +glided):\n%s", d)
		}
		stepped = slices.DeleteFunc(stepped, func(o Output) bool {
			return o.Kind == KindStep || o.Kind == KindTokens && !o.First && o.Finish == NotFinished
		})
		if d := cmp.Diff(stepped, glided, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("outputs (-stepped +glided):\n%s", d)
		}
		if d := cmp.Diff(s.Stats(), g.Stats()); d != "" {
			t.Errorf("stats (-stepped +glided):\n%s", d)
		}
	})
}

func TestALockstepSetOfOneLoadsAsAnEngine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, deeds := drawScenario(t)
		drawTiers(t, &c)
		want, _, e := act(t, c, deeds)
		got, _, l := actInLockstep(t, []Config{c}, deeds)
		if d := cmp.Diff(want, got[0], cmpopts.EquateEmpty()); d != "" {
			t.Errorf("outputs (-engine +set):\n%s", d)
		}
		if d := cmp.Diff(e.Stats(), l.Rank(0).Stats()); d != "" {
			t.Errorf("stats (-engine +set):\n%s", d)
		}
	})
}

func TestLockstepWithTiers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, deeds := drawScenario(t)
		drawTiers(t, &c)
		n := rapid.IntRange(1, 4).Draw(t, "ranks")
		glided, aborted, l := actInLockstep(t, rankConfigs(c, n), deeds)
		c.EveryToken = true
		stepped, _, _ := actInLockstep(t, rankConfigs(c, n), deeds)
		ends := 0
		for i := range stepped {
			stepped[i] = slices.DeleteFunc(stepped[i], func(o Output) bool {
				return o.Kind == KindStep || o.Kind == KindTokens && !o.First && o.Finish == NotFinished
			})
			if d := cmp.Diff(stepped[i], glided[i], cmpopts.EquateEmpty()); d != "" {
				t.Errorf("rank %d (-stepped +glided):\n%s", i, d)
			}
			for _, o := range glided[i] {
				if o.Finish != NotFinished {
					ends++
				}
			}
			if s := l.Rank(i).Stats(); s.UsedBlocks != 0 || s.Running+s.Waiting != 0 {
				t.Errorf("rank %d at rest: %+v", i, s)
			}
		}
		for _, d := range deeds {
			if !d.drop && !d.abort && !aborted[d.req.ID] {
				ends--
			}
		}
		if ends != 0 {
			t.Errorf("%d ends too many", ends)
		}
	})
}

// tiered is an engine whose GPU holds 8 blocks, CPU 12 and disk as many as told.
// A block takes 1 ms from CPU and 4 ms from disk.
func tiered(t *testing.T, disk fleet.Tokens) *Engine {
	return newEngine(t, Config{KVTokens: 8 * BlockTokens, Offload: Offload{
		KVBytes: 1000,
		CPU:     Store{Tokens: 12 * BlockTokens, Bandwidth: 16e6, Latency: 2 * time.Millisecond},
		Disk:    Store{Tokens: disk, Bandwidth: 4e6, Latency: 10 * time.Millisecond},
	}})
}

func (e *Engine) has(chain []uint64) [3]int {
	return [3]int{e.Match(kv.TierGPU, chain), e.Match(kv.TierCPU, chain), e.Match(kv.TierDisk, chain)}
}

// ask runs a request of 7 blocks and one token alone and returns its only output.
func ask(t *testing.T, e *Engine, id fleet.ReqID, chain []uint64) Output {
	t.Helper()
	submit(t, e, e.ready, Request{ID: id, Prompt: 113, Output: 1, Chain: chain})
	out := drain(t, e)
	if len(out) != 1 {
		t.Fatalf("%d outputs, want 1", len(out))
	}
	return out[0]
}

func TestWhatLeavesTheGPUIsLoadedAgain(t *testing.T) {
	e := tiered(t, 64*BlockTokens)
	a, b, c := chainOf(7, 0, 1), chainOf(7, 0, 2), chainOf(7, 0, 3)
	ask(t, e, 1, a)
	if got := e.has(a); got != [3]int{7, 7, 0} {
		t.Errorf("computed, GPU, CPU and disk have %v of 7", got)
	}
	ask(t, e, 2, b)
	if got := e.has(a); got != [3]int{0, 5, 7} {
		t.Errorf("evicted from the GPU and in part from CPU, they have %v", got)
	}
	at := e.ready
	o := ask(t, e, 1, a)
	// 5 ms for five blocks and 2 ms from CPU meanwhile 8 ms and 10 ms from disk;
	// then one token.
	if got := o.At.Sub(at); got != 18*time.Millisecond+1001*time.Microsecond || o.Admitted.Sub(at) != 18*time.Millisecond {
		t.Errorf("loaded and computed in %v, admitted after %v", got, o.Admitted.Sub(at))
	}
	if o.Cached != 112 || o.FromCPU != 80 || o.FromDisk != 32 {
		t.Errorf("cached %d, %d from CPU and %d from disk", o.Cached, o.FromCPU, o.FromDisk)
	}
	ask(t, e, 3, c)
	s := e.Stats()
	// The CPU has stored a, b, of a again the two blocks that b drove out, and c.
	want := TierStats{TotalBlocks: 12, CachedBlocks: 12, Hits: 80, Loads: 1, LoadedBytes: 80_000, StoredBlocks: 23, EvictedBlocks: 11}
	if d := cmp.Diff(want, s.CPU); d != "" {
		t.Errorf("CPU (-want +got):\n%s", d)
	}
	want = TierStats{TotalBlocks: 64, CachedBlocks: 14, Hits: 32, Loads: 1, LoadedBytes: 32_000, StoredBlocks: 14}
	if d := cmp.Diff(want, s.Disk); d != "" {
		t.Errorf("disk (-want +got):\n%s", d)
	}
	if s.PrefixHits != 112 {
		t.Errorf("%d hits in all, want 112", s.PrefixHits)
	}
}

func TestWithoutADiskTheOverflowIsGone(t *testing.T) {
	e := tiered(t, 0)
	a, b := chainOf(7, 0, 1), chainOf(7, 0, 2)
	ask(t, e, 1, a)
	ask(t, e, 2, b)
	if got := e.has(a); got != [3]int{0, 5, 0} {
		t.Errorf("they have %v", got)
	}
	if o := ask(t, e, 3, a); o.Cached != 80 || o.FromCPU != 80 {
		t.Errorf("cached %d, %d of it from CPU", o.Cached, o.FromCPU)
	}
}

// Others go on while one waits for its load, and loads wait for one another.
func TestLoadsDelayOnlyTheirOwn(t *testing.T) {
	e := newEngine(t, Config{KVTokens: 24 * BlockTokens, EveryToken: true, Offload: Offload{
		KVBytes: 1000, CPU: Store{Tokens: 64 * BlockTokens, Bandwidth: 16e6, Latency: 2 * time.Millisecond},
	}})
	a, b := chainOf(7, 0, 1), chainOf(7, 0, 2)
	for i, c := range [][]uint64{a, b, chainOf(7, 0, 3), chainOf(7, 0, 4), chainOf(7, 0, 5), chainOf(7, 0, 6)} {
		submit(t, e, e.ready, Request{ID: fleet.ReqID(i), Prompt: 113, Output: 1, Chain: c})
		drain(t, e)
	}
	at := e.ready
	submit(t, e, at, Request{ID: 10, Prompt: 113, Output: 2, Chain: a})
	submit(t, e, at, Request{ID: 11, Prompt: 20, Output: 12})
	submit(t, e, at, Request{ID: 12, Prompt: 113, Output: 1, Chain: b})
	admitted := map[fleet.ReqID]time.Duration{}
	for _, o := range drain(t, e) {
		if o.First {
			admitted[o.Req] = o.Admitted.Sub(at)
		}
	}
	// 7 ms for seven blocks and 2 ms beside end within the ninth step of the other,
	// of which the first computes 20 tokens; the next load waits for the link.
	ninth := 1020*time.Microsecond + 8*1001*time.Microsecond
	want := map[fleet.ReqID]time.Duration{10: ninth, 11: 0, 12: 16 * time.Millisecond}
	if d := cmp.Diff(want, admitted); d != "" {
		t.Errorf("admitted (-want +got):\n%s", d)
	}
}

func TestAbortBreaksALoadOff(t *testing.T) {
	e := tiered(t, 0)
	a, b := chainOf(7, 0, 1), chainOf(7, 0, 2)
	ask(t, e, 1, a)
	ask(t, e, 2, b)
	at := e.ready
	submit(t, e, at, Request{ID: 3, Prompt: 113, Output: 1, Chain: a})
	submit(t, e, at, Request{ID: 4, Prompt: 113, Output: 1, Chain: chainOf(7, 0, 5)})
	if _, next := e.Advance(at, nil); len(e.loads) != 1 || next.Sub(at) != 7*time.Millisecond {
		t.Fatalf("%d loads, and something happens after %v", len(e.loads), next.Sub(at))
	}
	aborted := at.Add(3 * time.Millisecond)
	if !e.Abort(aborted, 3) {
		t.Fatal("the request is gone")
	}
	out := drain(t, e)
	if len(out) != 1 || out[0].Req != 4 || out[0].Admitted != aborted {
		t.Errorf("%+v; want request 4 to begin at once", out)
	}
	if err := e.check(); err != nil {
		t.Error(err)
	}
}

func TestDroppingTheCacheDropsAllTiers(t *testing.T) {
	e := tiered(t, 64*BlockTokens)
	a, b := chainOf(7, 0, 1), chainOf(7, 0, 2)
	ask(t, e, 1, a)
	ask(t, e, 2, b)
	at := e.ready
	submit(t, e, at, Request{ID: 3, Prompt: 113, Output: 1, Chain: a})
	e.Advance(at, nil)
	if e.DropCache(at, false) {
		t.Error("dropped while a request loads")
	}
	at = at.Add(time.Millisecond)
	if !e.DropCache(at, true) {
		t.Error("not dropped")
	}
	for _, c := range [][]uint64{a, b} {
		if got := e.has(c); got != [3]int{} {
			t.Errorf("after the drop they have %v", got)
		}
	}
	out := drain(t, e)
	if len(out) != 1 || out[0].Cached != 0 || out[0].Admitted != at {
		t.Errorf("%+v; want the request to compute all, at once", out)
	}
}

func TestArrivalsGoPastALoad(t *testing.T) {
	for _, lockstep := range []bool{false, true} {
		e := tiered(t, 0)
		if lockstep {
			l, err := NewLockstep([]Config{e.config, e.config})
			if err != nil {
				t.Fatal(err)
			}
			e = l.Rank(0)
		}
		a, b := chainOf(3, 0, 1), chainOf(7, 0, 2)
		submit(t, e, 0, Request{ID: 1, Prompt: 49, Output: 1, Chain: a})
		drain(t, e)
		ask(t, e, 2, b)
		at := fleet.Time(time.Second)
		submit(t, e, at, Request{ID: 3, Prompt: 49, Output: 1, Chain: a})
		e.Advance(at, nil)
		submit(t, e, at+1, Request{ID: 4, Prompt: 20, Output: 1})
		out := drain(t, e)
		if len(out) != 2 || out[0].Req != 4 || out[0].Admitted != at+1 || out[1].Admitted != at.Add(5*time.Millisecond) {
			t.Errorf("lockstep %v: %+v; want request 4 at once and 3 after its load", lockstep, out)
		}
	}
}

// A load may take the last block, and the only sequence that runs then has to
// wait for its end. What it computed comes back from CPU memory, too, but counts
// as computed.
func TestALoadMayPreemptTheLastOneThatRuns(t *testing.T) {
	e := newEngine(t, Config{KVTokens: 8 * BlockTokens, Offload: Offload{
		KVBytes: 1000, CPU: Store{Tokens: 64 * BlockTokens, Bandwidth: 16e6, Latency: 2 * time.Millisecond},
	}})
	a := chainOf(4, 0, 1)
	submit(t, e, 0, Request{ID: 1, Prompt: 65, Output: 1, Chain: a})
	drain(t, e)
	ask(t, e, 2, chainOf(7, 0, 2))
	at := e.ready
	submit(t, e, at, Request{ID: 3, Prompt: 60, Output: 30})
	submit(t, e, at, Request{ID: 4, Prompt: 65, Output: 1, Chain: a})
	out := drain(t, e)
	if err := e.check(); err != nil {
		t.Error(err)
	}
	preempted := slices.IndexFunc(out, func(o Output) bool { return o.Kind == KindPreempted })
	if preempted < 0 || out[preempted].Req != 3 {
		t.Fatalf("%+v; want request 3 to be preempted", out)
	}
	// Five steps fill four blocks; then it waits for 4 ms and 2 ms of load to end.
	if got := out[preempted].At.Sub(at); got > 6*time.Millisecond {
		t.Errorf("preempted after %v, when the load was over", got)
	}
	i := slices.IndexFunc(out, func(o Output) bool { return o.Req == 3 && o.Finish != NotFinished })
	if o := out[i]; o.Cached != 0 || o.FromCPU != 0 || o.Tokens != 30 {
		t.Errorf("%+v; want all 30 tokens and nothing cached", o)
	}
}

// What a request holds while the rest is loaded is not read, and so not read
// again.
func TestAWaitingLoadReadsNothing(t *testing.T) {
	var last Batch
	e := newEngine(t, Config{Physics: lastBatch{&last}, KVTokens: 24 * BlockTokens, EveryToken: true, Offload: Offload{
		KVBytes: 1000, CPU: Store{Tokens: 64 * BlockTokens, Bandwidth: 16e6},
	}})
	x, y := chainOf(7, 2, 1), chainOf(7, 2, 2)
	for i, c := range [][]uint64{x, chainOf(7, 0, 3), chainOf(7, 0, 4), chainOf(7, 0, 5)} {
		submit(t, e, e.ready, Request{ID: fleet.ReqID(i), Prompt: 113, Output: 1, Chain: c})
		drain(t, e)
	}
	at := e.ready
	submit(t, e, at, Request{ID: 10, Prompt: 113, Output: 100, Chain: y})
	_, next := e.Advance(at, nil)
	for range 3 {
		_, next = e.Advance(next, nil)
	}
	submit(t, e, next, Request{ID: 11, Prompt: 113, Output: 1, Chain: x})
	e.Advance(next, nil)
	if len(e.loads) != 1 || e.loads[0].s.published != 2 || last.Decodes != 1 || last.Again != 0 {
		t.Errorf("%d loads; in the step %d sequences, which read %d tokens again; want a load after two blocks that nobody reads", len(e.loads), last.Decodes, last.Again)
	}
}
