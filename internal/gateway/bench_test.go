package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
)

// sink is a client that takes everything at once.
type sink struct {
	header  http.Header
	status  int
	bytes   int
	flushes int
}

func (s *sink) Header() http.Header              { return s.header }
func (s *sink) WriteHeader(status int)           { s.status = status }
func (s *sink) Write(b []byte) (int, error)      { s.bytes += len(b); return len(b), nil }
func (s *sink) FlushError() error                { s.flushes++; return nil }
func (s *sink) SetWriteDeadline(time.Time) error { return nil }
func (s *sink) SetReadDeadline(time.Time) error  { return nil }

// source is an engine's answer of n events, one per read, then finish.
type source struct{ n int }

const sourceEvent = `data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1790000000,"model":"Qwen/Qwen3-32B",` +
	`"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}` + "\n\n"

func (s *source) Read(b []byte) (int, error) {
	s.n--
	switch {
	case s.n >= 0:
		return copy(b, sourceEvent), nil
	case s.n == -1:
		return copy(b, done), nil
	}
	return 0, io.EOF
}

func (s *source) Close() error { return nil }

// streamer is one stream after another through the gateway's own code: no
// sockets, no HTTP.
type streamer struct {
	g    *Gateway
	pool *live.Pool
	req  *http.Request
	sink sink

	toward engineSide
}

func newStreamer(t testing.TB) *streamer {
	t.Helper()
	p, err := live.NewPool(live.Options{Name: "p", Config: pool.Default()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	p.Add(live.Target{Name: "a", URL: "http://a"})
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://g"+chatPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &streamer{g: New(Options{Fleet: oneFleet{pool: p}}), pool: p, req: req, sink: sink{header: http.Header{}}}
}

// run passes a stream of n events on.
func (s *streamer) run(t testing.TB, n int) {
	ctx, cancel := context.WithCancelCause(s.req.Context())
	defer cancel(nil)
	s.sink.bytes, s.sink.flushes = 0, 0
	x := &exchange{g: s.g, w: &s.sink, rc: http.NewResponseController(&s.sink), r: s.req, fate: new(fate), start: time.Now(), route: &routes[0], service: Service{Pool: s.pool, Model: "served"}, toward: s.toward, req: api.Request{Model: "m"}}
	x.ticket = s.pool.Open("id", &pool.Arrive{Prompt: 10})
	defer x.ticket.Close()
	if o, err := x.ticket.Wait(ctx); err != nil || o.Refusal != fleet.RefuseNone {
		t.Fatalf("%+v, %v", o, err)
	}
	st := stream{
		x: x, ctx: ctx, cancel: cancel, first: time.AfterFunc(time.Hour, func() {}),
		resp: &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: &source{n: n}},
	}
	if st.run() || x.access.Events != n || s.sink.bytes != n*len(sourceEvent)+len(done) || s.sink.flushes != n+1 {
		t.Fatalf("%d events in %d bytes and %d flushes", x.access.Events, s.sink.bytes, s.sink.flushes)
	}
}

// TestAnEventAllocatesNothing compares a short stream with a long one.
func TestAnEventAllocatesNothing(t *testing.T) {
	s := newStreamer(t)
	for _, s.toward = range []engineSide{{}, {rename: true}} {
		short := testing.AllocsPerRun(20, func() { s.run(t, 100) })
		long := testing.AllocsPerRun(20, func() { s.run(t, 4100) })
		// Growing what grows once (maps, the splitter after a collection) is not per event.
		if per := (long - short) / 4000; per > 0.005 {
			t.Errorf("%+v: %v allocations per event (%v for 100 events, %v for 4100)", s.toward, per, short, long)
		}
	}
}

func BenchmarkStreamEvent(b *testing.B) {
	s := newStreamer(b)
	b.SetBytes(int64(len(sourceEvent)))
	b.ReportAllocs()
	s.run(b, b.N)
}

func BenchmarkStreamOf200Events(b *testing.B) {
	s := newStreamer(b)
	b.ReportAllocs()
	for b.Loop() {
		s.run(b, 200)
	}
}

// cannedEngine answers every request that has a body of body's length alike,
// with as little work as can be.
func cannedEngine(t testing.TB, body, answer string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	raw := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReaderSize(c, 16<<10)
				for {
					line, err := in.ReadSlice('\n')
					if err != nil {
						return
					}
					if len(line) > 2 {
						continue // header
					}
					if _, err := in.Discard(len(body)); err != nil {
						return
					}
					if _, err := c.Write(raw); err != nil {
						return
					}
				}
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

// BenchmarkWholeRequest is one request of 2 KB that is not streamed, from the
// handler's entry to its end, over net/http's transport and loopback to an
// engine that costs next to nothing.
func BenchmarkWholeRequest(b *testing.B) {
	body := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("the quick brown fox ", 100) + `"}]}`
	r := newStreamer(b)
	r.pool.Remove(r.pool.Endpoints()[0])
	r.pool.Add(live.Target{Name: "b", URL: cannedEngine(b, body, wholeReply)})
	client := engine.NewClient(engine.Options{})
	b.Cleanup(client.Close)
	g := New(Options{Fleet: oneFleet{pool: r.pool}, Client: client})
	req, err := http.NewRequestWithContext(b.Context(), "POST", "http://g"+chatPath, nil)
	if err != nil {
		b.Fatal(err)
	}
	in := strings.NewReader("")
	req.ContentLength, req.Body = int64(len(body)), io.NopCloser(in)
	w := &sink{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		in.Reset(body)
		clear(w.header)
		w.status = 0
		g.ServeHTTP(w, req)
		if w.status != 200 {
			b.Fatalf("status %d", w.status)
		}
	}
}

// BenchmarkTicket is the brain's part of a request: arrival to end.
func BenchmarkTicket(b *testing.B) {
	s := newStreamer(b)
	ev := pool.Arrive{Prompt: 500}
	b.ReportAllocs()
	for b.Loop() {
		k := s.pool.Open("id", &ev)
		if _, err := k.Wait(s.req.Context()); err != nil {
			b.Fatal(err)
		}
		k.Sent(func() {})
		k.FirstToken()
		k.Done(fleet.Usage{})
		k.Close()
	}
}
