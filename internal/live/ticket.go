package live

import (
	"context"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
)

// Order tells the holder of a ticket what to do: send the request to Endpoint,
// or, when Refusal is set, answer the client with it.
type Order struct {
	Endpoint Endpoint
	Prefill  Endpoint     // computes the prompt before; the zero Endpoint where Endpoint does so itself
	Source   Endpoint     // from whose cache Endpoint fetches what it lacks of the prompt; the zero Endpoint for none
	Pulled   fleet.Tokens // how much that is believed to be
	// Encoders encode the request's images before: by image, the zero Endpoint where
	// that is left to whoever computes the prompt.
	Encoders   []Endpoint
	Attempt    int
	Refusal    fleet.Refusal
	RetryAfter time.Duration
}

// Ticket is one request's place in a pool. It owns the request's entry in the
// ledger: Close must be called on every path, and ends the entry if nothing
// else has. A ticket is used by one goroutine.
type Ticket struct {
	// ID is the request id that the client knows.
	ID string

	pool    *Pool
	req     fleet.ReqID
	orders  chan Order
	cancel  context.CancelFunc // stops the attempt under way; under the pool's lock
	attempt int
	ended   bool
	arrived time.Time
	said    pool.Leg // the latest report; here, so that reporting allocates nothing

	decisions []fleet.Decision // under the pool's lock
	moved     func(Moved)      // likewise; nil for nobody
	instead   Endpoint         // likewise; the answer to the latest Encoded that tells of a failure
}

// maxPending is how many orders can be waiting for a ticket: the brain gives
// the next one only after the last one's attempt has been reported.
const maxPending = 2

// Open brings a request before the pool. The event's Req is assigned here; its
// memory may be reused at once.
func (p *Pool) Open(id string, ev *pool.Arrive) *Ticket {
	t := &Ticket{ID: id, pool: p, orders: make(chan Order, maxPending), arrived: time.Now()}
	p.lock()
	if p.closed {
		p.mu.Unlock()
		t.ended = true
		t.orders <- Order{Refusal: fleet.RefuseDraining}
		return t
	}
	p.lastReq++
	t.req = p.lastReq
	ev.Req = t.req
	p.tickets[t.req] = t
	later := p.stepLocked(ev)
	p.mu.Unlock()
	run(later)
	return t
}

func (t *Ticket) give(o Order) { t.orders <- o }

// Req returns the request's number within the pool.
func (t *Ticket) Req() fleet.ReqID { return t.req }

// Decisions returns the records of the placements so far.
func (t *Ticket) Decisions() []fleet.Decision {
	t.pool.mu.Lock()
	defer t.pool.mu.Unlock()
	return t.decisions
}

// Arrived returns when the ticket was opened.
func (t *Ticket) Arrived() time.Time { return t.arrived }

// Wait returns the next order. It fails only with the context.
func (t *Ticket) Wait(ctx context.Context) (Order, error) {
	var o Order
	select {
	case o = <-t.orders:
	case <-ctx.Done():
		return Order{}, context.Cause(ctx)
	case <-t.pool.done:
		select {
		case o = <-t.orders: // given before the pool closed
		default:
			o.Refusal = fleet.RefuseDraining
		}
	}
	t.attempt = o.Attempt
	t.ended = t.ended || o.Refusal != fleet.RefuseNone
	return o, nil
}

// Sent reports that the attempt is on its way; cancel stops it.
func (t *Ticket) Sent(cancel context.CancelFunc) {
	t.pool.mu.Lock()
	t.cancel = cancel
	t.pool.mu.Unlock()
	t.leg(pool.Leg{Phase: fleet.PhaseSent})
}

// FirstToken reports the first token of the attempt.
func (t *Ticket) FirstToken() { t.leg(pool.Leg{Phase: fleet.PhaseFirstToken}) }

// Progress reports how many tokens have been generated so far. At most four
// calls a second are wanted.
func (t *Ticket) Progress(output fleet.Tokens) {
	t.leg(pool.Leg{Phase: fleet.PhaseProgress, Output: output})
}

// Prefilled reports that the first leg of the attempt has ended: the prompt has
// been computed. It may be called beside the other reports.
func (t *Ticket) Prefilled(u fleet.Usage) {
	t.pool.step(&pool.Leg{Req: t.req, Attempt: t.attempt, Prefill: true, Phase: fleet.PhaseDone, Usage: u})
}

// Encoded reports what became of one of the request's images. After a failure it
// returns where it is to be encoded instead; the zero Endpoint for nowhere. It may
// be called beside the other reports, and itself.
func (t *Ticket) Encoded(image int, f fleet.Failure) (instead Endpoint) {
	p := t.pool
	p.lock()
	t.instead = Endpoint{}
	later := p.stepLocked(&pool.Encoded{Req: t.req, Attempt: t.attempt, Image: image, Failure: f})
	instead = t.instead
	p.mu.Unlock()
	run(later)
	return instead
}

// PrefillFailed reports that the first leg of the attempt has failed. An order
// follows: another attempt or a refusal.
func (t *Ticket) PrefillFailed(f fleet.Failure) (orderFollows bool) {
	t.leg(pool.Leg{Prefill: true, Phase: fleet.PhaseFailed, Failure: f})
	return true
}

// Done reports that the answer ended as the engine meant it.
func (t *Ticket) Done(u fleet.Usage) {
	t.leg(pool.Leg{Phase: fleet.PhaseDone, Usage: u})
	t.ended = true
}

// Failed reports that the attempt failed. It reports whether an order follows:
// another attempt or a refusal. None does when the client has seen part of the
// answer (committed) or the whole of the engine's own error (FailClient).
func (t *Ticket) Failed(f fleet.Failure, committed bool) (orderFollows bool) {
	t.leg(pool.Leg{Phase: fleet.PhaseFailed, Failure: f, Committed: committed})
	t.ended = committed || f == fleet.FailClient
	return !t.ended
}

func (t *Ticket) leg(l pool.Leg) {
	l.Req, l.Attempt = t.req, t.attempt
	t.said = l
	t.pool.step(&t.said)
}

// Close ends the ticket. If the request has not ended, its client has left:
// what it holds is freed and the attempt under way cancelled.
func (t *Ticket) Close() {
	if !t.ended {
		t.ended = true
		t.pool.step(&pool.Gone{Req: t.req})
	}
	t.pool.mu.Lock()
	delete(t.pool.tickets, t.req)
	t.pool.mu.Unlock()
}
