package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
)

// Version is what GET /version reports: the vLLM release whose surface this is.
const Version = "0.29.0"

// Config is what a Server is made of.
type Config struct {
	Options
	// OnCrash is called, in its own goroutine, when the crash fault is set. A
	// process that simulates one engine exits here. When nil, a Node breaks off
	// everything and a bare Server only stops its engine.
	OnCrash func()
	// TLS makes a Node serve over it. It must have certificates.
	TLS *tls.Config
}

// Server is one simulated engine with vLLM's HTTP surface. Make it with New,
// drive it with Run, serve its Handler; or have Listen do all three.
type Server struct {
	options Options
	epoch   time.Time
	handler http.Handler
	faults  faults
	kv      *feed // nil: no KV events
	pd      *pd   // nil: no part in requests of two legs
	eyes    *eyes
	onCrash func()

	wake   chan struct{} // one slot: the engine has something new
	closed chan struct{} // the engine has stopped; handlers break off
	close  func()
	load   atomic.Int64 // requests under way

	responses  responseStore
	background sync.WaitGroup // what later started

	mu       sync.Mutex // guards everything below
	rest     rest
	engine   *enginesim.Engine
	throttle *throttle
	legs     map[fleet.ReqID]*leg
	underWay map[string]int // requests by the id that clients know them by
	loras    []loraModule
	loraSeen []loraSeries
	lastID   fleet.ReqID
	outputs  []enginesim.Output
	metrics  meter
}

// leg is one sequence in the engine: one choice of one request.
type leg struct {
	call      *call
	choice    *choice
	prompt    fleet.Tokens
	asked     fleet.Tokens // max_tokens of the request
	submitted fleet.Time
	last      fleet.Time // of the latest token
	first     fleet.Time

	cached atomic.Int64
	have   atomic.Int64 // tokens generated so far
	state  atomic.Int32 // set after have
}

// The states of a leg.
const (
	legRuns int32 = iota
	legDone
	legAborted // by order, not by its client
)

// call is one HTTP request and what wakes its handler.
type call struct {
	id   string // as its client knows it
	ids  []fleet.ReqID
	legs []leg
	wake chan struct{} // one slot

	failure atomic.Pointer[error] // nil: none
}

// fail has the handler end with err; it must be woken.
func (c *call) fail(err error) { c.failure.CompareAndSwap(nil, &err) }

// failed is why the handler must end.
func (c *call) failed() error {
	if err := c.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// New returns a server of a valid configuration; Config.Validate says what is
// wrong with another. Nothing is answered until Run runs.
func New(c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("simulated engine: %w", err)
	}
	o := c.withDefaults()
	s := &Server{}
	e, t, err := o.newEngine(s.describe)
	if err != nil {
		return nil, fmt.Errorf("simulated engine: %w", err)
	}
	*s = Server{
		options: o, epoch: time.Now(), onCrash: c.OnCrash,
		wake: make(chan struct{}, 1), closed: make(chan struct{}),
		engine: e, throttle: t, legs: make(map[fleet.ReqID]*leg), underWay: make(map[string]int), metrics: newMeter(o),
		kv: newFeed(o), pd: newPD(o), eyes: newEyes(),
	}
	s.close = sync.OnceFunc(func() { close(s.closed) })
	for _, l := range o.LoRAs {
		s.loras = append(s.loras, parseLoRA(l))
	}
	s.faults.init(s)
	s.handler = s.routes()
	return s, nil
}

// Options returns the server's options with defaults filled in.
func (s *Server) Options() Options { return s.options }

// Handler returns the HTTP surface. It may be served before Run, but requests
// wait for it.
func (s *Server) Handler() http.Handler { return s.handler }

// Run drives the engine on the wall clock until ctx ends or Close is called.
// Unanswered requests are then broken off. It may be called once.
func (s *Server) Run(ctx context.Context) {
	defer s.kv.shut()
	defer s.finishBackground()
	defer s.close()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		var due <-chan time.Time
		if wait, ok := s.advance(); ok {
			timer.Reset(wait)
			due = timer.C
		}
		s.tell()
		select {
		case <-ctx.Done():
			return
		case <-s.closed:
			return
		case <-s.wake:
		case <-due:
		}
	}
}

// Close stops the engine and breaks off unanswered requests. It does not wait
// for Run to return.
func (s *Server) Close() { s.close() }

// later runs work that no client waits for, until the engine stops; it must end
// then. It reports whether it does.
func (s *Server) later(work func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
		return false
	default:
		s.background.Go(work)
		return true
	}
}

// finishBackground waits for the end of that work once the engine is closed.
func (s *Server) finishBackground() {
	s.mu.Lock()   // whoever is in later has begun
	s.mu.Unlock() //nolint:staticcheck // SA2001: nothing is left to do under it
	s.background.Wait()
}

// now is the wall clock on the engine's scale, less the time that the engine
// was frozen. It needs s.mu.
func (s *Server) now() fleet.Time {
	if s.rest.frozen {
		return s.rest.stopped
	}
	return fleet.Time(time.Since(s.epoch) - s.rest.lost)
}

// advance runs the engine up to now, hands out what it made, and returns how
// soon to come back, if it must.
func (s *Server) advance() (time.Duration, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var next fleet.Time
	s.outputs, next = s.engine.Advance(s.now(), s.outputs[:0])
	s.collect()
	for i := range s.outputs {
		s.deliver(&s.outputs[i])
	}
	return s.watchLeases(next.Sub(s.now()), next != fleet.Never && !s.rest.frozen)
}

// deliver passes one output on to its request and to the metrics.
func (s *Server) deliver(o *enginesim.Output) {
	if o.Kind == enginesim.KindStep {
		s.metrics.step(o)
		return
	}
	l := s.legs[o.Req]
	if l == nil && o.Kind == enginesim.KindTokens && o.Finish != enginesim.NotFinished {
		// It has been computed while its client left: nobody knows of what was to be
		// kept for another engine.
		s.engine.Release(s.now(), o.Req)
	}
	if l == nil || o.Kind != enginesim.KindTokens {
		return
	}
	s.metrics.token(l, o)
	l.cached.Store(int64(max(o.Cached, min(l.choice.received(), l.prompt-1))))
	l.have.Store(int64(o.Tokens))
	if o.Finish != enginesim.NotFinished {
		if s.hold(o.Req, l) {
			return
		}
		l.state.Store(legDone)
		s.remove(o.Req)
	}
	nudge(l.call.wake)
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// submit puts all choices into the engine at one instant.
func (s *Server) submit(id string, choices []choice) (*call, error) {
	c := &call{id: id, legs: make([]leg, len(choices)), wake: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.heldLocked(); err != nil {
		return nil, err
	}
	now := s.now()
	for i := range choices {
		ch := &choices[i]
		s.lastID++
		id := s.lastID
		err := s.engine.Submit(now, enginesim.Request{
			ID: id, Chain: ch.answer.chain, Prompt: fleet.Tokens(ch.prompt),
			Output: fleet.Tokens(len(ch.answer.ends)), Finish: ch.answer.finish,
			Adapter: ch.adapter, Pool: ch.pool, Received: ch.received(), Keep: ch.keeps(),
		})
		if err != nil {
			s.dropLocked(c)
			return nil, err
		}
		l := &c.legs[i]
		l.call, l.choice, l.prompt, l.asked, l.submitted = c, ch, fleet.Tokens(ch.prompt), fleet.Tokens(ch.max), now
		s.legs[id] = l
		c.ids = append(c.ids, id)
	}
	nudge(s.wake)
	return c, nil
}

// drop takes what is left of a call out of the engine. Blocks are free at once.
func (s *Server) drop(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropLocked(c)
}

func (s *Server) dropLocked(c *call) {
	for _, id := range c.ids {
		if s.legs[id] != nil {
			s.engine.Abort(s.now(), id)
			s.remove(id)
		}
	}
	nudge(s.wake)
}

// abort ends what is left of a call; its handler answers with what there is. It
// reports whether anything was left.
func (s *Server) abort(c *call) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.abortLocked(c)
}

func (s *Server) abortLocked(c *call) bool {
	found := false
	for i, id := range c.ids {
		if s.legs[id] != nil {
			found = true
			s.engine.Abort(s.now(), id)
			s.remove(id)
			c.legs[i].state.Store(legAborted)
		}
	}
	nudge(c.wake)
	nudge(s.wake)
	return found
}

// Stats returns the engine's gauges and counters.
func (s *Server) Stats() enginesim.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.statsLocked()
}

// statsLocked counts requests that wait for KV among those that wait.
func (s *Server) statsLocked() enginesim.Stats {
	st := s.engine.Stats()
	if s.pd != nil {
		st.Waiting += s.pd.incoming
	}
	return st
}
