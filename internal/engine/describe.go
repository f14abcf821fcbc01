package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"penstock.dev/penstock/internal/fleet"
)

// Fact is a number that an engine tells of itself.
type Fact struct {
	Value  int    `json:"value,omitempty"`  // 0: it does not tell
	Source string `json:"source,omitempty"` // the path that told
}

// Description is what an engine says of itself. What it does not say is unknown,
// neither zero nor without bound.
type Description struct {
	Dialect Dialect
	Because string // what told the dialect
	Model   Model
	Version string

	MaxModelLen  Fact // longest prompt plus output, in tokens
	Blocks       Fact // KV blocks
	BlockTokens  Fact // tokens in one
	KVTokens     Fact // KV cache in tokens
	MaxSeqs      Fact // sequences that may run at once
	BudgetTokens Fact // tokens that a step may process
	TP, PP, DP   Fact // degrees of parallelism

	// Gauges are its load just now, as its metrics page tells.
	Gauges fleet.Gauges
}

// Limits returns what is known in the fleet's terms.
func (d *Description) Limits() fleet.Limits {
	return fleet.Limits{
		MaxModelLen: fleet.Tokens(d.MaxModelLen.Value), KVTokens: fleet.Tokens(d.KVTokens.Value), BlockTokens: fleet.Tokens(d.BlockTokens.Value),
		MaxSeqs: d.MaxSeqs.Value, BudgetTokens: fleet.Tokens(d.BudgetTokens.Value),
	}
}

// fact is one thing to look up on a page.
type fact uint8

const (
	factVersion fact = iota
	factLength
	factBlocks
	factBlock
	factKV
	factSeqs
	factBudget
	factTP
	factPP
	factDP
)

// about is where kinds of engines tell of themselves; of several fields for one
// fact the first that is there counts. vLLM's server_info is there only in its
// development mode.
var about = []struct {
	dialect, path string
	fields        []aboutField
}{
	{"vllm", "/version", []aboutField{{factVersion, "version"}}},
	{"vllm", "/server_info?config_format=json", []aboutField{
		{factSeqs, "vllm_config.scheduler_config.max_num_seqs"},
		{factBudget, "vllm_config.scheduler_config.max_num_batched_tokens"},
		{factTP, "vllm_config.parallel_config.tensor_parallel_size"},
		{factPP, "vllm_config.parallel_config.pipeline_parallel_size"},
		{factDP, "vllm_config.parallel_config.data_parallel_size"},
	}},
	{"sglang", "/get_server_info", sglangFields},
	{"sglang", "/server_info", sglangFields}, // its name in newer releases
	{"trtllm", "/version", []aboutField{{factVersion, "version"}}},
	{"llamacpp", "/props", []aboutField{
		{factVersion, "build_info"},
		{factLength, "default_generation_settings.n_ctx"},
		{factSeqs, "total_slots"},
	}},
	{"ollama", "/api/version", []aboutField{{factVersion, "version"}}},
}

type aboutField struct {
	is   fact
	path string // keys, and indices of lists, joined by dots
}

var sglangFields = []aboutField{
	{factVersion, "version"},
	{factLength, "context_length"},
	{factKV, "max_total_num_tokens"},
	{factKV, "internal_states.0.memory_usage.token_capacity"},
	{factBlock, "page_size"},
	{factSeqs, "max_running_requests"},
	{factSeqs, "internal_states.0.effective_max_running_requests_per_dp"},
	{factBudget, "chunked_prefill_size"},
	{factTP, "tp_size"},
	{factPP, "pp_size"},
	{factDP, "dp_size"},
}

// Describe asks an engine what it is and what it can hold. model is the one of
// interest; "" for the first base model it lists. Nothing is generated.
func (c *Client) Describe(ctx context.Context, base, model string) (Description, error) {
	found, err := c.Detect(ctx, base)
	if err != nil {
		return Description{}, err
	}
	d := Description{Dialect: found.Dialect, Because: found.Why}
	models, err := c.Models(ctx, base)
	if err != nil {
		return d, err
	}
	at := slices.IndexFunc(models, func(m Model) bool { return m.ID == model || model == "" && m.Parent == "" })
	if at < 0 {
		return d, fmt.Errorf("models of %s: there is no %q", base, model)
	}
	d.Model = models[at]
	d.take(factLength, float64(d.Model.MaxModelLen), "/v1/models")
	if d.Dialect.Metrics != "" {
		// A page that is not there tells nothing, which is what d says then.
		if r, _, _, err := c.Scrape(ctx, d.Dialect, base, nil); err == nil {
			d.Gauges = r.Gauges
			if r.Known.Has(fleet.KnownKVCapacity) {
				d.take(factBlocks, float64(r.KVBlocks), d.Dialect.Metrics)
				d.take(factBlock, float64(r.KVBlock), d.Dialect.Metrics)
				d.take(factKV, float64(r.KVBlocks)*float64(r.KVBlock), d.Dialect.Metrics)
			}
		}
	}
	for _, a := range about {
		if a.dialect == d.Dialect.Name {
			c.read(ctx, base, a.path, a.fields, &d)
		}
	}
	return d, ctx.Err()
}

// read looks fields up on a page; one that is not there or is something else
// tells nothing.
func (c *Client) read(ctx context.Context, base, path string, fields []aboutField, d *Description) {
	body, status, err := c.page(ctx, base+path)
	if err != nil || status != http.StatusOK {
		return
	}
	j := json.NewDecoder(bytes.NewReader(body))
	j.UseNumber()
	var page any
	if j.Decode(&page) != nil {
		return
	}
	path, _, _ = strings.Cut(path, "?")
	for _, f := range fields {
		switch v := lookUp(page, f.path).(type) {
		case string:
			if f.is == factVersion && d.Version == "" {
				d.Version = v
			}
		case json.Number:
			if n, err := v.Float64(); err == nil {
				d.take(f.is, n, path)
			}
		}
	}
}

// lookUp follows a path of keys and indices.
func lookUp(v any, path string) any {
	for key := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(x) {
				return nil
			}
			v = x[i]
		default:
			return nil
		}
	}
	return v
}

// take notes a number unless it is nonsense or the fact is known already.
func (d *Description) take(is fact, v float64, source string) {
	if v < 1 || v > math.MaxInt32 {
		return
	}
	if f := d.fact(is); f != nil && f.Value == 0 {
		*f = Fact{Value: int(v), Source: source}
	}
}

func (d *Description) fact(is fact) *Fact {
	switch is {
	case factLength:
		return &d.MaxModelLen
	case factBlocks:
		return &d.Blocks
	case factBlock:
		return &d.BlockTokens
	case factKV:
		return &d.KVTokens
	case factSeqs:
		return &d.MaxSeqs
	case factBudget:
		return &d.BudgetTokens
	case factTP:
		return &d.TP
	case factPP:
		return &d.PP
	case factDP:
		return &d.DP
	}
	return nil
}
