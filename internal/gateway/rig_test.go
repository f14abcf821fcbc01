package gateway

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
)

// TestMain fails the package when goroutines outlive its tests.
func TestMain(m *testing.M) {
	base := runtime.NumGoroutine()
	code := m.Run()
	if code == 0 && !poll(5*time.Second, func() bool { return runtime.NumGoroutine() <= base }) {
		fmt.Fprintf(os.Stderr, "%d goroutines, %d at the start:\n", runtime.NumGoroutine(), base)
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		code = 1
	}
	os.Exit(code)
}

// poll asks ok every millisecond until it holds or the limit has passed.
func poll(limit time.Duration, ok func() bool) bool {
	end := time.After(limit)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			return ok()
		}
	}
	return true
}

// until waits for a condition that another goroutine brings about.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !poll(5*time.Second, ok) {
		t.Fatalf("waited 5 s for %s", what)
	}
}

// oneFleet serves every model of a list, or any when it is empty, from one pool
// whose engines speak everything but what silent says.
type oneFleet struct {
	pool   *live.Pool
	models []Model
	silent engine.API
}

func (f oneFleet) Models() []Model { return f.models }

func (f oneFleet) Find(model string) (Service, bool) {
	s := Service{Pool: f.pool, Model: model}
	for _, m := range f.models {
		if m.ID == model {
			s.Model, s.MaxModelLen = cmp.Or(m.Root, m.ID), m.MaxModelLen
			return s, true
		}
	}
	return s, len(f.models) == 0
}

func (f oneFleet) Speaks(*live.Pool) engine.API { return ^f.silent }

// setup is what a rig differs in from the usual.
type setup struct {
	limits Limits
	policy Policy
	models []Model
	silent engine.API // what the engines do not speak
	pool   func(*live.Options)
}

// rig is a gateway on loopback before some engines.
type rig struct {
	t         testing.TB
	gw        *Gateway
	pool      *live.Pool
	endpoints []live.Endpoint
	front     *httptest.Server
	engines   *engine.Client
	seen      chan Access
}

// manyRequests is more than any test sends, so that the gateway never waits for
// a test to look at what it observed.
const manyRequests = 8192

func newRig(t testing.TB, s setup, urls ...string) *rig {
	t.Helper()
	r := &rig{t: t, engines: engine.NewClient(engine.Options{}), seen: make(chan Access, manyRequests)}
	o := live.Options{Name: "p", Config: pool.Default()}
	o.Config.Policy.Name = "round-robin"
	if s.pool != nil {
		s.pool(&o)
	}
	var err error
	if r.pool, err = live.NewPool(o); err != nil {
		t.Fatal(err)
	}
	for i, u := range urls {
		r.endpoints = append(r.endpoints, r.pool.Add(live.Target{Name: fmt.Sprintf("e%d", i), URL: u}))
	}
	r.gw = New(Options{
		Fleet: oneFleet{r.pool, s.models, s.silent}, Client: r.engines, Limits: s.limits, Policy: s.policy,
		Observe: func(a *Access) { r.seen <- *a },
	})
	r.gw.SetReady()
	r.front = httptest.NewUnstartedServer(r.gw)
	r.front.Config.ErrorLog = log.New(io.Discard, "", 0)
	r.front.Start()
	t.Cleanup(func() {
		r.front.Client().CloseIdleConnections()
		r.settled()
		r.front.Close()
		r.pool.Close()
		r.engines.Close()
	})
	return r
}

// settled waits until the ledger holds nothing and checks that every request is
// counted once.
func (r *rig) settled() {
	r.t.Helper()
	var s fleet.Snapshot
	ok := poll(5*time.Second, func() bool {
		r.pool.View(&s)
		held := s.Queued != 0 || r.pool.Tally().InFlight != 0
		for _, e := range s.Endpoints {
			held = held || e.InFlight != 0 || e.Backlog != 0 || e.Active != 0
		}
		return !held
	})
	c := r.pool.Tally()
	if !ok || c.Arrived != c.Done+c.Shed+c.Expired+c.Failed+c.Cancelled {
		r.t.Errorf("the ledger does not return to zero: %+v, tally %+v", s, c)
	}
}

// access returns the account of the next request that ended.
func (r *rig) access() Access {
	r.t.Helper()
	select {
	case a := <-r.seen:
		return a
	case <-time.After(5 * time.Second):
		r.t.Fatal("no request has ended within 5 s")
		return Access{}
	}
}

// answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   string
	err    error // from reading the body
}

func (r *rig) do(method, path, body string) answer {
	r.t.Helper()
	a, err := r.try(r.t.Context(), method, path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

func (r *rig) try(ctx context.Context, method, path, body string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, r.front.URL+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	resp, err := r.front.Client().Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(raw), err}, nil
}

// raw opens a connection to the gateway and sends text over it as it is.
func (r *rig) raw(text string) *net.TCPConn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.front.Listener.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		r.t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		r.t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// wantProblem checks an answer for the API's error shape.
func wantProblem(t testing.TB, a answer, status int, code string) {
	t.Helper()
	var b struct {
		Error *struct {
			Message, Type, Code string
			Param               *string
		}
	}
	err := json.Unmarshal([]byte(a.body), &b)
	switch {
	case err != nil || b.Error == nil:
		t.Errorf("status %d, body %.200q (%v), want an error object", a.status, a.body, err)
	case a.status != status || b.Error.Code != code || b.Error.Message == "" || b.Error.Type == "":
		t.Errorf("status %d, error %+v, want status %d and code %q", a.status, *b.Error, status, code)
	case a.header.Get("Content-Type") != "application/json":
		t.Errorf("Content-Type %q", a.header.Get("Content-Type"))
	}
}

// newEngine serves h as an engine. Request bodies are read first, since only
// then does a handler learn that its client has gone.
func newEngine(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		h(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return s.URL
}

// rawEngine answers each connection's one request by talking over it.
func rawEngine(t testing.TB, talk func(c net.Conn, r *http.Request)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				if _, err := io.Copy(io.Discard, r.Body); err == nil {
					talk(c, r)
				}
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return "http://" + l.Addr().String()
}

// closedPort is the URL of an engine that is not there.
func closedPort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// pieces writes an event stream in the given pieces, each flushed.
func pieces(w http.ResponseWriter, parts ...string) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	for _, p := range parts {
		if _, err := io.WriteString(w, p); err != nil {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
	}
}

// Requests and answers as the tests use them.
const (
	chatPath   = "/v1/chat/completions"
	textPath   = "/v1/completions"
	chatBody   = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`
	streamBody = `{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}`

	role   = `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}` + "\n\n"
	word   = `data: {"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}` + "\n\n"
	finish = `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n"
	usage  = `data: {"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":2,"total_tokens":102,"prompt_tokens_details":{"cached_tokens":64}}}` + "\n\n"
	done   = "data: [DONE]\n\n"

	whole      = role + word + word + finish + usage + done
	wholeReply = `{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":" word"},"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":100,"completion_tokens":2,"total_tokens":102,"prompt_tokens_details":{"cached_tokens":64}}}` + "\r\n"
)

var wholeUsage = fleet.Usage{Known: true, Prompt: 100, Cached: 64, Output: 2}
