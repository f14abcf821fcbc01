package route

import (
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// meter is what arrivals find at endpoints of which some lean to prompts. Requests
// come when they like, so that what they meet is what is there on average.
type meter struct {
	from     fleet.Time // nothing counts before
	n        int        // arrivals
	busy     float64    // share of those that lean that have a prompt to compute
	decoding float64    // sequences that decode, at each of the others
	inside   float64    // requests that are anywhere
	splits   float64    // share of requests that are split
	gap      float64    // between two arrivals, s
	last     fleet.Time // of the latest arrival
	steady   bool       // only what came in under the present deal is counted
}

const (
	// meterFew is how many arrivals tell something, and meterOver over how many they
	// are averaged.
	meterFew  = 100
	meterOver = 2000

	// meterSettle is after how many times the time of a request a deal shows what it
	// brings, meterLong after what time in any case, and meterSpan for how long is
	// measured then: in less, what comes by chance outweighs what deals change.
	meterSettle = 1.5
	meterLong   = 30 * time.Second
	meterSpan   = 10 * time.Second

	// meterMost bounds how far what is measured may be from what was told.
	meterMost = 4.0
)

// look takes in what a request meets.
func (t *meter) look(v *View, now fleet.Time, group []int, leans []bool) {
	if now < t.from || len(group) == 0 {
		return
	}
	prefills, busy, decoding, inside := 0, 0, 0, 0
	for _, c := range group {
		inside += v.Load[c].Decoding + v.Load[c].Ahead
		switch {
		case !leans[c]:
			decoding += v.Load[c].Decoding
		default:
			if prefills++; v.Load[c].Ahead > 0 {
				busy++
			}
		}
	}
	t.n++
	w := t.weight()
	if t.last > 0 {
		t.gap += t.weight() * (now.Sub(t.last).Seconds() - t.gap)
	}
	t.last = now
	t.inside += w * (float64(inside) - t.inside)
	if prefills > 0 {
		t.busy += w * (float64(busy)/float64(prefills) - t.busy)
	}
	if others := len(group) - prefills; others > 0 {
		t.decoding += w * (float64(decoding)/float64(others) - t.decoding)
	}
}

// settled reports whether what is measured tells what the present deal brings: what
// came in while those before were still there does not, and is forgotten.
func (t *meter) settled(now fleet.Time) bool {
	switch span := now.Sub(t.from); {
	case t.n < meterFew:
		return false
	case t.steady:
		return span >= meterSpan
	case span.Seconds() >= min(meterSettle*t.inside*t.gap, meterLong.Seconds()): // Little's law
		*t = meter{from: now, steady: true}
	}
	return false
}

// chose notes whether a request was split.
func (t *meter) chose(split bool) {
	if t.n == 0 {
		return
	}
	x := 0.0
	if split {
		x = 1
	}
	t.splits += t.weight() * (x - t.splits)
}

func (t *meter) weight() float64 { return max(1/float64(t.n), 1.0/meterOver) }
