package exchange

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Prior is what is believed of a link before anything has moved over it.
type Prior struct {
	Latency        time.Duration `json:"latency"`        // from asking to the first byte
	BytesPerSecond float64       `json:"bytesPerSecond"` // of one lane: a pair of ranks, each on its own NIC
}

// DefaultPrior is a first contact over 100 Gbit/s of which 70% are had.
func DefaultPrior() Prior {
	return Prior{Latency: 10 * time.Millisecond, BytesPerSecond: 8.75e9}
}

// Validate returns what is wrong with p, field by field.
func (p Prior) Validate() []error {
	var errs []error
	if p.Latency <= 0 || p.Latency > time.Minute {
		errs = append(errs, fmt.Errorf("latency: must be above 0 and at most a minute, is %v", p.Latency))
	}
	if !(p.BytesPerSecond >= 1e6 && p.BytesPerSecond <= 1e15) {
		errs = append(errs, fmt.Errorf("bytesPerSecond: must be between 1e6 and 1e15, is %v", p.BytesPerSecond))
	}
	return errs
}

// Move is an amount of KV on its way.
type Move struct {
	Bytes int64
	Flows float64 // transfers that share the source's link, this one included; less than 1 counts as 1
	Lanes int     // pairs of ranks that carry it side by side; less than 1 counts as 1
}

// load is how many bytes pass one lane before the last of the move has.
func (m Move) load() float64 {
	return float64(m.Bytes) * max(1, m.Flows) / float64(max(1, m.Lanes))
}

// Estimate is how long a move takes, in seconds.
type Estimate struct {
	Seconds float64 `json:"seconds"` // all of it
	Latency float64 `json:"latency"` // until the first byte
	// Wait is what other flows of the source take away. It is also what the move
	// takes away from them: both share the link fairly.
	Wait float64 `json:"wait"`
	// Error is by how much earlier estimates were off, as a factor less 1; of a
	// link that nothing has moved over it is a guess.
	Error   float64 `json:"error"`
	Samples int     `json:"samples"` // finished moves behind it; 0 is the prior alone
}

// Links is what is believed of the links between domains, learnt from finished
// moves. It is not safe for concurrent use.
type Links struct {
	prior Prior
	pairs map[pair]*link
}

type pair struct{ from, to string }

// maxLinks bounds the pairs that are remembered; the one that has rested longest
// makes room.
const maxLinks = 4096

// NewLinks returns what is believed before anything has moved.
func NewLinks(prior Prior) *Links { return &Links{prior: prior, pairs: map[pair]*link{}} }

// link is one ordered pair of domains. The time of a move is taken to be
//
//	T = latency + load/bandwidth
//
// so that the effective bandwidth, load/T, rises with size as it does in
// measurements: 36 GB/s for 19 MB, 95 for 146 MB, 142 for 4.5 GB on one link.
// Both terms are fitted by least squares of relative errors with forgetting. The
// prior only lends its shape: it is scaled to the level of what has been
// measured and then counts as two moves, a small and a large one, so that moves
// of one size fix the level and leave the split between the terms alone. A time
// far from what was expected counts as if it were at the bound of what is usual;
// when several in a row are beyond it, the link has changed and is learnt anew.
type link struct {
	latency, perByte float64 // s, s/B of one lane

	samples    int // ever
	memory     int // since it was found changed
	run        int // unusual moves in a row, below 0 if faster
	last       fleet.Time
	level      float64 // mean of ln(measured / prior)
	spread     float64 // mean of |ln(measured / expected)|
	ll, lb, bb float64 // normal equations: sums of products of the two columns,
	l1, b1     float64 // and of columns with the right side, which is 1
}

const (
	keep       = 0.98 // weight that is left to a move after the next: some 50 moves count
	firstError = 0.5  // ln of the factor by which a prior may be off
	leastError = 0.05 // no link is steadier
	bound      = 3.0  // usual errors to a bound
	// changeAfter is how many moves beyond the bound in a row are no chance.
	changeAfter = 5
	// The two moves that the prior stands for, bytes on a lane.
	priorSmall, priorLarge = 1e6, 1e9
	priorWeight            = 0.5
)

// Observe learns from a move that took so long. Moves of nothing teach nothing.
func (l *Links) Observe(now fleet.Time, from, to string, m Move, took time.Duration) {
	if m.Bytes <= 0 || took <= 0 {
		return
	}
	k := l.at(now, pair{from, to})
	k.last = now
	k.learn(l.prior, m.load(), took.Seconds())
}

// at returns the link of p, making it, and room for it, where there is none.
func (l *Links) at(now fleet.Time, p pair) *link {
	if k, ok := l.pairs[p]; ok {
		return k
	}
	if len(l.pairs) >= maxLinks {
		delete(l.pairs, slices.MinFunc(slices.Collect(maps.Keys(l.pairs)), func(a, b pair) int {
			return cmp.Or(cmp.Compare(l.pairs[a].last, l.pairs[b].last), cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
		}))
	}
	k := newLink(l.prior)
	k.last = now
	l.pairs[p] = k
	return k
}

func newLink(p Prior) *link {
	return &link{latency: p.Latency.Seconds(), perByte: 1 / p.BytesPerSecond, spread: firstError}
}

// learn takes in that a load took so many seconds.
func (k *link) learn(p Prior, load, took float64) {
	expected := k.latency + k.perByte*load
	off := math.Log(took / expected)
	usual := bound * max(k.spread, leastError)
	if k.changed(off, usual) {
		*k = link{samples: k.samples, spread: k.spread, latency: k.latency, perByte: k.perByte, last: k.last}
	}
	// Of the first nothing is known that it could be held to.
	if k.memory > 0 {
		took = expected * math.Exp(min(max(off, -usual), usual))
	}
	k.samples++
	k.memory++
	// Averages begin with what there is and then forget. The first error is the
	// prior's, or of a link that is no more.
	step := max(1/float64(k.memory), 1-keep)
	k.level += step * (math.Log(took/(p.Latency.Seconds()+load/p.BytesPerSecond)) - k.level)
	if k.memory > 1 {
		step = max(1/float64(k.memory+1), 1-keep)
		k.spread += step * (min(math.Abs(off), usual) - k.spread)
	}
	k.sum(load, took)
	k.solve(p)
}

// changed reports whether so many moves in a row were unusual on one side that
// the link is another than the one that was learnt.
func (k *link) changed(off, usual float64) bool {
	side := 0
	if math.Abs(off) > usual {
		side = int(math.Copysign(1, off))
	}
	if side == 0 || k.run*side < 0 {
		k.run = 0
	}
	k.run += side
	return k.memory > 0 && max(k.run, -k.run) >= changeAfter
}

// sum adds a row, divided by its time so that errors are relative.
func (k *link) sum(load, took float64) {
	a, b := 1/took, load/took
	k.ll, k.lb, k.bb = k.ll*keep+a*a, k.lb*keep+a*b, k.bb*keep+b*b
	k.l1, k.b1 = k.l1*keep+a, k.b1*keep+b
}

// solve fits both terms to the rows and the scaled prior's.
func (k *link) solve(p Prior) {
	ll, lb, bb, l1, b1 := k.ll, k.lb, k.bb, k.l1, k.b1
	scale := math.Exp(k.level)
	lat, per := scale*p.Latency.Seconds(), scale/p.BytesPerSecond
	for _, load := range []float64{priorSmall, priorLarge} {
		t := lat + per*load
		a, b := 1/t, load/t
		ll, lb, bb = ll+priorWeight*a*a, lb+priorWeight*a*b, bb+priorWeight*b*b
		l1, b1 = l1+priorWeight*a, b1+priorWeight*b
	}
	det := ll*bb - lb*lb
	x, y := (l1*bb-b1*lb)/det, (b1*ll-l1*lb)/det
	// Neither term can be negative: the other then carries all.
	switch {
	case !(x >= 0):
		x, y = 0, b1/bb
	case !(y > 0):
		x, y = l1/ll, per*1e-3
	}
	k.latency, k.perByte = x, y
}

// Predict returns how long a move from one domain to another takes.
func (l *Links) Predict(from, to string, m Move) Estimate {
	k, ok := l.pairs[pair{from, to}]
	if !ok {
		k = newLink(l.prior)
	}
	alone := m
	alone.Flows = 1
	e := Estimate{Latency: k.latency, Error: math.Expm1(k.spread), Samples: k.samples}
	e.Wait = k.perByte * (m.load() - alone.load())
	e.Seconds = k.latency + k.perByte*m.load()
	return e
}

// State is what is believed of one link, for people.
type State struct {
	From           string  `json:"from"`
	To             string  `json:"to"`
	LatencySeconds float64 `json:"latencySeconds"`
	BytesPerSecond float64 `json:"bytesPerSecond"` // of one lane
	Samples        int     `json:"samples"`
	Error          float64 `json:"error"` // as in Estimate
}

// List returns all links that something has moved over, by name.
func (l *Links) List() []State {
	list := make([]State, 0, len(l.pairs))
	for p, k := range l.pairs {
		list = append(list, State{p.from, p.to, k.latency, 1 / k.perByte, k.samples, math.Expm1(k.spread)})
	}
	slices.SortFunc(list, func(a, b State) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return list
}

// State returns what is believed of one link; of one that nothing has moved over,
// the prior.
func (l *Links) State(from, to string) State {
	k, ok := l.pairs[pair{from, to}]
	if !ok {
		k = newLink(l.prior)
	}
	return State{from, to, k.latency, 1 / k.perByte, k.samples, math.Expm1(k.spread)}
}
