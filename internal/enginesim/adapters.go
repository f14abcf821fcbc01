package enginesim

import (
	"maps"
	"slices"
)

// A LoRA adapter computes from a slot, of which an engine has few. Sequences
// of one adapter share its slot; the slot is free when the last of them stops
// running. A request whose adapter finds none waits, and others go past it, as
// in vLLM: an adapter in demand is never evicted by one that comes later.
// Loading weights into a slot takes no time here; behind a step of tens of
// milliseconds a few megabytes over PCIe do not show.

// slotFor reports whether s could run with its adapter now.
func (e *Engine) slotFor(s *sequence) bool {
	return s.adapter == "" || e.config.MaxAdapters == 0 || len(e.slots) < e.config.MaxAdapters || e.slots[s.adapter] > 0
}

func (e *Engine) takeSlot(s *sequence) {
	if s.adapter != "" {
		e.slots[s.adapter]++
	}
}

func (e *Engine) freeSlot(s *sequence) {
	if s.adapter == "" {
		return
	}
	if e.slots[s.adapter]--; e.slots[s.adapter] == 0 {
		delete(e.slots, s.adapter)
	}
}

// Adapters returns the names of the adapters that run and of those that are
// waited for, each sorted. An adapter can be in both.
func (e *Engine) Adapters() (running, waiting []string) {
	wanted := map[string]bool{}
	for s := e.waiting.first(); s != &e.waiting.ring; s = s.next {
		if s.adapter != "" {
			wanted[s.adapter] = true
		}
	}
	return slices.Sorted(maps.Keys(e.slots)), slices.Sorted(maps.Keys(wanted))
}
