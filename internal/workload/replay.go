package workload

import (
	"fmt"
	"sort"
	"time"
)

// ReplayOptions say how a trace is played back.
type ReplayOptions struct {
	// Speed divides the trace's times, recorded delays included: at 10 an hour
	// takes six minutes. Answers take as long as they take, so a turn may have to
	// wait for the one before it. 0 means 1.
	Speed float64

	// Duration ends the slice, in time of the replay (not of the trace). 0 plays
	// all of the trace.
	Duration time.Duration

	// Copies of the trace laid over each other, each begun at another place in
	// it (wrapping round) and with text of its own, so that more load brings more
	// distinct conversations, not more of the same. 0 means 1.
	Copies int

	// Seed changes all text. Two seeds share no prefix.
	Seed uint64
}

// maxCopies bounds the overlay; each copy keeps a few bytes per row.
const maxCopies = 1000

// Replay is a trace being played back. It implements Source.
type Replay struct {
	t       *Trace
	o       ReplayOptions
	arrive  []time.Duration // by row, from the trace's first, before Speed
	cursors []cursor
	n       int
}

// cursor walks one stretch of one copy: rows [next, end) moved by shift.
type cursor struct {
	next, end int
	shift     time.Duration
	space     uint64  // names the copy and stretch in ids
	index     []int32 // request index+1 by row-first, for parents
	first     int
}

// Replay returns the trace's requests. Copy c of n starts c/n into the trace;
// what lies before that point follows at the end, as other conversations: a
// conversation cut in two there never finds its first half later.
func (t *Trace) Replay(o ReplayOptions) (*Replay, error) {
	if o.Speed == 0 {
		o.Speed = 1
	}
	o.Copies = max(o.Copies, 1)
	if !(o.Speed >= 1e-6 && o.Speed <= 1e6) { // also catches NaN
		return nil, fmt.Errorf("trace speed %v: want 0.000001..1000000", o.Speed)
	}
	if o.Copies > maxCopies {
		return nil, fmt.Errorf("trace copies %d: want 1..%d", o.Copies, maxCopies)
	}
	r := &Replay{t: t, o: o, arrive: t.arrivals()}
	span := t.Span()
	for c := range o.Copies {
		offset := span / time.Duration(o.Copies) * time.Duration(c)
		cut := sort.Search(len(r.arrive), func(i int) bool { return r.arrive[i] >= offset })
		r.addCursor(cut, len(t.Rows), -offset, uint64(2*c))
		r.addCursor(0, cut, span-offset, uint64(2*c+1))
	}
	return r, nil
}

func (r *Replay) addCursor(from, to int, shift time.Duration, space uint64) {
	if from < to {
		r.cursors = append(r.cursors, cursor{
			next: from, end: to, first: from, shift: shift, space: space, index: make([]int32, to-from),
		})
	}
}

// Next implements Source.
func (r *Replay) Next() (Request, bool) {
	c, at := r.earliest()
	if c == nil || (r.o.Duration > 0 && at >= r.o.Duration) {
		return Request{}, false
	}
	row := &r.t.Rows[c.next]
	q := Request{
		Index: r.n, At: at, After: NoRequest, Turn: row.Turn, Tenant: row.Tenant,
		Input: row.Input, Output: max(row.Output, 1), Prompt: r.prompt(row, c),
	}
	if row.Turn > 0 || row.Session != "" || row.Hashes != nil {
		q.Session = max(mix(c.space, uint64(row.Root)), 1)
	}
	if p := row.Parent - c.first; row.Parent != NoRequest && p >= 0 {
		if at := c.index[p]; at > 0 {
			q.After = int(at) - 1
			q.Think = seconds(row.Delay.Seconds() / r.o.Speed)
		}
	}
	r.n++
	c.index[c.next-c.first] = int32(r.n)
	c.next++
	return q, true
}

// earliest finds the cursor whose next row comes first; ties go to the lower
// copy, so that the order is fixed.
func (r *Replay) earliest() (*cursor, time.Duration) {
	var best *cursor
	var when time.Duration
	for i := range r.cursors {
		c := &r.cursors[i]
		if c.next >= c.end {
			continue
		}
		if at := r.arrive[c.next] + c.shift; best == nil || at < when {
			best, when = c, at
		}
	}
	return best, seconds(when.Seconds() / r.o.Speed)
}

// prompt turns a row's blocks into runs of text, one per block.
func (r *Replay) prompt(row *Row, c *cursor) []Segment {
	if row.Hashes == nil {
		return []Segment{{ID: mix(r.o.Seed, runTrace, c.space, uint64(row.Line), 1), Tokens: row.Input}}
	}
	out := make([]Segment, len(row.Hashes))
	left := row.Input
	for i, h := range row.Hashes {
		out[i] = Segment{ID: mix(r.o.Seed, runTrace, c.space, h), Tokens: min(BlockTokens, left)}
		left -= BlockTokens
	}
	return out
}
