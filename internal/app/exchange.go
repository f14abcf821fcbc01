package app

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/transfer"
)

// TransferPort says where the exchange of transfer metadata listens.
type TransferPort struct {
	Listen string // "" for nowhere: tickets and verdicts are the gateway's own
	// Optional has it do without when another process listens there.
	Optional bool
	Token    string
	TLS      TLS // a client certificate does instead of the token
}

// check refuses a port that anybody could use.
func (p TransferPort) check(trustFleet bool) error {
	if p.Listen == "" || p.TLS.ClientCA != "" || trustFleet {
		return nil
	}
	if admin.CheckListen(p.Listen, p.Token) != nil {
		return fmt.Errorf("transfer address %q can be reached from elsewhere: set --transfer-token or --transfer-tls-client-ca, or listen on 127.0.0.1", p.Listen)
	}
	return nil
}

// exchanger is the exchange of transfer metadata in service: which hosts it
// admits, what it has found of the pools' pairs, and the tickets of the gateway.
// A nil exchanger does nothing.
type exchanger struct {
	app      *App
	server   *transfer.Server
	resolver resolver
	hosts    atomic.Pointer[hostTable]
	found    atomic.Pointer[findings]
	kicked   chan struct{} // that something may have changed
	nonce    string        // of this process's own instances

	refreshing sync.Mutex // one refresh at a time
	told       map[string]map[fleet.EndpointID]toldBars

	port   *http.Server
	addr   string
	failed chan error
}

// findings are what is known of the pools' endpoints, by the pool's name.
type findings struct {
	is    map[string]map[fleet.EndpointID]*exchange.Instance
	pairs map[string]barring
}

// toldBars are what a pool was told of one process.
type toldBars struct {
	gen     fleet.Gen
	sources []fleet.EndpointID
}

// newExchanger makes the exchange that configuration asks for, nil if none.
func newExchanger(a *App) (*exchanger, error) {
	c := &a.o.Config.Transfer
	if !c.Enabled {
		return nil, nil
	}
	if err := a.o.Transfer.check(c.TrustFleet); err != nil {
		return nil, err
	}
	x := &exchanger{
		app: a, resolver: resolver{lookup: net.DefaultResolver.LookupNetIP, known: map[string]resolved{}},
		kicked: make(chan struct{}, 1), nonce: fmt.Sprintf("%x", a.started.UnixNano()), told: map[string]map[fleet.EndpointID]toldBars{}, failed: make(chan error, 1),
	}
	x.hosts.Store(&hostTable{})
	x.found.Store(&findings{})
	var err error
	x.server, err = transfer.New(transfer.Options{
		Book: c.Config(), Token: a.o.Transfer.Token, TrustFleet: c.TrustFleet, Census: x.kick,
		Admit: func(host string) error { return x.hosts.Load().admit(host) },
	})
	return x, err
}

// kick asks for a refresh; it does not wait for it.
func (x *exchanger) kick() {
	if x == nil {
		return
	}
	select {
	case x.kicked <- struct{}{}:
	default: // one is due already
	}
}

// open begins to serve engines, which by now find the fleet's hosts known.
func (x *exchanger) open(ctx context.Context) error {
	if x == nil {
		return nil
	}
	x.refresh(ctx, false)
	x.restore()
	p := x.app.o.Transfer
	if p.Listen == "" {
		return nil
	}
	secure, err := p.TLS.config("--transfer-tls", x.app.log)
	if err != nil {
		return err
	}
	if secure != nil && p.TLS.ClientCA != "" && p.Token != "" {
		secure.ClientAuth = tls.VerifyClientCertIfGiven // either will do
	}
	l, err := net.Listen("tcp", p.Listen)
	switch {
	case err != nil && p.Optional && errors.Is(err, syscall.EADDRINUSE):
		x.app.log.Warn("another process listens where engines would register; transfers are known to this gateway alone", "address", p.Listen)
		return nil
	case err != nil:
		return fmt.Errorf("transfer port: %w (choose another with --transfer-listen, or \"off\")", err)
	}
	x.addr = l.Addr().String()
	x.port = &http.Server{
		Handler: x.server, ReadHeaderTimeout: headerTimeout, IdleTimeout: keepAlive, TLSConfig: secure,
		ErrorLog: slog.NewLogLogger(x.app.log.Handler(), slog.LevelDebug),
	}
	x.app.servers.Go(func() {
		serve := func() error { return x.port.Serve(l) }
		if secure != nil {
			serve = func() error { return x.port.ServeTLS(l, "", "") }
		}
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
			x.failed <- err
		}
	})
	return nil
}

// fails receives why the port ended by itself.
func (x *exchanger) fails() <-chan error {
	if x == nil {
		return nil
	}
	return x.failed
}

// tendEvery is how often leases and deadlines are looked at that nobody asks
// about.
const tendEvery = time.Second

// run keeps what is found in step with what changes, until ctx ends.
func (x *exchanger) run(ctx context.Context) {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	asked := time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-x.kicked:
			x.refresh(ctx, true)
		case <-tick.C:
			x.server.Do(func(fleet.Time, *exchange.Book) {})
			if time.Since(asked) >= resolveEvery {
				asked = time.Now()
				x.refresh(ctx, true)
				x.keep()
			}
		}
	}
}

// refresh finds out which hosts are the fleet's and which pairs cannot exchange
// KV, and tells the pools. With ask it asks name servers.
func (x *exchanger) refresh(ctx context.Context, ask bool) {
	x.refreshing.Lock()
	defer x.refreshing.Unlock()
	pools := x.app.fleet.pools()
	var all []placed
	by := map[*served][]live.Endpoint{}
	networks, hosts := x.app.hosts.Load().Networks()
	for _, s := range pools {
		list := s.pool.Endpoints()
		slices.SortFunc(list, func(a, b live.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
		by[s] = list
		for _, e := range list {
			all = append(all, placed{s.pool.Name(), e})
			hosts = append(hosts, hostOf(e))
		}
	}
	x.hosts.Store(x.resolver.table(ctx, hosts, networks, ask))
	var entries []exchange.Entry
	x.server.Do(func(_ fleet.Time, b *exchange.Book) { entries = b.Entries() })
	f := &findings{is: match(all, entries), pairs: map[string]barring{}}
	for _, s := range pools {
		name := s.pool.Name()
		f.pairs[name] = judge(by[s], f.is[name])
	}
	x.found.Store(f)
	told := map[string]map[fleet.EndpointID]toldBars{}
	for _, s := range pools {
		told[s.pool.Name()] = x.tell(s, by[s], f.pairs[s.pool.Name()])
	}
	x.told = told
}

// tell tells a pool what it has not been told before.
func (x *exchanger) tell(s *served, list []live.Endpoint, b barring) map[fleet.EndpointID]toldBars {
	name := s.pool.Name()
	now := map[fleet.EndpointID]toldBars{}
	for _, e := range list {
		next := toldBars{e.Gen, b.by[e.ID]}
		now[e.ID] = next
		last, known := x.told[name][e.ID]
		if len(next.sources) == 0 && !known || known && last.gen == next.gen && slices.Equal(last.sources, next.sources) {
			continue
		}
		s.pool.Bar(e, next.sources)
		if len(last.sources) != len(next.sources) {
			x.app.log.Info("pairs were judged", "pool", name, "endpoint", e.Name, "cannot_use_kv_of", len(next.sources))
		}
	}
	return now
}

// why says why a pair of a pool cannot exchange KV; "" for one that is not known
// to be so.
func (x *exchanger) why(pool string, p fleet.Pair) string {
	if x == nil {
		return ""
	}
	return x.found.Load().pairs[pool].why[p]
}

// close ends the port; who is waiting there is cut off.
func (x *exchanger) close() error {
	if x == nil {
		return nil
	}
	x.keep()
	if x.port == nil {
		return nil
	}
	return x.port.Close()
}

// keep writes what engines will not say again.
func (x *exchanger) keep() {
	path := x.app.o.Config.Transfer.State
	if path == "" {
		return
	}
	data, err := x.server.Keep()
	if err == nil {
		err = replaceFile(path, data)
	}
	if err != nil {
		x.app.log.Warn("what engines have said is not kept", "file", path, "err", err)
	}
}

// replaceFile writes a file as a whole: who reads it sees the old or the new.
func replaceFile(path string, data []byte) error {
	const private = 0o600
	part := path + ".part"
	if err := os.WriteFile(part, data, private); err != nil {
		return err
	}
	return os.Rename(part, path)
}

// restore reads it.
func (x *exchanger) restore() {
	path := x.app.o.Config.Transfer.State
	if path == "" {
		return
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err == nil {
		err = x.server.Restore(data)
	}
	if err != nil {
		x.app.log.Warn("what engines had said cannot be read; they will have to say it again", "file", path, "err", err)
	}
}

// TransferURL returns the base URL of the exchange, "" where it has no port.
func (a *App) TransferURL() string {
	switch x := a.exchange; {
	case x == nil || x.port == nil:
		return ""
	case a.o.Transfer.TLS.Enabled():
		return "https://" + x.addr
	default:
		return "http://" + x.addr
	}
}
