package engine

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/fleet"
)

// pages serves fixed bodies by path and 404 for everything else.
func pages(t *testing.T, by map[string]string) string {
	t.Helper()
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, ok := by[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, body)
	})
}

func TestDetect(t *testing.T) {
	const models = "/v1/models"
	list := func(owner string) string { return `{"data":[{"id":"m","owned_by":"` + owner + `"}]}` }
	c := newClient(t)
	for _, f := range []struct {
		want  string
		pages map[string]string
	}{
		{"vllm", map[string]string{models: list("vllm")}},
		{"sglang", map[string]string{models: list("sglang")}},
		{"trtllm", map[string]string{models: list("tensorrt_llm"), "/version": `{"version":"1.2"}`}},
		{"llamacpp", map[string]string{models: list("llamacpp")}},
		{"ollama", map[string]string{models: list("library")}},
		{"openai", map[string]string{models: list("openai")}},
		{"openai", map[string]string{models: list("penstock"), "/metrics": "go_goroutines 7\n"}},
		{"sglang", map[string]string{models: list("me"), "/metrics": "# HELP x\nsglang:num_running_reqs 0\n"}},
		{"trtllm", map[string]string{"/prometheus/metrics": "trtllm_num_requests_running 0\n"}},
		{"ollama", map[string]string{"/api/version": `{"version":"0.17.4"}`}},
		{"sglang", map[string]string{"/get_model_info": `{"model_path":"m"}`, "/version": `{"version":"1"}`}},
		{"llamacpp", map[string]string{"/props": `{"default_generation_settings":{},"total_slots":4}`}},
		{"vllm", map[string]string{models: list("acme"), "/version": `{"version":"0.29.0"}`}},
		{"openai", map[string]string{"/version": "<html>hello</html>", "/props": "[]"}},
		{"openai", nil},
	} {
		got, err := c.Detect(t.Context(), pages(t, f.pages))
		if err != nil || got.Dialect.Name != f.want || got.Why == "" {
			t.Errorf("%v: %s because %s (%v), want %s", f.pages, got.Dialect.Name, got.Why, err, f.want)
		}
	}
	if got, err := c.Detect(t.Context(), closedPort(t)); err == nil || Classify(err) != fleet.FailConnect {
		t.Errorf("nobody there: %+v, %v", got, err)
	}
}

func TestDetectRecordedEngines(t *testing.T) {
	capture(t, "ollama", "models.response.http") // skips here, where it counts, if there are none
	replay := func(dir string, files map[string]string) string {
		return serve(t, func(w http.ResponseWriter, r *http.Request) {
			name, ok := files[r.URL.Path]
			if !ok {
				http.NotFound(w, r)
				return
			}
			raw := capture(t, dir, name+".response.http")
			head, body, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
			if bytes.Contains(head[:16], []byte("404")) {
				w.WriteHeader(http.StatusNotFound)
			}
			_, _ = w.Write(body)
		})
	}
	c := newClient(t)
	auto := mustDialect(Auto)
	sim := replay("llm-d-inference-sim", map[string]string{
		"/v1/models": "models-two-adapters", "/metrics": "metrics-under-load", "/health": "health",
	})
	r, failure, _, err := c.Scrape(t.Context(), auto, sim, nil)
	if d, ok := c.Resolve(auto, sim); !ok || d.Name != "vllm" || failure != fleet.FailNone || r.Running != 8 || r.Missing != 0 {
		t.Errorf("simulated vLLM: %s %v %+v, %v", d.Name, failure, r, err)
	}
	if models, err := c.Models(t.Context(), sim); err != nil || len(models) != 4 || models[2].Parent != "base-model" || models[0].Root != models[1].Root {
		t.Errorf("models: %+v, %v", models, err)
	}
	ollama := replay("ollama", map[string]string{"/v1/models": "models", "/metrics": "metrics-404", "/health": "health-404"})
	// Its recorded session does not have its own health path: the answer is 404.
	_, failure, _, err = c.Scrape(t.Context(), auto, ollama, nil)
	if d, ok := c.Resolve(auto, ollama); !ok || d.Name != "ollama" || failure != fleet.FailStatus || err == nil {
		t.Errorf("ollama: %s, %v %v", d.Name, failure, err)
	}
}

func TestAutoIsAskedOnceAndAgainAfterAFailure(t *testing.T) {
	asked := 0
	owner := "vllm"
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/models":
			asked++
			_, _ = io.WriteString(w, `{"data":[{"id":"m","owned_by":"`+owner+`"}]}`)
		case "/metrics":
			_, _ = io.WriteString(w, "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n")
		}
	}))
	var log bytes.Buffer
	c := NewClient(Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	defer c.Close()
	auto := mustDialect(Auto)
	for range 3 {
		if r, _, _, err := c.Scrape(t.Context(), auto, s.URL, nil); err != nil || r.Running != 1 || !r.Missing.Has(fleet.KnownKVUsage) {
			t.Fatalf("%+v %v", r, err)
		}
	}
	if asked != 1 || strings.Count(log.String(), "missing=kv-usage,kv-capacity") != 1 || strings.Count(log.String(), "engine recognised") != 1 {
		t.Errorf("asked %d times, log:\n%s", asked, log.String())
	}
	s.Close()
	if _, failure, _, _ := c.Scrape(t.Context(), auto, s.URL, nil); failure != fleet.FailConnect {
		t.Errorf("a dead engine: %v", failure)
	}
	if _, ok := c.Resolve(auto, s.URL); ok {
		t.Error("what comes back may be another engine")
	}
}

func TestEnginesWithoutMetricsAreJudgedByHealth(t *testing.T) {
	c := newClient(t)
	for name, f := range map[string]struct {
		dialect string
		pages   map[string]string
		want    fleet.Failure
	}{
		"sglang without --enable-metrics": {"sglang", map[string]string{"/health": ""}, fleet.FailNone},
		"ollama":                          {"ollama", map[string]string{"/api/version": "{}"}, fleet.FailNone},
		"openai that lists no models":     {"openai", nil, fleet.FailStatus},
	} {
		d := mustDialect(f.dialect)
		r, failure, _, err := c.Scrape(t.Context(), d, pages(t, f.pages), nil)
		if failure != f.want || r.Known != 0 || r.Missing != d.Gauges() || (err == nil) != (f.want == fleet.FailNone) {
			t.Errorf("%s: %+v %v %v", name, r, failure, err)
		}
	}
	if _, failure, _, _ := c.Scrape(t.Context(), mustDialect("openai"), closedPort(t), nil); failure != fleet.FailConnect {
		t.Errorf("nobody there: %v", failure)
	}
}
