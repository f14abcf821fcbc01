package server

import (
	"fmt"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
)

// sglangMetrics is what GET /metrics shows with SGLang's surface. The
// scheduler's gauges have labels for its ranks; what the tokenizer process
// counts has the model's name only, and is counted when a request ends.
type sglangMetrics struct {
	options           Options
	labels, scheduler string

	ttft, itl, e2e, queue           *histogram
	prompts, uncached, generations  *histogram
	prompt, generation, cached, all float64

	steps      int
	window     fleet.Time // when the throughput was last taken
	tokens     int        // since then
	throughput float64    // tokens per second
	batch      fleet.Time // when the latest prompts were done
	hits, size float64    // their cached and all tokens
}

// Buckets as SGLang sets them.
var (
	sglangTTFT   = []float64{.1, .2, .4, .6, .8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400}
	sglangITL    = []float64{.002, .004, .006, .008, .01, .015, .02, .025, .03, .035, .04, .06, .08, .1, .2, .4, .6, .8, 1, 2, 4, 6, 8}
	sglangE2E    = []float64{.1, .2, .4, .6, .8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400, 600, 1200, 1800, 2400}
	sglangTokens = []float64{
		100, 300, 500, 700, 1000, 1500, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10000, 12000, 15000, 20000, 22000, 25000,
		30000, 35000, 40000, 66000, 99000, 132000, 300000, 600000, 900000, 1100000,
	}
)

func newSGLangMetrics(o Options) *sglangMetrics {
	h := newHistogram
	labels := fmt.Sprintf(`model_name="%s"`, escapeLabel(o.Model))
	return &sglangMetrics{
		options: o, labels: labels,
		scheduler:   `engine_type="unified",` + labels + `,moe_ep_rank="0",pp_rank="0",tp_rank="0"`,
		ttft:        h("sglang:time_to_first_token_seconds", "Histogram of time to first token in seconds.", sglangTTFT),
		itl:         h("sglang:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", sglangITL),
		e2e:         h("sglang:e2e_request_latency_seconds", "Histogram of End-to-end request latency in seconds", sglangE2E),
		queue:       h("sglang:queue_time_seconds", "Histogram of queueing time in seconds.", sglangE2E),
		prompts:     h("sglang:prompt_tokens_histogram", "Histogram of prompt token length.", sglangTokens),
		uncached:    h("sglang:uncached_prompt_tokens_histogram", "Histogram of uncached prompt token length.", sglangTokens),
		generations: h("sglang:generation_tokens_histogram", "Histogram of generation token length.", sglangTokens),
	}
}

// step takes the throughput every forty steps, which is how often SGLang does.
func (m *sglangMetrics) step(o *enginesim.Output) {
	const interval = 40
	if m.steps++; m.steps%interval == 0 {
		m.throughput = float64(m.tokens) / max(1e-9, o.At.Sub(m.window).Seconds())
		m.window, m.tokens = o.At, 0
	}
}

func (m *sglangMetrics) token(l *leg, o *enginesim.Output) {
	m.tokens += min(1, int(o.Tokens)) // none of an embedding
	if o.First {
		m.ttft.observe(o.At.Sub(l.submitted).Seconds())
		m.queue.observe(o.Admitted.Sub(l.submitted).Seconds())
		if m.batch != o.At {
			m.batch, m.hits, m.size = o.At, 0, 0
		}
		m.hits += float64(o.Cached)
		m.size += float64(l.prompt)
	} else {
		m.itl.observe(o.At.Sub(l.last).Seconds())
	}
	l.last = o.At
	if o.Finish == enginesim.NotFinished {
		return
	}
	m.e2e.observe(o.At.Sub(l.submitted).Seconds())
	m.prompts.observe(float64(l.prompt))
	m.uncached.observe(float64(l.prompt - o.Cached))
	m.generations.observe(float64(o.Tokens))
	m.prompt += float64(l.prompt)
	m.generation += float64(o.Tokens)
	m.cached += float64(o.Cached)
	m.all++
}

// hitRate is the share of all prompt tokens that the cache held.
func hitRate(s enginesim.Stats) float64 {
	return float64(s.PrefixHits) / max(1, float64(s.PrefixQueries))
}

// append writes the whole page.
func (m *sglangMetrics) append(b []byte, s enginesim.Stats) []byte {
	gauge := func(name, help string, v float64) {
		name = "sglang:" + name
		b = appendSample(appendFamily(b, name, help, "gauge"), name, m.scheduler, v)
	}
	counter := func(name, help, labels string, v float64) {
		name = "sglang:" + name
		b = appendSample(appendFamily(b, name, help, "counter"), name, labels, v)
	}
	tokens := func(blocks int) float64 { return float64(blocks) * float64(enginesim.BlockTokens) }
	throughput := m.throughput
	if s.Running == 0 {
		throughput = 0
	}
	gauge("num_running_reqs", "The number of running requests.", float64(s.Running))
	gauge("num_queue_reqs", "The number of requests in the waiting queue.", float64(s.Waiting))
	gauge("num_grammar_queue_reqs", "The number of requests in the grammar waiting queue.", 0)
	gauge("num_used_tokens", "The number of used tokens.", tokens(s.UsedBlocks))
	gauge("kv_used_tokens", "The number of used KV cache tokens.", tokens(s.UsedBlocks))
	gauge("kv_available_tokens", "The number of available KV cache tokens.", tokens(s.TotalBlocks-s.UsedBlocks-s.CachedBlocks))
	gauge("kv_evictable_tokens", "The number of evictable KV cache tokens.", tokens(s.CachedBlocks))
	gauge("token_usage", "The token usage.", s.KVUsage())
	gauge("full_token_usage", "The token usage of full attention layers.", s.KVUsage())
	gauge("max_total_num_tokens", "Maximum total number of tokens in the KV cache pool.", tokens(s.TotalBlocks))
	gauge("page_size", "The page size of the KV cache.", float64(enginesim.BlockTokens))
	gauge("num_pages", "The number of pages in the KV cache.", float64(s.TotalBlocks))
	gauge("context_len", "The context length.", float64(m.options.MaxModelLen))
	gauge("cache_hit_rate", "The prefix cache hit rate.", m.hits/max(1, m.size))
	gauge("gen_throughput", "The generation throughput (token/s).", throughput)
	gauge("utilization", "The utilization.", float64(s.Running)/float64(m.options.MaxSeqs))
	gauge("num_retracted_reqs", "The number of retracted requests.", 0)
	gauge("num_paused_reqs", "The number of paused requests by async weight sync.", 0)
	counter("num_retracted_requests_total", "Total number of retracted requests.", m.scheduler, float64(s.Preemptions))
	counter("evicted_tokens_total", "The number of tokens evicted from the KV cache.", m.scheduler, float64(s.EvictedBlocks)*float64(enginesim.BlockTokens))
	counter("prompt_tokens_total", "Number of prefill tokens processed.", m.labels, m.prompt)
	counter("generation_tokens_total", "Number of generation tokens processed.", m.labels, m.generation)
	counter("cached_tokens_total", "Number of cached prompt tokens.", m.labels+`,cache_source="device"`, m.cached)
	counter("num_requests_total", "Number of requests processed.", m.labels, m.all)
	counter("num_aborted_requests_total", "Number of requests aborted.", m.labels, float64(s.Finished[enginesim.NotFinished]))
	for _, h := range []*histogram{m.ttft, m.itl, m.e2e, m.prompts, m.uncached, m.generations} {
		b = h.append(b, m.labels)
	}
	return m.queue.append(b, m.scheduler)
}
