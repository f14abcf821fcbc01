package enginesim

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"penstock.dev/penstock/internal/fleet"
)

// admissions drains the engine and returns when each request was
// first scheduled.
func admissions(t *testing.T, e *Engine) map[fleet.ReqID]time.Duration {
	t.Helper()
	at := map[fleet.ReqID]time.Duration{}
	out, next := e.Advance(0, nil)
	for next != fleet.Never {
		out, next = e.Advance(next, out)
	}
	for _, o := range out {
		at[o.Req] = time.Duration(o.Admitted)
	}
	return at
}

func TestRequestsWaitForAnAdapterSlot(t *testing.T) {
	e := newEngine(t, Config{MaxAdapters: 1})
	submit(t, e, 0, Request{ID: 1, Prompt: 16, Output: 10, Adapter: "a"})
	submit(t, e, 0, Request{ID: 2, Prompt: 16, Output: 10, Adapter: "b"})
	submit(t, e, 0, Request{ID: 3, Prompt: 16, Output: 1})               // passes by
	submit(t, e, 0, Request{ID: 4, Prompt: 16, Output: 1, Adapter: "a"}) // shares the slot
	e.Advance(0, nil)
	running, waiting := e.Adapters()
	if d := cmp.Diff([][]string{{"a"}, {"b"}}, [][]string{running, waiting}); d != "" {
		t.Errorf("adapters:\n%s", d)
	}
	// One that comes later needs no slot either.
	submit(t, e, fleet.Time(time.Millisecond), Request{ID: 5, Prompt: 16, Output: 1})
	at := admissions(t, e)
	if at[1] != 0 || at[3] != 0 || at[4] != 0 || at[5] == 0 || at[5] > 3*time.Millisecond {
		t.Errorf("admitted at %v", at)
	}
	// Ten steps of about a millisecond each.
	if at[2] < 10*time.Millisecond || at[2] > 11*time.Millisecond {
		t.Errorf("the other adapter ran at %v", at[2])
	}
	running, waiting = e.Adapters()
	if d := cmp.Diff([][]string{nil, nil}, [][]string{running, waiting}, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("at rest:\n%s", d)
	}
}

func TestPoolingIsAPrefillWithoutTokens(t *testing.T) {
	e := newEngine(t, Config{EveryToken: true})
	submit(t, e, 0, Request{ID: 1, Prompt: 100, Pool: true, Finish: FinishStop})
	out, _ := e.Advance(fleet.Time(time.Second), nil)
	var ends []Output
	for _, o := range out {
		if o.Kind == KindTokens {
			ends = append(ends, o)
		}
	}
	if len(ends) != 1 || ends[0].Tokens != 0 || ends[0].Finish != FinishStop || ends[0].At != fleet.Time(1100*time.Microsecond) {
		t.Errorf("reports: %+v", ends)
	}
	if s := e.Stats(); s.GenerationTokens != 0 || s.PromptTokens != 100 || s.Steps != 1 {
		t.Errorf("stats: %+v", s)
	}
	if err := e.Submit(0, Request{ID: 2, Prompt: 100, Output: 5, Pool: true}); err == nil {
		t.Error("tokens to pool were accepted")
	}
}

func TestDropCache(t *testing.T) {
	e := newEngine(t, Config{})
	chain := chainOf(10, 10, 0)
	submit(t, e, 0, Request{ID: 1, Chain: chain, Prompt: 161, Output: 1})
	drain(t, e)
	if e.Stats().CachedBlocks != 10 {
		t.Fatalf("cached: %+v", e.Stats())
	}
	now := fleet.Time(time.Second)
	submit(t, e, now, Request{ID: 2, Prompt: 16, Output: 50})
	e.Advance(now, nil)
	if e.DropCache(now, false) || e.Stats().CachedBlocks != 10 {
		t.Error("the cache was dropped under a running sequence")
	}
	if !e.DropCache(now+1, true) {
		t.Error("preempting did not help")
	}
	if s := e.Stats(); s.CachedBlocks != 0 || s.UsedBlocks != 0 || s.Running != 0 || s.Waiting != 1 {
		t.Errorf("after the drop: %+v", s)
	}
	out, next := e.Advance(now+1, nil)
	for next != fleet.Never {
		out, next = e.Advance(next, out)
	}
	if out[0].Kind != KindPreempted || out[len(out)-1].Finish != FinishLength || out[len(out)-1].Tokens != 50 {
		t.Errorf("outputs: %+v", out)
	}
	submit(t, e, now*2, Request{ID: 3, Chain: chain, Prompt: 161, Output: 1})
	if out, _ := e.Advance(now*3, nil); out[0].Cached != 0 {
		t.Errorf("found %d tokens", out[0].Cached)
	}
}
