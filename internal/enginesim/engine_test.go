package enginesim

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"penstock.dev/penstock/internal/fleet"
)

// perToken is a Physics that is easy to do sums with: one microsecond per
// token, one millisecond per step.
type perToken struct{}

func (perToken) StepTime(b Batch) time.Duration {
	return time.Millisecond + time.Duration(b.Tokens())*time.Microsecond
}

func newEngine(t testing.TB, c Config) *Engine {
	t.Helper()
	if c.Physics == nil {
		c.Physics = perToken{}
	}
	if c.MaxSeqs == 0 {
		c.MaxSeqs = 256
	}
	if c.BudgetTokens == 0 {
		c.BudgetTokens = 8192
	}
	if c.KVTokens == 0 {
		c.KVTokens = 298_000
	}
	e, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func submit(t testing.TB, e *Engine, now fleet.Time, r Request) {
	t.Helper()
	if err := e.Submit(now, r); err != nil {
		t.Fatal(err)
	}
}

// chainOf returns n keys of a chain that agrees with every other chain of the
// same seed, and after `shared` blocks only with those of the same branch.
func chainOf(n, shared int, branch uint32) []uint64 {
	var keys []uint64
	c := NewContext("")
	for i := range n {
		if i == shared {
			c = c.Add(branch + 1<<20) // unlike any index, or chains would join again
		}
		c = c.Add(uint32(i))
		keys = append(keys, c.Key())
	}
	return keys
}

// drain runs e until it is idle and returns all outputs.
func drain(t testing.TB, e *Engine) []Output {
	t.Helper()
	var out []Output
	next := fleet.Time(0)
	for steps := 0; next != fleet.Never; steps++ {
		if steps > 1_000_000 {
			t.Fatal("the engine does not come to rest")
		}
		out, next = e.Advance(next, out)
	}
	return out
}

// event is the part of an Output that scheduling tests compare.
type event struct {
	Req    fleet.ReqID
	Tokens fleet.Tokens
	At     time.Duration
}

func events(out []Output, kind Kind) []event {
	var evs []event
	for _, o := range out {
		if o.Kind == kind {
			evs = append(evs, event{o.Req, o.Tokens, time.Duration(o.At)})
		}
	}
	return evs
}

func TestLongPromptIsChunkedByTheBudget(t *testing.T) {
	e := newEngine(t, Config{BudgetTokens: 100, EveryToken: true})
	submit(t, e, 0, Request{ID: 1, Prompt: 250, Output: 2})
	got := events(drain(t, e), KindStep)
	ms := time.Millisecond
	want := []event{
		{0, 100, 1100 * time.Microsecond},
		{0, 100, 2200 * time.Microsecond},
		{0, 50, 3*ms + 250*time.Microsecond},
		{0, 1, 4*ms + 251*time.Microsecond},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("steps (-want +got):\n%s", d)
	}
}

func TestRunningSequencesComeBeforeWaitingOnes(t *testing.T) {
	e := newEngine(t, Config{BudgetTokens: 100, EveryToken: true})
	submit(t, e, 0, Request{ID: 1, Prompt: 90, Output: 3})
	submit(t, e, 0, Request{ID: 2, Prompt: 110, Output: 1})
	got := events(drain(t, e), KindStep)
	// 90 + 10 of request 2; then one decode and 99 more of request 2; then the
	// decode and its last token.
	want := []fleet.Tokens{100, 100, 2}
	for i, w := range want {
		if i >= len(got) || got[i].Tokens != w {
			t.Fatalf("steps = %v, want token counts %v", got, want)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d steps, want %d", len(got), len(want))
	}
}

func TestMaxSeqsBoundsTheBatch(t *testing.T) {
	e := newEngine(t, Config{MaxSeqs: 2})
	for id := range fleet.ReqID(5) {
		submit(t, e, 0, Request{ID: id, Prompt: 10, Output: 4})
	}
	e.Advance(0, nil)
	if s := e.Stats(); s.Running != 2 || s.Waiting != 3 {
		t.Errorf("running %d, waiting %d; want 2 and 3", s.Running, s.Waiting)
	}
	drain(t, e)
	if s := e.Stats(); s.Finished[FinishLength] != 5 || s.Running+s.Waiting != 0 {
		t.Errorf("at rest: %+v", s)
	}
}

func TestRequestsOfOneInstantShareAStep(t *testing.T) {
	e := newEngine(t, Config{EveryToken: true})
	submit(t, e, 5, Request{ID: 1, Prompt: 10, Output: 1})
	submit(t, e, 5, Request{ID: 2, Prompt: 20, Output: 1})
	if got := events(drain(t, e), KindStep); len(got) != 1 || got[0].Tokens != 30 {
		t.Errorf("steps = %v, want one of 30 tokens", got)
	}
}

func TestArrivalDuringAStepWaitsForItsEnd(t *testing.T) {
	e := newEngine(t, Config{})
	submit(t, e, 0, Request{ID: 1, Prompt: 1000, Output: 1}) // ends at 2 ms
	submit(t, e, fleet.Time(500*time.Microsecond), Request{ID: 2, Prompt: 1000, Output: 1})
	got := events(drain(t, e), KindTokens)
	want := []event{{1, 1, 2 * time.Millisecond}, {2, 1, 4 * time.Millisecond}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("outputs (-want +got):\n%s", d)
	}
}

func TestPrefixCacheHits(t *testing.T) {
	for _, tc := range []struct {
		name                   string
		first, second          Request
		wantCached, wantHitSum fleet.Tokens
	}{
		{
			"the same prompt in whole blocks leaves one block to compute",
			Request{ID: 1, Prompt: 160, Output: 1, Chain: chainOf(10, 10, 0)},
			Request{ID: 2, Prompt: 160, Output: 1, Chain: chainOf(10, 10, 0)},
			144, 144,
		},
		{
			"the same prompt with a partial last block hits all full ones",
			Request{ID: 1, Prompt: 165, Output: 1, Chain: chainOf(10, 10, 0)},
			Request{ID: 2, Prompt: 165, Output: 1, Chain: chainOf(10, 10, 0)},
			160, 160,
		},
		{
			"chains hit as far as they agree",
			Request{ID: 1, Prompt: 165, Output: 1, Chain: chainOf(10, 4, 1)},
			Request{ID: 2, Prompt: 165, Output: 1, Chain: chainOf(10, 4, 2)},
			64, 64,
		},
		{
			"nothing in common",
			Request{ID: 1, Prompt: 165, Output: 1, Chain: chainOf(10, 0, 1)},
			Request{ID: 2, Prompt: 165, Output: 1, Chain: chainOf(10, 0, 2)},
			0, 0,
		},
		{
			"the next turn hits the answer too, but for its last token's block",
			Request{ID: 1, Prompt: 100, Output: 61, Chain: chainOf(20, 20, 0)},
			Request{ID: 2, Prompt: 300, Output: 1, Chain: chainOf(20, 20, 0)},
			160, 160,
		},
		{
			"requests without keys share nothing",
			Request{ID: 1, Prompt: 160, Output: 1},
			Request{ID: 2, Prompt: 160, Output: 1},
			0, 0,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEngine(t, Config{})
			submit(t, e, 0, tc.first)
			drain(t, e)
			now := fleet.Time(time.Second)
			submit(t, e, now, tc.second)
			out, _ := e.Advance(now+fleet.Time(time.Second), nil)
			if len(out) == 0 || out[0].Cached != tc.wantCached {
				t.Errorf("second request: %+v, want %d cached", out, tc.wantCached)
			}
			if s := e.Stats(); s.PrefixHits != uint64(tc.wantHitSum) {
				t.Errorf("prefix hits = %d, want %d", s.PrefixHits, tc.wantHitSum)
			}
		})
	}
}

func TestSameStepSharesThePrefix(t *testing.T) {
	e := newEngine(t, Config{EveryToken: true})
	submit(t, e, 0, Request{ID: 1, Prompt: 165, Output: 1, Chain: chainOf(10, 10, 0)})
	submit(t, e, 0, Request{ID: 2, Prompt: 165, Output: 1, Chain: chainOf(10, 10, 0)})
	if got := events(drain(t, e), KindStep); len(got) != 1 || got[0].Tokens != 165+5 {
		t.Errorf("steps = %v, want one of 170 tokens", got)
	}
}

func TestPreemptionTakesTheLatestArrivalAndRecomputes(t *testing.T) {
	// Eight blocks: two requests of three blocks each, both growing by two.
	e := newEngine(t, Config{KVTokens: 8 * BlockTokens, EveryToken: true})
	submit(t, e, 0, Request{ID: 1, Prompt: 48, Output: 33})
	submit(t, e, 0, Request{ID: 2, Prompt: 48, Output: 33})
	out := drain(t, e)
	pre := events(out, KindPreempted)
	if len(pre) != 1 || pre[0].Req != 2 {
		t.Fatalf("preemptions = %v, want one, of request 2", pre)
	}
	count := map[fleet.ReqID]fleet.Tokens{}
	for _, o := range out {
		if o.Kind == KindTokens {
			if count[o.Req]++; o.Tokens != count[o.Req] {
				t.Fatalf("token %d of request %d reported as %d", count[o.Req], o.Req, o.Tokens)
			}
		}
	}
	if count[1] != 33 || count[2] != 33 {
		t.Errorf("tokens = %v, want 33 each", count)
	}
	if s := e.Stats(); s.GenerationTokens != 66 || s.PromptTokens != 96 || s.PrefixQueries != 96 {
		t.Errorf("a preempted request was counted twice: %+v", s)
	}
}

func TestPreemptedRequestGoesBeforeLaterArrivals(t *testing.T) {
	e := newEngine(t, Config{KVTokens: 8 * BlockTokens, MaxSeqs: 2})
	submit(t, e, 0, Request{ID: 1, Prompt: 48, Output: 33})
	submit(t, e, 0, Request{ID: 2, Prompt: 48, Output: 33})
	submit(t, e, 0, Request{ID: 3, Prompt: 16, Output: 1})
	var ends []fleet.ReqID
	for _, o := range drain(t, e) {
		if o.Finish != NotFinished {
			ends = append(ends, o.Req)
		}
	}
	// 2 comes back first and 3 joins it; 3 needs only one step.
	if d := cmp.Diff([]fleet.ReqID{1, 3, 2}, ends); d != "" {
		t.Errorf("order of ends (-want +got):\n%s", d)
	}
}

func TestAbortFreesAtOnce(t *testing.T) {
	e := newEngine(t, Config{})
	submit(t, e, 0, Request{ID: 1, Prompt: 1600, Output: 100})
	submit(t, e, 0, Request{ID: 2, Prompt: 1600, Output: 100})
	e.Advance(0, nil)
	before := e.Stats().UsedBlocks
	at := fleet.Time(100 * time.Microsecond) // in the middle of the first step
	if !e.Abort(at, 1) {
		t.Fatal("request 1 is not in the engine")
	}
	if s := e.Stats(); s.UsedBlocks != before/2 || s.Running != 1 {
		t.Errorf("after abort: %+v, had %d blocks used", s, before)
	}
	if e.Abort(at, 1) {
		t.Error("a request was aborted twice")
	}
	for _, o := range drain(t, e) {
		if o.Req == 1 {
			t.Errorf("output after abort: %+v", o)
		}
	}
	if s := e.Stats(); s.Finished != [3]uint64{1, 1, 0} {
		t.Errorf("finished = %v", s.Finished)
	}
}

func TestAbortOfAWaitingRequest(t *testing.T) {
	e := newEngine(t, Config{MaxSeqs: 1})
	submit(t, e, 0, Request{ID: 1, Prompt: 16, Output: 5})
	submit(t, e, 0, Request{ID: 2, Prompt: 16, Output: 5})
	e.Advance(0, nil)
	if !e.Abort(1, 2) || e.Stats().Waiting != 0 {
		t.Error("the waiting request stayed")
	}
	drain(t, e)
}

func TestRequestsThatCanNeverRunAreRefused(t *testing.T) {
	e := newEngine(t, Config{KVTokens: 160})
	submit(t, e, 0, Request{ID: 1, Prompt: 150, Output: 11}) // 160 tokens of KV: fits exactly
	err := e.Submit(0, Request{ID: 2, Prompt: 150, Output: 12})
	if large, ok := errors.AsType[*TooLargeError](err); !ok || large.Need != 176 || large.Have != 160 {
		t.Errorf("too large: %v", err)
	}
	if err := e.Submit(0, Request{ID: 1, Prompt: 1, Output: 1}); !errors.Is(err, ErrDuplicate) {
		t.Errorf("duplicate: %v", err)
	}
	if err := e.Submit(0, Request{ID: 3, Prompt: 0, Output: 1}); !errors.Is(err, ErrEmpty) {
		t.Errorf("empty: %v", err)
	}
	drain(t, e)
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	_, err := New(Config{})
	if err == nil {
		t.Fatal("an empty configuration was accepted")
	}
	for _, field := range []string{"Physics", "KVTokens", "MaxSeqs", "BudgetTokens"} {
		if !contains(err.Error(), field) {
			t.Errorf("%q does not name %s", err, field)
		}
	}
}

// lastBatch remembers what it was last asked for.
type lastBatch struct{ b *Batch }

func (l lastBatch) StepTime(b Batch) time.Duration {
	*l.b = b
	return time.Millisecond
}

func TestSharedPrefixesAreReadAgain(t *testing.T) {
	var b Batch
	e := newEngine(t, Config{Physics: lastBatch{&b}, EveryToken: true})
	for id := range fleet.ReqID(3) {
		submit(t, e, 0, Request{ID: id, Prompt: 165, Output: 5, Chain: chainOf(10, 4, uint32(id))})
	}
	e.Advance(fleet.Time(time.Millisecond), nil)
	if b.Decodes != 3 || b.Context != 3*165 || b.Again != 2*64 {
		t.Errorf("%+v, want 3 decodes over 495 tokens, of which 64 are read by two more", b)
	}
	e.Abort(fleet.Time(time.Millisecond), 1)
	e.Advance(fleet.Time(2*time.Millisecond), nil)
	if b.Again != 64 {
		t.Errorf("with one gone %d tokens are read again, want 64", b.Again)
	}
	drain(t, e)
	if e.blocks.again() != 0 {
		t.Errorf("at rest %d blocks are held twice", e.blocks.again())
	}
}

func TestReceivedKVIsNotComputedUntilItIsLost(t *testing.T) {
	var b Batch
	e := newEngine(t, Config{Physics: lastBatch{&b}, EveryToken: true, KVTokens: 8 * BlockTokens})
	submit(t, e, 0, Request{ID: 1, Prompt: 49, Received: 48, Output: 33})
	submit(t, e, 0, Request{ID: 2, Prompt: 49, Received: 48, Output: 33})
	e.Advance(0, nil)
	if b.Prompt != 2 || b.Context != 2*48 || e.Stats().UsedBlocks != 8 {
		t.Errorf("%+v on %d blocks, want one token each after 48 that have come, on all 8", b, e.Stats().UsedBlocks)
	}
	computed := fleet.Tokens(0)
	for _, o := range drain(t, e) {
		if o.Kind == KindStep {
			computed += o.Tokens
		}
	}
	if s := e.Stats(); s.Preemptions != 1 || computed <= 2*33 {
		t.Errorf("%d preemptions and %d tokens computed: what was lost must be computed here", s.Preemptions, computed)
	}
}
