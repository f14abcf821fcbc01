package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"penstock.dev/penstock/internal/workload"
)

// Kinds of errors. A refused status is counted as http_ and its number.
const (
	errConnect  = "connect"       // no connection
	errNoAnswer = "no_answer"     // the connection broke before the status line
	errTimeout  = "timeout"       // --timeout ran out
	errBroken   = "stream_broken" // the answer broke off
	errSSE      = "sse_error"     // an error event within the stream
	errCorrupt  = "corrupt"       // the answer is complete but wrong
	unfinished  = "unfinished"    // cancelled by an interrupt; not the server's error
)

// Result is what became of one request. Its JSON form is a line of the
// --per-request file. Times of a request that failed tell how far it came.
type Result struct {
	Index    int    `json:"index"`
	ID       string `json:"id"` // x-request-id sent with it
	Stage    int    `json:"stage"`
	Session  uint64 `json:"session,omitempty"`
	Turn     int    `json:"turn"`
	Group    int    `json:"group,omitempty"`
	Tenant   string `json:"tenant,omitempty"`
	Measured bool   `json:"measured"` // false during warm-up

	Intended float64 `json:"intended_s"` // when it should have been sent, from the start of the load
	Lag      float64 `json:"lag_ms"`     // how much later it was sent
	TTFT     float64 `json:"ttft_ms"`    // from intended; 0 when no token came
	TPOT     float64 `json:"tpot_ms"`    // 0 for fewer than two tokens
	E2E      float64 `json:"e2e_ms"`     // from intended

	PromptWanted int    `json:"prompt_wanted"`
	Prompt       int    `json:"prompt"` // by the server's count; -1 when not reported
	Cached       int    `json:"cached"` // of them from its cache; -1 when not reported
	OutputWanted int    `json:"output_wanted"`
	Output       int    `json:"output"`
	Events       int    `json:"events"` // stream events with text
	Finish       string `json:"finish,omitempty"`
	TextHash     string `json:"text_hash,omitempty"` // of the answer: equal answers, equal hashes
	Good         bool   `json:"good"`                // finished, and met all --goodput targets

	Error  string `json:"error,omitempty"` // kind; empty for a whole answer
	Detail string `json:"detail,omitempty"`

	intended, lag, ttft, tpot, e2e, end time.Duration
	gaps                                *stream // holds the gaps until they are counted
	answer                              []byte
	history                             [][]byte // real answers before it
}

// sender sends single requests. It is safe for concurrent use.
type sender struct {
	p      *plan
	client *http.Client
	clock  func() time.Duration
	run    string
	pool   sync.Pool // of *stream
}

// send carries one request through. due is when it should have been sent.
func (s *sender) send(ctx context.Context, r *workload.Request, due time.Duration, answers [][]byte) Result {
	res := Result{
		Index: r.Index, ID: s.run + "-" + strconv.Itoa(r.Index), Stage: r.Stage, Session: r.Session, Turn: r.Turn,
		Group: r.Group, Tenant: r.Tenant, Measured: due >= s.p.Warmup,
		PromptWanted: r.Input, OutputWanted: r.Output, Prompt: -1, Cached: -1, intended: due, history: answers,
	}
	ctx, cancel := context.WithTimeout(ctx, s.p.Timeout)
	defer cancel()
	body := s.p.appendBody(make([]byte, 0, s.p.bodyRoom(r)), r, answers)
	req, err := s.request(ctx, r, res.ID, body)
	if err != nil {
		res.end = s.clock()
		res.fail(errConnect, err.Error())
		res.finish(nil, s.p.targets)
		return res
	}
	res.lag = s.clock() - due
	resp, err := s.client.Do(req)
	if err != nil {
		res.end = s.clock()
		kind := classify(ctx, err, errNoAnswer)
		res.fail(kind, err.Error())
		res.finish(nil, s.p.targets)
		return res
	}
	defer func() { _ = resp.Body.Close() }() // nothing more is read from it
	st := s.stream()
	res.gaps = st
	s.answer(ctx, resp, st, &res)
	res.finish(st, s.p.targets)
	return res
}

func (s *sender) stream() *stream {
	st, ok := s.pool.Get().(*stream)
	if !ok {
		st = newStream()
	}
	st.reset(s.p.level, s.p.RealAnswers, s.clock)
	return st
}

func (s *sender) request(ctx context.Context, r *workload.Request, id string, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.p.URL+s.p.path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	h := req.Header
	h.Set("Content-Type", "application/json")
	h.Set("X-Request-Id", id)
	if s.p.APIKey != "" {
		h.Set("Authorization", "Bearer "+s.p.APIKey)
	}
	if r.Tenant != "" {
		h.Set("X-Llm-D-Inference-Fairness-Id", r.Tenant)
	}
	if s.p.session != "" && r.Session != 0 {
		h.Set(s.p.session, strconv.FormatUint(r.Session, 16))
	}
	for k, v := range s.p.Header {
		h.Set(k, v)
	}
	return req, nil
}

// answer reads what the server sent and judges it.
func (s *sender) answer(ctx context.Context, resp *http.Response, st *stream, res *Result) {
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // what there is of the message
		res.end = s.clock()
		res.fail("http_"+strconv.Itoa(resp.StatusCode), string(text))
		return
	}
	var err error
	if s.p.Stream {
		err = st.read(resp.Body)
	} else {
		err = st.readWhole(resp.Body)
	}
	res.end = st.end
	switch sse, ok := errors.AsType[*sseError](err); {
	case ok:
		res.fail(errSSE, sse.body)
		return
	case err != nil && st.wrong == "":
		res.fail(classify(ctx, err, errBroken), err.Error())
		return
	}
	if err == nil && (s.p.Stream || st.usage.usage) {
		st.count(res.OutputWanted, s.p.IgnoreEOS)
	}
	if st.wrong != "" {
		res.fail(errCorrupt, st.wrong)
		return
	}
	if s.p.RealAnswers {
		res.answer = bytes.Clone(st.text)
	}
}

// maxAnswer bounds an answer that is not streamed.
const maxAnswer = 64 << 20

// readWhole reads an answer that is not streamed, as if it were one event.
func (s *stream) readWhole(r io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(r, maxAnswer))
	s.end = s.clock()
	if err != nil {
		return fmt.Errorf("%w: %w", errCut, err)
	}
	k, ok := parseChunk(data)
	if !ok {
		s.found("the answer is not a JSON object: %.80q", data)
		return nil
	}
	if k.fail != nil {
		return &sseError{body: clip(string(k.fail))}
	}
	if len(k.content) > 0 {
		s.content(k.content, s.end)
	}
	s.finish, s.done, s.usage = string(k.finish), true, k
	s.usage.usage = k.usage
	s.tokens = k.output // one event holds them all
	if s.finish == "" {
		s.found("no finish_reason")
	}
	return nil
}

func (r *Result) fail(kind, detail string) { r.Error, r.Detail = kind, clip(detail) }

// finish fills in what follows from the times and counts. A TPOT is
// (E2E - TTFT) / (output tokens - 1), as vLLM's and inference-perf's.
func (r *Result) finish(st *stream, t Targets) {
	r.e2e = r.end - r.intended
	if st != nil {
		r.Events, r.Finish, r.Output = st.tokens, st.finish, st.output()
		if st.tokens > 0 {
			r.TextHash = fmt.Sprintf("%016x", st.hash.Sum64())
		}
		if st.usage.usage {
			r.Prompt, r.Cached = st.usage.prompt, st.usage.cached
		}
		if st.first > 0 {
			r.ttft = st.first - r.intended
		}
		if r.Output > 1 && st.first > 0 {
			r.tpot = (r.end - st.first) / time.Duration(r.Output-1)
		}
	}
	r.Good = r.Error == "" && (t.TTFT == 0 || r.ttft <= t.TTFT) && (t.TPOT == 0 || r.tpot <= t.TPOT) && (t.E2E == 0 || r.e2e <= t.E2E)
	r.Intended = r.intended.Seconds()
	r.Lag, r.TTFT, r.TPOT, r.E2E = ms(r.lag), ms(r.ttft), ms(r.tpot), ms(r.e2e)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// errInterrupted is the cause of cancelling requests when the user stops the run.
var errInterrupted = errors.New("interrupted")

// classify finds the kind of an error of the connection.
func classify(ctx context.Context, err error, otherwise string) string {
	if errors.Is(context.Cause(ctx), errInterrupted) {
		return unfinished
	}
	if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		return errTimeout
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return errConnect
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return errTimeout
	}
	return otherwise
}

// errRemote refuses a local name that leads elsewhere.
var errRemote = errors.New("not this machine; add --allow-remote if the server is yours")

// newClient returns a client for the plan's target. Unless remote servers are
// allowed, the address really dialled is checked too, whatever the name said.
func newClient(p *plan) *http.Client {
	d := &net.Dialer{Timeout: 10 * time.Second}
	tr := &http.Transport{
		DialContext:         d.DialContext,
		MaxIdleConnsPerHost: p.MaxInFlight,
		DisableCompression:  true,
		ReadBufferSize:      16 << 10,
		WriteBufferSize:     64 << 10,
	}
	if p.AllowRemote {
		tr.Proxy = http.ProxyFromEnvironment
	} else {
		tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			if a, ok := c.RemoteAddr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
				_ = c.Close() // refused before a byte was sent
				return nil, &net.OpError{Op: "dial", Net: network, Addr: a, Err: errRemote}
			}
			return c, nil
		}
	}
	return &http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// firstModel asks the server which models it serves and returns the first.
func firstModel(ctx context.Context, client *http.Client, p *plan) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+"/v1/models", nil)
	if err != nil {
		return "", fmt.Errorf("make request: %w", err)
	}
	if p.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+p.APIKey)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("ask %s which models it serves: %w; is the server running? (penstock up starts one)", p.URL, err)
	}
	defer func() { _ = resp.Body.Close() }() // nothing more is read from it
	var list struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("ask %s/v1/models: status %s; name the model with --model", p.URL, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&list); err != nil {
		return "", fmt.Errorf("read %s/v1/models: %w; name the model with --model", p.URL, err)
	}
	if len(list.Data) == 0 || list.Data[0].ID == "" {
		return "", fmt.Errorf("%s/v1/models lists no model; name one with --model", p.URL)
	}
	return list.Data[0].ID, nil
}
