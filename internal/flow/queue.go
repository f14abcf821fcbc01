// Package flow decides when a request goes. This queue is first in, first out:
// a request waits only while no endpoint has room, at most MaxWait, and at most
// MaxRequests at a time; beyond that it is refused at once with a time to come
// back.
package flow

import (
	"fmt"
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// Config bounds the queue.
type Config struct {
	MaxRequests int           `json:"maxRequests"` // requests that may wait; 0 refuses whatever cannot go at once
	MaxWait     time.Duration `json:"maxWait"`     // longest wait; must be positive
}

// Default holds a thousand requests for at most a minute.
func Default() Config { return Config{MaxRequests: 1000, MaxWait: time.Minute} }

// Validate returns what is wrong with c, field by field.
func (c Config) Validate() []error {
	var errs []error
	if c.MaxRequests < 0 {
		errs = append(errs, fmt.Errorf("maxRequests: must not be negative, is %d", c.MaxRequests))
	}
	if c.MaxWait <= 0 {
		errs = append(errs, fmt.Errorf("maxWait: must be positive, is %v", c.MaxWait))
	}
	return errs
}

// Item is one waiting request.
type Item struct {
	Req      fleet.ReqID
	Enqueued fleet.Time
	Deadline fleet.Time // set by Offer
}

// Verdict is the answer to an offer.
type Verdict uint8

// The answers to an offer.
const (
	Queued Verdict = iota
	Full
)

// Queue holds the requests that wait. It allocates only when it grows beyond
// its largest size so far.
type Queue struct {
	config Config
	elems  []elem
	free   int32
	head   int32
	tail   int32
	byReq  map[fleet.ReqID]int32
	out    stat.Rate // departures, for RetryAfter
}

type elem struct {
	Item
	next, prev int32
}

const none = -1

// departureHalfLife is the memory of the departure rate, in seconds.
const departureHalfLife = 10

// New returns an empty queue.
func New(c Config) *Queue {
	return &Queue{
		config: c, free: none, head: none, tail: none, byReq: map[fleet.ReqID]int32{},
		out: stat.Rate{HalfLife: departureHalfLife},
	}
}

// SetConfig replaces the bounds. Requests already waiting keep their deadlines.
func (q *Queue) SetConfig(c Config) { q.config = c }

// Len returns the number of waiting requests.
func (q *Queue) Len() int { return len(q.byReq) }

// Offer puts the item last, unless the queue is full.
func (q *Queue) Offer(_ fleet.Time, it Item) Verdict {
	if len(q.byReq) >= q.config.MaxRequests {
		return Full
	}
	it.Deadline = it.Enqueued.Add(q.config.MaxWait)
	i := q.take(it)
	q.link(i, q.tail, none)
	return Queued
}

// Return puts an item back among those that wait, by the time it arrived: it
// has waited its turn already, was sent, and came back. It is never refused.
func (q *Queue) Return(it Item) {
	it.Deadline = it.Enqueued.Add(q.config.MaxWait)
	// Whatever has not been sent yet arrived later, so this looks only at other
	// items that came back.
	prev, next := int32(none), q.head
	for next != none && q.elems[next].Enqueued <= it.Enqueued {
		prev, next = next, q.elems[next].next
	}
	i := q.take(it)
	q.link(i, prev, next)
}

// Next takes the first item.
func (q *Queue) Next(now fleet.Time) (Item, bool) {
	if q.head == none {
		return Item{}, false
	}
	return q.Take(now, q.elems[q.head].Req)
}

// Take takes a given item that goes before its turn.
func (q *Queue) Take(now fleet.Time, req fleet.ReqID) (Item, bool) {
	i, ok := q.byReq[req]
	if !ok {
		return Item{}, false
	}
	q.out.Add(now.Seconds(), 1)
	return q.remove(i), true
}

// Peek returns the first item and leaves it.
func (q *Queue) Peek() (Item, bool) {
	if q.head == none {
		return Item{}, false
	}
	return q.elems[q.head].Item, true
}

// After returns the item behind a given one and leaves it.
func (q *Queue) After(req fleet.ReqID) (Item, bool) {
	i, ok := q.byReq[req]
	if !ok || q.elems[i].next == none {
		return Item{}, false
	}
	return q.elems[q.elems[i].next].Item, true
}

// Before returns the item ahead of a given one and leaves it.
func (q *Queue) Before(req fleet.ReqID) (Item, bool) {
	i, ok := q.byReq[req]
	if !ok || q.elems[i].prev == none {
		return Item{}, false
	}
	return q.elems[q.elems[i].prev].Item, true
}

// Last returns the last item and leaves it.
func (q *Queue) Last() (Item, bool) {
	if q.tail == none {
		return Item{}, false
	}
	return q.elems[q.tail].Item, true
}

// Expired takes the first item whose deadline has passed.
func (q *Queue) Expired(now fleet.Time) (Item, bool) {
	// All items wait equally long and stand in order of arrival, so the head is
	// the first to expire.
	if q.head == none || q.elems[q.head].Deadline > now {
		return Item{}, false
	}
	return q.remove(q.head), true
}

// Deadline returns when the next item expires, Never when the queue is empty.
func (q *Queue) Deadline() fleet.Time {
	if q.head == none {
		return fleet.Never
	}
	return q.elems[q.head].Deadline
}

// Remove takes a given request out and reports whether it was waiting.
func (q *Queue) Remove(req fleet.ReqID) bool {
	i, ok := q.byReq[req]
	if ok {
		q.remove(i)
	}
	return ok
}

// RetryAfter estimates when a request that is refused now would find room: the
// time the present queue takes to drain at the present rate, between 1 s and
// MaxWait.
func (q *Queue) RetryAfter(now fleet.Time) time.Duration {
	rate := q.out.PerSecond(now.Seconds())
	if rate <= 0 {
		return max(q.config.MaxWait/2, time.Second)
	}
	d := time.Duration(math.Min(float64(len(q.byReq)+1)/rate, q.config.MaxWait.Seconds()) * float64(time.Second))
	return max(d, time.Second)
}

func (q *Queue) take(it Item) int32 {
	i := q.free
	if i == none {
		q.elems = append(q.elems, elem{})
		i = int32(len(q.elems) - 1)
	} else {
		q.free = q.elems[i].next
	}
	q.elems[i] = elem{Item: it}
	q.byReq[it.Req] = i
	return i
}

func (q *Queue) link(i, prev, next int32) {
	q.elems[i].prev, q.elems[i].next = prev, next
	if prev == none {
		q.head = i
	} else {
		q.elems[prev].next = i
	}
	if next == none {
		q.tail = i
	} else {
		q.elems[next].prev = i
	}
}

func (q *Queue) remove(i int32) Item {
	e := q.elems[i]
	if e.prev == none {
		q.head = e.next
	} else {
		q.elems[e.prev].next = e.next
	}
	if e.next == none {
		q.tail = e.prev
	} else {
		q.elems[e.next].prev = e.prev
	}
	delete(q.byReq, e.Req)
	q.elems[i] = elem{next: q.free}
	q.free = i
	return e.Item
}
