package server

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// rest is why the engine does not take requests. It is guarded by Server.mu.
//
// What real vLLM does with a request while it sleeps depends on the release:
// some hold it until the engine wakes, some have crashed. This one holds it,
// as it does while paused, or refuses it with Options.RefuseAsleep. Waking up
// takes no time here.
type rest struct {
	paused bool
	level  int      // of sleep; 0 for awake or only held
	asleep []string // what sleeps: weights, kv_cache
	gate   chan struct{}
	idle   chan struct{} // closed when no request is left; nil if nobody waits for that

	// While frozen the engine's clock stands still, so that requests which are
	// kept go on where they were.
	frozen  bool
	stopped fleet.Time    // what the clock shows meanwhile
	lost    time.Duration // how far the clock is behind, of all freezes before
}

// settle opens or shuts the gate after a change. It needs s.mu.
func (s *Server) settle() {
	rests := s.rest.paused || len(s.rest.asleep) > 0
	switch {
	case rests && s.rest.gate == nil:
		s.rest.gate = make(chan struct{})
	case !rests && s.rest.gate != nil:
		close(s.rest.gate)
		s.rest.gate = nil
		if s.rest.frozen {
			s.rest.lost = time.Since(s.epoch) - time.Duration(s.rest.stopped)
			s.rest.frozen = false
		}
	}
	nudge(s.wake)
}

// heldError holds a request back until the gate opens.
type heldError struct{ gate <-chan struct{} }

// Error says what the request waits for.
func (heldError) Error() string { return "the engine is paused or asleep" }

// heldLocked returns what holds new requests back, if anything.
func (s *Server) heldLocked() error {
	if s.rest.gate == nil {
		return nil
	}
	if s.options.RefuseAsleep && len(s.rest.asleep) > 0 {
		return &apiError{http.StatusServiceUnavailable, "The engine is asleep.", ""}
	}
	return heldError{s.rest.gate}
}

// stop deals with the requests under way, after the gate is shut: abort ends
// them, wait lets them end, keep freezes them. It reports whether that was done
// before the client of r went or the engine stopped.
func (s *Server) stop(r *http.Request, mode string) bool {
	s.mu.Lock()
	switch mode {
	case "keep":
		if !s.rest.frozen {
			s.rest.stopped, s.rest.frozen = s.now(), true
		}
	case "abort":
		for _, l := range s.legs {
			s.abortLocked(l.call)
		}
	}
	var idle chan struct{}
	if len(s.legs) > 0 && mode == "wait" {
		if s.rest.idle == nil {
			s.rest.idle = make(chan struct{})
		}
		idle = s.rest.idle
	}
	s.mu.Unlock()
	if idle == nil {
		return true
	}
	select {
	case <-idle:
		return true
	case <-r.Context().Done():
	case <-s.closed:
	}
	return false
}

// remove takes a leg off the books. It needs s.mu.
func (s *Server) remove(id fleet.ReqID) {
	delete(s.legs, id)
	s.rousePD()
	if len(s.legs) == 0 && s.rest.idle != nil {
		close(s.rest.idle)
		s.rest.idle = nil
	}
}

// routesDev adds what vLLM has with VLLM_SERVER_DEV_MODE=1.
func (s *Server) routesDev(add func(method, path string, inference bool, h http.HandlerFunc)) {
	add("POST", "/sleep", false, s.sleep)
	add("POST", "/wake_up", false, s.wakeUp)
	add("GET", "/is_sleeping", false, func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		asleep := len(s.rest.asleep) > 0
		s.mu.Unlock()
		writeJSON(w, http.StatusOK, map[string]bool{"is_sleeping": asleep})
	})
	add("POST", "/pause", false, s.pauseEngine)
	add("POST", "/resume", false, s.resume)
	add("GET", "/is_paused", false, func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		paused := s.rest.paused
		s.mu.Unlock()
		writeJSON(w, http.StatusOK, map[string]bool{"is_paused": paused})
	})
	add("POST", "/reset_prefix_cache", false, func(_ http.ResponseWriter, r *http.Request) {
		// As in vLLM the answer is 200 even if blocks in use prevented it.
		s.dropCache(r.URL.Query().Get("reset_running_requests") == "true")
	})
	for _, path := range []string{"/reset_mm_cache", "/reset_encoder_cache"} {
		add("POST", path, false, func(http.ResponseWriter, *http.Request) {}) // there is none
	}
	add("POST", "/abort_requests", false, s.abortRequests)
	add("GET", "/server_info", false, func(w http.ResponseWriter, _ *http.Request) {
		o := s.options
		writeJSON(w, http.StatusOK, map[string]any{"vllm_config": map[string]any{
			"model_config":     map[string]any{"model": o.Model, "max_model_len": o.MaxModelLen, "seed": o.Seed},
			"cache_config":     map[string]any{"block_size": o.Limits().BlockTokens, "num_gpu_blocks": o.KVTokens / o.Limits().BlockTokens, "enable_prefix_caching": true},
			"parallel_config":  map[string]any{"tensor_parallel_size": o.TP, "pipeline_parallel_size": 1, "data_parallel_size": 1},
			"scheduler_config": map[string]any{"max_num_seqs": o.MaxSeqs, "max_num_batched_tokens": o.BudgetTokens},
		}})
	})
}

// modeOf reads what to do with requests under way; abort unless said.
func modeOf(r *http.Request) (string, error) {
	mode := r.URL.Query().Get("mode")
	fill(&mode, "abort")
	if !slices.Contains([]string{"abort", "wait", "keep"}, mode) {
		return "", badRequest("mode", "mode: %q is not known; use abort, wait or keep", mode)
	}
	return mode, nil
}

// sleep discards the KV cache, and weights as the level says. Level 0 only
// stops.
func (s *Server) sleep(w http.ResponseWriter, r *http.Request) {
	level := 1
	mode, err := modeOf(r)
	if text := r.URL.Query().Get("level"); text != "" && err == nil {
		if level, err = strconv.Atoi(text); err != nil || level < 0 || level > 2 {
			err = badRequest("level", "level: %q is not 0, 1 or 2", text)
		}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.mu.Lock()
	s.rest.level, s.rest.asleep = level, []string{"weights", "kv_cache"}
	s.settle()
	s.mu.Unlock()
	if s.stop(r, mode) && level > 0 {
		s.dropCache(true)
	}
}

// wakeUp wakes what is named by tags, or all. Requests are taken when nothing
// sleeps any more.
func (s *Server) wakeUp(_ http.ResponseWriter, r *http.Request) {
	tags := r.URL.Query()["tags"]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rest.asleep = slices.DeleteFunc(s.rest.asleep, func(t string) bool { return len(tags) == 0 || slices.Contains(tags, t) })
	if len(s.rest.asleep) == 0 {
		s.rest.level = 0
	}
	s.settle()
}

func (s *Server) pauseEngine(w http.ResponseWriter, r *http.Request) {
	mode, err := modeOf(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.mu.Lock()
	s.rest.paused = true
	s.settle()
	s.mu.Unlock()
	if s.stop(r, mode) && r.URL.Query().Get("clear_cache") != "false" && mode != "keep" {
		s.dropCache(true)
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "paused"})
}

func (s *Server) resume(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	s.rest.paused = false
	s.settle()
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, map[string]string{"status": "resumed"})
}

// abortRequests ends the named requests, or all if none is named. Ids may have
// the prefix that answers give them.
func (s *Server) abortRequests(w http.ResponseWriter, r *http.Request) {
	var q struct {
		IDs []string `json:"request_ids"`
	}
	if err := readJSON(r, &q); err != nil {
		s.fail(w, r, err)
		return
	}
	s.abortWhere(func(id string) bool {
		return len(q.IDs) == 0 || slices.ContainsFunc(q.IDs, func(asked string) bool {
			_, bare, _ := strings.Cut(asked, "-")
			return asked == id || bare == id
		})
	})
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// appendSleep writes vllm:engine_sleep_state as of now. It needs s.mu.
func (s *Server) appendSleep(b []byte) []byte {
	const name = "vllm:engine_sleep_state"
	b = appendFamily(b, name, "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.", "gauge")
	asleep := len(s.rest.asleep) > 0
	for _, state := range []struct {
		name string
		on   bool
	}{{"awake", !asleep}, {"weights_offloaded", asleep && s.rest.level == 1}, {"discard_all", asleep && s.rest.level == 2}} {
		v := 0.0
		if state.on {
			v = 1
		}
		b = appendSample(b, name, vllmLabels(s.options)+`,sleep_state="`+state.name+`"`, v)
	}
	return b
}
