// Package token turns text into the tokens a model sees, from the model's own
// tokenizer.json. It does so exactly or says that it cannot: keys made from
// tokens that are nearly right match nothing.
package token

import "unicode/utf8"

// Tokenizer is one model's tokenizer. It never changes, so that many goroutines
// can share it; each encodes with an [Encoder] of its own.
type Tokenizer struct {
	merges        *pairs // two ids -> rank, id
	bytes         [256]uint32
	chars         *pairs            // character, 0 -> id; nil when symbols are bytes
	whole         map[string]uint32 // words that need no merging; nil when all do
	splitter      *splitter         // nil when symbols are characters
	raw, norm     added             // found in text as it is, and after rewriting
	nfc           bool
	rewrites      []rewrite
	meta          *metaspace
	before, after []uint32

	blob  []byte // what tokens stand for, one after the other
	start []uint32
}

// rewrite is one step of making text ready for merging.
type rewrite struct{ from, to string } // from "" puts to before the text

// metaspace turns spaces into a visible character, as SentencePiece does.
type metaspace struct {
	mark          string
	first, always bool // put one before the text, or before every part of it
	split         bool // words are merged each on its own
}

// maxText is the longest text that is encoded, in bytes: some four million
// tokens. Merging takes up to 40 bytes for each of them.
const maxText = 1 << 24

// Encoder encodes text, one at a time. It remembers short words and keeps its
// buffers, half a megabyte and what the longest text took, so that it allocates
// nothing after a while.
type Encoder struct {
	t     *Tokenizer
	ids   []uint32
	word  []symbol
	heap  []offer
	a, b  []byte
	known []known
}

// known is a short word and its tokens.
type known struct {
	lo, hi uint64 // its bytes, and its length on top
	n      uint8
	ids    [6]uint32
}

const (
	knownWords = 8192
	knownBytes = 15
)

// Encoder returns a new encoder.
func (t *Tokenizer) Encoder() *Encoder {
	return &Encoder{t: t, known: make([]known, knownWords)}
}

// Around returns the tokens that the model expects before and after a text, like
// the one for its beginning. [Encoder.Encode] leaves them out, since a chat
// template writes them itself. The caller does not change them.
func (t *Tokenizer) Around() (before, after []uint32) { return t.before, t.after }

// Encode appends the tokens of text to dst. Special tokens spelt out in text
// become themselves. It reports false, and appends nothing, when it does not know
// what the model's own tokenizer would do: text that is no UTF-8, text longer
// than 16 MiB, and accents that would have to be composed first.
func (e *Encoder) Encode(dst []uint32, text string) ([]uint32, bool) {
	t := e.t
	if len(text) > maxText || !utf8.ValidString(text) || t.nfc && !settled(text) {
		return dst, false
	}
	from, scan := 0, 0
	for from < len(text) {
		m, ok := find(&t.raw, text, scan)
		if !ok {
			break
		}
		scan = m.stop
		widen(&m, text, from)
		if from < m.start {
			dst = e.plain(dst, text[from:m.start], from == 0)
		}
		dst = append(dst, m.id)
		from = m.stop
	}
	if from < len(text) {
		dst = e.plain(dst, text[from:], from == 0)
	}
	return dst, true
}

// plain encodes text with no raw added token in it; first says that it is where
// the whole text begins.
func (e *Encoder) plain(dst []uint32, s string, first bool) []uint32 {
	if e.t.splitter != nil {
		return inside(e, dst, s, first, (*Encoder).pieces)
	}
	e.a = append(e.a[:0], s...)
	for _, r := range e.t.rewrites {
		if r.from == "" {
			e.b = append(append(e.b[:0], r.to...), e.a...)
		} else {
			e.b = replace(e.b[:0], e.a, r.from, r.to)
		}
		e.a, e.b = e.b, e.a
	}
	return inside(e, dst, e.a, first, (*Encoder).sentence)
}

// inside encodes s, which has been rewritten, with what is left to be found in
// it, and hands encode the parts between.
func inside[S string | []byte](e *Encoder, dst []uint32, s S, first bool, encode func(*Encoder, []uint32, S, bool) []uint32) []uint32 {
	from, scan := 0, 0
	for from < len(s) {
		m, ok := find(&e.t.norm, s, scan)
		if !ok {
			break
		}
		scan = m.stop
		widen(&m, s, from)
		if from < m.start {
			dst = encode(e, dst, s[from:m.start], first && from == 0)
		}
		dst = append(dst, m.id)
		from = m.stop
	}
	if from < len(s) {
		dst = encode(e, dst, s[from:], first && from == 0)
	}
	return dst
}

// pieces encodes text whose symbols are bytes.
func (e *Encoder) pieces(dst []uint32, s string, _ bool) []uint32 {
	for len(s) > 0 {
		n := e.t.splitter.next(s)
		dst = e.piece(dst, s[:n])
		s = s[n:]
	}
	return dst
}

// piece encodes one piece of them.
func (e *Encoder) piece(dst []uint32, s string) []uint32 {
	if len(s) > knownBytes {
		return e.fresh(dst, s)
	}
	var lo, hi uint64
	for i := range len(s) {
		lo, hi = lo<<8|uint64(s[i]), hi<<8|lo>>56
	}
	hi |= uint64(len(s)) << 56
	h := (lo ^ hi*0x9e3779b97f4a7c15) * 0xff51afd7ed558ccd
	k := &e.known[(h^h>>32)%knownWords]
	if k.lo == lo && k.hi == hi {
		return append(dst, k.ids[:k.n]...)
	}
	at := len(dst)
	dst = e.fresh(dst, s)
	if n := len(dst) - at; n <= len(k.ids) {
		k.lo, k.hi, k.n = lo, hi, uint8(n)
		copy(k.ids[:], dst[at:])
	}
	return dst
}

// fresh encodes a piece that is not remembered.
func (e *Encoder) fresh(dst []uint32, s string) []uint32 {
	if id, ok := e.t.whole[s]; ok {
		return append(dst, id)
	}
	e.ids = e.ids[:0]
	for i := range len(s) {
		e.ids = append(e.ids, e.t.bytes[s[i]])
	}
	return e.merge(dst)
}

// sentence encodes text whose symbols are characters.
func (e *Encoder) sentence(dst []uint32, s []byte, first bool) []uint32 {
	m := e.t.meta
	if m == nil {
		return e.chars(dst, s)
	}
	b := e.b[:0]
	if (m.always || m.first && first) && s[0] != ' ' && !hasPrefix(s, m.mark) {
		b = append(b, m.mark...)
	}
	b = replace(b, s, " ", m.mark)
	e.b = b
	for m.split && len(b) > 0 {
		n := 1
		for n < len(b) && !hasPrefix(b[n:], m.mark) {
			n++
		}
		dst = e.chars(dst, b[:n])
		b = b[n:]
	}
	if len(b) > 0 {
		dst = e.chars(dst, b)
	}
	return dst
}

// chars encodes a word of characters.
func (e *Encoder) chars(dst []uint32, s []byte) []uint32 {
	if id, ok := e.t.whole[string(s)]; ok {
		return append(dst, id)
	}
	e.ids = e.ids[:0]
	for len(s) > 0 {
		r, n := utf8.DecodeRune(s)
		if id, _, ok := e.t.chars.get(uint32(r), 0); ok {
			e.ids = append(e.ids, id)
		} else {
			for _, b := range s[:n] {
				e.ids = append(e.ids, e.t.bytes[b])
			}
		}
		s = s[n:]
	}
	return e.merge(dst)
}

// hasPrefix reports whether b begins with s.
func hasPrefix(b []byte, s string) bool { return len(b) >= len(s) && string(b[:len(s)]) == s }

// replace appends s to dst with every from in it turned into to.
func replace(dst, s []byte, from, to string) []byte {
	for len(s) > 0 {
		if hasPrefix(s, from) {
			dst = append(dst, to...)
			s = s[len(from):]
			continue
		}
		dst = append(dst, s[0])
		s = s[1:]
	}
	return dst
}

// Decode appends the text of tokens to dst, special ones spelt out. Tokens that
// the model does not have are nothing. A space that encoding put before the text
// stays.
func (t *Tokenizer) Decode(dst []byte, tokens []uint32) []byte {
	for _, id := range tokens {
		if int(id) < len(t.start)-1 {
			dst = append(dst, t.blob[t.start[id]:t.start[id+1]]...)
		}
	}
	return dst
}

// Size returns how many ids there are.
func (t *Tokenizer) Size() int { return len(t.start) - 1 }
