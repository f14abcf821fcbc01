package pool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/journal"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/stat"
)

func newBrain(t testing.TB, c Config) *Brain {
	t.Helper()
	d, err := Assemble(c)
	if err != nil {
		t.Fatal(err)
	}
	return New(c, d, 7)
}

// machine is a random but lawful world around a brain: requests arrive, move
// through their phases or fail, endpoints come and go, probes are answered.
type machine struct {
	b       *Brain
	rec     *Recorder
	now     fleet.Time
	next    fleet.ReqID
	flights map[fleet.ReqID]int // request -> attempt under way; 0 while it waits
	first   map[fleet.ReqID]int // request -> attempt whose prompt is being computed elsewhere
	splits  int
	probes  []Action
	out     []Action
}

func (m *machine) step(t *rapid.T, ev Event) {
	m.out = m.b.Step(m.now, ev, m.out[:0])
	if err := m.rec.Record(m.now, ev, m.out); err != nil {
		t.Fatal(err)
	}
	for _, a := range m.out {
		switch a.Kind {
		case Dispatch:
			if _, ok := m.flights[a.Req]; !ok {
				t.Fatalf("request %d dispatched after its end", a.Req)
			}
			m.flights[a.Req] = a.Attempt
			if delete(m.first, a.Req); a.Prefill != fleet.NoEndpoint {
				if a.Prefill == a.Endpoint || a.Decision.Prefill != a.Prefill {
					t.Fatalf("request %d: prompt at %d, answer at %d, recorded %d", a.Req, a.Prefill, a.Endpoint, a.Decision.Prefill)
				}
				if answers := &m.b.endpoints[m.b.slots[a.Endpoint]]; slices.Contains(answers.barred, a.Prefill) {
					t.Fatalf("request %d: the KV of %d is for %d, which cannot use it", a.Req, a.Prefill, a.Endpoint)
				}
				m.first[a.Req] = a.Attempt
				m.splits++
			}
			if a.Decision.Chosen != a.Endpoint || a.Decision.Candidates[0].Endpoint != a.Endpoint {
				t.Fatalf("decision record does not start with the chosen: %+v", a.Decision)
			}
		case Encode:
			if m.flights[a.Req] != a.Attempt {
				t.Fatalf("image %d of request %d is to be encoded, which is not under way", a.Image, a.Req)
			}
		case Refuse:
			if _, ok := m.flights[a.Req]; !ok {
				t.Fatalf("request %d refused after its end", a.Req)
			}
			delete(m.flights, a.Req)
		case Cancel:
			if _, ok := m.flights[a.Req]; ok {
				t.Fatalf("request %d cancelled while the client waits", a.Req)
			}
		case Probe:
			m.probes = append(m.probes, a)
		}
	}
}

// tapeAgrees holds that a tape tells every step as it was written.
func tapeAgrees(t *rapid.T, raw []byte) {
	plain, err := journal.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	again, err := journal.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	tape, err := NewTape(again)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plain.Next(); err != nil { // the head
		t.Fatal(err)
	}
	for {
		body, err := plain.Next()
		s, tapeErr := tape.Next()
		if errors.Is(err, io.EOF) && errors.Is(tapeErr, io.EOF) {
			return
		}
		if err != nil || tapeErr != nil {
			t.Fatalf("journal: %v, tape: %v", err, tapeErr)
		}
		var e journal.Encoder
		e.Uint(s.Seq)
		e.Int(int64(s.At))
		EncodeEvent(&e, s.Event)
		EncodeActions(&e, s.Actions)
		if !bytes.Equal(e.B, body) {
			t.Fatalf("step %d (%T) came back as another", s.Seq, s.Event)
		}
	}
}

func (m *machine) anyFlight(t *rapid.T, dispatched bool) (fleet.ReqID, int, bool) {
	for id := fleet.ReqID(1); id <= m.next; id++ { // ordered, so that rapid can shrink
		if a, ok := m.flights[id]; ok && (a > 0) == dispatched && rapid.Bool().Draw(t, "this") {
			return id, a, true
		}
	}
	return 0, 0, false
}

// TestBrainKeepsItsLaws runs random lawful histories and holds after every step
// that requests are conserved, that the ledger equals what is in flight, and at
// the end that it returns to zero and that the journal replays byte-equal.
func TestBrainKeepsItsLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Default()
		c.Policy.Name = rapid.SampledFrom(route.Names()).Draw(t, "policy")
		if c.Policy.Name == "weighted" {
			c.Policy.Weights = map[string]float64{"prefix": 3, "queue": 2}
		}
		c.Room.MaxInFlight = rapid.IntRange(1, 3).Draw(t, "inflight")
		c.Queue.MaxRequests = rapid.IntRange(0, 3).Draw(t, "queue")
		c.Queue.MaxWait = 5 * time.Second
		c.Retry.Burst = 2
		c.Split = rapid.SampledFrom([]Split{SplitAuto, SplitAlways, SplitNever}).Draw(t, "split")
		d, err := Assemble(c)
		if err != nil {
			t.Fatal(err)
		}
		var raw bytes.Buffer
		jw := journal.NewWriter(&raw)
		rec, err := NewRecorder(jw, c, 7)
		if err != nil {
			t.Fatal(err)
		}
		m := &machine{b: New(c, d, 7), rec: rec, flights: map[fleet.ReqID]int{}, first: map[fleet.ReqID]int{}}
		t.Repeat(m.moves())
		m.drain(t)
		if err := jw.Flush(); err != nil {
			t.Fatal(err)
		}
		tapeAgrees(t, raw.Bytes())
		jr, err := journal.NewReader(&raw)
		if err != nil {
			t.Fatal(err)
		}
		replayed, n, err := Replay(jr)
		if err != nil {
			t.Fatalf("after %d steps: %v", n, err)
		}
		if replayed.Tally() != m.b.Tally() {
			t.Fatalf("replayed tally %+v, live %+v", replayed.Tally(), m.b.Tally())
		}
	})
}

// splitAlways has every request served by two endpoints, if there are two.
type splitAlways struct{}

// Pick implements route.Policy.
func (splitAlways) Pick(v *route.View, q *route.Query, r *stat.Rand, p *route.Plan) {
	p.Chosen = q.Candidates[r.IntN(len(q.Candidates))]
	for _, c := range q.Candidates {
		p.Score[c] = 0
	}
	for _, c := range q.Prefills {
		if v.Hands(c, p.Chosen) {
			p.Prefill = c
		}
	}
}

// pullAlways has every request's prompt fetched from somebody, if there is one.
type pullAlways struct{}

// Pick implements route.Policy.
func (pullAlways) Pick(_ *route.View, q *route.Query, r *stat.Rand, p *route.Plan) {
	p.Chosen = q.Candidates[r.IntN(len(q.Candidates))]
	for _, c := range q.Candidates {
		p.Score[c] = 0
	}
	for _, s := range q.Sources {
		if s != p.Chosen {
			p.Source = s
		}
	}
}

// TestPullsKeepTheLaws is TestBrainKeepsItsLaws where prompts are fetched.
func TestPullsKeepTheLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Default()
		c.Room.MaxInFlight = rapid.IntRange(1, 6).Draw(t, "inflight")
		c.Queue.MaxRequests = rapid.IntRange(0, 3).Draw(t, "queue")
		c.Retry.Burst = 2
		d, err := Assemble(c)
		if err != nil {
			t.Fatal(err)
		}
		d.Policy = pullAlways{}
		var raw bytes.Buffer
		jw := journal.NewWriter(&raw)
		rec, err := NewRecorder(jw, c, 7)
		if err != nil {
			t.Fatal(err)
		}
		m := &machine{b: New(c, d, 7), rec: rec, flights: map[fleet.ReqID]int{}, first: map[fleet.ReqID]int{}}
		for id := range fleet.EndpointID(4) {
			m.step(t, &Endpoint{Endpoint: id + 1, Connector: 1, Pulls: true, Role: fleet.RoleDecode, Wire: fleet.Link{PerToken: 1e-9}})
		}
		t.Repeat(m.moves())
		m.drain(t)
		if err := jw.Flush(); err != nil {
			t.Fatal(err)
		}
		tapeAgrees(t, raw.Bytes())
	})
}

// TestSplitsKeepTheLaws is TestBrainKeepsItsLaws where requests have two legs.
func TestSplitsKeepTheLaws(t *testing.T) {
	splits := 0
	rapid.Check(t, func(t *rapid.T) {
		c := Default()
		c.Room.MaxInFlight = rapid.IntRange(1, 6).Draw(t, "inflight")
		c.Queue.MaxRequests = rapid.IntRange(0, 3).Draw(t, "queue")
		c.Retry.Burst = 2
		d, err := Assemble(c)
		if err != nil {
			t.Fatal(err)
		}
		d.Policy = splitAlways{}
		rec, err := NewRecorder(journal.NewWriter(io.Discard), c, 7)
		if err != nil {
			t.Fatal(err)
		}
		m := &machine{b: New(c, d, 7), rec: rec, flights: map[fleet.ReqID]int{}, first: map[fleet.ReqID]int{}}
		for id := range fleet.EndpointID(4) {
			m.step(t, &Endpoint{Endpoint: id + 1, Connector: 1, Wire: fleet.Link{PerToken: 1e-9}})
		}
		t.Repeat(m.moves())
		m.drain(t)
		splits += m.splits
	})
	if splits < 10 {
		t.Errorf("%d requests were split in all", splits)
	}
}

func (m *machine) moves() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"arrive": func(t *rapid.T) {
			m.next++
			m.flights[m.next] = 0
			m.step(t, &Arrive{
				Req: m.next, Prompt: fleet.Tokens(rapid.IntRange(1, 5000).Draw(t, "prompt")),
				Chain: letterChain(rapid.StringOfN(rapid.RuneFrom([]rune("ab")), 0, 6, -1).Draw(t, "chain")), KeyTokens: 64,
				Blocks: letterChain(rapid.StringOfN(rapid.RuneFrom([]rune("ab")), 0, 6, -1).Draw(t, "blocks")),
				Terms:  fleet.Terms{Tenant: 1 << 63, Priority: -2, SLO: fleet.SLO{TTFT: time.Second, TPOT: time.Millisecond}},
				Images: letterChain(rapid.StringOfN(rapid.RuneFrom([]rune("ab")), 0, 3, -1).Draw(t, "images")),
				Silent: rapid.Bool().Draw(t, "silent"), Whole: rapid.IntRange(0, 9).Draw(t, "whole") == 0, Owner: fleet.EndpointID(max(rapid.IntRange(-8, 4).Draw(t, "owner"), 0)),
				Adapter: fleet.Adapter(max(rapid.IntRange(-3, 3).Draw(t, "lora"), 0)),
			})
		},
		"leg": func(t *rapid.T) {
			id, a, ok := m.anyFlight(t, true)
			if !ok {
				t.Skip()
			}
			l := &Leg{Req: id, Attempt: a, Phase: rapid.SampledFrom([]fleet.Phase{
				fleet.PhaseSent, fleet.PhaseFirstToken, fleet.PhaseProgress, fleet.PhaseDone, fleet.PhaseFailed,
			}).Draw(t, "phase")}
			switch l.Phase {
			case fleet.PhaseProgress:
				l.Output = fleet.Tokens(rapid.IntRange(0, 500).Draw(t, "out"))
			case fleet.PhaseDone:
				l.Usage = fleet.Usage{
					Known: rapid.Bool().Draw(t, "told"), Prompt: 500,
					Cached: fleet.Tokens(rapid.IntRange(-1, 500).Draw(t, "cached")), Output: fleet.Tokens(rapid.IntRange(0, 300).Draw(t, "out")),
				}
				delete(m.flights, id)
			case fleet.PhaseFailed:
				l.Failure = fleet.Failure(rapid.IntRange(int(fleet.FailConnect), int(fleet.FailClient)).Draw(t, "failure"))
				l.Committed = rapid.Bool().Draw(t, "committed")
				if l.Committed || l.Failure == fleet.FailClient {
					delete(m.flights, id)
				} else {
					m.flights[id] = 0
				}
			}
			m.step(t, l)
		},
		"image": func(t *rapid.T) {
			id, a, ok := m.anyFlight(t, true)
			if !ok {
				t.Skip()
			}
			ev := &Encoded{Req: id, Attempt: a, Image: rapid.IntRange(0, 3).Draw(t, "image")}
			if rapid.Bool().Draw(t, "fails") {
				ev.Failure = fleet.Failure(rapid.IntRange(int(fleet.FailConnect), int(fleet.FailClient)).Draw(t, "failure"))
			}
			m.step(t, ev)
		},
		"first leg": func(t *rapid.T) {
			id, a, ok := m.anyFlight(t, true)
			if !ok || m.first[id] != a {
				t.Skip()
			}
			l := &Leg{Req: id, Attempt: a, Prefill: true, Phase: fleet.PhaseDone, Usage: fleet.Usage{Known: rapid.Bool().Draw(t, "told"), Prompt: 500, Cached: 100, Output: 1}}
			if delete(m.first, id); rapid.Bool().Draw(t, "fails") {
				l.Phase, l.Failure = fleet.PhaseFailed, fleet.Failure(rapid.IntRange(int(fleet.FailConnect), int(fleet.FailClient)).Draw(t, "failure"))
				m.flights[id] = 0 // it goes on even where the prompt was refused
			}
			m.step(t, l)
		},
		"kv": func(t *rapid.T) {
			m.step(t, &KV{
				Endpoint: fleet.EndpointID(rapid.IntRange(1, 4).Draw(t, "id")), Gen: fleet.Gen(rapid.IntRange(0, 2).Draw(t, "gen")),
				Update: kv.Update{
					State: kv.FeedState(rapid.IntRange(0, 5).Draw(t, "state")), Whole: rapid.Bool().Draw(t, "whole"), Ended: rapid.IntRange(0, 5).Draw(t, "ended") == 0,
					Changes: []kv.Change{{
						Kind: kv.ChangeKind(rapid.IntRange(int(kv.ChangeStore), int(kv.ChangeClear)).Draw(t, "kind")), Tier: kv.Tier(rapid.IntRange(0, 4).Draw(t, "tier")),
						Keys: letterChain(rapid.StringOfN(rapid.RuneFrom([]rune("ab")), 1, 6, -1).Draw(t, "keys")),
					}},
				},
			})
		},
		"client leaves": func(t *rapid.T) {
			id, _, ok := m.anyFlight(t, rapid.Bool().Draw(t, "dispatched"))
			if !ok {
				t.Skip()
			}
			delete(m.flights, id)
			m.step(t, &Gone{Req: id})
		},
		"endpoint": func(t *rapid.T) {
			steps := []perf.Step{
				{},
				{Base: 14e-3, PerSeq: 50e-6, PerKV: 57e-9, PerPrompt: 60e-6, PerPair: 3e-9, Shadow: 200},
				{Base: 8e-3, PerSeq: 20e-6, PerPrompt: 20e-6, Experts: 9e-3, Touch: 1.0 / 32},
			}
			m.step(t, &Endpoint{
				Variant: uint64(rapid.IntRange(0, 2).Draw(t, "variant")), Step: rapid.SampledFrom(steps).Draw(t, "step"),
				Limits:   fleet.Limits{KVTokens: fleet.Tokens(rapid.SampledFrom([]int{0, 1000, 300_000}).Draw(t, "kv"))},
				Endpoint: fleet.EndpointID(rapid.IntRange(1, 4).Draw(t, "id")), Gen: fleet.Gen(rapid.IntRange(0, 2).Draw(t, "gen")),
				Change:    rapid.SampledFrom([]Change{EndpointUp, EndpointUp, EndpointDrain, EndpointGone}).Draw(t, "change"),
				Role:      rapid.SampledFrom([]fleet.Role{fleet.RoleBoth, fleet.RoleBoth, fleet.RoleDecode, fleet.RolePrefill, fleet.RoleStore, fleet.RoleEncode}).Draw(t, "role"),
				Connector: uint64(rapid.IntRange(0, 2).Draw(t, "connector")), Wire: fleet.Link{Latency: 1e-3, PerToken: 1e-9},
				Links: fleet.Links{CPU: fleet.Link{Latency: 1e-3, PerToken: 1e-6}},
			})
		},
		"sample": func(t *rapid.T) {
			s := &Sample{
				Endpoint: fleet.EndpointID(rapid.IntRange(1, 4).Draw(t, "id")), Gen: fleet.Gen(rapid.IntRange(0, 2).Draw(t, "gen")), Taken: m.now,
				Gauges:   fleet.Gauges{Known: fleet.Known(rapid.IntRange(0, 15).Draw(t, "known")), Running: 3, KVBlocks: 100, KVBlock: 16},
				Adapters: fleet.Adapters{Max: rapid.IntRange(0, 3).Draw(t, "slots")},
			}
			s.Adapters.Add(fleet.Adapter(rapid.IntRange(1, 3).Draw(t, "lora")))
			if rapid.Bool().Draw(t, "fails") {
				s.Failure = fleet.FailConnect
			}
			m.step(t, s)
		},
		"barred": func(t *rapid.T) {
			ev := &Barred{Endpoint: fleet.EndpointID(rapid.IntRange(1, 4).Draw(t, "id")), Gen: fleet.Gen(rapid.IntRange(0, 2).Draw(t, "gen"))}
			for _, id := range rapid.SliceOfNDistinct(rapid.IntRange(1, 5), 0, 3, rapid.ID).Draw(t, "sources") {
				ev.Sources = append(ev.Sources, fleet.EndpointID(id))
			}
			m.step(t, ev)
		},
		"serves": func(t *rapid.T) {
			list := rapid.SliceOfN(rapid.IntRange(1, 3), 0, 3).Draw(t, "loras")
			ev := &Serves{Endpoint: fleet.EndpointID(rapid.IntRange(1, 4).Draw(t, "id")), Gen: fleet.Gen(rapid.IntRange(0, 2).Draw(t, "gen"))}
			for _, a := range list {
				ev.Adapters = append(ev.Adapters, fleet.Adapter(a))
			}
			m.step(t, ev)
		},
		"time": func(t *rapid.T) {
			m.now += fleet.Time(rapid.IntRange(1, 3000).Draw(t, "ms")) * fleet.Time(time.Millisecond)
			m.step(t, &Tick{})
		},
		"probes": func(t *rapid.T) {
			for _, p := range m.probes {
				m.step(t, &Probed{Endpoint: p.Endpoint, Gen: p.Gen, OK: rapid.Bool().Draw(t, "ok")})
			}
			m.probes = m.probes[:0]
		},
		"": m.check,
	}
}

func (m *machine) check(t *rapid.T) {
	y := m.b.Tally()
	if y.Arrived != y.Queued+y.InFlight+y.Done+y.Shed+y.Expired+y.Failed+y.Cancelled {
		t.Fatalf("requests are not conserved: %+v", y)
	}
	if y.Queued+y.InFlight != uint64(len(m.flights)) {
		t.Fatalf("brain has %d open requests, the world %d", y.Queued+y.InFlight, len(m.flights))
	}
	inFlight, jobs, promised, lending := 0, 0, 0, 0
	for _, r := range m.b.requests {
		for _, slot := range []int{r.slot, r.prefill.slot} {
			if slot >= 0 {
				inFlight++
			}
		}
		open := 0
		for _, slot := range r.encode.slots {
			if slot != route.NoSlot {
				open++
			}
			if slot >= 0 {
				inFlight++
			}
		}
		if open != r.encode.open {
			t.Fatalf("%d images of request %d are being encoded, counted are %d", open, r.Req, r.encode.open)
		}
		if r.job.Open() {
			jobs++
		}
		if r.prefill.job.Open() {
			jobs++
		}
		if r.prefill.from >= 0 {
			lending++
		}
		if r.prefill.owes {
			promised++
		}
	}
	for i := range m.b.endpoints {
		e := &m.b.endpoints[i]
		if !e.present {
			continue
		}
		inFlight -= e.inFlight
		lending -= e.lending
		jobs -= m.b.deps.Perf.Open(i)
		requests, context := m.b.deps.Perf.Promised(i)
		promised -= requests
		if requests < 0 || context < 0 || requests == 0 && context != 0 {
			t.Fatalf("%d promises of %d tokens at slot %d", requests, context, i)
		}
		if backlog, active := m.b.deps.Perf.Backlog(i); e.inFlight < 0 || backlog < 0 || active < 0 {
			t.Fatalf("negative ledger: %+v, backlog %d, active %d", e, backlog, active)
		}
	}
	if inFlight != 0 || jobs != 0 || promised != 0 || lending != 0 {
		t.Fatalf("ledger differs from its requests by %d in flight, %d jobs, %d promises, %d lent", inFlight, jobs, promised, lending)
	}
}

// drain ends everything that is open and checks that nothing is left.
func (m *machine) drain(t *rapid.T) {
	for id := fleet.ReqID(1); id <= m.next; id++ {
		if _, ok := m.flights[id]; ok {
			delete(m.flights, id)
			m.step(t, &Gone{Req: id})
		}
	}
	m.check(t)
	for i := range m.b.endpoints {
		e := &m.b.endpoints[i]
		if !e.present {
			continue
		}
		if backlog, active := m.b.deps.Perf.Backlog(i); e.inFlight != 0 || backlog != 0 || active != 0 {
			t.Fatalf("ledger leaks at slot %d: %+v, backlog %d, active %d", i, e, backlog, active)
		}
	}
}

func TestReplayNamesTheStepThatDiffers(t *testing.T) {
	c := Default()
	var raw bytes.Buffer
	jw := journal.NewWriter(&raw)
	rec, err := NewRecorder(jw, c, 7)
	if err != nil {
		t.Fatal(err)
	}
	b := newBrain(t, c)
	up := &Endpoint{Endpoint: 1, Gen: 1}
	if err := errors.Join(rec.Record(0, up, b.Step(0, up, nil)), rec.Record(1, &Arrive{Req: 1, Prompt: 10}, nil), jw.Flush()); err != nil {
		t.Fatal(err)
	}
	jr, err := journal.NewReader(&raw)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Replay(jr); !errors.Is(err, ErrParity) || err.Error() != "replay differs from the journal at step 2 (*pool.Arrive at 1)" {
		t.Errorf("a missing dispatch gave %v", err)
	}
}

func TestDecisionKeepsTheBestOfMany(t *testing.T) {
	b := newBrain(t, Config{
		Policy: route.Spec{Name: "least-request"}, Queue: Default().Queue, Room: Default().Room, Retry: Default().Retry,
		Health: Default().Health, Index: Default().Index, Signals: Default().Signals,
	})
	var out []Action
	for i := range 100 {
		b.Step(0, &Endpoint{Endpoint: fleet.EndpointID(i + 1), Gen: 1}, nil)
	}
	for i := range 250 {
		out = b.Step(0, &Arrive{Req: fleet.ReqID(i + 1), Prompt: 100}, out[:0])
	}
	d := out[0].Decision
	if len(d.Candidates) != fleet.BestCandidates || d.Counts[fleet.Eligible] != 100 || d.RunnerUp == fleet.NoEndpoint {
		t.Fatalf("%d candidates, counts %v, runner-up %d", len(d.Candidates), d.Counts, d.RunnerUp)
	}
	for i := 1; i < len(d.Candidates); i++ {
		if d.Candidates[i].Score > d.Candidates[i-1].Score {
			t.Errorf("candidates out of order at %d", i)
		}
	}
}

// BenchmarkDecision is the whole of one request in the brain: arrive, first
// token, done.
func BenchmarkDecision(b *testing.B) {
	for _, n := range []int{8, 64, 512, 4096} {
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			c := Default()
			c.Policy.Name = "predictive"
			brain := newBrain(b, c)
			limits := fleet.Limits{KVTokens: 300_000, MaxSeqs: 256, BudgetTokens: 8192}
			step := perf.Step{Base: 14e-3, PerSeq: 50e-6, PerKV: 57e-9, PerPrompt: 60e-6, PerPair: 3e-9}
			for i := range n {
				brain.Step(0, &Endpoint{Endpoint: fleet.EndpointID(i + 1), Gen: 1, Limits: limits, Variant: 1, Step: step}, nil)
			}
			chains := make([][]kv.Key, 256)
			for i := range chains {
				for k := range 188 {
					chains[i] = append(chains[i], kv.Key(stat.Mix64(uint64(k)+uint64(max(k-20, 0))*uint64(i)<<20)))
				}
			}
			var out []Action
			slo := fleet.SLO{TTFT: 2 * time.Second, TPOT: 50 * time.Millisecond}
			arrive, first, done := Arrive{Prompt: 12000, KeyTokens: 64, Terms: fleet.Terms{SLO: slo}}, Leg{Attempt: 1, Phase: fleet.PhaseFirstToken}, Leg{Attempt: 1, Phase: fleet.PhaseDone}
			id := fleet.ReqID(0)
			b.ReportAllocs()
			for b.Loop() {
				id++
				arrive.Req, first.Req, done.Req = id, id, id
				arrive.Chain = chains[int(id)%len(chains)]
				now := fleet.Time(id) * 1000
				out = brain.Step(now, &arrive, out[:0])
				out = brain.Step(now, &first, out[:0])
				out = brain.Step(now, &done, out[:0])
			}
		})
	}
}
