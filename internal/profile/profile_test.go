package profile

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
)

// speedup is how much faster than life the engines are that tests profile: the
// step of one sequence takes about 2 ms then.
const speedup = 8

func simulated(t *testing.T, o server.Options) *server.Node {
	t.Helper()
	o.Speedup = speedup
	n, err := server.Listen("127.0.0.1:0", server.Config{Options: o})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// pipe is an engine that answers over connections in memory.
type pipe struct {
	*server.Server
	conns chan net.Conn
	ctx   context.Context
}

func (p pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (p pipe) Close() error   { return nil }
func (p pipe) Addr() net.Addr { return &net.TCPAddr{} }

func (p pipe) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// inBubble runs test with an engine in a bubble of its own, in which time passes
// only while all wait: what is measured is the engine's time alone, however busy
// the machine is.
func inBubble(t *testing.T, o server.Options, test func(t *testing.T, p pipe)) {
	synctest.Test(t, func(t *testing.T) {
		o.Speedup = speedup
		s, err := server.New(server.Config{Options: o})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		p := pipe{s, make(chan net.Conn), ctx}
		h := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: time.Minute}
		var all sync.WaitGroup
		all.Go(func() { s.Run(ctx) })
		all.Go(func() { _ = h.Serve(p) })
		defer all.Wait()
		defer func() { _ = h.Close() }()
		defer stop()
		test(t, p)
	})
}

// options profile an engine with the prior of what it is at the speed of life.
func options(t *testing.T, e *server.Server) Options {
	t.Helper()
	s, err := e.Options().Serving()
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		URL: "http://engine", Serving: &s, Seed: 7, Say: func(line string) { t.Log(line) },
		Stated: fleet.Limits{MaxSeqs: 256, BudgetTokens: 8192},
		Goal:   perf.Goal{Input: 4000, Output: 200, Error: 0.05, Seconds: 6, Streams: 64, SLO: fleet.SLO{TPOT: 3 * time.Millisecond}},
	}
}

// profiled profiles an engine over connections that dial makes; nil for TCP.
func profiled(t *testing.T, o Options, dial func(context.Context, string, string) (net.Conn, error)) (*Report, engine.Description, error) {
	t.Helper()
	client := engine.NewClient(engine.Options{Dial: dial})
	defer client.Close()
	d, err := client.Describe(t.Context(), o.URL, "")
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(t.Context(), client, d, o)
	return r, d, err
}

// within fails when got is further than share from want.
func within(t *testing.T, what string, got, want, share float64) {
	t.Helper()
	if e := got/want - 1; math.IsNaN(e) || math.Abs(e) > share {
		t.Errorf("%s: %.3f, want %.3f: %+.1f %%", what, got, want, 100*e)
	} else {
		t.Logf("%s: %.3f, is %.3f: %+.1f %%", what, got, want, 100*e)
	}
}

// TestProfileFindsThePhysics profiles an engine eight times as fast as its data
// sheet says, which nobody tells the client, and compares with what the engine
// really runs on.
func TestProfileFindsThePhysics(t *testing.T) {
	inBubble(t, server.Options{Noise: 0.03}, func(t *testing.T, p pipe) {
		o := options(t, p.Server)
		r, _, err := profiled(t, o, p.dial)
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		if err := r.Print(&text); err != nil {
			t.Fatal(err)
		}
		t.Log("\n" + text.String())
		for _, heading := range []string{"combination and artefacts", "range", "data points and performance curve", "max KV cache", "minimum cycle latency", "max concurrency"} {
			if !strings.Contains("\n"+text.String(), "\n"+heading+"\n") {
				t.Errorf("no %q in the report", heading)
			}
		}
		truth := server.Options{Speedup: speedup}
		physics, limits, err := truth.Physics()
		if err != nil {
			t.Fatal(err)
		}
		context := o.Goal.Input + o.Goal.Output/2
		seqs := r.Concurrency.Sequences
		for _, n := range []int{1, seqs / 2, seqs} {
			want := physics.StepTime(enginesim.Batch{Decodes: n, Context: fleet.Tokens(float64(n) * context)})
			within(t, "T(n)", 1e3*r.Fit.Step.Time(perf.Work{Seqs: float64(n), KV: float64(n) * context}), 1e3*want.Seconds(), 0.05)
		}
		prompt := fleet.Tokens(o.Goal.Input)
		want := physics.StepTime(enginesim.Batch{Prefills: 1, Prompt: prompt, Attention: perf.Pairs(0, prompt)})
		got := r.Fit.Step.TTFT(perf.Load{Budget: 8192}, 0, prompt).Seconds() - r.Fit.Step.PerRequest
		within(t, "TTFT", 1e3*got, 1e3*want.Seconds(), 0.05)
		if r.Pace > 0.5 || len(r.Points) > 15 || r.Concurrency.Binds != perf.LatencyBound.String() {
			t.Errorf("pace %.2f, %d probes, bound by %s", r.Pace, len(r.Points), r.Concurrency.Binds)
		}
		if r.Limits.KVTokens != limits.KVTokens || r.Limits.MaxModelLen != limits.MaxModelLen || r.MaxKV.Source != "/metrics" {
			t.Errorf("limits %+v, want those of %+v", r.Limits, limits)
		}
	})
}

// TestLoadedServersAreRefused: neither while they say that they work, nor when
// their own latency gives them away.
func TestLoadedServersAreRefused(t *testing.T) {
	inBubble(t, server.Options{}, func(t *testing.T, p pipe) {
		o := options(t, p.Server)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		body := `{"model":"Qwen/Qwen3-32B","prompt":"a long story","max_tokens":100000,"ignore_eos":true,"stream":true}`
		client := engine.NewClient(engine.Options{Dial: p.dial})
		defer client.Close()
		resp, _, err := client.Send(ctx, o.URL, "/v1/completions", http.Header{"Content-Type": {"application/json"}}, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		go io.Copy(io.Discard, resp.Body)
		if r, _, err := profiled(t, o, p.dial); !errors.Is(err, ErrLoaded) || r != nil {
			t.Errorf("a loaded server: %+v, %v", r, err)
		}
		o.Force, o.Goal.Seconds, o.Goal.Error = true, 2, 2
		r, _, err := profiled(t, o, p.dial)
		if err != nil || len(r.Points) == 0 || len(r.Notes) == 0 || !strings.Contains(r.Notes[0], "other work") {
			t.Errorf("forced: %+v, %v", r, err)
		}
	})
}

func TestKnownProfileTakesOneProbe(t *testing.T) {
	inBubble(t, server.Options{}, func(t *testing.T, p pipe) {
		o := options(t, p.Server)
		s, err := p.Options().Serving()
		if err != nil {
			t.Fatal(err)
		}
		known := perf.Prior(s)
		physics, _, err := server.Options{Speedup: speedup}.Physics()
		if err != nil {
			t.Fatal(err)
		}
		// As a profile of this engine would have it, nearly.
		known.Step = known.Step.Scale(physics.StepTime(enginesim.Batch{Decodes: 1, Context: 32}).Seconds() / known.Step.Time(perf.Work{Seqs: 1, KV: 32}))
		o.Known, o.KnownError = &known, 0.15 // it is no better than that
		r, _, err := profiled(t, o, p.dial)
		if err != nil || len(r.Points) != 1 || r.Check == nil || !r.Check.Holds {
			t.Fatalf("%+v, %v", r, err)
		}
		if r.Fit.Step != known.Step {
			t.Errorf("the check changed the belief: %+v", r.Fit.Step)
		}
		known.Step = known.Step.Scale(1.5)
		if r, _, err = profiled(t, o, p.dial); err != nil || r.Check.Holds {
			t.Errorf("a profile of another engine holds: %+v, %v", r.Check, err)
		}
	})
}

func TestInterruptedProfileTellsWhatItLearnt(t *testing.T) {
	inBubble(t, server.Options{}, func(t *testing.T, p pipe) {
		o := options(t, p.Server)
		o.Goal.Error = 0
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		probes := 0
		o.Say = func(string) {
			if probes++; probes == 3 {
				cancel()
			}
		}
		client := engine.NewClient(engine.Options{Dial: p.dial})
		defer client.Close()
		d, err := client.Describe(ctx, o.URL, "")
		if err != nil {
			t.Fatal(err)
		}
		r, err := Run(ctx, client, d, o)
		if !errors.Is(err, context.Canceled) || r == nil || len(r.Points) != 2 || r.Stopped != "interrupted" {
			t.Fatalf("%+v, %v", r, err)
		}
		if synctest.Wait(); p.Stats().Running > 0 {
			t.Error("its streams still run")
		}
	})
}

func TestTimeBoundsTheWhole(t *testing.T) {
	inBubble(t, server.Options{}, func(t *testing.T, p pipe) {
		o := options(t, p.Server)
		o.Goal.Error, o.Goal.Seconds = 0, 2
		begun := time.Now()
		r, _, err := profiled(t, o, p.dial)
		if err != nil || len(r.Points) == 0 || !strings.Contains(r.Stopped, "time") {
			t.Fatalf("%+v, %v", r, err)
		}
		if took := time.Since(begun); took > 4*time.Second {
			t.Errorf("two seconds took %v", took)
		}
	})
}

// TestFussyServers: one that knows neither the fields that fix an answer's length
// nor completions nor gauges, nor counts tokens, is profiled with what is left.
func TestFussyServers(t *testing.T) {
	n := simulated(t, server.Options{Engine: server.SGLang, NoMetrics: true, Noise: 0.01})
	o := options(t, n.Server)
	o.Goal.Error, o.Goal.Seconds = 1, 3
	var fussy http.RoundTripper = fuss{http.DefaultTransport}
	front := fronted(t, n.URL(), fussy)
	o.URL = front
	r, d, err := profiled(t, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d.Version != server.SGLangVersion || d.MaxSeqs.Value != 256 || d.BudgetTokens.Value != 8192 {
		t.Errorf("described as %+v", d)
	}
	notes := strings.Join(r.Notes, "\n")
	for _, want := range []string{"no completions", "refuses ignore_eos", "does not count", "tells no gauges"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no word that it %s: %s", want, notes)
		}
	}
	if len(r.Points) == 0 || r.Points[0].TPOT == 0 {
		t.Errorf("nothing was measured: %+v", r.Points)
	}
}

// fuss refuses what the public API does not have, as strict servers do.
type fuss struct{ next http.RoundTripper }

func (f fuss) RoundTrip(req *http.Request) (*http.Response, error) {
	no := func(status int) (*http.Response, error) {
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"error":"no"}`)), Request: req}, nil
	}
	if req.Body != nil {
		raw, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		req.Body = io.NopCloser(bytes.NewReader(raw))
		switch {
		case req.URL.Path == "/v1/completions":
			return no(http.StatusNotFound)
		case bytes.Contains(raw, []byte("ignore_eos")), bytes.Contains(raw, []byte("stream_options")):
			return no(http.StatusBadRequest)
		}
	}
	return f.next.RoundTrip(req)
}

// fronted passes everything on through a transport.
func fronted(t *testing.T, base string, via http.RoundTripper) string {
	t.Helper()
	to, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	p := httputil.NewSingleHostReverseProxy(to)
	p.Transport, p.FlushInterval = via, -1
	s := httptest.NewServer(p)
	t.Cleanup(s.Close)
	return s.URL
}
