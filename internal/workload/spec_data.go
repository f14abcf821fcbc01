package workload

import (
	"math"
	"strconv"
)

func index(i int) string { return "[" + strconv.Itoa(i) + "]" }

// Lengths that inference-perf takes where its file gives none.
const (
	defaultTurns     = 10
	defaultTurnInput = 512
	defaultTurnOut   = 256
	defaultShared    = 8359
	defaultModelLen  = 225_000
)

func parseData(root *object) DataSpec {
	var d DataSpec
	o := root.object("data")
	if o == nil {
		if root.fields["data"] == nil {
			root.p.add("data", "missing; give data.type random, shared_prefix or conversation_replay")
		}
		return d
	}
	kind := o.str("", "type")
	in, out := parseDist(o, "input_distribution"), parseDist(o, "output_distribution")
	shared, conv := o.object("shared_prefix"), o.object("conversation_replay")
	switch kind {
	case "random", "synthetic":
		if in == nil {
			o.p.add(o.at("input_distribution"), "missing")
		}
		if out == nil {
			o.p.add(o.at("output_distribution"), "missing")
		}
		if in != nil && out != nil {
			d.Random = &Random{Input: *in, Output: *out}
		}
	case "shared_prefix":
		d.SharedPrefix, d.Seed = parseSharedPrefix(o, shared)
	case "conversation_replay":
		d.Conversations, d.Seed = parseConversations(o, conv)
	default:
		o.p.add(o.at("type"), "want random, shared_prefix or conversation_replay, got %q", kind)
	}
	stray := func(section, owner string, present bool) {
		if present && kind != owner {
			o.p.add(o.at(section), "belongs to type %s, not %q", owner, kind)
		}
	}
	stray("shared_prefix", "shared_prefix", shared != nil)
	stray("conversation_replay", "conversation_replay", conv != nil)
	o.refuse("prompts are generated", "path", "trace", "multimodal", "otel_trace_replay", "weka_trace_replay", "sharegpt4video")
	o.close()
	return d
}

func parseSharedPrefix(data, o *object) (*SharedPrefix, uint64) {
	if o == nil {
		data.p.add(data.at("shared_prefix"), "missing")
		return nil, 0
	}
	w := &SharedPrefix{
		Groups:          o.int(10, 1, 1<<20, "num_unique_system_prompts", "num_groups"),
		PromptsPerGroup: o.int(10, 1, 1<<20, "num_users_per_system_prompt", "num_prompts_per_group"),
		System:          lengthOr(o, 100, "system_prompt_len"),
		Question:        lengthOr(o, 50, "question_len"),
		Output:          lengthOr(o, 50, "output_len"),
		MultiTurn:       o.bool(false, "enable_multi_turn_chat"),
	}
	if w.Groups*w.PromptsPerGroup > 1<<20 {
		o.p.add(o.path, "want at most %d prompts in all groups, got %d", 1<<20, w.Groups*w.PromptsPerGroup)
	}
	w.Question = distOr(o, w.Question, "question_distribution")
	w.Output = distOr(o, w.Output, "output_distribution")
	seed := uint64(o.int(0, 0, math.MaxInt64, "seed"))
	o.refuse("prompts are text", "multimodal")
	o.close()
	return w, seed
}

func parseConversations(data, o *object) (*Conversations, uint64) {
	if o == nil {
		data.p.add(data.at("conversation_replay"), "missing")
		return nil, 0
	}
	w := &Conversations{
		Slots:         o.int(200, 1, 1<<20, "num_conversations"),
		SharedSystem:  o.int(defaultShared, 0, maxTokens, "shared_system_prompt_len"),
		DynamicSystem: distOr(o, Fixed(0), "dynamic_system_prompt_len"),
		Turns:         distOr(o, Fixed(defaultTurns), "turns_per_conversation"),
		Input:         distOr(o, Fixed(defaultTurnInput), "input_tokens_per_turn"),
		Output:        distOr(o, Fixed(defaultTurnOut), "output_tokens_per_turn"),
		ToolLatency:   distOr(o, Fixed(0), "tool_call_latency_sec"),
		MaxModelLen:   o.int(defaultModelLen, 1, maxTokens, "max_model_len"),
	}
	seed := uint64(o.int(0, 0, math.MaxInt64, "seed"))
	if m := w.MaxModelLen; m > 0 && w.SharedSystem+w.Output.ceiling()+1 > m {
		o.p.add(o.at("max_model_len"), "%d leaves no room for a question after %d shared tokens and an answer of up to %d",
			m, w.SharedSystem, w.Output.ceiling())
	}
	o.close()
	return w, seed
}

// lengthOr reads a length that may be a number or a distribution.
func lengthOr(o *object, def int, name string) Dist {
	if _, isMap := o.fields[name].(map[string]any); isMap {
		return distOr(o, Fixed(def), name)
	}
	return Fixed(o.int(def, 0, maxTokens, name))
}

func distOr(o *object, def Dist, name string) Dist {
	if d := parseDist(o, name); d != nil {
		return *d
	}
	return def
}

// parseDist reads a distribution, or returns nil when it is absent or wrong. A
// mean outside min..max is refused: the defaults of min and max (10 and 1024)
// would otherwise cut a length silently.
func parseDist(parent *object, name string) *Dist {
	o := parent.object(name)
	if o == nil {
		return nil
	}
	before := len(o.p.list)
	d := Dist{Kind: DistKind(o.choice("normal", "type", "normal", "lognormal", "uniform", "fixed"))}
	d.Min = o.int(10, 0, maxTokens, "min")
	d.Max = o.int(1024, 0, maxTokens, "max")
	d.Mean = o.float(512, 0, maxTokens, "mean")
	d.Std = o.float(200, 0, maxTokens, "std_dev", "std")
	if o.fields["variance"] != nil {
		d.Std = math.Sqrt(o.float(0, 0, maxTokens*maxTokens, "variance"))
		if o.fields["std_dev"] != nil || o.fields["std"] != nil {
			o.p.add(o.at("variance"), "give either std_dev or variance")
		}
	}
	o.get("variance")
	o.refuse("use normal, lognormal, uniform or fixed", "skew")
	o.int(1, 1, math.MaxInt32, "total_count") // lengths are drawn for as many requests as are sent
	o.close()
	switch d.Kind {
	case DistFixed:
		d.Min, d.Max, d.Std = int(d.Mean), int(math.Ceil(d.Mean)), 0
	case DistUniform:
		d.Mean = float64(d.Min+d.Max) / 2
	}
	if d.Min > d.Max {
		o.p.add(o.at("min"), "%d is above max %d", d.Min, d.Max)
	} else if d.Mean < float64(d.Min) || d.Mean > float64(d.Max) {
		o.p.add(o.at("mean"), "%v is outside min..max %d..%d", d.Mean, d.Min, d.Max)
	}
	if d.Kind == DistLogNormal && d.Mean <= 0 {
		o.p.add(o.at("mean"), "a lognormal needs a mean above 0")
	}
	if len(o.p.list) > before {
		return nil
	}
	return &d
}
