package pool

import (
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/route"
)

// pull is what a request has fetched from another endpoint's cache before its
// prompt is computed.
type pull struct {
	from  int          // NoSlot for nothing
	own   fleet.Tokens // of the prompt, cached where it is served already
	moved fleet.Tokens // fetched besides
	alone bool         // nothing stood before it on the wire

	expected, took time.Duration // took: 0 when nothing tells
}

var noPull = pull{from: route.NoSlot}

// judgeSources finds the slots from whose caches r's prompt can be fetched. A
// request that has failed somewhere does without: it may have been the fetching.
func (b *Brain) judgeSources(r *request) {
	b.query.Sources = b.query.Sources[:0]
	if b.config.Pull == PullNever || len(r.tried) > 0 || len(b.query.Candidates) == 0 {
		return
	}
	for i := range b.endpoints {
		e := &b.endpoints[i]
		if e.present && e.Pulls && e.Role != fleet.RoleStore && e.Role != fleet.RoleEncode && b.deps.Health.State(i) == health.Healthy && !b.deps.Wires.Resting(b.now, i) {
			b.query.Sources = append(b.query.Sources, i)
		}
	}
}

// fetch has what slot s has of r's prompt, and r.slot has not, fetched from there.
// It returns how much of the prompt will then be cached, and how long that takes.
func (b *Brain) fetch(r *request, s int) (cached fleet.Tokens, takes time.Duration) {
	cached = min(b.view.Cache[s].Ready, r.Prompt-1)
	own := b.view.Matched[r.slot]
	link, queue := b.view.Wire[s], b.view.Asked[s]
	r.pull = pull{from: s, own: own, moved: max(cached-own, 0), alone: queue == 0}
	b.deps.Wires.Sent(b.now, s, r.pull.moved)
	r.pull.expected = seconds(link.Latency + queue + link.PerToken*float64(r.pull.moved))
	return cached, r.pull.expected
}

// fetched learns from the first token of a request whose KV was fetched.
func (b *Brain) fetched(r *request) {
	p := &r.pull
	if p.from == route.NoSlot {
		return
	}
	took := r.job.Fetched(b.now)
	if p.alone {
		b.deps.Wires.Took(p.from, p.moved, took)
	}
	if took > 0 {
		p.took = seconds(took)
	}
}

// pulled notes whether what was fetched for r has come, by what its engine reports,
// and returns what the report tells of the engine's own cache: nothing, then.
func (b *Brain) pulled(r *request, u fleet.Usage) fleet.Usage {
	p := &r.pull
	if p.from == route.NoSlot {
		return u
	}
	if u.Known && u.Cached >= 0 && p.moved >= route.LeastPull {
		b.deps.Wires.Came(b.now, p.from, u.Cached >= p.own+p.moved/2)
	}
	u.Cached = -1
	return u
}

// tellPulled tells how much of what was fetched for r has come, by what its engine
// reports. One that reports nothing is taken to have got it.
func (b *Brain) tellPulled(r *request, u fleet.Usage, out []Action) []Action {
	p := &r.pull
	if p.from == route.NoSlot || r.slot == lost {
		return out
	}
	came := p.moved
	if u.Known && u.Cached >= 0 {
		came = min(max(u.Cached-p.own, 0), p.moved)
	}
	to, from := &b.endpoints[r.slot], &b.endpoints[p.from]
	return append(out, Action{
		Kind: Moved, Req: r.Req, Attempt: r.attempts, Endpoint: to.Endpoint.Endpoint, Gen: to.Gen, Source: from.Endpoint.Endpoint, SourceGen: from.Gen,
		Tokens: came, Expected: p.expected, Took: p.took,
	})
}

// pullFailed notes that an attempt that began with fetching has failed before its
// first token: it may have been that.
func (b *Brain) pullFailed(r *request, ev *Leg) {
	if r.pull.from != route.NoSlot && !ev.Committed && ev.Failure.Retryable() {
		b.deps.Wires.Came(b.now, r.pull.from, false)
	}
}
