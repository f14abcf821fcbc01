package engine

import (
	"bytes"

	"penstock.dev/penstock/internal/fleet"
)

// gauge is something a metrics page tells.
type gauge uint8

const (
	running     gauge = iota
	waiting           // admitted and not running
	kvUsage           // share of the KV cache in use
	blocks            // KV blocks there are
	blockTokens       // tokens in one
	kvTokens          // tokens the KV cache holds
	cacheConfig       // blocks and their size, as labels
	adapters          // LoRA adapters, as labels; the value is the time
	gauges
)

// series is one family of a metrics page. When a name was replaced the table
// lists both, and what a family of lower rank says counts only where there is
// none of a higher.
type series struct {
	name string // without the page's prefix
	is   gauge
	rank uint8
}

// page is the metrics page of a dialect: every name begins with prefix.
type page struct {
	prefix string
	series []series
	wants  fleet.Known // what is missed when it is not there
	// The labels of cacheConfig.
	blocksLabel, blockLabel string
	// rankLabel is the label of samples of one data-parallel rank among several.
	rankLabel string
	// skip tells samples that repeat what others say.
	skip func(labels []byte) bool
}

var vllmPage = page{
	prefix: "vllm:", wants: fleet.AllGauges, blocksLabel: "num_gpu_blocks", blockLabel: "block_size", rankLabel: "engine",
	series: []series{
		{"num_requests_running", running, 1},
		{"num_requests_waiting", waiting, 1},
		{"kv_cache_usage_perc", kvUsage, 1},
		{"gpu_cache_usage_perc", kvUsage, 0}, // the name until 2025
		{"cache_config_info", cacheConfig, 1},
		{"lora_requests_info", adapters, 1},
	},
}

var sglangPage = page{
	prefix: "sglang:", wants: fleet.AllGauges, blocksLabel: "num_pages", blockLabel: "page_size", rankLabel: "dp_rank", skip: otherRank,
	series: []series{
		{"num_running_reqs", running, 1},
		{"num_queue_reqs", waiting, 1},
		{"token_usage", kvUsage, 1},
		{"full_token_usage", kvUsage, 0}, // of models with several kinds of attention
		{"max_total_num_tokens", kvTokens, 1},
		{"page_size", blockTokens, 1},
		{"num_pages", blocks, 1},
		{"cache_config_info", cacheConfig, 1},
	},
}

var trtllmPage = page{
	prefix: "trtllm", wants: fleet.AllGauges,
	series: []series{
		{"_num_requests_running", running, 1},
		{"_num_requests_waiting", waiting, 1},
		{"_kv_cache_utilization", kvUsage, 1},
		{"_kv_cache_max_blocks", blocks, 1},
		{"_kv_cache_tokens_per_block", blockTokens, 1},
		// With the separator that the first releases and Dynamo write.
		{":num_requests_running", running, 0},
		{":num_requests_waiting", waiting, 0},
		{":kv_cache_utilization", kvUsage, 0},
		{":kv_cache_max_blocks", blocks, 0},
		{":kv_cache_tokens_per_block", blockTokens, 0},
	},
}

// llamacppPage is small: newer releases no longer tell how full the cache is.
var llamacppPage = page{
	prefix: "llamacpp:", wants: fleet.KnownRunning | fleet.KnownWaiting,
	series: []series{
		{"requests_processing", running, 1},
		{"requests_deferred", waiting, 1},
		{"kv_cache_usage_ratio", kvUsage, 1},
	},
}

// otherRank reports whether a sample of SGLang is a share or a repetition of
// another: ranks of one tensor or pipeline group all say the same, and with
// priorities each has its part of the total.
func otherRank(labels []byte) bool {
	return not(labels, "tp_rank", "0") || not(labels, "pp_rank", "0") || not(labels, "priority", "")
}

// not reports whether a label is there with another value.
func not(labels []byte, name, value string) bool {
	v := label(labels, name)
	return v != nil && string(v) != value
}

// label returns the value of a label that holds no escapes; nil when it is not
// there.
func label(labels []byte, name string) []byte {
	for at := 0; ; {
		n := bytes.Index(labels[at:], []byte(name))
		if n < 0 {
			return nil
		}
		at += n
		rest := labels[at+len(name):]
		if (at == 0 || labels[at-1] == ',' || labels[at-1] == ' ') && len(rest) > 2 && rest[0] == '=' && rest[1] == '"' {
			if end := bytes.IndexByte(rest[2:], '"'); end >= 0 {
				return rest[2 : 2+end]
			}
			return nil
		}
		at += len(name)
	}
}
