package route

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/stat"
)

// TestRivals asks rival policies, one script each in testdata/rivals, and prints
// where the request goes and every candidate's score, for a reader to check by
// hand. Run with -rewrite to accept new output.
//
//	policy name=P [endpoints=N] [key-tokens=N] [seed=N]   a new policy and view
//	set slot=N [slot=N] FIELD=X...                         what the view says of a slot
//	pick chain=a:10,b:5 [prompt=N] [only=0,2] [n=N]        a request, or n alike
//	     [output=N] [ttft=D] [tpot=D]
//	leave slot=N                                           the slot's endpoint is gone
//
// A chain is runs of equal text, so many keys of each, and * is a text that was
// never seen; the prompt is what its keys cover unless given. Every command takes t=D, the time since the start.
func TestRivals(t *testing.T) {
	datadriven.Walk(t, "testdata/rivals", func(t *testing.T, path string) {
		s := &rivalScript{}
		datadriven.RunTest(t, path, func(t *testing.T, td *datadriven.TestData) string {
			return s.run(t, td)
		})
	})
}

type rivalScript struct {
	policy    Policy
	view      *View
	rand      *stat.Rand
	now       fleet.Time
	keyTokens float64
	texts     uint64 // never seen, so far
}

func (s *rivalScript) run(t *testing.T, td *datadriven.TestData) string {
	t.Helper()
	if v := argOf(td, "t"); v != "" {
		s.now = fleet.Time(durationOf(t, v))
	}
	switch td.Cmd {
	case "policy":
		s.policy = mustNew(t, Spec{Name: argOf(td, "name")})
		s.view = world(intOf(t, td, "endpoints", 3))
		for i := range s.view.SampleAge {
			s.view.SampleAge[i] = -1
		}
		s.keyTokens = float64(intOf(t, td, "key-tokens", 64))
		s.rand = stat.NewRand(uint64(intOf(t, td, "seed", 1)), "rivals")
	case "set":
		s.set(t, td)
	case "leave":
		s.policy.(Leaver).Leave(intOf(t, td, "slot", 0))
	case "pick":
		return s.pick(t, td)
	default:
		t.Fatalf("%s: unknown command %q", td.Pos, td.Cmd)
	}
	return ""
}

func (s *rivalScript) set(t *testing.T, td *datadriven.TestData) {
	v := s.view
	var slots []int
	for _, a := range td.CmdArgs {
		x := strings.Join(a.Vals, ",")
		if a.Key == "slot" {
			for _, n := range a.Vals {
				slots = append(slots, atoi(t, n))
			}
			continue
		}
		for _, i := range slots {
			switch a.Key {
			case "waiting":
				v.Gauges[i].Waiting, v.Gauges[i].Known = atoi(t, x), v.Gauges[i].Known|fleet.KnownWaiting
			case "running":
				v.Gauges[i].Running, v.Gauges[i].Known = atoi(t, x), v.Gauges[i].Known|fleet.KnownRunning
			case "usage":
				v.Gauges[i].KVUsage, v.Gauges[i].Known = atof(t, x), v.Gauges[i].Known|fleet.KnownKVUsage
			case "blocks":
				v.Gauges[i].KVBlocks, v.Gauges[i].KVBlock, v.Gauges[i].Known = atoi(t, x), 16, v.Gauges[i].Known|fleet.KnownKVCapacity
			case "age":
				// Gauges older than the pool trusts reach policies as unknown.
				v.Gauges[i], v.SampleAge[i] = fleet.Gauges{}, durationOf(t, x)
			case "in-flight":
				v.InFlight[i] = atoi(t, x)
			case "backlog":
				v.Backlog[i] = fleet.Tokens(atoi(t, x))
			case "active":
				v.Active[i] = fleet.Tokens(atoi(t, x))
			case "step": // s per step, per prompt token, per sequence
				v.Step[i].Base, v.Step[i].PerPrompt, v.Step[i].PerSeq = atof(t, a.Vals[0]), atof(t, a.Vals[1]), atof(t, a.Vals[2])
			case "decoding":
				v.Load[i].Decoding = atoi(t, x)
			case "ahead": // prompt tokens of one request
				v.Load[i].Ahead, v.Load[i].Backlog = 1, fleet.Tokens(atoi(t, x))
			case "matched":
				v.Matched[i] = fleet.Tokens(atoi(t, x))
			default:
				t.Fatalf("%s: unknown field %q", td.Pos, a.Key)
			}
		}
	}
}

func (s *rivalScript) pick(t *testing.T, td *datadriven.TestData) string {
	q := Query{Now: s.now, Chain: s.chain(t, td), KeyTokens: s.keyTokens, Candidates: all(len(s.view.ID)), Output: fleet.Tokens(intOf(t, td, "output", 1))}
	q.Prompt = fleet.Tokens(intOf(t, td, "prompt", int(float64(len(q.Chain))*s.keyTokens)))
	q.SLO.TTFT, q.SLO.TPOT = durationOf(t, argOf(td, "ttft")), durationOf(t, argOf(td, "tpot"))
	if only := argOf(td, "only"); only != "" {
		q.Candidates = q.Candidates[:0]
		for n := range strings.SplitSeq(only, ",") {
			q.Candidates = append(q.Candidates, atoi(t, n))
		}
	}
	n := intOf(t, td, "n", 1)
	out := Plan{Score: make([]float64, len(s.view.ID))}
	tally := make([]int, len(s.view.ID))
	for range n {
		q.Chain = s.chain(t, td)
		s.policy.Pick(s.view, &q, s.rand, &out)
		tally[out.Chosen]++
	}
	if n > 1 {
		return fmt.Sprintf("picks by slot %v\n", tally)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "to %d", out.Chosen)
	sep := ", a tie with "
	for _, c := range q.Candidates {
		if c != out.Chosen && out.Score[c] == out.Score[out.Chosen] {
			fmt.Fprintf(&b, "%s%d", sep, c)
			sep = " "
		}
	}
	for _, c := range q.Candidates {
		fmt.Fprintf(&b, " | %d: %.5g", c, out.Score[c])
	}
	return b.String() + "\n"
}

// chain returns the keys of chain=a:10,b:5: ten keys of text a, then five of text
// b after it.
func (s *rivalScript) chain(t *testing.T, td *datadriven.TestData) []kv.Key {
	var keys []kv.Key
	prev := uint64(0)
	runs := argOf(td, "chain")
	if runs == "" {
		return nil
	}
	for run := range strings.SplitSeq(runs, ",") {
		text, n, _ := strings.Cut(run, ":")
		if text == "*" {
			s.texts++
			text = fmt.Sprint("text ", s.texts)
		}
		for range atoi(t, n) {
			for _, c := range text {
				prev = stat.Mix64(prev*31 + uint64(c))
			}
			keys = append(keys, kv.Key(prev))
		}
	}
	return keys
}

func argOf(td *datadriven.TestData, key string) string {
	for _, a := range td.CmdArgs {
		if a.Key == key {
			return strings.Join(a.Vals, ",")
		}
	}
	return ""
}

func intOf(t *testing.T, td *datadriven.TestData, key string, def int) int {
	if v := argOf(td, key); v != "" {
		return atoi(t, v)
	}
	return def
}

func atoi(t *testing.T, s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func atof(t *testing.T, s string) float64 {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func durationOf(t *testing.T, s string) time.Duration {
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// rivals are the policies that reproduce others'.
func rivals() []string {
	return slices.DeleteFunc(Names(), func(n string) bool {
		return slices.Contains([]string{"round-robin", "random", "least-request", "p2c", "prefix-affinity", "weighted"}, n)
	})
}

// traffic is requests of many sessions that share one system prompt.
func traffic(n int) [][]kv.Key {
	var out [][]kv.Key
	for i := range n {
		var keys []kv.Key
		prev := uint64(7)
		for k := range 100 {
			if k == 20 {
				prev = uint64(i) + 1000
			}
			prev = stat.Mix64(prev)
			keys = append(keys, kv.Key(prev))
		}
		out = append(out, keys)
	}
	return out
}

// steady returns a function that asks a rival once, after enough requests that
// its indexes are full and its scratch is grown.
func steady(tb testing.TB, name string, n int) func() {
	p, v, r := mustNew(tb, Spec{Name: name}), world(n), stat.NewRand(1, "steady")
	for i := range n {
		v.Gauges[i] = fleet.Gauges{Known: fleet.KnownKVCapacity, KVBlocks: 400}
		v.Step[i] = perf.Step{Base: 0.01, PerPrompt: 1e-4, PerSeq: 1e-4}
	}
	reqs, out := traffic(2048), Plan{Score: make([]float64, n)}
	q := Query{Candidates: all(n), KeyTokens: 64, Prompt: 6400, Output: 100}
	i := 0
	step := func() {
		q.Chain = reqs[i%len(reqs)]
		i++
		q.Now += fleet.Time(time.Millisecond)
		p.Pick(v, &q, r, &out)
		v.InFlight[out.Chosen] = (v.InFlight[out.Chosen] + 1) % 4
	}
	for range 2*len(reqs) + 16*n {
		step()
	}
	return step
}

// TestRivalsDoNotAllocate holds policies with an index of their own to the
// promise of all policies.
func TestRivalsDoNotAllocate(t *testing.T) {
	for _, name := range rivals() {
		for _, n := range []int{8, 512} {
			if got := testing.AllocsPerRun(200, steady(t, name, n)); got != 0 {
				t.Errorf("%s at %d endpoints allocates %v times per pick", name, n, got)
			}
		}
	}
}

func BenchmarkRivals(b *testing.B) {
	for _, name := range rivals() {
		for _, n := range []int{8, 512} {
			b.Run(fmt.Sprintf("%s/endpoints=%d", name, n), func(b *testing.B) {
				step := steady(b, name, n)
				b.ReportAllocs()
				for b.Loop() {
					step()
				}
			})
		}
	}
}

// TestBlockLRU compares the index with lists and a search.
func TestBlockLRU(t *testing.T) {
	const slots, capacity = 3, 7
	x, r := newBlockLRU(), stat.NewRand(3, "blocks")
	x.grow(slots)
	var naive [slots][]kv.Key // oldest first
	one := blocking{stride: 1, perKey: 1, maxBlock: 100}
	for i := range 20_000 {
		slot := r.IntN(slots)
		var chain []kv.Key
		for range r.IntN(5) {
			chain = append(chain, kv.Key(r.IntN(12)))
		}
		if i%500 == 499 {
			x.clear(slot)
			naive[slot] = nil
		}
		x.insert(slot, capacity, one, chain)
		for _, k := range chain {
			naive[slot] = append(slices.DeleteFunc(naive[slot], func(o kv.Key) bool { return o == k }), k)
			naive[slot] = naive[slot][max(len(naive[slot])-capacity, 0):]
		}
		distinct := map[kv.Key]bool{}
		for s := range slots {
			at := x.slots[s].oldest
			for _, k := range naive[s] {
				distinct[k] = true
				if at == none || x.nodes[x.holds[at].node].key != k {
					t.Fatalf("step %d: slot %d differs from %v", i, s, naive[s])
				}
				at = x.holds[at].newer
			}
			if at != none || x.slots[s].held != len(naive[s]) {
				t.Fatalf("step %d: slot %d holds %d, want %d", i, s, x.slots[s].held, len(naive[s]))
			}
		}
		if x.live != len(distinct) {
			t.Fatalf("step %d: %d blocks live, want %d", i, x.live, len(distinct))
		}
	}
}

// TestDynamoReleases ends all requests: nothing may stay held.
func TestDynamoReleases(t *testing.T) {
	p, v, r := newDynamo(), world(2), stat.NewRand(5, "dynamo")
	q, out := Query{Candidates: all(2), KeyTokens: 64, Prompt: 6400}, Plan{Score: make([]float64, 2)}
	reqs := traffic(50)
	for range 5000 {
		q.Chain = reqs[r.IntN(len(reqs))]
		p.Pick(v, &q, r, &out)
		v.InFlight[out.Chosen]++
		if c := r.IntN(2); v.InFlight[c] > r.IntN(20) {
			v.InFlight[c]--
		}
	}
	v.InFlight[0], v.InFlight[1] = 0, 0
	q.Chain = nil
	p.Pick(v, &q, r, &out)
	if p.active.slots[0].held+p.active.slots[1].held != 0 || p.active.live != 0 {
		t.Errorf("held %d and %d, %d live", p.active.slots[0].held, p.active.slots[1].held, p.active.live)
	}
}
