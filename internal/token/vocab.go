package token

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// unprintable returns what stands for each byte in a vocabulary of bytes: itself
// where it can be seen, and a character from U+0100 on where it cannot.
func unprintable() (chars [256]rune, bytes map[rune]byte) {
	bytes = make(map[rune]byte, 256)
	next := rune(256)
	for b := range rune(256) {
		c := b
		if b <= ' ' || 0x7f <= b && b <= 0xa0 || b == 0xad {
			c = next
			next++
		}
		chars[b], bytes[c] = c, byte(b)
	}
	return chars, bytes
}

// plainBytes returns what a token of a vocabulary of bytes stands for: bytes, or
// itself when it is not made of their characters.
func plainBytes(s string, bytes map[rune]byte) string {
	var out []byte
	for _, r := range s {
		b, ok := bytes[r]
		if !ok {
			return s
		}
		out = append(out, b)
	}
	return string(out)
}

// readVocab reads the symbols and what every token stands for.
func (t *Tokenizer) readVocab(f *file) error {
	size := len(f.Model.Vocab)
	for _, id := range f.Model.Vocab {
		size = max(size, int(id)+1)
	}
	for _, a := range f.Added {
		size = max(size, int(a.ID)+1)
	}
	if size > maxIDs {
		return unsupported("model.vocab", "of %d ids", size)
	}
	alphabet, back := unprintable()
	texts, taken := make([]string, size), make([]bool, size)
	if f.Model.IgnoreMerges {
		t.whole = make(map[string]uint32, len(f.Model.Vocab))
	}
	if t.splitter == nil {
		t.chars = newPairs(1024)
	}
	for s, id := range f.Model.Vocab {
		if taken[id] {
			return fmt.Errorf("read tokenizer.json: two tokens have id %d", id)
		}
		taken[id] = true
		texts[id] = s
		if t.splitter != nil {
			texts[id] = plainBytes(s, back)
		} else if r, n := utf8.DecodeRuneInString(s); n > 0 && n == len(s) {
			t.chars.put(uint32(r), 0, id, 0)
		}
		if t.whole != nil && (t.splitter == nil || texts[id] != s || isASCII(s)) {
			t.whole[texts[id]] = id
		}
	}
	for b := range 256 {
		name, what := string(alphabet[b]), "the model's bytes"
		if t.splitter == nil {
			name, what = fmt.Sprintf("<0x%02X>", b), "byte_fallback"
		}
		id, ok := f.Model.Vocab[name]
		if !ok || t.splitter == nil && !f.Model.ByteFallback {
			return unsupported("model.vocab", "without %s: %q", what, name)
		}
		t.bytes[b] = id
		if t.splitter == nil {
			texts[id] = string([]byte{byte(b)})
		}
	}
	for _, a := range f.Added {
		if texts[a.ID] == "" || t.splitter != nil {
			texts[a.ID] = a.Content
		}
	}
	t.keep(texts)
	return nil
}

// isASCII reports whether s is its own spelling in bytes.
func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// keep stores what tokens stand for, spaces as spaces.
func (t *Tokenizer) keep(texts []string) {
	mark := ""
	if t.meta != nil {
		mark = t.meta.mark
	}
	for _, r := range t.rewrites {
		if r.from == " " {
			mark = r.to
		}
	}
	t.start = make([]uint32, 0, len(texts)+1)
	for _, s := range texts {
		t.start = append(t.start, uint32(len(t.blob)))
		if mark != "" {
			s = strings.ReplaceAll(s, mark, " ")
		}
		t.blob = append(t.blob, s...)
	}
	t.start = append(t.start, uint32(len(t.blob)))
}

func (t *Tokenizer) readMerges(f *file) error {
	vocab := f.Model.Vocab
	t.merges = newPairs(len(f.Model.Merges))
	for rank, m := range f.Model.Merges {
		a, okA := vocab[m[0]]
		b, okB := vocab[m[1]]
		id, ok := vocab[m[0]+m[1]]
		if !okA || !okB || !ok {
			return fmt.Errorf("read tokenizer.json: merge %d, %q with %q, is not in the vocabulary", rank, m[0], m[1])
		}
		t.merges.put(a, b, uint32(rank), id)
	}
	return nil
}

// readAdded reads the added tokens, and checks that they have the ids that they
// are given when the file is loaded: its own word on that is only a hint.
func (t *Tokenizer) readAdded(f *file) error {
	ids, next := map[string]uint32{}, uint32(len(f.Model.Vocab))
	for _, a := range f.Added {
		id, ok := f.Model.Vocab[a.Content]
		if !ok {
			if id, ok = ids[a.Content]; !ok {
				id = next
			}
		}
		switch {
		case a.Content == "":
			return unsupported("added_tokens", "empty")
		case a.ID != id:
			return unsupported("added_tokens", "%q with id %d where %d follows", a.Content, a.ID, id)
		case a.SingleWord:
			return unsupported("added_tokens.single_word", "true for %q", a.Content)
		case a.Normalized && t.nfc && !settled(a.Content):
			return unsupported("added_tokens", "%q, which NFC may change", a.Content)
		}
		ids[a.Content] = id
		next = max(next, id+1)
		tok := addedToken{id: id, left: a.Left, right: a.Right}
		if !a.Normalized {
			t.raw.add(a.Content, tok)
			continue
		}
		b := []byte(a.Content)
		for _, r := range t.rewrites {
			if r.from == "" {
				b = append([]byte(r.to), b...)
			} else {
				b = replace(nil, b, r.from, r.to)
			}
		}
		if len(b) > 0 {
			t.norm.add(string(b), tok)
		}
	}
	return nil
}
