package perf

import (
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Wires is what one pool believes of moving KV between its endpoints: how fast
// each gives it away, and how much of that is asked of it already. Whoever gives
// is what counts: a prefill endpoint serves many.
type Wires struct{ slots []wire }

// wire is one endpoint's.
type wire struct {
	link   fleet.Link
	factor float64    // measured over believed
	free   fleet.Time // when what has been asked for will have left
}

const (
	// wireGain is what one measurement weighs.
	wireGain = 0.1
	// wireMost bounds how far one measurement may be from what is believed.
	wireMost = 4.0
	// wireFew is how many tokens tell of a link; fewer are lost in what else happens.
	wireFew fleet.Tokens = 512
)

// Add tells what is believed of a slot's link before it is measured; the zero Link
// is of an endpoint that gives nothing away.
func (w *Wires) Add(slot int, l fleet.Link) {
	for len(w.slots) <= slot {
		w.slots = append(w.slots, wire{})
	}
	if s := &w.slots[slot]; s.link != l {
		*s = wire{link: l, factor: 1}
	}
}

// Remove forgets a slot.
func (w *Wires) Remove(slot int) {
	if slot < len(w.slots) {
		w.slots[slot] = wire{}
	}
}

// Look returns a slot's link as it is believed to be, and the seconds that what is
// asked of it already will take from now on.
func (w *Wires) Look(now fleet.Time, slot int) (l fleet.Link, queue float64) {
	if slot >= len(w.slots) {
		return fleet.Link{}, 0
	}
	s := &w.slots[slot]
	return fleet.Link{Latency: s.link.Latency, PerToken: s.link.PerToken * s.factor}, max(s.free.Sub(now).Seconds(), 0)
}

// Sent notes that so many tokens leave a slot from now on.
func (w *Wires) Sent(now fleet.Time, slot int, tokens fleet.Tokens) {
	if slot < len(w.slots) {
		s := &w.slots[slot]
		s.free = max(s.free, now).Add(time.Duration(s.link.PerToken * s.factor * float64(tokens) * float64(time.Second)))
	}
}

// Took learns from so many tokens that have left a slot in so many seconds, with
// nothing before them.
func (w *Wires) Took(slot int, tokens fleet.Tokens, seconds float64) {
	if slot >= len(w.slots) || tokens < wireFew {
		return
	}
	s := &w.slots[slot]
	believed := s.link.PerToken * s.factor * float64(tokens)
	if believed <= 0 {
		return
	}
	ratio := min(max((seconds-s.link.Latency)/believed, 1/wireMost), wireMost)
	s.factor *= 1 + wireGain*(ratio-1)
}
