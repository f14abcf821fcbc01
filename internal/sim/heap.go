package sim

import (
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
)

// event is one happening. Those of one instant happen in order of kind, then in
// the order in which they were foreseen, so that runs repeat.
type event struct {
	at   fleet.Time
	kind uint8
	seq  uint64
	what int
	leg  pool.Leg // with kindLeg
}

func (e *event) before(o *event) bool {
	if e.at != o.at {
		return e.at < o.at
	}
	if e.kind != o.kind {
		return e.kind < o.kind
	}
	return e.seq < o.seq
}

// heap is a binary heap of events, soonest first. It holds references to slots,
// so that moving one up or down costs a word.
type heap struct {
	slots []event
	free  []int32
	order []int32
	seq   uint64
}

func (h *heap) push(e event) {
	h.seq++
	e.seq = h.seq
	var slot int32
	if n := len(h.free); n > 0 {
		slot, h.free = h.free[n-1], h.free[:n-1]
		h.slots[slot] = e
	} else {
		slot = int32(len(h.slots))
		h.slots = append(h.slots, e)
	}
	h.order = append(h.order, slot)
	for i := len(h.order) - 1; i > 0; {
		up := (i - 1) / 2
		if !h.slots[h.order[i]].before(&h.slots[h.order[up]]) {
			break
		}
		h.order[i], h.order[up] = h.order[up], h.order[i]
		i = up
	}
}

func (h *heap) pop() (event, bool) {
	if len(h.order) == 0 {
		return event{}, false
	}
	slot := h.order[0]
	last := len(h.order) - 1
	h.order[0] = h.order[last]
	h.order = h.order[:last]
	for i := 0; ; {
		low := i
		for child := 2*i + 1; child <= 2*i+2 && child < last; child++ {
			if h.slots[h.order[child]].before(&h.slots[h.order[low]]) {
				low = child
			}
		}
		if low == i {
			break
		}
		h.order[i], h.order[low] = h.order[low], h.order[i]
		i = low
	}
	h.free = append(h.free, slot)
	return h.slots[slot], true
}
