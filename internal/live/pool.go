// Package live runs a pool's brain on the wall clock: it holds the lock, reads
// the clock, keeps the journal, sets the timer and hands each action to whom it
// concerns. It decides nothing. It is to pool.Brain what Node is to RawNode in
// etcd's raft.
package live

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/pool"
)

// Target is an endpoint as the outside world knows it.
type Target struct {
	Name   string // unique within the pool
	URL    string // base URL, without a path
	Role   fleet.Role
	Limits fleet.Limits // what configuration says; zero fields are learnt
	// Variant is the same for endpoints that should be equals; 0 when nothing is
	// told of it.
	Variant uint64
	Step    perf.Step   // step time believed before any is measured; zero when unknown
	Links   fleet.Links // how fast KV is believed to come from slower tiers; zero when unknown
	Feed    Feed
	Rank    Rank
	// Transfer is how it hands KV over to others; the zero Transfer is not at all.
	Transfer Transfer
	Wire     fleet.Link // how fast, as is believed
}

// Transfer is how an endpoint hands the KV of a prompt over to another.
type Transfer struct {
	Connector string // as engine.ParseConnector knows it
	Pulls     bool   // it fetches from others' caches what it lacks of a prompt
	// Port is where others find its KV, and Notify the second port that some
	// connectors have; 0: the connector's own.
	Port, Notify int
	// HitThreshold is the share of a prompt from which on the endpoint that answers
	// computes the rest itself, where it can be asked; 0 does not ask.
	HitThreshold float64
}

// Rank says which data-parallel rank of its server an endpoint is; the zero Rank
// is a server of one.
type Rank struct {
	Of     int  // ranks there are
	Index  int  // from 0
	Shared bool // the URL leads to all of them, and requests must name theirs
}

func (t Target) sameProcess(o Target) bool { return t.URL == o.URL && t.Rank == o.Rank }

// Endpoint is a Target the pool has taken on.
type Endpoint struct {
	Target
	ID  fleet.EndpointID
	Gen fleet.Gen
}

// Options are what a Pool needs besides its configuration. Only Config is
// required.
type Options struct {
	Name   string // of the pool, for logs and metrics
	Config pool.Config
	Seed   uint64
	Log    *slog.Logger
	// Journal records every step when set. Its errors are logged once; serving
	// goes on.
	Journal *pool.Recorder
	// Probe is asked to find out whether an endpoint is fit; it must not block
	// and must call Probed once. Without it every ejected endpoint whose time has
	// come is let back on trial, and its next request is the probe.
	Probe func(Endpoint)
	// Fitness is told when an endpoint's health changes; it must not block.
	Fitness func(e Endpoint, state health.State, cause fleet.Failure)
}

// Pool is a brain in service. All methods are safe for concurrent use.
type Pool struct {
	options Options
	start   time.Time

	asked     atomic.Int32 // who wait for mu with more hurry than feeds have
	encoders  atomic.Int32 // endpoints that encode images
	mu        sync.Mutex
	brain     *pool.Brain
	out       []pool.Action
	tickets   map[fleet.ReqID]*Ticket
	endpoints map[fleet.EndpointID]Endpoint
	byName    map[string]fleet.EndpointID
	lastReq   fleet.ReqID
	lastID    fleet.EndpointID
	timer     *time.Timer
	wake      fleet.Time // what timer is set to
	closed    bool
	done      chan struct{} // closed with the pool
	journaled bool          // false once the journal has failed
}

// NewPool returns a pool without endpoints. Close must be called.
func NewPool(o Options) (*Pool, error) {
	deps, err := pool.Assemble(o.Config)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", o.Name, err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Pool{
		options: o, start: time.Now(), brain: pool.New(o.Config, deps, o.Seed),
		tickets: map[fleet.ReqID]*Ticket{}, endpoints: map[fleet.EndpointID]Endpoint{}, byName: map[string]fleet.EndpointID{},
		wake: fleet.Never, journaled: o.Journal != nil, done: make(chan struct{}),
	}
	p.timer = time.AfterFunc(time.Hour, func() { p.step(&pool.Tick{}) })
	p.timer.Stop()
	return p, nil
}

// Name returns the pool's name.
func (p *Pool) Name() string { return p.options.Name }

// Close stops the timer. Attempts under way may end, but their tickets, and
// those that wait, are refused as draining instead of getting another order.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.closed = true
		p.timer.Stop()
		close(p.done)
	}
}

// Cut closes the pool and cancels the attempts under way, so that their clients
// are told at once.
func (p *Pool) Cut() {
	p.Close()
	p.mu.Lock()
	var cancels []func()
	for _, t := range p.tickets {
		if t.cancel != nil {
			cancels = append(cancels, t.cancel)
		}
	}
	p.mu.Unlock()
	run(cancels)
}

// Now returns the present instant on the pool's clock.
func (p *Pool) Now() fleet.Time { return fleet.Time(time.Since(p.start)) }

// step tells the brain of ev and carries out what follows.
func (p *Pool) step(ev pool.Event) {
	p.lock()
	later := p.stepLocked(ev)
	p.mu.Unlock()
	run(later)
}

func run(later []func()) {
	for _, f := range later {
		f()
	}
}

// stepLocked steps the brain, unless the pool is closed, and returns what must
// be done without the lock.
func (p *Pool) stepLocked(ev pool.Event) (later []func()) {
	if p.closed {
		return nil
	}
	now := p.Now()
	p.out = p.brain.Step(now, ev, p.out[:0])
	if p.journaled {
		if err := p.options.Journal.Record(now, ev, p.out); err != nil {
			p.journaled = false
			later = append(later, func() { p.options.Log.Error("journal failed; recording stops, serving goes on", "err", err) })
		}
	}
	for i := range p.out {
		if f := p.actLocked(&p.out[i]); f != nil {
			later = append(later, f)
		}
	}
	if at := p.brain.Wake(); at != p.wake {
		p.wake = at
		if at == fleet.Never {
			p.timer.Stop()
		} else {
			p.timer.Reset(max(at.Sub(now), 0))
		}
	}
	if _, ok := ev.(*pool.Tick); ok && p.wake != fleet.Never {
		// The timer has fired: arm it even when the time it was set to stands.
		p.timer.Reset(max(p.wake.Sub(now), time.Millisecond))
	}
	return later
}

// actLocked carries out one action; what may take the lock again is returned.
func (p *Pool) actLocked(a *pool.Action) func() {
	switch a.Kind {
	case pool.Dispatch:
		t := p.tickets[a.Req]
		d := *a.Decision
		d.Candidates, d.Encoders = slices.Clone(d.Candidates), slices.Clone(d.Encoders)
		t.decisions = append(t.decisions, d)
		t.give(Order{Endpoint: p.endpoints[a.Endpoint], Prefill: p.endpoints[a.Prefill], Source: p.endpoints[a.Source], Pulled: d.Pulled, Encoders: p.named(d.Encoders), Attempt: a.Attempt})
	case pool.Encode:
		if t := p.tickets[a.Req]; t != nil {
			t.instead = p.endpoints[a.Endpoint]
		}
	case pool.Refuse:
		p.tickets[a.Req].give(Order{Refusal: a.Refusal, RetryAfter: a.RetryAfter})
	case pool.Cancel:
		if t := p.tickets[a.Req]; t != nil && t.cancel != nil {
			return t.cancel
		}
	case pool.Moved:
		if t := p.tickets[a.Req]; t != nil && t.moved != nil {
			tell, m := t.moved, Moved{Tokens: a.Tokens, Expected: a.Expected, Took: a.Took}
			return func() { tell(m) }
		}
	case pool.Probe:
		e := p.endpoints[a.Endpoint]
		if p.options.Probe == nil {
			return func() { p.Probed(e, true) }
		}
		return func() { p.options.Probe(e) }
	case pool.Fitness:
		e, state, cause := p.endpoints[a.Endpoint], a.Health, a.Cause
		if p.options.Fitness != nil {
			return func() { p.options.Fitness(e, state, cause) }
		}
	}
	return nil
}

// named returns the endpoints of ids.
func (p *Pool) named(ids []fleet.EndpointID) []Endpoint {
	var list []Endpoint
	for _, id := range ids {
		list = append(list, p.endpoints[id])
	}
	return list
}

// Configure replaces the pool's configuration, which must be valid.
func (p *Pool) Configure(c pool.Config) { p.step(&pool.Configure{Config: c}) }

// Sampled reports a reading of an endpoint's gauges.
func (p *Pool) Sampled(e Endpoint, taken fleet.Time, g fleet.Gauges, failure fleet.Failure) {
	p.SampledWith(e, taken, g, fleet.Adapters{}, failure)
}

// SampledWith is Sampled with the adapters that the endpoint said are at work.
func (p *Pool) SampledWith(e Endpoint, taken fleet.Time, g fleet.Gauges, a fleet.Adapters, failure fleet.Failure) {
	p.step(&pool.Sample{Endpoint: e.ID, Gen: e.Gen, Taken: taken, Gauges: g, Adapters: a, Failure: failure})
}

// Serves reports the adapters an endpoint answers to.
func (p *Pool) Serves(e Endpoint, adapters []fleet.Adapter) {
	p.step(&pool.Serves{Endpoint: e.ID, Gen: e.Gen, Adapters: adapters})
}

// Probed reports the answer to a probe.
func (p *Pool) Probed(e Endpoint, ok bool) {
	p.step(&pool.Probed{Endpoint: e.ID, Gen: e.Gen, OK: ok})
}

// Add takes on a new endpoint or changes the one of the same name. A changed
// URL or rank makes it another process: a new generation.
func (p *Pool) Add(t Target) Endpoint {
	e, later := p.add(t)
	run(later)
	return e
}

func (p *Pool) add(t Target) (Endpoint, []func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, known := p.byName[t.Name]
	e := Endpoint{Target: t, ID: id, Gen: 1}
	if !known {
		p.lastID++
		e.ID = p.lastID
	} else if e.Gen = p.endpoints[id].Gen; !p.endpoints[id].sameProcess(t) {
		e.Gen++
	}
	p.byName[t.Name] = e.ID
	p.endpoints[e.ID] = e
	p.countEncoders()
	return e, p.stepLocked(&pool.Endpoint{
		Endpoint: e.ID, Gen: e.Gen, Change: pool.EndpointUp, Role: t.Role, Limits: t.Limits, Variant: t.Variant, Step: t.Step, Links: t.Links,
		Wire: t.Wire, Connector: t.Transfer.number(), Pulls: t.Transfer.Pulls,
	})
}

// Drain gives an endpoint nothing new.
func (p *Pool) Drain(e Endpoint) {
	p.step(&pool.Endpoint{Endpoint: e.ID, Gen: e.Gen, Change: pool.EndpointDrain, Role: e.Role, Limits: e.Limits, Variant: e.Variant, Step: e.Step, Links: e.Links, Wire: e.Wire, Connector: e.Transfer.number(), Pulls: e.Transfer.Pulls})
}

// Remove forgets an endpoint, unless a newer process has taken its name.
func (p *Pool) Remove(e Endpoint) { run(p.remove(e)) }

func (p *Pool) remove(e Endpoint) []func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known, ok := p.endpoints[e.ID]; !ok || known.Gen != e.Gen {
		return nil
	}
	later := p.stepLocked(&pool.Endpoint{Endpoint: e.ID, Gen: e.Gen, Change: pool.EndpointGone})
	delete(p.byName, p.endpoints[e.ID].Name)
	delete(p.endpoints, e.ID)
	p.countEncoders()
	return later
}

// Endpoints returns the pool's endpoints in no particular order.
func (p *Pool) Endpoints() []Endpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Endpoint, 0, len(p.endpoints))
	for _, e := range p.endpoints {
		all = append(all, e)
	}
	return all
}

// EndpointName returns the name of an endpoint, "" for one that is gone.
func (p *Pool) EndpointName(id fleet.EndpointID) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.endpoints[id].Name
}

// View fills dst with the present state.
func (p *Pool) View(dst *fleet.Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.brain.View(dst)
	dst.At = p.Now()
}

// InFlight returns how many of our requests are at an endpoint.
func (p *Pool) InFlight(e Endpoint) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	ours, _ := p.brain.Requests(e.ID)
	return ours
}

// Busy reports whether requests are at an endpoint, ours or, by its gauges,
// somebody else's.
func (p *Pool) Busy(e Endpoint) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ours, others := p.brain.Requests(e.ID)
	return ours+others > 0
}

// Shadow returns how a shadow policy compares, and false without one.
func (p *Pool) Shadow() (pool.ShadowTally, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.brain.Shadow()
}

// Tally returns the request counts.
func (p *Pool) Tally() pool.Tally {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.brain.Tally()
}
