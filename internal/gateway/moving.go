package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
)

// Transfers keeps account of the KV that requests move between engines: split ones,
// and those whose prompt's beginning is fetched.
type Transfers interface {
	// Begin opens the account of one attempt. An error that is ErrPair forbids the
	// pair; others cost only the account. When the transfer is given up by somebody
	// else, stop is told why; it does not wait.
	Begin(m Move, stop func(error)) (Moving, error)
}

// ErrPair says that two engines cannot exchange KV.
var ErrPair = errors.New("the engines cannot exchange KV")

// Move is KV that is to go from one engine to another.
type Move struct {
	ID       string // of the request and the attempt
	Pool     *live.Pool
	From, To live.Endpoint
	Tokens   fleet.Tokens  // of the prompt, estimated
	Within   time.Duration // in which the answer must have begun
	Pull     bool          // From has it already; what has come is known only when the answer is over
}

// Moving is a transfer on its way. Its methods may be called from several
// goroutines; those after its end do nothing.
type Moving interface {
	// Ready says that the prompt has been computed. An error says that what was
	// computed must not be read: its engine is another process by now, or the
	// transfer has been given up.
	Ready() error
	// Pulling says that the engine that answers may read it.
	Pulling()
	// Moved says that it has, or, without tokens, that nothing has come.
	Moved(live.Moved)
	// End closes what is still open: the attempt has ended, well (FailNone) or not.
	End(f fleet.Failure, why error)
}

// givenUp is why an attempt was cancelled whose transfer somebody has ended.
type givenUp struct{ why error }

func (g *givenUp) Error() string { return "the transfer was given up: " + g.why.Error() }

func (g *givenUp) Unwrap() error { return g.why }

// fate is what becomes of an attempt: its answer begins, or it is given up,
// whichever is first. What has begun needs no transfer any more.
type fate struct{ is atomic.Int32 }

// The fates there are; an attempt begins with none.
const (
	fateBegun = iota + 1
	fateGivenUp
)

// begin reports whether the answer may begin, or has.
func (f *fate) begin() bool { return f.is.CompareAndSwap(0, fateBegun) || f.is.Load() == fateBegun }

// giveUp reports whether the attempt may be given up: its answer will not begin.
func (f *fate) giveUp() bool { return f.is.CompareAndSwap(0, fateGivenUp) }

// beginMove opens the account of an attempt that moves KV from one engine to the
// one that answers. An error forbids that.
func (x *exchange) beginMove(from live.Endpoint, tokens fleet.Tokens, cancel context.CancelCauseFunc) error {
	if x.g.o.Transfers == nil {
		return nil
	}
	m := Move{
		ID: fmt.Sprintf("%s.%d", x.access.ID, x.access.Attempts), Pool: x.service.Pool, From: from, To: x.at,
		Tokens: tokens, Within: x.g.o.Limits.FirstByte, Pull: x.pre.ID == fleet.NoEndpoint,
	}
	fate := x.fate
	moving, err := x.g.o.Transfers.Begin(m, func(why error) {
		if fate.giveUp() {
			cancel(&givenUp{why})
		}
	})
	switch {
	case errors.Is(err, ErrPair):
		return err
	case err != nil:
		x.g.o.Log.Debug("a transfer goes on without a ticket", "request", x.access.ID, "err", err)
		return nil
	}
	x.moving = moving
	x.ticket.OnMoved(func(m live.Moved) {
		x.access.Moved = m
		moving.Moved(m)
	})
	return nil
}

// beginPull opens the account of an attempt that begins with fetching. Where that
// is forbidden nothing is fetched.
func (x *exchange) beginPull(cancel context.CancelCauseFunc) {
	if x.source.ID == fleet.NoEndpoint {
		return
	}
	err := x.beginMove(x.source, x.pulled, cancel)
	if err == nil {
		err = x.computed()
	}
	if err != nil {
		x.g.o.Log.Debug("the beginning of a prompt is not fetched", "request", x.access.ID, "source", x.source.Name, "err", err)
		x.source = live.Endpoint{}
		return
	}
	x.pulling()
}

// computed notes that the prompt has been computed, and fails if what was computed
// must not be read.
func (x *exchange) computed() error {
	if x.moving == nil {
		return nil
	}
	return x.moving.Ready()
}

// pulling notes that the engine that answers may read what was computed.
func (x *exchange) pulling() {
	if x.moving != nil {
		x.moving.Pulling()
	}
}

// errLeft ends the transfers of clients that have left.
var errLeft = errors.New("the client left")

// endMove closes the account of an attempt that moved KV.
func (x *exchange) endMove() {
	if x.moving == nil {
		return
	}
	x.ticket.OnMoved(nil)
	why := x.access.Err
	if x.access.Status == statusGone || x.r.Context().Err() != nil {
		why = errLeft
	}
	x.moving.End(x.access.Failure, why)
	x.moving = nil
}
