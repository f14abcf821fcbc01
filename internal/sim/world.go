package sim

import (
	"maps"
	"slices"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
)

// act carries out one action of the brain.
func (r *run) act(a pool.Action) {
	switch a.Kind {
	case pool.Dispatch:
		r.dispatch(indexOf(a.Req), int(a.Endpoint)-1, a.Attempt, a.Decision)
	case pool.Refuse:
		r.res.Refused++
		r.end(indexOf(a.Req))
	case pool.Probe:
		r.push(r.now.Add(2*r.c.Hop), kindProbe, int(a.Endpoint)-1)
	}
}

// dispatch sends request i to replica k.
func (r *run) dispatch(i, k, attempt int, d *fleet.Decision) {
	q := &r.requests[i]
	q.replica = k
	q.attempt, q.sent, q.ttft, q.tpot = attempt, r.now, d.Candidates[0].TTFT, d.Candidates[0].TPOT
	if attempt > 1 {
		r.res.Retries++
	}
	en := r.engines[k]
	if en.Engine == nil {
		r.fail(i, fleet.FailConnect)
		return
	}
	// The engine works on while the request travels; what it has done by then
	// comes first.
	at := r.now.Add(r.c.Hop)
	r.collect(k, at)
	err := en.Submit(at, enginesim.Request{
		ID: reqID(i), Chain: chainOf(q.Prompt, int(enginesim.BlockTokens)), Prompt: fleet.Tokens(max(q.Input, 1)),
		Output: fleet.Tokens(max(q.Output, 1)), Finish: enginesim.FinishLength,
	})
	if err != nil {
		r.fail(i, fleet.FailClient) // longer than the engine can ever hold
		return
	}
	r.res.PerReplica[k]++
	en.has[reqID(i)] = struct{}{}
	r.collect(k, at)
}

// fail reports a failed attempt, one hop later.
func (r *run) fail(i int, f fleet.Failure) {
	q := &r.requests[i]
	r.heap.push(event{at: r.now.Add(r.c.Hop), kind: kindLeg, leg: pool.Leg{
		Req: reqID(i), Attempt: q.attempt, Phase: fleet.PhaseFailed, Failure: f, Committed: q.first != 0,
	}})
	if q.first != 0 || f == fleet.FailClient {
		r.res.Failed++
		r.end(i)
	}
}

func (r *run) advance(k int) { r.collect(k, r.now) }

// collect lets replica k, and those in its set, work until a time and takes their
// reports.
func (r *run) collect(k int, until fleet.Time) {
	members := r.engines[k].members
	next := fleet.Never
	for _, m := range members {
		en := r.engines[m]
		if en.Engine == nil {
			return
		}
		r.reports, next = en.Advance(until, r.reports[:0])
		for _, o := range r.reports {
			if o.Kind == enginesim.KindTokens {
				r.report(en, o)
			}
		}
	}
	// All of a set have the same next event.
	if lead := r.engines[members[0]]; next != lead.wake {
		if lead.wake = next; next != fleet.Never {
			r.push(next, kindEngine, members[0])
		}
	}
}

// report passes on what an engine says of a request: the client and the brain
// hear of it one hop later.
func (r *run) report(en *engine, o enginesim.Output) {
	i := indexOf(o.Req)
	q := &r.requests[i]
	seen := o.At.Add(r.c.Hop)
	leg := pool.Leg{Req: o.Req, Attempt: q.attempt}
	if o.First {
		q.first, q.cached = max(seen, 1), o.Cached
		r.res.firstToken(q, o)
		leg.Phase = fleet.PhaseFirstToken
		r.heap.push(event{at: max(seen, r.now), kind: kindLeg, leg: leg})
	}
	if o.Finish == enginesim.NotFinished {
		return
	}
	delete(en.has, o.Req)
	leg.Phase = fleet.PhaseDone
	leg.Usage = fleet.Usage{Known: true, Prompt: fleet.Tokens(q.Input), Cached: o.Cached, Output: fleet.Tokens(q.Output)}
	r.heap.push(event{at: max(seen, r.now), kind: kindLeg, leg: leg})
	r.res.done(q, seen, r.c.Targets)
	q.done = true
	r.endAt(i, seen)
}

// end closes request i now.
func (r *run) end(i int) { r.endAt(i, r.now) }

// endAt closes request i; turns that waited for its answer follow it.
func (r *run) endAt(i int, at fleet.Time) {
	q := &r.requests[i]
	if q.ended {
		return
	}
	q.ended = true
	r.open--
	for _, w := range r.waiting[i] {
		r.push(max(fleet.Time(r.requests[w].At), at.Add(r.requests[w].Think), r.now), kindArrival, w)
	}
	delete(r.waiting, i)
	q.Prompt = nil // memory is bounded by what is open
	if r.c.Ended != nil {
		r.c.Ended(Outcome{
			Stage: q.Stage, Replica: q.replica, Start: q.start, First: q.first, End: at,
			Input: fleet.Tokens(q.Input), Cached: q.cached, Output: fleet.Tokens(q.Output), Done: q.done,
		})
	}
	if r.open == 0 && r.held != nil {
		r.nextStage(at)
	}
}

// giveUp takes request i back, whose client has waited long enough.
func (r *run) giveUp(i int) {
	q := &r.requests[i]
	if q.ended {
		return
	}
	if q.attempt > 0 {
		en := r.engines[q.replica]
		if _, has := en.has[reqID(i)]; has {
			r.collect(q.replica, r.now)
			if q.ended { // it has just come
				return
			}
			en.Abort(r.now, reqID(i))
			delete(en.has, reqID(i))
			r.collect(q.replica, r.now)
		}
	}
	r.res.Failed++
	r.step(&pool.Gone{Req: reqID(i)})
	r.end(i)
}

// scrape reads replica k's gauges and foresees the next reading.
func (r *run) scrape(k int) {
	en := r.engines[k]
	s := pool.Sample{Endpoint: endpointID(k), Gen: 1, Taken: r.now}
	switch {
	case en.Engine == nil:
		s.Failure = fleet.FailConnect
	case en.mute:
		s.Failure = fleet.FailTimeout
	default:
		r.collect(k, r.now)
		g := en.Stats()
		s.Gauges = fleet.Gauges{
			Known: fleet.KnownRunning | fleet.KnownWaiting | fleet.KnownKVUsage, Running: g.Running, Waiting: g.Waiting, KVUsage: g.KVUsage(),
		}
	}
	r.step(&s)
	if r.open > 0 || !r.drained {
		r.push(r.now.Add(r.c.Scrape), kindScrape, k)
	}
}

// fault makes something happen to a replica.
func (r *run) fault(f Fault) error {
	en := r.engines[f.Replica]
	switch f.Kind {
	case Crash:
		if en.Engine == nil {
			return nil
		}
		r.collect(f.Replica, r.now)
		for _, m := range en.members {
			r.crash(r.engines[m])
		}
	case Restart:
		if en.Engine == nil {
			return r.boot(f.Replica)
		}
	case Mute:
		en.mute = true
	case Unmute:
		en.mute = false
	}
	return nil
}

// crash ends a replica's process, with all that was in it.
func (r *run) crash(en *engine) {
	en.lost += en.Stats().Preemptions
	en.Engine, en.wake = nil, fleet.Never
	for _, id := range slices.Sorted(maps.Keys(en.has)) {
		r.fail(indexOf(id), fleet.FailStream)
	}
	clear(en.has)
}
