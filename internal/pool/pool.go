// Package pool is the brain of one pool: events in, actions out. It keeps two
// tables, requests and endpoints, and lets the deciders decide: flow when,
// route where, health who is fit, kv what is cached. It has no clock, no
// goroutine and no formula of its own, so the live gateway and the simulator
// drive the same code, and a journal of its events replays to the same actions.
package pool

import (
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/stat"
)

// Brain decides for one pool. It is not safe for concurrent use: the shell
// around it holds a lock.
type Brain struct {
	config Config
	deps   Deps
	rand   *stat.Rand
	shadow shadow

	requests  map[fleet.ReqID]*request
	endpoints []endpoint // by slot; slots of endpoints that left are reused
	slots     map[fleet.EndpointID]int

	now   fleet.Time
	tally Tally

	free     []*request // request records for reuse
	view     route.View
	query    route.Query
	plan     route.Plan
	order    []int           // scratch of rank
	encoders []route.Encoder // scratch of sendImage
	verdict  []fleet.Verdict
	// adapterKnown says that some endpoint has told that it has the adapter of the
	// request being judged.
	adapterKnown bool
	roomy        bool              // some endpoint is known to hold the request being judged
	records      []*fleet.Decision // one per dispatch of the present step, reused by the next
	used         int
}

// Tally counts requests by what became of them:
// Arrived = Queued + InFlight + Done + Shed + Expired + Failed + Cancelled.
type Tally struct {
	Arrived, Queued, InFlight uint64
	Done                      uint64 // answered as the engine meant it
	Shed                      uint64 // refused without having been sent
	Expired                   uint64 // waited too long
	Failed                    uint64 // sent, and not answered
	Cancelled                 uint64 // the client left
	Retried                   uint64 // attempts after the first; not part of the sum
	Split, Whole              uint64 // attempts dispatched to two endpoints, and to one; not part of the sum
}

// request is one row of the request table: a request that has arrived and not
// ended.
type request struct {
	Arrive
	arrived  fleet.Time
	attempts int
	slot     int // where it is dispatched; -1 while it waits
	tried    []fleet.EndpointID
	unsure   [2][]fleet.EndpointID // of those, where the other of two may have failed: those that answered, and those that computed the prompt
	alone    bool                  // no two endpoints serve it any more
	narrow   bool                  // some endpoint could never serve it, when last judged
	job      perf.Job              // its entry in the book of speeds while it is dispatched
	cache    kv.Ticket             // and in the book of caches
	prefill  prefill
	pull     pull
	encode   encode
	failure  fleet.Failure
}

// prefill is the leg of a request that computes its prompt for another endpoint.
type prefill struct {
	slot  int // NoSlot when there is none, or it is over
	job   perf.Job
	cache kv.Ticket
	from  int          // where the prompt was computed; NoSlot unless its KV moves
	moved fleet.Tokens // of it, those that move
	ended fleet.Time   // when it was computed
	alone bool         // nothing stood before it on the wire
	told  bool         // that it has arrived
	// expected is how long the move was predicted to take.
	expected time.Duration
	owes     bool // the endpoint that answers has been promised its context
}

// endpoint is one row of the endpoint table.
type endpoint struct {
	Endpoint // as last told; Change is its state
	present  bool
	limits   fleet.Limits // told, completed by what its gauges say
	sample   Sample
	sampled  bool
	adapters kv.Adapters     // believed loaded
	serves   []fleet.Adapter // adapters it answers to, ascending; nil before it has told
	images   kv.Images
	barred   []fleet.EndpointID // whose KV it cannot use, as last told
	external int                // requests seen in gauges that are not ours
	peak     int                // most of ours in flight since the last sample

	inFlight int
	lending  int // requests whose KV comes from it, on its way or not computed yet

	dispatched, failed, shadowed uint64
}

// New returns a brain with no endpoints. Equal configurations, dependencies in
// equal state and equal seeds give equal brains.
func New(c Config, d Deps, seed uint64) *Brain {
	return &Brain{
		config: c, deps: d, rand: stat.NewRand(seed, "route"), shadow: shadow{rand: stat.NewRand(seed, "shadow")},
		requests: map[fleet.ReqID]*request{}, slots: map[fleet.EndpointID]int{},
	}
}

// Step tells the brain of ev at time now, which must not fall, and appends the
// actions that follow to out. It keeps nothing of ev.
func (b *Brain) Step(now fleet.Time, ev Event, out []Action) []Action {
	b.now = max(b.now, now)
	b.used = 0
	switch ev := ev.(type) {
	case *Configure:
		out = b.onConfigure(ev, out)
	case *Endpoint:
		out = b.onEndpoint(ev, out)
	case *Sample:
		out = b.onSample(ev, out)
	case *Serves:
		out = b.onServes(ev, out)
	case *KV:
		b.onKV(ev)
	case *Barred:
		b.onBarred(ev)
	case *Probed:
		out = b.onProbed(ev, out)
	case *Encoded:
		out = b.onEncoded(ev, out)
	case *Arrive:
		out = b.onArrive(ev, out)
	case *Leg:
		out = b.onLeg(ev, out)
	case *Gone:
		out = b.onGone(ev, out)
	case *Tick:
		out = b.onTick(out)
	}
	return out
}

// Wake returns when Step(now, Tick) is due next, Never if nothing is pending.
func (b *Brain) Wake() fleet.Time {
	return min(b.deps.Queue.Deadline(), b.deps.Health.NextOfAll())
}

// Tally returns the counts so far.
func (b *Brain) Tally() Tally {
	t := b.tally
	t.Queued = uint64(b.deps.Queue.Len())
	t.InFlight = uint64(len(b.requests)) - t.Queued
	return t
}

// View fills dst with the state of every endpoint, in order of id, reusing its
// memory.
func (b *Brain) View(dst *fleet.Snapshot) {
	dst.At, dst.Queued = b.now, b.deps.Queue.Len()
	dst.Endpoints = dst.Endpoints[:0]
	for i := range b.endpoints {
		e := &b.endpoints[i]
		if !e.present {
			continue
		}
		backlog, active := b.deps.Perf.Backlog(i)
		s := fleet.EndpointState{
			ID: e.Endpoint.Endpoint, Gen: e.Gen, Role: e.Role, Limits: e.limits, Draining: e.Change == EndpointDrain,
			Health: b.fitness(i).String(), InFlight: e.inFlight, External: e.external, Backlog: backlog, Active: active, Speed: b.speed(i),
			Gauges: e.sample.Gauges, SampleAge: b.sampleAge(e), Cached: b.deps.KV.Held(i), Cache: b.deps.KV.Standing(i),
			Requests: e.dispatched, Failures: e.failed, Shadowed: e.shadowed,
		}
		link, asked := b.deps.Wires.Look(b.now, i)
		s.Wire, s.Asked, s.Barred = link, seconds(asked), len(e.barred)
		if l, ok := b.deps.Policy.(route.Leaner); ok && e.Role == fleet.RoleBoth && e.Connector != 0 {
			s.Lean = l.Leans(i)
		}
		if e.Role == fleet.RoleBoth && b.deps.Health.Lends(i) == health.Ejected {
			s.Lean = fleet.RoleDecode
		}
		if at := b.nextChance(i); at != fleet.Never {
			s.EjectedFor = max(at.Sub(b.now), 0)
		}
		dst.Endpoints = append(dst.Endpoints, s)
	}
	slices.SortFunc(dst.Endpoints, func(a, b fleet.EndpointState) int { return int(a.ID) - int(b.ID) })
}

// Caches returns what is believed of the endpoints' caches, for those who check
// or copy it; only Step changes it.
func (b *Brain) Caches() *kv.Book { return b.deps.KV }

// Slot returns the slot of an endpoint, and false when it is not known.
func (b *Brain) Slot(id fleet.EndpointID) (int, bool) {
	slot, ok := b.slots[id]
	return slot, ok
}

// Look tells what each endpoint is believed to have of a prompt.
func (b *Brain) Look(now fleet.Time, p *kv.Prompt, tell func(fleet.EndpointID, fleet.Cached)) {
	b.deps.KV.Look(max(b.now, now), p, b.view.Cache)
	for i := range b.endpoints {
		if b.endpoints[i].present {
			tell(b.endpoints[i].Endpoint.Endpoint, b.view.Cache[i])
		}
	}
}

// Requests returns how many requests are at an endpoint: ours, and by its gauges
// those of others. An endpoint that is not known has none.
func (b *Brain) Requests(id fleet.EndpointID) (ours, others int) {
	slot, ok := b.slots[id]
	if !ok {
		return 0, 0
	}
	return b.endpoints[slot].inFlight, b.endpoints[slot].external
}

// speed is what is believed of a slot's speed, for people.
func (b *Brain) speed(slot int) fleet.Speed {
	s := b.deps.Perf.Standing(slot)
	return fleet.Speed{
		Known: s.Step.Known(), Base: s.Step.Base, PerSeq: s.Step.PerSeq, PerKV: s.Step.PerKV, PerPrompt: s.Step.PerPrompt, PerPair: s.Step.PerPair,
		Experts: s.Step.Experts, PerRequest: s.Step.PerRequest,
		Factor: s.Factor, FactorErr: s.FactorErr, Slow: s.Slow, Lessons: s.Lessons, Drifts: s.Drifts, TTFTError: s.TTFTError, TPOTError: s.TPOTError,
		Saturation: s.Saturation, Regime: s.Regime.String(),
	}
}
