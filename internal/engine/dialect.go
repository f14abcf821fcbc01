package engine

import (
	"fmt"
	"strings"

	"penstock.dev/penstock/internal/fleet"
)

// Dialect is how a kind of engine is spoken to.
type Dialect struct {
	Name     string
	Metrics  string // path of the metrics page; "" for none: load is known from the ledger alone
	Health   string // path that answers 2xx while the engine is fit
	Speaks   API    // what it can be asked
	LoadLoRA string // path that loads an adapter; "" where adapters are those of the start

	// reset is the path that drops what is cached, "" where there is none; resetHint
	// says what to do where it fails.
	reset, resetHint string

	page *page // what its metrics page says; nil for none
	// metricsOptional says that the page is there only when the engine was started
	// with it: a missing one is no failure.
	metricsOptional bool
	owner           string // what its model list names as owner of a model
	// Fields beyond the public API that make an answer as long as was asked for.
	ignoreEOS, minTokens bool
}

// Fix adds to a request's fields what makes its answer tokens long, as far as
// this kind of engine can be told. It reports whether it added anything that an
// engine might refuse for not knowing it.
func (d Dialect) Fix(body map[string]any, tokens int) bool {
	if d.ignoreEOS {
		body["ignore_eos"] = true
	}
	if d.minTokens {
		body["min_tokens"] = tokens
	}
	return d.ignoreEOS || d.minTokens
}

// Auto is the name of the dialect that is found out by asking the engine.
const Auto = "auto"

// dialects are the kinds of engine known. What they speak is what current
// releases do; an older one answers 404, which the client gets to see.
var dialects = []Dialect{
	{
		Name: "vllm", Metrics: "/metrics", Health: "/health", LoadLoRA: "/v1/load_lora_adapter", page: &vllmPage, owner: "vllm",
		ignoreEOS: true, minTokens: true, Speaks: APIChat | APICompletions | APIResponses | APIMessages | APICountTokens | APIEmbeddings | APITokenize | APITokenizeChat | APIRerank | APIScore | APIAudio,
		reset: "/reset_prefix_cache", resetHint: "start vLLM with VLLM_SERVER_DEV_MODE=1 in its environment",
	},
	{
		Name: "sglang", Metrics: "/metrics", Health: "/health", LoadLoRA: "/load_lora_adapter", page: &sglangPage, metricsOptional: true, owner: "sglang",
		ignoreEOS: true, minTokens: true, Speaks: APIChat | APICompletions | APIResponses | APIEmbeddings | APITokenize | APIRerank | APIScore,
		reset: "/flush_cache", resetHint: "this release of SGLang does not have it; restart it instead",
	},
	{
		Name: "trtllm", Metrics: "/prometheus/metrics", Health: "/health", page: &trtllmPage, metricsOptional: true, owner: "tensorrt_llm",
		ignoreEOS: true, minTokens: true, Speaks: APIChat | APICompletions | APIResponses,
		resetHint: "TensorRT-LLM has no API for it; restart it instead",
	},
	{
		Name: "llamacpp", Metrics: "/metrics", Health: "/health", page: &llamacppPage, metricsOptional: true, owner: "llamacpp",
		ignoreEOS: true, Speaks: APIChat | APICompletions | APIResponses | APIMessages | APIEmbeddings | APITokenize | APIRerank,
		resetHint: "llama.cpp keeps KV by slot (--slot-save-path, POST /slots/ID?action=erase), not by prefix; restart it instead",
	},
	{
		Name: "ollama", Health: "/api/version", owner: "library",
		Speaks:    APIChat | APICompletions | APIResponses | APIMessages | APIEmbeddings | APIImages,
		resetHint: "have Ollama unload the model instead (keep_alive: 0)",
	},
	{
		Name: "openai", Health: "/v1/models",
		ignoreEOS: true, minTokens: true, Speaks: APIChat | APICompletions | APIResponses | APIEmbeddings | APIAudio | APIImages,
		resetHint: "the API has no word for it; name the pool's dialect if its engines have one",
	},
	// What it speaks is not known before it is asked, so everything is tried.
	{Name: Auto, Health: "/v1/models", Speaks: ^API(0)},
}

// DialectNames returns the names DialectByName knows.
func DialectNames() []string {
	var names []string
	for _, d := range dialects {
		names = append(names, d.Name)
	}
	return names
}

// DialectByName returns a dialect.
func DialectByName(name string) (Dialect, error) {
	for _, d := range dialects {
		if d.Name == name {
			return d, nil
		}
	}
	return Dialect{}, fmt.Errorf("no dialect %q; known: %s", name, strings.Join(DialectNames(), ", "))
}

// Gauges returns what the dialect's metrics page tells when everything is
// there.
func (d Dialect) Gauges() fleet.Known {
	if d.page == nil {
		return 0
	}
	return d.page.wants
}

// mustDialect returns a dialect that the table has.
func mustDialect(name string) Dialect {
	d, err := DialectByName(name)
	if err != nil {
		panic(err)
	}
	return d
}
