package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
)

// maxPrefillAnswer bounds the answer of an engine that computes a prompt for
// another: it lists the blocks of a million tokens.
const maxPrefillAnswer = 4 << 20

// legs are the two halves of a split attempt.
type legs struct {
	x       *exchange
	second  []byte // what the engine that answers is sent
	running sync.WaitGroup
}

// split begins a split attempt: it asks the engine that computes the prompt and,
// where engines are asked one after the other, waits for its answer. Without legs
// the attempt has ended, and again says whether another order follows.
func (x *exchange) split(ctx context.Context, cancel context.CancelCauseFunc, header http.Header) (l *legs, again bool) {
	c := engine.Connector(x.pre.Transfer.Connector)
	first, second, err := c.Begin(x.toward.kind, x.toward.body, x.pre.URL, x.pre.Transfer.Bootstrap)
	if err != nil {
		return nil, x.prefillFailed(ctx, fleet.FailOverload, err)
	}
	l = &legs{x: x, second: second}
	if c.Together() {
		l.running.Go(func() { l.beside(ctx, cancel, header, first) })
		return l, false
	}
	answer, failure, err := x.computePrompt(ctx, header, first)
	if err != nil {
		return nil, x.prefillFailed(ctx, failure, err)
	}
	if l.second, err = c.Second(x.toward.body, answer); err != nil {
		return nil, x.prefillFailed(ctx, fleet.FailGarbage, err)
	}
	if err := x.computed(); err != nil {
		return nil, x.prefillFailed(ctx, fleet.FailOverload, err)
	}
	x.prefilled(answer)
	x.pulling()
	return l, false
}

// computePrompt asks x.pre for the prompt and returns its answer.
func (x *exchange) computePrompt(ctx context.Context, header http.Header, body []byte) ([]byte, fleet.Failure, error) {
	resp, failure, err := x.g.o.ClientFor(x.service.Pool).Post(ctx, x.pre.URL, x.toward.path, header, engine.NewPayload(body, nil))
	if err != nil {
		return nil, failure, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxPrefillAnswer+1))
	switch {
	case err != nil:
		return nil, fleet.FailStream, fmt.Errorf("read the answer of %s: %w", x.pre.Name, err)
	case failure != fleet.FailNone:
		return nil, failure, fmt.Errorf("engine %s, asked for the prompt, answered %s", x.pre.Name, resp.Status)
	case len(answer) > maxPrefillAnswer:
		return nil, fleet.FailGarbage, fmt.Errorf("engine %s, asked for the prompt, answered more than %d bytes", x.pre.Name, maxPrefillAnswer)
	}
	return answer, fleet.FailNone, nil
}

// errPrefill ends the second leg when the first has failed.
var errPrefill = errors.New("the engine that computes the prompt has failed")

// lostPrefill is why a first leg failed beside the second.
type lostPrefill struct {
	failure fleet.Failure
	err     error
}

// beside computes the prompt while the other engine is asked already.
func (l *legs) beside(ctx context.Context, cancel context.CancelCauseFunc, header http.Header, body []byte) {
	x := l.x
	answer, failure, err := x.computePrompt(ctx, header, body)
	switch {
	case err == nil:
		// The other has read, or does, what it was told of at once.
		_ = x.computed()
		x.prefilled(answer)
		x.pulling()
	case ctx.Err() == nil:
		x.lost.Store(&lostPrefill{failure, err})
		cancel(errPrefill)
	}
}

// end waits for what is still running.
func (l *legs) end() { l.running.Wait() }

// prefilled tells the pool that the prompt has been computed.
func (x *exchange) prefilled(answer []byte) {
	u := fleet.Usage{Cached: -1}
	if c, ok := api.ReadAnswer(x.toward.kind.Protocol(), answer); ok {
		u = c.Usage
	}
	x.preCached.Store(int64(u.Cached))
	x.ticket.Prefilled(u)
}

// prefillFailed reports a first leg that has failed; the client has seen nothing.
func (x *exchange) prefillFailed(ctx context.Context, f fleet.Failure, err error) bool {
	if x.r.Context().Err() != nil {
		x.gone(context.Cause(x.r.Context()))
		return false
	}
	f, err = cause(ctx, f, err)
	x.access.Failure, x.access.Err = f, err
	x.trace.Failed(f)
	if f == fleet.FailClient {
		// What it refuses the next one, asked for the whole, refuses in its own words.
		f = fleet.FailOverload
	}
	return x.ticket.PrefillFailed(f)
}
