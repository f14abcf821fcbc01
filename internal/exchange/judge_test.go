package exchange

import (
	"slices"
	"strings"
	"testing"
)

// vllm is an instance that tells everything.
func vllm(id, role string) *Instance {
	return &Instance{
		ID: id, Incarnation: id + "-1", Role: role, Engine: "vllm", EngineVersion: "0.21.0",
		Weights:   Weights{Model: "Qwen/Qwen3-32B", Revision: "9216db5", DType: "bfloat16", Speculative: "none"},
		Cache:     Cache{DType: "bfloat16", Layers: 64, KVHeads: 8, HeadSize: 128, BlockTokens: 16, Layout: "HND", Attention: "FLASH_ATTN"},
		Parallel:  Parallel{TP: 2, PP: 1, DP: 1, CP: 1},
		Connector: Connector{Name: "NixlConnector", Version: "12", Mode: "pull"},
		Domain:    "rack-1",
	}
}

// sglang is one of the other make.
func sglang(id, role string) *Instance {
	i := vllm(id, role)
	i.Engine, i.EngineVersion = "sglang", "0.5.8"
	i.Connector = Connector{Name: "mooncake", Version: "0.3.7", Mode: "push"}
	i.Cache.BlockTokens, i.Cache.Layout = 64, "NHD"
	return i
}

func hashes(p, d *Instance, hp, hd string) { p.Connector.CompatHash, d.Connector.CompatHash = hp, hd }

// pairs are registrations that differ, and what must be said of them: the fields
// of all reasons, and words that one of them holds.
var pairs = []struct {
	name       string
	engine     func(id, role string) *Instance
	change     func(p, d *Instance)
	hard, soft string
	says       string
}{
	{"equal", vllm, func(_, _ *Instance) {}, "", "", ""},
	{"sglang: equal", sglang, func(_, _ *Instance) {}, "", "", ""},
	{"another model", vllm, func(_, d *Instance) { d.Weights.Model = "Qwen/Qwen3-8B"; d.Cache.Layers = 36 }, "weights.model cache.layers", "", "models differ"},
	{"another revision", vllm, func(_, d *Instance) { d.Weights.Revision = "1a2b3c4" }, "weights.revision", "", "finish the roll-out"},
	{"revision not told", vllm, func(p, _ *Instance) { p.Weights.Revision = "" }, "", "weights.revision", "no hash covers it"},
	{"another digest behind one revision", vllm, func(p, d *Instance) { p.Weights.Digest, d.Weights.Digest = "sha256:a", "sha256:b" }, "weights.digest", "", "same weights"},
	{"one digest, two names, vllm", vllm, func(p, d *Instance) {
		p.Weights.Digest, d.Weights.Digest, d.Weights.Model = "sha256:a", "sha256:a", "/models/qwen"
	}, "weights.model", "", "same --model"},
	{"one digest, two names, sglang", sglang, func(p, d *Instance) {
		p.Weights.Digest, d.Weights.Digest, d.Weights.Model = "sha256:a", "sha256:a", "/models/qwen"
	}, "", "weights.model", "same weights"},
	{"another dtype", vllm, func(_, d *Instance) { d.Weights.DType = "float16" }, "weights.dtype", "", "--dtype"},
	{"one dtype in two spellings", vllm, func(_, d *Instance) { d.Weights.DType, d.Cache.DType = "torch.bfloat16", "BF16" }, "", "", ""},
	{"another cache dtype", vllm, func(_, d *Instance) { d.Cache.DType = "fp8_e4m3" }, "cache.dtype", "", "--kv-cache-dtype"},
	{"cache dtype not told", vllm, func(p, d *Instance) { p.Cache.DType, d.Cache.DType = "", "" }, "", "cache.dtype", "register cache.dtype"},
	{"drafting on one side", vllm, func(_, d *Instance) { d.Weights.Speculative = "eagle3" }, "weights.speculative", "", "KV of their own"},
	{"another engine", vllm, func(_, d *Instance) { d.Engine = "sglang" }, "engine", "", "pair instances of one engine"},
	{"another vllm version", vllm, func(_, d *Instance) { d.EngineVersion = "0.21.1" }, "engineVersion", "", "roll-out"},
	{"another vllm version, one hash", vllm, func(p, d *Instance) { d.EngineVersion = "0.21.1"; hashes(p, d, "h", "h") }, "", "engineVersion", "hashes agree"},
	{"another sglang patch", sglang, func(_, d *Instance) { d.EngineVersion = "0.5.9" }, "", "engineVersion", "patch versions"},
	{"another sglang minor", sglang, func(_, d *Instance) { d.EngineVersion = "0.6.0" }, "engineVersion", "", "minor version"},
	{"another connector", vllm, func(_, d *Instance) { d.Connector.Name = "MooncakeConnector" }, "connector.name", "", "different protocols"},
	{"one connector in two spellings", vllm, func(_, d *Instance) { d.Connector.Name = "nixl" }, "", "", ""},
	{"another connector version", vllm, func(_, d *Instance) { d.Connector.Version = "11" }, "connector.version", "", "refuse others"},
	{"push and pull", vllm, func(_, d *Instance) { d.Connector.Mode = "push" }, "connector.mode", "", "written to"},
	{"another attention backend", vllm, func(_, d *Instance) { d.Cache.Attention = "FLASHINFER" }, "cache.attention", "", "backend"},
	{"hybrid on one side", vllm, func(_, d *Instance) { d.Cache.Hybrid = true }, "cache.hybrid", "", "hybrid KV cache manager"},
	{"hashes differ, nothing else", vllm, func(p, d *Instance) { hashes(p, d, "aa", "bb") }, "connector.compatHash", "", "nothing that was told does"},
	{"hashes differ, and so does a dtype", vllm, func(p, d *Instance) { hashes(p, d, "aa", "bb"); d.Cache.DType = "fp8_e4m3" }, "cache.dtype", "", ""},
	{"little told, one hash", vllm, func(p, d *Instance) {
		hashes(p, d, "aa", "aa")
		p.EngineVersion, p.Cache.Attention, p.Connector.Version, d.Cache.DType = "", "", "", ""
	}, "", "", ""},
	{"little told, no hash", vllm, func(p, d *Instance) {
		p.EngineVersion, p.Connector.Version, d.Cache.DType = "", "", ""
	}, "", "engineVersion connector.version cache.dtype", "before a request finds out"},
	{"TP 2 to 4", vllm, func(_, d *Instance) { d.Parallel.TP = 4 }, "", "parallel.tp", "several peers"},
	{"TP 4 to 2, heads whole", vllm, func(p, _ *Instance) { p.Parallel.TP = 4 }, "", "parallel.tp", "several peers"},
	{"TP 8 to 2, a head each", vllm, func(p, _ *Instance) { p.Parallel.TP = 8 }, "", "parallel.tp", "older vLLM"},
	{"TP 16 to 2, heads copied", vllm, func(p, _ *Instance) { p.Parallel.TP = 16 }, "parallel.tp", "", "8)"},
	{"TP 16 to 2, latents", vllm, func(p, d *Instance) {
		p.Parallel.TP, p.Cache.MLA, d.Cache.MLA, p.Cache.KVHeads, d.Cache.KVHeads = 16, true, true, 1, 1
	}, "", "parallel.tp", ""},
	{"TP 2 to 3", vllm, func(_, d *Instance) { d.Parallel.TP = 3 }, "parallel.tp", "", "divides"},
	{"block 16 to 64", vllm, func(_, d *Instance) { d.Cache.BlockTokens = 64 }, "", "cache.blockTokens", "cut on arrival"},
	{"block 64 to 16", vllm, func(p, _ *Instance) { p.Cache.BlockTokens = 64 }, "cache.blockTokens", "", "multiple"},
	{"block 16 to 64, hybrid", vllm, func(p, d *Instance) { p.Cache.Hybrid, d.Cache.Hybrid, d.Cache.BlockTokens = true, true, 64 }, "cache.blockTokens", "", "same --block-size"},
	{"sglang: page size", sglang, func(_, d *Instance) { d.Cache.BlockTokens = 1 }, "cache.blockTokens", "", "--page-size"},
	{"sglang: cache dtype", sglang, func(_, d *Instance) { d.Cache.DType = "fp8_e5m2" }, "cache.dtype", "", "--kv-cache-dtype"},
	{"sglang: decode stages", sglang, func(p, d *Instance) { p.Parallel.PP, d.Parallel.PP = 4, 2 }, "parallel.pp", "", "PP 1"},
	{"sglang: decode splits context", sglang, func(_, d *Instance) { d.Parallel.CP = 2 }, "parallel.cp", "", "cannot split context"},
	{"layouts differ", vllm, func(_, d *Instance) { d.Cache.Layout = "NHD" }, "cache.layout", "", "enable_permute_local_kv"},
	{"layouts differ, permuted", vllm, func(_, d *Instance) { d.Cache.Layout, d.Connector.PermuteLocalKV = "NHD", true }, "", "cache.layout", "costs time"},
	{"layouts differ the other way", vllm, func(p, d *Instance) { p.Cache.Layout, d.Connector.PermuteLocalKV = "NHD", true }, "cache.layout", "", "HND for prefill"},
	{"NHD both, TP 2 to 4", vllm, func(p, d *Instance) { p.Cache.Layout, d.Cache.Layout, d.Parallel.TP = "NHD", "NHD", 4 }, "cache.layout", "parallel.tp", "VLLM_KV_CACHE_LAYOUT"},
	{"DP 1 to 8", vllm, func(_, d *Instance) { d.Parallel.DP = 8 }, "", "parallel.dp", "rank with each request"},
	{"racks differ", vllm, func(_, d *Instance) { d.Domain = "rack-2" }, "", "domain", "slower"},
	{"wrong way round", vllm, func(p, d *Instance) { p.Role, d.Role = "decode", "prefill" }, "role", "", "other way round"},
	{"roll-out of everything", vllm, func(_, d *Instance) {
		d.EngineVersion, d.Connector.Version, d.Weights.Revision, d.Parallel.TP = "0.22.0", "13", "ffff", 4
	}, "weights.revision engineVersion connector.version", "parallel.tp", ""},
}

func TestJudge(t *testing.T) {
	for _, c := range pairs {
		t.Run(c.name, func(t *testing.T) {
			p, d := c.engine("p", "prefill"), c.engine("d", "decode")
			c.change(p, d)
			v := Judge(p, d)
			if hard := fields(v.Hard); hard != c.hard {
				t.Errorf("forbidden by %q, want %q", hard, c.hard)
			}
			if soft := fields(v.Soft); soft != c.soft {
				t.Errorf("noted %q, want %q", soft, c.soft)
			}
			if v.OK != (c.hard == "") {
				t.Errorf("ok is %v", v.OK)
			}
			all, said := slices.Concat(v.Hard, v.Soft), c.says == ""
			for _, r := range all {
				said = said || strings.Contains(r.String(), c.says)
				if r.Why == "" || r.Do == "" || (r.Prefill == r.Decode && r.Prefill != "" && !strings.HasPrefix(r.Field, "cache.layout")) {
					t.Errorf("%v does not tell why, what to do, or two values", r)
				}
			}
			if !said {
				t.Errorf("none of %v says %q", all, c.says)
			}
		})
	}
}

func fields(rs []Reason) string {
	var names []string
	for _, r := range rs {
		names = append(names, r.Field)
	}
	return strings.Join(names, " ")
}

func TestJudgeOneInstance(t *testing.T) {
	i := vllm("a", "both")
	if v := Judge(i, i); v.OK || fields(v.Hard) != "id" {
		t.Errorf("an instance with itself: %+v", v)
	}
}

func TestInstanceValidate(t *testing.T) {
	if errs := vllm("a", "both").Validate(); len(errs) > 0 {
		t.Errorf("a good one: %v", errs)
	}
	for _, c := range []struct {
		want   string
		change func(*Instance)
	}{
		{"id: is missing", func(i *Instance) { i.ID = "" }},
		{"incarnation: is missing", func(i *Instance) { i.Incarnation = "" }},
		{"role: must be", func(i *Instance) { i.Role = "chef" }},
		{"weights.model: is missing", func(i *Instance) { i.Weights.Model = "" }},
		{"domain: holds control characters", func(i *Instance) { i.Domain = "a\nb" }},
		{"engine: at most 256 bytes", func(i *Instance) { i.Engine = strings.Repeat("x", 257) }},
		{"cache.blockTokens: must be between", func(i *Instance) { i.Cache.BlockTokens = -1 }},
		{"ranks[0].port", func(i *Instance) { i.Ranks = []Rank{{Host: "10.0.0.1"}} }},
		{"ranks[0].host", func(i *Instance) { i.Ranks = []Rank{{Port: 5600}} }},
		{"ranks[0]: ranks must be", func(i *Instance) { i.Ranks = []Rank{{Host: "h", Port: 1, TP: -1}} }},
		{"ranks: at most", func(i *Instance) { i.Ranks = make([]Rank, MaxRanks+1) }},
		{"tiers[0]", func(i *Instance) { i.Tiers = []Tier{{Bytes: 1}} }},
		{"cache.blockBytes[0]", func(i *Instance) { i.Cache.BlockBytes = []int64{-1} }},
	} {
		i := vllm("a", "both")
		c.change(i)
		errs := i.Validate()
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), c.want) {
			t.Errorf("%v, want one with %q", errs, c.want)
		}
	}
}

func BenchmarkJudge(b *testing.B) {
	p, d := vllm("p", "prefill"), vllm("d", "decode")
	b.ReportAllocs()
	for b.Loop() {
		Judge(p, d)
	}
}
