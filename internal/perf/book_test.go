package perf

import (
	"math"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// server is a toy engine with a known step: it computes one prompt at a time,
// decodes nothing meanwhile, and decodes in lockstep.
type server struct {
	step Step
	lone float64 // by what a step is longer that has only a prompt; no Step can say that
	rand *stat.Rand
	seqs []*toy
}

type toy struct {
	job     Job
	ask     Ask
	made    int
	context float64
}

// play sends so many requests of a size to a slot of b at a concurrency and
// returns the time when the last has ended. A step decodes a token of every
// sequence and computes at most one prompt, which came at some time in the step
// before.
func (s *server) play(b *Book, slot int, now fleet.Time, requests, concurrency int, prompt, output fleet.Tokens) fleet.Time {
	var next *toy
	for sent := 0; sent < requests || next != nil || len(s.seqs) > 0; {
		w, q := Work{Seqs: float64(len(s.seqs)), KV: s.context()}, next
		if next = nil; q != nil {
			w.Prompt, w.Pairs = float64(prompt), Pairs(0, prompt)
		}
		span := s.step.Time(w) * s.noise()
		if w.Seqs == 0 {
			span *= 1 + s.lone
		}
		if w.Seqs == 0 && q == nil {
			span = 0 // idle: what comes now is computed at once
		}
		if sent < requests && len(s.seqs) < concurrency {
			next = &toy{ask: Ask{Key: 1, Prompt: prompt}, context: float64(prompt)}
			at := now.Add(seconds(span * s.rand.Float64()))
			var l Load
			b.Load(at, slot, 0, UsageUnknown, &l)
			b.Sent(at, slot, next.ask, 0, &l, &next.job)
			sent++
		}
		now = now.Add(seconds(span))
		if q != nil {
			now = now.Add(seconds(s.step.PerRequest))
			b.First(now, &q.job)
			s.seqs = append(s.seqs, q)
		}
		live := s.seqs[:0]
		for _, q := range s.seqs {
			q.made++
			q.context++
			if q.made < int(output) {
				live = append(live, q)
				continue
			}
			b.Done(now, &q.job, q.ask, told(output))
		}
		s.seqs = live
	}
	return now
}

// told is the usage of an engine that had nothing cached.
func told(output fleet.Tokens) fleet.Usage { return fleet.Usage{Known: true, Output: output} }

func (s *server) context() float64 {
	sum := 0.0
	for _, q := range s.seqs {
		sum += q.context
	}
	return sum
}

func (s *server) noise() float64 { return 1 + 0.05*(2*s.rand.Float64()-1) }

// rig is a book with endpoints of one variant, each on a server of its own.
func rig(prior Step, truth ...Step) (*Book, []*server) {
	b := NewBook()
	var servers []*server
	for i, s := range truth {
		b.Add(i, 7, prior, fleet.Limits{BudgetTokens: 8192})
		servers = append(servers, &server{step: s, rand: stat.NewRand(uint64(i), "toy")})
	}
	return b, servers
}

// error is how far a slot's belief is off the truth for a batch.
func off(b *Book, slot int, truth Step, w Work) float64 {
	s := b.Step(slot)
	return math.Abs(s.Time(w)/truth.Time(w) - 1)
}

var (
	light = Work{Seqs: 2, KV: 2000}
	heavy = Work{Seqs: 64, KV: 96000}
)

func TestBookLearnsFromWhatItCarries(t *testing.T) {
	truth := qwen
	truth.PerRequest = 4e-3
	prior := truth.Scale(1.5) // 50 % too slow
	prior.PerKV, prior.PerPrompt = truth.PerKV/2, truth.PerPrompt/2
	b, servers := rig(prior, truth)
	now := servers[0].play(b, 0, 0, 40, 4, 300, 100)
	now = servers[0].play(b, 0, now, 400, 64, 1000, 200)
	servers[0].play(b, 0, now, 200, 4, 3000, 200)
	for name, w := range map[string]Work{"light": light, "heavy": heavy} {
		if e := off(b, 0, truth, w); e > 0.1 {
			t.Errorf("%s batch: belief is %.1f %% off after 640 requests, want at most 10", name, 100*e)
		}
	}
	prompt := Work{Prompt: 4000, Pairs: Pairs(0, 4000)}
	if e := off(b, 0, truth, prompt); e > 0.1 {
		t.Errorf("prompt of 4,000 tokens: belief is %.1f %% off, want at most 10", 100*e)
	}
	// Each answer that ends lets a prompt in: what a stream meets is never steady.
	if s := b.Standing(0); s.TPOTError > 0.15 {
		t.Errorf("the latest predictions of TPOT were %.1f %% off, want at most 15", 100*s.TPOTError)
	}
}

func TestBookWithoutPriorIsSilentUntilItKnows(t *testing.T) {
	b, servers := rig(Step{}, qwen)
	if s := b.Step(0); s.Known() {
		t.Fatalf("believes %+v before the first measurement", s)
	}
	servers[0].play(b, 0, 0, 200, 8, 1000, 100)
	if e := off(b, 0, qwen, light); e > 0.1 {
		t.Errorf("belief is %.1f %% off after 200 requests, want at most 10", 100*e)
	}
}

func TestBookFindsTheSlowOneAmongEquals(t *testing.T) {
	b, servers := rig(qwen, qwen, qwen, qwen.Scale(1.2), qwen)
	now := make([]fleet.Time, len(servers))
	for range 10 { // at the same time, as near as can be
		for i := range servers {
			now[i] = servers[i].play(b, i, now[i], 6, 8, 1000, 100)
		}
	}
	for i := range servers {
		want := 1.0
		if i == 2 {
			want = 1.2
		}
		if s := b.Standing(i); math.Abs(s.Factor-want) > 0.05 {
			t.Errorf("endpoint %d: factor %.3f±%.3f, want %.1f", i, s.Factor, s.FactorErr, want)
		}
	}
}

// TestOtherWorkIsNotSlowness: what the class has wrong of a kind of step that only
// some endpoints are given says nothing of these, nor do idle ones look slower and
// slower while the others' belief moves.
func TestOtherWorkIsNotSlowness(t *testing.T) {
	b, servers := rig(qwen, qwen, qwen, qwen, qwen, qwen, qwen, qwen, qwen)
	now := make([]fleet.Time, len(servers))
	for range 60 {
		for i := range servers {
			servers[i].lone = 0.5
			if i == 0 {
				now[i] = servers[i].play(b, i, now[i], 24, 1, 2000, 1) // only prompts
			} else {
				now[i] = servers[i].play(b, i, now[i], 6, 12, 500, 200)
			}
		}
	}
	if s := b.Standing(0); math.Abs(s.Factor-1) > 0.1 {
		t.Errorf("the one that computes prompts: factor %.3f±%.3f, want 1", s.Factor, s.FactorErr)
	}
	for range 60 {
		for i := 1; i < len(servers); i++ {
			now[i] = servers[i].play(b, i, now[i], 6, 12, 500, 200)
		}
	}
	if s := b.Standing(0); math.Abs(s.Factor-1) > 0.1 {
		t.Errorf("after a rest: factor %.3f±%.3f, want 1", s.Factor, s.FactorErr)
	}
}

func TestQuietTimesDoNotEraseWhatBusyOnesTaught(t *testing.T) {
	truth := qwen
	b, servers := rig(truth.Scale(1.4), truth)
	now := servers[0].play(b, 0, 0, 600, 64, 1000, 200)
	before := off(b, 0, truth, heavy)
	servers[0].play(b, 0, now, 1500, 1, 200, 50)
	if after := off(b, 0, truth, heavy); before > 0.05 || after > 0.1 {
		t.Errorf("heavy batch: %.1f %% off after a quiet time, %.1f before", 100*after, 100*before)
	}
}

func TestDriftIsSeenAndFollowed(t *testing.T) {
	b, servers := rig(qwen, qwen)
	now := servers[0].play(b, 0, 0, 300, 8, 1000, 100)
	if n := b.Standing(0).Drifts; n != 0 {
		t.Fatalf("%d drift alarms on a steady engine", n)
	}
	servers[0].step = qwen.Scale(1.6)
	servers[0].play(b, 0, now, 300, 8, 1000, 100)
	if n := b.Standing(0).Drifts; n == 0 {
		t.Error("no drift alarm though the engine became 60 % slower")
	}
	if e := off(b, 0, servers[0].step, Work{Seqs: 8, KV: 8500}); e > 0.1 {
		t.Errorf("belief is %.1f %% off 300 requests after the change, want at most 10", 100*e)
	}
}

func TestOneWildMeasurementMovesLittle(t *testing.T) {
	b, servers := rig(qwen, qwen)
	now := servers[0].play(b, 0, 0, 100, 8, 1000, 100)
	before := b.Step(0).Time(light)
	var j Job
	var l Load
	b.Load(now, 0, 0, -1, &l)
	b.Sent(now, 0, Ask{Prompt: 1000}, 0, &l, &j)
	b.First(now.Add(time.Hour), &j)
	b.Done(now.Add(3*time.Hour), &j, Ask{Prompt: 1000}, told(100))
	if after := b.Step(0).Time(light); math.Abs(after/before-1) > 0.05 {
		t.Errorf("an answer of three hours moved the belief by %.1f %%", 100*(after/before-1))
	}
}

func TestBookKeepsCount(t *testing.T) {
	b, _ := rig(qwen, qwen)
	jobs := make([]Job, 20)
	for i := range jobs {
		var l Load
		b.Load(fleet.Time(i), 0, 0, -1, &l)
		b.Sent(fleet.Time(i), 0, Ask{Prompt: fleet.Tokens(100 + i)}, 50, &l, &jobs[i])
	}
	for i := range jobs[:10] {
		b.First(fleet.Time(100+i), &jobs[i])
	}
	b.Progress(2000, &jobs[3], 40)
	backlog, _ := b.Backlog(0)
	if want := fleet.Tokens(10*50 + 145); backlog != want {
		t.Errorf("backlog %d, want %d", backlog, want)
	}
	for i := range jobs {
		if i%2 == 0 {
			b.Drop(3000, &jobs[i])
		} else {
			b.Done(3000, &jobs[i], Ask{}, told(40))
		}
		b.Drop(4000, &jobs[i]) // a second time changes nothing
	}
	if backlog, active := b.Backlog(0); backlog != 0 || active != 0 || b.Open(0) != 0 {
		t.Errorf("left over: backlog %d, active %d, %d jobs", backlog, active, b.Open(0))
	}
}

// What comes whole counts as prompt work only while its prompt is computed.
func TestSilentRequestsDecodeWhenTheyShould(t *testing.T) {
	b, _ := rig(qwen, qwen)
	var jobs [2]Job
	var l Load
	b.Load(0, 0, 0, UsageUnknown, &l)
	b.Sent(0, 0, Ask{Prompt: 8000, Silent: true}, 0, &l, &jobs[0])
	b.Load(0, 0, 0, UsageUnknown, &l)
	b.Sent(0, 0, Ask{Prompt: 100, Silent: true}, 0, &l, &jobs[1])
	due := seconds(jobs[0].ttft)
	for _, c := range []struct {
		at              time.Duration
		ahead, decoding int
	}{{due / 2, 2, 0}, {due + time.Millisecond, 1, 1}, {2 * time.Second, 0, 2}} {
		b.Load(fleet.Time(c.at), 0, 0, UsageUnknown, &l)
		if l.Ahead != c.ahead || l.Decoding != c.decoding {
			t.Errorf("after %v: %d ahead and %d decoding, want %d and %d", c.at, l.Ahead, l.Decoding, c.ahead, c.decoding)
		}
	}
	lessons := b.Standing(0).Lessons
	b.Done(fleet.Time(5*time.Second), &jobs[0], Ask{}, told(300))
	b.Drop(fleet.Time(5*time.Second), &jobs[1])
	if got := b.Standing(0).Lessons; got != lessons {
		t.Error("learnt from a first token that nobody saw")
	}
	if backlog, active := b.Backlog(0); backlog != 0 || active != 0 {
		t.Errorf("left over: backlog %d, active %d", backlog, active)
	}
}

func TestLengthsFollowWhoAsks(t *testing.T) {
	b := NewBook()
	b.Add(0, 0, qwen, fleet.Limits{})
	for range 50 {
		for key, out := range map[uint64]fleet.Tokens{1: 20, 2: 2000} {
			var j Job
			a := Ask{Key: key, Prompt: 1000}
			b.Sent(0, 0, a, 0, &Load{}, &j)
			b.Done(0, &j, a, told(out))
		}
	}
	short, long := b.Output(Ask{Key: 1, Prompt: 1000}), b.Output(Ask{Key: 2, Prompt: 1000})
	if short > 150 || long < 1800 {
		t.Errorf("expected %d and %d tokens of tenants that get 20 and 2,000", short, long)
	}
	if got := b.Output(Ask{Key: 2, Prompt: 1000, MaxOut: 64}); got != 64 {
		t.Errorf("expected %d tokens of an answer limited to 64", got)
	}
}

func BenchmarkBook(b *testing.B) {
	book, _ := rig(qwen, qwen)
	benchmark(b, book)
}

// benchmark is what a book does for one request.
func benchmark(b *testing.B, book *Book) {
	now := fleet.Time(0)
	var l Load
	var j Job
	b.ReportAllocs()
	for b.Loop() {
		a := Ask{Key: 1, Prompt: 1000}
		now = now.Add(time.Millisecond)
		book.Load(now, 0, 0, -1, &l)
		book.Sent(now, 0, a, 200, &l, &j)
		now = now.Add(50 * time.Millisecond)
		book.First(now, &j)
		now = now.Add(2 * time.Second)
		book.Done(now, &j, a, told(100))
	}
}
