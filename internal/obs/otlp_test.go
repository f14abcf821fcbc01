package obs

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"penstock.dev/penstock/internal/fleet"
)

// receiver is an OTLP collector.
type receiver struct {
	t       *testing.T
	mu      sync.Mutex
	spans   []*tracepb.Span
	metrics map[string]*metrics.Metric
	header  http.Header
	service string
}

func receive(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{t: t, metrics: map[string]*metrics.Metric{}}
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", s.URL)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		r.t.Error(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.header = req.Header.Clone()
	switch req.URL.Path {
	case "/v1/traces":
		var q coltrace.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &q); err != nil {
			r.t.Error(err)
		}
		for _, rs := range q.ResourceSpans {
			r.service = text(rs.Resource.Attributes, "service.name")
			for _, ss := range rs.ScopeSpans {
				r.spans = append(r.spans, ss.Spans...)
			}
		}
	case "/v1/metrics":
		var q colmetrics.ExportMetricsServiceRequest
		if err := proto.Unmarshal(body, &q); err != nil {
			r.t.Error(err)
		}
		for _, rm := range q.ResourceMetrics {
			for _, sm := range rm.ScopeMetrics {
				for _, m := range sm.Metrics {
					r.metrics[m.Name] = m
				}
			}
		}
	default:
		r.t.Errorf("a request to %s", req.URL.Path)
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// span returns the only span of a name.
func (r *receiver) span(name string) *tracepb.Span {
	r.t.Helper()
	var found *tracepb.Span
	for _, s := range r.spans {
		if s.Name == name {
			if found != nil {
				r.t.Fatalf("two spans %q", name)
			}
			found = s
		}
	}
	if found == nil {
		r.t.Fatalf("no span %q of %d", name, len(r.spans))
	}
	return found
}

func find(attrs []*common.KeyValue, key string) *common.AnyValue {
	for _, a := range attrs {
		if a.Key == key {
			return a.Value
		}
	}
	return nil
}

func text(attrs []*common.KeyValue, key string) string { return find(attrs, key).GetStringValue() }

func start(t *testing.T) *Telemetry {
	t.Helper()
	tel, err := StartTelemetry(t.Context(), "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return tel
}

func flush(t *testing.T, tel *Telemetry) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := tel.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestTraceOfARetriedRequest(t *testing.T) {
	r := receive(t)
	t.Setenv("OTEL_SERVICE_NAME", "front")
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=inference")
	tel := start(t)
	req := httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader("secret prompt"))
	req.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f := tel.Trace(req, "id-1")
	a := access("id-1", 3)
	a.Path, a.Attempts, a.Queue, a.Arrived, a.Remote = "/v1/chat/completions", 2, 20*time.Millisecond, time.Now(), "192.0.2.1:1234"
	a.Decisions = append(a.Decisions, a.Decisions[0])
	a.Decisions[1].Attempt = 2
	var headers [2]http.Header
	for i := range headers {
		headers[i] = http.Header{}
		a.Endpoint = "e" + string(rune('1'+i))
		f.Attempt(a, headers[i])
		if i == 0 {
			f.Failed(fleet.FailConnect)
		}
	}
	f.End(a)
	tel.Observe(a)
	flush(t, tel)

	server := r.span("chat m")
	if f.ID() != "0af7651916cd43dd8448eb211c80319c" || string(server.ParentSpanId) != "\xb7\xad\x6b\x71\x69\x20\x33\x31" || server.Kind != tracepb.Span_SPAN_KIND_SERVER {
		t.Errorf("trace %s, server span %v", f.ID(), server)
	}
	if r.service != "front" || r.header.Get("X-Team") != "inference" {
		t.Errorf("service %q, header %v", r.service, r.header)
	}
	if q := r.span("queue"); !bytes.Equal(q.ParentSpanId, server.SpanId) || q.EndTimeUnixNano-q.StartTimeUnixNano != 20e6 {
		t.Errorf("queue: %v", q)
	}
	if text(server.Attributes, "gen_ai.request.model") != "m" || find(server.Attributes, "gen_ai.usage.input_tokens").GetIntValue() != 12 ||
		find(server.Attributes, "gen_ai.usage.cache_read.input_tokens").GetIntValue() != 8 || len(server.Events) != 1 || server.Events[0].Name != "first token" {
		t.Errorf("server span: %v", server)
	}
	n := 0
	for _, s := range r.spans {
		if s.Name != "attempt" {
			continue
		}
		i := int(find(s.Attributes, "penstock.attempt").GetIntValue()) - 1
		want := []string{"connect", ""}[i]
		if text(s.Attributes, "error.type") != want || !bytes.Equal(s.ParentSpanId, server.SpanId) || s.Kind != tracepb.Span_SPAN_KIND_CLIENT ||
			text(s.Attributes, "penstock.policy") != "p2c" || text(s.Attributes, "penstock.endpoint") != "e"+string(rune('1'+i)) {
			t.Errorf("attempt %d: %v", i+1, s)
		}
		if want := "00-0af7651916cd43dd8448eb211c80319c-" + hex(s.SpanId) + "-01"; headers[i].Get("Traceparent") != want {
			t.Errorf("attempt %d: the engine was told %q, want %q", i+1, headers[i].Get("Traceparent"), want)
		}
		n++
	}
	if n != 2 {
		t.Errorf("%d attempts", n)
	}
	for _, s := range r.spans {
		if all := s.String(); strings.Contains(all, "secret") || strings.Contains(all, "192.0.2.1") {
			t.Errorf("a span tells too much: %s", all)
		}
	}
}

func hex(b []byte) string {
	const digits = "0123456789abcdef"
	var out []byte
	for _, c := range b {
		out = append(out, digits[c>>4], digits[c&15])
	}
	return string(out)
}

func TestGenAIMetrics(t *testing.T) {
	r := receive(t)
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	tel := start(t)
	if tel.Traces() {
		t.Error("traces were turned off")
	}
	a := access("a", 2)
	tel.Observe(a)
	failed := access("b", 2)
	failed.Status, failed.Refusal, failed.TTFT, failed.Usage = 503, fleet.RefuseQueueFull, 0, fleet.Usage{}
	tel.Observe(failed)
	flush(t, tel)
	for name, want := range map[string]struct {
		points int
		count  uint64
		sum    float64
	}{
		"gen_ai.server.request.duration":      {2, 2, 2},
		"gen_ai.server.time_to_first_token":   {1, 1, .025},
		"gen_ai.server.time_per_output_token": {1, 1, .975 / 2},
		"gen_ai.client.token.usage":           {2, 2, 15},
	} {
		m := r.metrics[name]
		if m == nil {
			t.Errorf("no %s", name)
			continue
		}
		points := m.GetHistogram().GetDataPoints()
		count, sum := uint64(0), 0.0
		for _, p := range points {
			count, sum = count+p.Count, sum+p.GetSum()
			if text(p.Attributes, "gen_ai.operation.name") != "text_completion" || text(p.Attributes, "gen_ai.request.model") != "m" {
				t.Errorf("%s: %v", name, p.Attributes)
			}
		}
		if len(points) != want.points || count != want.count || sum < want.sum*0.999 || sum > want.sum*1.001 {
			t.Errorf("%s: %d points, count %d, sum %v, want %+v", name, len(points), count, sum, want)
		}
	}
}

func TestTelemetryIsOffUnlessAskedFor(t *testing.T) {
	for name, env := range map[string][2]string{
		"nothing set": {}, "disabled": {"OTEL_SDK_DISABLED", "true"}, "none": {"OTEL_TRACES_EXPORTER", "none"}, "another exporter": {"OTEL_METRICS_EXPORTER", "prometheus"},
	} {
		t.Run(name, func(t *testing.T) {
			if env[0] != "" {
				t.Setenv(env[0], env[1])
			}
			if tel := start(t); tel != nil || tel.Traces() || tel.Shutdown(t.Context()) != nil {
				t.Errorf("%+v", tel)
			}
		})
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
	if _, err := StartTelemetry(t.Context(), "test", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "http/protobuf or grpc") {
		t.Errorf("%v", err)
	}
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	if tel := start(t); !tel.Traces() {
		t.Error("grpc was not taken")
	}
}

func TestOperation(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/v1/messages/count_tokens": "chat", "/v1/responses/resp_1": "chat",
		"/v1/embeddings": "embeddings", "/tokenize": "other",
	} {
		if got := operation(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestLabelsAreBounded(t *testing.T) {
	b := newBounded(2)
	for _, v := range []string{"a", "b", "a"} {
		if b.label(v) != v {
			t.Errorf("%s was not kept", v)
		}
	}
	if b.label("c") != otherLabel || b.label("b") != "b" {
		t.Error("the bound does not hold")
	}
}

func BenchmarkTrace(b *testing.B) {
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer s.Close()
	b.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", s.URL)
	tel, err := StartTelemetry(b.Context(), "bench", slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	req, a := httptest.NewRequest("POST", "/v1/completions", nil), access("a", 8)
	b.ReportAllocs()
	for b.Loop() {
		f := tel.Trace(req, "a")
		f.Attempt(a, http.Header{})
		f.End(a)
		tel.Observe(a)
	}
}
