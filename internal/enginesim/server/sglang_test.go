package server

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
)

// sglang is an engine like fast, with SGLang's surface.
func sglang() Options {
	o := fast
	o.Engine = SGLang
	return o
}

func TestGenerateStreamsCumulativeText(t *testing.T) {
	n := listen(t, sglang())
	url := n.URL() + "/generate"
	request := map[string]any{"text": question, "rid": "r1", "sampling_params": map[string]any{"max_new_tokens": 20, "ignore_eos": true}}
	whole := object(t, url, request, 200)
	text := whole["text"].(string)
	meta := whole["meta_info"].(map[string]any)
	if meta["id"] != "r1" || meta["completion_tokens"] != 20.0 || meta["cached_tokens"] != 0.0 ||
		at(meta, "finish_reason", "type") != "length" || at(meta, "finish_reason", "length") != 20.0 || meta["e2e_latency"] == nil {
		t.Errorf("meta_info: %v", meta)
	}
	if ids := whole["output_ids"].([]any); len(ids) != 20 {
		t.Errorf("output_ids: %v", ids)
	}

	request["stream"] = true
	_, raw := post(t, url, request)
	parts := strings.Split(string(raw), "\n\n")
	if len(parts) != 22 || parts[20] != "data: [DONE]" || parts[21] != "" {
		t.Fatalf("%d parts:\n%s", len(parts), raw)
	}
	last := ""
	for i, p := range parts[:20] {
		var e map[string]any
		if err := json.Unmarshal([]byte(strings.TrimPrefix(p, "data: ")), &e); err != nil {
			t.Fatal(p)
		}
		now := e["text"].(string)
		if !strings.HasPrefix(now, last) || at(e, "meta_info", "completion_tokens") != float64(i+1) || len(e["output_ids"].([]any)) != i+1 {
			t.Errorf("event %d after %q: %v", i, last, e)
		}
		if ended := at(e, "meta_info", "finish_reason") != nil; ended != (i == 19) {
			t.Errorf("event %d: %v", i, e)
		}
		last = now
	}
	if last != text {
		t.Errorf("streamed %q, whole %q", last, text)
	}

	delete(request, "stream")
	delete(request, "text")
	request["input_ids"] = appendTokens(nil, question)
	again := object(t, url, request, 200)
	if again["text"] != text || at(again, "meta_info", "cached_tokens") == 0.0 {
		t.Errorf("from ids: %v", again)
	}
}

func TestGenerateBatchesStopsAndErrors(t *testing.T) {
	n := listen(t, sglang())
	url := n.URL() + "/generate"
	_, raw := post(t, url, map[string]any{"text": []string{"one", "two"}, "sampling_params": map[string]any{"max_new_tokens": 3}})
	var list []nativeAnswer
	if err := json.Unmarshal(raw, &list); err != nil || len(list) != 2 || list[0].Text == list[1].Text {
		t.Errorf("batch: %s", raw)
	}
	full := object(t, url, map[string]any{"text": question, "sampling_params": map[string]any{"max_new_tokens": 20}}, 200)["text"].(string)
	stop := full[4:9]
	got := object(t, url, map[string]any{"text": question, "sampling_params": map[string]any{"max_new_tokens": 20, "stop": stop}}, 200)
	if got["text"] != full[:4] || at(got, "meta_info", "finish_reason", "matched") != stop {
		t.Errorf("stop: %v", got)
	}
	schema := `{"type":"object","properties":{"a":{"const":7}}}`
	got = object(t, url, map[string]any{"text": "x", "sampling_params": map[string]any{"max_new_tokens": 50, "json_schema": schema}}, 200)
	if got["text"] != `{"a":7}` || at(got, "meta_info", "finish_reason", "type") != "stop" {
		t.Errorf("schema: %v", got)
	}
	for _, bad := range []any{map[string]any{}, map[string]any{"text": strings.Repeat("word ", 5000)}, "{"} {
		if got := object(t, url, bad, 400); at(got, "error", "message") == nil {
			t.Errorf("error: %v", got)
		}
	}
}

func TestSGLangOpenAIAnswers(t *testing.T) {
	n := listen(t, sglang())
	url := n.URL() + "/v1/chat/completions"
	request := map[string]any{"model": "anything", "messages": user(question), "max_tokens": 3, "ignore_eos": true, "rid": "abc"}
	got := object(t, url, request, 200)
	choice := at(got, "choices", 0).(map[string]any)
	if _, ok := choice["matched_stop"]; !ok || choice["stop_reason"] != nil || got["id"] != "abc" || got["model"] != "anything" {
		t.Errorf("answer: %v", got)
	}
	request["stream"] = true
	_, raw := post(t, url, request)
	parts := strings.Split(string(raw), "\n\n")
	for _, want := range []string{`"delta":{"role":"assistant","content":"","reasoning_content":null,"tool_calls":null}`, `"matched_stop":null}],"usage":null}`} {
		if !strings.Contains(parts[0], want) {
			t.Errorf("first event %s lacks %s", parts[0], want)
		}
	}
	for _, e := range events(t, raw) {
		if len(e.Choices) != 1 {
			t.Errorf("event: %+v", e)
		}
	}
	bad := object(t, url, map[string]any{"messages": []any{}}, 400)
	if bad["object"] != "error" || bad["type"] != "BadRequestError" || bad["code"] != 400.0 {
		t.Errorf("error: %v", bad)
	}
	if status, _ := get(t, n.URL()+"/version"); status != 404 {
		t.Errorf("/version: %d", status)
	}
}

func TestSGLangShowsItself(t *testing.T) {
	n := listen(t, sglang())
	show := func(path string) map[string]any {
		status, raw := get(t, n.URL()+path)
		var m map[string]any
		if err := json.Unmarshal([]byte(raw), &m); err != nil || status != 200 {
			t.Fatalf("%s: %d %s", path, status, raw)
		}
		return m
	}
	for _, path := range []string{"/get_server_info", "/server_info"} {
		m := show(path)
		if m["context_length"] != 4096.0 || m["page_size"] != 16.0 || m["max_running_requests"] != 256.0 || m["chunked_prefill_size"] != 8192.0 ||
			m["max_total_num_tokens"].(float64) < 4096 || at(m, "internal_states", 0, "last_gen_throughput") != 0.0 {
			t.Errorf("%s: %v", path, m)
		}
	}
	for _, path := range []string{"/get_model_info", "/model_info"} {
		if m := show(path); m["model_path"] != "penstock/tiny" || m["is_generation"] != true {
			t.Errorf("%s: %v", path, m)
		}
	}
	load := at(show("/v1/loads"), "loads", 0).(map[string]any)
	if load["dp_rank"] != 0.0 || load["num_running_reqs"] != 0.0 || load["num_waiting_reqs"] != 0.0 || load["token_usage"] != 0.0 || load["max_total_num_tokens"] == 0.0 {
		t.Errorf("loads: %v", load)
	}
	if _, raw := get(t, n.URL()+"/get_load"); raw != `[{"dp_rank":0,"num_reqs":0,"num_tokens":0,"num_waiting_reqs":0}]` {
		t.Errorf("load: %s", raw)
	}
	if status, body := get(t, n.URL()+"/health_generate"); status != 200 || body != "" || n.Server.Stats().GenerationTokens != 1 {
		t.Errorf("health_generate: %d %q, %+v", status, body, n.Server.Stats())
	}
	if _, models := get(t, n.URL()+"/v1/models"); !strings.Contains(models, `"owned_by":"sglang"`) {
		t.Errorf("models: %s", models)
	}
}

func TestSGLangMetrics(t *testing.T) {
	n := listen(t, sglang())
	request := map[string]any{"prompt": strings.Repeat(question, 5), "max_tokens": 50, "ignore_eos": true}
	prompt := 0
	for range 2 {
		prompt = ask(t, n.URL()+"/v1/completions", request).Usage.PromptTokens
	}
	_, page := get(t, n.URL()+"/metrics")
	got := series(t, page)
	cached := float64((prompt - 1) / 16 * 16)
	const model = `model_name="penstock/tiny"`
	const ranks = `{engine_type="unified",` + model + `,moe_ep_rank="0",pp_rank="0",tp_rank="0"}`
	for id, want := range map[string]float64{
		"num_running_reqs" + ranks:                                     0,
		"num_queue_reqs" + ranks:                                       0,
		"token_usage" + ranks:                                          0,
		"page_size" + ranks:                                            16,
		"cache_hit_rate" + ranks:                                       cached / float64(prompt),
		"prompt_tokens_total{" + model + "}":                           float64(2 * prompt),
		"generation_tokens_total{" + model + "}":                       100,
		"cached_tokens_total{" + model + `,cache_source="device"}`:     cached,
		"num_requests_total{" + model + "}":                            2,
		"time_to_first_token_seconds_count{" + model + "}":             2,
		"inter_token_latency_seconds_count{" + model + "}":             98,
		"e2e_request_latency_seconds_count{" + model + "}":             2,
		"uncached_prompt_tokens_histogram_sum{" + model + "}":          float64(2*prompt) - cached,
		"generation_tokens_histogram_bucket{" + model + `,le="100.0"}`: 2,
		"queue_time_seconds_count" + ranks:                             2,
		"max_total_num_tokens" + ranks:                                 float64(n.Server.Stats().TotalBlocks * 16),
		"kv_available_tokens" + ranks:                                  got["sglang:max_total_num_tokens"+ranks] - got["sglang:kv_evictable_tokens"+ranks],
		"inter_token_latency_seconds_bucket{" + model + `,le="+Inf"}`:  98,
		"num_aborted_requests_total{" + model + "}":                    0,
	} {
		if v, ok := got["sglang:"+id]; !ok || v != want {
			t.Errorf("%s = %v (present: %v), want %v", id, v, ok, want)
		}
	}
	for id := range got {
		if strings.HasPrefix(id, "vllm:") {
			t.Errorf("%s on SGLang's page", id)
		}
	}
	o := sglang()
	o.NoMetrics = true
	if status, _ := get(t, listen(t, o).URL()+"/metrics"); status != 404 {
		t.Errorf("metrics that were not asked for: %d", status)
	}
}

func TestSGLangFlushesAndAborts(t *testing.T) {
	o := sglang()
	o.Speedup = 1
	n := listen(t, o)
	ask(t, n.URL()+"/v1/completions", map[string]any{"prompt": strings.Repeat(question, 5), "max_tokens": 1})
	if n.Server.Stats().CachedBlocks == 0 {
		t.Fatal("nothing is cached")
	}
	if status, body := post(t, n.URL()+"/flush_cache", ""); status != 200 || !strings.HasPrefix(string(body), "Cache flushed.") {
		t.Errorf("flush: %d %s", status, body)
	}
	if s := n.Server.Stats(); s.CachedBlocks != 0 {
		t.Errorf("after the flush: %+v", s)
	}
	for _, abort := range []map[string]any{{"rid": "long"}, {"abort_all": true}} {
		resp, err := send(t.Context(), n.URL()+"/generate", map[string]any{
			"text": "x", "rid": "long-one", "stream": true, "sampling_params": map[string]any{"max_new_tokens": 4000, "ignore_eos": true},
		})
		if err != nil {
			t.Fatal(err)
		}
		if status, _ := get(t, n.URL()+"/flush_cache"); status != 400 {
			t.Errorf("a flush under a running request: %d", status)
		}
		if status, _ := post(t, n.URL()+"/abort_request", abort); status != 200 {
			t.Errorf("abort: %d", status)
		}
		raw, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(raw), `"type":"abort"`) || !strings.HasSuffix(string(raw), "data: [DONE]\n\n") {
			t.Errorf("the stream ended with %v and %s", err, raw[max(0, len(raw)-300):])
		}
	}
}

func TestSGLangAdapters(t *testing.T) {
	o := sglang()
	o.LoRAs, o.LoadLoRA = []string{"poet"}, true
	n := listen(t, o)
	texts := map[string]string{}
	for _, model := range []string{"penstock/tiny", "poet", "penstock/tiny:poet"} {
		b := ask(t, n.URL()+"/v1/completions", map[string]any{"model": model, "prompt": question, "max_tokens": 9})
		texts[model] = *b.Choices[0].Text
	}
	if texts["poet"] == texts["penstock/tiny"] || texts["poet"] != texts["penstock/tiny:poet"] {
		t.Errorf("%v", texts)
	}
	got := object(t, n.URL()+"/load_lora_adapter", map[string]any{"lora_name": "clerk", "lora_path": "/c"}, 200)
	if got["success"] != true || fmt.Sprint(got["loaded_adapters"]) != "map[clerk:/c poet:/adapters/poet]" {
		t.Errorf("load: %v", got)
	}
	object(t, n.URL()+"/unload_lora_adapter", map[string]any{"lora_name": "clerk"}, 200)
	object(t, n.URL()+"/unload_lora_adapter", map[string]any{"lora_name": "clerk"}, 400)
	object(t, n.URL()+"/generate", map[string]any{"text": "x", "lora_path": "clerk"}, 400)
}

func TestSGLangScoresAndRanks(t *testing.T) {
	n := listen(t, sglang())
	got := object(t, n.URL()+"/v1/score", map[string]any{"query": question, "items": []string{"a", "b"}, "label_token_ids": []int{65, 66}}, 200)
	if at(got, "scores", 1, 1) == nil || got["object"] != "scoring" {
		t.Errorf("score: %v", got)
	}
	_, raw := post(t, n.URL()+"/v1/rerank", map[string]any{"query": question, "documents": []string{"nothing", "water down the pipe"}})
	var list []struct {
		Score    float64
		Document string
		Index    int
	}
	if err := json.Unmarshal(raw, &list); err != nil || len(list) != 2 || list[0].Index != 1 || list[0].Document != "water down the pipe" {
		t.Errorf("rerank: %s", raw)
	}
}
