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
	// Set above 0 names the lockstep set whose rank this replica is. Its ranks
	// share a clock, and die and start together.
	Set int
}

// Fault is something that happens to a replica at a time.
type Fault struct {
	At      time.Duration
	Replica int
	Kind    FaultKind
}

// FaultKind is what happens.
type FaultKind uint8

// The kinds of fault.
const (
	Crash   FaultKind = iota // the process dies; its cache and its requests with it
	Restart                  // it serves again, with an empty cache
	Mute                     // its metrics cannot be read
	Unmute                   // they can again
)

// Config is one simulated fleet and its gateway.
type Config struct {
	Replicas []Replica
	Pool     pool.Config
	Seed     uint64
	Scrape   time.Duration // between two readings of an engine's gauges; 0 never reads them
	Hop      time.Duration // one way between gateway and engine
	Faults   []Fault       // in order of time
	Targets  Targets
	// Pause above 0 lets a stage of the load begin so long after the last request
	// of the stage before it has ended. The requests' times then count from the
	// beginning of their stage. Stages must not wait for answers of others.
	Pause time.Duration
	// Timeout is how long clients wait for the end of an answer; 0 is for ever.
	Timeout time.Duration
	Ended   func(Outcome) // hears of each request at its end; nil for nobody
	// Journal, when set, records the brain's life as a gateway would. Its writer
	// keeps the first error.
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
	}
	if c.Scrape < 0 || c.Hop < 0 || c.Pause < 0 || c.Timeout < 0 {
		errs = append(errs, errors.New("scrape, hop, pause and timeout must not be negative"))
	}
	for i, f := range c.Faults {
		if f.Replica < 0 || f.Replica >= len(c.Replicas) || f.At < 0 || i > 0 && f.At < c.Faults[i-1].At {
			errs = append(errs, fmt.Errorf("faults[%d]: must name a replica, and stand in order of time", i))
		}
	}
	return errors.Join(append(errs, c.Pool.Validate()...)...)
}

// The kinds of happenings, in the order in which those of one instant happen.
const (
	kindFault = iota
	kindEngine
	kindLeg
	kindArrival
	kindScrape
	kindProbe
	kindWake
	kindTimeout
)

// run is a simulation under way.
type run struct {
	c       Config
	brain   *pool.Brain
	heap    heap
	engines []*engine
	now     fleet.Time
	wake    fleet.Time
	out     []pool.Action
	reports []enginesim.Output

	requests []request
	waiting  map[int][]int // by the request whose answer they wait for
	source   workload.Source
	ahead    int // the request that feed has foreseen
	stage    int // with Pause: the stage under way, when it began, and the first request of the next
	began    fleet.Time
	held     *workload.Request
	drained  bool
	res      *Result
	rand     *stat.Rand
	open     int
}

// engine is a replica's process, or the place of one that is down.
type engine struct {
	*enginesim.Engine // nil while it is down
	gen               fleet.Gen
	mute              bool
	wake              fleet.Time
	members           []int // the replicas that share its clock, itself among them; the first keeps the wake
	has               map[fleet.ReqID]struct{}
	lost              uint64 // preemptions of processes that are gone
}

// request is one request of the workload and how far it has come.
type request struct {
	workload.Request
	start   fleet.Time
	sent    fleet.Time // when it was last dispatched
	first   fleet.Time // when the client saw its first token; 0 before
	attempt int
	replica int           // of the last dispatch
	cached  fleet.Tokens  // prompt tokens that the engine had
	ttft    time.Duration // predicted at its last dispatch; 0 unknown
	tpot    time.Duration
	ended   bool
	done    bool // the whole answer has come
}

// Run simulates a load to its end. Equal configurations and loads give equal
// results.
func Run(c Config, load workload.Source) (*Result, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	deps, err := pool.Assemble(c.Pool)
	if err != nil {
		return nil, err
	}
	r := &run{
		c: c, brain: pool.New(c.Pool, deps, c.Seed), wake: fleet.Never, waiting: map[int][]int{}, source: load,
		res: newResult(len(c.Replicas)), rand: stat.NewRand(c.Seed, "sim"),
	}
	for range c.Replicas {
		r.engines = append(r.engines, &engine{wake: fleet.Never, has: map[fleet.ReqID]struct{}{}})
	}
	for i := range c.Replicas {
		r.engines[i].members = c.members(i)
		if r.engines[i].members[0] == i {
			if err := r.boot(i); err != nil {
				return nil, err
			}
		}
		if c.Scrape > 0 {
			r.push(fleet.Time(r.rand.Float64()*float64(c.Scrape)), kindScrape, i)
		}
	}
	for i, f := range c.Faults {
		r.push(fleet.Time(f.At), kindFault, i)
	}
	r.feed()
	for r.open > 0 || !r.drained {
		e, ok := r.heap.pop()
		if !ok {
			return nil, fmt.Errorf("sim: %d requests are open and nothing happens any more", r.open)
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
		return r.fault(r.c.Faults[e.what])
	case kindEngine:
		if en := r.engines[e.what]; en.wake == e.at {
			en.wake = fleet.Never
			r.advance(e.what)
		}
	case kindLeg:
		r.step(&e.leg)
	case kindArrival:
		r.arrive(e.what)
	case kindScrape:
		r.scrape(e.what)
	case kindProbe:
		en := r.engines[e.what]
		r.step(&pool.Probed{Endpoint: endpointID(e.what), Gen: 1, OK: en.Engine != nil})
	case kindWake:
		if r.wake == e.at {
			r.wake = fleet.Never
			r.step(&pool.Tick{})
		}
	case kindTimeout:
		r.giveUp(e.what)
	}
	return nil
}

func endpointID(i int) fleet.EndpointID { return fleet.EndpointID(i + 1) }

// members returns the replicas that share replica i's clock.
func (c *Config) members(i int) []int {
	if c.Replicas[i].Set == 0 {
		return []int{i}
	}
	var all []int
	for k := range c.Replicas {
		if c.Replicas[k].Set == c.Replicas[i].Set {
			all = append(all, k)
		}
	}
	return all
}

// boot starts the process of replica i, and of those in its set.
func (r *run) boot(i int) error {
	members := r.c.members(i)
	configs := make([]enginesim.Config, len(members))
	for k, m := range members {
		rep := r.c.Replicas[m]
		configs[k] = enginesim.Config{
			Physics: rep.Physics, KVTokens: rep.Limits.KVTokens, MaxSeqs: rep.Limits.MaxSeqs, BudgetTokens: rep.Limits.BudgetTokens,
		}
	}
	var rank func(int) *enginesim.Engine
	if r.c.Replicas[i].Set > 0 {
		l, err := enginesim.NewLockstep(configs)
		if err != nil {
			return fmt.Errorf("replica %d: %w", i, err)
		}
		rank = l.Rank
	} else {
		e, err := enginesim.New(configs[0])
		if err != nil {
			return fmt.Errorf("replica %d: %w", i, err)
		}
		rank = func(int) *enginesim.Engine { return e }
	}
	for k, m := range members {
		rep, en := r.c.Replicas[m], r.engines[m]
		en.Engine = rank(k)
		if en.gen++; en.gen == 1 {
			r.step(&pool.Endpoint{Endpoint: endpointID(m), Gen: 1, Limits: rep.Limits, Variant: rep.Variant, Step: rep.Step})
		}
	}
	return nil
}

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
			if r.held = &w; r.open == 0 {
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
	i := len(r.requests)
	r.requests = append(r.requests, request{Request: w})
	r.open++
	if w.After >= 0 && w.After < i && !r.requests[w.After].ended {
		r.waiting[w.After] = append(r.waiting[w.After], i)
		return false
	}
	r.ahead = i
	r.push(max(r.began.Add(w.At), r.now), kindArrival, i)
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

// arrive brings request i before the brain, and looks for the one after it.
func (r *run) arrive(i int) {
	q := &r.requests[i]
	q.start = r.now
	if r.c.Timeout > 0 {
		r.push(r.now.Add(r.c.Timeout), kindTimeout, i)
	}
	keys := chainOf(q.Prompt, int(r.c.Pool.Index.KeyTokens))
	chain := make([]kv.Key, len(keys))
	for k := range keys {
		chain[k] = kv.Key(keys[k])
	}
	r.res.Arrived++
	r.step(&pool.Arrive{
		Req: reqID(i), Prompt: fleet.Tokens(max(q.Input, 1)), Chain: chain, KeyTokens: float64(r.c.Pool.Index.KeyTokens),
		Terms: fleet.Terms{SLO: fleet.SLO{TTFT: r.c.Targets.TTFT, TPOT: r.c.Targets.TPOT}},
	})
	if i == r.ahead {
		r.feed()
	}
}

func reqID(i int) fleet.ReqID    { return fleet.ReqID(i + 1) }
func indexOf(id fleet.ReqID) int { return int(id) - 1 }

// chainOf returns the keys of a prompt's full blocks of so many tokens.
func chainOf(prompt []workload.Segment, block int) []uint64 {
	var keys []uint64
	prev := uint64(1)
	for _, s := range prompt {
		for at := 0; at+block <= s.Tokens; at += block {
			prev = stat.Mix64(prev*31 + s.ID*1_000_003 + uint64(at))
			keys = append(keys, prev)
		}
	}
	return keys
}

// step tells the brain of ev and carries out what follows.
func (r *run) step(ev pool.Event) {
	r.out = r.brain.Step(r.now, ev, r.out[:0])
	if r.c.Journal != nil {
		_ = r.c.Journal.Record(r.now, ev, r.out)
	}
	for _, a := range r.out {
		r.act(a)
	}
	if at := r.brain.Wake(); at != r.wake {
		if r.wake = at; at != fleet.Never {
			r.push(max(at, r.now), kindWake, 0)
		}
	}
}
