package pool

import (
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/route"
)

// A split request has two legs: one endpoint computes its prompt, another takes
// over the KV and answers. Both are held from the dispatch on; the second leg
// begins when the first has ended, or with it, as the engines want it. Whatever
// goes wrong with the first is an attempt that failed, and the next plan is made
// as if it were the first: elsewhere, or whole.

// judgePrefills finds the slots that can compute r's prompt for another.
func (b *Brain) judgePrefills(r *request) {
	b.query.Prefills = b.query.Prefills[:0]
	if r.alone || r.Whole && b.config.Split != SplitOnly || r.Owner != fleet.NoEndpoint || len(b.query.Candidates) == 0 || b.config.Split == SplitNever {
		return
	}
	for i := range b.endpoints {
		if e := &b.endpoints[i]; e.present && e.Connector != 0 && b.canPrefill(i, e, r) {
			b.query.Prefills = append(b.query.Prefills, i)
		}
	}
}

func (b *Brain) canPrefill(slot int, e *endpoint, r *request) bool {
	return b.mayPrefill(slot, e, r) && (b.deps.Health.State(slot) != health.Trial || e.inFlight == 0) &&
		(b.deps.Health.Lends(slot) != health.Trial || e.lending == 0) &&
		!b.config.Room.Full(e.inFlight, e.limits.MaxSeqs)
}

// mayPrefill reports whether a slot can compute r's prompt, now or when it has room.
func (b *Brain) mayPrefill(slot int, e *endpoint, r *request) bool {
	return e.Role.Prefills() && e.Change != EndpointDrain && !b.lacks(e, r) && !e.tooSmall(r) &&
		!slices.Contains(r.tried, e.Endpoint.Endpoint) && b.deps.Health.State(slot) != health.Ejected &&
		b.deps.Health.Lends(slot) != health.Ejected
}

// judgePairs takes those out of r's candidates that answer nothing alone and have
// nobody to compute the prompt.
func (b *Brain) judgePairs(r *request) {
	if b.config.Split != SplitOnly || r.Owner != fleet.NoEndpoint {
		return
	}
	kept := b.query.Candidates[:0]
	for _, dec := range b.query.Candidates {
		if b.verdict[dec] = b.verdictOnPair(dec, r); b.verdict[dec] == fleet.Eligible {
			kept = append(kept, dec)
		}
	}
	b.query.Candidates = kept
}

func (b *Brain) verdictOnPair(dec int, r *request) fleet.Verdict {
	if b.endpoints[dec].Role.Prefills() {
		return fleet.Eligible
	}
	verdict := fleet.OutAlone
	for i := range b.endpoints {
		e := &b.endpoints[i]
		switch {
		case !e.present || i == dec || e.Connector == 0 || e.Connector != b.endpoints[dec].Connector || b.view.Barred[dec].Has(i):
		case b.within(i):
			return fleet.Eligible
		case b.mayPrefill(i, e, r):
			verdict = fleet.OutFull // with the other one, it will have room
		}
	}
	return verdict
}

// insist makes a plan split that is not, where that is wanted: as the policy would
// if it had to, else with the prefill slot that has least to do.
func (b *Brain) insist() {
	p := &b.plan
	if b.config.Split != SplitAlways && b.config.Split != SplitOnly || p.Prefill != route.NoSlot {
		return
	}
	if p.Split.Slot != route.NoSlot {
		p.Chosen, p.Prefill = p.Split.Slot, p.Split.Prefill
		p.Score[p.Chosen] = -p.Split.Cost
		return
	}
	if p.Prefill = b.partner(p.Chosen); p.Prefill != route.NoSlot {
		return
	}
	for _, c := range b.query.Candidates {
		if pre := b.partner(c); pre != route.NoSlot {
			p.Chosen, p.Prefill = c, pre
			return
		}
	}
}

// partner is the prefill slot that has least to do of those that can hand KV over
// to a slot.
func (b *Brain) partner(dec int) int {
	best := route.NoSlot
	for _, c := range b.query.Prefills {
		if b.view.Hands(c, dec) && (best == route.NoSlot || b.view.Backlog[c] < b.view.Backlog[best]) {
			best = c
		}
	}
	return best
}

// enlist counts one more request at a slot.
func (b *Brain) enlist(slot int) *endpoint {
	e := &b.endpoints[slot]
	e.dispatched++
	e.inFlight++
	e.peak = max(e.peak, e.inFlight)
	return e
}

// sendSplit has r's prompt computed at slot p for r.slot, which is told what is to
// come.
func (b *Brain) sendSplit(r *request, p int) *endpoint {
	prompt := r.prompt()
	r.prefill = prefill{slot: p, from: p, owes: true}
	b.deps.Perf.Promise(r.slot, r.Prompt)
	b.deps.Perf.Sent(b.now, p, r.ask(), b.view.Matched[p], &b.view.Load[p], &r.prefill.job)
	b.deps.KV.Sent(b.now, p, &prompt, b.view.Cache[p], &r.prefill.cache)
	b.endpoints[p].lending++
	return b.enlist(p)
}

// prefillLeg takes what is reported of the first leg.
func (b *Brain) prefillLeg(r *request, ev *Leg, out []Action) []Action {
	if r.prefill.slot == route.NoSlot {
		return out
	}
	switch ev.Phase {
	case fleet.PhaseDone:
		return b.prefilled(r, ev, out)
	case fleet.PhaseFailed:
		return b.prefillFailed(r, ev, out)
	}
	return out
}

// prefilled closes the first leg: the KV is on its way.
func (b *Brain) prefilled(r *request, ev *Leg, out []Action) []Action {
	l := &r.prefill
	if l.slot != lost {
		if b.deps.Health.Success(b.now, l.slot) {
			out = b.tellFitness(l.slot, fleet.FailNone, out)
		}
		prompt := r.prompt()
		told := ev.Usage
		told.Output = 0
		b.deps.KV.Done(b.now, &l.cache, &prompt, uint64(r.Req), told)
		b.deps.Perf.Prefilled(b.now, &l.job, ev.Usage)
		b.endpoints[l.slot].inFlight--
	}
	l.slot, l.ended = route.NoSlot, b.now
	b.redeem(r)
	if r.slot != lost {
		b.move(r)
	}
	return b.pump(out)
}

// move notes that the KV of r's prompt goes to where r is answered.
func (b *Brain) move(r *request) {
	l := &r.prefill
	b.look(r)
	load := b.view.Load[r.slot]
	if l.from != route.NoSlot {
		link, queue := b.deps.Wires.Look(b.now, l.from)
		l.moved, l.alone = r.Prompt-b.view.Matched[r.slot], queue == 0
		load.Fetch = seconds(link.Latency + queue + link.PerToken*float64(l.moved))
		l.expected = load.Fetch
		b.deps.Wires.Sent(b.now, l.from, l.moved)
	}
	b.deps.Perf.Sent(b.now, r.slot, r.ask(), r.Prompt-1, &load, &r.job)
	prompt := r.prompt()
	b.deps.KV.Moved(b.now, r.slot, &prompt)
}

// arrived learns from the first token of a request whose KV was moved, and tells
// how long that has taken.
func (b *Brain) arrived(r *request, out []Action) []Action {
	l := &r.prefill
	if l.from == route.NoSlot || l.ended == 0 {
		return out
	}
	took := r.job.Fetched(b.now)
	if l.alone {
		b.deps.Wires.Took(l.from, l.moved, took)
	}
	if !(took > 0) {
		took = 0
	}
	return b.tellMoved(r, seconds(took), out)
}

// tellMoved tells, once, that the KV of r's prompt is where it is answered.
func (b *Brain) tellMoved(r *request, took time.Duration, out []Action) []Action {
	l := &r.prefill
	if l.from == route.NoSlot || l.ended == 0 || l.told || r.slot == lost {
		return out
	}
	l.told = true
	pre, dec := &b.endpoints[l.from], &b.endpoints[r.slot]
	return append(out, Action{
		Kind: Moved, Req: r.Req, Attempt: r.attempts, Endpoint: dec.Endpoint.Endpoint, Gen: dec.Gen, Prefill: pre.Endpoint.Endpoint, PrefillGen: pre.Gen,
		Tokens: l.moved, Expected: l.expected, Took: took,
	})
}

// prefillFailed ends an attempt whose first leg has failed.
func (b *Brain) prefillFailed(r *request, ev *Leg, out []Action) []Action {
	slot := r.prefill.slot
	if slot != lost {
		e := &b.endpoints[slot]
		e.failed++
		r.tried = append(r.tried, e.Endpoint.Endpoint)
	}
	b.release(r)
	if ev.Failure == fleet.FailClient {
		// By itself another may serve it, or refuse it in its own words.
		said := *ev
		said.Failure = fleet.FailOverload
		if r.alone = b.config.Split != SplitOnly; !r.alone {
			return b.fail(r, &said, out)
		}
		return b.again(r, &said, out)
	}
	if slot != lost && ev.Failure.Blames() {
		out = b.blame(slot, ev.Failure, out)
	}
	return b.again(r, ev, out)
}

// missed takes a failure at slot dec that may be for want of the KV of slot pre. The
// one is blamed when the other is not known to be at fault.
func (b *Brain) missed(dec, pre int, kind fleet.Failure, out []Action) []Action {
	if b.deps.Health.Missed(b.now, pre, dec, b.spares(pre)) {
		return b.tellLender(pre, kind, out)
	}
	if b.deps.Health.Lends(pre) != health.Ejected && b.deps.Health.Unclear(b.now, dec, pre, kind) {
		out = b.tellFitness(dec, kind, out)
	}
	return out
}

// spares reports whether the pool can do without slot pre's KV: requests are served
// whole then, unless that cannot be and nobody else computes prompts.
func (b *Brain) spares(pre int) bool {
	if b.config.Split != SplitOnly {
		return true
	}
	for i := range b.endpoints {
		e := &b.endpoints[i]
		if i != pre && e.present && e.Change == EndpointUp && e.Role.Prefills() && e.Connector == b.endpoints[pre].Connector &&
			b.deps.Health.State(i) == health.Healthy && b.deps.Health.Lends(i) == health.Healthy {
			return true
		}
	}
	return false
}

// came notes that the KV of r's prompt has come to where r is answered. An endpoint
// that had nothing left to fetch tells nothing.
func (b *Brain) came(r *request, out []Action) []Action {
	l := &r.prefill
	if l.from == route.NoSlot || r.slot == lost || l.ended != 0 && l.moved == 0 {
		return out
	}
	if b.deps.Health.Came(b.now, l.from, r.slot) {
		out = b.pump(b.tellLender(l.from, fleet.FailNone, out))
	}
	return out
}

// suspect notes that where r was answered by e another had computed its prompt: what
// failed may have been the taking over. The next plan is made without either.
func (b *Brain) suspect(r *request, e *endpoint, ev *Leg) {
	p := r.prefill.from
	if p == route.NoSlot || ev.Committed {
		return
	}
	switch ev.Failure {
	case fleet.FailStatus, fleet.FailGarbage, fleet.FailStream, fleet.FailTimeout:
		pre := b.endpoints[p].Endpoint.Endpoint
		r.tried = append(r.tried, pre)
		r.unsure[0], r.unsure[1] = append(r.unsure[0], e.Endpoint.Endpoint), append(r.unsure[1], pre)
	}
}

// forgive lets r go to those again of whom it is not sure that they have failed,
// those first that answered, and by itself where they can serve it so. It reports
// whether it may go anywhere now.
func (b *Brain) forgive(r *request) bool {
	for i, list := range r.unsure {
		if len(list) == 0 {
			continue
		}
		r.tried = slices.DeleteFunc(r.tried, func(id fleet.EndpointID) bool { return slices.Contains(list, id) })
		r.unsure[i], r.alone = list[:0], b.config.Split != SplitOnly
		if b.judge(r) > 0 {
			return true
		}
	}
	return false
}

// redeem takes back what the endpoint that answers was promised.
func (b *Brain) redeem(r *request) {
	if r.prefill.owes && r.slot >= 0 {
		b.deps.Perf.Redeem(r.slot, r.Prompt)
	}
	r.prefill.owes = false
}

// releasePrefill takes r off the endpoint that computes its prompt.
func (b *Brain) releasePrefill(r *request) {
	l := &r.prefill
	b.redeem(r)
	b.deps.Perf.Drop(b.now, &l.job)
	b.deps.KV.Drop(&l.cache)
	if l.slot >= 0 {
		b.endpoints[l.slot].inFlight--
	}
	if l.from >= 0 {
		b.endpoints[l.from].lending--
	}
	r.prefill = noPrefill()
}

func noPrefill() prefill {
	return prefill{slot: route.NoSlot, from: route.NoSlot, job: perf.Job{}, cache: kv.Ticket{}}
}
