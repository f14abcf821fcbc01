package exchange

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Flow is what has come of the transfers from one instance to another:
// Planned = Done + Aborted + Expired + those that are open.
type Flow struct {
	Source, Consumer       string
	Planned, Done, Expired uint64
	Aborted                uint64 // those whose engines have failed included
	Failed                 map[fleet.Failure]uint64
	Bytes, Tokens          int64
	Open                   int
	Took, Expected         Times // of those that are done and timed
	last                   fleet.Time
}

// Times are durations, summed up.
type Times struct {
	Count    uint64
	Sum      time.Duration
	P50, P95 time.Duration // of the latest

	latest []time.Duration
}

// maxLatest is how many durations quantiles are taken of.
const maxLatest = 128

func (t *Times) observe(d time.Duration) {
	if len(t.latest) < maxLatest {
		t.latest = append(t.latest, d)
	} else {
		t.latest[t.Count%maxLatest] = d
	}
	t.Count++
	t.Sum += d
}

// Mean is the mean of all.
func (t *Times) Mean() time.Duration { return t.Sum / time.Duration(max(t.Count, 1)) }

// told returns t with its quantiles worked out, sharing nothing with it.
func (t *Times) told() Times {
	c := Times{Count: t.Count, Sum: t.Sum}
	if n := len(t.latest); n > 0 {
		sorted := slices.Sorted(slices.Values(t.latest))
		const of100, most = 100, 95
		c.P50, c.P95 = sorted[n/2], sorted[min(n*most/of100, n-1)]
	}
	return c
}

// couple is a source and a consumer.
type couple struct{ source, consumer string }

// maxFlows bounds the pairs that are counted apart; the one that has rested
// longest makes room.
const maxFlows = 4096

// flow returns the row of t's pair, making it where there is none.
func (b *Book) flow(t *Ticket) *Flow {
	at := couple{t.Source, t.Consumer}
	f, ok := b.pairs[at]
	if !ok {
		if len(b.pairs) >= maxFlows {
			delete(b.pairs, b.idlest())
		}
		f = &Flow{Source: t.Source, Consumer: t.Consumer, Failed: map[fleet.Failure]uint64{}}
		b.pairs[at] = f
	}
	f.last = max(t.PlannedAt, t.EndedAt)
	return f
}

// idlest is the pair that has rested longest.
func (b *Book) idlest() couple {
	return slices.MinFunc(slices.Collect(maps.Keys(b.pairs)), func(x, y couple) int {
		return cmp.Or(cmp.Compare(b.pairs[x].last, b.pairs[y].last), cmp.Compare(x.source, y.source), cmp.Compare(x.consumer, y.consumer))
	})
}

// end counts a ticket that is closed.
func (f *Flow) end(t *Ticket) {
	switch t.Stage {
	case Done:
		f.Done++
		f.Bytes, f.Tokens = f.Bytes+t.Moved, f.Tokens+t.Tokens
		if t.Took > 0 {
			f.Took.observe(t.Took)
			f.Expected.observe(t.Expected)
		}
	case Expired:
		f.Expired++
	default:
		f.Aborted++
		if t.Failure != fleet.FailNone {
			f.Failed[t.Failure]++
		}
	}
}

// Flows returns what has come of all pairs, by name.
func (b *Book) Flows() []Flow {
	open := map[couple]int{}
	for _, t := range b.open {
		open[couple{t.Source, t.Consumer}]++
	}
	list := make([]Flow, 0, len(b.pairs))
	for at, f := range b.pairs {
		c := Flow{
			Source: f.Source, Consumer: f.Consumer, Planned: f.Planned, Done: f.Done, Expired: f.Expired, Aborted: f.Aborted,
			Failed: maps.Clone(f.Failed), Bytes: f.Bytes, Tokens: f.Tokens, Open: open[at], Took: f.Took.told(), Expected: f.Expected.told(),
		}
		list = append(list, c)
	}
	slices.SortFunc(list, func(x, y Flow) int {
		return cmp.Or(cmp.Compare(x.Source, y.Source), cmp.Compare(x.Consumer, y.Consumer))
	})
	return list
}
