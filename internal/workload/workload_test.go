package workload

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/stat"
)

// pieces counts tokens as a tokenizer does that cuts text into words with their
// leading space, and words into pieces of at most four bytes.
func pieces(text []byte) int {
	n, length := 0, 0
	for i, b := range text {
		if i == 0 || b == ' ' || length == 4 {
			n, length = n+1, 0
		}
		length++
	}
	return n
}

func TestWordsAreDistinctAndFourBytes(t *testing.T) {
	if len(words) != 256*BytesPerToken {
		t.Fatalf("%d bytes of words, want %d", len(words), 256*BytesPerToken)
	}
	seen := map[string]bool{}
	for i := 0; i < len(words); i += BytesPerToken {
		w := words[i : i+BytesPerToken]
		if seen[w] || w[0] != ' ' || strings.ContainsAny(w[1:], " \"\\") {
			t.Errorf("word %q is doubled or not a plain word", w)
		}
		seen[w] = true
	}
}

func TestTextLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.Uint64().Draw(t, "id")
		n := rapid.IntRange(0, 700).Draw(t, "tokens")
		short := rapid.IntRange(0, n).Draw(t, "shorter")
		long := Text(nil, []Segment{{ID: id, Tokens: n}})
		if got := pieces(long); got != n {
			t.Fatalf("%d tokens asked, text has %d", n, got)
		}
		if !bytes.HasPrefix(long, Text(nil, []Segment{{ID: id, Tokens: short}})) {
			t.Fatal("a shorter run is not a prefix of the longer one")
		}
		other := Segment{ID: id + 1, Tokens: 50}
		both := Text([]byte("x"), []Segment{{ID: id, Tokens: n}, other})
		if want := "x" + string(long) + string(Text(nil, []Segment{other})); string(both) != want {
			t.Fatal("text of two runs is not the two texts joined")
		}
	})
}

func TestTextOfDifferentIDsDiffersSoon(t *testing.T) {
	seen := map[string]bool{}
	for id := range uint64(20000) {
		seen[string(Text(nil, []Segment{{ID: id, Tokens: 8}}))] = true
	}
	if len(seen) < 19999 {
		t.Errorf("only %d of 20000 ids differ within 8 words", len(seen))
	}
}

func TestTextWithAnswersReplacesOnlyKnownOnes(t *testing.T) {
	prompt := []Segment{{ID: 1, Tokens: 1}, {ID: 2, Tokens: 2, Role: RoleAssistant}, {ID: 3, Tokens: 1}, {ID: 4, Tokens: 1, Role: RoleAssistant}}
	text := func(i int) string { return string(Text(nil, prompt[i:i+1])) }
	got := string(TextWithAnswers(nil, prompt, [][]byte{nil, []byte(" real")}))
	if want := text(0) + text(1) + text(2) + " real"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMessagesJoinNeighboursOfOneRole(t *testing.T) {
	var got []string
	for role, segs := range Messages([]Segment{{Role: RoleSystem}, {Role: RoleSystem}, {}, {Role: RoleAssistant}, {}}) {
		got = append(got, role.String()+strings.Repeat("+", len(segs)))
	}
	if d := cmp.Diff([]string{"system++", "user+", "assistant+", "user+"}, got); d != "" {
		t.Error(d)
	}
}

func TestPoissonGapsAreExponential(t *testing.T) {
	a := NewArrivals(ArrivalPoisson, []Stage{{Rate: 20}}, 0, stat.NewRand(1, "t"))
	var last time.Duration
	var sum, squares float64
	const n = 20000
	for range n {
		at, _, _ := a.Next()
		g := (at - last).Seconds()
		sum, squares, last = sum+g, squares+g*g, at
	}
	mean := sum / n
	cv := math.Sqrt(squares/n-mean*mean) / mean
	if math.Abs(mean-0.05) > 0.001 || math.Abs(cv-1) > 0.03 {
		t.Errorf("mean gap %v s, coefficient of variation %v; want 0.05 and 1", mean, cv)
	}
}

func TestConstantStages(t *testing.T) {
	a := NewArrivals(ArrivalConstant, []Stage{{Rate: 2, Duration: time.Second}, {Rate: 1, Duration: 2 * time.Second}}, time.Second, nil)
	type arrival struct {
		At    time.Duration
		Stage int
	}
	var got []arrival
	for at, st, ok := a.Next(); ok; at, st, ok = a.Next() {
		got = append(got, arrival{at, st})
	}
	want := []arrival{{0, 0}, {500 * time.Millisecond, 0}, {2 * time.Second, 1}, {3 * time.Second, 1}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestClosedStagesCountRequests(t *testing.T) {
	a := NewArrivals(ArrivalClosed, []Stage{{Concurrency: 2, Requests: 3}, {Concurrency: 4, Requests: 1}}, 0, nil)
	var got []int
	for _, st, ok := a.Next(); ok; _, st, ok = a.Next() {
		got = append(got, st)
	}
	if d := cmp.Diff([]int{0, 0, 0, 1}, got); d != "" {
		t.Error(d)
	}
}

func TestDistributionsKeepTheirMoments(t *testing.T) {
	for _, d := range []Dist{
		{Kind: DistNormal, Mean: 500, Std: 50, Min: 1, Max: 10000},
		{Kind: DistLogNormal, Mean: 500, Std: 300, Min: 1, Max: 1e6},
		{Kind: DistUniform, Mean: 500, Std: 577.4 / 2, Min: 0, Max: 1000},
		Fixed(500),
	} {
		r := stat.NewRand(3, string(d.Kind))
		var sum, squares float64
		const n = 50000
		for range n {
			x := float64(d.Draw(r))
			if x < float64(d.Min) || x > float64(d.Max) {
				t.Fatalf("%s drew %v outside %d..%d", d.Kind, x, d.Min, d.Max)
			}
			sum, squares = sum+x, squares+x*x
		}
		mean := sum / n
		std := math.Sqrt(max(squares/n-mean*mean, 0))
		if math.Abs(mean-d.Mean) > 10 || math.Abs(std-d.Std) > 0.05*d.Std+0.5 {
			t.Errorf("%s: mean %v, std %v; want %v, %v", d.Kind, mean, std, d.Mean, d.Std)
		}
	}
}

func constant(rate float64, n int) *Arrivals {
	return NewArrivals(ArrivalConstant, []Stage{{Rate: rate, Duration: time.Duration(float64(n) / rate * float64(time.Second))}}, 0, nil)
}

func TestSharedPrefixGroupsShareExactlyTheirSystemPrompt(t *testing.T) {
	w := SharedPrefix{Groups: 3, PromptsPerGroup: 4, System: Fixed(100), Question: Fixed(20), Output: Fixed(5)}
	reqs := slices.Collect(All(w.Source(constant(1, 24), 7)))
	if len(reqs) != 24 {
		t.Fatalf("%d requests, want 24", len(reqs))
	}
	distinct := map[uint64]bool{}
	for i, a := range reqs {
		if a.Input != 120 || a.Output != 5 || a.Group < 1 || a.Group > 3 || a.After != NoRequest {
			t.Fatalf("request %d: %+v", i, a)
		}
		distinct[a.Prompt[1].ID] = true
		for _, b := range reqs[:i] {
			if (a.Group == b.Group) != (a.Prompt[0] == b.Prompt[0]) {
				t.Fatalf("groups %d and %d: system prompts agree wrongly", a.Group, b.Group)
			}
		}
	}
	if len(distinct) != 12 {
		t.Errorf("%d distinct questions, want 12: the second round repeats the first", len(distinct))
	}
}

// checkTurns holds every source of conversations to its contract.
func checkTurns(t interface{ Fatalf(string, ...any) }, reqs []Request) {
	for i, r := range reqs {
		if r.Index != i {
			t.Fatalf("request %d has index %d", i, r.Index)
		}
		if i > 0 && r.At < reqs[i-1].At {
			t.Fatalf("request %d at %v, after one at %v", i, r.At, reqs[i-1].At)
		}
		if r.Output < 1 || r.Input < 1 || r.Input != tokensOf(r.Prompt) {
			t.Fatalf("request %d: %+v", i, r)
		}
		if r.After == NoRequest {
			continue
		}
		if r.After >= i {
			t.Fatalf("request %d waits for %d, which is not before it", i, r.After)
		}
		if p := reqs[r.After]; p.Session == r.Session && p.Turn != r.Turn-1 {
			t.Fatalf("turn %d waits for turn %d", r.Turn, p.Turn)
		}
	}
}

func TestConversationsGrowByWhatWasSaid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := Conversations{
			Slots:        rapid.IntRange(1, 5).Draw(t, "slots"),
			SharedSystem: rapid.IntRange(0, 40).Draw(t, "shared"),
			DynamicSystem: Dist{
				Kind: DistUniform, Min: 0, Max: 30,
			},
			Turns: Dist{Kind: DistUniform, Min: 1, Max: 6}, Input: Dist{Kind: DistUniform, Min: 1, Max: 20},
			Output: Dist{Kind: DistUniform, Min: 1, Max: 20}, ToolLatency: Fixed(2), MaxModelLen: 150,
		}
		reqs := slices.Collect(All(w.Source(constant(10, 60), rapid.Uint64().Draw(t, "seed"))))
		checkTurns(t, reqs)
		for _, r := range reqs {
			if r.Input+r.Output > w.MaxModelLen {
				t.Fatalf("prompt %d + answer %d is over the model's %d", r.Input, r.Output, w.MaxModelLen)
			}
			if r.Turn == 0 {
				continue
			}
			p := reqs[r.After]
			grown := append(slices.Clone(p.Prompt), r.Prompt[len(p.Prompt)], r.Prompt[len(r.Prompt)-1])
			if d := cmp.Diff(grown, r.Prompt); d != "" {
				t.Fatalf("turn %d is not turn %d + answer + question: %s", r.Turn, p.Turn, d)
			}
			if a := r.Prompt[len(p.Prompt)]; a.Role != RoleAssistant || a.Tokens != p.Output {
				t.Fatalf("the answer between is %+v, want %d tokens of the assistant", a, p.Output)
			}
			if r.Think != 2*time.Second || r.Session != p.Session {
				t.Fatalf("turn %d: think %v, session %d after %d", r.Turn, r.Think, r.Session, p.Session)
			}
		}
	})
}

func TestSharedPrefixMultiTurn(t *testing.T) {
	w := SharedPrefix{Groups: 2, PromptsPerGroup: 2, System: Fixed(10), Question: Fixed(3), Output: Fixed(2), MultiTurn: true}
	reqs := slices.Collect(All(w.Source(constant(1, 12), 1)))
	checkTurns(t, reqs)
	if last := reqs[11]; last.Turn != 2 || last.Input != 10+3*3+2*2 {
		t.Errorf("third round: %+v", last)
	}
}

func TestSameSeedSameRequests(t *testing.T) {
	for _, d := range []DataSpec{
		{Random: &Random{Input: Dist{Mean: 50, Std: 20, Min: 1, Max: 99}, Output: Fixed(3)}},
		{SharedPrefix: &SharedPrefix{Groups: 3, PromptsPerGroup: 2, System: Fixed(10), Question: Fixed(5), Output: Fixed(3), MultiTurn: true}},
		{Conversations: &Conversations{Slots: 3, SharedSystem: 9, DynamicSystem: Fixed(4), Turns: Fixed(3), Input: Fixed(5), Output: Fixed(2), ToolLatency: Fixed(0)}},
	} {
		run := func(seed uint64) []Request {
			load := LoadSpec{Kind: ArrivalPoisson, Stages: []Stage{{Rate: 5}}}
			return slices.Collect(All(&Limit{Source: d.Source(load, seed), Requests: 40}))
		}
		if d := cmp.Diff(run(5), run(5)); d != "" {
			t.Error(d)
		}
		a, b := run(5), run(6)
		if a[0].Fingerprint() == b[0].Fingerprint() || a[0].At == b[0].At {
			t.Error("another seed gives the same request")
		}
	}
}

func TestLimit(t *testing.T) {
	w := Random{Input: Fixed(1), Output: Fixed(1)}
	count := func(l Limit) int {
		l.Source = w.Source(constant(10, 100), 1)
		return len(slices.Collect(All(&l)))
	}
	if n := count(Limit{Requests: 7}); n != 7 {
		t.Errorf("by requests: %d", n)
	}
	if n := count(Limit{Until: 2 * time.Second}); n != 20 {
		t.Errorf("by time: %d", n)
	}
}

func BenchmarkText12kTokens(b *testing.B) {
	segs := make([]Segment, 24)
	for i := range segs {
		segs[i] = Segment{ID: uint64(i), Tokens: 512}
	}
	dst := make([]byte, 0, 24*512*BytesPerToken)
	b.SetBytes(int64(cap(dst)))
	b.ReportAllocs()
	for b.Loop() {
		dst = Text(dst[:0], segs)
	}
}
