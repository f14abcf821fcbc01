package kv

import (
	"fmt"

	"penstock.dev/penstock/internal/fleet"
)

// Config sizes what is believed of caches.
type Config struct {
	// KeyTokens is about how many tokens one key of the history covers, to turn an
	// engine's KV capacity into keys.
	KeyTokens fleet.Tokens `json:"keyTokens"`
	// DefaultTokens is the KV capacity assumed of an engine that does not tell.
	DefaultTokens fleet.Tokens `json:"defaultTokens"`
	// BlockTokens is how many tokens one key of the index of events covers.
	BlockTokens fleet.Tokens `json:"blockTokens"`
	// MaxBlocks bounds the index of events, in different blocks of the whole pool;
	// beyond it those not seen for longest are forgotten.
	MaxBlocks int `json:"maxBlocks"`
	// DemoteOver is the share of what an endpoint's events claim to be cached that
	// its answers may prove wrong before history is believed instead.
	DemoteOver float64 `json:"demoteOver"`
}

// Default takes a key of the history for 64 tokens (ChunkBytes at 4 bytes a
// token), an engine for one with 250,000 tokens of KV cache, about what an 80 GB
// GPU leaves a mid-size model, and a block for 16 tokens as vLLM does. Four
// million blocks are 64 million tokens: 200 such engines that have nothing in
// common, in less than 200 MB.
func Default() Config {
	return Config{KeyTokens: 64, DefaultTokens: 250_000, BlockTokens: 16, MaxBlocks: 4_000_000, DemoteOver: 0.25}
}

// Validate returns what is wrong with c, field by field.
func (c Config) Validate() []error {
	var errs []error
	check := func(ok bool, field, want string, value any) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s: must be %s, is %v", field, want, value))
		}
	}
	check(c.KeyTokens >= 1, "keyTokens", "at least 1", c.KeyTokens)
	check(c.DefaultTokens >= c.KeyTokens, "defaultTokens", fmt.Sprintf("at least keyTokens (%d)", c.KeyTokens), c.DefaultTokens)
	check(c.BlockTokens >= 1 && c.BlockTokens <= maxBlock, "blockTokens", "from 1 to 256", c.BlockTokens)
	check(c.MaxBlocks >= 1000, "maxBlocks", "at least 1000", c.MaxBlocks)
	check(c.DemoteOver > 0 && c.DemoteOver <= 1, "demoteOver", "above 0 and at most 1", c.DemoteOver)
	return errs
}

// Cover returns how many keys of the history so many tokens fill.
func (c Config) Cover(tokens fleet.Tokens) int { return int(tokens / c.KeyTokens) }

// Keys returns how many keys of the history a cache of the given capacity holds;
// 0 means unknown.
func (c Config) Keys(capacity fleet.Tokens) int {
	if capacity <= 0 {
		capacity = c.DefaultTokens
	}
	return int(capacity / c.KeyTokens)
}

// Covered returns the tokens that depth leading keys stand for, of a prompt in
// which each key covers keyTokens. It is less than the prompt: an engine always
// computes at least the last token.
func Covered(depth int32, keyTokens float64, prompt fleet.Tokens) fleet.Tokens {
	return max(min(fleet.Tokens(float64(depth)*keyTokens), prompt-1), 0)
}
