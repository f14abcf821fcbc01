package server

import (
	"bytes"
	"slices"
	"testing"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/kv"
)

// Events under sha256_cbor name blocks as anybody can who has the tokens, at every
// tier, and nothing is remembered of blocks that are gone.
func TestEventsHaveKeysThatCanBeComputed(t *testing.T) {
	for name, c := range map[string]struct{ seed, root string }{"seeded": {"42", "42"}, "unseeded": {"", kv.VLLMUnseeded}} {
		t.Run(name, func(t *testing.T) {
			o := Options{KVHash: HashCBOR, KVHashSeed: c.seed, CPUTokens: 60 * enginesim.BlockTokens, DiskTokens: 100 * enginesim.BlockTokens}
			withKV(t, o, func(r *kvRig) {
				for i := range uint32(12) {
					r.ask(i, 200, nil)
				}
				if got := r.ask(11, 200, nil); got.Usage.PromptTokensDetails.CachedTokens != 192 {
					t.Errorf("%d tokens cached", got.Usage.PromptTokensDetails.CachedTokens)
				}
				r.agree()
				h := kv.NewHasher(kv.VLLMRoot(c.root), int(enginesim.BlockTokens))
				for key := range r.tiers[kv.TierGPU] {
					chain := h.Chain(nil, r.tokens[key], nil)
					if len(chain) == 0 || hexKey(kv.EngineKey(chain[len(chain)-1].Low())) != key {
						t.Errorf("%s is not the key of its %d tokens", key, len(r.tokens[key]))
					}
				}
				held := map[uint64]bool{}
				for tier := range kv.TierShared {
					for k := range r.server.engine.Truth(tier) {
						held[k] = true
					}
				}
				if n := len(r.server.kv.names.known); n != len(held) {
					t.Errorf("%d names are kept of %d blocks", n, len(held))
				}
				r.call("POST", "/reset_prefix_cache", "")
				r.agree()
				r.ask(1, 100, nil)
				r.agree()
			})
		})
	}
}

// Adapters and salts are in the keys, and digests are whole where there is room.
func TestDigestsAreWholeWhereThereIsRoom(t *testing.T) {
	withKV(t, Options{KVHash: HashCBOR, KVEncoding: kv.VLLMMapBytes.String()}, func(r *kvRig) {
		r.ask(1, 40, map[string]any{"model": "poet", "cache_salt": "pepper"})
		r.agree()
		var last string
		for key := range r.tiers[kv.TierGPU] {
			if len(r.tokens[key]) > len(r.tokens[last]) {
				last = key
			}
		}
		h := kv.NewHasher(kv.VLLMRoot(kv.VLLMUnseeded), int(enginesim.BlockTokens))
		chain := h.Chain(nil, r.tokens[last], &kv.Extras{Form: kv.ExtraPaired, Adapter: "poet", Salt: "pepper"})
		raw := slices.Concat(r.raw...)
		for i := range chain {
			if !r.tiers[kv.TierGPU][hexKey(kv.EngineKey(chain[i].Low()))] {
				t.Errorf("block %d has another key", i)
			}
			if !bytes.Contains(raw, append([]byte{0xc4, 32}, chain[i][:]...)) {
				t.Errorf("the digest of block %d is not told whole", i)
			}
		}
		if len(chain) < 2 {
			t.Errorf("%d blocks", len(chain))
		}
	})
}
