package kv

import (
	"crypto/sha256"
	"encoding/binary"
)

// Digest is the full name an engine gives a block and everything before it.
type Digest [sha256.Size]byte

// Low returns the last 8 bytes, which is how vLLM's events name a block when
// they use numbers.
func (d *Digest) Low() Key { return Key(binary.BigEndian.Uint64(d[len(d)-8:])) }

// High returns the first 8 bytes, which SGLang's events carry as a signed
// number.
func (d *Digest) High() Key { return Key(binary.BigEndian.Uint64(d[:8])) }

// VLLMUnseeded is the text that vLLM hashes into a chain's root when
// PYTHONHASHSEED is not set. Engines from before August 2026 use random bytes
// instead, and their keys cannot be computed.
const VLLMUnseeded = "vllm-none-hash"

// VLLMRoot returns the root of vLLM's chains under sha256_cbor, for the value
// of PYTHONHASHSEED or for VLLMUnseeded.
func VLLMRoot(seed string) Digest { return sha256.Sum256(appendCBORText(nil, seed)) }

// ExtraForm is how an engine writes what else is part of a block's name. The
// forms differ only for blocks that have something else.
type ExtraForm uint8

// The forms, from the oldest to the newest.
const (
	ExtraBare   ExtraForm = iota // media by their identifiers alone
	ExtraPaired                  // media with their offsets from the block's start
	ExtraTagged                  // every entry begins with its kind
)

// Media is one image, clip or sound inside a prompt. Its identifier stands for
// its content, which the placeholder tokens do not tell.
type Media struct {
	ID     string
	Offset int // first placeholder token
	Length int // placeholder tokens
}

// Extras is what besides tokens makes the KV of a request. The zero value is
// nothing.
type Extras struct {
	Form        ExtraForm
	Adapter     string // LoRA name, part of every block
	AdapterPath string // said by ExtraTagged only
	Media       []Media
	Salt        string   // part of the first block, and so of all behind it
	Embeds      [][]byte // by block: digest of its prompt embeddings, empty where it has none
}

// Hasher names blocks as vLLM does under sha256_cbor. It keeps a buffer, so
// each goroutine needs its own.
type Hasher struct {
	root  Digest
	block int
	buf   []byte
}

// NewHasher makes a hasher for blocks of so many tokens.
func NewHasher(root Digest, block int) *Hasher {
	return &Hasher{root: root, block: max(block, 1)}
}

// Chain appends to dst the digests of the full blocks of tokens. What dst holds
// when called is taken to be the chain of the first blocks, so a conversation's
// next turn costs only what is new.
func (h *Hasher) Chain(dst []Digest, tokens []uint32, x *Extras) []Digest {
	parent, media := h.root, 0
	if len(dst) > 0 {
		parent = dst[len(dst)-1]
	}
	for i := len(dst); (i+1)*h.block <= len(tokens); i++ {
		from := i * h.block
		b := appendCBORHead(h.buf[:0], cborArray, 3)
		b = appendCBORBytes(b, parent[:])
		b = appendCBORHead(b, cborArray, uint64(h.block))
		for _, t := range tokens[from : from+h.block] {
			b = appendCBORHead(b, cborUint, uint64(t))
		}
		if x == nil {
			b = append(b, cborNull)
		} else {
			for media < len(x.Media) && x.Media[media].Offset+x.Media[media].Length <= from {
				media++
			}
			b = x.append(b, i, from, x.inside(media, from+h.block))
		}
		h.buf = b
		parent = sha256.Sum256(b)
		dst = append(dst, parent)
	}
	return dst
}

// inside returns the media from the i-th on that begin before token end.
func (x *Extras) inside(i, end int) []Media {
	j := i
	for j < len(x.Media) && x.Media[j].Offset < end {
		j++
	}
	return x.Media[i:j]
}

// append writes what is extra in the block'th block, whose first token is the
// from-th and which has these media.
func (x *Extras) append(b []byte, block, from int, media []Media) []byte {
	salted := block == 0 && x.Salt != ""
	embeds := block < len(x.Embeds) && len(x.Embeds[block]) > 0
	n := len(media)
	for _, has := range [...]bool{x.Adapter != "", salted, embeds} {
		if has {
			n++
		}
	}
	if n == 0 {
		return append(b, cborNull)
	}
	b = appendCBORHead(b, cborArray, uint64(n))
	if x.Adapter != "" {
		b = appendCBORText(x.tag(b, "lora", 2), x.Adapter)
		if x.Form == ExtraTagged {
			b = appendCBORText(b, x.AdapterPath)
		}
	}
	for i := range media {
		if b = x.tag(b, "mm", 2); x.Form == ExtraPaired {
			b = appendCBORHead(b, cborArray, 2)
		}
		if b = appendCBORText(b, media[i].ID); x.Form != ExtraBare {
			b = appendCBORInt(b, media[i].Offset-from)
		}
	}
	if salted {
		b = appendCBORText(x.tag(b, "cache_salt", 1), x.Salt)
	}
	if embeds {
		b = appendCBORBytes(x.tag(b, "prompt_embeds", 1), x.Embeds[block])
	}
	return b
}

// tag begins an entry of n values where entries name their kind.
func (x *Extras) tag(b []byte, kind string, n uint64) []byte {
	if x.Form != ExtraTagged {
		return b
	}
	return appendCBORText(appendCBORHead(b, cborArray, n+1), kind)
}

// The parts of CBOR (RFC 8949) that a block's name is made of: major types and
// null, every head as short as it can be.
const (
	cborUint  = 0 << 5
	cborNeg   = 1 << 5
	cborBytes = 2 << 5
	cborText  = 3 << 5
	cborArray = 4 << 5
	cborNull  = 0xf6
)

func appendCBORHead(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return append(b, major|25, byte(n>>8), byte(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

func appendCBORInt(b []byte, n int) []byte {
	if n < 0 {
		return appendCBORHead(b, cborNeg, uint64(-1-n))
	}
	return appendCBORHead(b, cborUint, uint64(n))
}

func appendCBORText(b []byte, s string) []byte {
	return append(appendCBORHead(b, cborText, uint64(len(s))), s...)
}

func appendCBORBytes(b, s []byte) []byte {
	return append(appendCBORHead(b, cborBytes, uint64(len(s))), s...)
}

// SGLangRoot returns what SGLang's chains begin with for a cache salt, and nil
// without one: the first page then hashes its tokens alone.
func SGLangRoot(salt string) []byte {
	if salt == "" {
		return nil
	}
	d := sha256.Sum256([]byte("sglang-cache-salt-v1\x00" + salt))
	return d[:]
}

// SGLangChain appends to dst the digests of the full pages of tokens, as SGLang
// names them. It takes dst as [Hasher.Chain] does.
func SGLangChain(dst []Digest, root []byte, page int, tokens []uint32) []Digest {
	page = max(page, 1)
	buf := make([]byte, 0, sha256.Size+4*page)
	for i := len(dst); (i+1)*page <= len(tokens); i++ {
		buf = append(buf[:0], root...)
		if i > 0 {
			buf = append(buf[:0], dst[i-1][:]...)
		}
		for _, t := range tokens[i*page : (i+1)*page] {
			buf = binary.LittleEndian.AppendUint32(buf, t)
		}
		dst = append(dst, sha256.Sum256(buf))
	}
	return dst
}
