// Package sim runs the very brain that serves live against simulated engines in
// virtual time. The engines run on enginesim.Physics, which the brain cannot
// reach: it is told what a gateway would be told, as late as a gateway would be
// told it.
package sim

import (
	"errors"
	"fmt"
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// Replica is one simulated engine and what the gateway is told of it.
type Replica struct {
	Physics enginesim.Physics // its truth
	Limits  fleet.Limits      // KVTokens, MaxSeqs and BudgetTokens must be set
	Variant uint64            // replicas of one variant are believed to be equals
	Step    perf.Step         // belief before anything is measured, zero for none
	Role    fleet.Role
	// Connector is the same, and above 0, for replicas that can exchange KV.
	Connector uint64
	Pulls     bool              // they fetch from each other's caches, too
	Wire      Wire              // its truth, which must be set beside a Connector
	Leaves    fleet.Link        // belief of it
	Offload   enginesim.Offload // memory below the GPU's
	Links     fleet.Links       // belief of how fast KV comes from there
	// Set above 0 names the lockstep set whose rank this replica is. Its ranks
	// share a clock, and die and start together.
	Set int
}

// Config is one simulated fleet and its gateways.
type Config struct {
	Replicas []Replica
	// Gateways is how many gateways there are; 0 is one. Each has a brain with
	// randomness, a ledger and readings of its own, and sees what the others have
	// sent only in gauges. A load balancer that knows nothing of requests deals them
	// out evenly at random, so that the turns of a conversation come through any.
	Gateways int
	Pool     pool.Config // its policy may be Clairvoyant
	Seed     uint64
	Scrape   time.Duration // between two readings of an engine's gauges; 0 never reads them
	Hop      time.Duration // one way between gateway and engine
	Faults   []Fault       // in order of time
	Events   *Events       // what engines publish of their caches; nil for nothing
	Targets  Targets
	// Pause above 0 lets a stage of the load begin so long after the last request
	// of the stage before it has ended. The requests' times then count from the
	// beginning of their stage. Stages must not wait for answers of others.
	Pause time.Duration
	// Timeout is how long clients wait for the end of an answer; 0 is for ever.
	Timeout time.Duration
	Ended   func(Outcome) // hears of each request at its end; nil for nobody
	// Tokens has every token looked at as it comes, for Result.ITL; it takes a
	// simulation several times as long.
	Tokens bool
	// Journal, when set, records the first brain's life as a gateway would. Its
	// writer keeps the first error.
	Journal *pool.Recorder
}

// Targets are what a request must meet to be good; zero is no target.
type Targets struct{ TTFT, TPOT, E2E time.Duration }

// Validate returns what is wrong with c.
func (c Config) Validate() error {
	var errs []error
	if len(c.Replicas) == 0 {
		errs = append(errs, errors.New("replicas: must be at least 1"))
	}
	for i, r := range c.Replicas {
		if r.Physics == nil || r.Limits.KVTokens < 1 || r.Limits.MaxSeqs < 1 || r.Limits.BudgetTokens < 1 {
			errs = append(errs, fmt.Errorf("replicas[%d]: physics, KV tokens, sequences and budget must be set", i))
		}
		if r.Connector != 0 && !(r.Wire.Bandwidth > 0 && r.Wire.KVBytes > 0 && r.Wire.Latency >= 0) {
			errs = append(errs, fmt.Errorf("replicas[%d].wire: bandwidth and bytes must be above 0 where there is a connector", i))
		}
	}
	if c.Scrape < 0 || c.Hop < 0 || c.Pause < 0 || c.Timeout < 0 {
		errs = append(errs, errors.New("scrape, hop, pause and timeout must not be negative"))
	}
	if c.Gateways < 0 {
		errs = append(errs, fmt.Errorf("gateways: must not be negative, is %d", c.Gateways))
	}
	errs = append(errs, c.validateFaults()...)
	if err := c.Events.validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, c.known().Validate()...)...)
}

// The kinds of happenings, in the order in which those of one instant happen.
const (
	kindFault = iota
	kindReady
	kindEngine
	kindLetter
	kindMoved
	kindLeg
	kindGone
	kindArrival
	kindScrape
	kindProbe
	kindWake
	kindTimeout
	kindAudit
)

// run is a simulation under way.
type run struct {
	c        Config
	gateways []*gateway
	heap     heap
	engines  []*engine
	now      fleet.Time
	out      []pool.Action
	reports  []enginesim.Output
	chain    []kv.Key // scratch of arrive

	lines       []*line // by pair; empty without events
	letters     []letter
	freeLetters []int
	mishaps     *stat.Rand
	own         map[uint64]kv.Key // gateways' keys of engines' blocks, while they differ and are audited
	tokens      []uint32          // scratch
	blocks      []kv.Key
	engineKeys  []kv.EngineKey

	requests table
	waiting  map[int][]int // by the request whose answer they wait for
	source   workload.Source
	ahead    int // the request that feed has foreseen
	stage    int // with Pause: the stage under way, when it began, and the first request of the next
	began    fleet.Time
	held     *workload.Request
	drained  bool
	res      *Result
	rand     *stat.Rand
}

// engine is a replica's process, or the place of one that is not there.
type engine struct {
	*enginesim.Engine // nil while it is down
	physics           enginesim.Physics
	typical           enginesim.Physics // physics without noise
	flow              flow              // with Clairvoyant
	throttle          *throttle         // within physics; nil when no fault slows it down
	told              fleet.Gen         // by which the gateways know it; 0 before it is first added
	listed            bool              // the gateways have it
	leaving           bool              // it finishes what it has, and then goes
	mute              bool
	ready             fleet.Time // when it has started; Never when it is not about to
	wake              fleet.Time
	members           []int // the replicas that share its clock, itself among them; the first keeps the wake
	has               map[fleet.ReqID]struct{}
	lost              uint64 // preemptions of processes that are gone
	events            publisher
	wireFree          fleet.Time // when what has been asked of its link will have left
}

// Run simulates a load to its end. Equal configurations and loads give equal
// results.
func Run(c Config, load workload.Source) (*Result, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	r := &run{c: c}
	if err := r.openGateways(); err != nil {
		return nil, err
	}
	return r.all(load)
}

// all runs a load through the gateways.
func (r *run) all(load workload.Source) (*Result, error) {
	c := &r.c
	r.waiting, r.source, r.requests = map[int][]int{}, load, newTable()
	r.res, r.rand, r.mishaps = newResult(len(c.Replicas)), stat.NewRand(c.Seed, "sim"), stat.NewRand(c.Seed, "mishaps")
	r.openLines()
	for i := range c.Replicas {
		r.engines = append(r.engines, c.newEngine(i))
	}
	for i := range c.Replicas {
		if en := r.engines[i]; en.members[0] == i && !c.addedLater(en.members) {
			if err := r.boot(i); err != nil {
				return nil, err
			}
		}
		for g := range r.gateways {
			if c.Scrape > 0 {
				r.push(fleet.Time(r.rand.Float64()*float64(c.Scrape)), kindScrape, r.pair(g, i))
			}
		}
	}
	for i, f := range c.Faults {
		r.push(fleet.Time(f.At), kindFault, i)
	}
	r.feed()
	for r.requests.open() > 0 || !r.drained {
		e, ok := r.heap.pop()
		if !ok {
			return nil, fmt.Errorf("sim: %d requests are open and nothing happens any more", r.requests.open())
		}
		r.now = e.at
		if err := r.happen(e); err != nil {
			return nil, err
		}
	}
	r.finish()
	return r.res, nil
}

func (r *run) push(at fleet.Time, kind uint8, what int) {
	r.heap.push(event{at: at, kind: kind, what: what})
}

func (r *run) happen(e event) error {
	switch e.kind {
	case kindFault:
		return r.fault(&r.c.Faults[e.what])
	case kindReady:
		if en := r.engines[e.what]; en.ready == e.at {
			return r.boot(e.what)
		}
	case kindEngine:
		if en := r.engines[e.what]; en.wake == e.at {
			en.wake = fleet.Never
			r.advance(e.what)
		}
	case kindLeg:
		r.step(e.what, &e.leg)
	case kindGone:
		r.gone(e.what)
	case kindArrival:
		r.arrive(e.what)
	case kindScrape:
		r.scrape(e.what)
	case kindProbe:
		g, k := r.unpair(e.what)
		en := r.engines[k]
		r.step(g, &pool.Probed{Endpoint: endpointID(k), Gen: en.told, OK: en.Engine != nil})
	case kindWake:
		if gw := r.gateways[e.what]; gw.wake == e.at {
			gw.wake = fleet.Never
			r.step(e.what, &pool.Tick{})
		}
	case kindTimeout:
		r.giveUp(e.what)
	case kindLetter:
		r.deliver(e.what)
	case kindMoved:
		r.moved(e.what)
	case kindAudit:
		r.audit()
	}
	return nil
}

func endpointID(i int) fleet.EndpointID { return fleet.EndpointID(i + 1) }

// feed takes requests off the source up to the next that waits for nobody, which
// it foresees; the others come when the answer they wait for has ended.
func (r *run) feed() {
	for {
		w, ok := r.source.Next()
		if !ok {
			r.drained = true
			return
		}
		if r.c.Pause > 0 && w.Stage != r.stage {
			if r.held = &w; r.requests.open() == 0 {
				r.nextStage(r.now)
			}
			return
		}
		if r.foresee(w) {
			return
		}
	}
}

// foresee takes a request in and reports whether it waits for nobody.
func (r *run) foresee(w workload.Request) bool {
	q := r.requests.add()
	q.Request, q.gateway = w, r.gatewayOf(q.index)
	if w.After >= 0 && w.After < q.index && r.requests.get(w.After) != nil {
		r.waiting[w.After] = append(r.waiting[w.After], q.index)
		return false
	}
	r.ahead = q.index
	r.push(max(r.began.Add(w.At), r.now), kindArrival, q.index)
	return true
}

// nextStage begins the stage of the request that was held back, after a pause.
func (r *run) nextStage(ended fleet.Time) {
	w := *r.held
	r.held, r.stage, r.began = nil, w.Stage, ended.Add(r.c.Pause)
	if !r.foresee(w) {
		r.feed()
	}
}

// arrive brings request i before its gateway's brain, and looks for the one after
// it.
func (r *run) arrive(i int) {
	q := r.requests.get(i)
	q.start = r.now
	if r.c.Timeout > 0 {
		r.push(r.now.Add(r.c.Timeout), kindTimeout, i)
	}
	r.chain = appendChain(r.chain[:0], q.Prompt, int(r.c.Pool.Index.KeyTokens))
	r.res.Arrived++
	r.step(q.gateway, &pool.Arrive{
		Req: reqID(i), Prompt: fleet.Tokens(max(q.Input, 1)), Chain: r.chain, KeyTokens: float64(r.c.Pool.Index.KeyTokens), Blocks: r.blocksOf(q),
		Terms: fleet.Terms{SLO: fleet.SLO{TTFT: r.c.Targets.TTFT, TPOT: r.c.Targets.TPOT}},
	})
	if i == r.ahead {
		r.feed()
	}
}

func reqID(i int) fleet.ReqID    { return fleet.ReqID(i + 1) }
func indexOf(id fleet.ReqID) int { return int(id) - 1 }

// AppendBlocks appends to keys those by which simulated engines know the full
// blocks of a prompt.
func AppendBlocks(keys []kv.Key, prompt []workload.Segment) []kv.Key {
	return appendChain(keys, prompt, int(enginesim.BlockTokens))
}

// appendChain appends to keys those of a prompt's full blocks of so many tokens.
func appendChain[K ~uint64](keys []K, prompt []workload.Segment, block int) []K {
	prev := uint64(1)
	for _, s := range prompt {
		for at := 0; at+block <= s.Tokens; at += block {
			prev = stat.Mix64(prev*31 + s.ID*1_000_003 + uint64(at))
			keys = append(keys, K(prev))
		}
	}
	return keys
}
