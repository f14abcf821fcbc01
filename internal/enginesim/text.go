package enginesim

import (
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// Context is the rolling hash of a token sequence. It is all that the
// simulated model knows of its input: the next token and the natural length of
// an answer are functions of it and the seed, so a lost, doubled or altered
// token anywhere before changes everything after. The value after each full
// block is the block's key.
type Context uint64

// NewContext starts a sequence. Sequences of different salts (adapters, cache
// salts) share no keys; the empty salt is the base model.
func NewContext(salt string) Context {
	c := Context(0x70656e73746f636b)
	for i := range len(salt) {
		c = c.Add(uint32(salt[i]) | 1<<31)
	}
	return c
}

// Add returns the context after one more token. Two multiplications per token:
// a prompt of 12,000 tokens takes tens of microseconds.
func (c Context) Add(token uint32) Context {
	x := (uint64(c) ^ uint64(token)*0x9e3779b97f4a7c15) + 0x632be59bd9b4e019
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	x ^= x >> 29
	return Context(x)
}

// Key returns the block key of the sequence so far.
func (c Context) Key() uint64 { return uint64(c) }

// Draw returns the 64 bits from which the next token is made. Equal contexts
// and seeds draw equal bits.
func (c Context) Draw(seed uint64) uint64 { return stat.Mix64(uint64(c) ^ stat.Mix64(seed)) }

// Length returns how long an answer to this context would naturally be:
// log-normal with the given mean, at least 1.
func (c Context) Length(seed uint64, mean float64) fleet.Tokens {
	const sigma = 0.8 // median about 0.73 of the mean, 95th percentile about 2.7 times
	n := stat.NewRand(c.Draw(seed), "answer length").LogNormal(mean, sigma)
	return max(1, fleet.Tokens(n))
}

// Chain appends to keys the key of every full block of tokens, which follow
// context c, and returns the context after the last token. The first block
// starts at tokens[0].
func Chain(keys []uint64, c Context, tokens []uint32) ([]uint64, Context) {
	for i, t := range tokens {
		c = c.Add(t)
		if (i+1)%int(BlockTokens) == 0 {
			keys = append(keys, c.Key())
		}
	}
	return keys, c
}
