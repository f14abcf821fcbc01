package main

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/enginesim/server"
)

// inspected runs check --engine and returns what was found.
func inspected(t *testing.T, url string) (engine.Report, int) {
	t.Helper()
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"check", "--engine", url, "--json"}, streams{Out: &out, Err: &errs})
	var r engine.Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v: %s%s", err, out.String(), errs.String())
	}
	return r, code
}

func TestCheckEngineAsksBothSurfaces(t *testing.T) {
	// SGLang's errors are bare, it answers for any model, and ranks in a list.
	sglang := map[string]engine.Answer{
		"400 for what is not JSON": engine.Odd, "404 for an unknown model": engine.No, "rerank": engine.Odd, "score": engine.No,
		"messages (Anthropic)": engine.No, "count_tokens (Anthropic)": engine.No,
	}
	blind := maps.Clone(sglang)
	blind["tells its gauges"], blind["stops when the client leaves"] = engine.No, engine.Unknown
	for name, c := range map[string]struct {
		options server.Options
		differs map[string]engine.Answer // from yes
	}{
		"vllm":                   {server.Options{Engine: server.VLLM}, nil},
		"sglang":                 {server.Options{Engine: server.SGLang}, sglang},
		"sglang without metrics": {server.Options{Engine: server.SGLang, NoMetrics: true}, blind},
		"vllm, older": {server.Options{Engine: server.VLLM, NoMessages: true, NoResponses: true}, map[string]engine.Answer{
			"messages (Anthropic)": engine.No, "count_tokens (Anthropic)": engine.No, "responses": engine.No,
		}},
	} {
		c.options.Speedup = 20
		n, err := server.Listen("127.0.0.1:0", server.Config{Options: c.options})
		if err != nil {
			t.Fatal(err)
		}
		r, code := inspected(t, n.URL())
		if code != 0 || r.Dialect != c.options.Engine || len(r.Models) == 0 || r.Model != r.Models[0] {
			t.Errorf("%s: exit %d, %+v", name, code, r)
		}
		for _, f := range r.Findings {
			want := engine.Yes
			if w, ok := c.differs[f.Question]; ok {
				want = w
			}
			if f.Answer != want {
				t.Errorf("%s: %s: %s (%s), want %s", name, f.Question, f.Answer, f.Detail, want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := n.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		cancel()
	}
}

func TestCheckEngineRefuses(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	if r, code := inspected(t, s.URL); code != 1 || r.Dialect != "openai" {
		t.Errorf("a server that is no engine: exit %d, %+v", code, r)
	}
	for _, c := range []struct{ args, want string }{
		{"check --engine http://192.0.2.1:8000", "--allow-remote"},
		{"check --engine localhost:8000", "must start with http"},
		{"check --engine http://127.0.0.1:1", "refused"},
		{"check --engine http://127.0.0.1:1 --key-env PENSTOCK_TEST_UNSET", "not set"},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), strings.Fields(c.args), streams{Out: &out, Err: &errs}); code != 1 || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%s: exit %d, %q, want %q", c.args, code, errs.String(), c.want)
		}
	}
}

func TestCheckEngineTable(t *testing.T) {
	n, err := server.Listen("127.0.0.1:0", server.Config{Options: server.Options{Speedup: 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Shutdown(t.Context()) // nothing is open any more
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"check", "--engine", n.URL()}, streams{Out: &out, Err: &errs}); code != 0 || !strings.Contains(out.String(), "20 yes, 0 no, 0 odd, 0 unknown") {
		t.Errorf("exit %d: %s%s", code, out.String(), errs.String())
	}
}
