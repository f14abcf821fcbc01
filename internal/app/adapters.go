package app

import (
	"maps"
	"slices"

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
	for _, m := range models {
		if m.Parent != "" {
			here = append(here, gateway.Model{ID: m.ID, Created: s.app.started, MaxModelLen: m.MaxModelLen, Parent: m.Parent})
			set = append(set, fleet.AdapterOf(m.ID))
		}
	}
	if models != nil {
		s.pool.Serves(e, set)
	}
	if s.setAdapters(e.Name, here) {
		t := s.app.fleet
		t.mu.Lock()
		defer t.mu.Unlock()
		t.publishLocked()
	}
}

// setAdapters notes the adapters of one endpoint and reports whether that
// changed any.
func (s *served) setAdapters(endpoint string, models []gateway.Model) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(s.adapters[endpoint], models) {
		return false
	}
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
	for _, name := range slices.Sorted(maps.Keys(s.adapters)) {
		for _, m := range s.adapters[name] {
			if !slices.ContainsFunc(s.answers, func(k gateway.Model) bool { return k.ID == m.ID }) {
				s.answers = append(s.answers, m)
			}
		}
	}
}
