// Package exchange is what engines must know of each other before KV moves
// between them: who is there, in which life, and what its cache looks like;
// whether two of them can exchange at all, and if not, why; the tickets of
// transfers; and how fast the links between them have proved to be.
package exchange

import (
	"errors"
	"fmt"
	"strings"
)

// Instance is what an engine tells of itself. Fields that are not told are zero:
// nothing is concluded from them, and a verdict says so.
type Instance struct {
	ID string `json:"id"`
	// Incarnation is a nonce, new with every process: block ids of one
	// incarnation mean nothing in another, even behind the same address.
	Incarnation string `json:"incarnation"`
	// Started orders incarnations: milliseconds since 1970, by the instance's own
	// clock. Of two that tell it the one begun earlier never replaces the other.
	Started       int64     `json:"started,omitempty"`
	Role          string    `json:"role"`             // prefill, decode or both
	Engine        string    `json:"engine,omitempty"` // vllm, sglang, …
	EngineVersion string    `json:"engineVersion,omitempty"`
	Weights       Weights   `json:"weights"`
	Cache         Cache     `json:"cache"`
	Parallel      Parallel  `json:"parallel"`
	Connector     Connector `json:"connector"`
	Ranks         []Rank    `json:"ranks,omitempty"`
	// Domain is where it stands in the network: a rack, a fabric. Links are
	// measured between domains; equal names mean equally near.
	Domain string `json:"domain,omitempty"`
	Tiers  []Tier `json:"tiers,omitempty"`
}

// Weights say which weights an instance serves.
type Weights struct {
	Model    string `json:"model"`
	Revision string `json:"revision,omitempty"`
	Digest   string `json:"digest,omitempty"` // of the weights: it decides where both tell it
	DType    string `json:"dtype,omitempty"`
	// Speculative is the drafting configuration, "none" where there is none: the
	// layers of a draft have KV too.
	Speculative string `json:"speculative,omitempty"`
}

// Cache is the shape of an instance's KV.
type Cache struct {
	DType       string  `json:"dtype,omitempty"`
	Layers      int     `json:"layers,omitempty"`
	KVHeads     int     `json:"kvHeads,omitempty"` // of the model, over all ranks
	HeadSize    int     `json:"headSize,omitempty"`
	MLA         bool    `json:"mla,omitempty"`         // one latent per token, whole on every rank
	Hybrid      bool    `json:"hybrid,omitempty"`      // layers of several kinds: windows, state spaces
	BlockTokens int     `json:"blockTokens,omitempty"` // SGLang's page size
	BlockBytes  []int64 `json:"blockBytes,omitempty"`  // of a block per layer, by group of layers
	Layout      string  `json:"layout,omitempty"`      // HND or NHD
	Attention   string  `json:"attention,omitempty"`   // the backend's name
}

// Parallel is how an instance is spread over accelerators; 0 is not told.
type Parallel struct {
	TP int `json:"tp,omitempty"`
	PP int `json:"pp,omitempty"`
	DP int `json:"dp,omitempty"`
	CP int `json:"cp,omitempty"`
}

// Connector is what moves the KV.
type Connector struct {
	Name    string `json:"name"` // nixl, mooncake, moriio, … in any spelling of its engine
	Version string `json:"version,omitempty"`
	Mode    string `json:"mode,omitempty"` // pull or push
	// CompatHash is the engine's own; it says no, but not why.
	CompatHash string `json:"compatHash,omitempty"`
	// PermuteLocalKV is vLLM's enable_permute_local_kv.
	PermuteLocalKV bool `json:"permuteLocalKV,omitempty"`
	// BlockLeaseMs is how long the engine keeps the blocks of a finished prefill
	// that nobody has pulled. 0 is not told.
	BlockLeaseMs int64 `json:"blockLeaseMs,omitempty"`
}

// Rank is one process of an instance, and where its metadata is asked for.
type Rank struct {
	DP   int    `json:"dp"`
	PP   int    `json:"pp"`
	TP   int    `json:"tp"`
	CP   int    `json:"cp"`
	Host string `json:"host"`
	Port int    `json:"port"`
}

// Tier is a place where an instance keeps KV.
type Tier struct {
	Name  string `json:"name"` // gpu, cpu, disk or shared
	Bytes int64  `json:"bytes,omitempty"`
}

// What an instance may tell at most.
const (
	MaxName  = 256  // bytes of any text
	MaxRanks = 4096 // of one instance
	maxTiers = 16
	maxSize  = 1 << 20 // of any count
)

// Prefills reports whether the instance computes prompts for others.
func (i *Instance) Prefills() bool { return i.Role == "prefill" || i.Role == "both" }

// Decodes reports whether the instance answers from KV of others.
func (i *Instance) Decodes() bool { return i.Role == "decode" || i.Role == "both" }

// family is the connector's name without the spelling of its engine:
// "NixlConnector" and "nixl" are one.
func (i *Instance) family() string {
	name := strings.ToLower(i.Connector.Name)
	for _, known := range families {
		if strings.Contains(name, known) {
			return known
		}
	}
	return name
}

// families are connectors whose peers refuse all others, by a part of the name
// that every spelling has.
var families = []string{"nixl", "mooncake", "moriio", "p2pnccl", "lmcache", "ascend"}

// Validate returns what is wrong with i, field by field.
func (i *Instance) Validate() []error {
	errs := i.texts()
	switch i.Role {
	case "prefill", "decode", "both":
	default:
		errs = append(errs, fmt.Errorf("role: must be prefill, decode or both, is %q", i.Role))
	}
	for _, n := range i.counts() {
		if n.value < 0 || n.value > n.most {
			errs = append(errs, fmt.Errorf("%s: must be between 0 (not told) and %d, is %d", n.field, n.most, n.value))
		}
	}
	if len(i.Ranks) > MaxRanks {
		return append(errs, fmt.Errorf("ranks: at most %d, are %d", MaxRanks, len(i.Ranks)))
	}
	if len(i.Tiers) > maxTiers || len(i.Cache.BlockBytes) > maxTiers {
		return append(errs, fmt.Errorf("tiers, cache.blockBytes: at most %d of each", maxTiers))
	}
	return append(errs, i.parts()...)
}

// texts checks the texts of i: those that are needed, and the length of all.
func (i *Instance) texts() []error {
	var errs []error
	for _, t := range []struct {
		field, value string
		needed       bool
	}{
		{"id", i.ID, true},
		{"incarnation", i.Incarnation, true},
		{"weights.model", i.Weights.Model, true},
		{"connector.name", i.Connector.Name, true},
		{"engine", i.Engine, false},
		{"engineVersion", i.EngineVersion, false},
		{"weights.revision", i.Weights.Revision, false},
		{"weights.digest", i.Weights.Digest, false},
		{"weights.dtype", i.Weights.DType, false},
		{"weights.speculative", i.Weights.Speculative, false},
		{"cache.dtype", i.Cache.DType, false},
		{"cache.layout", i.Cache.Layout, false},
		{"cache.attention", i.Cache.Attention, false},
		{"connector.version", i.Connector.Version, false},
		{"connector.mode", i.Connector.Mode, false},
		{"connector.compatHash", i.Connector.CompatHash, false},
		{"domain", i.Domain, false},
	} {
		if err := Text(t.value, t.needed); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t.field, err))
		}
	}
	return errs
}

// Text checks a text from outside: a name that is printed, compared and kept.
func Text(s string, needed bool) error {
	switch {
	case needed && s == "":
		return errors.New("is missing")
	case len(s) > MaxName:
		return fmt.Errorf("at most %d bytes, has %d", MaxName, len(s))
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }):
		return fmt.Errorf("holds control characters: %q", s)
	}
	return nil
}

// count is a number of an instance, and the most it may be.
type count struct {
	field string
	value int64
	most  int64
}

func (i *Instance) counts() []count {
	c, p := i.Cache, i.Parallel
	return []count{
		{"started", i.Started, 1 << 53},
		{"cache.layers", int64(c.Layers), maxSize},
		{"cache.kvHeads", int64(c.KVHeads), maxSize},
		{"cache.headSize", int64(c.HeadSize), maxSize},
		{"cache.blockTokens", int64(c.BlockTokens), maxSize},
		{"parallel.tp", int64(p.TP), MaxRanks},
		{"parallel.pp", int64(p.PP), MaxRanks},
		{"parallel.dp", int64(p.DP), MaxRanks},
		{"parallel.cp", int64(p.CP), MaxRanks},
		{"connector.blockLeaseMs", i.Connector.BlockLeaseMs, 3_600_000},
	}
}

// parts checks ranks, tiers and sizes of blocks.
func (i *Instance) parts() []error {
	var errs []error
	for n, r := range i.Ranks {
		at := fmt.Sprintf("ranks[%d]", n)
		if err := Text(r.Host, true); err != nil {
			errs = append(errs, fmt.Errorf("%s.host: %w", at, err))
		}
		if r.Port < 1 || r.Port > 65535 {
			errs = append(errs, fmt.Errorf("%s.port: must be between 1 and 65535, is %d", at, r.Port))
		}
		if min(r.DP, r.PP, r.TP, r.CP) < 0 || max(r.DP, r.PP, r.TP, r.CP) >= MaxRanks {
			errs = append(errs, fmt.Errorf("%s: ranks must be between 0 and %d", at, MaxRanks-1))
		}
	}
	for n, t := range i.Tiers {
		if err := Text(t.Name, true); err != nil || t.Bytes < 0 {
			errs = append(errs, fmt.Errorf("tiers[%d]: wants a name and bytes that are not negative", n))
		}
	}
	for n, b := range i.Cache.BlockBytes {
		if b < 0 {
			errs = append(errs, fmt.Errorf("cache.blockBytes[%d]: must not be negative, is %d", n, b))
		}
	}
	return errs
}

// TokenBytes returns the KV of one token, over all ranks; 0 when too little was
// told.
func (i *Instance) TokenBytes() float64 {
	dtype := fold(i.Cache.DType)
	if dtype == "" || dtype == "auto" {
		dtype = fold(i.Weights.DType)
	}
	size := elementBytes[dtype]
	if i.Cache.MLA { // one latent, in the place of keys and values
		return float64(i.Cache.Layers*i.Cache.HeadSize) * size
	}
	const keysAndValues = 2
	return float64(keysAndValues*i.Cache.Layers*i.Cache.KVHeads*i.Cache.HeadSize) * size
}

// elementBytes is the size of an element by its type.
var elementBytes = map[string]float64{"bfloat16": 2, "float16": 2, "float32": 4, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "int8": 1}
