package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/engine/tokens"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
)

// statusGone is what is recorded, and sent to nobody, when the client left
// first; nginx's number for it.
const statusGone = 499

// exchange is one request on its way.
type exchange struct {
	g     *Gateway
	w     http.ResponseWriter
	rc    *http.ResponseController
	r     *http.Request
	route *route

	policy  *Policy
	access  Access
	trace   Trace
	start   time.Time
	body    []byte // as the client sent it
	req     api.Request
	service Service
	terms   fleet.Terms
	owner   fleet.EndpointID // the only one that can serve it; NoEndpoint for any
	toward  engineSide

	ticket    *live.Ticket
	at        live.Endpoint // where the present attempt is answered
	source    live.Endpoint // from whose cache at fetches what it lacks; the zero Endpoint for none
	pulled    fleet.Tokens  // how much that should be
	pre       live.Endpoint // where its prompt is computed before; the zero Endpoint where that is the same
	lost      atomic.Pointer[lostPrefill]
	moving    Moving          // the KV of the present attempt; nil where none moves, or nobody keeps account
	traced    http.Header     // of the present attempt, with its place in the trace; not to be changed while there are legs
	images    []api.Image     // of the request, where there are encoders
	encoders  []live.Endpoint // of the present attempt, by image; the zero Endpoint for none
	encoded   []byte          // where its images are, as the encoders say; nil for nowhere
	fate      *fate           // of the present attempt
	refused   *refusedPrompt  // a verdict on the request by who was asked for its prompt; nil for none
	untold    bool            // nobody tells when the prompt has been computed elsewhere
	preCached atomic.Int64    // prompt tokens it had cached, as it says; -1 when it does not, or there is none
	ownedID   string          // stored response that has been noted
	committed bool            // headers have gone to the client
	cut       bool            // the answer is incomplete, which only a broken connection can say
	deadline  time.Time
	gaps      *gaps // between the events of a stream; nil before one
	payload   *engine.Payload
}

// engineSide is how a request is put to the engine, and what the answer needs
// to become one to the client's question.
type engineSide struct {
	kind   api.Kind
	path   string
	body   []byte
	retell bool // the answer is told in the Messages API again
	count  bool // the answer is the count of a tokenization
	rename bool // the model's name in the answer is the engine's
}

// begin makes the exchange of a request and follows it to finish.
func (g *Gateway) begin(w http.ResponseWriter, r *http.Request, rt *route) *exchange {
	x := &exchange{g: g, w: w, rc: http.NewResponseController(w), r: r, route: rt, policy: g.policy.Load(), start: time.Now()}
	x.access = Access{ID: requestID(r), Method: r.Method, Path: r.URL.Path, Remote: r.RemoteAddr}
	w.Header().Set("X-Request-Id", x.access.ID)
	if rt.style == api.Anthropic {
		w.Header().Set("Request-Id", x.access.ID)
	}
	x.trace = g.o.Trace(r, x.access.ID)
	x.access.TraceID = x.trace.ID()
	return x
}

func (g *Gateway) serve(w http.ResponseWriter, r *http.Request, rt *route) {
	x := g.begin(w, r, rt)
	defer x.finish()
	defer g.open.Add(-1)
	if n := g.open.Add(1); g.o.Limits.MaxRequests > 0 && n > int64(g.o.Limits.MaxRequests) {
		// Before the body is read: a crowd is turned away cheaply.
		x.access.Refusal = fleet.RefuseCrowded
		w.Header().Set("Connection", "close")
		x.refuse(api.Refused(fleet.RefuseCrowded, 0))
		return
	}
	x.run()
}

// run takes the request through its life: read, understand, wait for an order,
// try, perhaps try again.
func (x *exchange) run() {
	if !x.readBody() || !x.understand() {
		return
	}
	x.open()
	defer x.ticket.Close()
	for first := true; ; first = false {
		o, err := x.ticket.Wait(x.r.Context())
		switch {
		case err != nil:
			x.access.Status, x.access.Err = statusGone, err
			return
		case o.Refusal != fleet.RefuseNone && x.refused != nil:
			// Nobody can serve what an engine has refused: its verdict says why.
			x.access.Failure, x.access.Err = fleet.FailClient, x.refused
			x.verdict(x.refused.resp, x.refused.body)
			return
		case o.Refusal != fleet.RefuseNone:
			x.access.Refusal = o.Refusal
			x.refuse(api.Refused(o.Refusal, o.RetryAfter))
			return
		}
		if first {
			x.access.Queue = time.Since(x.ticket.Arrived())
		}
		x.access.Attempts, x.access.Outcome.Endpoint, x.access.Endpoint = o.Attempt, o.Endpoint.ID, o.Endpoint.Name
		x.access.Failure, x.access.Err = fleet.FailNone, nil
		x.at, x.pre, x.source, x.pulled, x.untold = o.Endpoint, o.Prefill, o.Source, o.Pulled, false
		x.encoders = o.Encoders
		x.fate = new(fate)
		x.lost.Store(nil)
		if !x.toward.kind.Salted() {
			x.pre = live.Endpoint{} // what generates nothing has nothing to hand over
		}
		x.preCached.Store(-1)
		if !x.attempt() {
			return
		}
	}
}

// finish settles the account, whatever happened. It breaks the connection off
// where returning would say what is not true: net/http answers 200 for a
// handler that has written nothing, and ends a stream as if it were whole.
func (x *exchange) finish() {
	abort := x.cut
	if p := recover(); p != nil {
		if p == http.ErrAbortHandler { //nolint:errorlint // it is compared by identity, as net/http does
			defer panic(p)
		} else {
			x.access.Panicked = true
			x.access.Err = fmt.Errorf("panic: %v", p)
			x.g.o.Log.Error("request handler panicked", "request", x.access.ID, "panic", p, "stack", string(debug.Stack()))
			if x.committed {
				abort = true
			} else {
				x.refuse(api.Internal())
			}
		}
	}
	x.access.Total = time.Since(x.start)
	x.access.ITL = x.gaps.median()
	x.letGo()
	if x.ticket != nil {
		x.access.Decisions = x.ticket.Decisions()
	}
	x.trace.End(&x.access)
	x.g.o.Observe(&x.access)
	if abort || x.access.Status == statusGone {
		panic(http.ErrAbortHandler)
	}
}

func (x *exchange) refuse(p api.Problem) {
	x.access.Status = p.Status
	x.committed = true
	writeProblem(x.w, p, x.route.style, x.access.ID)
}

func writeProblem(w http.ResponseWriter, p api.Problem, style api.Style, request string) {
	body := p.Body(style, request)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if s := p.RetryAfterSeconds(); s > 0 {
		h.Set("Retry-After", strconv.Itoa(s))
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // the client may have gone
}

// open brings the request before its pool.
func (x *exchange) open() {
	room := chains.Get().(*[]kv.Key)
	chain, keyTokens := (*room)[:0], 0.0
	roomForBlocks := chains.Get().(*[]kv.Key)
	blocks := (*roomForBlocks)[:0]
	if x.toward.kind.Salted() { // what generates, caches
		blocks = x.blocks(blocks)
		chain, keyTokens = x.req.Chain(chain, x.toward.kind, x.access.Prompt)
	}
	x.access.Arrived = time.Now()
	x.ticket = x.service.Pool.Open(x.access.ID, &pool.Arrive{
		Prompt: x.access.Prompt, MaxOut: x.req.MaxOut, Chain: chain, KeyTokens: keyTokens, Blocks: blocks, Terms: x.terms, Owner: x.owner, Adapter: x.service.Adapter,
		Loadable: x.service.Load != nil, Silent: !x.access.Stream, Whole: x.req.Several(),
		Images: x.findImages(),
	})
	x.note(chain, blocks, keyTokens)
	*room, *roomForBlocks = chain[:0], blocks[:0]
	chains.Put(room)
	chains.Put(roomForBlocks)
	x.payload = x.bodyPayload()
}

// blocks appends the keys of the prompt's blocks to dst, as far as its tokens can
// be found out in time, and notes their number.
func (x *exchange) blocks(dst []kv.Key) []kv.Key {
	t := x.service.Tokens
	if t == nil {
		return dst
	}
	q := tokens.Query{
		Pool: x.access.Pool, Kind: x.toward.kind, Model: x.service.Model, Body: x.toward.body,
		Prompt: x.req.Prompt, Tools: x.req.Tools, Lead: x.req.Lead, Salt: x.req.CacheSalt,
		// Under direct keys an own block is one of the engines'; feeds whose engine has
		// others are not believed.
		Space: t.Space, Block: t.Space.Block, Engine: t.Engine,
	}
	if t.Form != nil {
		q.Form = t.Form()
	}
	if x.service.Adapter != fleet.NoAdapter {
		q.Adapter = x.service.Model
	}
	r := t.Source.Keys(x.r.Context(), &q, dst)
	if r.Tokens > 0 {
		x.access.Prompt = fleet.Tokens(r.Tokens)
	}
	if x.access.Tokens = r.How.String(); r.Reason != tokens.ReasonNone {
		x.access.Tokens += ": " + r.Reason.String()
	}
	return r.Keys
}

// attempt sends the request to one endpoint and passes the answer on. It
// reports whether another order follows.
func (x *exchange) attempt() bool {
	ctx, cancel := context.WithCancelCause(x.r.Context())
	defer cancel(nil)
	x.ticket.Sent(func() { cancel(errStopped) })
	first := time.AfterFunc(x.g.o.Limits.FirstByte, func() { cancel(engine.ErrFirstByte) })
	defer first.Stop()
	if load := x.service.Load; load != nil {
		if err := load(ctx, x.at); err != nil {
			// No slot or no such file there: not a sick endpoint, but not the one for
			// this request.
			return x.failed(ctx, fleet.FailOverload, err)
		}
	}
	header := x.engineHeader(x.at)
	x.trace.Attempt(&x.access, header)
	defer x.endMove()
	x.traced = header
	x.encode(ctx)
	if x.pre.ID == fleet.NoEndpoint {
		x.beginPull(cancel)
		resp, failure, err := x.sendWhole(ctx, header)
		return x.pass(ctx, cancel, first, resp, failure, err)
	}
	if err := x.beginMove(x.pre, x.access.Prompt, cancel); err != nil {
		return x.prefillFailed(ctx, fleet.FailOverload, err)
	}
	l, resp, again := x.split(ctx, cancel)
	if l == nil {
		return again
	}
	defer l.end()
	if resp != nil {
		return x.pass(ctx, cancel, first, resp, engine.ClassifyStatus(resp.StatusCode), nil)
	}
	resp, failure, err := x.post(ctx, x.at, l.plan.Second)
	return x.pass(ctx, cancel, first, resp, failure, err)
}

// sendWhole sends the request to one engine.
func (x *exchange) sendWhole(ctx context.Context, header http.Header) (*http.Response, fleet.Failure, error) {
	if l := x.wholeLeg(); l != nil {
		return x.post(ctx, x.at, *l)
	}
	return x.client().Post(ctx, x.at.URL, x.toward.path, header, x.payload)
}

// pass passes an engine's answer on. It reports whether another order follows.
func (x *exchange) pass(ctx context.Context, cancel context.CancelCauseFunc, first *time.Timer, resp *http.Response, failure fleet.Failure, err error) bool {
	if err != nil {
		return x.failed(ctx, failure, err)
	}
	defer resp.Body.Close()
	switch {
	case failure == fleet.FailClient:
		return x.passError(ctx, resp)
	case failure != fleet.FailNone:
		return x.failed(ctx, failure, fmt.Errorf("engine %s answered %s", x.at.Name, resp.Status))
	case isEventStream(resp):
		s := stream{x: x, ctx: ctx, cancel: cancel, first: first, resp: resp}
		return s.run()
	case x.toward.kind.Protocol() == api.AnyJSON && !isJSON(resp):
		return x.passRaw(ctx, cancel, first, resp)
	}
	return x.passWhole(ctx, resp)
}

// errStopped is the cause when the pool itself cancels an attempt.
var errStopped = errors.New("cancelled by the pool")

// failed reports a failed attempt of which the client has seen nothing.
func (x *exchange) failed(ctx context.Context, f fleet.Failure, err error) bool {
	if x.r.Context().Err() != nil {
		x.gone(context.Cause(x.r.Context()))
		return false
	}
	if lost := x.lost.Swap(nil); lost != nil {
		return x.prefillFailed(x.r.Context(), lost.failure, lost.err)
	}
	f, err = cause(ctx, f, err)
	x.access.Failure, x.access.Err = f, err
	x.trace.Failed(f)
	return x.ticket.Failed(f, false)
}

// cause says why an attempt was cancelled, if it was: the transport says only
// that it was.
func cause(ctx context.Context, f fleet.Failure, err error) (fleet.Failure, error) {
	if c := context.Cause(ctx); c != nil {
		if _, ended := errors.AsType[*givenUp](c); ended {
			return fleet.FailOverload, c // nobody is to blame, and another pair may do
		}
		return engine.Classify(c), fmt.Errorf("%w (%w)", c, err)
	}
	return f, err
}

// gone notes that the client has left; closing the ticket tells the pool.
func (x *exchange) gone(err error) {
	x.access.Status, x.access.Err = statusGone, err
}
