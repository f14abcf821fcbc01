package exchange

import (
	"container/heap"

	"penstock.dev/penstock/internal/fleet"
)

// due is a time at which an instance's lease or a ticket's deadline ends: one of
// the two is set.
type due struct {
	at       fleet.Time
	instance *holding
	ticket   *Ticket
	place    int // in the heap, from 1; 0 is not there
}

// dues orders what is due by time, and at one time by name, so that equal
// histories end equally.
type dues []*due

func (d *dues) set(x *due, at fleet.Time) {
	x.at = at
	if x.place == 0 {
		heap.Push(d, x)
		return
	}
	heap.Fix(d, x.place-1)
}

func (d *dues) drop(x *due) {
	if x.place > 0 {
		heap.Remove(d, x.place-1)
	}
}

func (x *due) name() string {
	if x.ticket != nil {
		return x.ticket.ID
	}
	return x.instance.ID
}

// Len implements heap.Interface.
func (d dues) Len() int { return len(d) }

// Less implements heap.Interface. Tickets go before instances.
func (d dues) Less(i, j int) bool {
	a, b := d[i], d[j]
	switch {
	case a.at != b.at:
		return a.at < b.at
	case (a.ticket == nil) != (b.ticket == nil):
		return a.ticket != nil
	}
	return a.name() < b.name()
}

// Swap implements heap.Interface.
func (d dues) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i+1, j+1
}

// Push implements heap.Interface.
func (d *dues) Push(x any) {
	e := x.(*due)
	e.place = len(*d) + 1
	*d = append(*d, e)
}

// Pop implements heap.Interface.
func (d *dues) Pop() any {
	old := *d
	e := old[len(old)-1]
	e.place, old[len(old)-1] = 0, nil
	*d = old[:len(old)-1]
	return e
}
