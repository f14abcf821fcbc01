package gateway

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
)

func respond(status int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func breakOff(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func notHTTP(w http.ResponseWriter, _ *http.Request) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	io.WriteString(c, "\x80\x81\x82 this is not HTTP\r\n\r\n")
	c.Close()
}

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// events answers with a stream and then does what after says.
func events(stream string, after http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		pieces(w, stream)
		if stream == "" {
			w.Header().Set("Content-Type", "text/event-stream")
			http.NewResponseController(w).Flush()
		}
		if after != nil {
			after(w, r)
		}
	}
}

const errorJSON = `{"error":{"message":"x","type":"t","param":null,"code":500}}`

// beforeFirstByte are the ways to fail that leave the request free to go
// elsewhere, with what the client is told when it fails so everywhere.
var beforeFirstByte = []struct {
	name    string
	stream  bool // how the client asks
	serve   http.HandlerFunc
	failure fleet.Failure
	refusal fleet.Refusal
}{
	{"500", false, respond(500, "application/json", errorJSON), fleet.FailStatus, fleet.RefuseEngine},
	{"500 to a stream request", true, respond(500, "application/json", errorJSON), fleet.FailStatus, fleet.RefuseEngine},
	{"502 in HTML", false, respond(502, "text/html", "<h1>nginx</h1>"), fleet.FailStatus, fleet.RefuseEngine},
	{"503", false, respond(503, "application/json", errorJSON), fleet.FailOverload, fleet.RefuseOverload},
	{"429", true, respond(429, "application/json", errorJSON), fleet.FailOverload, fleet.RefuseOverload},
	{"401", false, respond(401, "application/json", errorJSON), fleet.FailStatus, fleet.RefuseEngine},
	{"403", true, respond(403, "application/json", errorJSON), fleet.FailStatus, fleet.RefuseEngine},
	{"not HTTP", false, notHTTP, fleet.FailGarbage, fleet.RefuseEngine},
	{"no answer", false, breakOff, fleet.FailConnect, fleet.RefuseEngine},
	{"not JSON", false, respond(200, "application/json", "OK then"), fleet.FailGarbage, fleet.RefuseEngine},
	{"not JSON to a stream request", true, respond(200, "application/json", "\x80\x81"), fleet.FailGarbage, fleet.RefuseEngine},
	{"HTML", false, respond(200, "text/html", "<html></html>"), fleet.FailGarbage, fleet.RefuseEngine},
	{"empty", false, respond(200, "application/json", ""), fleet.FailGarbage, fleet.RefuseEngine},
	{"204", false, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, fleet.FailGarbage, fleet.RefuseEngine},
	{"200 with an error inside", false, respond(200, "application/json", errorJSON), fleet.FailStatus, fleet.RefuseEngine},
	{"200 with an overload inside", false, respond(200, "application/json", `{"error":{"code":"429"}}`), fleet.FailOverload, fleet.RefuseOverload},
	{"cut inside the answer", false, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "500")
		io.WriteString(w, wholeReply[:50])
		http.NewResponseController(w).Flush()
		breakOff(w, r)
	}, fleet.FailStream, fleet.RefuseEngine},
	{"silence", false, hang, fleet.FailTimeout, fleet.RefuseTimeout},
	{"silence after the header", true, events("", hang), fleet.FailTimeout, fleet.RefuseTimeout},
	{"nothing but comments", true, events(": ping\n\n", hang), fleet.FailTimeout, fleet.RefuseTimeout},
	{"silence inside an answer", false, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, wholeReply[:50])
		http.NewResponseController(w).Flush()
		hang(w, r)
	}, fleet.FailTimeout, fleet.RefuseTimeout},
	{"error event first", true, events("data: "+errorJSON+"\n\n", nil), fleet.FailStatus, fleet.RefuseEngine},
	{"error event after a comment", true, events(": hi\n\ndata: "+errorJSON+"\n\n"+done, nil), fleet.FailStatus, fleet.RefuseEngine},
	{"overload event first", true, events(`data: {"error":{"code":503}}`+"\n\n", nil), fleet.FailOverload, fleet.RefuseOverload},
	{"garbage event first", true, events("data: <html>\n\n"+whole, nil), fleet.FailGarbage, fleet.RefuseEngine},
	{"half an event", true, events(role[:20], nil), fleet.FailStream, fleet.RefuseEngine},
	{"half an event, then cut", true, events(role[:20], breakOff), fleet.FailStream, fleet.RefuseEngine},
	{"an endless event", true, events("data: "+strings.Repeat("x", 2*mib), nil), fleet.FailGarbage, fleet.RefuseEngine},
	{"an empty stream", true, events("", nil), fleet.FailStream, fleet.RefuseEngine},
	{"endless comments", true, events(strings.Repeat(": ping\n\n", 2*mib/8), hang), fleet.FailGarbage, fleet.RefuseEngine},
}

// firstByteFor is short where silence is the point.
func firstByteFor(r fleet.Refusal) Limits {
	if r == fleet.RefuseTimeout {
		return Limits{FirstByte: 100 * time.Millisecond}
	}
	return Limits{}
}

func TestFailureBeforeTheFirstByteIsRetried(t *testing.T) {
	for _, c := range beforeFirstByte {
		t.Run(c.name, func(t *testing.T) {
			var asked atomic.Int32
			h := func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				switch {
				case asked.Add(1) == 1:
					c.serve(w, r)
				case strings.Contains(string(body), `"stream":true`):
					pieces(w, whole)
				default:
					respond(200, "application/json", wholeReply)(w, r)
				}
			}
			r := newRig(t, setup{limits: firstByteFor(c.refusal)}, newEngine(t, h), newEngine(t, h))
			body, want := chatBody, wholeReply
			if c.stream {
				body, want = streamBody, whole
			}
			if a := r.do("POST", chatPath, body); a.status != 200 || a.err != nil || a.body != want {
				t.Errorf("status %d, %v, %.300q", a.status, a.err, a.body)
			}
			x := r.access()
			if x.Attempts != 2 || x.Failure != fleet.FailNone || x.Err != nil || len(x.Decisions) != 2 || x.Usage != wholeUsage {
				t.Errorf("account %+v", x)
			}
			if got := r.pool.Tally(); got.Retried != 1 || got.Done != 1 {
				t.Errorf("tally %+v", got)
			}
		})
	}
}

func TestFailureEverywhereIsToldPlainly(t *testing.T) {
	for _, c := range beforeFirstByte {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, setup{limits: firstByteFor(c.refusal)}, newEngine(t, c.serve), newEngine(t, c.serve))
			body := chatBody
			if c.stream {
				body = streamBody
			}
			status := map[fleet.Refusal]int{fleet.RefuseEngine: 502, fleet.RefuseOverload: 503, fleet.RefuseTimeout: 504}[c.refusal]
			a := r.do("POST", chatPath, body)
			wantProblem(t, a, status, c.refusal.String())
			if (a.header.Get("Retry-After") != "") != (c.refusal == fleet.RefuseOverload) {
				t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
			}
			if x := r.access(); x.Failure != c.failure || x.Refusal != c.refusal || x.Attempts != 2 || x.Err == nil || x.Status != status {
				t.Errorf("account %+v", x)
			}
			if got := r.pool.Tally(); got.Failed != 1 {
				t.Errorf("tally %+v", got)
			}
		})
	}
}

func TestClientErrorsPassUnchangedAndOnce(t *testing.T) {
	for _, status := range []int{400, 404, 413, 422, 418} {
		var asked atomic.Int32
		body := fmt.Sprintf(`{"error":{"message":"no","code":%d}}`+"\r\n", status)
		h := func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			w.Header().Set("X-Why", "because")
			respond(status, "application/problem+json", body)(w, r)
		}
		r := newRig(t, setup{}, newEngine(t, h), newEngine(t, h))
		a := r.do("POST", chatPath, streamBody)
		if a.status != status || a.body != body || a.header.Get("X-Why") != "because" || a.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%d: %+v", status, a)
		}
		if x := r.access(); asked.Load() != 1 || x.Failure != fleet.FailClient || x.Attempts != 1 || x.Status != status {
			t.Errorf("%d: asked %d times, account %+v", status, asked.Load(), x)
		}
	}
}

// TestClientErrorCutOffIsRetried: half an error is no verdict.
func TestClientErrorCutOffIsRetried(t *testing.T) {
	var asked atomic.Int32
	h := func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			w.Header().Set("Content-Length", "100")
			respond(400, "application/json", `{"err`)(w, r)
			http.NewResponseController(w).Flush()
			breakOff(w, r)
		}
		respond(200, "application/json", wholeReply)(w, r)
	}
	r := newRig(t, setup{}, newEngine(t, h), newEngine(t, h))
	if a := r.do("POST", chatPath, chatBody); a.status != 200 || a.body != wholeReply {
		t.Errorf("%+v", a)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	other := newEngine(t, func(http.ResponseWriter, *http.Request) { t.Error("the prompt was sent elsewhere") })
	r := newRig(t, setup{}, newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other+chatPath, http.StatusTemporaryRedirect)
	}))
	wantProblem(t, r.do("POST", chatPath, chatBody), 502, "engine")
}

func TestConnectionRefusedIsRetried(t *testing.T) {
	good := newEngine(t, func(w http.ResponseWriter, _ *http.Request) { pieces(w, whole) })
	r := newRig(t, setup{}, closedPort(t), good, closedPort(t))
	for range 6 {
		if a := r.do("POST", chatPath, streamBody); a.status != 200 || a.body != whole {
			t.Errorf("%+v", a)
		}
	}
}

func TestRetriesAreBounded(t *testing.T) {
	bad := newEngine(t, respond(500, "application/json", errorJSON))
	urls := []string{bad, bad, bad, bad, bad, bad}
	for _, c := range []struct {
		name         string
		max          int
		share, burst float64
		attempts     []int // of one request after the other
	}{
		{"by count", 3, 0, 50, []int{3, 3}},
		{"not at all", 1, 1, 50, []int{1, 1}},
		{"by budget", 5, 0, 3, []int{4, 1, 1}},
		{"the budget is earned", 2, 0.5, 1, []int{2, 1, 2, 1}},
	} {
		r := newRig(t, setup{pool: func(o *live.Options) {
			o.Config.Retry.MaxAttempts, o.Config.Retry.Share, o.Config.Retry.Burst = c.max, c.share, c.burst
			o.Config.Health.Consecutive, o.Config.Health.MinRequests = 1000, 1000
		}}, urls...)
		for i, want := range c.attempts {
			wantProblem(t, r.do("POST", chatPath, chatBody), 502, "engine")
			if x := r.access(); x.Attempts != want {
				t.Errorf("%s: request %d made %d attempts, want %d", c.name, i+1, x.Attempts, want)
			}
		}
	}
}

// TestNoEndpointAtAll also holds that an empty pool refuses at once.
func TestNoEndpointAtAll(t *testing.T) {
	r := newRig(t, setup{})
	a := r.do("POST", chatPath, chatBody)
	wantProblem(t, a, 503, "no-endpoint")
	if a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if x := r.access(); x.Refusal != fleet.RefuseNoEndpoint || x.Attempts != 0 {
		t.Errorf("account %+v", x)
	}
}

func TestFullQueueRefuses(t *testing.T) {
	release := make(chan struct{})
	e := newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
		io.WriteString(w, wholeReply)
	})
	r := newRig(t, setup{pool: func(o *live.Options) {
		o.Config.Room.MaxInFlight, o.Config.Queue.MaxRequests, o.Config.Queue.MaxWait = 1, 1, 50*time.Millisecond
	}}, e)
	results := make(chan answer, 2)
	ask := func() {
		a, err := r.try(t.Context(), "POST", chatPath, chatBody)
		a.err = err
		results <- a
	}
	go ask()
	until(t, "the first to be in flight", func() bool { return r.pool.Tally().InFlight == 1 })
	go ask()
	until(t, "the second to be queued", func() bool { return r.pool.Tally().Queued == 1 })
	third := r.do("POST", chatPath, chatBody)
	wantProblem(t, third, 429, "queue-full")
	if third.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	wantProblem(t, <-results, 503, "expired")
	close(release)
	if a := <-results; a.err != nil || a.status != 200 {
		t.Errorf("the first: %+v", a)
	}
}

func TestEngineThatSpeaksTLS(t *testing.T) {
	tls := rawEngine(t, func(c net.Conn, _ *http.Request) { io.WriteString(c, "\x15\x03\x01\x00\x02\x02\x50") })
	r := newRig(t, setup{}, tls)
	wantProblem(t, r.do("POST", chatPath, chatBody), 502, "engine")
	if x := r.access(); !strings.Contains(x.Err.Error(), "malformed HTTP") || x.Failure != fleet.FailGarbage {
		t.Errorf("logged as %v, %v", x.Failure, x.Err)
	}
}
