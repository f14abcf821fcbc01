package exchange

import (
	"fmt"
	"strconv"
	"strings"
)

// Verdict says whether KV of one instance can be used by another. It is OK when
// nothing forbids it; what makes it slower or could not be checked is soft.
type Verdict struct {
	OK   bool     `json:"ok"`
	Hard []Reason `json:"hard,omitempty"`
	Soft []Reason `json:"soft,omitempty"`
}

// Reason is one finding: the field, what either side told ("" for nothing), why
// it matters, and what to do.
type Reason struct {
	Field   string `json:"field"`
	Prefill string `json:"prefill"`
	Decode  string `json:"decode"`
	Why     string `json:"why"`
	Do      string `json:"do"`
}

// String tells a reason in one line.
func (r Reason) String() string {
	return fmt.Sprintf("%s: prefill %q, decode %q: %s; %s", r.Field, r.Prefill, r.Decode, r.Why, r.Do)
}

// Judge says whether d can decode from what p has computed. Its rules are those
// that the engines themselves apply on first contact, when a request is already
// waiting: vLLM's compatibility hash and what its NIXL connector checks beside
// it, and SGLang's checks of page size, cache dtype and ranks. An engine's own
// hash stands above them: equal hashes excuse what is not told, unequal ones
// forbid even when nothing told differs.
func Judge(p, d *Instance) Verdict {
	j := judgment{p: p, d: d, sglang: strings.EqualFold(p.Engine, "sglang") || strings.EqualFold(d.Engine, "sglang")}
	hp, hd := p.Connector.CompatHash, d.Connector.CompatHash
	j.vouched = hp != "" && hp == hd
	j.roles()
	j.weights()
	j.engines()
	j.connectors()
	j.cache()
	j.blocks()
	j.layout()
	j.tensor()
	j.ranks()
	j.places()
	if hp != "" && hd != "" && hp != hd && len(j.v.Hard) == 0 {
		j.no("connector.compatHash", hp, hd, "the engines' own hashes differ; nothing that was told does",
			"compare the engines' versions and arguments, above all those that are not registered")
	}
	j.v.OK = len(j.v.Hard) == 0
	return j.v
}

// judgment is a verdict in the making.
type judgment struct {
	p, d    *Instance
	sglang  bool
	vouched bool // the engines' own hashes agree
	v       Verdict
}

// no adds what forbids the pair.
func (j *judgment) no(field, p, d, why, do string) {
	j.v.Hard = append(j.v.Hard, Reason{field, p, d, why, do})
}

// but adds what the pair must know and may ignore.
func (j *judgment) but(field, p, d, why, do string) {
	j.v.Soft = append(j.v.Soft, Reason{field, p, d, why, do})
}

// equal forbids two different values, and notes a value that only one side
// tells. It reports whether both tell the same.
func (j *judgment) equal(field, p, d, why, do string) bool {
	switch {
	case p == d:
		return p != ""
	case p == "" || d == "":
		j.untold(field, p, d)
	default:
		j.no(field, p, d, why, do)
	}
	return false
}

// untold notes a value that is missing, unless the engines' hashes, which cover
// it, agree.
func (j *judgment) untold(field, p, d string) {
	if !j.vouched {
		j.but(field, p, d, "not told by both, so it cannot be checked before a request finds out", "register "+field+" on both sides")
	}
}

func (j *judgment) roles() {
	if j.p.ID == j.d.ID {
		j.no("id", j.p.ID, j.d.ID, "it is one instance", "let it answer alone: its KV is there already")
	}
	if !j.p.Prefills() || !j.d.Decodes() {
		j.no("role", j.p.Role, j.d.Role, "the pair is not a prefill and a decode", "start the engines in these roles, or name the pair the other way round")
	}
}

// weights checks that KV of one side means the same on the other. A digest
// decides over names, but for vLLM, whose hash holds the name itself.
func (j *judgment) weights() {
	p, d := j.p.Weights, j.d.Weights
	same := p.Digest != "" && p.Digest == d.Digest
	switch {
	case p.Digest != "" && d.Digest != "" && !same:
		j.no("weights.digest", p.Digest, d.Digest, "the weights differ, so KV of one is noise to the other", "load the same weights on both sides")
	case p.Model != d.Model && same && (j.vouched || !j.hashes()):
		j.but("weights.model", p.Model, d.Model, "one name each for the same weights", "nothing, or name them alike")
	case p.Model != d.Model:
		j.no("weights.model", p.Model, d.Model, "the models differ", "pair instances of one model; vLLM compares the name, so give the same --model on both sides")
	case same || p.Revision == d.Revision && p.Revision != "":
	case p.Revision == "" || d.Revision == "":
		j.but("weights.revision", p.Revision, d.Revision, "not told by both, and no hash covers it", "register weights.digest or weights.revision on both sides")
	default:
		j.no("weights.revision", p.Revision, d.Revision, "the revisions differ, so KV of one is noise to the other", "serve one revision on both sides: finish the roll-out, or pair within a revision")
	}
	j.equal("weights.dtype", fold(p.DType), fold(d.DType), "activations are computed in different precision, and the engines refuse it", "give the same --dtype on both sides")
	j.equal("weights.speculative", p.Speculative, d.Speculative, "drafting layers have KV of their own, so the caches differ", "give the same speculative configuration on both sides")
}

// hashes reports whether the pair's engines compare a hash that holds their
// version and the model's name: vLLM's NIXL connector does.
func (j *judgment) hashes() bool { return !j.sglang && j.p.family() == "nixl" }

// engines checks the engines and their versions.
func (j *judgment) engines() {
	p, d := j.p, j.d
	if !j.equal("engine", fold(p.Engine), fold(d.Engine), "engines of different make have no common protocol", "pair instances of one engine") {
		return
	}
	pv, dv := p.EngineVersion, d.EngineVersion
	switch {
	case pv == dv:
	case pv == "" || dv == "":
		j.untold("engineVersion", pv, dv)
	case j.vouched:
		j.but("engineVersion", pv, dv, "versions differ, and the engines' own hashes agree", "nothing; finish the roll-out when you can")
	case j.hashes():
		j.no("engineVersion", pv, dv, "vLLM's hash holds its version, so mixed versions refuse each other", "pair within a version while a roll-out lasts")
	case minor(pv) != minor(dv):
		j.no("engineVersion", pv, dv, "the protocol changes between minor versions without notice", "pair within a minor version while a roll-out lasts")
	default:
		j.but("engineVersion", pv, dv, "patch versions differ", "nothing; finish the roll-out when you can")
	}
}

// minor is the part of a version up to its second number.
func minor(version string) string {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// connectors checks what moves the KV.
func (j *judgment) connectors() {
	p, d := j.p.Connector, j.d.Connector
	if j.p.family() != j.d.family() {
		j.no("connector.name", p.Name, d.Name, "the connectors speak different protocols", "configure one connector on both sides")
		return
	}
	switch {
	case p.Version == d.Version:
	case p.Version == "" || d.Version == "":
		j.untold("connector.version", p.Version, d.Version)
	case j.vouched:
		j.but("connector.version", p.Version, d.Version, "versions differ, and the engines' own hashes agree", "nothing; finish the roll-out when you can")
	default:
		j.no("connector.version", p.Version, d.Version, "connectors change their messages with the version and refuse others", "pair within a version while a roll-out lasts")
	}
	j.equal("connector.mode", fold(p.Mode), fold(d.Mode), "one side waits to be read and the other to be written to", "give both the same transfer mode")
}

// cache checks the shape of a token's KV.
func (j *judgment) cache() {
	p, d := j.p.Cache, j.d.Cache
	pt, dt := fold(p.DType), fold(d.DType)
	if pt == "" && dt == "" {
		j.untold("cache.dtype", "", "")
	}
	j.equal("cache.dtype", pt, dt, "KV is not converted on the way", "give the same --kv-cache-dtype on both sides")
	j.equal("cache.layers", number(p.Layers), number(d.Layers), "the models have different depth", "pair instances of one model")
	j.equal("cache.kvHeads", number(p.KVHeads), number(d.KVHeads), "the models have different KV heads", "pair instances of one model")
	j.equal("cache.headSize", number(p.HeadSize), number(d.HeadSize), "the models have different heads", "pair instances of one model")
	if p.MLA != d.MLA {
		j.no("cache.mla", strconv.FormatBool(p.MLA), strconv.FormatBool(d.MLA), "latents are not keys and values", "use the same attention on both sides")
	}
	if p.Hybrid != d.Hybrid {
		j.no("cache.hybrid", strconv.FormatBool(p.Hybrid), strconv.FormatBool(d.Hybrid), "one side keeps layers in groups and the other does not, so block ids differ in meaning",
			"switch the hybrid KV cache manager on or off on both sides")
	}
	if !j.sglang {
		j.equal("cache.attention", fold(p.Attention), fold(d.Attention), "backends store KV differently, and vLLM's hash holds their name", "give the same attention backend on both sides")
	}
}

// blocks checks how many tokens a block holds.
func (j *judgment) blocks() {
	p, d := j.p.Cache.BlockTokens, j.d.Cache.BlockTokens
	ps, ds := number(p), number(d)
	switch {
	case p == 0 || d == 0:
		if !(j.vouched && p == d) {
			j.but("cache.blockTokens", ps, ds, "not told by both, and no hash covers it", "register cache.blockTokens on both sides")
		}
	case p == d:
	case j.sglang:
		j.no("cache.blockTokens", ps, ds, "SGLang refuses different page sizes", "give the same --page-size on both sides")
	case j.p.Cache.Hybrid || j.d.Cache.Hybrid:
		j.no("cache.blockTokens", ps, ds, "hybrid caches move block by block and cannot be cut", "give the same --block-size on both sides")
	case j.p.family() != "nixl":
		j.no("cache.blockTokens", ps, ds, "this connector moves whole blocks", "give the same --block-size on both sides")
	case d%p != 0:
		j.no("cache.blockTokens", ps, ds, "blocks are cut at the decode side, which needs a whole number of the prefill side's", "make the decode side's --block-size a multiple of the prefill side's, or equal")
	default:
		j.but("cache.blockTokens", ps, ds, "blocks are cut on arrival, which costs time", "give the same --block-size on both sides")
	}
}

// layout checks the order of heads and tokens within a block. Latents have none.
func (j *judgment) layout() {
	p, d := strings.ToUpper(j.p.Cache.Layout), strings.ToUpper(j.d.Cache.Layout)
	const field = "cache.layout"
	switch {
	case j.p.Cache.MLA && j.d.Cache.MLA, j.sglang:
	case p == "" || d == "":
		if p != d {
			j.but(field, p, d, "not told by both, and no hash covers it", "register cache.layout on both sides")
		}
	case p == d && p != "HND" && j.splits():
		j.no(field, p, d, "with different tensor parallelism heads are split, which needs heads that lie together", "set VLLM_KV_CACHE_LAYOUT=HND on both sides, or the same TP")
	case p == d:
	case p != "HND" || !j.d.Connector.PermuteLocalKV:
		j.no(field, p, d, "the decode side would read heads as tokens", "set VLLM_KV_CACHE_LAYOUT=HND on both sides, or HND for prefill and enable_permute_local_kv in the decode side's --kv-transfer-config")
	case j.d.Cache.Hybrid:
		j.no(field, p, d, "hybrid caches cannot be permuted on arrival", "set the same layout on both sides")
	default:
		j.but(field, p, d, "enable_permute_local_kv turns blocks on arrival, which costs time", "set VLLM_KV_CACHE_LAYOUT=HND on both sides")
	}
}

// splits reports whether ranks of one side hold parts of the heads of a rank of
// the other.
func (j *judgment) splits() bool {
	p, d := j.p.Parallel.TP, j.d.Parallel.TP
	return p > 0 && d > 0 && p != d && !j.p.Cache.MLA && !replicated(j.p) && !replicated(j.d)
}

// replicated reports whether heads lie on more than one rank.
func replicated(i *Instance) bool {
	return i.Cache.KVHeads > 0 && i.Parallel.TP > i.Cache.KVHeads
}

// tensor checks tensor parallelism: it may differ, within limits.
func (j *judgment) tensor() {
	p, d := j.p.Parallel.TP, j.d.Parallel.TP
	const field = "parallel.tp"
	switch {
	case p == 0 || d == 0:
		if p != d {
			j.but(field, number(p), number(d), "not told by both, and no hash covers it", "register parallel.tp on both sides")
		}
	case p == d:
	case p%d != 0 && d%p != 0:
		j.no(field, number(p), number(d), "neither divides the other, so no rank has a whole share", "choose sizes of which one divides the other")
	case p > d && !j.sglang && !j.p.Cache.MLA && replicated(j.p):
		j.no(field, number(p), number(d), fmt.Sprintf("the prefill side has more ranks than the model has KV heads (%d), and fewer decode ranks cannot gather the copies", j.p.Cache.KVHeads),
			"give decode at least as much TP as prefill, or prefill at most the number of KV heads")
	case p > d && !j.sglang && !j.p.Cache.MLA && p == j.p.Cache.KVHeads:
		j.but(field, number(p), number(d), "the prefill side has a rank for every KV head; older vLLM takes that for copies and refuses it", "try it before you rely on it, or give both sides the same TP")
	default:
		j.but(field, number(p), number(d), "ranks exchange with several peers, which costs time", "give the same TP on both sides where latency matters")
	}
}

// ranks checks the other kinds of parallelism.
func (j *judgment) ranks() {
	p, d := j.p.Parallel, j.d.Parallel
	switch {
	case p.PP == 0 || d.PP == 0 || p.PP == d.PP:
	case j.sglang && d.PP != 1:
		j.no("parallel.pp", number(p.PP), number(d.PP), "SGLang's decode stages must be as many as prefill's, or one", "give decode PP 1, or the same on both sides")
	default:
		j.but("parallel.pp", number(p.PP), number(d.PP), "a decode rank pulls layers from several stages", "nothing; equal PP needs fewer connections")
	}
	switch {
	case j.sglang && d.CP > 1:
		j.no("parallel.cp", number(p.CP), number(d.CP), "SGLang's decode cannot split context", "give decode a context parallelism of 1")
	case p.CP == 0 || d.CP == 0 || p.CP == d.CP:
	case !j.sglang && p.CP%d.CP != 0 && d.CP%p.CP != 0:
		j.no("parallel.cp", number(p.CP), number(d.CP), "neither divides the other, so no rank has a whole share", "choose sizes of which one divides the other")
	default:
		j.but("parallel.cp", number(p.CP), number(d.CP), "a decode rank pulls tokens from several ranks", "nothing; equal CP needs fewer connections")
	}
	if p.DP != d.DP && p.DP > 0 && d.DP > 0 {
		j.but("parallel.dp", number(p.DP), number(d.DP), "ranks are not paired by number", "name the prefill side's rank with each request")
	}
}

// places checks where the instances stand.
func (j *judgment) places() {
	p, d := j.p.Domain, j.d.Domain
	if p != d && p != "" && d != "" {
		j.but("domain", p, d, "KV leaves the domain, which is slower", "prefer a pair within one domain; /links has what it costs")
	}
}

// fold makes spellings of one value equal: "torch.bfloat16", "BF16" and
// "bfloat16".
func fold(s string) string {
	s = strings.TrimPrefix(strings.ToLower(s), "torch.")
	if long, ok := spellings[s]; ok {
		return long
	}
	return s
}

// spellings are short names of types and their long ones. "fp8" is not one: it
// may be either of two formats.
var spellings = map[string]string{"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32", "e4m3": "fp8_e4m3", "e5m2": "fp8_e5m2"}

// number tells a count, "" for none told.
func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}
