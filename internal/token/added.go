package token

import (
	"unicode"
	"unicode/utf8"
)

// added are tokens that are found in text before anything else, the longest
// where several begin.
type added struct {
	first  [256]bool
	trie   *pairs // node, byte -> node, token+1
	nodes  uint32
	tokens []addedToken
}

// addedToken is one of them.
type addedToken struct {
	id          uint32
	left, right bool // takes the white space on that side with it
}

func (a *added) add(content string, tok addedToken) {
	if a.trie == nil {
		a.trie = newPairs(64)
	}
	a.first[content[0]] = true
	a.tokens = append(a.tokens, tok)
	node := uint32(0)
	for i := range len(content) {
		next, end, ok := a.trie.get(node, uint32(content[i]))
		if !ok {
			a.nodes++
			next = a.nodes
		}
		if i == len(content)-1 {
			end = uint32(len(a.tokens))
		}
		a.trie.put(node, uint32(content[i]), next, end)
		node = next
	}
}

// match is an added token found in text.
type match struct {
	addedToken
	start, stop int
}

// find returns the first added token in s[from:].
func find[S string | []byte](a *added, s S, from int) (match, bool) {
	if a.trie == nil {
		return match{}, false
	}
	for i := from; i < len(s); i++ {
		if !a.first[s[i]] {
			continue
		}
		var m match
		node := uint32(0)
		for j := i; j < len(s); j++ {
			next, end, ok := a.trie.get(node, uint32(s[j]))
			if !ok {
				break
			}
			if end > 0 {
				m = match{a.tokens[end-1], i, j + 1}
			}
			node = next
		}
		if m.stop > 0 {
			return m, true
		}
	}
	return match{}, false
}

// widen takes white space beside the token with it, but none before from.
func widen[S string | []byte](m *match, s S, from int) {
	for m.left && m.start > from {
		n := 1
		for n < m.start-from && !utf8.RuneStart(s[m.start-n]) {
			n++
		}
		r := char(s[m.start-n : m.start])
		if !unicode.IsSpace(r) {
			break
		}
		m.start -= n
	}
	for m.right && m.stop < len(s) {
		n := 1
		for m.stop+n < len(s) && !utf8.RuneStart(s[m.stop+n]) {
			n++
		}
		r := char(s[m.stop : m.stop+n])
		if !unicode.IsSpace(r) {
			break
		}
		m.stop += n
	}
}

// char returns the character that s is.
func char[S string | []byte](s S) rune {
	for _, r := range string(s) {
		return r
	}
	return utf8.RuneError
}
