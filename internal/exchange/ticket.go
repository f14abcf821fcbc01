package exchange

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Stage is where a transfer stands.
type Stage string

// The stages of a transfer. The last three close its ticket.
const (
	Planned    Stage = "planned"    // prefill will compute it
	Prefilling Stage = "prefilling" // prefill does; who does not tell is planned until it is ready
	Ready      Stage = "ready"      // its blocks wait to be pulled, while the engine's lease lasts
	Pulling    Stage = "pulling"
	Done       Stage = "done"
	Aborted    Stage = "aborted"
	Expired    Stage = "expired"
)

// Open reports whether the transfer may still happen.
func (s Stage) Open() bool { return s.early() || s == Ready || s == Pulling }

// early reports whether nothing is there to be pulled yet.
func (s Stage) early() bool { return s == Planned || s == Prefilling }

// Order is what a ticket is asked for.
type Order struct {
	ID       string // unique; the engines' transfer_id where they have one
	Source   string // who has the KV, or will
	Consumer string
	// The incarnations that the order is meant for; "" is the present one.
	SourceIncarnation, ConsumerIncarnation string
	Blocks                                 int64
	Bytes                                  int64 // 0 where nobody knows yet
	Tokens                                 int64 // of the prompt; 0 where nobody knows
	// Judged says that who orders has judged the pair by what it knows of it: one of
	// the two has told too little to be judged here.
	Judged bool
	// Notify has the ticket told of by Ended when it is closed.
	Notify bool
}

// Ticket is one transfer of KV between two incarnations.
type Ticket struct {
	Order
	From, To string // domains
	Lanes    int    // pairs of ranks that move it
	Stage    Stage
	Moved    int64 // bytes, told at the end
	Took     time.Duration
	Expected time.Duration // how long it was predicted to take; 0 when it was not
	Reason   string        // why it was aborted or has expired
	Failure  fleet.Failure // of an attempt that has failed, which aborted it

	PlannedAt, PrefillingAt, ReadyAt, PullingAt, EndedAt fleet.Time
	// Deadline is the end of the engine's lease on the blocks, and before that of
	// the time a prefill may take.
	Deadline fleet.Time

	serial uint64
	flows  int // of the source when the pull began
	due    due
}

// overdue says what a ticket has waited for in vain.
func (t *Ticket) overdue() string {
	switch t.Stage {
	case Planned, Prefilling:
		return "no prefill in time"
	case Ready:
		return "nobody pulled before the engine's lease ended"
	}
	return "the pull did not end before the engine's lease did"
}

// Tally counts tickets: Opened = Done + Aborted + Expired + those that are open.
type Tally struct {
	Opened  uint64 `json:"opened"`
	Done    uint64 `json:"done"`
	Aborted uint64 `json:"aborted"`
	Failed  uint64 `json:"failed"` // of those aborted, because an engine has failed
	Expired uint64 `json:"expired"`
	Open    int    `json:"open"`
	Bytes   int64  `json:"bytes"` // moved by those that are done
}

// Plan opens a ticket. The pair is judged first: a request that would fail on
// first contact is not worth its prefill. The verdict comes back either way.
func (b *Book) Plan(now fleet.Time, o Order) (Ticket, Verdict, error) {
	b.Advance(now)
	if err := b.orderable(o); err != nil {
		return Ticket{}, Verdict{}, err
	}
	src, dst := b.held[o.Source], b.held[o.Consumer]
	for _, side := range []struct {
		h        *holding
		id, want string
	}{{src, o.Source, o.SourceIncarnation}, {dst, o.Consumer, o.ConsumerIncarnation}} {
		if side.h == nil {
			return Ticket{}, Verdict{}, fmt.Errorf("%w: %q", ErrUnknown, side.id)
		}
		if _, err := b.holder(side.id, cmp.Or(side.want, side.h.Incarnation)); err != nil {
			return Ticket{}, Verdict{}, err
		}
	}
	v := Verdict{OK: true}
	if !o.Judged {
		v = Judge(&src.Instance, &dst.Instance)
	}
	if !v.OK {
		return Ticket{}, v, fmt.Errorf("%w: %s", ErrIncompatible, v.Hard[0])
	}
	o.SourceIncarnation, o.ConsumerIncarnation = src.Incarnation, dst.Incarnation
	b.serial++
	t := &Ticket{
		Order: o, From: src.Domain, To: dst.Domain, Lanes: lanes(src, dst), Stage: Planned, PlannedAt: now, serial: b.serial,
	}
	t.due.ticket = t
	b.open[o.ID] = t
	src.tickets, dst.tickets = append(src.tickets, t), append(dst.tickets, t)
	b.tally.Opened++
	b.flow(t).Planned++
	b.hold(t, now, b.config.PlanFor)
	return t.told(), v, nil
}

// orderable checks what an order says by itself.
func (b *Book) orderable(o Order) error {
	switch {
	case Text(o.ID, true) != nil:
		return fmt.Errorf("id: %w", Text(o.ID, true))
	case o.Bytes < 0 || o.Blocks < 0 || o.Tokens < 0:
		return fmt.Errorf("bytes, blocks and tokens must not be negative, are %d, %d and %d", o.Bytes, o.Blocks, o.Tokens)
	case len(b.open) >= b.config.MaxTickets:
		return fmt.Errorf("%w: there are %d open tickets already", ErrFull, len(b.open))
	}
	if old, ok := b.Ticket(o.ID); ok {
		return fmt.Errorf("%w: a ticket %q exists already, and is %s", ErrState, o.ID, old.Stage)
	}
	return nil
}

// lanes is how many pairs of ranks move KV side by side.
func lanes(a, b *holding) int { return max(1, min(a.Parallel.TP, b.Parallel.TP)) }

// Prefilling says that the source computes the KV.
func (b *Book) Prefilling(now fleet.Time, id, sourceIncarnation string) (Ticket, error) {
	t, err := b.turn(now, id, sourceIncarnation, true, Planned)
	if err != nil {
		return Ticket{}, err
	}
	t.Stage, t.PrefillingAt = Prefilling, now
	b.hold(t, now, b.config.PlanFor)
	return t.told(), nil
}

// Ready says that the source has computed the KV and keeps it for so long; lease
// 0 is what the source's registration says, or the default. Bytes above 0 correct
// the order's.
func (b *Book) Ready(now fleet.Time, id, sourceIncarnation string, bytes int64, lease time.Duration) (Ticket, error) {
	t, err := b.turn(now, id, sourceIncarnation, true, Planned, Prefilling)
	if err != nil {
		return Ticket{}, err
	}
	if bytes < 0 || lease < 0 || lease > MaxLease {
		return t.told(), fmt.Errorf("bytes must not be negative and the lease must be between 0 and %v, are %d and %v", MaxLease, bytes, lease)
	}
	t.Stage, t.ReadyAt, t.Bytes = Ready, now, cmp.Or(bytes, t.Bytes)
	if e, err := b.Predict(now, t.Source, t.Consumer, t.Bytes); err == nil && t.Bytes > 0 {
		t.Expected = time.Duration(e.Seconds * float64(time.Second))
	}
	b.hold(t, now, b.blockLease(t, lease))
	return t.told(), nil
}

// Pulling says that the consumer reads the blocks, or reads them still: it
// begins the engine's lease anew, as the engine's own heartbeats do.
func (b *Book) Pulling(now fleet.Time, id, consumerIncarnation string, lease time.Duration) (Ticket, error) {
	t, err := b.turn(now, id, consumerIncarnation, false, Ready, Pulling)
	if err != nil {
		return Ticket{}, err
	}
	if lease < 0 || lease > MaxLease {
		return t.told(), fmt.Errorf("the lease must be between 0 and %v, is %v", MaxLease, lease)
	}
	if t.Stage == Ready {
		t.Stage, t.PullingAt = Pulling, now
		t.flows = b.flows(t.Source)
	}
	b.hold(t, now, b.blockLease(t, lease))
	return t.told(), nil
}

// Outcome is what is told of a transfer that is done.
type Outcome struct {
	Bytes    int64         // 0: as ordered
	Tokens   int64         // 0: as ordered
	Took     time.Duration // 0: since the pull began
	Expected time.Duration // 0: as was predicted here
	Untimed  bool          // nobody knows how long it took, and the link learns nothing
}

// Done says that the consumer has the KV: so many bytes (0: as ordered) in so
// long (0: since the pull began). The link learns from it.
func (b *Book) Done(now fleet.Time, id, consumerIncarnation string, bytes int64, took time.Duration) (Ticket, error) {
	return b.Finish(now, id, consumerIncarnation, Outcome{Bytes: bytes, Took: took})
}

// Finish is Done with all that can be told.
func (b *Book) Finish(now fleet.Time, id, consumerIncarnation string, o Outcome) (Ticket, error) {
	t, err := b.turn(now, id, consumerIncarnation, false, Ready, Pulling)
	if err != nil {
		return Ticket{}, err
	}
	if o.Bytes < 0 || o.Took < 0 {
		return t.told(), fmt.Errorf("bytes and time must not be negative, are %d and %v", o.Bytes, o.Took)
	}
	t.Moved, t.Tokens, t.Expected = cmp.Or(o.Bytes, t.Bytes), cmp.Or(o.Tokens, t.Tokens), cmp.Or(o.Expected, t.Expected)
	if t.Took = o.Took; t.Took == 0 && t.Stage == Pulling && !o.Untimed {
		t.Took = now.Sub(t.PullingAt)
	}
	// Flows come and go while it pulls: their mean is taken from both ends.
	flows := float64(max(1, b.flows(t.Source)))
	if t.flows > 0 {
		flows = (flows + float64(t.flows)) / 2
	}
	b.links.Observe(now, t.From, t.To, Move{Bytes: t.Moved, Flows: flows, Lanes: t.Lanes}, t.Took)
	b.tally.Bytes += t.Moved
	b.end(t, now, Done, "")
	return t.told(), nil
}

// Fail closes a ticket because an engine has failed.
func (b *Book) Fail(now fleet.Time, id string, f fleet.Failure, reason string) (Ticket, error) {
	b.Advance(now)
	t, err := b.opened(id)
	if err != nil {
		return Ticket{}, err
	}
	t.Failure = f
	b.end(t, now, Aborted, cmp.Or(reason, f.String()))
	return t.told(), nil
}

// Abort closes a ticket because of reason. Anybody who is let in may.
func (b *Book) Abort(now fleet.Time, id, reason string) (Ticket, error) {
	b.Advance(now)
	t, err := b.opened(id)
	if err != nil {
		return Ticket{}, err
	}
	b.end(t, now, Aborted, cmp.Or(reason, "no reason was given"))
	return t.told(), nil
}

// Readable says whether the blocks of a ticket may be read at now: the source is
// still in the life that computed them, and its lease on them lasts.
func (b *Book) Readable(now fleet.Time, id string) error {
	b.Advance(now)
	t, err := b.opened(id)
	if err != nil {
		return err
	}
	if t.Stage.early() {
		return fmt.Errorf("%w: %q is %s, nothing is there yet", ErrState, id, t.Stage)
	}
	_, err = b.holder(t.Source, t.SourceIncarnation)
	return err
}

// turn returns the open ticket of id if it is in one of the stages and the
// incarnation is that of its source, or consumer, in its present life.
func (b *Book) turn(now fleet.Time, id, incarnation string, source bool, stages ...Stage) (*Ticket, error) {
	b.Advance(now)
	t, err := b.opened(id)
	if err != nil {
		return nil, err
	}
	who, life := t.Consumer, t.ConsumerIncarnation
	if source {
		who, life = t.Source, t.SourceIncarnation
	}
	if incarnation != life {
		return nil, fmt.Errorf("%w: ticket %q is for %q of %q, not for %q", ErrStale, id, life, who, incarnation)
	}
	if !slices.Contains(stages, t.Stage) {
		return nil, fmt.Errorf("%w: %q is %s", ErrState, id, t.Stage)
	}
	return t, nil
}

// opened returns the open ticket of id.
func (b *Book) opened(id string) (*Ticket, error) {
	if t, ok := b.open[id]; ok {
		return t, nil
	}
	if t, ok := b.Ticket(id); ok {
		return nil, fmt.Errorf("%w: %q is %s already: %s", ErrState, id, t.Stage, cmp.Or(t.Reason, "it has ended"))
	}
	return nil, fmt.Errorf("%w: %q", ErrNoTicket, id)
}

// blockLease is how long blocks of t are kept from now.
func (b *Book) blockLease(t *Ticket, lease time.Duration) time.Duration {
	told := time.Duration(b.held[t.Source].Connector.BlockLeaseMs) * time.Millisecond
	return cmp.Or(lease, told, b.config.BlockLease)
}

// hold sets a ticket's deadline.
func (b *Book) hold(t *Ticket, now fleet.Time, d time.Duration) {
	t.Deadline = now.Add(d)
	b.dues.set(&t.due, t.Deadline)
	b.revision++
}

// end closes a ticket, once.
func (b *Book) end(t *Ticket, now fleet.Time, s Stage, reason string) {
	t.Stage, t.EndedAt, t.Reason = s, now, reason
	switch s {
	case Done:
		b.tally.Done++
	case Expired:
		b.tally.Expired++
	default:
		b.tally.Aborted++
		if t.Failure != fleet.FailNone {
			b.tally.Failed++
		}
	}
	b.flow(t).end(t)
	delete(b.open, t.ID)
	b.dues.drop(&t.due)
	for _, id := range []string{t.Source, t.Consumer} {
		h := b.held[id]
		h.tickets = slices.DeleteFunc(h.tickets, func(o *Ticket) bool { return o == t })
	}
	if len(b.closed) >= b.config.KeepTickets { // half of them, so that it costs little
		b.closed = slices.Delete(b.closed, 0, len(b.closed)/2+1)
	}
	b.closed = append(b.closed, t.told())
	if t.Notify {
		b.ended = append(b.ended, t.told())
	}
	b.revision++
}

// Ended returns the tickets closed since it was last called, of those whose order
// asked for it.
func (b *Book) Ended() []Ticket {
	list := b.ended
	b.ended = nil
	return list
}

// told is a copy of t that keeps nothing of the book alive.
func (t *Ticket) told() Ticket {
	c := *t
	c.due = due{}
	return c
}

// Ticket returns the ticket of id, open or lately closed.
func (b *Book) Ticket(id string) (Ticket, bool) {
	if t, ok := b.open[id]; ok {
		return t.told(), true
	}
	for i := range slices.Backward(b.closed) {
		if b.closed[i].ID == id {
			return b.closed[i], true
		}
	}
	return Ticket{}, false
}

// Tickets returns the tickets that are open and those lately closed, in the
// order they were opened.
func (b *Book) Tickets() []Ticket {
	list := slices.Clone(b.closed)
	for _, t := range b.open {
		list = append(list, t.told())
	}
	slices.SortFunc(list, func(a, b Ticket) int { return cmp.Compare(a.serial, b.serial) })
	return list
}

// Tally counts all tickets there ever were.
func (b *Book) Tally() Tally {
	t := b.tally
	t.Open = len(b.open)
	return t
}

// flows is how many pulls share a source's link.
func (b *Book) flows(source string) int {
	n := 0
	for _, t := range b.held[source].tickets {
		if t.Source == source && t.Stage == Pulling {
			n++
		}
	}
	return n
}

// Predict returns how long a move between two instances would take if it began
// now. Flows that pull from the source share its link with the move: until it
// ends each takes as many bytes as the move itself, or what it still has. Moves
// that are ready count whole, because their pull may begin at any time; those
// that are planned do not.
func (b *Book) Predict(now fleet.Time, source, consumer string, bytes int64) (Estimate, error) {
	src, dst := b.held[source], b.held[consumer]
	if src == nil || dst == nil {
		return Estimate{}, fmt.Errorf("%w: %q or %q", ErrUnknown, source, consumer)
	}
	m := Move{Bytes: bytes, Lanes: lanes(src, dst)}
	e := b.links.Predict(src.Domain, dst.Domain, m)
	for _, t := range src.tickets {
		if t.Source != source || t.Stage.early() {
			continue
		}
		o := Move{Bytes: min(bytes, b.rest(t, now)), Lanes: t.Lanes}
		alone := b.links.Predict(t.From, t.To, o)
		e.Wait += alone.Seconds - alone.Latency
	}
	e.Seconds += e.Wait
	return e, nil
}

// rest is how many bytes of t are still to move, judged by the time it has had.
func (b *Book) rest(t *Ticket, now fleet.Time) int64 {
	if t.Stage != Pulling {
		return t.Bytes
	}
	whole := b.links.Predict(t.From, t.To, Move{Bytes: t.Bytes, Flows: float64(t.flows), Lanes: t.Lanes})
	gone := min(1, now.Sub(t.PullingAt).Seconds()/whole.Seconds)
	return int64(float64(t.Bytes) * (1 - gone))
}
