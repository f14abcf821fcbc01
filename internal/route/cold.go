package route

import (
	"math"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
)

// cold deals out prompts of which nobody has anything. Whoever comes back to such a
// prompt's beginning is drawn to where it was computed first, for minutes, so that to
// send it where there is least to do right now is short-sighted: what counts is how
// much each has been given to keep. Among equals that take about as long, it goes to
// the one that was given least. (llm-d's no-hit-lru scorer deals in turn.)
type cold struct {
	is    bool       // the prompt in hand is so
	given []float64  // by slot: s of work that computing such prompts took, fading
	at    fleet.Time // up to which it has faded
}

const (
	// coldShare is the share of a prompt below which finding it is finding nothing.
	coldShare = 0.1

	// coldMemory is the time, in seconds, in which what was given fades to 1/e: about
	// as long as prefixes stay in caches that are full.
	coldMemory = 300

	// coldSlack is by what share of the least cost an equal may cost more.
	coldSlack = 0.5
)

// deal replaces what out has chosen by the equal that was given least, and gives it
// the prompt.
func (d *cold) deal(v *View, q *Query, reuse float64, out *Plan) {
	for len(d.given) < len(v.ID) {
		d.given = append(d.given, 0)
	}
	fade := math.Exp(-q.Now.Sub(d.at).Seconds() / coldMemory)
	d.at = q.Now
	for i := range d.given {
		d.given[i] *= fade
	}
	best := out.Chosen
	bound := out.Score[best] - coldSlack*min(reuse, 1)*math.Abs(out.Score[best])
	for _, c := range q.Candidates {
		if v.Told[c] != v.Told[best] {
			bound = out.Score[best]
		}
	}
	for _, c := range q.Candidates {
		if out.Score[c] >= bound && d.given[c] < d.given[out.Chosen] {
			out.Chosen = c
		}
	}
	d.given[out.Chosen] += stepOf(v, out.Chosen).Prompt(q.Prompt, perf.Pairs(0, q.Prompt))
}

// leave forgets a slot whose endpoint is another.
func (d *cold) leave(slot int) {
	if slot < len(d.given) {
		d.given[slot] = 0
	}
}
