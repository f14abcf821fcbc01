package transfer

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"time"

	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
)

// order is the body of POST /tickets.
type order struct {
	ID                  string `json:"id,omitempty"` // made here when there is none
	Source              string `json:"source"`
	SourceIncarnation   string `json:"sourceIncarnation,omitempty"`
	Consumer            string `json:"consumer"`
	ConsumerIncarnation string `json:"consumerIncarnation,omitempty"`
	Blocks              int64  `json:"blocks,omitempty"`
	Bytes               int64  `json:"bytes,omitempty"`
	Tokens              int64  `json:"tokens,omitempty"`
}

// progress is the body of what is reported of a ticket.
type progress struct {
	Incarnation string  `json:"incarnation,omitempty"` // of the source for prefilling and ready, else of the consumer
	Bytes       int64   `json:"bytes,omitempty"`       // ready and done
	LeaseMs     int64   `json:"leaseMs,omitempty"`     // ready and pulling: how long the engine keeps the blocks from now
	TookMs      float64 `json:"tookMs,omitempty"`      // done
	Reason      string  `json:"reason,omitempty"`      // abort
}

// ticket is one as it is shown.
type ticket struct {
	order
	Stage      exchange.Stage    `json:"stage"`
	From       string            `json:"from"` // domains
	To         string            `json:"to"`
	Planned    time.Time         `json:"planned"`
	Prefilling *time.Time        `json:"prefilling,omitempty"`
	Ready      *time.Time        `json:"ready,omitempty"`
	Pulling    *time.Time        `json:"pulling,omitempty"`
	Ended      *time.Time        `json:"ended,omitempty"`
	Deadline   time.Time         `json:"deadline"`
	Moved      int64             `json:"moved,omitempty"`
	TookMs     float64           `json:"tookMs,omitempty"`
	ExpectedMs float64           `json:"expectedMs,omitempty"` // as was predicted
	Reason     string            `json:"reason,omitempty"`
	Failure    string            `json:"failure,omitempty"` // of an engine, which aborted it
	Verdict    *exchange.Verdict `json:"verdict,omitempty"` // with the answer to POST
}

// ticketList answers GET /tickets.
type ticketList struct {
	Index   uint64         `json:"index"`
	Tickets []ticket       `json:"tickets"`
	Tally   exchange.Tally `json:"tally"`
}

func (s *Server) view(t exchange.Ticket) ticket {
	v := ticket{
		order: order{t.ID, t.Source, t.SourceIncarnation, t.Consumer, t.ConsumerIncarnation, t.Blocks, t.Bytes, t.Tokens},
		Stage: t.Stage, From: t.From, To: t.To, Planned: s.clock(t.PlannedAt), Deadline: s.clock(t.Deadline),
		Moved: t.Moved, TookMs: float64(t.Took) / 1e6, ExpectedMs: float64(t.Expected) / 1e6, Reason: t.Reason,
	}
	if t.Failure != fleet.FailNone {
		v.Failure = t.Failure.String()
	}
	for _, at := range []struct {
		to   **time.Time
		when fleet.Time
	}{{&v.Prefilling, t.PrefillingAt}, {&v.Ready, t.ReadyAt}, {&v.Pulling, t.PullingAt}, {&v.Ended, t.EndedAt}} {
		if at.when != 0 {
			*at.to = new(s.clock(at.when))
		}
	}
	return v
}

func (s *Server) postTicket(w http.ResponseWriter, r *http.Request) {
	var body order
	if err := read(r, &body); err != nil {
		s.refuse(w, err)
		return
	}
	if body.ID == "" {
		body.ID = rand.Text()
	}
	var t exchange.Ticket
	var v exchange.Verdict
	var err error
	s.Do(func(now fleet.Time, b *exchange.Book) {
		t, v, err = b.Plan(now, exchange.Order{
			ID: body.ID, Source: body.Source, Consumer: body.Consumer,
			SourceIncarnation: body.SourceIncarnation, ConsumerIncarnation: body.ConsumerIncarnation, Blocks: body.Blocks, Bytes: body.Bytes, Tokens: body.Tokens,
		})
	})
	switch {
	case errors.Is(err, exchange.ErrIncompatible):
		s.count("incompatible")
		reply(w, http.StatusConflict, problem{Error: err.Error(), Verdict: &v})
	case err != nil:
		s.refuse(w, err)
	default:
		a := s.view(t)
		a.Verdict = &v
		reply(w, http.StatusCreated, a)
	}
}

func (s *Server) getTickets(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	s.watch(w, r, func(index uint64, b *exchange.Book) any {
		list := ticketList{Index: index, Tickets: []ticket{}, Tally: b.Tally()}
		for _, t := range b.Tickets() {
			party := fits(q.Get("instance"), t.Source) || fits(q.Get("instance"), t.Consumer)
			if party && fits(q.Get("stage"), string(t.Stage)) {
				list.Tickets = append(list.Tickets, s.view(t))
			}
		}
		return list
	})
}

func (s *Server) getTicket(w http.ResponseWriter, r *http.Request) {
	var t exchange.Ticket
	found := false
	s.Do(func(_ fleet.Time, b *exchange.Book) { t, found = b.Ticket(r.PathValue("id")) })
	if !found {
		s.refuse(w, fmt.Errorf("%w: %q", exchange.ErrNoTicket, r.PathValue("id")))
		return
	}
	reply(w, http.StatusOK, s.view(t))
}

// advance returns the handler of one step of a ticket.
func (s *Server) advance(step func(b *exchange.Book, now fleet.Time, id string, p progress) (exchange.Ticket, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var body progress
		if err := read(r, &body); err != nil {
			s.refuse(w, err)
			return
		}
		if err := body.check(); err != nil {
			s.refuse(w, err)
			return
		}
		var t exchange.Ticket
		var err error
		s.Do(func(now fleet.Time, b *exchange.Book) { t, err = step(b, now, r.PathValue("id"), body) })
		if err != nil {
			s.refuse(w, err)
			return
		}
		reply(w, http.StatusOK, s.view(t))
	}
}

// check keeps times within what can be counted, and texts short.
func (p progress) check() error {
	most := float64(exchange.MaxLease.Milliseconds())
	if p.LeaseMs < 0 || float64(p.LeaseMs) > most || !(p.TookMs >= 0 && p.TookMs <= most) {
		return fmt.Errorf("leaseMs and tookMs: must be between 0 and %g, are %d and %g", most, p.LeaseMs, p.TookMs)
	}
	if err := exchange.Text(p.Reason, false); err != nil {
		return fmt.Errorf("reason: %w", err)
	}
	return nil
}

func (p progress) lease() time.Duration { return time.Duration(p.LeaseMs) * time.Millisecond }

func prefilling(b *exchange.Book, now fleet.Time, id string, p progress) (exchange.Ticket, error) {
	return b.Prefilling(now, id, p.Incarnation)
}

func ready(b *exchange.Book, now fleet.Time, id string, p progress) (exchange.Ticket, error) {
	return b.Ready(now, id, p.Incarnation, p.Bytes, p.lease())
}

func pulling(b *exchange.Book, now fleet.Time, id string, p progress) (exchange.Ticket, error) {
	return b.Pulling(now, id, p.Incarnation, p.lease())
}

func done(b *exchange.Book, now fleet.Time, id string, p progress) (exchange.Ticket, error) {
	return b.Done(now, id, p.Incarnation, p.Bytes, time.Duration(p.TookMs*1e6))
}

func abort(b *exchange.Book, now fleet.Time, id string, p progress) (exchange.Ticket, error) {
	return b.Abort(now, id, p.Reason)
}
