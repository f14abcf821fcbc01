// Package kv answers what is cached where. It turns prompts into chains of
// block keys and keeps, per endpoint, which chains the endpoint is believed to
// hold.
package kv

import (
	"github.com/cespare/xxhash/v2"

	"penstock.dev/penstock/internal/stat"
)

// Key identifies one block together with everything before it: equal keys mean
// equal prefixes, so a key alone implies its whole chain.
type Key uint64

// ChunkBytes is the size of one block when a prompt is keyed by its bytes. At
// the usual 4 bytes a token it is 64 tokens, coarse enough that a
// 12,000-token prompt has fewer than 200 keys.
const ChunkBytes = 256

// Seed starts a chain. Everything that changes the KV of equal text belongs in
// it: the model or adapter, the cache salt, the tools, the API.
func Seed(parts ...[]byte) Key {
	h := uint64(0x70656e73746f636b)
	for _, p := range parts {
		h = stat.Mix64(h ^ xxhash.Sum64(p) ^ uint64(len(p)))
	}
	return Key(h)
}

// Chain appends to dst the keys of text's full chunks of ChunkBytes bytes,
// chained from seed. A trailing partial chunk has no key: nothing can share it
// as a block.
func Chain(dst []Key, seed Key, text []byte) []Key {
	prev := uint64(seed)
	for len(text) >= ChunkBytes {
		prev = stat.Mix64(prev*0x9e3779b97f4a7c15 ^ xxhash.Sum64(text[:ChunkBytes]))
		dst = append(dst, Key(prev))
		text = text[ChunkBytes:]
	}
	return dst
}

// Answer appends to chain n keys that stand for the answer to a request, which
// takes room in a cache like its prompt. Nothing else has them: what the answer
// says is not known here.
func Answer(chain []Key, request uint64, n int) []Key {
	for i := range n {
		chain = append(chain, Key(stat.Mix64(stat.Mix64(request^0xa115e4)+uint64(i))))
	}
	return chain
}
