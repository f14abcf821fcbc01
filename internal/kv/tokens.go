package kv

import (
	"math/bits"

	"github.com/cespare/xxhash/v2"

	"penstock.dev/penstock/internal/stat"
)

// Own keys of blocks of tokens are made by one running hash of 64 bits, which a
// block's end turns into the block's key and goes on from there. So a chain can
// be taken up again after any token from one number, whatever the size of the
// engine's blocks; and a medium goes in once, where its first token is, which
// events and requests both know, while only requests know where it ends.

// DefaultBlock is the tokens of one own block: the smallest block that engines
// use by default.
const DefaultBlock = 16

// maxBlock bounds own blocks, so that a place in one is a byte.
const maxBlock = 256

// TokenSeed starts an own chain of token blocks: adapter's name and cache salt,
// empty for none.
func TokenSeed(adapter, salt []byte) Key {
	if len(adapter) == 0 && len(salt) == 0 {
		return 0x746f6b656e73
	}
	return Seed([]byte("tokens"), adapter, salt)
}

// ChainTokens appends to dst the own keys of the full blocks of tokens, chained
// from seed: that of the chain, or the last key of a chain whose end tokens go
// on from. Of x, which may be nil, it takes the media, in order of offset, and
// the embeddings by block; adapter and salt belong in the seed.
func ChainTokens(dst []Key, seed Key, block int, tokens []uint32, x *Extras) []Key {
	h, media := uint64(seed), 0
	for i := 0; (i+1)*block <= len(tokens); i++ {
		from, end := i*block, (i+1)*block
		at := from
		if x != nil {
			if i < len(x.Embeds) && len(x.Embeds[i]) > 0 {
				h = foldEmbeds(h, xxhash.Sum64(x.Embeds[i]))
			}
			for ; media < len(x.Media) && x.Media[media].Offset < end; media++ {
				m := &x.Media[media]
				if m.Offset < from {
					continue // began before these tokens
				}
				to := max(at, m.Offset)
				h = absorb(h, at-from, tokens[at:to])
				at, h = to, foldMedia(h, xxhash.Sum64String(m.ID))
			}
		}
		h = endBlock(absorb(h, at-from, tokens[at:end]))
		dst = append(dst, Key(h))
	}
	return dst
}

// absorb takes tokens into h, the first of them at phase within its own block.
// Two tokens cost one multiplication.
func absorb(h uint64, phase int, tokens []uint32) uint64 {
	if phase&1 == 1 && len(tokens) > 0 {
		h, tokens = fold(h^uint64(tokens[0])<<32), tokens[1:]
	}
	for len(tokens) >= 2 {
		h, tokens = fold(h^uint64(tokens[0])^uint64(tokens[1])<<32), tokens[2:]
	}
	if len(tokens) == 1 {
		h ^= uint64(tokens[0])
	}
	return h
}

// fold mixes all bits of x.
func fold(x uint64) uint64 {
	hi, lo := bits.Mul64(x^0xa0761d6478bd642f, 0xe7037ed1a0b428db)
	return hi ^ lo
}

func foldMedia(h, id uint64) uint64      { return stat.Mix64(fold(h^0x6d65646961) ^ id) }
func foldEmbeds(h, digest uint64) uint64 { return stat.Mix64(fold(h^0x656d6265647321) ^ digest) }

// endBlock makes a block's key, which is never 0: that is no key.
func endBlock(h uint64) uint64 { return max(stat.Mix64(h), 1) }

// mark is something beside tokens that goes into a chain before a token.
type mark struct {
	at     int32 // token, from the first of the event
	embeds bool
	hash   uint64
}

// link is a place in a chain: what a later block needs to go on from there.
type link struct {
	hash  uint64
	last  Key   // of the last block that has ended; 0 none
	phase uint8 // tokens since
	dead  bool  // the key cannot be known, nor can those behind
}

// walk goes on over tokens, of which the first is at'th of its event, and
// appends to ended the keys of the own blocks that end on the way. It returns
// the marks it has not come to.
func (l *link) walk(block int, tokens []uint32, at int32, marks []mark, ended []Key) ([]mark, []Key) {
	for len(tokens) > 0 {
		for ; len(marks) > 0 && marks[0].at <= at; marks = marks[1:] {
			if m := marks[0]; m.embeds {
				l.hash = foldEmbeds(l.hash, m.hash)
			} else {
				l.hash = foldMedia(l.hash, m.hash)
			}
		}
		n := min(block-int(l.phase), len(tokens))
		if len(marks) > 0 {
			n = min(n, int(marks[0].at-at))
		}
		l.hash = absorb(l.hash, int(l.phase), tokens[:n])
		tokens, at = tokens[n:], at+int32(n)
		if int(l.phase)+n < block {
			l.phase += uint8(n)
			continue
		}
		l.hash, l.phase = endBlock(l.hash), 0
		l.last = Key(l.hash)
		ended = append(ended, l.last)
	}
	return marks, ended
}
