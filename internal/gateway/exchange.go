package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
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
	g    *Gateway
	w    http.ResponseWriter
	rc   *http.ResponseController
	r    *http.Request
	kind api.Kind

	access    Access
	trace     Trace
	start     time.Time
	body      []byte
	req       api.Request
	pool      *live.Pool
	ticket    *live.Ticket
	committed bool // headers have gone to the client
	deadline  time.Time
	gaps      gaps
	chain     [chainRoom]kv.Key
}

// chainRoom is the longest chain kept without allocating: 128 KB of prompt.
const chainRoom = 512

func (g *Gateway) serve(w http.ResponseWriter, r *http.Request, kind api.Kind) {
	x := &exchange{g: g, w: w, rc: http.NewResponseController(w), r: r, kind: kind, start: time.Now()}
	x.access = Access{ID: requestID(r), Method: r.Method, Path: r.URL.Path, Remote: r.RemoteAddr}
	w.Header().Set("X-Request-Id", x.access.ID)
	x.trace = g.o.Trace(r, x.access.ID)
	x.access.TraceID = x.trace.ID()
	defer x.finish()
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
		if !x.attempt(o) {
			return
		}
	}
}

// finish settles the account, whatever happened. It breaks the connection off
// where returning would say what is not true: net/http answers 200 for a
// handler that has written nothing, and ends a stream as if it were whole.
func (x *exchange) finish() {
	abort := false
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
	writeProblem(x.w, p)
}

func writeProblem(w http.ResponseWriter, p api.Problem) {
	body := p.Body()
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if s := p.RetryAfterSeconds(); s > 0 {
		h.Set("Retry-After", strconv.Itoa(s))
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // the client may have gone
}

// readBody reads the request body, within its limits of size and time.
func (x *exchange) readBody() bool {
	limit, size := x.g.o.Limits.MaxBody, x.r.ContentLength
	if size > limit {
		x.tooLarge()
		return false
	}
	if size < 0 {
		size = limit
	}
	// Memory is given for what has come, not for what is announced: one byte
	// more than the size, so that the end is seen without growing.
	buf := make([]byte, 0, min(size+1, firstRead))
	for {
		n, err := x.r.Body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case int64(len(buf)) > limit:
			x.tooLarge()
			return false
		case err == io.EOF:
			_ = x.rc.SetReadDeadline(time.Time{})
			x.body = buf
			return true
		case err != nil:
			x.bodyFailed(err)
			return false
		case len(buf) == cap(buf):
			buf = slices.Grow(buf, int(min(int64(len(buf)), size+1-int64(len(buf)))))
		}
	}
}

// firstRead is the room for a body before any of it has come.
const firstRead = 16 << 10

func (x *exchange) tooLarge() {
	// The rest of the body is not worth reading.
	x.w.Header().Set("Connection", "close")
	x.refuse(api.TooLarge(x.g.o.Limits.MaxBody))
}

func (x *exchange) bodyFailed(err error) {
	x.access.Err = fmt.Errorf("read request body: %w", err)
	x.w.Header().Set("Connection", "close")
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		x.refuse(api.SlowBody(x.g.o.Limits.BodyTimeout))
	case x.r.Context().Err() != nil:
		x.access.Status = statusGone
	default:
		x.refuse(api.BadBody(fmt.Errorf("not readable: %w", err)))
	}
}

// understand reads what routing needs off the body and finds the pool.
func (x *exchange) understand() bool {
	var err error
	if x.req, err = api.Scan(x.body, x.kind); err != nil {
		x.access.Err, x.access.Model = err, x.req.Model
		x.refuse(api.BadBody(err))
		return false
	}
	x.access.Model, x.access.Stream = x.req.Model, x.req.Stream
	p, ok := x.g.o.Fleet.Pool(x.req.Model)
	if !ok {
		x.refuse(api.UnknownModel(x.req.Model))
		return false
	}
	x.pool, x.access.Pool = p, p.Name()
	return true
}

// open brings the request before its pool.
func (x *exchange) open() {
	prompt := x.req.PromptTokens(x.g.ratios.get(x.req.Model))
	x.access.Prompt = prompt
	chain, keyTokens := x.req.Chain(x.chain[:0], x.kind, prompt)
	x.access.Arrived = time.Now()
	x.ticket = x.pool.Open(x.access.ID, &pool.Arrive{Prompt: prompt, MaxOut: x.req.MaxOut, Chain: chain, KeyTokens: keyTokens})
}

// attempt sends the request to one endpoint and passes the answer on. It
// reports whether another order follows.
func (x *exchange) attempt(o live.Order) bool {
	ctx, cancel := context.WithCancelCause(x.r.Context())
	defer cancel(nil)
	x.ticket.Sent(func() { cancel(errStopped) })
	first := time.AfterFunc(x.g.o.Limits.FirstByte, func() { cancel(engine.ErrFirstByte) })
	defer first.Stop()
	header := x.engineHeader()
	x.trace.Attempt(&x.access, header)
	resp, failure, err := x.g.o.ClientFor(x.pool).Send(ctx, o.Endpoint.URL, x.r.URL.Path, header, x.body)
	if err != nil {
		return x.failed(ctx, failure, err)
	}
	defer resp.Body.Close()
	switch {
	case failure == fleet.FailClient:
		return x.passError(ctx, resp)
	case failure != fleet.FailNone:
		return x.failed(ctx, failure, fmt.Errorf("engine %s answered %s", o.Endpoint.Name, resp.Status))
	case isEventStream(resp):
		s := stream{x: x, ctx: ctx, cancel: cancel, first: first, resp: resp}
		return s.run()
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
	if cause := context.Cause(ctx); cause != nil {
		// The transport says only "canceled"; we know why.
		f, err = engine.Classify(cause), fmt.Errorf("%w (%w)", cause, err)
	}
	x.access.Failure, x.access.Err = f, err
	x.trace.Failed(f)
	return x.ticket.Failed(f, false)
}

// gone notes that the client has left; closing the ticket tells the pool.
func (x *exchange) gone(err error) {
	x.access.Status, x.access.Err = statusGone, err
}

// maxAnswer is the largest answer held in memory: those that are not streamed.
const maxAnswer = 64 << 20

// passError passes on an engine's verdict that the request itself is at fault.
func (x *exchange) passError(ctx context.Context, resp *http.Response) bool {
	body, err := readAll(resp.Body, resp.ContentLength)
	if err != nil {
		return x.failed(ctx, fleet.FailConnect, fmt.Errorf("read error answer: %w", err))
	}
	x.access.Failure = fleet.FailClient
	x.access.Err = fmt.Errorf("engine refused the request: %s", resp.Status)
	x.ticket.Failed(fleet.FailClient, false)
	x.answer(resp, body)
	return false
}

// passWhole passes on an answer that is not streamed, once it is known to be
// one.
func (x *exchange) passWhole(ctx context.Context, resp *http.Response) bool {
	body, err := readAll(resp.Body, resp.ContentLength)
	if err != nil {
		return x.failed(ctx, fleet.FailStream, fmt.Errorf("read answer: %w", err))
	}
	c, ok := api.ReadAnswer(body)
	switch {
	case !ok:
		return x.failed(ctx, fleet.FailGarbage, errors.New("the answer is not a JSON object"))
	case c.Overload:
		return x.failed(ctx, fleet.FailOverload, errors.New("engine answered 200 with an overload error inside"))
	case c.Error:
		return x.failed(ctx, fleet.FailStatus, errors.New("engine answered 200 with an error inside"))
	}
	x.used(c.Usage)
	x.ticket.Done(c.Usage)
	x.answer(resp, body)
	return false
}

// used notes an answer's usage and learns from it.
func (x *exchange) used(u fleet.Usage) {
	x.access.Usage = u
	if u.Known {
		x.g.ratios.learn(x.req.Model, x.pool.Now(), x.req.TextBytes(), u.Prompt)
	}
}

func (x *exchange) answer(resp *http.Response, body []byte) {
	x.commit(resp)
	x.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	x.w.WriteHeader(resp.StatusCode)
	x.extend()
	n, err := x.w.Write(body)
	x.access.Bytes += int64(n)
	if err != nil {
		x.gone(fmt.Errorf("write answer: %w", err))
	}
}

// commit copies what the client should see of the engine's header. After it no
// other endpoint may answer.
func (x *exchange) commit(resp *http.Response) {
	x.committed = true
	x.access.Status = resp.StatusCode
	h := x.w.Header()
	for k, v := range resp.Header {
		switch k {
		case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
			"Content-Length", "Date", "Server", "X-Request-Id":
			// Of this hop, or the gateway's own to say.
		default:
			h[k] = v
		}
	}
}

// extend gives the client more time to take what is written. The deadline is
// moved at most once a second, since moving it costs more than writing.
func (x *exchange) extend() {
	if now := time.Now(); now.After(x.deadline) {
		x.deadline = now.Add(min(time.Second, x.g.o.Limits.Write/2))
		_ = x.rc.SetWriteDeadline(now.Add(x.g.o.Limits.Write))
	}
}

// engineHeader is what an engine sees of the client's header. The client's
// credentials are for the gateway and go no further.
func (x *exchange) engineHeader() http.Header {
	h := make(http.Header, 8)
	for _, k := range [...]string{"Content-Type", "Accept", "Traceparent", "Tracestate", "User-Agent"} {
		if v := x.r.Header[k]; len(v) > 0 {
			h[k] = v
		}
	}
	if len(h["Content-Type"]) == 0 {
		h["Content-Type"] = []string{"application/json"}
	}
	h["X-Request-Id"] = []string{x.access.ID}
	return h
}

func readAll(r io.Reader, size int64) ([]byte, error) {
	if size > maxAnswer {
		return nil, fmt.Errorf("answer of %d bytes exceeds %d", size, maxAnswer)
	}
	buf := make([]byte, 0, max(size+1, 512))
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case err == io.EOF:
			return buf, nil
		case err != nil:
			return buf, err
		case len(buf) > maxAnswer:
			return buf, fmt.Errorf("answer exceeds %d bytes", maxAnswer)
		case len(buf) == cap(buf):
			buf = append(buf, 0)[:len(buf)]
		}
	}
}
