// Package api knows the bytes of the public API: it finds in a request body
// what routing needs without decoding it, cuts event streams into events, reads
// usage off answers, and writes errors in the API's own shape.
package api

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
)

// SyntaxError says where a body stops being JSON.
type SyntaxError struct {
	Offset int    // byte of the body
	Want   string // what was expected there
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("not valid JSON at byte %d: expected %s", e.Offset, e.Want)
}

// maxDepth bounds the nesting of a body. Deeper ones are refused, not
// followed.
const maxDepth = 512

// scanner walks JSON text once. It checks the grammar as it goes and allocates
// nothing; the first error sticks.
type scanner struct {
	b     []byte
	i     int
	depth int
	err   *SyntaxError

	media, mediaBytes int // strings that are data: URLs
	marks             marks
}

func (s *scanner) fail(want string) bool {
	if s.err == nil {
		s.err = &SyntaxError{Offset: s.i, Want: want}
	}
	return false
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\n', '\t', '\r':
			s.i++
		default:
			return
		}
	}
}

// peek returns the next byte that is not white space, 0 at the end.
func (s *scanner) peek() byte {
	s.space()
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

// take consumes c, which must come next.
func (s *scanner) take(c byte, want string) bool {
	if s.peek() != c || s.err != nil {
		return s.fail(want)
	}
	s.i++
	return true
}

// value consumes one value of any kind and returns its raw bytes.
func (s *scanner) value() []byte {
	c := s.peek()
	from := s.i
	switch {
	case c == '"':
		s.str()
	case c == '{':
		for it := s.object(); it.next(); {
			if isCacheControl(it.key) {
				s.cacheControl()
			} else {
				s.value()
			}
		}
	case c == '[':
		for it := s.array(); it.next(); {
			s.value()
		}
	case c == 't':
		s.word("true")
	case c == 'f':
		s.word("false")
	case c == 'n':
		s.word("null")
	case c == '-' || c >= '0' && c <= '9':
		s.number()
	default:
		s.fail("a value")
	}
	if s.err != nil {
		return nil
	}
	return s.b[from:s.i]
}

func (s *scanner) word(w string) {
	if !bytes.HasPrefix(s.b[s.i:], []byte(w)) {
		s.fail(w)
		return
	}
	s.i += len(w)
}

func (s *scanner) number() {
	if s.b[s.i] == '-' {
		s.i++
	}
	if s.i < len(s.b) && s.b[s.i] == '0' {
		s.i++
	} else {
		s.digits()
	}
	if s.i < len(s.b) && s.b[s.i] == '.' {
		s.i++
		s.digits()
	}
	if s.i < len(s.b) && s.b[s.i]|0x20 == 'e' {
		s.i++
		if s.i < len(s.b) && (s.b[s.i] == '+' || s.b[s.i] == '-') {
			s.i++
		}
		s.digits()
	}
}

func (s *scanner) digits() {
	from := s.i
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		s.i++
	}
	if s.i == from {
		s.fail("a digit")
	}
}

// str consumes a string and returns what stands between its quotes, escapes
// and all.
func (s *scanner) str() []byte {
	if !s.take('"', "a string") {
		return nil
	}
	from := s.i
	for {
		s.i += plain(s.b[s.i:])
		if s.i >= len(s.b) {
			s.fail("the end of a string")
			return nil
		}
		switch c := s.b[s.i]; {
		case c == '"':
			raw := s.b[from:s.i]
			s.i++
			if len(raw) > minMedia && bytes.HasPrefix(raw, []byte("data:")) {
				s.media++
				s.mediaBytes += len(raw)
			}
			return raw
		case c == '\\':
			if !s.escape() {
				return nil
			}
		default:
			s.fail("no control character in a string")
			return nil
		}
	}
}

// minMedia is the shortest string taken for an inlined file.
const minMedia = 128

func (s *scanner) escape() bool {
	s.i++
	if s.i >= len(s.b) {
		return s.fail("an escape")
	}
	switch s.b[s.i] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.i++
		return true
	case 'u':
		for k := 1; k <= 4; k++ {
			if s.i+k >= len(s.b) || !isHex(s.b[s.i+k]) {
				return s.fail("four hex digits")
			}
		}
		s.i += 5
		return true
	}
	return s.fail("an escape")
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f'
}

// plain returns how many leading bytes of b are ordinary string bytes: no
// quote, no backslash, no control character. It looks at eight bytes at a time
// with the zero-byte trick of Mycroft (1987).
func plain(b []byte) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		quote, slash := w^(ones*'"'), w^(ones*'\\')
		found := ((quote-ones)&^quote | (slash-ones)&^slash | (w-ones*0x20)&^w) & highs
		if found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for ; i < len(b); i++ {
		if c := b[i]; c == '"' || c == '\\' || c < 0x20 {
			break
		}
	}
	return i
}

// iter walks the members of an object or the elements of an array:
//
//	for it := s.object(); it.next(); { key := it.key; s.value() }
//
// The body of the loop must consume exactly one value.
type iter struct {
	s     *scanner
	close byte
	key   []byte // raw; objects only
	at    int    // where the member starts; objects only
	begun bool
}

func (s *scanner) object() iter { return s.open('{', '}', "an object") }
func (s *scanner) array() iter  { return s.open('[', ']', "an array") }

func (s *scanner) open(o, c byte, want string) iter {
	if s.take(o, want) {
		if s.depth++; s.depth > maxDepth {
			s.fail(fmt.Sprintf("at most %d levels of nesting", maxDepth))
		}
	}
	return iter{s: s, close: c}
}

func (it *iter) next() bool {
	s := it.s
	if s.err != nil {
		return false
	}
	c := s.peek()
	if c == it.close {
		s.i++
		s.depth--
		return false
	}
	if it.begun {
		if c != ',' {
			return s.fail("a comma or the end")
		}
		s.i++
	}
	it.begun = true
	if it.close == '}' {
		s.space()
		it.at = s.i
		it.key = s.str()
		return s.take(':', "a colon")
	}
	return true
}

// end checks that nothing but white space follows.
func (s *scanner) end() {
	if s.peek() != 0 || s.err == nil && s.i < len(s.b) {
		s.fail("the end of the body")
	}
}
