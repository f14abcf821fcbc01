package kv

import (
	"slices"

	"penstock.dev/penstock/internal/fleet"
)

// Adapters is what one endpoint is believed to hold of LoRA adapters. Engines
// keep those used last, as many as they have slots, and tell only of those at
// work; the rest is remembered from what was sent there. The zero value holds
// nothing.
type Adapters struct {
	slots int // 0 unknown
	count int
	list  [fleet.MaxAdapters]fleet.Adapter // the first count, latest first
}

// Use notes that a is at work at the endpoint: it is loaded, and what no longer
// fits beside it is not.
func (s *Adapters) Use(a fleet.Adapter) {
	at := s.count
	for i, x := range s.list[:s.count] {
		if x == a {
			at = i
		}
	}
	if at == s.count {
		s.count = min(s.count+1, s.room())
		at = s.count - 1
	}
	copy(s.list[1:at+1], s.list[:at])
	s.list[0] = a
}

// room returns how many are remembered.
func (s *Adapters) room() int {
	if s.slots > 0 {
		return min(s.slots, fleet.MaxAdapters)
	}
	return fleet.MaxAdapters
}

// Told takes what the engine itself says is at work.
func (s *Adapters) Told(t *fleet.Adapters) {
	if t.Max > 0 {
		s.slots = t.Max
		s.count = min(s.count, s.room())
	}
	for i := t.Count - 1; i >= 0; i-- {
		s.Use(t.List[i])
	}
}

// Fit says what serving a takes.
func (s *Adapters) Fit(a fleet.Adapter) fleet.AdapterFit {
	switch {
	case a == fleet.NoAdapter:
		return fleet.AdapterNone
	case slices.Contains(s.list[:s.count], a):
		return fleet.AdapterLoaded
	case s.slots > 0 && s.count >= s.room():
		return fleet.AdapterFull
	}
	return fleet.AdapterRoom
}

// Clear forgets all but the number of slots.
func (s *Adapters) Clear() { s.count = 0 }
