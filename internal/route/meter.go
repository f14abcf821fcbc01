package route

import "penstock.dev/penstock/internal/fleet"

// meter is what arrivals find at endpoints of which some lean to prompts. Requests
// come when they like, so that what they meet is what is there on average.
type meter struct {
	from     fleet.Time // nothing counts before
	n        int        // arrivals
	busy     float64    // share of those that lean that have a prompt to compute
	decoding float64    // sequences that decode, at each of the others
	inside   float64    // requests that are anywhere
	splits   float64    // share of requests that are split
}

const (
	// meterFew is how many arrivals tell something, and meterOver over how many they
	// are averaged.
	meterFew  = 100
	meterOver = 1000

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
	t.inside += w * (float64(inside) - t.inside)
	if prefills > 0 {
		t.busy += w * (float64(busy)/float64(prefills) - t.busy)
	}
	if others := len(group) - prefills; others > 0 {
		t.decoding += w * (float64(decoding)/float64(others) - t.decoding)
	}
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
