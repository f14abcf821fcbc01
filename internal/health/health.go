// Package health judges who is fit: it ejects endpoints that fail, asks for
// probes while they are out, and lets them back through a trial.
//
// An endpoint is healthy until it fails Consecutive times in a row, or fails
// more than ErrorShare of at least MinRequests recent attempts. Ejected, it is
// probed at growing intervals; a good probe puts it on trial, where it gets one
// request at a time until one succeeds. Failures to connect always eject;
// failures of other kinds never eject more than MaxShare of the pool, since
// errors everywhere are more likely the requests' fault.
//
// Whether an endpoint hands KV over to others is judged apart; see Book.Missed.
package health

import (
	"fmt"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// Config holds the thresholds. Use Default and change what must differ.
type Config struct {
	Consecutive int           `json:"consecutive"` // failures in a row that eject; at least 1
	ErrorShare  float64       `json:"errorShare"`  // share of failed attempts that ejects, in (0, 1]
	MinRequests int           `json:"minRequests"` // attempts (decayed) before ErrorShare is judged
	MaxShare    float64       `json:"maxShare"`    // largest share of the pool ejected for errors other than connect, in [0, 1]
	ProbeFirst  time.Duration `json:"probeFirst"`  // from ejection to the first probe
	ProbeMax    time.Duration `json:"probeMax"`    // longest interval between probes
}

// Default ejects within a few requests and has a returned endpoint back well
// within five seconds.
func Default() Config {
	return Config{
		Consecutive: 3, ErrorShare: 0.5, MinRequests: 10, MaxShare: 0.5,
		ProbeFirst: 500 * time.Millisecond, ProbeMax: 3 * time.Second,
	}
}

// Validate returns what is wrong with c, field by field.
func (c Config) Validate() []error {
	var errs []error
	bad := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(c.Consecutive >= 1, "consecutive: must be at least 1, is %d", c.Consecutive)
	bad(c.ErrorShare > 0 && c.ErrorShare <= 1, "errorShare: must be in (0, 1], is %v", c.ErrorShare)
	bad(c.MinRequests >= 1, "minRequests: must be at least 1, is %d", c.MinRequests)
	bad(c.MaxShare >= 0 && c.MaxShare <= 1, "maxShare: must be in [0, 1], is %v", c.MaxShare)
	bad(c.ProbeFirst > 0, "probeFirst: must be positive, is %v", c.ProbeFirst)
	bad(c.ProbeMax >= c.ProbeFirst, "probeMax: must be at least probeFirst (%v), is %v", c.ProbeFirst, c.ProbeMax)
	return errs
}

// State is an endpoint's fitness.
type State uint8

// The states of an endpoint.
const (
	Healthy State = iota
	Ejected       // out; probed from time to time
	Trial         // back after a good probe; one request at a time
)

// String returns the state's name.
func (s State) String() string { return [...]string{"healthy", "ejected", "trial"}[s] }

// errorHalfLife is the memory of the error share, in seconds.
const errorHalfLife = 10

// Book keeps the health of one pool's endpoints, by slot.
type Book struct {
	config Config
	slots  []slot
	sick   int // slots that want a probe or a trial, now or later
}

type slot struct {
	present  bool
	state    State
	row      int // failures in a row
	good     stat.Rate
	bad      stat.Rate
	wait     time.Duration // current probe interval
	next     fleet.Time    // when the next probe is due
	inFlight bool          // a probe is out
	partner  int           // 1 above the slot that all unclear failures since the last answer began were with, or several; 0 for none
	unclear  int           // those of row that were unclear
	fed      int           // 1 above the slot from which KV has last come; 0 for none
	fedAt    fleet.Time    // and when
	lends    lender
}

// New returns an empty book.
func New(c Config) *Book { return &Book{config: c} }

// SetConfig replaces the thresholds; states stay.
func (b *Book) SetConfig(c Config) { b.config = c }

// Add makes slot i healthy with no history.
func (b *Book) Add(i int) {
	for len(b.slots) <= i {
		b.slots = append(b.slots, noSlot())
	}
	b.unlist(i)
	b.slots[i] = slot{
		present: true, next: fleet.Never, lends: lender{next: fleet.Never},
		good: stat.Rate{HalfLife: errorHalfLife}, bad: stat.Rate{HalfLife: errorHalfLife},
	}
}

// Remove forgets slot i.
func (b *Book) Remove(i int) {
	b.unlist(i)
	b.slots[i] = noSlot()
}

func noSlot() slot { return slot{next: fleet.Never, lends: lender{next: fleet.Never}} }

// unlist takes slot i out of what is kept of all.
func (b *Book) unlist(i int) {
	b.setNext(&b.slots[i], fleet.Never)
	b.setTrial(&b.slots[i].lends, fleet.Never)
	b.part(i)
}

// setNext changes when a slot's next probe is due.
func (b *Book) setNext(s *slot, at fleet.Time) {
	if s.next != fleet.Never {
		b.sick--
	}
	if s.next = at; at != fleet.Never {
		b.sick++
	}
}

// State returns slot i's fitness.
func (b *Book) State(i int) State { return b.slots[i].state }

// NextProbe returns when slot i wants its next probe, Never when it wants none.
func (b *Book) NextProbe(i int) fleet.Time {
	if b.slots[i].inFlight {
		return fleet.Never
	}
	return b.slots[i].next
}

// NextOfAll returns when the first probe or trial of any slot is wanted, Never when
// none is.
func (b *Book) NextOfAll() fleet.Time {
	at := fleet.Never
	if b.sick == 0 {
		return at
	}
	for i := range b.slots {
		at = min(at, b.NextProbe(i), b.NextTrial(i))
	}
	return at
}

// Success records an attempt that ended well. It reports whether the state
// changed.
func (b *Book) Success(now fleet.Time, i int) bool {
	s := &b.slots[i]
	s.row, s.unclear = 0, 0
	s.good.Add(now.Seconds(), 1)
	return b.Alive(i)
}

// Alive records that an answer has begun, which ends a trial but does not count
// as a success: it may still break. It reports whether the state changed.
func (b *Book) Alive(i int) bool {
	s := &b.slots[i]
	s.partner = 0
	if s.state != Trial {
		return false
	}
	s.state, s.wait = Healthy, 0
	b.setNext(s, fleet.Never)
	// What went wrong before the ejection must not eject it again at once.
	s.bad = stat.Rate{HalfLife: errorHalfLife}
	return true
}

// Failure records an attempt (or a scrape) that failed in a way that blames the
// endpoint. It reports whether the state changed.
func (b *Book) Failure(now fleet.Time, i int, kind fleet.Failure) bool {
	s := &b.slots[i]
	s.row++
	s.bad.Add(now.Seconds(), 1)
	switch s.state {
	case Trial:
		b.eject(now, s)
		return true
	case Healthy:
		if b.tooBad(now, s) && (kind == fleet.FailConnect || b.mayEject()) {
			b.eject(now, s)
			return true
		}
	}
	return false
}

// Unclear records an attempt that failed at slot i and may be the fault of slot
// other: KV was to come from there, and an engine that has just died is found out
// later than those that miss its KV. i is blamed when it has failed so with more than
// one. It reports whether the state changed.
func (b *Book) Unclear(now fleet.Time, i, other int, kind fleet.Failure) bool {
	s := &b.slots[i]
	switch s.partner {
	case 0:
		s.partner = other + 1
		return false
	case other + 1:
		return false
	}
	s.partner = several
	s.unclear++
	return b.Failure(now, i, kind)
}

func (b *Book) tooBad(now fleet.Time, s *slot) bool {
	if s.row >= b.config.Consecutive {
		return true
	}
	bad, good := count(&s.bad, now), count(&s.good, now)
	return bad+good >= float64(b.config.MinRequests) && bad > b.config.ErrorShare*(bad+good)
}

// count is how many attempts r holds, those long ago in part.
func count(r *stat.Rate, now fleet.Time) float64 {
	const perSecondToCount = errorHalfLife / 0.6931471805599453
	return r.PerSecond(now.Seconds()) * perSecondToCount
}

// mayEject reports whether one more ejection keeps the ejected share within
// MaxShare.
func (b *Book) mayEject() bool {
	all, out := 0, 0
	for i := range b.slots {
		if b.slots[i].present {
			all++
			if b.slots[i].state == Ejected {
				out++
			}
		}
	}
	return float64(out+1) <= b.config.MaxShare*float64(all)
}

func (b *Book) eject(now fleet.Time, s *slot) {
	s.state = Ejected
	s.wait = min(max(s.wait*3/2, b.config.ProbeFirst), b.config.ProbeMax)
	b.setNext(s, now.Add(s.wait))
}

// Due reports whether slot i's probe is due and, if so, marks it as out. Every
// true must be answered by Probed.
func (b *Book) Due(now fleet.Time, i int) bool {
	s := &b.slots[i]
	if s.state != Ejected || s.inFlight || now < s.next {
		return false
	}
	s.inFlight = true
	return true
}

// Probed records the answer to a probe. It reports whether the state changed.
func (b *Book) Probed(now fleet.Time, i int, ok bool) bool {
	s := &b.slots[i]
	s.inFlight = false
	if s.state != Ejected {
		return false
	}
	if ok {
		s.state, s.row, s.unclear = Trial, 0, 0
		b.setNext(s, fleet.Never)
		return true
	}
	s.wait = min(s.wait*3/2, b.config.ProbeMax)
	b.setNext(s, now.Add(s.wait))
	return false
}
