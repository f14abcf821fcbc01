package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
)

// maxAnswer is the largest answer held in memory: those that are not streamed.
const maxAnswer = 64 << 20

// passError passes on an engine's verdict that the request itself is at fault,
// in the client's own dialect.
func (x *exchange) passError(ctx context.Context, resp *http.Response) bool {
	body, err := readAll(resp.Body, resp.ContentLength)
	if err != nil {
		return x.failed(ctx, fleet.FailConnect, fmt.Errorf("read error answer: %w", err))
	}
	x.access.Failure = fleet.FailClient
	x.access.Err = fmt.Errorf("engine refused the request: %s", resp.Status)
	x.ticket.Failed(fleet.FailClient, false)
	x.verdict(resp, body)
	return false
}

// verdict writes an engine's error answer: as it is where it is in the client's
// dialect, else rewritten, with its status and message.
func (x *exchange) verdict(resp *http.Response, body []byte) {
	if p, same := api.EngineRefused(resp.StatusCode, body, x.route.style); !same {
		x.refuse(p)
		return
	}
	x.answer(resp, body)
}

// passWhole passes on an answer that is not streamed, once it is known to be
// one.
func (x *exchange) passWhole(ctx context.Context, resp *http.Response) bool {
	body, err := readAll(resp.Body, resp.ContentLength)
	if err != nil {
		return x.failed(ctx, fleet.FailStream, fmt.Errorf("read answer: %w", err))
	}
	if n := x.preCached.Load(); n >= 0 {
		body = api.SetCached(make([]byte, 0, len(body)+16), body, int(n))
	}
	c, ok := api.ReadAnswer(x.toward.kind.Protocol(), body)
	switch {
	case !ok:
		return x.failed(ctx, fleet.FailGarbage, errors.New("the answer is not a JSON object"))
	case c.Overload:
		return x.failed(ctx, fleet.FailOverload, errors.New("engine answered 200 with an overload error inside"))
	case c.Error:
		return x.failed(ctx, fleet.FailStatus, errors.New("engine answered 200 with an error inside"))
	}
	if body, err = x.told(body); err != nil {
		return x.failed(ctx, fleet.FailGarbage, err)
	}
	x.owned(c.ID)
	x.used(c.Usage)
	x.ticket.Done(c.Usage)
	x.answer(resp, body)
	return false
}

// told turns a whole answer into one to the client's question.
func (x *exchange) told(body []byte) ([]byte, error) {
	switch {
	case x.toward.retell:
		r := x.retelling()
		return r.Whole(nil, body)
	case x.toward.count:
		return api.CountFromTokenize(nil, body)
	case x.toward.rename:
		return api.Rename(make([]byte, 0, len(body)+len(x.access.Model)), body, x.service.Model, x.access.Model), nil
	}
	return body, nil
}

func (x *exchange) retelling() api.Retelling {
	return api.Retelling{Model: x.access.Model, Prompt: x.access.Prompt}
}

// used notes an answer's usage and learns from it.
func (x *exchange) used(u fleet.Usage) {
	x.access.Usage = u
	if u.Known {
		x.g.ratios.learn(x.req.Model, x.service.Pool.Now(), x.req.TextBytes(), u.Prompt)
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

// passRaw passes on an answer of which only the engine knows what it means, such
// as sound, as it comes.
func (x *exchange) passRaw(ctx context.Context, cancel context.CancelCauseFunc, first *time.Timer, resp *http.Response) bool {
	err := x.copyRaw(cancel, first, resp, func() {
		x.access.TTFT = time.Since(x.start)
		x.firstToken()
	})
	switch {
	case err == nil:
		x.ticket.Done(fleet.Usage{Cached: -1})
		return false
	case x.access.Status == statusGone || x.r.Context().Err() != nil:
		x.gone(err)
		return false
	case !x.committed:
		return x.failed(ctx, fleet.FailStream, err)
	}
	x.access.Failure, x.access.Err = cause(ctx, fleet.FailStream, err)
	x.ticket.Failed(x.access.Failure, true)
	x.cut = true
	return false
}

// copyRaw writes an answer to the client as it comes. begin is called with its
// first byte, or with its end.
func (x *exchange) copyRaw(cancel context.CancelCauseFunc, first *time.Timer, resp *http.Response, begin func()) error {
	buf := make([]byte, rawPiece)
	var idle *time.Timer
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 || err == io.EOF {
			if !x.committed {
				first.Stop()
				begin()
				x.commit(resp)
				if resp.ContentLength >= 0 {
					x.w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
				}
				x.w.WriteHeader(resp.StatusCode)
				idle = time.AfterFunc(x.g.o.Limits.Idle, func() { cancel(engine.ErrIdle) })
				defer idle.Stop()
			}
			idle.Stop()
			if werr := x.send(buf[:n]); werr != nil {
				x.access.Status = statusGone
				return werr
			}
			idle.Reset(x.g.o.Limits.Idle)
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("read answer: %w", err)
		}
	}
}

// rawPiece is how much of a raw answer is passed on at a time.
const rawPiece = 32 << 10

// send writes to the client and flushes.
func (x *exchange) send(b []byte) error {
	x.extend()
	n, err := x.w.Write(b)
	x.access.Bytes += int64(n)
	if err == nil {
		err = x.rc.Flush()
	}
	if err != nil {
		return fmt.Errorf("write to client: %w", err)
	}
	return nil
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
			"Content-Length", "Date", "Server", "X-Request-Id", "Request-Id", "Vary":
			// Of this hop, or the gateway's own to say.
		default:
			if !strings.HasPrefix(k, "Access-Control-") {
				h[k] = v
			}
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
// credentials are for the gateway and go no further, and neither do headers with
// which gateways steer: which rank takes a request is decided here.
func (x *exchange) engineHeader(to live.Endpoint) http.Header {
	h := make(http.Header, 8)
	for _, k := range [...]string{"Content-Type", "Accept", "Traceparent", "Tracestate", "User-Agent"} {
		if v := x.r.Header[k]; len(v) > 0 {
			h[k] = v
		}
	}
	if x.route.style == api.Anthropic && !x.toward.retell && !x.toward.count {
		for _, k := range [...]string{"Anthropic-Version", "Anthropic-Beta"} {
			if v := x.r.Header[k]; len(v) > 0 {
				h[k] = v
			}
		}
	}
	if len(h["Content-Type"]) == 0 && x.r.Method == http.MethodPost {
		h["Content-Type"] = []string{"application/json"}
	}
	h["X-Request-Id"] = []string{x.access.ID}
	if to.Rank.Shared {
		h[engine.RankHeader] = []string{strconv.Itoa(to.Rank.Index)}
	}
	return h
}

// isJSON reports whether an answer says that it is JSON, or does not say what it
// is.
func isJSON(resp *http.Response) bool {
	ct := resp.Header.Get("Content-Type")
	if ct == "" {
		return true
	}
	t, _, err := mime.ParseMediaType(ct)
	return err == nil && (t == "application/json" || strings.HasSuffix(t, "+json"))
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
