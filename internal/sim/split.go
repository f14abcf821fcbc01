package sim

import (
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/pool"
)

// Wire is the truth of how KV leaves a replica for another: over one link, in the
// order it is asked for.
type Wire struct {
	Bandwidth float64       // bytes per second of each device's link
	Latency   time.Duration // of a transfer besides; does not keep others waiting
	KVBytes   float64       // of one token, on each device
}

// The stages of a request in two legs.
const (
	stageWhole   = iota
	stagePrefill // its prompt is being computed
	stageMove    // its KV is on its way
	stageAnswer
	stagePull // what another replica has of its prompt is on its way
)

// noReplica is the number of no replica.
const noReplica = -1

// dispatchSplit has the prompt of a request computed at replica p for k.
func (r *run) dispatchSplit(q *request, p, k, attempt int, d *fleet.Decision) {
	q.replica, q.prefill, q.stage = k, p, stagePrefill
	q.attempt, q.sent, q.ttft, q.tpot = attempt, r.now, d.Split.TTFT, d.Candidates[0].TPOT
	if attempt > 1 {
		r.res.Retries++
	}
	en := r.engines[p]
	if en.Engine == nil {
		r.failPrefill(q, fleet.FailConnect)
		return
	}
	at := r.now.Add(r.c.Hop)
	r.collect(p, at)
	chain := q.engineChain()
	prompt := max(q.Input, 1)
	err := en.Submit(at, enginesim.Request{
		ID: reqID(q.index), Chain: chain[:min(len(chain), prompt/int(enginesim.BlockTokens))], Prompt: fleet.Tokens(prompt),
		Output: 1, Finish: enginesim.FinishLength, Keep: true,
	})
	if err != nil {
		r.failPrefill(q, fleet.FailClient)
		return
	}
	r.res.Splits++
	r.res.PerReplica[p]++
	en.has[reqID(q.index)] = struct{}{}
	r.collect(p, at)
}

// prefillDone passes on that the prompt has been computed, and has its KV moved.
func (r *run) prefillDone(q *request, p int, o enginesim.Output) {
	seen := o.At.Add(r.c.Hop)
	delete(r.engines[p].has, o.Req)
	q.cached, q.stage = o.Cached, stageMove
	r.res.PromptTokens += int64(q.Input)
	r.res.CachedTokens += int64(o.Cached)
	r.heap.push(event{at: max(seen, r.now), kind: kindLeg, what: q.gateway, leg: pool.Leg{
		Req: o.Req, Attempt: q.attempt, Prefill: true, Phase: fleet.PhaseDone,
		Usage: fleet.Usage{Known: true, Prompt: fleet.Tokens(q.Input), Cached: o.Cached, Output: 1},
	}})
	// The gateway sends the second leg at once; the engine then asks for the KV.
	asked := max(seen.Add(r.c.Hop), r.now)
	en := r.engines[p]
	tokens := q.Input
	if d := r.engines[q.replica]; d.Engine != nil {
		chain := q.engineChain()
		held := d.Match(kv.TierGPU, chain[:min(len(chain), q.Input/int(enginesim.BlockTokens))])
		tokens = max(tokens-held*int(enginesim.BlockTokens), 0)
	}
	w := &r.c.Replicas[p].Wire
	bytes := float64(tokens) * w.KVBytes
	en.wireFree = max(en.wireFree, asked).Add(time.Duration(bytes / w.Bandwidth * float64(time.Second)))
	r.res.MovedTokens += int64(tokens)
	q.due = en.wireFree.Add(w.Latency)
	r.push(q.due, kindMoved, q.index)
}

// moved lets the answer of request i begin: its KV has come.
func (r *run) moved(i int) {
	q := r.requests.get(i)
	switch {
	case q == nil || q.due != r.now: // of an attempt that has been given up
		return
	case q.stage == stagePull:
		r.pulledIn(q)
		return
	case q.stage != stageMove:
		return
	}
	r.release(q)
	en := r.engines[q.replica]
	if en.Engine == nil {
		r.fail(q, fleet.FailConnect)
		return
	}
	r.collect(q.replica, r.now)
	err := en.Submit(r.now, enginesim.Request{
		ID: reqID(q.index), Chain: q.engineChain(), Prompt: fleet.Tokens(max(q.Input, 1)),
		Output: fleet.Tokens(max(q.Output, 1)), Finish: enginesim.FinishLength, Received: fleet.Tokens(max(q.Input, 1)),
	})
	if err != nil {
		r.fail(q, fleet.FailClient)
		return
	}
	q.stage = stageAnswer
	r.res.PerReplica[q.replica]++
	en.has[reqID(q.index)] = struct{}{}
	r.collect(q.replica, r.now)
}

// release gives up what the first leg holds.
func (r *run) release(q *request) {
	if q.prefill == noReplica {
		return
	}
	if en := r.engines[q.prefill]; en.Engine != nil {
		r.collect(q.prefill, r.now)
		en.Release(r.now, reqID(q.index))
		r.collect(q.prefill, r.now)
	}
	q.prefill = noReplica
}

// failPrefill reports a first leg that has failed, one hop later: what follows the
// gateway decides.
func (r *run) failPrefill(q *request, f fleet.Failure) {
	q.stage, q.prefill = stageWhole, noReplica
	r.heap.push(event{at: r.now.Add(r.c.Hop), kind: kindLeg, what: q.gateway, leg: pool.Leg{
		Req: reqID(q.index), Attempt: q.attempt, Prefill: true, Phase: fleet.PhaseFailed, Failure: f,
	}})
}

// breakLegs fails what a replica that has just died was doing for others.
func (r *run) breakLegs(k int) {
	for i := range r.requests.taken {
		switch q := r.requests.get(i); {
		case q == nil:
		case q.stage == stageMove && q.prefill == k:
			q.prefill = noReplica
			r.fail(q, fleet.FailStatus) // the KV cannot be loaded
		case q.stage == stagePull && q.source == k:
			q.received, q.due = 0, 0
			r.pulledIn(q)
		}
	}
}

// at returns the replica that works on the request, or will.
func (q *request) at() int {
	if q.stage == stagePrefill {
		return q.prefill
	}
	return q.replica
}
