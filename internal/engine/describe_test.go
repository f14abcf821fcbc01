package engine

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/fleet"
)

// serving answers paths with bodies.
func serving(t *testing.T, pages map[string]string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := pages[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestDescribeReadsWhatEnginesTell(t *testing.T) {
	const vllm = "vllm:num_requests_running{} 0\nvllm:num_requests_waiting{} 0\nvllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"100\"} 1\n"
	for name, c := range map[string]struct {
		pages   map[string]string
		version string
		want    fleet.Limits
	}{
		"vllm": {map[string]string{
			"/v1/models": `{"data":[{"id":"m","owned_by":"vllm","max_model_len":4096}]}`, "/metrics": vllm, "/version": `{"version":"0.29.0"}`,
		}, "0.29.0", fleet.Limits{MaxModelLen: 4096, KVTokens: 1600, BlockTokens: 16}},
		"vllm, development mode": {map[string]string{
			"/v1/models":   `{"data":[{"id":"m","owned_by":"vllm"}]}`,
			"/server_info": `{"vllm_config":{"scheduler_config":{"max_num_seqs":128,"max_num_batched_tokens":2048}}}`,
		}, "", fleet.Limits{MaxSeqs: 128, BudgetTokens: 2048}},
		"sglang": {map[string]string{
			"/v1/models":       `{"data":[{"id":"m","owned_by":"sglang"}]}`,
			"/get_server_info": `{"version":"0.5.9","context_length":null,"max_running_requests":null,"chunked_prefill_size":-1,"max_total_num_tokens":5000,"page_size":1,"internal_states":[{"effective_max_running_requests_per_dp":48}]}`,
		}, "0.5.9", fleet.Limits{KVTokens: 5000, BlockTokens: 1, MaxSeqs: 48}},
		"llama.cpp": {map[string]string{
			"/v1/models": `{"data":[{"id":"m","owned_by":"llamacpp"}]}`,
			"/props":     `{"build_info":"b42","total_slots":4,"default_generation_settings":{"n_ctx":8192}}`,
		}, "b42", fleet.Limits{MaxModelLen: 8192, MaxSeqs: 4}},
		"nothing but models": {map[string]string{"/v1/models": `{"data":[{"id":"m"}]}`}, "", fleet.Limits{}},
	} {
		client := NewClient(Options{})
		d, err := client.Describe(t.Context(), serving(t, c.pages), "")
		client.Close()
		if err != nil || d.Version != c.version || d.Limits() != c.want || d.Model.ID != "m" {
			t.Errorf("%s: %+v, %v, want version %q and %+v", name, d, err, c.version, c.want)
		}
		for _, f := range []Fact{d.MaxModelLen, d.KVTokens, d.MaxSeqs, d.BudgetTokens} {
			if (f.Value == 0) != (f.Source == "") {
				t.Errorf("%s: %d from %q", name, f.Value, f.Source)
			}
		}
	}
	client := NewClient(Options{})
	defer client.Close()
	if _, err := client.Describe(t.Context(), serving(t, map[string]string{"/v1/models": `{"data":[{"id":"m"}]}`}), "other"); err == nil || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("a model that is not there: %v", err)
	}
}

func TestFixSaysOnlyWhatTheDialectKnows(t *testing.T) {
	for name, want := range map[string]int{"vllm": 2, "sglang": 2, "llamacpp": 1, "ollama": 0} {
		body := map[string]any{}
		if added := mustDialect(name).Fix(body, 7); added != (want > 0) || len(body) != want {
			t.Errorf("%s: %v", name, body)
		}
	}
}
