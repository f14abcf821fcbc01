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

// neverSampled is the sample age of an endpoint that has not answered a scrape.
const neverSampled time.Duration = -1

func (b *Brain) onConfigure(ev *Configure, out []Action) []Action {
	if p, err := route.New(ev.Config.Policy); err == nil && !ev.Config.Policy.Equal(b.config.Policy) {
		// A policy that stays keeps what it knows. A policy that cannot be made is refused when configuration is loaded;
		// here the old one stays rather than leaving the pool without any.
		b.deps.Policy = p
	}
	if !ev.Config.Shadow.Equal(b.config.Shadow) {
		b.deps.Shadow = nil
		if p, err := route.New(ev.Config.Shadow); err == nil {
			b.deps.Shadow = p
		}
	}
	b.config = ev.Config
	b.deps.Queue.SetConfig(ev.Config.Queue)
	b.deps.Retries.SetConfig(ev.Config.Retry)
	b.deps.Health.SetConfig(ev.Config.Health)
	b.deps.KV.SetConfig(ev.Config.Index)
	for i := range b.endpoints {
		if b.endpoints[i].present {
			b.deps.KV.SetCapacity(i, b.endpoints[i].limits.KVTokens)
		}
	}
	return b.pump(out)
}

func (b *Brain) onEndpoint(ev *Endpoint, out []Action) []Action {
	slot, known := b.slots[ev.Endpoint]
	if known && ev.Gen < b.endpoints[slot].Gen {
		return out // of a process that is gone already
	}
	switch {
	case ev.Change == EndpointGone && known:
		out = b.drop(slot, out)
	case ev.Change == EndpointGone:
	case !known:
		slot = b.freeSlot()
		b.slots[ev.Endpoint] = slot
		b.endpoints[slot] = endpoint{present: true}
		b.deps.Health.Add(slot)
		b.update(slot, ev)
		b.bar()
	case ev.Gen > b.endpoints[slot].Gen:
		// A new process: nothing cached, nothing known against it. What was in
		// flight is reported as failed by whoever carried it.
		b.deps.KV.Renew(slot)
		b.tellLeft(slot)
		b.deps.Health.Add(slot)
		b.endpoints[slot].sampled, b.endpoints[slot].external = false, 0
		b.endpoints[slot].sample, b.endpoints[slot].serves = Sample{}, nil
		b.endpoints[slot].adapters.Clear()
		b.endpoints[slot].images.Clear()
		b.deps.Perf.Renew(slot)
		b.update(slot, ev)
	default:
		b.update(slot, ev)
	}
	return b.pump(out)
}

func (b *Brain) update(slot int, ev *Endpoint) {
	e := &b.endpoints[slot]
	e.Endpoint = *ev
	e.limits = ev.Limits.Merge(e.limits)
	b.view.ID[slot], b.view.Connector[slot], b.view.Told[slot] = ev.Endpoint, ev.Connector, ev.Step
	b.deps.Perf.Add(slot, ev.Variant, ev.Step, e.limits)
	b.deps.KV.SetCapacity(slot, e.limits.KVTokens)
	b.deps.KV.SetLinks(slot, ev.Links)
	b.deps.Wires.Add(slot, ev.Wire)
	b.deps.KV.SetStore(slot, ev.Role == fleet.RoleStore)
}

// drop takes an endpoint out of the table. Requests there are sent elsewhere or
// refused when their leg reports the failure; until then they stay in the
// ledger without an endpoint.
func (b *Brain) drop(slot int, out []Action) []Action {
	for _, r := range b.requests {
		if r.slot == slot {
			r.slot, r.job, r.cache, r.prefill.owes = lost, perf.Job{}, kv.Ticket{}, false
		}
		if r.prefill.slot == slot {
			r.prefill.slot, r.prefill.job, r.prefill.cache = lost, perf.Job{}, kv.Ticket{}
		}
		if r.prefill.from == slot {
			r.prefill.from = route.NoSlot
		}
		if r.pull.from == slot {
			r.pull = noPull
		}
		for i, s := range r.encode.slots {
			if s == slot {
				r.encode.slots[i] = lost
			}
		}
	}
	b.deps.Wires.Remove(slot)
	b.deps.KV.Remove(slot)
	b.tellLeft(slot)
	b.deps.Health.Remove(slot)
	b.deps.Perf.Remove(slot)
	delete(b.slots, b.endpoints[slot].Endpoint.Endpoint)
	b.endpoints[slot] = endpoint{}
	b.bar()
	return out
}

// tellLeft tells policies that keep something by slot that it is void.
func (b *Brain) tellLeft(slot int) {
	for _, p := range [...]route.Policy{b.deps.Policy, b.deps.Shadow} {
		if l, ok := p.(route.Leaver); ok {
			l.Leave(slot)
		}
	}
}

func (b *Brain) freeSlot() int {
	for i := range b.endpoints {
		if !b.endpoints[i].present {
			return i
		}
	}
	b.endpoints = append(b.endpoints, endpoint{})
	b.grow(len(b.endpoints))
	return len(b.endpoints) - 1
}

// grow makes the per-slot arrays of a decision n long, no shorter than they are.
func (b *Brain) grow(n int) {
	v := &b.view
	v.ID, v.InFlight = grown(v.ID, n), grown(v.InFlight, n)
	v.Backlog, v.Active = grown(v.Backlog, n), grown(v.Active, n)
	v.KVTokens, v.Cached, v.Matched = grown(v.KVTokens, n), grown(v.Cached, n), grown(v.Matched, n)
	v.Cache = grown(v.Cache, n)
	v.Adapter = grown(v.Adapter, n)
	v.Step, v.Told, v.Load = grown(v.Step, n), grown(v.Told, n), grown(v.Load, n)
	v.Connector, v.Wire = grown(v.Connector, n), grown(v.Wire, n)
	v.Asked, v.Busy = grown(v.Asked, n), grown(v.Busy, n)
	v.Barred = grown(v.Barred, n)
	v.Gauges, v.SampleAge = grown(v.Gauges, n), grown(v.SampleAge, n)
	b.plan.Score, b.shadow.plan.Score = grown(b.plan.Score, n), grown(b.shadow.plan.Score, n)
	b.verdict = grown(b.verdict, n)
}

// grown returns s with length n. Endpoints come one by one: it makes room ahead.
func grown[T any](s []T, n int) []T { return append(s, make([]T, n-len(s))...) }

// at returns the slot of an endpoint that ev's sender believed to have
// generation gen, or false when that process is gone.
func (b *Brain) at(id fleet.EndpointID, gen fleet.Gen) (int, bool) {
	slot, ok := b.slots[id]
	return slot, ok && b.endpoints[slot].Gen == gen
}

func (b *Brain) onSample(ev *Sample, out []Action) []Action {
	slot, ok := b.at(ev.Endpoint, ev.Gen)
	if !ok {
		return out
	}
	if ev.Failure != fleet.FailNone {
		// A metrics page that is slow, missing or odd says nothing of serving; a
		// process that cannot be reached does.
		if ev.Failure == fleet.FailConnect {
			out = b.blame(slot, ev.Failure, out)
		}
		return out
	}
	e := &b.endpoints[slot]
	if e.sampled && ev.Taken < e.sample.Taken {
		return out // overtaken by a younger one
	}
	e.sample, e.sampled = *ev, true
	e.adapters.Told(&ev.Adapters)
	g := ev.Gauges
	if g.Known.Has(fleet.KnownRunning | fleet.KnownWaiting) {
		// Requests that end between the reading and now would look like somebody
		// else's: compare with the most that we had there since the last sample.
		e.external = max(g.Running+g.Waiting-e.peak, 0)
	}
	e.peak = e.inFlight
	if g.Known.Has(fleet.KnownKVCapacity) && e.Limits.KVTokens == 0 {
		e.limits.BlockTokens = g.KVBlock
		if kvTokens := fleet.Tokens(g.KVBlocks) * g.KVBlock; kvTokens != e.limits.KVTokens {
			e.limits.KVTokens = kvTokens
			b.deps.Perf.SetLimits(slot, e.limits)
			b.deps.KV.SetCapacity(slot, kvTokens)
		}
	}
	return b.pump(out)
}

func (b *Brain) onServes(ev *Serves, out []Action) []Action {
	slot, ok := b.at(ev.Endpoint, ev.Gen)
	if !ok {
		return out
	}
	e := &b.endpoints[slot]
	e.serves = append(make([]fleet.Adapter, 0, len(ev.Adapters)), ev.Adapters...)
	slices.Sort(e.serves)
	return b.pump(out)
}

func (b *Brain) onKV(ev *KV) {
	slot, ok := b.at(ev.Endpoint, ev.Gen)
	if !ok {
		return
	}
	b.deps.KV.Apply(b.now, slot, &ev.Update)
	if u := &ev.Update; (u.Ended || u.Whole) && clears(u.Changes) {
		// Not for want of events, but since the cache is empty: so is the history.
		b.deps.KV.Doubt(slot)
	}
}

func clears(changes []kv.Change) bool {
	return slices.ContainsFunc(changes, func(c kv.Change) bool { return c.Kind == kv.ChangeClear })
}

// has reports whether an endpoint has told that it answers to an adapter.
func (e *endpoint) has(a fleet.Adapter) bool {
	_, ok := slices.BinarySearch(e.serves, a)
	return ok
}

// anyHas reports whether some endpoint has told that it answers to an adapter.
func (b *Brain) anyHas(a fleet.Adapter) bool {
	for i := range b.endpoints {
		if b.endpoints[i].present && b.endpoints[i].has(a) {
			return true
		}
	}
	return false
}

// lacks reports whether r's adapter is not to be looked for at e: it has told
// so, or it has not told yet while another has.
func (b *Brain) lacks(e *endpoint, r *request) bool {
	return r.Adapter != fleet.NoAdapter && !r.Loadable && !e.has(r.Adapter) && (e.serves != nil || b.adapterKnown)
}

func (b *Brain) onProbed(ev *Probed, out []Action) []Action {
	slot, ok := b.at(ev.Endpoint, ev.Gen)
	if !ok {
		return out
	}
	if b.deps.Health.Probed(b.now, slot, ev.OK) {
		out = b.tellFitness(slot, fleet.FailNone, out)
		// What returns after a failure may be a new process: believe nothing cached.
		b.deps.KV.Doubt(slot)
		b.endpoints[slot].adapters.Clear()
		b.endpoints[slot].images.Clear()
	}
	return b.pump(out)
}

// blame records a failure against an endpoint.
func (b *Brain) blame(slot int, kind fleet.Failure, out []Action) []Action {
	if b.deps.Health.Failure(b.now, slot, kind) {
		out = b.tellFitness(slot, kind, out)
	}
	return out
}

// fitness is an endpoint's health as it is told: one that only computes prompts for
// others is no fitter than its KV's way to them.
func (b *Brain) fitness(slot int) health.State {
	state, lends := b.deps.Health.State(slot), b.deps.Health.Lends(slot)
	if b.endpoints[slot].Role.Decodes() || state == health.Ejected || lends == health.Healthy {
		return state
	}
	return lends
}

// nextChance is when an ejected endpoint may be found fit, Never when it is not
// ejected.
func (b *Brain) nextChance(slot int) fleet.Time {
	switch {
	case b.fitness(slot) != health.Ejected:
		return fleet.Never
	case b.deps.Health.State(slot) == health.Ejected:
		return b.deps.Health.NextProbe(slot)
	}
	return b.deps.Health.NextTrial(slot)
}

// tellLender tells of an endpoint's fitness to hand KV over where that is its
// fitness.
func (b *Brain) tellLender(slot int, cause fleet.Failure, out []Action) []Action {
	if b.endpoints[slot].Role.Decodes() {
		return out
	}
	return b.tellFitness(slot, cause, out)
}

func (b *Brain) tellFitness(slot int, cause fleet.Failure, out []Action) []Action {
	e := &b.endpoints[slot]
	return append(out, Action{
		Kind: Fitness, Endpoint: e.Endpoint.Endpoint, Gen: e.Gen, Health: b.fitness(slot), Cause: cause,
	})
}

func (b *Brain) sampleAge(e *endpoint) time.Duration {
	if !e.sampled {
		return neverSampled
	}
	return max(b.now.Sub(e.sample.Taken), 0)
}

func (b *Brain) onTick(out []Action) []Action {
	for i := range b.endpoints {
		e := &b.endpoints[i]
		if e.present && b.deps.Health.Due(b.now, i) {
			out = append(out, Action{Kind: Probe, Endpoint: e.Endpoint.Endpoint, Gen: e.Gen})
		}
		if e.present && b.deps.Health.Retry(b.now, i) {
			out = b.tellLender(i, fleet.FailNone, out)
		}
	}
	for {
		it, ok := b.deps.Queue.Expired(b.now)
		if !ok {
			return b.pump(out)
		}
		r := b.requests[it.Req]
		b.tally.Expired++
		out = append(out, Action{
			Kind: Refuse, Req: r.Req, Refusal: fleet.RefuseExpired, RetryAfter: b.deps.Queue.RetryAfter(b.now),
		})
		b.forget(r)
	}
}
