package app

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"penstock.dev/penstock/internal/config"
)

// TestARequestIsTracedToItsEngine sends a request with a trace context through a
// whole gateway and reads what its collector and its engine were told.
func TestARequestIsTracedToItsEngine(t *testing.T) {
	var mu sync.Mutex
	spans := map[string]*tracepb.Span{}
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var q coltrace.ExportTraceServiceRequest
		if r.URL.Path != "/v1/traces" || proto.Unmarshal(body, &q) != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, rs := range q.ResourceSpans {
			for _, s := range rs.ScopeSpans[0].Spans {
				spans[s.Name] = s
			}
		}
	}))
	defer collector.Close()
	told := make(chan string, 1)
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			told <- r.Header.Get("Traceparent")
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"choices":[{"text":"x","finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}`)
	}))
	defer engine.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)

	c := config.Default()
	p := config.DefaultPool()
	p.Name, p.Model, p.Dialect, p.Endpoints = "p", "m", "openai", []config.Endpoint{{Name: "e", URL: engine.URL}}
	c.Pools = []config.Pool{p}
	a, err := Start(Options{
		Config: c, Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.URL()+"/v1/completions", strings.NewReader(`{"model":"m","prompt":"p"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	checkMetricsPort(t, a.MetricsURL())
	if err := a.Close(); err != nil { // sends what is left
		t.Fatal(err)
	}
	server, attempt := spans["text_completion m"], spans["attempt"]
	if server == nil || attempt == nil || fmt.Sprintf("%x", server.ParentSpanId) != "b7ad6b7169203331" || string(attempt.ParentSpanId) != string(server.SpanId) {
		t.Fatalf("spans: %v", spans)
	}
	if got, want := <-told, fmt.Sprintf("00-0af7651916cd43dd8448eb211c80319c-%x-01", attempt.SpanId); got != want {
		t.Errorf("the engine was told %q, want %q", got, want)
	}
}

func checkMetricsPort(t *testing.T, base string) {
	t.Helper()
	for path, want := range map[string]struct {
		status int
		text   string
	}{
		"/metrics": {http.StatusOK, `penstock_requests_total{model="m",pool="p",status="200"} 1`}, "/healthz": {http.StatusOK, "ok"}, "/readyz": {http.StatusOK, "ok"},
		"/api/status": {http.StatusNotFound, ""}, "/debug/pprof/": {http.StatusNotFound, ""}, "/": {http.StatusNotFound, ""},
	} {
		resp, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want.status || !strings.Contains(string(body), want.text) {
			t.Errorf("%s: %d, want %d with %q", path, resp.StatusCode, want.status, want.text)
		}
	}
}
