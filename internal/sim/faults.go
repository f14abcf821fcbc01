package sim

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
)

// Fault is something that happens to a replica at a time. What happens to one
// rank of a lockstep set happens to all, but for its metrics.
type Fault struct {
	At      time.Duration
	Replica int
	Kind    FaultKind
	Factor  float64       // with Slow: how many times as long steps take from now on; 1 is as before
	Delay   time.Duration // with Restart and Add: until it can serve
}

// FaultKind is what happens.
type FaultKind uint8

// The kinds of fault.
const (
	Crash   FaultKind = iota // the process dies; its cache and its requests with it
	Restart                  // one that has crashed is started, with an empty cache
	Mute                     // its metrics cannot be read
	Unmute                   // they can again
	Slow                     // its steps take Factor times as long
	Add                      // it is started, and the gateways hear of it when it can serve; it is not there before its first Add
	Remove                   // the gateways send it nothing new; it goes when it has answered what it has
)

var faultNames = [...]string{"crash", "restart", "mute", "unmute", "slow", "add", "remove"}

// String returns the kind's name.
func (k FaultKind) String() string { return faultNames[k] }

// ParseFaultKind returns the kind of a name, and false when there is none.
func ParseFaultKind(name string) (FaultKind, bool) {
	i := slices.Index(faultNames[:], name)
	return FaultKind(max(i, 0)), i >= 0
}

// FaultKinds returns the names of all kinds.
func FaultKinds() []string { return slices.Clone(faultNames[:]) }

// MaxSlow bounds how many times slower or faster a fault makes a replica.
const MaxSlow = 1000

// validateFaults returns what is wrong with the faults.
func (c *Config) validateFaults() []error {
	var errs []error
	for i, f := range c.Faults {
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("faults[%d].%w", i, fmt.Errorf(format, args...)))
		}
		switch {
		case f.At < 0:
			bad("at: must not be negative, is %v", f.At)
		case i > 0 && f.At < c.Faults[i-1].At:
			bad("at: %v comes after %v; faults stand in order of time", f.At, c.Faults[i-1].At)
		}
		if f.Replica < 0 || f.Replica >= len(c.Replicas) {
			bad("replica: must be at least 0 and below %d, is %d", len(c.Replicas), f.Replica)
		}
		if int(f.Kind) >= len(faultNames) {
			bad("kind: %d is none", f.Kind)
		}
		if f.Kind == Slow && !(f.Factor >= 1.0/MaxSlow && f.Factor <= MaxSlow) {
			bad("factor: must be between 1/%d and %d, is %v", MaxSlow, MaxSlow, f.Factor)
		} else if f.Kind != Slow && f.Factor != 0 {
			bad("factor: %v says nothing beside %q", f.Factor, faultNames[min(int(f.Kind), len(faultNames)-1)])
		}
		if f.Delay < 0 || f.Delay > 0 && f.Kind != Restart && f.Kind != Add {
			bad("delay: must not be negative, and goes with restart and add only, is %v", f.Delay)
		}
	}
	return errs
}

// throttle is a Physics that can be slowed down while it is in use. Whoever does
// must have the engine plan anew.
type throttle struct {
	enginesim.Physics
	factor float64
}

// StepTime implements enginesim.Physics.
func (t *throttle) StepTime(b enginesim.Batch) time.Duration {
	d := t.Physics.StepTime(b)
	if t.factor == 1 {
		return d
	}
	return time.Duration(math.Max(1, float64(d)*t.factor))
}

// slowed is another Physics of a replica that a throttle slows down.
type slowed struct {
	enginesim.Physics
	by *throttle
}

// StepTime implements enginesim.Physics.
func (s *slowed) StepTime(b enginesim.Batch) time.Duration {
	return (&throttle{Physics: s.Physics, factor: s.by.factor}).StepTime(b)
}

// newEngine returns the place of replica i's process, and its physics.
func (c *Config) newEngine(i int) *engine {
	en := &engine{physics: c.Replicas[i].Physics, wake: fleet.Never, ready: fleet.Never, members: c.members(i), has: map[fleet.ReqID]struct{}{}}
	for _, f := range c.Faults {
		if f.Kind == Slow && slices.Contains(en.members, f.Replica) && en.throttle == nil {
			en.throttle = &throttle{Physics: en.physics, factor: 1}
			en.physics = en.throttle
		}
	}
	if en.typical = enginesim.Typical(c.Replicas[i].Physics); en.throttle != nil {
		en.typical = &slowed{Physics: en.typical, by: en.throttle}
	}
	return en
}

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

// addedLater reports whether the first that happens to some replicas, beside what
// can happen to a replica that is not there, is that they are added.
func (c *Config) addedLater(members []int) bool {
	for _, f := range c.Faults {
		if slices.Contains(members, f.Replica) && (f.Kind == Add || f.Kind == Crash || f.Kind == Restart || f.Kind == Remove) {
			return f.Kind == Add
		}
	}
	return false
}

// boot starts the process of replica i, and of those in its set, and tells the
// gateways of those they do not have.
func (r *run) boot(i int) error {
	members := r.engines[i].members
	configs := make([]enginesim.Config, len(members))
	for k, m := range members {
		limits := r.c.Replicas[m].Limits
		configs[k] = enginesim.Config{
			Physics: r.engines[m].physics, KVTokens: limits.KVTokens, MaxSeqs: limits.MaxSeqs, BudgetTokens: limits.BudgetTokens,
			Offload: r.c.Replicas[m].Offload, Events: r.c.Events != nil, EveryToken: r.c.Tokens,
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
		rep, en := &r.c.Replicas[m], r.engines[m]
		en.Engine, en.ready = rank(k), fleet.Never
		if !en.listed {
			en.told++
			en.listed = true
			r.tell(&pool.Endpoint{Endpoint: endpointID(m), Gen: en.told, Limits: rep.Limits, Variant: rep.Variant, Step: rep.Step, Links: rep.Links, Role: rep.Role, Wire: rep.Leaves, Connector: rep.Connector, Pulls: rep.Pulls})
		}
		r.opened(m)
	}
	return nil
}

// fault makes something happen to a replica.
func (r *run) fault(f *Fault) error {
	en := r.engines[f.Replica]
	switch f.Kind {
	case Crash:
		r.crash(f.Replica)
	case Restart:
		if en.Engine == nil && en.listed && !en.leaving {
			return r.start(f.Replica, f.Delay)
		}
	case Add:
		if en.Engine == nil && !en.listed {
			return r.start(f.Replica, f.Delay)
		}
	case Remove:
		r.remove(f.Replica)
	case Mute:
		en.mute = true
	case Unmute:
		en.mute = false
	case Slow:
		r.slow(f.Replica, f.Factor)
	}
	return nil
}

// start boots a replica that is down, after a delay.
func (r *run) start(k int, delay time.Duration) error {
	if delay == 0 {
		return r.boot(k)
	}
	lead := r.engines[k].members[0]
	r.engines[lead].ready = r.now.Add(delay)
	r.push(r.engines[lead].ready, kindReady, lead)
	return nil
}

// crash ends the processes of a replica and its set, with all that was in them.
func (r *run) crash(k int) {
	members := r.engines[k].members
	r.engines[members[0]].ready = fleet.Never
	if r.engines[k].Engine == nil {
		return
	}
	r.collect(k, r.now)
	for _, m := range members {
		en := r.engines[m]
		r.stop(en)
		r.broke(m)
		for _, id := range slices.Sorted(maps.Keys(en.has)) {
			if q := r.requests.get(indexOf(id)); q.stage == stagePrefill {
				r.failPrefill(q, fleet.FailConnect)
			} else {
				r.fail(q, fleet.FailStream)
			}
		}
		r.breakLegs(m)
		clear(en.has)
	}
	if r.engines[k].leaving {
		r.leave(k, r.now.Add(r.c.Hop))
	}
}

// stop ends a process.
func (r *run) stop(en *engine) {
	if en.Engine != nil {
		en.lost += en.Stats().Preemptions
	}
	en.Engine, en.wake = nil, fleet.Never
}

// remove lets a replica and its set finish what they have.
func (r *run) remove(k int) {
	members := r.engines[k].members
	r.engines[members[0]].ready = fleet.Never
	if !r.engines[k].listed || r.engines[k].leaving {
		return
	}
	for _, m := range members {
		r.engines[m].leaving = true
		rep := &r.c.Replicas[m]
		r.tell(&pool.Endpoint{
			Endpoint: endpointID(m), Gen: r.engines[m].told, Change: pool.EndpointDrain, Limits: rep.Limits, Variant: rep.Variant, Step: rep.Step, Links: rep.Links, Role: rep.Role, Wire: rep.Leaves, Connector: rep.Connector, Pulls: rep.Pulls,
		})
	}
	r.leave(k, r.now)
}

// leave foresees the end of a replica and its set that are to go, if they have
// nothing left to answer.
func (r *run) leave(k int, at fleet.Time) {
	members := r.engines[k].members
	for _, m := range members {
		if len(r.engines[m].has) > 0 {
			return
		}
	}
	r.push(max(at, r.now), kindGone, members[0])
}

// gone ends the processes of a replica and its set that have been removed.
func (r *run) gone(lead int) {
	for _, m := range r.engines[lead].members {
		en := r.engines[m]
		if !en.leaving || len(en.has) > 0 {
			return // foreseen twice
		}
		r.stop(en)
		r.broke(m)
		en.leaving, en.listed = false, false
		r.tell(&pool.Endpoint{Endpoint: endpointID(m), Gen: en.told, Change: pool.EndpointGone})
	}
}

// slow makes the steps of a replica and its set take factor times as long as they
// would, from the next on.
func (r *run) slow(k int, factor float64) {
	running := r.engines[k].Engine != nil
	if running {
		r.collect(k, r.now)
	}
	for _, m := range r.engines[k].members {
		r.engines[m].throttle.factor = factor
	}
	if running {
		r.engines[k].Replan()
		r.collect(k, r.now)
	}
}
