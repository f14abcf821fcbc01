package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"sync"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
)

// maxPrefillAnswer bounds the answer of an engine that computes a prompt for
// another: it lists the blocks of a million tokens.
const maxPrefillAnswer = 4 << 20

// legs are the two halves of a split attempt.
type legs struct {
	x       *exchange
	plan    engine.Legs
	fate    *fate // of the attempt
	cancel  context.CancelCauseFunc
	running sync.WaitGroup
	ended   chan struct{} // closed when the first leg has, where both run at once
}

// party is an endpoint as the engines' dialects see it.
func party(e live.Endpoint) engine.Party {
	return engine.Party{
		URL: e.URL, Port: e.Transfer.Port, NotifyPort: e.Transfer.Notify, Rank: e.Rank.Index, Ranks: e.Rank.Of,
		Incarnation: uint64(e.ID)<<32 | uint64(e.Gen),
	}
}

// attemptID names an attempt among all there are: engines know transfers by it,
// and the request's own id may be a client's.
func (x *exchange) attemptID() string {
	return x.access.ID + "-" + strconv.Itoa(x.access.Attempts) + "-" + rand.Text()[:8]
}

// split begins a split attempt: it asks the engine that computes the prompt and,
// where engines are asked one after the other, waits for its answer. Without legs
// the attempt has ended, and again says whether another order follows. With an
// answer, the request needed no second engine.
func (x *exchange) split(ctx context.Context, cancel context.CancelCauseFunc) (l *legs, answer *http.Response, again bool) {
	t := x.pre.Transfer
	plan, failure, err := x.client().Legs(ctx, engine.Connector(t.Connector), &engine.Split{
		Kind: x.toward.kind, Body: x.toward.body, ID: x.attemptID(), Prefill: party(x.pre), Decode: party(x.at), HitThreshold: t.HitThreshold,
		Encoded: x.encoded, Encoders: x.sidecarsEncoders(),
	})
	if err != nil {
		return nil, nil, x.prefillFailed(ctx, failure, err)
	}
	l = &legs{x: x, plan: plan, fate: x.fate, cancel: cancel}
	switch plan.Course {
	case engine.Together:
		l.ended = make(chan struct{})
		l.running.Go(func() { l.beside(ctx) })
		return l, nil, false
	case engine.Alone:
		x.untold = true
		return l, nil, false
	}
	if plan.Try != nil {
		answer, missed, failure, err := x.try(ctx, *plan.Try)
		switch {
		case err != nil:
			return nil, nil, x.failed(ctx, failure, err)
		case !missed:
			x.untold = true
			return l, answer, false
		}
	}
	return l.inTurn(ctx)
}

// inTurn has the prompt computed, and then knows what the other engine is sent.
func (l *legs) inTurn(ctx context.Context) (_ *legs, _ *http.Response, again bool) {
	x := l.x
	answer, failure, err := x.computePrompt(ctx, l.plan.First)
	if err != nil {
		return nil, nil, x.prefillFailed(ctx, failure, err)
	}
	if l.plan.Next != nil {
		if l.plan.Second, err = l.plan.Next(answer); err != nil {
			return nil, nil, x.prefillFailed(ctx, fleet.FailGarbage, err)
		}
	}
	if err := x.computed(); err != nil {
		return nil, nil, x.prefillFailed(ctx, fleet.FailOverload, err)
	}
	x.prefilled(answer)
	x.pulling()
	return l, nil, false
}

// client speaks with the pool's engines.
func (x *exchange) client() *engine.Client { return x.g.o.ClientFor(x.service.Pool) }

// post sends a leg to an endpoint.
func (x *exchange) post(ctx context.Context, to live.Endpoint, l engine.Leg) (*http.Response, fleet.Failure, error) {
	return x.postTo(ctx, to, x.toward.path, l)
}

// postTo sends a leg to a path of an endpoint.
func (x *exchange) postTo(ctx context.Context, to live.Endpoint, path string, l engine.Leg) (*http.Response, fleet.Failure, error) {
	header := x.engineHeader(to)
	for _, k := range [...]string{"Traceparent", "Tracestate"} {
		if v := x.traced[k]; len(v) > 0 {
			header[k] = v
		}
	}
	maps.Copy(header, l.Header)
	return x.client().Post(ctx, to.URL, path, header, engine.NewPayload(l.Body, nil))
}

// computePrompt asks x.pre for the prompt and returns its answer.
func (x *exchange) computePrompt(ctx context.Context, first engine.Leg) ([]byte, fleet.Failure, error) {
	resp, failure, err := x.post(ctx, x.pre, first)
	if err != nil {
		return nil, failure, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxPrefillAnswer+1))
	switch {
	case err != nil:
		return nil, fleet.FailStream, fmt.Errorf("read the answer of %s: %w", x.pre.Name, err)
	case failure == fleet.FailClient:
		return nil, failure, &refusedPrompt{by: x.pre.Name, resp: resp, body: answer}
	case failure != fleet.FailNone:
		return nil, failure, fmt.Errorf("engine %s, asked for the prompt, answered %s", x.pre.Name, resp.Status)
	case len(answer) > maxPrefillAnswer:
		return nil, fleet.FailGarbage, fmt.Errorf("engine %s, asked for the prompt, answered more than %d bytes", x.pre.Name, maxPrefillAnswer)
	}
	if c := x.promptSaid(answer); c.Error {
		// Inside a stream, which has begun well.
		failure = fleet.FailStatus
		if c.Overload {
			failure = fleet.FailOverload
		}
		return nil, failure, fmt.Errorf("engine %s, asked for the prompt, answered with an error", x.pre.Name)
	}
	return answer, fleet.FailNone, nil
}

// refusedPrompt is an engine's verdict that the request itself is at fault.
type refusedPrompt struct {
	by   string
	resp *http.Response // its body is closed
	body []byte
}

func (r *refusedPrompt) Error() string {
	return fmt.Sprintf("engine %s, asked for the prompt, refused the request: %s", r.by, r.resp.Status)
}

// errPrefill ends the second leg when the first has failed.
var errPrefill = errors.New("the engine that computes the prompt has failed")

// errOver ends the first leg when the second is over.
var errOver = errors.New("the answer is over, and the engine that computed the prompt is not")

// lostPrefill is why a first leg failed beside the second.
type lostPrefill struct {
	failure fleet.Failure
	err     error
}

// beside computes the prompt while the other engine is asked already.
func (l *legs) beside(ctx context.Context) {
	defer close(l.ended)
	x := l.x
	answer, failure, err := x.computePrompt(ctx, l.plan.First)
	if err == nil && l.plan.Check != nil {
		if err = l.plan.Check(answer); err != nil {
			failure = fleet.FailOverload // it is well, but not for this attempt
		}
	}
	switch {
	case err == nil:
		// The other has read, or does, what it was told of at once.
		_ = x.computed()
		x.prefilled(answer)
		x.pulling()
	case ctx.Err() != nil:
	case l.fate.giveUp():
		x.lost.Store(&lostPrefill{failure, err})
		l.cancel(errPrefill)
	default:
		// The answer has begun, so the prompt was computed: what went wrong after that
		// is no reason to cut it.
		x.g.o.Log.Debug("the first leg failed after the answer had begun", "request", x.access.ID, "endpoint", x.pre.Name, "err", err)
		x.ticket.Prefilled(fleet.Usage{Cached: -1})
	}
}

// afterAnswer is how long an engine that has computed a prompt may take to say so
// once the answer is over. Its usage is worth that, and a connection fit for reuse.
const afterAnswer = time.Second

// end ends what is still running, when the second leg has ended: at once if it
// failed, or its client left.
func (l *legs) end() {
	failed := l.x.access.Failure != fleet.FailNone || l.x.access.Status == statusGone || l.x.cut
	if failed && l.plan.Failed != nil {
		l.plan.Failed()
	}
	if l.ended != nil {
		if failed {
			l.cancel(errOver)
		}
		late := time.AfterFunc(afterAnswer, func() { l.cancel(errOver) })
		<-l.ended
		late.Stop()
	}
	l.running.Wait()
}

// prefilled tells the pool that the prompt has been computed.
func (x *exchange) prefilled(answer []byte) {
	u := x.promptSaid(answer).Usage
	x.preCached.Store(int64(u.Cached))
	x.ticket.Prefilled(u)
}

// promptSaid reads the answer of an engine that has computed the prompt: its usage,
// and whether it is an error. Where both engines are sent the same, it is a stream
// as the other one's.
func (x *exchange) promptSaid(answer []byte) api.Chunk {
	said, ok := api.ReadAnswer(x.toward.kind.Protocol(), answer)
	if ok {
		return said
	}
	said = api.Chunk{Usage: fleet.Usage{Cached: -1}}
	api.Events(answer, func(ev []byte) {
		c := api.ReadEvent(x.toward.kind.Protocol(), ev)
		if c.Usage.Known {
			said.Usage = c.Usage
		}
		said.Error, said.Overload = said.Error || c.Error, said.Overload || c.Overload
	})
	return said
}

// firstToken tells the pool of it, unless the attempt has been given up just now.
// Where nobody tells when the prompt has been computed, it has been by now.
func (x *exchange) firstToken() {
	if !x.fate.begin() {
		return
	}
	x.ticket.FirstToken()
	x.sidecarEncoded()
	if x.untold {
		x.untold = false
		x.ticket.Prefilled(fleet.Usage{Cached: -1})
	}
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
	if r, ok := errors.AsType[*refusedPrompt](err); ok {
		x.refused = r
	}
	return x.ticket.PrefillFailed(f)
}
