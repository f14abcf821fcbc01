package route

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/stat"
)

// world is a view under construction.
func world(n int) *View {
	v := &View{
		ID: make([]fleet.EndpointID, n), InFlight: make([]int, n), Backlog: make([]fleet.Tokens, n),
		Active: make([]fleet.Tokens, n), KVTokens: make([]fleet.Tokens, n), Cached: make([]fleet.Tokens, n), Matched: make([]fleet.Tokens, n),
		Adapter: make([]fleet.AdapterFit, n), Gauges: make([]fleet.Gauges, n), SampleAge: make([]time.Duration, n),
		Step: make([]perf.Step, n), Told: make([]perf.Step, n), Load: make([]perf.Load, n),
	}
	for i := range n {
		v.ID[i] = fleet.EndpointID(i + 1)
		v.KVTokens[i] = 300_000
	}
	return v
}

func all(n int) []int {
	c := make([]int, n)
	for i := range c {
		c[i] = i
	}
	return c
}

func pick(t *testing.T, p Policy, v *View, q Query) Plan {
	t.Helper()
	if q.Candidates == nil {
		q.Candidates = all(len(v.ID))
	}
	out := Plan{Score: make([]float64, len(v.ID))}
	p.Pick(v, &q, stat.NewRand(1, "route"), &out)
	return out
}

func mustNew(t testing.TB, s Spec) Policy {
	t.Helper()
	p, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRoundRobinTakesTurnsAndSkips(t *testing.T) {
	p, v := mustNew(t, Spec{Name: "round-robin"}), world(4)
	var got []int
	for range 5 {
		got = append(got, pick(t, p, v, Query{}).Chosen)
	}
	got = append(got, pick(t, p, v, Query{Candidates: []int{0, 3}}).Chosen, pick(t, p, v, Query{Candidates: []int{0, 3}}).Chosen)
	if want := "[0 1 2 3 0 3 0]"; fmt.Sprint(got) != want {
		t.Errorf("turns %v, want %s", got, want)
	}
	out := pick(t, p, v, Query{})
	if out.Chosen != 1 || out.Score[2] != -1 {
		t.Errorf("after 0 comes %d, then the one with score -1 should be 2: %v", out.Chosen, out.Score)
	}
}

func TestRoundRobinIgnoresSlotOrder(t *testing.T) {
	// Slots are reused when endpoints come and go; turns follow the ids.
	p, v := mustNew(t, Spec{Name: "round-robin"}), world(3)
	v.ID = []fleet.EndpointID{9, 2, 5}
	var got []fleet.EndpointID
	for range 4 {
		got = append(got, v.ID[pick(t, p, v, Query{}).Chosen])
	}
	if fmt.Sprint(got) != "[2 5 9 2]" {
		t.Errorf("turns by id: %v", got)
	}
}

func TestLeastRequestAndTies(t *testing.T) {
	p, v := mustNew(t, Spec{Name: "least-request"}), world(4)
	v.InFlight = []int{3, 1, 2, 1}
	seen := map[int]int{}
	r := stat.NewRand(1, "ties")
	for range 1000 {
		out := Plan{Score: make([]float64, 4)}
		p.Pick(v, &Query{Candidates: all(4)}, r, &out)
		seen[out.Chosen]++
	}
	if len(seen) != 2 || seen[1] < 400 || seen[3] < 400 {
		t.Errorf("ties between 1 and 3 should split evenly: %v", seen)
	}
}

func TestP2CNeverTakesTheWorseOfTwo(t *testing.T) {
	p, v := mustNew(t, Spec{Name: "p2c"}), world(3)
	v.InFlight = []int{0, 5, 9}
	r := stat.NewRand(1, "p2c")
	seen := map[int]int{}
	for range 3000 {
		out := Plan{Score: make([]float64, 3)}
		p.Pick(v, &Query{Candidates: all(3)}, r, &out)
		seen[out.Chosen]++
		scored := 0
		for _, s := range out.Score {
			if !math.IsNaN(s) {
				scored++
			}
		}
		if scored != 2 {
			t.Fatalf("%d candidates scored, want 2", scored)
		}
	}
	// Of the three pairs, slot 2 wins none, slot 1 one, slot 0 two.
	if seen[2] != 0 || math.Abs(float64(seen[1])-1000) > 120 {
		t.Errorf("wins %v, want about 2000, 1000, 0", seen)
	}
	if out := pick(t, p, v, Query{Candidates: []int{2}}); out.Chosen != 2 {
		t.Error("a single candidate was not taken")
	}
}

func TestPrefixAffinityWeighsCacheAgainstBacklog(t *testing.T) {
	p := mustNew(t, Spec{Name: "prefix-affinity"})
	for _, c := range []struct {
		name  string
		shape func(v *View)
		want  int
	}{
		{"the holder when all are idle", func(v *View) { v.Matched[1] = 8000 }, 1},
		{"the holder while its backlog is less than what it saves", func(v *View) { v.Matched[1], v.Backlog[1] = 8000, 7000 }, 1},
		{"the holder behind twice that backlog, when every cache is full", func(v *View) {
			v.Matched[1], v.Backlog[1] = 8000, 20_000
			for i := range v.Cached {
				v.Cached[i] = v.KVTokens[i]
			}
		}, 1},
		{"another once the backlog exceeds it", func(v *View) { v.Matched[1], v.Backlog[1], v.Active[0] = 8000, 9000, 100 }, 2},
		{"the deeper of two holders", func(v *View) { v.Matched[0], v.Matched[2] = 4000, 8000 }, 2},
		{"not where the KV cache overflows", func(v *View) { v.Matched[1], v.Active[1], v.Active[0] = 5000, 299_000, 20_000 }, 2},
		{"fewer active tokens among equals", func(v *View) { v.Active[0], v.Active[1], v.Active[2] = 9000, 100, 5000 }, 1},
	} {
		v := world(3)
		c.shape(v)
		if got := pick(t, p, v, Query{Prompt: 10_000}); got.Chosen != c.want {
			t.Errorf("%s: chose %d with scores %v", c.name, got.Chosen, got.Score)
		}
	}
}

// TestHotPrefixSpreads sends a burst that shares one long prefix, with the
// ledger and cache belief updated as the brain would: no endpoint may end with
// more than its fair share of the work by more than one prompt.
func TestHotPrefixSpreads(t *testing.T) {
	p, v := mustNew(t, Spec{Name: "prefix-affinity"}), world(4)
	r := stat.NewRand(1, "hot")
	for range 40 {
		out := Plan{Score: make([]float64, 4)}
		p.Pick(v, &Query{Prompt: 10_000, Candidates: all(4)}, r, &out)
		c := out.Chosen
		v.Backlog[c] += 10_000 - v.Matched[c]
		v.Active[c] += 10_000
		v.InFlight[c]++
		v.Matched[c] = 9_900
	}
	for i, n := range v.InFlight {
		if n < 5 || n > 15 {
			t.Errorf("endpoint %d got %d of 40 requests with one hot prefix: %v", i, n, v.InFlight)
		}
	}
}

func TestWeightedUnknownIsNeitherIdleNorFull(t *testing.T) {
	p, v := mustNew(t, Spec{Name: "weighted", Weights: map[string]float64{"kv-usage": 1}}), world(3)
	v.Gauges[0] = fleet.Gauges{Known: fleet.KnownKVUsage, KVUsage: 0.9}
	v.Gauges[1] = fleet.Gauges{Known: fleet.KnownKVUsage, KVUsage: 0.1}
	out := pick(t, p, v, Query{})
	if out.Chosen != 1 || math.Abs(out.Score[2]-0.5) > 1e-9 {
		t.Errorf("never-scraped endpoint scored %v between %v and %v", out.Score[2], out.Score[0], out.Score[1])
	}
}

func TestWeightedSumsScaledTerms(t *testing.T) {
	p, v := mustNew(t, Spec{Name: "weighted", Weights: map[string]float64{"prefix": 3, "in-flight": 2}}), world(3)
	v.Matched = []fleet.Tokens{500, 0, 1000}
	v.InFlight = []int{0, 5, 10}
	out := pick(t, p, v, Query{Prompt: 1000})
	want := []float64{3*0.5 + 2, 2 * 0.5, 3}
	for i := range want {
		if math.Abs(out.Score[i]-want[i]) > 1e-9 {
			t.Errorf("score %d = %v, want %v", i, out.Score[i], want[i])
		}
	}
	if out.Chosen != 0 {
		t.Errorf("chose %d", out.Chosen)
	}
}

func TestNewRefusesWithWhatIsKnown(t *testing.T) {
	for _, c := range []struct {
		spec Spec
		want string
	}{
		{Spec{Name: "best"}, "known: " + strings.Join(Names(), ", ")},
		{Spec{Name: "random", Weights: map[string]float64{"x": 1}}, "takes none"},
		{Spec{Name: "weighted"}, "at least one of"},
		{Spec{Name: "weighted", Weights: map[string]float64{"speed": 1}}, "weights.speed"},
		{Spec{Name: "weighted", Weights: map[string]float64{"queue": -1}}, "weights.queue"},
	} {
		if _, err := New(c.spec); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want %q in it", c.spec, err, c.want)
		}
	}
}

// TestPoliciesKeepTheirContract holds every policy to the same promises: it
// picks a candidate, allocates nothing, repeats itself for equal seeds, and
// permuting what is not a candidate changes nothing.
func TestPoliciesKeepTheirContract(t *testing.T) {
	for _, name := range Names() {
		s := Spec{Name: name}
		if name == "weighted" {
			s.Weights = map[string]float64{"prefix": 3, "queue": 2, "kv-usage": 2, "tokens": 1, "in-flight": 1}
		}
		v := world(16)
		for i := range v.ID {
			v.InFlight[i], v.Backlog[i] = i*7%5, fleet.Tokens(i*131%900)
			v.Matched[i] = fleet.Tokens(i * 37 % 600)
		}
		q := Query{Prompt: 1000, Candidates: []int{2, 3, 5, 7, 11, 13}}
		out := Plan{Score: make([]float64, 16)}
		run := func() (got []int) {
			p, r := mustNew(t, s), stat.NewRand(9, "contract")
			for range 50 {
				p.Pick(v, &q, r, &out)
				got = append(got, out.Chosen)
			}
			return got
		}
		first := run()
		for _, c := range first {
			if !strings.Contains(fmt.Sprint(q.Candidates), fmt.Sprint(c)) {
				t.Errorf("%s picked %d, not a candidate", name, c)
			}
		}
		v.InFlight[0], v.Backlog[15], v.Matched[4] = 99, 99, 99
		if fmt.Sprint(first) != fmt.Sprint(run()) {
			t.Errorf("%s: endpoints that are no candidates changed its picks", name)
		}
		p, r := mustNew(t, s), stat.NewRand(9, "contract")
		if n := testing.AllocsPerRun(100, func() { p.Pick(v, &q, r, &out) }); n != 0 {
			t.Errorf("%s allocates %v times per pick", name, n)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{8, 64, 512} {
		v, r := world(n), stat.NewRand(1, "bench")
		for i := range n {
			v.Backlog[i] = fleet.Tokens(i * 131 % 9000)
		}
		q := Query{Prompt: 10_000, Candidates: all(n)}
		out := Plan{Score: make([]float64, n)}
		for _, s := range []Spec{{Name: "prefix-affinity"}, {Name: "weighted", Weights: map[string]float64{"prefix": 3, "queue": 2, "kv-usage": 2}}} {
			p := mustNew(b, s)
			b.Run(fmt.Sprintf("%s/endpoints=%d", s.Name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					p.Pick(v, &q, r, &out)
				}
			})
		}
	}
}
