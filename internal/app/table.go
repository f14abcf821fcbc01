package app

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/discovery"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/live"
)

// table is the fleet as it is served: the pools by the models they answer to.
// Requests read it without a lock; changes replace it.
type table struct {
	app *App

	current  atomic.Pointer[map[string]*served]
	clients  sync.Map // *live.Pool -> *engine.Client
	mu       sync.Mutex
	order    []*served // in the order they were opened
	asked    map[string][]discovery.Endpoint
	retiring sync.WaitGroup
}

func newTable(a *App) *table {
	t := &table{app: a, asked: map[string][]discovery.Endpoint{}}
	t.current.Store(&map[string]*served{})
	return t
}

// Pool implements gateway.Fleet.
func (t *table) Pool(model string) (*live.Pool, bool) {
	s, ok := (*t.current.Load())[model]
	if !ok {
		return nil, false
	}
	return s.pool, true
}

// Models implements gateway.Fleet.
func (t *table) Models() []gateway.Model {
	var all []gateway.Model
	for _, s := range t.pools() {
		all = append(all, s.list()...)
	}
	return all
}

func (t *table) pools() []*served {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.order)
}

func (t *table) all() []*live.Pool {
	var all []*live.Pool
	for _, s := range t.pools() {
		all = append(all, s.pool)
	}
	return all
}

func (t *table) infos() []admin.PoolInfo {
	var all []admin.PoolInfo
	for _, s := range t.pools() {
		info := admin.PoolInfo{Pool: s.pool, Policy: s.policy(), BlockTokens: s.feeds.Space().Block, Undecided: s.members.undecided(), Turning: s.members.turnings()}
		for _, m := range s.list() {
			info.Models = append(info.Models, m.ID)
		}
		all = append(all, info)
	}
	return all
}

// byName returns the pool of a name, nil when there is none.
func (t *table) byName(name string) *served {
	for _, s := range t.pools() {
		if s.pool.Name() == name {
			return s
		}
	}
	return nil
}

func (t *table) endpointName(pool string, id fleet.EndpointID) string {
	if s := t.byName(pool); s != nil {
		return s.pool.EndpointName(id)
	}
	return ""
}

func (t *table) openRequests() uint64 {
	var n uint64
	for _, s := range t.pools() {
		n += s.open()
	}
	return n
}

// client returns the client that speaks with a pool's engines.
func (t *table) client(p *live.Pool) *engine.Client {
	if c, ok := t.clients.Load(p); ok {
		return c.(*engine.Client)
	}
	return t.app.client
}

// open makes a pool and serves its model with it.
func (t *table) open(c config.Pool, models []gateway.Model) (*served, error) {
	s, err := t.app.openServed(c, models)
	if err != nil {
		return nil, err
	}
	t.clients.Store(s.pool, s.client)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.order = append(t.order, s)
	t.publishLocked()
	return s, nil
}

// publishLocked leads every model to the first pool that answers to it.
func (t *table) publishLocked() {
	next := map[string]*served{}
	for _, s := range t.order {
		for _, m := range s.list() {
			if _, taken := next[m.ID]; !taken {
				next[m.ID] = s
			}
		}
	}
	t.current.Store(&next)
}

// retire takes a pool out of the table; requests it has go on to their end.
func (t *table) retire(s *served) {
	t.mu.Lock()
	t.order = slices.DeleteFunc(t.order, func(o *served) bool { return o == s })
	t.publishLocked()
	t.mu.Unlock()
	t.retiring.Go(func() {
		if err := s.retire(); err != nil {
			t.app.log.Error("pool did not close cleanly", "pool", s.pool.Name(), "err", err)
		}
		t.clients.Delete(s.pool)
		t.app.log.Info("pool is gone", "pool", s.pool.Name())
	})
}

// found takes on a server whose models were asked of it: into the pool of its
// first base model, which is made if it is new.
func (t *table) found(f discovery.Found) {
	base := ""
	var models []gateway.Model
	for _, m := range f.Models {
		if m.Parent == "" && base == "" {
			base = m.ID
		}
		models = append(models, gateway.Model{ID: m.ID, Created: t.app.started, MaxModelLen: m.MaxModelLen, Parent: m.Parent})
	}
	if base == "" {
		t.app.log.Warn("endpoint lists adapters but no base model; it is left out", "endpoint", f.Name)
		return
	}
	s := (*t.current.Load())[base]
	if s == nil {
		c := t.app.o.DiscoveredPool
		c.Name, c.Model = base, base
		var err error
		if s, err = t.open(c, models); err != nil {
			t.app.log.Error("a pool for a found endpoint cannot be made", "endpoint", f.Name, "err", err)
			return
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked[base] = append(t.asked[base], discovery.Endpoint{Name: f.Name, URL: f.URL})
	s.members.set(sourceAsked, t.asked[base])
	s.learn(models)
	t.publishLocked()
}

// learn adds models that an endpoint turned out to serve.
func (s *served) learn(models []gateway.Model) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.joinLocked()
	for _, m := range models {
		if m.Parent != "" {
			continue // each endpoint is asked for its adapters again and again
		}
		if !slices.ContainsFunc(s.models, func(k gateway.Model) bool { return k.ID == m.ID }) {
			s.models = append(slices.Clip(s.models), m)
		}
	}
}

// close ends the loops, which must have been told to stop, and the pools.
func (t *table) close() error {
	var errs []error
	for _, s := range t.pools() {
		errs = append(errs, s.close())
	}
	t.retiring.Wait()
	return errors.Join(errs...)
}

// errNoPool says that there is no pool of a name.
var errNoPool = errors.New("no such pool")

// PutEndpoint implements admin.Fleet.
func (t *table) PutEndpoint(pool string, n admin.NewEndpoint, lease time.Duration) (string, error) {
	r, err := t.registry(pool)
	if err != nil {
		return "", err
	}
	e, err := r.Put(discovery.Endpoint{Name: n.Name, URL: n.URL, Ranks: n.Ranks, RankMode: n.RankMode}, lease)
	return e.Name, err
}

// DeleteEndpoint implements admin.Fleet.
func (t *table) DeleteEndpoint(pool, name string, drain time.Duration) error {
	r, err := t.registry(pool)
	if err != nil {
		return err
	}
	if err := r.Delete(name); err != nil {
		return err
	}
	if drain > 0 {
		// The registry's own word follows; it finds the endpoint leaving already.
		s := t.byName(pool)
		s.members.setDraining(r.Name(), r.List(), drain)
	}
	return nil
}

// HoldEndpoint implements admin.Fleet.
func (t *table) HoldEndpoint(pool, name string, on bool) error {
	s := t.byName(pool)
	if s == nil {
		return fmt.Errorf("%w: %q", errNoPool, pool)
	}
	return s.members.hold(name, on)
}

func (t *table) registry(pool string) (*discovery.Registry, error) {
	s := t.byName(pool)
	if s == nil {
		return nil, fmt.Errorf("%w: %q", errNoPool, pool)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.registry == nil {
		return nil, fmt.Errorf("pool %s takes no endpoints over the API: set api: true in its configuration", pool)
	}
	return s.registry, nil
}
