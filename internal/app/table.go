package app

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/control"
	"penstock.dev/penstock/internal/discovery"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/journal"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
)

// table is the fleet as it is served: the pools by the models they answer to.
// Requests read it without a lock; changes replace it.
type table struct {
	app *App

	mu      sync.Mutex // held by writers
	current atomic.Pointer[map[string]*served]
	clients sync.Map  // *live.Pool -> *engine.Client
	order   []*served // in the order they were opened
}

// served is one pool in service.
type served struct {
	config  config.Pool
	pool    *live.Pool
	client  *engine.Client
	loops   *control.Loops
	models  []gateway.Model
	journal *journalFile
}

func newTable(a *App) *table {
	t := &table{app: a}
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
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []gateway.Model
	for _, s := range t.order {
		all = append(all, s.models...)
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
		info := admin.PoolInfo{Pool: s.pool, Policy: s.config.Policy.Name}
		for _, m := range s.models {
			info.Models = append(info.Models, m.ID)
		}
		all = append(all, info)
	}
	return all
}

func (t *table) endpointName(pool string, id fleet.EndpointID) string {
	for _, s := range t.pools() {
		if s.pool.Name() == pool {
			return s.pool.EndpointName(id)
		}
	}
	return ""
}

func (t *table) openRequests() uint64 {
	var n uint64
	for _, p := range t.all() {
		y := p.Tally()
		n += y.Queued + y.InFlight
	}
	return n
}

// open makes a pool, its loops and its endpoints, and serves models with it.
func (t *table) open(c config.Pool, models []gateway.Model) error {
	a := t.app
	dialect, err := engine.DialectByName(c.Dialect)
	if err != nil {
		return fmt.Errorf("pool %s: %w", c.Name, err)
	}
	client, err := a.engineClient(c)
	if err != nil {
		return fmt.Errorf("pool %s: %w", c.Name, err)
	}
	s := &served{config: c, models: models, client: client}
	s.loops = &control.Loops{
		Engines: client, Dialect: dialect, Interval: a.o.Config.Scrape.Interval, Idle: a.o.Config.Scrape.IdleInterval, Timeout: a.o.Config.Scrape.Timeout, Log: a.log,
	}
	o := live.Options{
		Name: c.Name, Config: c.Config, Seed: a.o.Seed, Log: a.log.With("pool", c.Name),
		Probe: func(e live.Endpoint) { s.loops.Probe(a.loops, e) },
		Fitness: func(e live.Endpoint, state health.State, cause fleet.Failure) {
			a.metrics.Ejected(c.Name, e.Name, state, cause)
			a.fitnessLine(c.Name, e, state, cause)
		},
	}
	if a.o.Journal != "" {
		if s.journal, err = openJournal(a.o.Journal, c.Name, len(a.o.Config.Pools) == 1); err != nil {
			return err
		}
		if o.Journal, err = pool.NewRecorder(s.journal.writer, c.Config, a.o.Seed); err != nil {
			return fmt.Errorf("journal of pool %s: %w", c.Name, err)
		}
	}
	if s.pool, err = live.NewPool(o); err != nil {
		return err
	}
	s.loops.Pool = s.pool
	t.clients.Store(s.pool, client)
	for _, e := range c.Endpoints {
		t.add(s, e)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.order = append(t.order, s)
	t.publishLocked(s, models)
	return nil
}

func (t *table) add(s *served, e config.Endpoint) {
	target := live.Target{Name: e.Name, URL: e.URL, Limits: s.config.Engine.Limits(), Step: s.config.Engine.StepMs.Step()}
	s.loops.Watch(t.app.loops, s.pool.Add(target))
}

// client returns the client that speaks with a pool's engines.
func (t *table) client(p *live.Pool) *engine.Client {
	if c, ok := t.clients.Load(p); ok {
		return c.(*engine.Client)
	}
	return t.app.client
}

// engineClient makes a client with a pool's credentials, trust and protocols.
func (a *App) engineClient(c config.Pool) (*engine.Client, error) {
	access, err := engine.NewAccess(c.Credentials, c.TLS)
	if err != nil {
		return nil, err
	}
	return engine.NewClient(engine.Options{
		ConnectTimeout: a.o.Config.Limits.ConnectTimeout, ControlTimeout: a.o.Config.Scrape.Timeout,
		Access: access, HTTP2: c.HTTP2, Log: a.log.With("pool", c.Name),
	}), nil
}

// publishLocked makes s answer to models, unless another pool does already.
func (t *table) publishLocked(s *served, models []gateway.Model) {
	next := maps.Clone(*t.current.Load())
	for _, m := range models {
		if _, taken := next[m.ID]; !taken {
			next[m.ID] = s
		}
	}
	t.current.Store(&next)
}

// found takes on a discovered server: into the pool of its first base model,
// which is made if it is new.
func (t *table) found(f discovery.Found) {
	base := ""
	var models []gateway.Model
	for _, m := range f.Models {
		if m.Parent == "" && base == "" {
			base = m.ID
		}
		models = append(models, gateway.Model{ID: m.ID, Created: t.app.started, MaxModelLen: m.MaxModelLen})
	}
	if base == "" {
		t.app.log.Warn("endpoint lists adapters but no base model; it is left out", "endpoint", f.Name)
		return
	}
	e := config.Endpoint{Name: f.Name, URL: f.URL}
	if s := (*t.current.Load())[base]; s != nil {
		t.add(s, e)
		t.merge(s, models)
		t.app.log.Info("endpoint found", "pool", s.pool.Name(), "endpoint", f.Name)
		return
	}
	c := t.app.o.DiscoveredPool
	c.Name, c.Model, c.Endpoints = base, base, []config.Endpoint{e}
	if err := t.open(c, models); err != nil {
		t.app.log.Error("a pool for a found endpoint cannot be made", "endpoint", f.Name, "err", err)
		return
	}
	t.app.log.Info("endpoint found", "pool", base, "endpoint", f.Name)
}

// merge adds models that a further endpoint of a pool brought.
func (t *table) merge(s *served, models []gateway.Model) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range models {
		if !slices.ContainsFunc(s.models, func(k gateway.Model) bool { return k.ID == m.ID }) {
			s.models = append(s.models, m)
		}
	}
	t.publishLocked(s, models)
}

// close ends the loops, which must have been told to stop, and the pools.
func (t *table) close() error {
	var errs []error
	for _, s := range t.pools() {
		s.loops.Wait()
		s.pool.Close()
		s.client.Close()
		if s.journal != nil {
			errs = append(errs, s.journal.close())
		}
	}
	return errors.Join(errs...)
}

// journalFile is a journal on disk, flushed every second so that a crash loses
// little.
type journalFile struct {
	writer *journal.Writer
	file   *os.File
	buf    *lockedBuffer
	stop   chan struct{}
	done   sync.WaitGroup
}

// lockedBuffer lets the pool append under its own lock while the flusher runs.
type lockedBuffer struct {
	mu sync.Mutex
	w  *bufio.Writer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.w.Write(p)
}

func (b *lockedBuffer) flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.w.Flush()
}

// openJournal creates path, with the pool's name worked in when it is not the
// only one.
func openJournal(path, poolName string, only bool) (*journalFile, error) {
	if !only {
		ext := filepath.Ext(path)
		path = strings.TrimSuffix(path, ext) + "-" + strings.NewReplacer("/", "_", string(filepath.Separator), "_").Replace(poolName) + ext
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	j := &journalFile{file: f, buf: &lockedBuffer{w: bufio.NewWriterSize(f, 1<<20)}, stop: make(chan struct{})}
	j.writer = journal.NewWriter(j.buf)
	j.done.Go(j.flushLoop)
	return j, nil
}

func (j *journalFile) flushLoop() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = j.buf.flush() // the writer meets the same error and tells it
		case <-j.stop:
			return
		}
	}
}

// close flushes what the pool, which must be closed, has recorded.
func (j *journalFile) close() error {
	close(j.stop)
	j.done.Wait()
	if err := errors.Join(j.writer.Flush(), j.buf.flush(), j.file.Close()); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}
