package gateway

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
)

// goroutinesReturn fails the test when, at its end, more goroutines are left
// than it began with. Call it first.
func goroutinesReturn(t testing.TB) {
	t.Helper()
	base := runtime.NumGoroutine()
	t.Cleanup(func() {
		if !poll(5*time.Second, func() bool { return runtime.NumGoroutine() <= base }) {
			t.Errorf("%d goroutines are left of %d", runtime.NumGoroutine(), base)
		}
	})
}

// watched is an engine that tells when a request reaches it and when that
// request's connection is gone. Until then it does what serve says.
type watched struct {
	began, gone chan struct{}
	url         string
}

func newWatched(t testing.TB, serve http.HandlerFunc) *watched {
	e := &watched{began: make(chan struct{}, 10), gone: make(chan struct{}, 10)}
	e.url = newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		e.began <- struct{}{}
		if serve != nil {
			serve(w, r)
		}
		<-r.Context().Done()
		e.gone <- struct{}{}
	})
	return e
}

func wait(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(5 * time.Second):
		t.Fatalf("waited 5 s for %s", what)
	}
}

func TestClientGoneBeforeTheFirstByte(t *testing.T) {
	goroutinesReturn(t)
	for _, body := range []string{chatBody, streamBody} {
		e := newWatched(t, nil)
		r := newRig(t, setup{}, e.url)
		ctx, leave := context.WithCancel(t.Context())
		go func() {
			<-e.began
			leave()
		}()
		if a, err := r.try(ctx, "POST", chatPath, body); err == nil {
			t.Errorf("got %+v", a)
		}
		wait(t, "the engine's request to be cancelled", e.gone)
		x := r.access()
		if x.Status != statusGone || x.Failure != fleet.FailNone || x.Attempts != 1 {
			t.Errorf("account %+v", x)
		}
		if c := r.pool.Tally(); c.Cancelled != 1 || c.Failed != 0 {
			t.Errorf("tally %+v", c)
		}
	}
}

func TestClientGoneMidStream(t *testing.T) {
	goroutinesReturn(t)
	e := newWatched(t, func(w http.ResponseWriter, _ *http.Request) { pieces(w, role, word) })
	r := newRig(t, setup{}, e.url)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	req, err := http.NewRequestWithContext(ctx, "POST", r.front.URL+chatPath, strings.NewReader(streamBody))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.front.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, len(role+word))); err != nil {
		t.Fatal(err)
	}
	leave()
	wait(t, "the engine's request to be cancelled", e.gone)
	x := r.access()
	if x.Status != statusGone || x.Events != 1 || x.Usage.Known || x.Usage.Output != 1 {
		t.Errorf("account %+v", x)
	}
	if c := r.pool.Tally(); c.Cancelled != 1 {
		t.Errorf("tally %+v", c)
	}
}

func TestClientGoneWhileQueued(t *testing.T) {
	goroutinesReturn(t)
	e := newWatched(t, nil)
	r := newRig(t, setup{pool: func(o *live.Options) { o.Config.Room.MaxInFlight = 1 }}, e.url)
	left := make(chan struct{}, 2)
	ask := func(ctx context.Context) {
		if a, err := r.try(ctx, "POST", chatPath, chatBody); err == nil {
			t.Errorf("got %+v", a)
		}
		left <- struct{}{}
	}
	first, leaveFirst := context.WithCancel(t.Context())
	second, leaveSecond := context.WithCancel(t.Context())
	defer leaveFirst()
	defer leaveSecond()
	go ask(first)
	wait(t, "the first to reach the engine", e.began)
	go ask(second)
	until(t, "the second to be queued", func() bool { return r.pool.Tally().Queued == 1 })
	leaveSecond()
	if x := r.access(); x.Status != statusGone || x.Attempts != 0 || len(x.Decisions) != 0 {
		t.Errorf("account %+v", x)
	}
	if c := r.pool.Tally(); c.Queued != 0 || c.InFlight != 1 || c.Cancelled != 1 {
		t.Errorf("tally %+v", c)
	}
	leaveFirst()
	wait(t, "the engine's request to be cancelled", e.gone)
	<-left
	<-left
	if len(e.began) != 0 {
		t.Error("the queued request reached the engine")
	}
}

// TestHalfClosedClientIsNotLiedTo: net/http takes a client that has closed
// its side for gone. It must not read an empty 200, nor a stream that was cut
// off as one that ended.
func TestHalfClosedClientIsNotLiedTo(t *testing.T) {
	goroutinesReturn(t)
	for name, serve := range map[string]http.HandlerFunc{
		"before the first byte": nil,
		"mid-stream":            func(w http.ResponseWriter, _ *http.Request) { pieces(w, role, word) },
	} {
		e := newWatched(t, serve)
		r := newRig(t, setup{}, e.url)
		c := r.raw("POST " + chatPath + " HTTP/1.1\r\nHost: g\r\nContent-Length: " + strconv.Itoa(len(streamBody)) + "\r\n\r\n" + streamBody)
		wait(t, "the request to reach the engine", e.began)
		in := bufio.NewReader(c)
		if serve != nil {
			for line := ""; !strings.Contains(line, "word"); {
				var err error
				if line, err = in.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		rest, _ := io.ReadAll(in) // whether it ends or breaks is up to the kernel
		if strings.Contains(string(rest), "HTTP/1.1") || strings.Contains(string(rest), "0\r\n\r\n") {
			t.Errorf("%s: the client reads %q", name, rest)
		}
		wait(t, "the engine's request to be cancelled", e.gone)
	}
}

// TestClientThatDoesNotReadIsGivenUp: and the engine is not blamed for it.
func TestClientThatDoesNotReadIsGivenUp(t *testing.T) {
	goroutinesReturn(t)
	filler := "data: {\"choices\":[{\"delta\":{\"content\":\"" + strings.Repeat("x", 100_000) + "\"}}]}\n\n"
	for name, body := range map[string]string{"stream": streamBody, "whole": chatBody} {
		e := newWatched(t, func(w http.ResponseWriter, r *http.Request) {
			if b, _ := io.ReadAll(r.Body); !strings.Contains(string(b), "stream") {
				big := `{"x":"` + strings.Repeat("x", 40*mib) + `"}`
				w.Header().Set("Content-Length", strconv.Itoa(len(big)))
				respond(200, "application/json", big)(w, r)
				http.NewResponseController(w).Flush()
				return
			}
			for r.Context().Err() == nil {
				pieces(w, filler)
			}
		})
		r := newRig(t, setup{limits: Limits{Write: 200 * time.Millisecond, Idle: 20 * time.Millisecond}}, e.url)
		c := r.raw("")
		if err := c.SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "POST "+chatPath+" HTTP/1.1\r\nHost: g\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body); err != nil {
			t.Fatal(err)
		}
		x := r.access()
		if x.Status != statusGone || x.Failure != fleet.FailNone || x.Err == nil || !strings.Contains(x.Err.Error(), "timeout") {
			t.Errorf("%s: account %d, %v, %v", name, x.Status, x.Failure, x.Err)
		}
		if name == "stream" {
			wait(t, "the engine's request to be cancelled", e.gone)
		}
		var s fleet.Snapshot
		if r.pool.View(&s); s.Endpoints[0].Failures != 0 {
			t.Errorf("%s: the engine is blamed: %+v", name, s.Endpoints[0])
		}
	}
}

// TestSlowClientGetsAllOfItsStream: a client that stalls for longer than the
// engine may be silent gets all of its stream.
func TestSlowClientGetsAllOfItsStream(t *testing.T) {
	stream := role + strings.Repeat("data: {\"choices\":[{\"delta\":{\"content\":\""+strings.Repeat("x", 100_000)+"\"}}]}\n\n", 120) + finish + done
	e := newEngine(t, func(w http.ResponseWriter, _ *http.Request) { pieces(w, stream) })
	r := newRig(t, setup{limits: Limits{Idle: 150 * time.Millisecond}}, e)
	c := r.raw("POST " + chatPath + " HTTP/1.0\r\nContent-Length: " + strconv.Itoa(len(streamBody)) + "\r\n\r\n" + streamBody)
	stall := time.NewTimer(300 * time.Millisecond)
	defer stall.Stop()
	<-stall.C
	if a := reply(t, c); a.err != nil || a.body != stream {
		t.Errorf("%v; %d bytes, want %d", a.err, len(a.body), len(stream))
	}
	if x := r.access(); x.Failure != fleet.FailNone || x.Status != 200 {
		t.Errorf("account %+v", x)
	}
}

func TestPanicIsContained(t *testing.T) {
	goroutinesReturn(t)
	e := newEngine(t, func(w http.ResponseWriter, _ *http.Request) { pieces(w, whole) })
	r := newRig(t, setup{}, e)
	faulty := New(Options{
		Fleet: panicking{}, Client: r.engines, Observe: func(a *Access) { r.seen <- *a },
	})
	r.front.Config.Handler = faulty
	wantProblem(t, r.do("POST", chatPath, chatBody), 500, "internal")
	if x := r.access(); !x.Panicked || x.Status != 500 || x.Err == nil {
		t.Errorf("account %+v", x)
	}
	// Once bytes have gone, the stream must not end as if it were whole.
	r.front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.gw.ServeHTTP(&fragile{ResponseWriter: w}, q)
	})
	if a := r.do("POST", chatPath, streamBody); a.status != 200 || a.err == nil {
		t.Errorf("%+v", a)
	}
	if x := r.access(); !x.Panicked || x.Status != 200 {
		t.Errorf("account %+v", x)
	}
}

// fragile panics once what was written has been flushed.
type fragile struct{ http.ResponseWriter }

func (f *fragile) FlushError() error {
	if err := http.NewResponseController(f.ResponseWriter).Flush(); err != nil {
		return err
	}
	panic("a bug")
}

func (f *fragile) Unwrap() http.ResponseWriter { return f.ResponseWriter }

// panicking is a fleet with a bug.
type panicking struct{}

func (panicking) Find(string) (Service, bool)  { panic("a bug") }
func (panicking) Models() []Model              { return nil }
func (panicking) Speaks(*live.Pool) engine.API { panic("a bug") }
