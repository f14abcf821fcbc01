package app

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"penstock.dev/penstock/internal/discovery"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
)

// members keeps the endpoints of a pool equal to what its sources say. What a
// source no longer lists is drained, and forgotten when it is idle or its time
// is up; what comes back in time was never gone.
type members struct {
	pool *live.Pool
	log  *slog.Logger
	// watch begins to read an endpoint's gauges, until ctx ends.
	watch func(ctx context.Context, e live.Endpoint)
	//nolint:containedctx // the lifetime of the pool's loops
	ctx     context.Context
	leaving sync.WaitGroup // and those whose ranks are being found
	finder  rankFinder

	mu     sync.Mutex
	target func(discovery.Endpoint) live.Target
	drain  time.Duration
	wanted map[string][]discovery.Endpoint // by source
	held   map[string]bool                 // drained by an operator, to stay
	// roles are those that an operator has given, and patience how long what is open in
	// the old ones may take.
	roles    map[string]fleet.Role
	patience map[string]time.Duration
	current  map[string]*member // by name
	found    map[ranked]*finding
	// lookEvery is the time between two looks at ranks.
	lookEvery time.Duration
}

// member is an endpoint the pool has.
type member struct {
	endpoint live.Endpoint
	unwatch  context.CancelFunc
	deadline time.Time // when it is forgotten; zero while it is wanted
	turning  *turn     // to another role; nil for none
}

func newMembers(ctx context.Context, p *live.Pool, finder rankFinder, log *slog.Logger, watch func(context.Context, live.Endpoint)) *members {
	return &members{
		pool: p, log: log, watch: watch, ctx: ctx, finder: finder, found: map[ranked]*finding{}, lookEvery: rankEvery,
		wanted: map[string][]discovery.Endpoint{}, held: map[string]bool{}, roles: map[string]fleet.Role{}, patience: map[string]time.Duration{}, current: map[string]*member{},
	}
}

// configure sets what is said of every endpoint, and how long one that left may
// take to drain.
func (m *members) configure(target func(discovery.Endpoint) live.Target, drain time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.target, m.drain = target, drain
	m.reconcileLocked(drain)
}

// set replaces what one source lists.
func (m *members) set(source string, list []discovery.Endpoint) { m.setDraining(source, list, 0) }

// setDraining is set with another time for those that leave; 0 is the usual.
func (m *members) setDraining(source string, list []discovery.Endpoint, drain time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if drain == 0 {
		drain = m.drain
	}
	m.wanted[source] = slices.Clone(list)
	m.reconcileLocked(drain)
}

// keepOnly forgets the sources not named.
func (m *members) keepOnly(sources []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.wanted, func(source string, _ []discovery.Endpoint) bool { return !slices.Contains(sources, source) })
	m.reconcileLocked(m.drain)
}

// hold drains an endpoint that is there, or all ranks of a server, or lets them
// serve again, whatever their source says.
func (m *members) hold(name string, on bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := false
	for full, mem := range m.current {
		rank := mem.endpoint.Rank
		if !mem.deadline.IsZero() || full != name && (rank.Of == 0 || full != discovery.RankName(name, rank.Index)) {
			continue
		}
		known = true
		if m.held[full] = on; on {
			m.pool.Drain(mem.endpoint)
		} else {
			if delete(m.held, full); mem.turning == nil || !mem.turning.draining {
				mem.endpoint = m.pool.Add(mem.endpoint.Target)
			}
		}
	}
	if !known {
		return fmt.Errorf("pool %s has no endpoint %q", m.pool.Name(), name)
	}
	return nil
}

// union returns what the sources want by name, ranks one by one. Sources are asked
// in order of their names, so that of two that name one endpoint the same one
// always wins.
func (m *members) union() map[string]discovery.Endpoint {
	all := map[string]discovery.Endpoint{}
	named := map[string]bool{}
	for _, source := range slices.Sorted(maps.Keys(m.wanted)) {
		for _, e := range m.wanted[source] {
			if named[e.Name] {
				continue
			}
			named[e.Name] = true
			for _, one := range m.spreadLocked(e) {
				if _, taken := all[one.Name]; !taken {
					all[one.Name] = one
				}
			}
		}
	}
	return all
}

func (m *members) reconcileLocked(drain time.Duration) {
	m.forgetRanksLocked()
	want := m.union()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		m.takeOnLocked(name, m.target(want[name]))
	}
	for name, mem := range m.current {
		if _, ok := want[name]; !ok && mem.deadline.IsZero() {
			mem.deadline, mem.turning = time.Now().Add(drain), nil
			m.pool.Drain(mem.endpoint)
			m.log.Info("endpoint leaves", "endpoint", name, "drain", drain)
			m.leaving.Go(func() { m.leave(name, mem) })
		}
	}
}

// takeOnLocked makes name one of the pool's endpoints, as t says.
func (m *members) takeOnLocked(name string, t live.Target) {
	if r, given := m.roles[name]; given {
		t.Role = r
	}
	mem := m.current[name]
	switch {
	case mem == nil:
		mem = &member{}
		m.current[name] = mem
		m.log.Info("endpoint comes", "endpoint", name, "url", t.URL)
	case mem.deadline.IsZero() && mem.endpoint.Target == t:
		m.stayLocked(name, mem)
		return
	case mem.deadline.IsZero() && mem.turning != nil && mem.turning.to == t:
		return
	case mem.deadline.IsZero() && mem.endpoint.Role != t.Role && mem.endpoint.URL == t.URL && mem.endpoint.Rank == t.Rank:
		m.turnLocked(name, mem, t)
		return
	}
	mem.turning = nil
	m.takeLocked(name, mem, t)
}

// takeLocked makes a member what t says, at once.
func (m *members) takeLocked(name string, mem *member, t live.Target) {
	if mem.unwatch != nil {
		mem.unwatch()
	}
	mem.deadline = time.Time{}
	mem.endpoint = m.pool.Add(t)
	if m.held[name] {
		m.pool.Drain(mem.endpoint)
	}
	var ctx context.Context
	ctx, mem.unwatch = context.WithCancel(m.ctx)
	m.watch(ctx, mem.endpoint)
}

// leavePoll is how often an endpoint that leaves is looked at.
const leavePoll = 100 * time.Millisecond

// leave forgets an endpoint when it is idle or its time is up, unless it is
// wanted again before.
func (m *members) leave(name string, mem *member) {
	tick := time.NewTicker(leavePoll)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
		}
		m.mu.Lock()
		if mem.deadline.IsZero() || m.current[name] != mem {
			m.mu.Unlock()
			return
		}
		open := m.pool.InFlight(mem.endpoint)
		if open == 0 || !time.Now().Before(mem.deadline) {
			mem.unwatch()
			m.pool.Remove(mem.endpoint)
			delete(m.current, name)
			delete(m.held, name)
			delete(m.roles, name)
			delete(m.patience, name)
			m.mu.Unlock()
			m.log.Info("endpoint is gone", "endpoint", name, "open", open)
			return
		}
		m.mu.Unlock()
	}
}
