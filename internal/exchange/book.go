package exchange

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Config bounds a Book. Changing it needs a new Book.
type Config struct {
	Lease        time.Duration `json:"lease"`      // of a registration that asks for none
	BlockLease   time.Duration `json:"blockLease"` // how long an engine that does not say keeps blocks for a pull
	PlanFor      time.Duration `json:"planFor"`    // how long a ticket waits for its prefill
	MaxInstances int           `json:"maxInstances"`
	MaxTickets   int           `json:"maxTickets"`  // open at once
	KeepTickets  int           `json:"keepTickets"` // closed ones that can still be looked at
	Prior        Prior         `json:"prior"`
}

// MaxLease bounds the lease that a registration may ask for, and that an engine
// may give its blocks.
const MaxLease = time.Hour

// DefaultConfig is for some hundred engines. Blocks are kept as vLLM keeps them.
func DefaultConfig() Config {
	return Config{
		Lease: 30 * time.Second, BlockLease: 30 * time.Second, PlanFor: 10 * time.Minute,
		MaxInstances: 4096, MaxTickets: 65536, KeepTickets: 1024, Prior: DefaultPrior(),
	}
}

// Validate returns what is wrong with c, field by field.
func (c Config) Validate() []error {
	var errs []error
	for _, d := range []struct {
		field string
		value time.Duration
	}{{"lease", c.Lease}, {"blockLease", c.BlockLease}, {"planFor", c.PlanFor}} {
		if d.value <= 0 || d.value > MaxLease {
			errs = append(errs, fmt.Errorf("%s: must be above 0 and at most %v, is %v", d.field, MaxLease, d.value))
		}
	}
	for _, n := range []struct {
		field string
		value int
	}{{"maxInstances", c.MaxInstances}, {"maxTickets", c.MaxTickets}, {"keepTickets", c.KeepTickets}} {
		if n.value < 1 {
			errs = append(errs, fmt.Errorf("%s: must be at least 1, is %d", n.field, n.value))
		}
	}
	for _, err := range c.Prior.Validate() {
		errs = append(errs, fmt.Errorf("prior.%w", err))
	}
	return errs
}

// What a caller may have to tell apart.
var (
	// ErrUnknown: no instance of that id has a lease. It should register again.
	ErrUnknown = errors.New("no such instance, or its lease has ended")
	// ErrStale: another incarnation has taken the instance's place.
	ErrStale = errors.New("the incarnation is not the present one")
	// ErrFull: a bound of the Book is reached.
	ErrFull = errors.New("no room")
	// ErrNoTicket: there is no ticket of that id, or no more.
	ErrNoTicket = errors.New("no such ticket")
	// ErrState: the ticket is in a state that forbids it.
	ErrState = errors.New("the ticket does not allow it")
	// ErrIncompatible: the pair cannot exchange KV.
	ErrIncompatible = errors.New("the pair is not compatible")
)

// Book knows instances while their leases last, the tickets between them, and
// the links. It is a state machine over explicit times: now never falls. It is
// not safe for concurrent use.
//
// Its laws: of an id one incarnation is known at a time, and one that has been
// replaced never comes back. A ticket belongs to the incarnations it was opened
// for; when one of them goes, it is aborted. Every ticket is closed exactly once.
type Book struct {
	config   Config
	links    *Links
	held     map[string]*holding
	fences   map[string]*fence
	oldest   []string // ids in fences, in the order they came
	open     map[string]*Ticket
	closed   []Ticket // the latest
	ended    []Ticket // not told of yet
	pairs    map[couple]*Flow
	dues     dues
	revision uint64
	census   uint64
	serial   uint64
	tally    Tally
}

// Entry is an instance with its lease.
type Entry struct {
	Instance
	Since   fleet.Time // when this incarnation was first heard of
	Seen    fleet.Time // when it last was
	Expires fleet.Time
}

// holding is an entry with what hangs on it.
type holding struct {
	Entry
	lease   time.Duration
	tickets []*Ticket // open, as source or consumer
	due     due
}

// fence remembers what an id has left behind, also while nobody holds it.
type fence struct {
	last    string   // the incarnation that was let through last
	retired []string // incarnations that were replaced, the latest last
	started int64    // of the latest that told it
}

const (
	maxRetired = 32 // incarnations of an id that are remembered
	fencesPer  = 4  // ids that are remembered for each instance there may be
)

// NewBook returns an empty book. The configuration must be valid.
func NewBook(c Config) *Book {
	return &Book{
		config: c, links: NewLinks(c.Prior), held: map[string]*holding{}, fences: map[string]*fence{},
		open: map[string]*Ticket{}, pairs: map[couple]*Flow{}, closed: make([]Ticket, 0, min(c.KeepTickets, 1024)),
	}
}

// Register takes an instance on, or renews its lease; lease 0 is the default.
// A new incarnation takes the place of the old one, whose tickets are aborted.
func (b *Book) Register(now fleet.Time, i Instance, lease time.Duration) (Entry, error) {
	b.Advance(now)
	if errs := i.Validate(); len(errs) > 0 {
		return Entry{}, errors.Join(errs...)
	}
	if lease < 0 || lease > MaxLease {
		return Entry{}, fmt.Errorf("lease: must be between 0 (the default) and %v, is %v", MaxLease, lease)
	}
	h := b.held[i.ID]
	if h == nil && len(b.held) >= b.config.MaxInstances {
		return Entry{}, fmt.Errorf("%w: there are %d instances already", ErrFull, len(b.held))
	}
	if err := b.fenced(&i); err != nil {
		return Entry{}, err
	}
	if h != nil && h.Incarnation != i.Incarnation {
		b.forget(h, now, "has restarted")
		h = nil
	}
	b.fenceOf(i.ID).pass(&i)
	h = b.put(h, now, i)
	h.lease = cmp.Or(lease, b.config.Lease)
	b.renew(h, now)
	return h.Entry, nil
}

// put stores what an instance tells, if it tells anything new.
func (b *Book) put(h *holding, now fleet.Time, i Instance) *holding {
	if h != nil && reflect.DeepEqual(h.Instance, i) {
		return h
	}
	b.revision++
	b.census++
	if h != nil {
		h.Instance = i
		return h
	}
	h = &holding{Entry: Entry{Instance: i, Since: now}}
	h.due.instance = h
	b.held[i.ID] = h
	return h
}

// fenced refuses an incarnation whose time is over.
func (b *Book) fenced(i *Instance) error {
	f := b.fences[i.ID]
	switch {
	case f == nil:
		return nil
	case slices.Contains(f.retired, i.Incarnation):
		return fmt.Errorf("%w: %q of %q was replaced by a later one", ErrStale, i.Incarnation, i.ID)
	case i.Started != 0 && i.Started < f.started:
		return fmt.Errorf("%w: %q of %q was started at %d, before one that was started at %d", ErrStale, i.Incarnation, i.ID, i.Started, f.started)
	}
	return nil
}

// pass lets an incarnation through, and nobody who was let through before it,
// even if that one's lease has ended long since.
func (f *fence) pass(i *Instance) {
	if f.last != "" && f.last != i.Incarnation {
		f.retired = append(f.retired, f.last)
		f.retired = f.retired[max(0, len(f.retired)-maxRetired):]
	}
	f.last, f.started = i.Incarnation, max(f.started, i.Started)
}

// fenceOf returns the fence of id. When there are too many, the oldest whose id
// nobody holds goes: there is one, because fences are more than instances.
func (b *Book) fenceOf(id string) *fence {
	if f, ok := b.fences[id]; ok {
		return f
	}
	if len(b.fences) >= fencesPer*b.config.MaxInstances {
		at := slices.IndexFunc(b.oldest, func(id string) bool { return b.held[id] == nil })
		delete(b.fences, b.oldest[at])
		b.oldest = slices.Delete(b.oldest, at, at+1)
	}
	f := &fence{}
	b.fences[id] = f
	b.oldest = append(b.oldest, id)
	return f
}

// Renew extends the lease of an instance. ErrUnknown asks it to register.
func (b *Book) Renew(now fleet.Time, id, incarnation string) (Entry, error) {
	b.Advance(now)
	h, err := b.holder(id, incarnation)
	if err != nil {
		return Entry{}, err
	}
	b.renew(h, now)
	return h.Entry, nil
}

func (b *Book) renew(h *holding, now fleet.Time) {
	h.Seen, h.Expires = now, now.Add(h.lease)
	b.dues.set(&h.due, h.Expires)
}

// Leave takes an instance out; its tickets are aborted.
func (b *Book) Leave(now fleet.Time, id, incarnation string) error {
	b.Advance(now)
	h, err := b.holder(id, incarnation)
	if err != nil {
		return err
	}
	b.forget(h, now, "has left")
	return nil
}

// holder returns the holding of id, if incarnation is the present one.
func (b *Book) holder(id, incarnation string) (*holding, error) {
	h := b.held[id]
	switch {
	case h != nil && h.Incarnation == incarnation:
		return h, nil
	case h != nil:
		return nil, fmt.Errorf("%w: %q is now incarnation %q, not %q", ErrStale, id, h.Incarnation, incarnation)
	}
	if f := b.fences[id]; f != nil && slices.Contains(f.retired, incarnation) {
		return nil, fmt.Errorf("%w: %q of %q was replaced by a later one", ErrStale, incarnation, id)
	}
	return nil, fmt.Errorf("%w: %q", ErrUnknown, id)
}

// forget takes a holding out and aborts what hangs on it.
func (b *Book) forget(h *holding, now fleet.Time, why string) {
	for _, t := range slices.Clone(h.tickets) {
		side := "consumer"
		if t.Source == h.ID {
			side = "source"
		}
		b.end(t, now, Aborted, fmt.Sprintf("the %s %q %s", side, h.ID, why))
	}
	b.dues.drop(&h.due)
	delete(b.held, h.ID)
	b.revision++
	b.census++
}

// Advance ends leases and deadlines that are over.
func (b *Book) Advance(now fleet.Time) {
	for len(b.dues) > 0 && b.dues[0].at <= now {
		if d := b.dues[0]; d.ticket != nil {
			b.end(d.ticket, now, Expired, d.ticket.overdue())
		} else {
			b.forget(d.instance, now, "has let its lease end")
		}
	}
}

// Wake returns when Advance is due next, if ever.
func (b *Book) Wake() (at fleet.Time, ok bool) {
	if len(b.dues) == 0 {
		return 0, false
	}
	return b.dues[0].at, true
}

// Revision grows whenever the instances or what they tell change, and whenever a
// ticket does. Renewed leases do not count.
func (b *Book) Revision() uint64 { return b.revision }

// Census grows whenever the instances or what they tell change.
func (b *Book) Census() uint64 { return b.census }

// Find returns the instance of id.
func (b *Book) Find(id string) (Entry, bool) {
	if h := b.held[id]; h != nil {
		return h.Entry, true
	}
	return Entry{}, false
}

// Entries returns all instances, by id.
func (b *Book) Entries() []Entry {
	list := make([]Entry, 0, len(b.held))
	for _, h := range b.held {
		list = append(list, h.Entry)
	}
	slices.SortFunc(list, func(a, b Entry) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Judge says whether two instances that are there can exchange KV.
func (b *Book) Judge(prefill, decode string) (Verdict, error) {
	p, d := b.held[prefill], b.held[decode]
	switch {
	case p == nil:
		return Verdict{}, fmt.Errorf("prefill: %w: %q", ErrUnknown, prefill)
	case d == nil:
		return Verdict{}, fmt.Errorf("decode: %w: %q", ErrUnknown, decode)
	}
	return Judge(&p.Instance, &d.Instance), nil
}

// Links are what has been learnt of the links between domains.
func (b *Book) Links() *Links { return b.links }
