package enginesim

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/fleet"
)

// actInLockstep plays each deed on the rank that its request's id falls to, and
// returns what each rank reported.
func actInLockstep(t *rapid.T, configs []Config, deeds []deed) (out [][]Output, aborted map[fleet.ReqID]bool, l *Lockstep) {
	l, err := NewLockstep(configs)
	if err != nil {
		t.Fatal(err)
	}
	out, aborted = make([][]Output, len(configs)), map[fleet.ReqID]bool{}
	next := fleet.Never
	advance := func(to fleet.Time) {
		for i := range configs {
			e := l.Rank(i)
			out[i], next = e.Advance(to, out[i])
			if err := e.check(); err != nil {
				t.Fatalf("at %v, rank %d: %v", time.Duration(to), i, err)
			}
			if e.stepping != l.stepping || l.stepping && e.ends != l.ends || e.stats.Steps != l.steps {
				t.Fatalf("at %v, rank %d keeps a clock of its own: step %d ends %v, the set's %d ends %v",
					time.Duration(to), i, e.stats.Steps, e.ends, l.steps, l.ends)
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
		e := l.Rank(int(d.req.ID) % len(configs))
		switch {
		case d.drop:
			e.DropCache(d.at, d.at%2 == 0)
		case !d.abort:
			if err := e.Submit(d.at, d.req); err != nil {
				t.Fatal(err)
			}
		case e.Abort(d.at, d.req.ID):
			aborted[d.req.ID] = true
		}
		advance(d.at)
	}
	for next != fleet.Never {
		advance(next)
	}
	return out, aborted, l
}

// rankConfigs makes n ranks of one configuration, each with noise of its own.
func rankConfigs(c Config, n int) []Config {
	ranks := make([]Config, n)
	for i := range ranks {
		r := *c.Physics.(*Roofline)
		r.Touch, r.Experts, r.Expert = 0.1, 2e-3, 1e-6
		r.Seed += uint64(i)
		ranks[i] = c
		ranks[i].Physics = &r
	}
	return ranks
}

func TestLockstepEndsAllAndKeepsOneClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, deeds := drawScenario(t)
		n := rapid.IntRange(1, 5).Draw(t, "ranks")
		out, aborted, l := actInLockstep(t, rankConfigs(c, n), deeds)
		ends := map[fleet.ReqID]int{}
		for _, o := range slices.Concat(out...) {
			if o.Finish != NotFinished {
				ends[o.Req]++
			}
		}
		for _, d := range deeds {
			want := 1
			if aborted[d.req.ID] {
				want = 0
			}
			if !d.drop && ends[d.req.ID] != want {
				t.Errorf("request %d (aborted: %v) ended %d times", d.req.ID, aborted[d.req.ID], ends[d.req.ID])
			}
		}
		for i := range n {
			if s := l.Rank(i).Stats(); s.UsedBlocks != 0 || s.Running+s.Waiting != 0 {
				t.Errorf("rank %d at rest: %+v", i, s)
			}
		}
		again, _, _ := actInLockstep(t, rankConfigs(c, n), deeds)
		if d := cmp.Diff(out, again); d != "" {
			t.Errorf("the same scenario twice:\n%s", d)
		}
	})
}

func TestLockstepGlidingEqualsStepping(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, deeds := drawScenario(t)
		n := rapid.IntRange(1, 4).Draw(t, "ranks")
		glided, _, _ := actInLockstep(t, rankConfigs(c, n), deeds)
		c.EveryToken = true
		stepped, _, _ := actInLockstep(t, rankConfigs(c, n), deeds)
		for i := range stepped {
			stepped[i] = slices.DeleteFunc(stepped[i], func(o Output) bool {
				return o.Kind == KindStep || o.Kind == KindTokens && !o.First && o.Finish == NotFinished
			})
			if len(stepped[i])+len(glided[i]) > 0 {
				if d := cmp.Diff(stepped[i], glided[i]); d != "" {
					t.Errorf("rank %d (-stepped +glided):\n%s", i, d)
				}
			}
		}
	})
}

func TestALockstepSetOfOneIsAnEngine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, deeds := drawScenario(t)
		alone, _, e := act(t, c, deeds)
		out, _, l := actInLockstep(t, []Config{c}, deeds)
		if len(alone)+len(out[0]) == 0 {
			return
		}
		if d := cmp.Diff(alone, out[0]); d != "" {
			t.Errorf("outputs (-engine +set of one):\n%s", d)
		}
		if d := cmp.Diff(e.Stats(), l.Rank(0).Stats()); d != "" {
			t.Errorf("stats (-engine +set of one):\n%s", d)
		}
	})
}

// An idle rank more never ends anything sooner: its dummy token goes through the
// experts too.
func TestAnIdleRankNeverSpeedsTheSetUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, deeds := drawScenario(t)
		c.Physics.(*Roofline).Noise = 0 // another rank's noise may be luck
		one, _, _ := actInLockstep(t, rankConfigs(c, 1), deeds[:1])
		l, err := NewLockstep(rankConfigs(c, 3))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Rank(0).Submit(deeds[0].at, deeds[0].req); err != nil {
			t.Skip("the first deed drops the cache")
		}
		var out []Output
		for next := deeds[0].at; next != fleet.Never; {
			out, next = l.Rank(0).Advance(next, out)
		}
		if len(one[0]) != len(out) {
			t.Fatalf("%d reports alone, %d with idle ranks", len(one[0]), len(out))
		}
		for i := range out {
			if out[i].At < one[0][i].At {
				t.Errorf("report %d at %v with idle ranks, at %v without", i, out[i].At, one[0][i].At)
			}
		}
	})
}

func TestALockstepSetStepsAsTheSlowestRank(t *testing.T) {
	c := Config{Physics: perToken{}, KVTokens: 1 << 16, MaxSeqs: 8, BudgetTokens: 8192, EveryToken: true}
	slow := c
	slow.Physics = Speedup{perToken{}, 0.5}
	l, err := NewLockstep([]Config{c, slow, c})
	if err != nil {
		t.Fatal(err)
	}
	submit(t, l.Rank(0), 0, Request{ID: 1, Prompt: 1000, Output: 2})
	submit(t, l.Rank(1), 0, Request{ID: 2, Prompt: 3000, Output: 1})
	out, next := l.Rank(0).Advance(0, nil)
	for next != fleet.Never {
		out, next = l.Rank(0).Advance(next, out)
	}
	// The slow rank's 3,000 tokens take 2 x (1 + 3) ms, its dummy 2 x 1.001 ms.
	want := []event{{1, 1, 8 * time.Millisecond}, {1, 2, 8*time.Millisecond + 2002*time.Microsecond}}
	if d := cmp.Diff(want, events(out, KindTokens)); d != "" {
		t.Errorf("outputs (-want +got):\n%s", d)
	}
}
