package app

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/control"
	"penstock.dev/penstock/internal/discovery"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/keep"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
)

// served is one pool in service: its brain, the client that speaks with its
// engines, and the loops around them.
type served struct {
	app     *App
	pool    *live.Pool
	client  *engine.Client
	loops   *control.Loops
	feeds   *control.Feeds
	tokens  *gateway.Tokens // nil where nobody needs them
	keep    *keep.Keep
	keeping sync.WaitGroup
	members *members
	journal *journalFile
	stop    context.CancelFunc
	ctx     context.Context //nolint:containedctx // the lifetime of the pool's loops, ended by stop

	mu          sync.Mutex
	config      config.Pool
	models      []gateway.Model            // of the file, or told when the pool was made
	lengths     map[string]fleet.Tokens    // longest context by endpoint, as each lists it
	loading     sync.Map                   // URL -> chan struct{}, held while an adapter is loaded there
	adapters    map[string][]gateway.Model // by endpoint, as each lists them
	answers     []gateway.Model            // all of these
	registry    *discovery.Registry        // nil unless the API may add endpoints
	stopSources context.CancelFunc
	sources     sync.WaitGroup
	checks      sync.WaitGroup // that end with ctx
}

// The names under which the list of the file and the models' own answers stand
// beside the other sources.
const (
	sourceFile  = "configuration"
	sourceAsked = "asked"
)

// openServed makes a pool and starts its loops and sources.
func (a *App) openServed(c config.Pool, models []gateway.Model) (*served, error) {
	dialect, err := engine.DialectByName(c.Dialect)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", c.Name, err)
	}
	s := &served{app: a, models: models, answers: models}
	if s.client, err = a.engineClient(c); err != nil {
		return nil, fmt.Errorf("pool %s: %w", c.Name, err)
	}
	s.ctx, s.stop = context.WithCancel(a.loops)
	scrape := a.o.Config.Scrape
	s.loops = &control.Loops{
		Engines: s.client, Dialect: dialect, Interval: scrape.Interval, Idle: scrape.IdleInterval, Timeout: scrape.Timeout, Log: a.log,
	}
	o := live.Options{
		Name: c.Name, Config: c.Config, Seed: a.o.Seed, Log: a.log.With("pool", c.Name),
		Probe: func(e live.Endpoint) { s.loops.Probe(s.ctx, e) },
		Fitness: func(e live.Endpoint, state health.State, cause fleet.Failure) {
			a.metrics.Ejected(c.Name, e.Name, state, cause)
			a.fitnessLine(c.Name, e, state, cause)
		},
	}
	if a.o.Journal != "" {
		if s.journal, err = openJournal(a.o.Journal, c.Name, len(a.o.Config.Pools) == 1); err != nil {
			return nil, err
		}
		if o.Journal, err = pool.NewRecorder(s.journal.writer, c.Config, a.o.Seed); err != nil {
			return nil, fmt.Errorf("journal of pool %s: %w", c.Name, err)
		}
	}
	if s.pool, err = live.NewPool(o); err != nil {
		return nil, err
	}
	s.loops.Pool, s.loops.Lister, s.loops.Listed = s.pool, s.client, s.listed
	s.feeds = control.NewFeeds(s.pool, c.Space(), o.Log)
	if s.tokens, err = s.openTokens(c); err != nil {
		return nil, errors.Join(fmt.Errorf("pool %s: %w", c.Name, err), s.close())
	}
	s.openKeep(c)
	s.feeds.Warm = newPeer(a, c).warm
	s.members = newMembers(s.ctx, s.pool, s.client, o.Log, s.watch)
	s.follow(c)
	return s, nil
}

// watch follows an endpoint until ctx ends: what it says of its load, and of its
// cache.
func (s *served) watch(ctx context.Context, e live.Endpoint) {
	s.app.exchange.kick()
	context.AfterFunc(ctx, s.app.exchange.kick)
	if e.Role != fleet.RoleStore {
		s.loops.Watch(ctx, e)
	}
	s.feeds.Follow(ctx, e)
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

// follow makes c the pool's configuration: its endpoints are those of c's
// sources from now on.
func (s *served) follow(c config.Pool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config = c
	s.keep.SetConfig(c.KV.Keep.Config())
	s.members.configure(targetOf(c), c.DrainTimeout)
	if s.stopSources != nil {
		s.stopSources()
		s.sources.Wait()
	}
	var ctx context.Context
	ctx, s.stopSources = context.WithCancel(s.ctx)
	list := sourcesOf(c.Sources)
	if c.API {
		if s.registry == nil {
			s.registry = discovery.NewRegistry()
		}
		list = append(list, s.registry)
	} else {
		s.registry = nil
	}
	keep := []string{sourceFile, sourceAsked}
	for _, src := range list {
		keep = append(keep, src.Name())
	}
	s.members.keepOnly(keep)
	literal := make([]discovery.Endpoint, 0, len(c.Endpoints))
	for _, e := range c.Endpoints {
		literal = append(literal, discovery.Endpoint{
			Name: e.Name, URL: e.URL, Variant: e.Variant, Role: e.Role, KVPort: e.KVPort, Events: e.Events, Replay: e.Replay, Ranks: e.Ranks, RankMode: e.RankMode,
		})
	}
	for _, st := range c.KV.Stores {
		literal = append(literal, discovery.Endpoint{Name: st.Name, URL: st.Events, Events: st.Events, Replay: st.Replay, Store: true})
	}
	s.members.set(sourceFile, literal)
	for _, src := range list {
		s.sources.Go(func() { s.listen(ctx, src) })
	}
}

// fileEvery is the time between two looks at an endpoints file.
const fileEvery = time.Second

// sourcesOf returns the sources that c names, without the API's, whose registry
// outlives reloads.
func sourcesOf(c config.Sources) []discovery.Source {
	var list []discovery.Source
	if c.EndpointsFile != "" {
		list = append(list, discovery.File{Path: c.EndpointsFile, Every: fileEvery})
	}
	if d := c.DNS; d.Host != "" {
		list = append(list, discovery.DNS{Host: d.Host, Port: d.Port, Scheme: d.Scheme, SRV: d.SRV, Every: d.Every})
	}
	return list
}

func (s *served) listen(ctx context.Context, src discovery.Source) {
	src.Run(ctx, func(list []discovery.Endpoint, err error) {
		if err != nil {
			s.app.log.Warn("endpoints cannot be read; the last list stands", "pool", s.pool.Name(), "from", src.Name(), "err", err)
			return
		}
		s.members.set(src.Name(), list)
	})
}

// replaces reports whether c can only be served by a new pool beside this one,
// because it is spoken to in another way.
func (s *served) replaces(c config.Pool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.config
	return old.Space() != c.Space() || old.KV.Tokens != c.KV.Tokens || old.Feeds() != c.Feeds() || old.Dialect != c.Dialect || old.Credentials != c.Credentials || old.TLS != c.TLS || old.HTTP2 != c.HTTP2
}

// list returns the models the pool answers to.
func (s *served) list() []gateway.Model {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answers
}

// policy returns the name of the policy in charge.
func (s *served) policy() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.config.Policy.Name
}

// open returns how many requests have arrived and not ended.
func (s *served) open() uint64 {
	y := s.pool.Tally()
	return y.Queued + y.InFlight
}

// retire waits until the pool, which no model leads to any more, has no
// requests, and closes it; its drain timeout bounds the wait.
func (s *served) retire() error {
	s.mu.Lock()
	deadline := time.Now().Add(s.config.DrainTimeout)
	s.mu.Unlock()
	tick := time.NewTicker(leavePoll)
	defer tick.Stop()
	for s.open() > 0 && time.Now().Before(deadline) && s.ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
		}
	}
	return s.close()
}

// close ends the loops and the pool.
func (s *served) close() error {
	s.stop()
	s.sources.Wait()
	s.members.leaving.Wait()
	s.loops.Wait()
	s.feeds.Wait()
	s.checks.Wait()
	s.keeping.Wait()
	if s.tokens != nil {
		s.tokens.Source.Close()
	}
	s.pool.Close()
	s.client.Close()
	if s.journal != nil {
		if err := s.journal.close(); err != nil {
			return errors.Join(fmt.Errorf("pool %s", s.pool.Name()), err)
		}
	}
	return nil
}
