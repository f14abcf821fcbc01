package server

import (
	"strconv"
	"strings"
	"testing"
)

// series parses a metrics page strictly enough to catch what a scraper would
// choke on, and returns its samples.
func series(t testing.TB, page string) map[string]float64 {
	t.Helper()
	samples := map[string]float64{}
	types := map[string]string{}
	for line := range strings.Lines(page) {
		line, ok := strings.CutSuffix(line, "\n")
		if !ok {
			t.Fatal("the page does not end with a line feed")
		}
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			if types[name] != "" {
				t.Fatalf("family %s appears twice", name)
			}
			types[name] = kind
			continue
		}
		if strings.HasPrefix(line, "# HELP ") {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		id := line[:i]
		name, _, _ := strings.Cut(id, "{")
		if types[name] == "" {
			base := name
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				base = strings.TrimSuffix(base, suffix)
			}
			if types[base] != "histogram" {
				t.Fatalf("%s has no type", name)
			}
		}
		if _, ok := samples[id]; ok {
			t.Fatalf("series %s appears twice", id)
		}
		samples[id] = v
	}
	return samples
}

func TestMetricsPage(t *testing.T) {
	n := listen(t, fast)
	request := map[string]any{"prompt": strings.Repeat(question, 5), "max_tokens": 21, "ignore_eos": true}
	prompt := 0
	for range 3 {
		prompt = ask(t, n.URL()+"/v1/completions", request).Usage.PromptTokens
	}
	_, page := get(t, n.URL()+"/metrics")
	got := series(t, page)
	const l = `{model_name="penstock/tiny",engine="0"}`
	hits := float64((prompt - 1) / 16 * 16 * 2)
	for id, want := range map[string]float64{
		"num_requests_running" + l:                        0,
		"num_requests_waiting" + l:                        0,
		"kv_cache_usage_perc" + l:                         0,
		"num_preemptions_total" + l:                       0,
		"prefix_cache_queries_total" + l:                  float64(3 * prompt),
		"prefix_cache_hits_total" + l:                     hits,
		"prompt_tokens_total" + l:                         float64(3 * prompt),
		"generation_tokens_total" + l:                     63,
		"time_to_first_token_seconds_count" + l:           3,
		"inter_token_latency_seconds_count" + l:           60,
		"request_time_per_output_token_seconds_count" + l: 3,
		"e2e_request_latency_seconds_count" + l:           3,
		"request_queue_time_seconds_count" + l:            3,
		"request_prompt_tokens_sum" + l:                   float64(3 * prompt),
		"request_generation_tokens_sum" + l:               63,
		"request_params_max_tokens_sum" + l:               63,
		"iteration_tokens_total_sum" + l:                  float64(3*prompt) - hits + 60,
		`request_success_total{model_name="penstock/tiny",engine="0",finished_reason="length"}`: 3,
		`request_success_total{model_name="penstock/tiny",engine="0",finished_reason="stop"}`:   0,
		`request_success_total{model_name="penstock/tiny",engine="0",finished_reason="abort"}`:  0,
		`request_generation_tokens_bucket{model_name="penstock/tiny",engine="0",le="20.0"}`:     0,
		`request_generation_tokens_bucket{model_name="penstock/tiny",engine="0",le="50.0"}`:     3,
		`time_to_first_token_seconds_bucket{model_name="penstock/tiny",engine="0",le="+Inf"}`:   3,
	} {
		if v, ok := got["vllm:"+id]; !ok || v != want {
			t.Errorf("%s = %v (present: %v), want %v", id, v, ok, want)
		}
	}
	info := false
	for id := range got {
		info = info || strings.HasPrefix(id, "vllm:cache_config_info{") && strings.Contains(id, `block_size="16"`) && strings.Contains(id, `num_gpu_blocks="`)
	}
	if !info {
		t.Error("no cache_config_info with block_size and num_gpu_blocks")
	}
}

func TestHistogramBoundsAreInclusive(t *testing.T) {
	h := newHistogram("x", "y", []float64{1, 2})
	for _, v := range []float64{0.5, 1, 1.5, 2, 3} {
		h.observe(v)
	}
	got := series(t, string(h.append(nil, `a="b"`)))
	for id, want := range map[string]float64{
		`x_bucket{a="b",le="1.0"}`: 2, `x_bucket{a="b",le="2.0"}`: 4, `x_bucket{a="b",le="+Inf"}`: 5,
		`x_sum{a="b"}`: 8, `x_count{a="b"}`: 5,
	} {
		if got[id] != want {
			t.Errorf("%s = %v, want %v", id, got[id], want)
		}
	}
}
