// Package app puts the parts together: it opens the ports, makes the pools and
// their loops, and takes everything down again in the reverse order.
package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
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
	"penstock.dev/penstock/internal/obs"
)

// Options say what to run. Either Config has pools, or Discover lists servers
// whose models are asked of them.
type Options struct {
	Config   config.Fleet
	Discover []discovery.Found
	// DiscoveredPool is what pools made for discovered servers are configured
	// with; its Name, Model and Endpoints are filled in.
	DiscoveredPool config.Pool

	Listen      string // public address
	AdminListen string
	AdminToken  string
	Journal     string // file to record decisions to; "" for none
	Seed        uint64
	Version     string
	Log         *slog.Logger
	AccessLog   bool
	// ShowClients writes the addresses of clients to the access line; without, it
	// names their networks.
	ShowClients bool
	// MetricsListen is the address of a port with metrics and health only; "" for
	// none.
	MetricsListen string

	ConfigPath string          // the file Config was read from; "" for none
	Reload     <-chan struct{} // asks to read ConfigPath again; may be nil

	// RegisterToken lets engines register themselves with the admin port; ""
	// lets nobody.
	RegisterToken string
	TLS           TLS // of the public port
	Transfer      TransferPort

	DrainDelay   time.Duration // not ready, still accepting
	DrainTimeout time.Duration // for open requests to end
}

// The limits of the HTTP servers themselves, which no deployment has needed to
// change.
const (
	headerTimeout = 10 * time.Second
	keepAlive     = 2 * time.Minute
)

// App is a running gateway.
type App struct {
	o       Options
	log     *slog.Logger
	client  *engine.Client
	fleet   *table
	gateway *gateway.Gateway
	// exchange is where engines say what others must know of them; nil for none.
	exchange *exchanger
	hosts    atomic.Pointer[config.Exchange] // as configured last
	metrics  *obs.Metrics
	ring     *obs.Ring

	telemetry   *obs.Telemetry // nil unless the environment asks for it
	metricsPort *metricsPort   // nil for none

	started time.Time

	public, admin           *http.Server
	publicAddr, adminAddr   string
	servers                 sync.WaitGroup
	stopLoops               context.CancelFunc
	loops                   context.Context //nolint:containedctx // the lifetime of all loops, ended by Close
	background              sync.WaitGroup
	reloader                *reloader
	publicFailed, adminFail chan error
}

// Start opens the ports and begins to serve. On error nothing is left running.
func Start(o Options) (*App, error) {
	if err := admin.CheckListen(o.AdminListen, o.AdminToken); err != nil {
		return nil, err
	}
	secure, err := o.TLS.config("--tls", o.Log)
	if err != nil {
		return nil, err
	}
	a := &App{o: o, log: o.Log, started: time.Now(), publicFailed: make(chan error, 1), adminFail: make(chan error, 1)}
	publicL, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("public port: %w (choose another with --listen)", err)
	}
	adminL, err := net.Listen("tcp", o.AdminListen)
	if err != nil {
		publicL.Close()
		return nil, fmt.Errorf("admin port: %w (choose another with --admin-listen)", err)
	}
	a.hosts.Store(&o.Config.Transfer)
	a.loops, a.stopLoops = context.WithCancel(context.Background())
	a.client = engine.NewClient(engine.Options{ConnectTimeout: o.Config.Limits.ConnectTimeout, ControlTimeout: o.Config.Scrape.Timeout})
	a.fleet = newTable(a)
	if a.exchange, err = newExchanger(a); err != nil {
		publicL.Close()
		adminL.Close()
		return nil, errors.Join(err, a.closePools())
	}
	a.metrics = obs.NewMetrics(o.Version, a.fleet.all, a.fleet.counted)
	a.ring = obs.NewRing(obs.RingBytes, a.fleet.endpointName)
	a.ring.Why = a.exchange.why
	if a.exchange != nil {
		a.metrics.CollectTransfers(a.exchange.counted)
	}
	if a.metricsPort, err = openMetricsPort(o.MetricsListen); err == nil {
		a.telemetry, err = obs.StartTelemetry(a.loops, o.Version, a.log)
	}
	if err != nil {
		publicL.Close()
		adminL.Close()
		return nil, errors.Join(err, a.closePools(), a.metricsPort.close())
	}
	err = a.openPools()
	if err == nil {
		err = a.exchange.open(a.loops)
	}
	if err != nil {
		publicL.Close()
		adminL.Close()
		a.stopTelemetry()
		return nil, errors.Join(err, a.closePools(), a.metricsPort.close())
	}
	a.reloader = newReloader(a)
	a.serve(publicL, adminL, secure)
	a.background.Go(func() { a.reloader.run(a.loops, o.Reload) })
	if a.exchange != nil {
		a.background.Go(func() { a.exchange.run(a.loops) })
	}
	a.gateway.SetReady()
	return a, nil
}

func (a *App) openPools() error {
	for i := range a.o.Config.Pools {
		if _, err := a.fleet.open(a.o.Config.Pools[i], a.modelsOf(a.o.Config.Pools[i])); err != nil {
			return err
		}
	}
	if len(a.o.Discover) > 0 {
		a.background.Go(func() {
			discovery.Static(a.loops, a.o.Discover, a.client, a.log, a.fleet.found)
		})
	}
	return nil
}

// modelsOf returns the models that a pool of the file answers to.
func (a *App) modelsOf(c config.Pool) []gateway.Model {
	models := []gateway.Model{{ID: c.Model, Created: a.started}}
	for _, name := range slices.Sorted(maps.Keys(c.Adapters)) {
		models = append(models, gateway.Model{ID: name, Created: a.started, Parent: c.Model})
	}
	for _, alias := range slices.Sorted(maps.Keys(c.Aliases)) {
		models = append(models, gateway.Model{ID: alias, Created: a.started, Root: c.Aliases[alias]})
	}
	return models
}

func (a *App) serve(publicL, adminL net.Listener, secure *tls.Config) {
	observer := obs.Observer{Metrics: a.metrics, Ring: a.ring, Telemetry: a.telemetry}
	if a.o.AccessLog {
		observer.Access = func(x *gateway.Access) { obs.AccessLine(a.log, x, !a.o.ShowClients) }
	}
	var transfers gateway.Transfers
	if a.exchange != nil {
		transfers = a.exchange
	}
	a.gateway = gateway.New(gateway.Options{
		Transfers: transfers,
		Fleet:     a.fleet, Client: a.client, ClientFor: a.fleet.client, Trace: a.trace(), Limits: a.o.Config.Limits.GatewayLimits(), Policy: a.o.Config.Policy(), Log: a.log,
		Observe: func(x *gateway.Access) { observer.Observe(x); a.reloader.observe(x) },
	})
	var told admin.Transfers
	if a.exchange != nil {
		told = a.exchange
	}
	adminHandler := admin.New(admin.Options{
		Transfers: told,
		Version:   a.o.Version, Started: a.started, Pools: a.fleet.infos, Ring: a.ring, Metrics: a.metrics.Handler(),
		Ready: a.gateway.Ready, Token: a.o.AdminToken, Fleet: a.fleet, Feeds: a.fleet, Caches: manager{a}, Reload: a.reloader.State, RegisterToken: a.o.RegisterToken,
	})
	errorLog := slog.NewLogLogger(a.log.Handler(), slog.LevelDebug)
	newServer := func(h http.Handler) *http.Server {
		return &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: keepAlive, MaxHeaderBytes: a.o.Config.Limits.MaxHeaderBytes, ErrorLog: errorLog}
	}
	a.public, a.admin = newServer(a.gateway), newServer(adminHandler)
	a.publicAddr, a.adminAddr = publicL.Addr().String(), adminL.Addr().String()
	a.public.TLSConfig = secure
	run := func(s *http.Server, l net.Listener, failed chan<- error) {
		a.servers.Go(func() {
			serve := s.Serve
			if s.TLSConfig != nil {
				serve = func(l net.Listener) error { return s.ServeTLS(l, "", "") }
			}
			if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		})
	}
	run(a.public, boundListener(publicL, a.o.Config.Limits.MaxConnections), a.publicFailed)
	run(a.admin, adminL, a.adminFail)
	a.metricsPort.serve(a.metrics.Handler(), a.gateway.Ready, a.log)
}

// URL returns the public base URL.
func (a *App) URL() string {
	if a.o.TLS.Enabled() {
		return "https://" + a.publicAddr
	}
	return "http://" + a.publicAddr
}

// AdminURL returns the admin base URL.
func (a *App) AdminURL() string { return "http://" + a.adminAddr }

// Wait serves until ctx ends or a port fails, then drains and closes.
func (a *App) Wait(ctx context.Context) error {
	var failed error
	select {
	case <-ctx.Done():
	case err := <-a.publicFailed:
		failed = fmt.Errorf("public port: %w", err)
	case err := <-a.adminFail:
		failed = fmt.Errorf("admin port: %w", err)
	case err := <-a.exchange.fails():
		failed = fmt.Errorf("transfer port: %w", err)
	}
	return errors.Join(failed, a.Close())
}

// Close takes the gateway down: not ready, a delay for load balancers to
// notice, no new connections, open requests to their end or the drain timeout,
// then everything else.
func (a *App) Close() error {
	a.gateway.Drain()
	if a.o.DrainDelay > 0 {
		a.log.Info("draining: not ready, still accepting", "delay", a.o.DrainDelay)
		time.Sleep(a.o.DrainDelay)
	}
	ctx, cancel := context.WithTimeout(context.Background(), a.o.DrainTimeout)
	defer cancel()
	if n := a.fleet.openRequests(); n > 0 {
		a.log.Info("draining: finishing open requests", "open", n, "timeout", a.o.DrainTimeout)
	}
	err := a.public.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		a.log.Warn("drain timeout: cutting open requests", "open", a.fleet.openRequests())
		err = a.cut()
	}
	err = errors.Join(err, a.admin.Close(), a.exchange.close(), a.metricsPort.close())
	a.servers.Wait()
	a.stopTelemetry()
	return errors.Join(err, a.closePools())
}

// lastWord is how long the clients of cut requests have to hear of it.
const lastWord = time.Second

// cut ends the requests that outlived the drain timeout, each with an error for
// its client.
func (a *App) cut() error {
	for _, p := range a.fleet.all() {
		p.Cut()
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastWord)
	defer cancel()
	if err := a.public.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return a.public.Close()
}

// closePools ends what openPools began.
func (a *App) closePools() error {
	a.stopLoops()
	a.background.Wait()
	err := a.fleet.close()
	a.client.Close()
	return err
}

// Pool returns the pool that serves a model.
func (a *App) Pool(model string) (*live.Pool, bool) { return a.fleet.Pool(model) }

// fitnessLine logs a change of an endpoint's health.
func (a *App) fitnessLine(pool string, e live.Endpoint, state fmt.Stringer, cause fleet.Failure) {
	if cause != fleet.FailNone {
		a.log.Warn("endpoint is out", "pool", pool, "endpoint", e.Name, "health", state.String(), "cause", cause.String())
		return
	}
	a.log.Info("endpoint is back", "pool", pool, "endpoint", e.Name, "health", state.String())
}
