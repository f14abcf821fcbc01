package perf

import (
	"math"
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
	used   float64    // seconds asked of it, fading
	at     fleet.Time // as of when
	empty  int        // times in a row that nothing came
	until  fleet.Time // to when it is not asked
}

const (
	// wireGain is what one measurement weighs.
	wireGain = 0.1
	// wireMost bounds how far one measurement may be from what is believed.
	wireMost = 4.0
	// wireFew is how many tokens tell of a link; fewer are lost in what else happens.
	wireFew fleet.Tokens = 512
	// wireWindow is over how long the use of a link is averaged.
	wireWindow = 10 * time.Second
	// wireTries is how many times in a row nothing may come before a slot is not
	// asked for a while: wireRest, twice as long each time, up to wireLongest.
	wireTries   = 3
	wireRest    = 30 * time.Second
	wireLongest = 10 * time.Minute
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
	if s.free > now {
		queue = s.free.Sub(now).Seconds()
	}
	return fleet.Link{Latency: s.link.Latency, PerToken: s.link.PerToken * s.factor}, queue
}

// Sent notes that so many tokens leave a slot from now on.
func (w *Wires) Sent(now fleet.Time, slot int, tokens fleet.Tokens) {
	if slot < len(w.slots) {
		s := &w.slots[slot]
		takes := s.link.PerToken * s.factor * float64(tokens)
		s.free = max(s.free, now).Add(time.Duration(takes * float64(time.Second)))
		s.used, s.at = s.fading(now)+takes, now
	}
}

// fading is the time asked of a link within the window, in seconds.
func (s *wire) fading(now fleet.Time) float64 {
	if s.used == 0 {
		return 0 // most links are never asked, and all are looked at for each request
	}
	return s.used * math.Exp(-now.Sub(s.at).Seconds()/wireWindow.Seconds())
}

// Busy returns the share of time in which a slot's link was busy of late, 0 to 1.
func (w *Wires) Busy(now fleet.Time, slot int) float64 {
	if slot >= len(w.slots) {
		return 0
	}
	return min(w.slots[slot].fading(now)/wireWindow.Seconds(), 1)
}

// Came notes whether what was fetched from a slot's cache has come.
func (w *Wires) Came(now fleet.Time, slot int, all bool) {
	if slot >= len(w.slots) {
		return
	}
	s := &w.slots[slot]
	if all {
		s.empty = 0
		return
	}
	if s.empty++; s.empty >= wireTries {
		// 2^8 times is longer than the longest.
		s.until = now.Add(min(wireRest<<min(s.empty-wireTries, 8), wireLongest))
	}
}

// Resting reports whether a slot is not asked for now, since nothing came the last
// times.
func (w *Wires) Resting(now fleet.Time, slot int) bool {
	return slot < len(w.slots) && now < w.slots[slot].until
}

// Took learns from so many tokens that have left a slot in so many seconds, with
// nothing before them; NaN teaches nothing.
func (w *Wires) Took(slot int, tokens fleet.Tokens, seconds float64) {
	if slot >= len(w.slots) || tokens < wireFew || math.IsNaN(seconds) {
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
