package sim

import (
	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/stat"
)

// act carries out one action of gateway g's brain.
func (r *run) act(g int, a *pool.Action) {
	switch a.Kind {
	case pool.Dispatch:
		if q := r.requests.get(indexOf(a.Req)); a.Prefill != fleet.NoEndpoint {
			r.dispatchSplit(q, int(a.Prefill)-1, int(a.Endpoint)-1, a.Attempt, a.Decision)
			break
		}
		r.dispatch(r.requests.get(indexOf(a.Req)), int(a.Endpoint)-1, int(a.Source)-1, a.Attempt, a.Decision)
	case pool.Refuse:
		if q := r.requests.get(indexOf(a.Req)); q != nil {
			r.res.Refused++
			r.endAt(q, r.now)
		}
	case pool.Probe:
		r.push(r.now.Add(2*r.c.Hop), kindProbe, r.pair(g, int(a.Endpoint)-1))
	}
}

// dispatch sends a request to replica k, which fetches what it lacks of the prompt
// from replica s, unless that is none.
func (r *run) dispatch(q *request, k, s, attempt int, d *fleet.Decision) {
	q.replica, q.stage, q.received = k, stageWhole, 0
	q.attempt, q.sent, q.ttft, q.tpot = attempt, r.now, d.Candidates[0].TTFT, d.Candidates[0].TPOT
	if s != noReplica {
		q.ttft = d.Pull.TTFT
	}
	if attempt > 1 {
		r.res.Retries++
	}
	en := r.engines[k]
	if en.Engine == nil {
		r.fail(q, fleet.FailConnect)
		return
	}
	// The engine works on while the request travels; what it has done by then
	// comes first.
	at := r.now.Add(r.c.Hop)
	r.collect(k, at)
	if s != noReplica && r.startPull(q, s, at) {
		return
	}
	r.submit(q, k, at, 0)
}

// submit gives replica k a request, of whose prompt so many tokens have come with
// their KV.
func (r *run) submit(q *request, k int, at fleet.Time, received fleet.Tokens) {
	en := r.engines[k]
	err := en.Submit(at, enginesim.Request{
		ID: reqID(q.index), Chain: q.engineChain(), Prompt: fleet.Tokens(max(q.Input, 1)),
		Output: fleet.Tokens(max(q.Output, 1)), Finish: enginesim.FinishLength, Received: received,
	})
	if err != nil {
		r.fail(q, fleet.FailClient) // longer than the engine can ever hold
		return
	}
	r.res.PerReplica[k]++
	en.has[reqID(q.index)] = struct{}{}
	r.collect(k, at)
}

// engineChain returns the keys that engines know the blocks of the prompt by, and
// those of the answer, which nobody else has.
func (q *request) engineChain() []uint64 {
	if q.chain != nil {
		return q.chain
	}
	blocks := (max(q.Input, 1) + max(q.Output, 1)) / int(enginesim.BlockTokens)
	q.chain = appendChain(make([]uint64, 0, blocks), q.Prompt, int(enginesim.BlockTokens))
	own, last := stat.Mix64(uint64(q.index)+0xa45e7), uint64(0)
	if n := len(q.chain); n > 0 {
		last = q.chain[n-1]
	}
	for len(q.chain) < blocks {
		last = stat.Mix64(last ^ own)
		q.chain = append(q.chain, last)
	}
	return q.chain
}

// fail reports a failed attempt, one hop later.
func (r *run) fail(q *request, f fleet.Failure) {
	r.heap.push(event{at: r.now.Add(r.c.Hop), kind: kindLeg, what: q.gateway, leg: pool.Leg{
		Req: reqID(q.index), Attempt: q.attempt, Phase: fleet.PhaseFailed, Failure: f, Committed: q.first != 0,
	}})
	if q.first != 0 || f == fleet.FailClient {
		r.res.Failed++
		r.endAt(q, r.now)
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
		r.publishAll(m)
		for _, o := range r.reports {
			if o.Kind == enginesim.KindTokens {
				r.report(m, o)
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
func (r *run) report(k int, o enginesim.Output) {
	en, q := r.engines[k], r.requests.get(indexOf(o.Req))
	if q.stage == stagePrefill {
		r.prefillDone(q, k, o)
		if en.leaving {
			r.leave(k, o.At)
		}
		return
	}
	seen := o.At.Add(r.c.Hop)
	if r.c.Tokens {
		if !o.First {
			r.res.ITL.Observe(int64(o.At.Sub(q.last)))
		}
		q.last = o.At
	}
	leg := pool.Leg{Req: o.Req, Attempt: q.attempt}
	if o.First {
		if q.first = max(seen, 1); q.stage == stageWhole {
			q.cached = max(o.Cached, q.received)
		}
		r.res.firstToken(q, o)
		leg.Phase = fleet.PhaseFirstToken
		r.heap.push(event{at: max(seen, r.now), kind: kindLeg, what: q.gateway, leg: leg})
	}
	if o.Finish == enginesim.NotFinished {
		return
	}
	delete(en.has, o.Req)
	leg.Phase = fleet.PhaseDone
	leg.Usage = fleet.Usage{Known: true, Prompt: fleet.Tokens(q.Input), Cached: q.cached, Output: fleet.Tokens(q.Output)}
	r.heap.push(event{at: max(seen, r.now), kind: kindLeg, what: q.gateway, leg: leg})
	r.res.done(q, seen, r.c.Targets)
	q.done = true
	r.endAt(q, seen)
	if en.leaving {
		r.leave(k, seen)
	}
}

// endAt closes a request; turns that waited for its answer follow it.
func (r *run) endAt(q *request, at fleet.Time) {
	for _, w := range r.waiting[q.index] {
		next := r.requests.get(w)
		r.push(max(fleet.Time(next.At), at.Add(next.Think), r.now), kindArrival, w)
	}
	delete(r.waiting, q.index)
	if r.c.Ended != nil {
		r.c.Ended(Outcome{
			Stage: q.Stage, Replica: q.replica, Start: q.start, First: q.first, End: at,
			Input: fleet.Tokens(q.Input), Cached: q.cached, Output: fleet.Tokens(q.Output), Done: q.done,
		})
	}
	r.requests.end(q)
	if r.requests.open() == 0 && r.held != nil {
		r.nextStage(at)
	}
}

// giveUp takes request i back, whose client has waited long enough.
func (r *run) giveUp(i int) {
	q := r.requests.get(i)
	if q == nil {
		return
	}
	if q.stage == stageMove {
		r.release(q)
	}
	if q.attempt > 0 && q.stage != stagePull {
		en := r.engines[q.at()]
		if _, has := en.has[reqID(i)]; has {
			k := q.at()
			r.collect(k, r.now)
			if r.requests.get(i) == nil || q.at() != k { // it has just come, or moved on
				r.giveUp(i)
				return
			}
			en.Abort(r.now, reqID(i))
			delete(en.has, reqID(i))
			r.collect(k, r.now)
			if en.leaving {
				r.leave(k, r.now)
			}
		}
	}
	r.res.Failed++
	g := q.gateway
	r.step(g, &pool.Gone{Req: reqID(i)})
	r.endAt(q, r.now)
}
