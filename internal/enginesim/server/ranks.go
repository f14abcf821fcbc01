package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Group is the data-parallel ranks of one engine, each with a cache and KV events
// of its own: as servers at ports in a row, or behind one. They step each for
// itself and hold the whole model, as those of a dense model do.
type Group struct {
	Nodes []*Node // by rank

	front *http.Server // nil where each rank has a port of its own
	url   string
	turn  atomic.Uint64 // of requests that name no rank
	done  chan struct{}
	ended sync.Once
	work  sync.WaitGroup
}

// rankHeader names the rank that a request is for.
const rankHeader = "X-Data-Parallel-Rank"

// rankTries is how often a row of free ports is looked for: another process may
// take one between the look and the use.
const rankTries = 8

// ListenRanks starts n ranks: behind addr alone, where shared, and else at ports
// from addr's on. KV events and replays are at ports in a row in any case. The
// caller ends the group with Shutdown or Close.
func ListenRanks(addr string, n int, shared bool, c Config) (*Group, error) {
	if n < 1 {
		return nil, fmt.Errorf("simulated engine: dp: %d is not possible; use a number above 0", n)
	}
	c.DP, c.EP = 1, 0
	for try := 1; ; try++ {
		g, err := listenRanks(addr, n, shared, c)
		if err == nil || try == rankTries {
			return g, err
		}
	}
}

func listenRanks(addr string, n int, shared bool, c Config) (*Group, error) {
	var err error
	for _, first := range []*string{&addr, &c.KVEvents, &c.KVReplay} {
		if *first != "" && (first != &addr || !shared) {
			if *first, err = inARow(*first, n); err != nil {
				return nil, fmt.Errorf("simulated engine: %d ports in a row: %w", n, err)
			}
		}
	}
	g := &Group{done: make(chan struct{})}
	for i := range n {
		if err := g.add(addr, i, shared, c); err != nil {
			return nil, errors.Join(err, g.Close())
		}
	}
	if shared {
		if err := g.listen(addr, c); err != nil {
			return nil, errors.Join(err, g.Close())
		}
	}
	for _, node := range g.Nodes { // an engine is as long as all its ranks are
		g.work.Go(func() {
			<-node.Done()
			g.end()
		})
	}
	return g, nil
}

// inARow returns an address from whose port on n are free, if that of first is 0.
// Where much goes on, the neighbour of a free port is as likely in use as not.
func inARow(first string, n int) (string, error) {
	host, port, err := net.SplitHostPort(strings.TrimPrefix(first, "tcp://"))
	if err != nil || port != "0" {
		return first, err
	}
	const tries = 64
	for range tries {
		if first, err = freeInARow(host, n); err == nil {
			break
		}
	}
	return first, err
}

func freeInARow(host string, n int) (string, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return "", err
	}
	defer l.Close()
	free := l.Addr().String()
	for i := 1; i < n; i++ {
		at, err := kvAddress(free, i)
		if err != nil {
			return "", err
		}
		next, err := net.Listen("tcp", at)
		if err != nil {
			return "", err
		}
		defer next.Close()
	}
	return free, nil
}

// add starts the next rank.
func (g *Group) add(addr string, rank int, shared bool, c Config) error {
	c.KVRank = rank
	if !shared {
		at, err := kvAddress(addr, rank)
		if err != nil {
			return fmt.Errorf("simulated engine: %w", err)
		}
		n, err := Listen(at, c)
		if err == nil {
			g.Nodes = append(g.Nodes, n)
		}
		return err
	}
	n, err := newNode(c)
	if err != nil {
		return err
	}
	if err := n.start(); err != nil {
		return err
	}
	g.Nodes = append(g.Nodes, n)
	return nil
}

// listen opens the one port of all ranks.
func (g *Group) listen(addr string, c Config) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("simulated engine: listening on %s: %w", addr, err)
	}
	g.url, g.front = urlOf(l, c), c.httpServer(g)
	g.work.Go(func() { serveHTTP(g.front, l) })
	return nil
}

// ServeHTTP passes a request on to the rank that it names, or to the next.
func (g *Group) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/metrics":
		g.metrics(w, r)
		return
	case strings.HasSuffix(r.URL.Path, "load_lora_adapter"):
		g.everywhere(w, r)
		return
	}
	rank := 0
	if named := r.Header.Get(rankHeader); named != "" {
		var err error
		if rank, err = strconv.Atoi(named); err != nil || rank < 0 || rank >= len(g.Nodes) {
			writeError(w, badRequest("", "data_parallel_rank %s is out of range [0, %d).", named, len(g.Nodes)))
			return
		}
	} else if r.Method == http.MethodPost {
		rank = int(g.turn.Add(1) % uint64(len(g.Nodes)))
	}
	g.Nodes[rank].Server.Handler().ServeHTTP(w, r)
}

// everywhere has all ranks do what is asked; the first one answers.
func (g *Group) everywhere(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		writeError(w, badRequest("", "%v", err))
		return
	}
	for i, n := range g.Nodes {
		again := r.Clone(r.Context())
		again.Body = io.NopCloser(bytes.NewReader(body))
		to := http.ResponseWriter(w)
		if i > 0 {
			to = &kept{}
		}
		n.Server.Handler().ServeHTTP(to, again)
	}
}

// metrics shows the samples of all ranks, family by family.
func (g *Group) metrics(w http.ResponseWriter, r *http.Request) {
	var order []string
	families := map[string][]string{}
	for i, n := range g.Nodes {
		page := &kept{}
		n.Server.Handler().ServeHTTP(page, r)
		if i == 0 && page.status > http.StatusOK {
			w.WriteHeader(page.status)
			return
		}
		family := ""
		for line := range strings.Lines(page.body.String()) {
			if name, ok := strings.CutPrefix(line, "# HELP "); ok {
				family, _, _ = strings.Cut(name, " ")
				if families[family] == nil {
					order = append(order, family)
				}
			}
			if i == 0 || !strings.HasPrefix(line, "#") && strings.Contains(line, "engine=") {
				families[family] = append(families[family], line)
			}
		}
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	for _, family := range order {
		_, _ = io.WriteString(w, strings.Join(families[family], ""))
	}
}

// kept is an answer that is looked at before it is sent, if it is.
type kept struct {
	header http.Header
	status int // 0: 200
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (k *kept) Header() http.Header {
	if k.header == nil {
		k.header = http.Header{}
	}
	return k.header
}

// WriteHeader implements http.ResponseWriter.
func (k *kept) WriteHeader(status int) { k.status = status }

// Write implements http.ResponseWriter.
func (k *kept) Write(b []byte) (int, error) { return k.body.Write(b) }

// URL returns where a rank is served.
func (g *Group) URL(rank int) string {
	if g.front != nil {
		return g.url
	}
	return g.Nodes[rank].URL()
}

// Done is closed once a rank serves no more.
func (g *Group) Done() <-chan struct{} { return g.done }

func (g *Group) end() { g.ended.Do(func() { close(g.done) }) }

// Shutdown stops accepting, lets requests finish until ctx ends, then closes.
func (g *Group) Shutdown(ctx context.Context) error {
	var errs []error
	if g.front != nil {
		errs = append(errs, g.front.Shutdown(ctx))
	}
	for _, n := range g.Nodes {
		errs = append(errs, n.Shutdown(ctx))
	}
	return errors.Join(append(errs, g.Close())...)
}

// Close ends all ranks as if their processes were killed.
func (g *Group) Close() error {
	var errs []error
	if g.front != nil {
		errs = append(errs, g.front.Close())
	}
	for _, n := range g.Nodes {
		errs = append(errs, n.Close())
	}
	g.work.Wait()
	g.end()
	return errors.Join(errs...)
}
