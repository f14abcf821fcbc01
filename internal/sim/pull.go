package sim

import (
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// startPull has what replica s has of q's prompt, and q's own replica has not,
// sent over. It reports false when there is nothing to wait for: the source is
// gone, or has none of it any more. A source keeps what it is asked for until it
// has left.
func (r *run) startPull(q *request, s int, at fleet.Time) bool {
	source := r.engines[s]
	q.received = 0
	if source.Engine == nil {
		return false
	}
	chain := q.engineChain()
	chain = chain[:min(len(chain), max(q.Input-1, 0)/int(enginesim.BlockTokens))]
	r.collect(s, r.now)
	has := r.has(s, chain)
	more := has - r.has(q.replica, chain)
	if more <= 0 {
		return false
	}
	w := &r.c.Replicas[s].Wire
	tokens := more * int(enginesim.BlockTokens)
	takes := float64(tokens) * w.KVBytes / w.Bandwidth
	source.wireFree = max(source.wireFree, at).Add(time.Duration(takes * float64(time.Second)))
	r.res.Pulls++
	r.res.MovedTokens += int64(tokens)
	q.stage, q.source, q.received = stagePull, s, fleet.Tokens(has)*enginesim.BlockTokens
	q.due = source.wireFree.Add(w.Latency)
	r.push(q.due, kindMoved, q.index)
	return true
}

// has returns how many blocks of a chain a replica has, on whatever tier.
func (r *run) has(k int, chain []uint64) int {
	most := 0
	for _, t := range [...]kv.Tier{kv.TierGPU, kv.TierCPU, kv.TierDisk} {
		most = max(most, r.engines[k].Match(t, chain))
	}
	return most
}

// pulledIn lets the computing of a prompt begin: what was fetched of it has come,
// or never will.
func (r *run) pulledIn(q *request) {
	q.stage = stageWhole
	if r.engines[q.replica].Engine == nil {
		r.fail(q, fleet.FailConnect)
		return
	}
	r.collect(q.replica, r.now)
	r.submit(q, q.replica, r.now, q.received)
}
