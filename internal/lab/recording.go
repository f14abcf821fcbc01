package lab

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/journal"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/workload"
)

// Recording is what a gateway's journal tells of its load, of its engines and of
// how they did.
type Recording struct {
	Config  pool.Config // of the pool, when its first request came
	Changes int         // of the configuration afterwards
	Moves   int         // endpoints that came or went once requests had begun
	Cut     int         // requests that had not ended well: their answers' lengths are the typical one
	Unseen  int         // endpoints with too few answers to tell their speed: what was believed of them stands
	Span    time.Duration

	requests  []recorded
	endpoints []endpoint
	marks     []mark
	byID      map[fleet.ReqID]int
	byName    map[fleet.EndpointID]int
	gaps      []time.Duration // between two readings of an endpoint's gauges
}

// recorded is one request as the journal has it.
type recorded struct {
	at, sent, first, end   fleet.Time // 0 when it did not come so far
	prompt, output, cached fleet.Tokens
	estimated, maxOut      fleet.Tokens // as told at its arrival
	told                   bool         // the engine reported its usage
	chain                  []kv.Key
	keyTokens              float64
	slo                    fleet.SLO
	attempts, endpoint     int
	ttft, tpot             time.Duration // predicted when it was last sent; 0 unknown
	done, refused          bool
}

// endpoint is one endpoint as the journal has it.
type endpoint struct {
	limits  fleet.Limits
	variant uint64
	step    perf.Step
	taken   fleet.Time // its latest gauges
	sent    int
}

// mark is something that happened to a request, for learning step times.
type mark struct {
	at       fleet.Time
	kind     fleet.Phase
	req      int
	endpoint int // with PhaseSent
}

// ReadRecording reads a journal. A duration above 0 leaves out what came later
// than that after the first request.
func ReadRecording(r io.Reader, duration time.Duration) (*Recording, error) {
	jr, err := journal.NewReader(r)
	if err != nil {
		return nil, err
	}
	tape, err := pool.NewTape(jr)
	if err != nil {
		return nil, err
	}
	rec := &Recording{Config: tape.Config, byID: map[fleet.ReqID]int{}, byName: map[fleet.EndpointID]int{}}
	for {
		s, err := tape.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		late := duration > 0 && len(rec.requests) > 0 && s.At.Sub(rec.requests[0].at) >= duration
		rec.event(s.At, s.Event, late)
		for i := range s.Actions {
			rec.action(s.At, &s.Actions[i])
		}
	}
	if len(rec.requests) == 0 {
		return nil, errors.New("the journal has no requests")
	}
	if len(rec.endpoints) == 0 {
		return nil, errors.New("the journal has no endpoints")
	}
	rec.settle()
	return rec, nil
}

func (rec *Recording) event(at fleet.Time, ev pool.Event, late bool) {
	switch ev := ev.(type) {
	case *pool.Configure:
		if len(rec.requests) == 0 {
			rec.Config = ev.Config
		} else {
			rec.Changes++
		}
	case *pool.Endpoint:
		rec.onEndpoint(ev)
	case *pool.Sample:
		rec.onSample(at, ev)
	case *pool.Arrive:
		if late {
			return
		}
		rec.byID[ev.Req] = len(rec.requests)
		rec.requests = append(rec.requests, recorded{
			at: at, estimated: ev.Prompt, prompt: ev.Prompt, maxOut: ev.MaxOut, chain: slices.Clone(ev.Chain), keyTokens: ev.KeyTokens,
			slo: ev.Terms.SLO, endpoint: -1, cached: -1,
		})
	case *pool.Leg:
		rec.onLeg(at, ev)
	case *pool.Gone:
		if i, ok := rec.byID[ev.Req]; ok {
			rec.requests[i].end = at
			rec.marks = append(rec.marks, mark{at, fleet.PhaseFailed, i, 0})
		}
	}
}

func (rec *Recording) onEndpoint(ev *pool.Endpoint) {
	i, known := rec.byName[ev.Endpoint]
	if len(rec.requests) > 0 && (!known || ev.Change != pool.EndpointUp || ev.Gen > 1) {
		rec.Moves++
	}
	if ev.Change != pool.EndpointUp {
		return
	}
	if !known {
		i = len(rec.endpoints)
		rec.byName[ev.Endpoint] = i
		rec.endpoints = append(rec.endpoints, endpoint{})
	}
	e := &rec.endpoints[i]
	e.limits, e.variant, e.step = ev.Limits.Merge(e.limits), ev.Variant, ev.Step
}

func (rec *Recording) onSample(at fleet.Time, ev *pool.Sample) {
	i, ok := rec.byName[ev.Endpoint]
	if !ok || ev.Failure != fleet.FailNone {
		return
	}
	e := &rec.endpoints[i]
	if ev.Gauges.Known.Has(fleet.KnownKVCapacity) && e.limits.KVTokens == 0 {
		e.limits.KVTokens = fleet.Tokens(ev.Gauges.KVBlocks) * ev.Gauges.KVBlock
	}
	if e.taken > 0 {
		rec.gaps = append(rec.gaps, at.Sub(e.taken))
	}
	e.taken = at
}

func (rec *Recording) onLeg(at fleet.Time, ev *pool.Leg) {
	i, ok := rec.byID[ev.Req]
	if !ok {
		return
	}
	q := &rec.requests[i]
	if ev.Attempt != q.attempts {
		return // of an attempt given up
	}
	switch ev.Phase {
	case fleet.PhaseSent:
		return // it counts from its dispatch
	case fleet.PhaseFirstToken:
		q.first = at
	case fleet.PhaseProgress:
		q.output = max(q.output, ev.Output)
	case fleet.PhaseDone:
		q.done, q.end = true, at
		if u := ev.Usage; u.Known {
			q.told, q.prompt, q.output, q.cached = true, max(u.Prompt, 1), u.Output, u.Cached
		}
	case fleet.PhaseFailed:
		q.end = at
	}
	rec.marks = append(rec.marks, mark{at, ev.Phase, i, 0})
}

func (rec *Recording) action(at fleet.Time, a *pool.Action) {
	i, ok := rec.byID[a.Req]
	if !ok {
		return
	}
	q := &rec.requests[i]
	switch a.Kind {
	case pool.Refuse:
		q.refused, q.end = true, at
	case pool.Dispatch:
		k, ok := rec.byName[a.Endpoint]
		if !ok {
			return
		}
		q.attempts, q.endpoint, q.sent, q.first = a.Attempt, k, at, 0
		rec.endpoints[k].sent++
		if d := a.Decision; d != nil && len(d.Candidates) > 0 {
			q.ttft, q.tpot = d.Candidates[0].TTFT, d.Candidates[0].TPOT
		}
		rec.marks = append(rec.marks, mark{at, fleet.PhaseSent, i, k})
	}
}

// settle fills in what the journal leaves open.
func (rec *Recording) settle() {
	var outputs []fleet.Tokens
	for i := range rec.requests {
		if q := &rec.requests[i]; q.done && q.output > 0 {
			outputs = append(outputs, q.output)
		}
	}
	typical := fleet.Tokens(1)
	if len(outputs) > 0 {
		slices.Sort(outputs)
		typical = outputs[len(outputs)/2]
	}
	start, end := rec.requests[0].at, rec.requests[0].at
	for i := range rec.requests {
		q := &rec.requests[i]
		end = max(end, q.at, q.end)
		if q.done && q.output > 0 {
			continue
		}
		rec.Cut++
		if q.output = max(q.output, typical); q.maxOut > 0 {
			q.output = min(q.output, q.maxOut)
		}
	}
	rec.Span = end.Sub(start)
}

// SLO returns what the requests asked for, and whether all asked for the same.
func (rec *Recording) SLO() (fleet.SLO, bool) {
	first := rec.requests[0].slo
	for i := range rec.requests {
		if rec.requests[i].slo != first {
			return fleet.SLO{}, false
		}
	}
	return first, true
}

// Scrape returns the usual time between two readings of an endpoint's gauges, 0
// if they were not read.
func (rec *Recording) Scrape() time.Duration {
	if len(rec.gaps) == 0 {
		return 0
	}
	slices.Sort(rec.gaps)
	return rec.gaps[len(rec.gaps)/2]
}

// Fleet returns the recorded endpoints as variants whose truth is what their
// answers show, and the time that passes between gateway and engine, one way.
// Capacity is that of engines whose own is not in the journal; 0 if unknown.
func (rec *Recording) Fleet(capacity fleet.Tokens) ([]Variant, time.Duration, error) {
	var list []Variant
	var members [][]int // endpoints by variant
	at := map[uint64]int{}
	for i := range rec.endpoints {
		e := &rec.endpoints[i]
		if e.limits.KVTokens == 0 {
			e.limits.KVTokens = capacity
		}
		if e.limits.KVTokens == 0 {
			return nil, 0, fmt.Errorf("endpoint %d: its KV capacity is not in the journal: give --kv-tokens, or describe the fleet with --fleet", i+1)
		}
		k, known := at[e.variant]
		if !known {
			k, at[e.variant] = len(list), len(list)
			list = append(list, Variant{Name: fmt.Sprintf("variant %d", len(list)+1), Limits: e.limits, Belief: e.step})
			members = append(members, nil)
		}
		list[k].Replicas++
		members[k] = append(members[k], i)
	}
	lessons := rec.lessons()
	request := 0.0
	for k := range list {
		v := &list[k]
		step, factors, err := fitStep(v.Belief, members[k], lessons)
		if errors.Is(err, errFewLessons) && step.Known() {
			rec.Unseen += v.Replicas
		} else if err != nil {
			return nil, 0, fmt.Errorf("%s of the journal: %w: describe the fleet with --fleet", v.Name, err)
		}
		v.Measured, v.Factors = &step, factors
		request += step.PerRequest * float64(v.Replicas) / float64(len(rec.endpoints))
	}
	return list, time.Duration(request / 2 * float64(time.Second)), nil
}

// KeyTokens returns how many tokens a key of the recorded chains covers, as a
// multiple of the simulated engines' blocks: prompts are measured in tokens, but
// chains in whatever the gateway cut them by.
func (rec *Recording) KeyTokens() fleet.Tokens {
	var each []float64
	for i := range rec.requests {
		q := &rec.requests[i]
		if q.told && len(q.chain) > 0 && q.estimated > 0 {
			each = append(each, q.keyTokens*float64(q.prompt)/float64(q.estimated))
		}
	}
	usual := float64(rec.Config.Index.KeyTokens)
	if len(each) > 0 {
		slices.Sort(each)
		usual = each[len(each)/2]
	}
	const block, most = 16, 4096
	if !(usual < most) { // NaN too: a journal may say anything
		usual = most
	}
	return fleet.Tokens(max(math.Round(usual/block), 1) * block)
}

// Load returns the recorded requests as a load: load L lays ⌈L⌉ copies over each
// other, begun at other places in the recording and with prefixes of their own,
// and slows them down to L in all.
func (rec *Recording) Load() func(load float64, seed uint64) (workload.Source, error) {
	key := rec.KeyTokens()
	return func(load float64, _ uint64) (workload.Source, error) {
		if !(load > 0 && load <= 1000) {
			return nil, fmt.Errorf("load: must be above 0 and at most 1000, is %v", load)
		}
		copies := int(math.Ceil(load))
		s := &replayed{rec: rec, key: int(key)}
		start := rec.requests[0].at
		span := rec.requests[len(rec.requests)-1].at.Sub(start) + time.Nanosecond
		for c := range copies {
			offset := span / time.Duration(copies) * time.Duration(c)
			for i := range rec.requests {
				at, lap := rec.requests[i].at.Sub(start)-offset, 0
				if at < 0 {
					at, lap = at+span, 1 // what came before goes to the end, as others' requests
				}
				s.order = append(s.order, turn{at: time.Duration(float64(at) * float64(copies) / load), req: i, space: uint64(2*c + lap)})
			}
		}
		slices.SortStableFunc(s.order, func(a, b turn) int { return cmp.Compare(a.at, b.at) })
		return s, nil
	}
}

// replayed is a recording being played back.
type replayed struct {
	rec   *Recording
	key   int // tokens of a key
	order []turn
	n     int
}

// turn is when a request is sent; space keeps the prefixes of copies apart.
type turn struct {
	at    time.Duration
	req   int
	space uint64
}

// Next implements workload.Source.
func (s *replayed) Next() (workload.Request, bool) {
	if s.n == len(s.order) {
		return workload.Request{}, false
	}
	t := s.order[s.n]
	q := &s.rec.requests[t.req]
	out := workload.Request{Index: s.n, At: t.at, After: workload.NoRequest, Input: int(max(q.prompt, 1)), Output: int(max(q.output, 1))}
	left := out.Input
	for _, k := range q.chain {
		if left < s.key {
			break
		}
		out.Prompt = append(out.Prompt, workload.Segment{ID: uint64(k) + t.space*0x9e3779b97f4a7c15, Tokens: s.key})
		left -= s.key
	}
	if left > 0 { // nobody shares what no key covers
		out.Prompt = append(out.Prompt, workload.Segment{ID: uint64(s.n)<<1 ^ 0x7461696c, Tokens: left})
	}
	s.n++
	return out, true
}

// Row returns what was measured, in the form of what is simulated. Requests are
// good as the scene's targets have it; what it cost is not known.
func (rec *Recording) Row(s *Scene) (Row, error) {
	r := &sim.Result{Arrived: len(rec.requests), PerReplica: make([]int, len(rec.endpoints)), Span: rec.Span}
	cached := false
	for i := range rec.requests {
		q := &rec.requests[i]
		r.Retries += max(q.attempts-1, 0)
		switch {
		case q.done:
			cached = rec.measure(q, r, s.Targets) || cached
		case q.refused:
			r.Refused++
		default:
			r.Failed++
		}
	}
	for i := range rec.endpoints {
		r.PerReplica[i] = rec.endpoints[i].sent
	}
	row := newRow([]*sim.Result{r}, 0)
	unknown := Interval{math.NaN(), math.NaN()}
	row.Policy, row.Load, row.Preempted, row.recorded = fmt.Sprintf("as recorded (%s)", rec.Config.Policy.Name), 1, unknown, true
	if !cached {
		row.Cached = unknown
	}
	share, err := s.ceiling(1, 1)
	row.Ceiling = mean([]float64{share})
	return row, err
}

// measure adds a request whose answer ended, and reports whether the engine told
// what it had cached.
func (rec *Recording) measure(q *recorded, r *sim.Result, t sim.Targets) bool {
	r.Done++
	r.OutputTokens += int64(q.output)
	ttft, e2e, tpot := time.Duration(0), q.end.Sub(q.at), time.Duration(0)
	off := func(predicted, measured time.Duration) int64 {
		return int64(math.Abs(float64(predicted)/float64(measured)-1) * 1e6)
	}
	if q.first > 0 {
		ttft = q.first.Sub(q.at)
		r.TTFT.Observe(int64(ttft))
		if took := q.first.Sub(q.sent); q.ttft > 0 && took > 0 {
			r.TTFTError.Observe(off(q.ttft, took))
		}
		if q.output > 1 {
			tpot = q.end.Sub(q.first) / time.Duration(q.output-1)
			r.TPOT.Observe(int64(tpot))
			if q.tpot > 0 && tpot > 0 {
				r.TPOTError.Observe(off(q.tpot, tpot))
			}
		}
	}
	r.E2E.Observe(int64(e2e))
	if (t.TTFT == 0 || ttft <= t.TTFT) && (t.TPOT == 0 || tpot <= t.TPOT) && (t.E2E == 0 || e2e <= t.E2E) {
		r.Good++
	}
	if !q.told || q.cached < 0 {
		return false
	}
	r.PromptTokens += int64(q.prompt)
	r.CachedTokens += int64(q.cached)
	return true
}
