package server

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"time"

	"penstock.dev/penstock/internal/enginesim"
)

// SGLangVersion is what GET /server_info reports with SGLang's surface.
const SGLangVersion = "0.5.9"

// eosToken is the id that SGLang reports when an answer ends by itself.
const eosToken = "151645"

// sglangWording is how SGLang's OpenAI answers differ: nothing is left out.
func sglangWording(chat bool) wording {
	const empty = `"reasoning_content":null,"tool_calls":`
	w := wording{
		bareID: true, before: `,"text":"`, after: `"`, last: `,"text":""`,
		rest: `,"finish_reason":null,"matched_stop":null}`, stop: `","matched_stop":`, eos: eosToken,
		noUsage: `,"usage":null`, usageTail: `,"reasoning_tokens":0`,
		noTools: "," + empty + `null}`, toolID: "call_", toolIndex: `,"index":0`,
	}
	if chat {
		w.role = `,"delta":{"role":"assistant","content":"",` + empty + `null}`
		w.before, w.after = `,"delta":{"role":null,"content":"`, `",`+empty+`null}`
		w.last = `,"delta":{"role":null,"content":null,` + empty + `null}`
		w.toolName = `,"delta":{"role":null,"content":null,` + empty + `[{"id":`
		w.toolArgs = w.toolName + `null,"index":0,"type":"function","function":{"name":null,"arguments":"`
	}
	return w
}

// routesSGLang adds what only SGLang has.
func (s *Server) routesSGLang(add func(method, path string, inference bool, h http.HandlerFunc)) {
	add("POST", "/generate", true, s.generateNative)
	for _, path := range []string{"/get_model_info", "/model_info"} {
		add("GET", path, false, s.showModelInfo)
	}
	for _, path := range []string{"/get_server_info", "/server_info"} {
		add("GET", path, false, s.showServerInfo)
	}
	add("GET", "/v1/loads", false, s.showLoads)
	add("GET", "/get_load", false, s.showOldLoad)
	add("GET", "/health_generate", false, s.healthGenerate)
	add("POST", "/v1/rerank", true, s.rerank)
	add("POST", "/v1/score", true, s.scoreLabels)
	for _, method := range []string{"GET", "POST"} {
		add(method, "/flush_cache", false, s.flushCache)
	}
	add("POST", "/abort_request", false, s.abortRequest)
	if s.options.LoadLoRA {
		add("POST", "/load_lora_adapter", false, s.changeLoRA(s.addLoRA))
		add("POST", "/unload_lora_adapter", false, s.changeLoRA(func(q loraRequest) error { return s.removeLoRA(q.Name) }))
	}
}

func (s *Server) showModelInfo(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{
		"model_path": s.options.Model, "tokenizer_path": s.options.Model, "is_generation": true,
		"preferred_sampling_params": nil, "weight_version": "default",
		"has_image_understanding": true, "has_audio_understanding": false,
	})
}

// serverArgs are the arguments that SGLang would have been started with.
func (s *Server) serverArgs() map[string]any {
	o := s.options
	return map[string]any{
		"model_path": o.Model, "served_model_name": o.Model, "tp_size": o.TP, "pp_size": 1, "dp_size": 1,
		"context_length": o.MaxModelLen, "page_size": enginesim.BlockTokens, "max_running_requests": o.MaxSeqs,
		"chunked_prefill_size": o.BudgetTokens, "max_prefill_tokens": o.BudgetTokens, "schedule_policy": "fcfs",
		"mem_fraction_static": 0.88, "disaggregation_mode": s.pd.mode(), "enable_metrics": !o.NoMetrics,
		"enable_lora": o.hasLoRA(), "max_loras_per_batch": o.MaxLoRAs, "disable_radix_cache": false, "random_seed": o.Seed,
	}
}

func (s *Server) showServerInfo(w http.ResponseWriter, _ *http.Request) {
	o, stats := s.options, s.Stats()
	state := s.serverArgs()
	info := maps.Clone(state)
	state["last_gen_throughput"] = s.throughput()
	state["effective_max_running_requests_per_dp"] = o.MaxSeqs
	state["memory_usage"] = map[string]any{"token_capacity": stats.TotalBlocks * int(enginesim.BlockTokens)}
	info["status"], info["version"] = "ready", SGLangVersion
	info["max_total_num_tokens"] = stats.TotalBlocks * int(enginesim.BlockTokens)
	info["max_req_input_len"] = o.MaxModelLen - 1
	info["internal_states"] = []any{state}
	writeJSON(w, http.StatusOK, info)
}

// showLoads is the cheap way to ask for the load of each rank; there is one.
func (s *Server) showLoads(w http.ResponseWriter, _ *http.Request) {
	stats, o := s.Stats(), s.options
	now := time.Now().UTC()
	used := stats.UsedBlocks * int(enginesim.BlockTokens)
	writeJSON(w, http.StatusOK, map[string]any{
		"timestamp": now.Format("2006-01-02T15:04:05.000000+00:00"), "version": SGLangVersion,
		"accelerator": o.Accelerator, "num_accelerators": o.TP,
		"loads": []any{map[string]any{
			"dp_rank": 0, "timestamp": float64(now.UnixMicro()) / 1e6,
			"num_running_reqs": stats.Running, "num_waiting_reqs": stats.Waiting,
			"num_used_tokens": used, "num_total_tokens": used, "max_total_num_tokens": stats.TotalBlocks * int(enginesim.BlockTokens),
			"token_usage": stats.KVUsage(), "gen_throughput": s.throughput(), "cache_hit_rate": hitRate(stats),
			"utilization": float64(stats.Running) / float64(o.MaxSeqs), "max_running_requests": o.MaxSeqs,
		}},
	})
}

func (s *Server) showOldLoad(w http.ResponseWriter, _ *http.Request) {
	stats := s.Stats()
	writeJSON(w, http.StatusOK, []map[string]int{{
		"dp_rank": 0, "num_reqs": stats.Running + stats.Waiting, "num_waiting_reqs": stats.Waiting,
		"num_tokens": stats.UsedBlocks * int(enginesim.BlockTokens),
	}})
}

// throughput is the tokens per second of the last forty steps.
func (s *Server) throughput() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.metrics.(*sglangMetrics)
	if !ok || s.engine.Stats().Running == 0 {
		return 0
	}
	return m.throughput
}

// healthGenerate is well when the engine makes a token.
func (s *Server) healthGenerate(w http.ResponseWriter, r *http.Request) {
	g, err := s.begin(r.Context(), "HEALTH_CHECK_"+requestID(r), []choice{{prompt: 1, max: 1, answer: answer{ends: []int{0}}}})
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer g.release()
	if g.await(r.Context()) != nil {
		panic(http.ErrAbortHandler) // the only way to break off without an answer
	}
}

func (s *Server) flushCache(w http.ResponseWriter, _ *http.Request) {
	status := http.StatusOK
	if !s.dropCache(false) {
		status = http.StatusBadRequest
	}
	w.WriteHeader(status)
	fmt.Fprintln(w, "Cache flushed.\nPlease check backend logs for more details. (When there are running or waiting requests, the operation will not be performed.)")
}

// dropCache forgets the prefix cache; see enginesim.Engine.DropCache.
func (s *Server) dropCache(preempt bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer nudge(s.wake)
	stats := s.engine.Stats()
	if !preempt && stats.Running+stats.Waiting > 0 || !s.engine.DropCache(s.now(), preempt) {
		return false
	}
	s.lose("the cache was dropped")
	return true
}

// abortRequest ends the requests whose id begins with "rid".
func (s *Server) abortRequest(w http.ResponseWriter, r *http.Request) {
	var q struct {
		RID string `json:"rid"`
		All bool   `json:"abort_all"`
	}
	if err := readJSON(r, &q); err != nil {
		s.fail(w, r, err)
		return
	}
	s.abortWhere(func(id string) bool { return q.All || q.RID != "" && strings.HasPrefix(id, q.RID) })
}

// abortWhere aborts the requests whose ids are chosen.
func (s *Server) abortWhere(chosen func(id string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.legs {
		if chosen(l.call.id) {
			s.abortLocked(l.call)
		}
	}
}

// changeLoRA handles both of SGLang's adapter routes.
func (s *Server) changeLoRA(change func(loraRequest) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q loraRequest
		err := readJSON(r, &q)
		if err == nil {
			err = change(q)
		}
		status, message := http.StatusOK, ""
		if err != nil {
			status, message = http.StatusBadRequest, err.Error()
		}
		s.mu.Lock()
		loaded := map[string]string{}
		for _, l := range s.loras {
			loaded[l.name] = l.path
		}
		s.mu.Unlock()
		writeJSON(w, status, map[string]any{"success": err == nil, "error_message": message, "loaded_adapters": loaded})
	}
}

// scoreLabels is SGLang's score: how likely each label follows each item.
func (s *Server) scoreLabels(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Model  string   `json:"model"`
		Query  string   `json:"query"`
		Items  texts    `json:"items"`
		Labels []uint32 `json:"label_token_ids"`
	}
	err := readJSON(r, &q)
	if err == nil && (len(q.Items) == 0 || len(q.Labels) == 0) {
		err = badRequest("items", "items and label_token_ids: must be given")
	}
	var t tally
	scores := make([][]float64, len(q.Items))
	if err == nil {
		list := make([][]uint32, len(q.Items))
		for i, text := range q.Items {
			list[i] = appendTokens(appendTokens(nil, q.Query), text)
			label := make([]uint32, 1)
			for _, label[0] = range q.Labels {
				scores[i] = append(scores[i], similarity(embed(s.options.Seed, list[i], 64), embed(s.options.Seed, label, 64)))
			}
		}
		t, err = s.prefill(r, "", list)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"object": "scoring", "model": s.options.Model, "scores": scores, "usage": inputUsage{t.prompt, t.prompt}})
}
