package server

import (
	"fmt"
	"net/http"
	"strconv"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
)

// meter counts what GET /metrics shows beyond the engine's own counters. It is
// guarded by Server.mu.
type meter interface {
	token(l *leg, o *enginesim.Output) // one token of a request
	step(o *enginesim.Output)          // one step
	append(b []byte, s enginesim.Stats) []byte
}

func newMeter(o Options) meter {
	if o.Engine == SGLang {
		return newSGLangMetrics(o)
	}
	return newVLLMMetrics(o)
}

// vllmMetrics has the names, types, labels and buckets of vLLM.
type vllmMetrics struct {
	labels    string // model_name and engine
	cacheInfo string // the labels of cache_config_info

	ttft, itl, tpot, e2e                                    *histogram
	queue, prefill, decode, inference                       *histogram
	promptTokens, generationTokens, maxTokens, maxGenerated *histogram
	iterationTokens                                         *histogram
}

// Buckets as vLLM sets them.
var (
	bucketsTTFT = []float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560}
	bucketsITL  = []float64{.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}
	bucketsE2E  = []float64{.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}
	bucketsStep = []float64{1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}
)

// vllmLabels are the labels of every series but a few.
func vllmLabels(o Options) string {
	return fmt.Sprintf(`model_name="%s",engine="%d"`, escapeLabel(o.Model), o.KVRank)
}

// bucketsTokens is the 1-2-5 series up to the longest context.
func bucketsTokens(longest fleet.Tokens) []float64 {
	var b []float64
	for scale := 1.0; ; scale *= 10 {
		for _, m := range []float64{1, 2, 5} {
			if m*scale > float64(longest) {
				return b
			}
			b = append(b, m*scale)
		}
	}
}

func newVLLMMetrics(o Options) *vllmMetrics {
	tokens := bucketsTokens(o.MaxModelLen)
	h := newHistogram
	return &vllmMetrics{
		labels: vllmLabels(o),
		cacheInfo: fmt.Sprintf(`block_size="%d",cache_dtype="auto",enable_prefix_caching="True",engine="%d",gpu_memory_utilization="0.9",num_gpu_blocks="%d"`,
			enginesim.BlockTokens, o.KVRank, o.KVTokens/enginesim.BlockTokens),
		ttft:             h("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", bucketsTTFT),
		itl:              h("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", bucketsITL),
		tpot:             h("vllm:request_time_per_output_token_seconds", "Histogram of time per output token per request in seconds.", bucketsITL),
		e2e:              h("vllm:e2e_request_latency_seconds", "Histogram of end to end request latency in seconds.", bucketsE2E),
		queue:            h("vllm:request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", bucketsE2E),
		prefill:          h("vllm:request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.", bucketsE2E),
		decode:           h("vllm:request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", bucketsE2E),
		inference:        h("vllm:request_inference_time_seconds", "Histogram of time spent in RUNNING phase for request.", bucketsE2E),
		promptTokens:     h("vllm:request_prompt_tokens", "Number of prefill tokens processed.", tokens),
		generationTokens: h("vllm:request_generation_tokens", "Number of generation tokens processed.", tokens),
		maxTokens:        h("vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.", tokens),
		maxGenerated:     h("vllm:request_max_num_generation_tokens", "Histogram of maximum number of requested generation tokens.", tokens),
		iterationTokens:  h("vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", bucketsStep),
	}
}

// token records one token of a request.
func (m *vllmMetrics) token(l *leg, o *enginesim.Output) {
	if o.First {
		m.ttft.observe(o.At.Sub(l.submitted).Seconds())
		l.first = o.At
	} else {
		m.itl.observe(o.At.Sub(l.last).Seconds())
	}
	l.last = o.At
	if o.Finish == enginesim.NotFinished {
		return
	}
	m.e2e.observe(o.At.Sub(l.submitted).Seconds())
	m.queue.observe(o.Admitted.Sub(l.submitted).Seconds())
	m.prefill.observe(l.first.Sub(o.Admitted).Seconds())
	m.decode.observe(o.At.Sub(l.first).Seconds())
	m.inference.observe(o.At.Sub(o.Admitted).Seconds())
	if o.Tokens > 1 {
		m.tpot.observe(o.At.Sub(l.first).Seconds() / float64(o.Tokens-1))
	}
	m.promptTokens.observe(float64(l.prompt))
	m.generationTokens.observe(float64(o.Tokens))
	m.maxTokens.observe(float64(l.asked))
	m.maxGenerated.observe(float64(l.asked))
}

func (m *vllmMetrics) step(o *enginesim.Output) { m.iterationTokens.observe(float64(o.Tokens)) }

// append writes the whole page.
func (m *vllmMetrics) append(b []byte, s enginesim.Stats) []byte {
	single := func(kind, name, help string, v float64) {
		name = "vllm:" + name
		b = appendFamily(b, name, help, kind)
		b = appendSample(b, name, m.labels, v)
	}
	single("gauge", "num_requests_running", "Number of requests in model execution batches.", float64(s.Running))
	single("gauge", "num_requests_waiting", "Number of requests waiting to be processed.", float64(s.Waiting))
	single("gauge", "kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", s.KVUsage())
	single("counter", "prefix_cache_queries_total", "Prefix cache queries, in terms of number of queried tokens.", float64(s.PrefixQueries))
	below := s.CPU.Hits + s.Disk.Hits
	single("counter", "prefix_cache_hits_total", "Prefix cache hits, in terms of number of cached tokens.", float64(s.PrefixHits-below))
	if s.CPU.TotalBlocks > 0 {
		single("counter", "external_prefix_cache_queries_total", "External prefix cache queries from KV connector cross-instance cache sharing, in terms of number of queried tokens.", float64(s.PrefixQueries-s.PrefixHits+below))
		single("counter", "external_prefix_cache_hits_total", "External prefix cache hits from KV connector cross-instance cache sharing, in terms of number of cached tokens.", float64(below))
	}
	single("counter", "num_preemptions_total", "Cumulative number of preemption from the engine.", float64(s.Preemptions))
	single("counter", "prompt_tokens_total", "Number of prefill tokens processed.", float64(s.PromptTokens))
	single("counter", "generation_tokens_total", "Number of generation tokens processed.", float64(s.GenerationTokens))
	b = appendFamily(b, "vllm:request_success_total", "Count of successfully processed requests.", "counter")
	for reason, n := range s.Finished {
		name := enginesim.Reason(reason).String()
		if name == "" {
			name = "abort"
		}
		b = appendSample(b, "vllm:request_success_total", m.labels+`,finished_reason="`+name+`"`, float64(n))
	}
	b = appendFamily(b, "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", "gauge")
	b = appendSample(b, "vllm:cache_config_info", m.cacheInfo, 1)
	for _, h := range []*histogram{
		m.ttft, m.itl, m.tpot, m.e2e, m.queue, m.prefill, m.decode, m.inference,
		m.promptTokens, m.generationTokens, m.maxTokens, m.maxGenerated, m.iterationTokens,
	} {
		b = h.append(b, m.labels)
	}
	return b
}

// metricsPage is the page as of now.
func (s *Server) metricsPage() []byte {
	b := make([]byte, 0, 32<<10)
	s.mu.Lock()
	defer s.mu.Unlock()
	b = s.metrics.append(b, s.statsLocked())
	if s.options.Engine == SGLang {
		return b
	}
	if s.options.hasLoRA() {
		b = s.appendLoRAs(b)
	}
	return s.appendSleep(b)
}

// serveMetrics answers with the page, or with what a fault makes of it.
func (s *Server) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	const plain = "# HELP python_info Python platform information\n# TYPE python_info gauge\n" +
		"python_info{implementation=\"CPython\",major=\"3\",minor=\"12\",patchlevel=\"3\",version=\"3.12.3\"} 1.0\n"
	if _, ok := s.faults.hit("metrics-missing", false); ok {
		writeError(w, &apiError{http.StatusNotFound, "Not Found", ""})
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	if f, ok := s.faults.hit("metrics-huge", false); ok {
		s.serveFiller(w, f.Bytes)
	}
	page := []byte(plain)
	if _, ok := s.faults.hit("metrics-empty", false); ok {
		w.Write(page)
		return
	}
	if _, ok := s.faults.hit("metrics-stale", false); ok {
		s.faults.mu.Lock()
		page = append(page, s.faults.stale...)
		s.faults.mu.Unlock()
	} else {
		page = append(page, s.metricsPage()...)
	}
	w.Write(page)
}

// serveFiller writes at least n bytes of series that nobody asked for.
func (s *Server) serveFiller(w http.ResponseWriter, n int) {
	chunk := []byte("# TYPE filler gauge\n")
	for i := 0; n > 0; i++ {
		for len(chunk) < 64<<10 {
			chunk = append(chunk, `filler{series="`...)
			chunk = strconv.AppendInt(chunk, int64(i), 10)
			chunk = append(chunk, `"} 1.0`+"\n"...)
			i++
		}
		if _, err := w.Write(chunk); err != nil {
			return // the scraper has had enough
		}
		n -= len(chunk)
		chunk = chunk[:0]
	}
}
