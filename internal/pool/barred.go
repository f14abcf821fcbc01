package pool

import (
	"slices"

	"penstock.dev/penstock/internal/fleet"
)

// Endpoints of one connector can exchange KV, unless somebody who has compared
// them says that they cannot. What is said is kept by endpoint, and by slot for
// those who plan.

func (b *Brain) onBarred(ev *Barred) {
	slot, ok := b.at(ev.Endpoint, ev.Gen)
	if !ok {
		return
	}
	b.endpoints[slot].barred = append(b.endpoints[slot].barred[:0], ev.Sources...)
	b.bar()
}

// bar puts what is barred into the view. Slots change hands when endpoints come
// and go.
func (b *Brain) bar() {
	for i := range b.endpoints {
		b.view.Barred[i] = b.view.Barred[i][:0]
		for _, id := range b.endpoints[i].barred {
			if slot, ok := b.slots[id]; ok {
				b.view.Barred[i] = b.view.Barred[i].With(slot)
			}
		}
	}
}

// countBarred returns how many pairs of the slots last judged could serve the
// request but for not being able to exchange KV, and the first of them.
func (b *Brain) countBarred() (n int, first fleet.Pair) {
	if len(b.query.Prefills) == 0 {
		return 0, first
	}
	for _, dec := range b.query.Candidates {
		for _, id := range b.endpoints[dec].barred {
			pre, ok := b.slots[id]
			if !ok || !b.within(pre) {
				continue
			}
			if n++; n == 1 {
				first = fleet.Pair{Prefill: id, Decode: b.view.ID[dec]}
			}
		}
	}
	return n, first
}

// within reports whether a slot can compute the prompt of the request last judged.
func (b *Brain) within(slot int) bool {
	_, ok := slices.BinarySearch(b.query.Prefills, slot)
	return ok
}
