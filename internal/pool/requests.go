package pool

import (
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/flow"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/stat"
)

// Where a request is when it is at no endpoint.
const (
	waiting = -1 // in the queue
	lost    = -2 // dispatched to an endpoint that has been removed since
)

func (b *Brain) onArrive(ev *Arrive, out []Action) []Action {
	b.tally.Arrived++
	b.deps.Retries.Arrived()
	r := b.remember(ev)
	if !b.newWait() && b.judge(r) > 0 {
		return b.place(r, out)
	}
	if b.noneFit() || (r.choosy() || b.config.Split == SplitOnly) && b.judge(r) == 0 && !b.mayWait() {
		b.tally.Shed++
		out = append(out, Action{Kind: Refuse, Req: r.Req, Refusal: fleet.RefuseNoEndpoint, RetryAfter: b.untilProbe()})
		b.forget(r)
		return out
	}
	if b.deps.Queue.Offer(b.now, flow.Item{Req: r.Req, Enqueued: b.now}) == flow.Full {
		b.tally.Shed++
		out = append(out, Action{Kind: Refuse, Req: r.Req, Refusal: fleet.RefuseQueueFull, RetryAfter: b.deps.Queue.RetryAfter(b.now)})
		b.forget(r)
	}
	return out
}

func (b *Brain) onLeg(ev *Leg, out []Action) []Action {
	r := b.requests[ev.Req]
	if r == nil || r.slot == waiting || ev.Attempt != r.attempts {
		return out // of an attempt that has been given up
	}
	if ev.Prefill {
		return b.prefillLeg(r, ev, out)
	}
	switch ev.Phase {
	case fleet.PhaseFirstToken:
		out = b.arrived(r, out)
		b.fetched(r)
		b.deps.KV.First(b.now, &r.cache, r.job.Fetched(b.now))
		b.deps.Perf.First(b.now, &r.job)
		if r.slot != lost && b.deps.Health.Alive(r.slot) {
			out = b.pump(b.tellFitness(r.slot, fleet.FailNone, out))
		}
		out = b.came(r, out)
	case fleet.PhaseProgress:
		b.deps.Perf.Progress(b.now, &r.job, ev.Output)
	case fleet.PhaseDone:
		out = b.done(r, ev, out)
	case fleet.PhaseFailed:
		out = b.failed(r, ev, out)
	}
	return out
}

func (b *Brain) onGone(ev *Gone, out []Action) []Action {
	r := b.requests[ev.Req]
	if r == nil {
		return out
	}
	b.tally.Cancelled++
	if r.slot == waiting {
		b.deps.Queue.Remove(r.Req)
	} else {
		if r.slot != lost {
			e := &b.endpoints[r.slot]
			out = append(out, Action{Kind: Cancel, Req: r.Req, Attempt: r.attempts, Endpoint: e.Endpoint.Endpoint, Gen: e.Gen})
		}
		b.release(r)
	}
	b.forget(r)
	return b.pump(out)
}

func (b *Brain) done(r *request, ev *Leg, out []Action) []Action {
	if r.slot != lost && b.deps.Health.Success(b.now, r.slot) {
		out = b.tellFitness(r.slot, fleet.FailNone, out)
	}
	b.tally.Done++
	out = b.came(r, out)
	out = b.tellMoved(r, 0, out) // of an answer that came whole; nothing tells how long it took
	out = b.tellPulled(r, ev.Usage, out)
	b.deps.Perf.Done(b.now, &r.job, r.ask(), ev.Usage)
	p := r.prompt()
	b.deps.KV.Done(b.now, &r.cache, &p, uint64(r.Req), b.pulled(r, ev.Usage))
	r.Chain = p.Chain
	b.release(r)
	b.forget(r)
	return b.pump(out)
}

// failed ends an attempt and decides whether there is another one.
func (b *Brain) failed(r *request, ev *Leg, out []Action) []Action {
	slot, from := r.slot, r.prefill.from
	if slot != lost {
		e := &b.endpoints[slot]
		e.failed++
		r.tried = append(r.tried, e.Endpoint.Endpoint)
		b.suspect(r, e, ev)
	}
	unclear := slot != lost && from != route.NoSlot && ev.Failure.Unclear() && !ev.Committed
	b.pullFailed(r, ev)
	b.release(r)
	switch {
	case slot == lost || !ev.Failure.Blames():
	case !unclear:
		out = b.blame(slot, ev.Failure, out)
	default:
		out = b.missed(slot, from, ev.Failure, out)
	}
	return b.again(r, ev, out)
}

// again makes another attempt of a request whose last one has failed, or gives it
// up.
func (b *Brain) again(r *request, ev *Leg, out []Action) []Action {
	r.failure = ev.Failure
	if !ev.Committed && ev.Failure.Retryable() && b.deps.Retries.Take(r.attempts) {
		b.tally.Retried++
		if b.judge(r) > 0 || b.forgive(r) {
			return b.pump(b.place(r, out))
		}
		if b.mayWait() {
			r.slot = waiting
			b.deps.Queue.Return(flow.Item{Req: r.Req, Enqueued: r.arrived})
			return b.pump(out)
		}
		b.tally.Retried--
	}
	return b.fail(r, ev, out)
}

// fail ends a request whose last attempt has failed.
func (b *Brain) fail(r *request, ev *Leg, out []Action) []Action {
	r.failure = ev.Failure
	b.tally.Failed++
	if !ev.Committed && ev.Failure != fleet.FailClient {
		out = append(out, Action{Kind: Refuse, Req: r.Req, Refusal: refusalFor(ev.Failure), RetryAfter: b.retryAfter(ev.Failure)})
	}
	b.forget(r)
	return b.pump(out)
}

func refusalFor(f fleet.Failure) fleet.Refusal {
	switch f {
	case fleet.FailTimeout:
		return fleet.RefuseTimeout
	case fleet.FailOverload:
		return fleet.RefuseOverload
	}
	return fleet.RefuseEngine
}

func (b *Brain) retryAfter(f fleet.Failure) time.Duration {
	if f == fleet.FailOverload {
		return b.deps.Queue.RetryAfter(b.now)
	}
	return 0
}

// pump sends waiting requests while there is room. One that waits for certain
// endpoints, since it failed at the others or has an owner, is passed over while
// room is elsewhere; one that may go anywhere and cannot speaks for all behind
// it.
func (b *Brain) pump(out []Action) []Action {
	it, ok := b.deps.Queue.Peek()
	for ok {
		r := b.requests[it.Req]
		next, more := b.deps.Queue.After(it.Req)
		switch {
		case b.judge(r) > 0:
			b.deps.Queue.Take(b.now, it.Req)
			out = b.place(r, out)
		case !b.mayWait():
			b.deps.Queue.Take(b.now, it.Req)
			out = b.giveUp(r, out)
		case r.free():
			return out
		}
		it, ok = next, more
	}
	return out
}

// newWait reports whether requests wait that may go anywhere. Who comes after
// them queues up; the few that wait for certain endpoints hold nobody up.
func (b *Brain) newWait() bool {
	it, ok := b.deps.Queue.Last()
	for ok && !b.requests[it.Req].free() {
		it, ok = b.deps.Queue.Before(it.Req)
	}
	return ok
}

// free reports whether r may go to any endpoint.
func (r *request) free() bool { return len(r.tried) == 0 && r.Owner == fleet.NoEndpoint && !r.narrow }

// choosy reports whether r names something that not every endpoint has.
func (r *request) choosy() bool { return r.Owner != fleet.NoEndpoint || r.Adapter != fleet.NoAdapter }

// giveUp refuses a request that waited until no endpoint was left for it.
func (b *Brain) giveUp(r *request, out []Action) []Action {
	a := Action{Kind: Refuse, Req: r.Req, Refusal: fleet.RefuseNoEndpoint, RetryAfter: b.untilProbe()}
	if r.attempts > 0 {
		b.tally.Failed++
		a.Refusal, a.RetryAfter = refusalFor(r.failure), b.retryAfter(r.failure)
	} else {
		b.tally.Shed++
	}
	b.forget(r)
	return append(out, a)
}

// judge sets the verdict on every endpoint for r and returns how many are
// eligible.
func (b *Brain) judge(r *request) int {
	b.query.Candidates = b.query.Candidates[:0]
	r.narrow = false
	b.adapterKnown = r.Adapter != fleet.NoAdapter && b.anyHas(r.Adapter)
	b.roomy = b.anyHolds(r)
	for i := range b.endpoints {
		e := &b.endpoints[i]
		if !e.present {
			continue
		}
		b.verdict[i] = b.verdictOn(i, e, r)
		r.narrow = r.narrow || b.verdict[i] == fleet.OutAdapter || b.verdict[i] == fleet.OutLong
		if b.verdict[i] == fleet.Eligible {
			b.query.Candidates = append(b.query.Candidates, i)
		}
	}
	b.judgePrefills(r)
	b.judgePairs(r)
	b.judgeSources(r)
	return len(b.query.Candidates)
}

func (b *Brain) verdictOn(slot int, e *endpoint, r *request) fleet.Verdict {
	state := b.deps.Health.State(slot)
	switch {
	case !e.Role.Decodes():
		return fleet.OutRole
	case e.Change == EndpointDrain:
		return fleet.OutDraining
	case r.Owner != fleet.NoEndpoint && r.Owner != e.Endpoint.Endpoint:
		return fleet.OutOwner
	case b.lacks(e, r):
		return fleet.OutAdapter
	case b.roomy && e.tooSmall(r):
		return fleet.OutLong
	case slices.Contains(r.tried, e.Endpoint.Endpoint):
		return fleet.OutTried
	case state == health.Ejected:
		return fleet.OutEjected
	case state == health.Trial && e.inFlight > 0:
		return fleet.OutTrial
	case b.config.Room.Full(e.inFlight, e.limits.MaxSeqs):
		return fleet.OutFull
	}
	return fleet.Eligible
}

// tooSmall reports whether r is longer than e can ever hold. The length is an
// estimate: where nobody can hold it, the engine has the word.
func (e *endpoint) tooSmall(r *request) bool {
	return e.limits.KVTokens > 0 && r.Prompt >= e.limits.KVTokens || e.limits.MaxModelLen > 0 && r.Prompt >= e.limits.MaxModelLen
}

// anyHolds reports whether some endpoint is known to be able to hold r.
func (b *Brain) anyHolds(r *request) bool {
	for i := range b.endpoints {
		if e := &b.endpoints[i]; e.present && e.limits.KVTokens > 0 && !e.tooSmall(r) {
			return true
		}
	}
	return false
}

// mayWait reports whether, by the last judge, some endpoint will have room
// again without having to be found fit first.
func (b *Brain) mayWait() bool {
	for i := range b.endpoints {
		if b.endpoints[i].present && (b.verdict[i] == fleet.OutFull || b.verdict[i] == fleet.OutTrial) {
			return true
		}
	}
	return false
}

// noneFit reports whether no endpoint could take a request even if it had room.
func (b *Brain) noneFit() bool {
	for i := range b.endpoints {
		e := &b.endpoints[i]
		if e.present && e.Role.Decodes() && e.Change == EndpointUp && b.deps.Health.State(i) != health.Ejected {
			return false
		}
	}
	return true
}

// untilProbe returns when the next ejected endpoint may be found fit again,
// in whole seconds as Retry-After wants them.
func (b *Brain) untilProbe() time.Duration {
	at := fleet.Never
	for i := range b.endpoints {
		if b.endpoints[i].present {
			at = min(at, b.deps.Health.NextProbe(i))
		}
	}
	if at == fleet.Never {
		return time.Second
	}
	return max(at.Sub(b.now), 0).Truncate(time.Second) + time.Second
}

// place picks an endpoint among those the last judge found eligible and
// dispatches r there.
func (b *Brain) place(r *request, out []Action) []Action {
	b.look(r)
	b.plan.Reset()
	b.deps.Policy.Pick(&b.view, &b.query, b.rand, &b.plan)
	b.insist()
	slot := b.plan.Chosen
	r.attempts++
	b.consultShadow(slot)
	r.slot = slot
	record := b.writeRecord(r)
	record.Encoders = b.sendImages(r, record.Encoders)
	e := b.enlist(slot)
	a := Action{
		Kind: Dispatch, Req: r.Req, Attempt: r.attempts, Endpoint: e.Endpoint.Endpoint, Gen: e.Gen, Decision: record,
	}
	if p := b.plan.Prefill; p != route.NoSlot {
		b.tally.Split++
		first := b.sendSplit(r, p)
		a.Prefill, a.PrefillGen = first.Endpoint.Endpoint, first.Gen
		if r.Adapter != fleet.NoAdapter {
			first.adapters.Use(r.Adapter)
		}
	} else {
		b.tally.Whole++
		cached, load := b.view.Matched[slot], b.view.Load[slot]
		if s := b.plan.Source; s != route.NoSlot {
			a.Source, a.SourceGen = b.endpoints[s].Endpoint.Endpoint, b.endpoints[s].Gen
			cached, load.Fetch = b.fetch(r, s)
		}
		b.deps.Perf.Sent(b.now, slot, r.ask(), cached, &load, &r.job)
		p := r.prompt()
		b.deps.KV.Sent(b.now, slot, &p, b.view.Cache[slot], &r.cache)
	}
	if r.Adapter != fleet.NoAdapter {
		e.adapters.Use(r.Adapter)
	}
	return append(out, a)
}

// look fills the view for r.
func (b *Brain) look(r *request) {
	b.query.Now, b.query.Req, b.query.Prompt, b.query.MaxOut, b.query.SLO = b.now, r.Req, r.Prompt, r.MaxOut, r.Terms.SLO
	b.query.Chain, b.query.KeyTokens = r.Chain, r.KeyTokens
	b.query.Output = b.deps.Perf.Output(r.ask())
	v := &b.view
	p := r.prompt()
	b.deps.KV.Look(b.now, &p, v.Cache)
	for i := range b.endpoints {
		e := &b.endpoints[i]
		if !e.present {
			continue
		}
		v.InFlight[i] = e.inFlight
		v.Backlog[i], v.Active[i] = b.deps.Perf.Backlog(i)
		v.KVTokens[i], v.Cached[i] = e.limits.KVTokens, b.deps.KV.Held(i)
		v.Matched[i] = v.Cache[i].Tokens
		v.Adapter[i] = e.adapters.Fit(r.Adapter)
		v.SampleAge[i] = b.sampleAge(e)
		v.Gauges[i] = fleet.Gauges{}
		usage := perf.UsageUnknown
		if v.SampleAge[i] != neverSampled && v.SampleAge[i] <= b.config.Signals.StaleAfter {
			v.Gauges[i] = e.sample.Gauges
			if e.sample.Gauges.Known.Has(fleet.KnownKVUsage) {
				usage = e.sample.Gauges.KVUsage
			}
			v.InFlight[i] += e.external
		}
		b.deps.Perf.Load(b.now, i, v.InFlight[i]-e.inFlight, usage, &v.Load[i])
		v.Load[i].Fetch = v.Cache[i].Fetch
		v.Wire[i], v.Asked[i] = b.deps.Wires.Look(b.now, i)
		v.Busy[i] = b.deps.Wires.Busy(b.now, i)
		v.Step[i] = *b.deps.Perf.StepAt(i)
	}
}

// ask is r as the book of speeds sees it.
func (r *request) ask() perf.Ask {
	return perf.Ask{Key: stat.Mix64(uint64(r.Terms.Tenant)) ^ uint64(r.Adapter), SLO: r.Terms.SLO, Silent: r.Silent, Prompt: r.Prompt, MaxOut: r.MaxOut}
}

// prompt is r as the book of caches sees it.
func (r *request) prompt() kv.Prompt {
	return kv.Prompt{Tokens: r.Prompt, Chain: r.Chain, KeyTokens: r.KeyTokens, Blocks: r.Blocks}
}

// release takes r off its endpoint.
func (b *Brain) release(r *request) {
	b.releasePrefill(r)
	b.leaveEncoders(r)
	r.pull = noPull
	b.deps.Perf.Drop(b.now, &r.job)
	b.deps.KV.Drop(&r.cache)
	if r.slot >= 0 {
		b.endpoints[r.slot].inFlight--
	}
	r.slot = lost
}

// remember makes the table row of a new request, with a copy of its chains.
func (b *Brain) remember(ev *Arrive) *request {
	r := &request{}
	if n := len(b.free); n > 0 {
		r, b.free = b.free[n-1], b.free[:n-1]
	}
	chain, blocks, images := append(r.Chain[:0], ev.Chain...), append(r.Blocks[:0], ev.Blocks...), append(r.Images[:0], ev.Images...)
	unsure := [...][]fleet.EndpointID{r.unsure[0][:0], r.unsure[1][:0]}
	enc := encode{slots: r.encode.slots[:0], tried: r.encode.tried[:0]}
	*r = request{Arrive: *ev, arrived: b.now, slot: waiting, tried: r.tried[:0], unsure: unsure, prefill: noPrefill(), pull: noPull, encode: enc}
	r.Chain, r.Blocks, r.Images = chain, blocks, images
	b.requests[ev.Req] = r
	return r
}

func (b *Brain) forget(r *request) {
	delete(b.requests, r.Req)
	b.free = append(b.free, r)
}
