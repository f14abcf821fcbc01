package app

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/live"
)

// listed takes what an endpoint says it serves: its adapters become models of
// the pool for as long as some endpoint has them, and requests for one go only
// where it is.
func (s *served) listed(e live.Endpoint, models []engine.Model) {
	var here []gateway.Model
	var set []fleet.Adapter
	longest := fleet.Tokens(0)
	for _, m := range models {
		if m.Parent != "" {
			here = append(here, gateway.Model{ID: m.ID, Created: s.app.started, MaxModelLen: m.MaxModelLen, Parent: m.Parent})
			set = append(set, fleet.AdapterOf(m.ID))
		} else {
			longest = max(longest, m.MaxModelLen)
		}
	}
	if models != nil {
		s.pool.Serves(e, set)
	}
	if s.setListed(e.Name, here, longest) {
		t := s.app.fleet
		t.mu.Lock()
		defer t.mu.Unlock()
		t.publishLocked()
	}
}

// setListed notes the adapters and the context length of one endpoint and reports
// whether that changed any.
func (s *served) setListed(endpoint string, models []gateway.Model, maxLen fleet.Tokens) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(s.adapters[endpoint], models) && s.lengths[endpoint] == maxLen {
		return false
	}
	if s.lengths == nil {
		s.lengths = map[string]fleet.Tokens{}
	}
	s.lengths[endpoint] = maxLen
	if s.adapters == nil {
		s.adapters = map[string][]gateway.Model{}
	}
	if s.adapters[endpoint] = models; len(models) == 0 {
		delete(s.adapters, endpoint)
	}
	s.joinLocked()
	return true
}

// joinLocked puts together what the pool answers to: its own models first, then
// the adapters of its endpoints.
func (s *served) joinLocked() {
	s.answers = slices.Clone(s.models)
	// What one endpoint can hold is not refused for the sake of another.
	longest := fleet.Tokens(0)
	for _, n := range s.lengths {
		longest = max(longest, n)
	}
	for i := range s.answers {
		if s.answers[i].MaxModelLen == 0 {
			s.answers[i].MaxModelLen = longest
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.adapters)) {
		for _, m := range s.adapters[name] {
			if !slices.ContainsFunc(s.answers, func(k gateway.Model) bool { return k.ID == m.ID }) {
				s.answers = append(s.answers, m)
			}
		}
	}
}

// loader returns what has an adapter loaded at an endpoint, nil when the
// configuration does not say from where.
func (s *served) loader(name string) func(context.Context, live.Endpoint) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	path, ok := s.config.Adapters[name]
	if !ok {
		return nil
	}
	return func(ctx context.Context, e live.Endpoint) error { return s.load(ctx, e, name, path) }
}

// load has an adapter loaded at an endpoint that has not listed it. Requests for
// adapters of one endpoint wait for each other here, so that one is loaded once.
func (s *served) load(ctx context.Context, e live.Endpoint, name, path string) error {
	if s.lists(e, name) {
		return nil
	}
	turn, _ := s.loading.LoadOrStore(e.URL, make(chan struct{}, 1))
	select {
	case turn.(chan struct{}) <- struct{}{}:
		defer func() { <-turn.(chan struct{}) }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if s.lists(e, name) {
		return nil
	}
	start := time.Now()
	if err := s.client.LoadAdapter(ctx, s.loops.Dialect, e.URL, name, path); err != nil {
		return err
	}
	models, err := s.client.Models(ctx, e.URL)
	if err != nil {
		return fmt.Errorf("adapter %s was loaded, but: %w", name, err)
	}
	s.app.log.Info("adapter loaded", "pool", s.pool.Name(), "endpoint", e.Name, "adapter", name, "took", time.Since(start))
	for _, o := range s.pool.Endpoints() {
		if o.URL == e.URL { // ranks that share a port load together
			s.listed(o, models)
		}
	}
	return nil
}

// lists reports whether an endpoint is known to answer to an adapter.
func (s *served) lists(e live.Endpoint, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.adapters[e.Name], func(m gateway.Model) bool { return m.ID == name })
}
