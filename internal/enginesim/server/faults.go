package server

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Fault is one way to misbehave; see the package comment.
type Fault struct {
	Kind  string `json:"kind"`
	Count int    `json:"count,omitempty"` // requests it hits; 0: all until mended
	After int    `json:"after,omitempty"` // requests it spares before
	All   bool   `json:"all,omitempty"`   // every route but /sim, not only those that use the engine

	Status  int     `json:"status,omitempty"`   // refuse
	DelayMS float64 `json:"delay_ms,omitempty"` // delay, on the wall clock
	Tokens  int     `json:"tokens,omitempty"`   // cut, cut-event
	Bytes   int     `json:"bytes,omitempty"`    // garbage, garbage-body, metrics-huge
	Factor  float64 `json:"factor,omitempty"`   // slow
	Batches int     `json:"batches,omitempty"`  // kv-ring-short
	Clear   bool    `json:"clear,omitempty"`    // kv-restart
}

// faultKinds are the kinds there are. Those of requests are tried in this
// order.
var faultKinds = []string{
	"delay", "hang", "refuse", "garbage", "garbage-body", "cut", "cut-event",
	"metrics-stale", "metrics-missing", "metrics-empty", "metrics-huge", "slow", "crash",
	"kv-drop", "kv-swap", "kv-duplicate", "kv-corrupt", "kv-malformed", "kv-unknown",
	"kv-ring-short", "kv-replay-off", "kv-replay-slow", "kv-restart",
	"pd-die-before", "pd-die-after", "pd-die-before-pull", "pd-die-after-pull", "pd-side-gone", "pd-restart", "pd-restart-after", "pd-stale",
	"pd-slow-link", "pd-expire", "pd-no-heartbeat", "pd-incompatible", "pd-hang", "pd-wrong-block", "pd-unregistered", "pd-pull-stall",
	"ec-lost", "ec-wrong",
}

// validate fills in defaults and says what is wrong.
func (f *Fault) validate() error {
	if !slices.Contains(faultKinds, f.Kind) {
		return badRequest("kind", "kind: %q is not known; use one of %s", f.Kind, strings.Join(faultKinds, ", "))
	}
	if f.Count < 0 || f.After < 0 || f.DelayMS < 0 || f.Tokens < 0 || f.Bytes < 0 || f.Factor < 0 || f.Batches < 0 {
		return badRequest("", "count, after, delay_ms, tokens, bytes, factor and batches must not be negative")
	}
	switch f.Kind {
	case "refuse":
		fill(&f.Status, http.StatusServiceUnavailable)
		if f.Status < 400 || f.Status > 599 {
			return badRequest("status", "status: %d is not a refusal; use 400 to 599", f.Status)
		}
	case "slow":
		fill(&f.Factor, 3)
	case "pd-slow-link":
		fill(&f.Factor, 10)
	case "garbage", "garbage-body":
		fill(&f.Bytes, 512)
	case "metrics-huge":
		fill(&f.Bytes, 50_000_000)
	}
	return nil
}

// faults is what an engine suffers from, at most one of each kind.
type faults struct {
	server *Server
	mu     sync.Mutex
	active map[string]*Fault
	stale  []byte // the metrics page of metrics-stale
}

// cut is a fault on the way of an answer.
type cut struct {
	after  int // tokens
	inside bool
}

func (f *faults) init(s *Server) { f.server, f.active = s, make(map[string]*Fault) }

// hit returns the active fault of a kind and counts the hit. scoped asks for
// faults that reach beyond the routes that use the engine.
func (f *faults) hit(kind string, scoped bool) (Fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.active[kind]
	if a == nil || scoped && !a.All {
		return Fault{}, false
	}
	if a.After > 0 {
		a.After--
		return Fault{}, false
	}
	if a.Count > 0 {
		if a.Count--; a.Count == 0 {
			delete(f.active, kind)
		}
	}
	return *a, true
}

// cut returns how this answer is to be broken off; nil for not at all.
func (f *faults) cut() *cut {
	if a, ok := f.hit("cut", false); ok {
		return &cut{after: a.Tokens}
	}
	if a, ok := f.hit("cut-event", false); ok {
		return &cut{after: a.Tokens, inside: true}
	}
	return nil
}

// faulty puts the faults of requests before a handler.
func (s *Server) faulty(inference bool, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if f, ok := s.faults.hit("delay", !inference); ok {
			s.pause(r, time.Duration(f.DelayMS*float64(time.Millisecond)))
		}
		if _, ok := s.faults.hit("hang", !inference); ok {
			// A disconnect is seen only after the body has been read.
			_, _ = io.Copy(io.Discard, r.Body)
			s.pause(r, -1)
			panic(http.ErrAbortHandler)
		}
		if f, ok := s.faults.hit("refuse", !inference); ok {
			s.fail(w, r, &apiError{f.Status, "the engine refuses by order", ""})
			return
		}
		if f, ok := s.faults.hit("garbage", !inference); ok {
			spill(w, f.Bytes)
			return
		}
		if f, ok := s.faults.hit("garbage-body", !inference); ok {
			w.Header().Set("Content-Type", "application/json")
			w.Write(noise(f.Bytes))
			return
		}
		h(w, r)
	}
}

// pause waits for d, or for ever when d is negative, unless the client goes or
// the engine stops.
func (s *Server) pause(r *http.Request, d time.Duration) {
	var due <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-due:
	case <-r.Context().Done():
	case <-s.closed:
	}
}

// noise is n bytes that are neither HTTP, JSON nor SSE.
func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(0x80 + i*37%101)
	}
	return b
}

// spill answers with bytes that are not HTTP.
func spill(w http.ResponseWriter, n int) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // no connection to spoil; break it off instead
	}
	defer conn.Close()
	_, _ = conn.Write(noise(n)) // the client may be gone
}

func (s *Server) setFault(w http.ResponseWriter, r *http.Request) {
	var f Fault
	err := readJSON(r, &f)
	if err == nil {
		err = s.checkFault(&f)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if f.Kind != "crash" {
		s.apply(f)
		writeJSON(w, http.StatusOK, f)
		return
	}
	// A crash waits for nobody: the answer goes first.
	writeJSON(w, http.StatusOK, f)
	_ = http.NewResponseController(w).Flush()
	s.apply(f)
}

// checkFault fills in defaults and says what is wrong for this engine.
func (s *Server) checkFault(f *Fault) error {
	if err := f.validate(); err != nil {
		return err
	}
	if s.kv == nil && strings.HasPrefix(f.Kind, "kv-") {
		return badRequest("kind", "kind: %q is for engines that publish KV events; this one was started without", f.Kind)
	}
	if s.pd == nil && strings.HasPrefix(f.Kind, "pd-") {
		return badRequest("kind", "kind: %q is for engines with a KV connector; this one was started without", f.Kind)
	}
	return nil
}

// SetFault makes the engine misbehave, as POST /sim/fault does.
func (s *Server) SetFault(f Fault) error {
	if err := s.checkFault(&f); err != nil {
		return fmt.Errorf("setting a fault: %w", err)
	}
	s.apply(f)
	return nil
}

// Suffers reports whether a fault of a kind is active.
func (s *Server) Suffers(kind string) bool {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	return s.faults.active[kind] != nil
}

// ClearFault mends the fault of one kind, or all when kind is empty.
func (s *Server) ClearFault(kind string) {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	for k := range s.faults.active {
		if kind == "" || k == kind {
			delete(s.faults.active, k)
			if k == "slow" {
				s.setSlow(1)
			}
		}
	}
}

func (s *Server) apply(f Fault) {
	switch f.Kind {
	case "crash":
		go s.crash()
	case "kv-restart":
		s.restartKV(f.Clear)
	case "pd-restart":
		s.restartPD()
	default:
		s.faults.set(f)
	}
}

// set makes f active in place of any other of its kind.
func (f *faults) set(a Fault) {
	var page []byte
	if a.Kind == "metrics-stale" {
		page = f.server.metricsPage()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active[a.Kind] = &a
	if page != nil {
		f.stale = page
	}
	if a.Kind == "slow" {
		f.server.setSlow(a.Factor)
	}
}

func (s *Server) clearFault(w http.ResponseWriter, r *http.Request) {
	kind := r.URL.Query().Get("kind")
	if kind != "" && !slices.Contains(faultKinds, kind) {
		s.fail(w, r, badRequest("kind", "kind: %q is not known; use one of %s", kind, strings.Join(faultKinds, ", ")))
		return
	}
	s.ClearFault(kind)
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) setSlow(factor float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.throttle.set(factor)
}

// crash ends the engine as a killed process would.
func (s *Server) crash() {
	if s.onCrash != nil {
		s.onCrash()
		return
	}
	s.Close()
}

func (s *Server) showState(w http.ResponseWriter, _ *http.Request) {
	stats := s.Stats()
	s.faults.mu.Lock()
	active := make([]Fault, 0, len(s.faults.active))
	for _, k := range faultKinds {
		if f := s.faults.active[k]; f != nil {
			active = append(active, *f)
		}
	}
	s.faults.mu.Unlock()
	o := s.options
	writeJSON(w, http.StatusOK, map[string]any{
		"model": o.Model, "accelerator": o.Accelerator, "tp": o.TP, "replica": o.Replica, "speedup": o.Speedup,
		"kv_tokens": o.KVTokens, "uptime_seconds": time.Since(s.epoch).Seconds(),
		"faults": active, "running": stats.Running, "waiting": stats.Waiting,
		"blocks_total": stats.TotalBlocks, "blocks_used": stats.UsedBlocks, "blocks_cached": stats.CachedBlocks,
		"blocks_evicted": stats.EvictedBlocks, "preemptions": stats.Preemptions, "aborts": stats.Finished[0],
		"images": s.ImageCounts(), "steps": stats.Steps, "busy_seconds": stats.Busy.Seconds(),
	})
}
