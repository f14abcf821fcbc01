package enginesim

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/fleet"
)

// deed is one call made on an engine at a time.
type deed struct {
	at    fleet.Time
	req   Request
	abort bool // of req.ID, instead of submitting it
	drop  bool // the cache, instead of submitting
	free  bool // what req.ID has kept, instead of submitting it
}

// keepSome has some requests keep their blocks, and most of these give them up.
func keepSome(t *rapid.T, deeds []deed) []deed {
	for i := range deeds {
		d := &deeds[i]
		if d.abort || d.drop || rapid.IntRange(0, 3).Draw(t, "keep") > 0 {
			continue
		}
		d.req.Keep = true
		if rapid.IntRange(0, 3).Draw(t, "free") > 0 {
			deeds = append(deeds, deed{at: d.at + fleet.Time(rapid.IntRange(0, 100_000).Draw(t, "free after us"))*1000, req: d.req, free: true})
		}
	}
	slices.SortStableFunc(deeds, func(a, b deed) int { return int(a.at - b.at) })
	return deeds
}

// drawScenario makes a small engine under pressure: few blocks, shared
// prefixes, aborts at any time.
func drawScenario(t *rapid.T) (Config, []deed) {
	c := Config{
		Physics: &Roofline{
			Weights: 1e-3, Linear: 2e-6, KV: 1e-7, Attention: 1e-9, Overhead: 1e-4, Sequence: 1e-5,
			Noise: 0.1, Seed: rapid.Uint64().Draw(t, "seed"),
		},
		KVTokens:     fleet.Tokens(rapid.IntRange(12, 60).Draw(t, "blocks")) * BlockTokens,
		MaxSeqs:      rapid.IntRange(1, 8).Draw(t, "seqs"),
		BudgetTokens: fleet.Tokens(rapid.IntRange(5, 200).Draw(t, "budget")),
		MaxAdapters:  rapid.IntRange(0, 2).Draw(t, "slots"),
	}
	var deeds []deed
	now := fleet.Time(0)
	for id := range fleet.ReqID(rapid.IntRange(1, 25).Draw(t, "requests")) {
		now += fleet.Time(rapid.IntRange(0, 30_000).Draw(t, "gap us")) * 1000
		prompt := rapid.IntRange(1, 120).Draw(t, "prompt")
		output := rapid.IntRange(1, 60).Draw(t, "output")
		r := Request{ID: id, Prompt: fleet.Tokens(prompt), Output: fleet.Tokens(output), Finish: FinishStop}
		shared := rapid.IntRange(0, 6).Draw(t, "shared")
		switch rapid.IntRange(0, 2).Draw(t, "keys") {
		case 1: // prompts in common
			r.Chain = chainOf(prompt/blockTokens, shared, uint32(rapid.IntRange(0, 2).Draw(t, "branch")))
		case 2: // answers given, too; their own
			r.Chain = chainOf((prompt+output)/blockTokens, min(shared, prompt/blockTokens), uint32(id)+10)
		}
		switch rapid.IntRange(0, 6).Draw(t, "kind") {
		case 0:
			r.Pool, r.Output = true, 0
		case 1, 2, 3:
			r.Adapter = rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "adapter")
		case 4:
			deeds = append(deeds, deed{at: now, drop: true})
		}
		deeds = append(deeds, deed{at: now, req: r})
		if rapid.IntRange(0, 5).Draw(t, "abort") == 0 {
			deeds = append(deeds, deed{at: now + fleet.Time(rapid.IntRange(0, 50_000).Draw(t, "abort after us"))*1000, req: r, abort: true})
		}
	}
	slices.SortStableFunc(deeds, func(a, b deed) int { return int(a.at - b.at) })
	return c, deeds
}

// act plays the deeds. Between them it advances as a caller would that only
// follows the engine's own next event; it checks invariants at every return.
func act(t *rapid.T, c Config, deeds []deed) (out []Output, aborted map[fleet.ReqID]bool, e *Engine) {
	e, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	aborted = map[fleet.ReqID]bool{}
	m := newMirror(c)
	next := fleet.Never
	advance := func(to fleet.Time) {
		before := len(out)
		out, next = e.Advance(to, out)
		if err := errors.Join(e.check(), m.follow(e)); err != nil {
			t.Fatalf("at %v: %v", time.Duration(to), err)
		}
		for _, o := range out[before:] {
			if o.At > to {
				t.Fatalf("output of the future: %+v", o)
			}
		}
		if next <= to {
			t.Fatalf("next event at %v is not after %v", time.Duration(next), time.Duration(to))
		}
	}
	for _, d := range deeds {
		for next < d.at {
			advance(next)
		}
		switch {
		case d.drop:
			e.DropCache(d.at, d.at%2 == 0)
		case d.free:
			e.Release(d.at, d.req.ID)
		case !d.abort:
			if err := e.Submit(d.at, d.req); err != nil {
				t.Fatal(err)
			}
		case e.Abort(d.at, d.req.ID):
			aborted[d.req.ID] = true
		}
		advance(d.at)
	}
	// Whoever fetches what is kept does so in the end: until then an engine that is
	// full of it goes on preempting itself.
	now := deeds[len(deeds)-1].at
	for next != fleet.Never || len(e.kept) > 0 {
		for _, id := range slices.Sorted(maps.Keys(e.kept)) {
			e.Release(now, id)
		}
		advance(now)
		if next != fleet.Never {
			now = next
			advance(now)
		}
	}
	return out, aborted, e
}

func TestEngineInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, deeds := drawScenario(t)
		c.EveryToken = rapid.Bool().Draw(t, "every token")
		deeds = keepSome(t, deeds)
		out, aborted, e := act(t, c, deeds)
		ends := map[fleet.ReqID]int{}
		last := fleet.Time(0)
		for _, o := range out {
			if o.At < last {
				t.Fatalf("output goes back in time: %+v after %v", o, last)
			}
			last = o.At
			if o.Finish != NotFinished {
				ends[o.Req]++
			}
		}
		for _, d := range deeds {
			if d.drop || d.free {
				continue
			}
			want := 1
			if aborted[d.req.ID] {
				want = 0
			}
			if ends[d.req.ID] != want {
				t.Errorf("request %d (aborted: %v) ended %d times", d.req.ID, aborted[d.req.ID], ends[d.req.ID])
			}
		}
		if s := e.Stats(); s.UsedBlocks != 0 || s.Running+s.Waiting != 0 || len(e.byID) != 0 {
			t.Errorf("at rest: %+v", s)
		}
	})
}

// Skipping over steps changes no time and no counter.
func TestGlidingEqualsSteppingAndRepeats(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, deeds := drawScenario(t)
		glided, _, g := act(t, c, deeds)
		again, _, _ := act(t, c, deeds)
		if d := cmp.Diff(glided, again); d != "" {
			t.Fatalf("the same scenario twice:\n%s", d)
		}
		c.EveryToken = true
		stepped, _, s := act(t, c, deeds)
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

// More memory never makes a lone stream of requests slower: with nobody else
// running, only cache hits differ.
func TestMoreMemoryNeverMissesMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, deeds := drawScenario(t)
		c.MaxSeqs = 1
		deeds = slices.DeleteFunc(deeds, func(d deed) bool { return d.abort || d.drop })
		_, _, small := act(t, c, deeds)
		c.KVTokens *= 2
		_, _, large := act(t, c, deeds)
		if s, l := small.Stats(), large.Stats(); l.PrefixHits < s.PrefixHits {
			t.Errorf("hits fell from %d to %d with twice the memory", s.PrefixHits, l.PrefixHits)
		}
	})
}
