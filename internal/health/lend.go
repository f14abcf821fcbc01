package health

import (
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// An endpoint that computes prompts for others can do that well and yet hand
// nothing over: its KV cannot be fetched. Only those who wait for the KV find out,
// and no probe does. So whether an endpoint lends is judged apart from its state, by
// what becomes of the requests whose KV comes from it: one that has failed them is
// out as a lender for as long as an ejected endpoint is until its probe, and then
// on trial.

// several stands for more than one slot where otherwise 1 above a slot stands.
const several = -1

// lender is what is known of a slot's KV reaching others.
type lender struct {
	state State
	row   int        // requests in a row that failed for want of its KV
	since fleet.Time // when the first of them did
	taker int        // 1 above the slot where all of them failed, or several
	wait  time.Duration
	next  fleet.Time // when its trial begins; Never unless it is ejected
}

// Lends returns whether KV is believed to come from slot i: on trial, as far as one
// request tells at a time.
func (b *Book) Lends(i int) State { return b.slots[i].lends.state }

// NextTrial returns when slot i is to lend again, Never when it is not ejected as
// a lender.
func (b *Book) NextTrial(i int) fleet.Time { return b.slots[i].lends.next }

// Missed records a request that failed at slot taker, maybe since the KV that was
// to come from slot i did not. It reports whether that ejects i as a lender, which
// happens only where it can be spared, and always on trial.
//
// The lender is at fault when others fail with it too, or when the one that fails
// has meanwhile got its KV from somebody else. Where neither is known, twice as many
// failures eject it all the same: whoever is at fault, these two do not work
// together, and apart they show which one it is.
func (b *Book) Missed(now fleet.Time, i, taker int, spare bool) bool {
	l := &b.slots[i].lends
	switch {
	case l.row == 0:
		l.since, l.taker = now, taker+1
	case l.taker != taker+1:
		l.taker = several
	}
	l.row++
	known := b.isLenders(i, taker)
	switch {
	case l.state == Ejected:
		return false
	case l.state == Trial:
	case !spare || l.row < b.config.Consecutive || !known && l.row < 2*b.config.Consecutive:
		return false
	}
	if known {
		b.forgive(now, i)
	}
	l.state = Ejected
	l.wait = min(max(l.wait*3/2, b.config.ProbeFirst), b.config.ProbeMax)
	b.setTrial(l, now.Add(l.wait))
	return true
}

// isLenders reports whether it is slot i's fault that its KV has not come to slot
// taker.
func (b *Book) isLenders(i, taker int) bool {
	l, t := &b.slots[i].lends, &b.slots[taker]
	return l.taker == several || t.fed != 0 && t.fed != i+1 && t.fedAt >= l.since
}

// forgive takes back what others were blamed for while KV did not come from slot i.
func (b *Book) forgive(now fleet.Time, i int) {
	for k := range b.slots {
		s := &b.slots[k]
		if s.partner != i+1 && s.partner != several {
			continue
		}
		s.partner = 0
		s.row -= s.unclear
		s.bad.Add(now.Seconds(), -min(float64(s.unclear), count(&s.bad, now)))
		s.unclear = 0
	}
}

// Came records that KV from slot i has come to slot taker, which is all that clears
// a lender. It reports whether i lends again.
func (b *Book) Came(now fleet.Time, i, taker int) bool {
	b.slots[taker].fed, b.slots[taker].fedAt = i+1, now
	l := &b.slots[i].lends
	before := l.state
	b.setTrial(l, fleet.Never)
	*l = lender{next: fleet.Never}
	return before != Healthy
}

// Retry puts slot i on trial as a lender when that is due. It reports whether it
// did.
func (b *Book) Retry(now fleet.Time, i int) bool {
	l := &b.slots[i].lends
	if l.state != Ejected || now < l.next {
		return false
	}
	l.state = Trial
	b.setTrial(l, fleet.Never)
	return true
}

// setTrial changes when a lender's trial begins.
func (b *Book) setTrial(l *lender, at fleet.Time) {
	if l.next != fleet.Never {
		b.sick--
	}
	if l.next = at; at != fleet.Never {
		b.sick++
	}
}

// part forgets what others have had to do with slot i.
func (b *Book) part(i int) {
	for k := range b.slots {
		s := &b.slots[k]
		if s.partner == i+1 {
			s.partner = 0
		}
		if s.fed == i+1 {
			s.fed = 0
		}
		if s.lends.taker == i+1 {
			s.lends.taker, s.lends.row = 0, 0
		}
	}
}
