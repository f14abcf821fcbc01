package bench

import "strings"

// chunk is what one event of a stream says, as far as a load generator cares.
// Its slices point into the event and are in JSON's escaped form.
type chunk struct {
	id      []byte // the completion's id
	content []byte // text of the choice, or its reasoning
	finish  []byte // finish_reason
	fail    []byte // the error object, as JSON
	usage   bool   // the three below are known
	prompt  int
	output  int
	cached  int // -1 when not reported
}

// parseChunk reads one event's data in a single pass that allocates nothing. It
// accepts exactly the JSON objects; fields it does not know are skipped.
func parseChunk(data []byte) (chunk, bool) {
	k := chunk{cached: -1}
	s := scanner{b: data}
	s.space()
	for first := true; s.member(&first); {
		switch string(s.key()) {
		case "id":
			k.id = s.text()
		case "choices":
			for first := true; s.element(&first); {
				s.choice(&k)
			}
		case "usage":
			s.usage(&k)
		case "error":
			if v := s.raw(); string(v) != "null" {
				k.fail = v
			}
		default:
			s.skip(0)
		}
	}
	s.space()
	return k, !s.bad && s.i == len(s.b)
}

func (s *scanner) choice(k *chunk) {
	if s.peek() != '{' {
		s.skip(0)
		return
	}
	for first := true; s.member(&first); {
		switch string(s.key()) {
		case "text":
			k.content = s.text()
		case "delta", "message":
			s.delta(k)
		case "finish_reason":
			k.finish = s.text()
		default:
			s.skip(0)
		}
	}
}

func (s *scanner) delta(k *chunk) {
	if s.peek() != '{' {
		s.skip(0)
		return
	}
	for first := true; s.member(&first); {
		switch string(s.key()) {
		case "content", "reasoning", "reasoning_content":
			if t := s.text(); len(t) > 0 {
				k.content = t
			}
		default:
			s.skip(0)
		}
	}
}

func (s *scanner) usage(k *chunk) {
	if s.peek() != '{' {
		s.skip(0)
		return
	}
	k.usage = true
	for first := true; s.member(&first); {
		switch string(s.key()) {
		case "prompt_tokens":
			k.prompt = s.count()
		case "completion_tokens":
			k.output = s.count()
		case "prompt_tokens_details":
			if s.peek() != '{' {
				s.skip(0)
				continue
			}
			for first := true; s.member(&first); {
				if string(s.key()) == "cached_tokens" && s.peek() != 'n' {
					k.cached = s.count()
				} else {
					s.skip(0)
				}
			}
		default:
			s.skip(0)
		}
	}
}

// scanner walks JSON text. The first thing that is not JSON sets bad, and from
// then on nothing moves.
type scanner struct {
	b   []byte
	i   int
	bad bool
}

// maxDepth bounds nesting, which no honest event comes near.
const maxDepth = 64

func (s *scanner) fail() { s.bad = true; s.i = len(s.b) }

func (s *scanner) space() {
	for s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\n' || s.b[s.i] == '\t' || s.b[s.i] == '\r') {
		s.i++
	}
}

func (s *scanner) peek() byte {
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

func (s *scanner) take(c byte) bool {
	if s.peek() != c || s.i >= len(s.b) {
		s.fail()
		return false
	}
	s.i++
	return true
}

// member moves to the next member of an object, before its key; first is true
// on the first call. False at the end, behind the brace.
func (s *scanner) member(first *bool) bool { return s.next('{', '}', first) }

// element moves to the next element of an array. A null array has none.
func (s *scanner) element(first *bool) bool {
	if *first && s.peek() != '[' {
		s.skip(0)
		return false
	}
	return s.next('[', ']', first)
}

func (s *scanner) next(open, end byte, first *bool) bool {
	if *first {
		if !s.take(open) {
			return false
		}
		s.space()
		if s.peek() == end {
			s.i++
			return false
		}
		*first = false
		return !s.bad
	}
	s.space()
	if s.peek() == end && !s.bad {
		s.i++
		return false
	}
	if !s.take(',') {
		return false
	}
	s.space()
	return !s.bad
}

// key reads a member's key and stands before its value. Keys with escapes come
// back escaped and simply match nothing.
func (s *scanner) key() []byte {
	k := s.str()
	s.space()
	s.take(':')
	s.space()
	return k
}

// text reads a string's inside, or skips another value and returns nil.
func (s *scanner) text() []byte {
	if s.peek() == '"' {
		return s.str()
	}
	s.skip(0)
	return nil
}

// str reads a string and returns what is between the quotes, escapes and all.
func (s *scanner) str() []byte {
	if !s.take('"') {
		return nil
	}
	start := s.i
	for s.i < len(s.b) {
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			return s.b[start : s.i-1]
		case c == '\\':
			s.escape()
		case c < 0x20:
			s.fail()
		default:
			s.i++
		}
	}
	s.fail()
	return nil
}

func (s *scanner) escape() {
	n := 2
	if s.i+1 < len(s.b) && s.b[s.i+1] == 'u' {
		n = 6
	}
	if s.i+n > len(s.b) || strings.IndexByte(`"\/bfnrtu`, s.b[s.i+1]) < 0 {
		s.fail()
		return
	}
	for _, c := range s.b[s.i+2 : s.i+n] {
		if !(c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f') {
			s.fail()
			return
		}
	}
	s.i += n
}

// count reads a number as a count, 0 when it is something else.
func (s *scanner) count() int {
	n := 0
	for _, c := range s.raw() {
		if c < '0' || c > '9' || n > 1<<40 {
			return 0
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// raw skips a value and returns its bytes.
func (s *scanner) raw() []byte {
	start := s.i
	s.skip(0)
	if s.bad {
		return nil
	}
	return s.b[start:s.i]
}

// skip passes over one value, whatever it is.
func (s *scanner) skip(depth int) {
	if depth > maxDepth {
		s.fail()
		return
	}
	switch c := s.peek(); {
	case c == '"':
		s.str()
	case c == '{':
		for first := true; s.member(&first); {
			s.key()
			s.skip(depth + 1)
		}
	case c == '[':
		for first := true; s.element(&first); {
			s.skip(depth + 1)
		}
	case c == 't':
		s.word("true")
	case c == 'f':
		s.word("false")
	case c == 'n':
		s.word("null")
	default:
		s.number()
	}
}

func (s *scanner) word(w string) {
	if !strings.HasPrefix(string(s.b[s.i:min(s.i+len(w), len(s.b))]), w) {
		s.fail()
		return
	}
	s.i += len(w)
}

func (s *scanner) number() {
	if s.peek() == '-' {
		s.i++
	}
	if s.peek() == '0' {
		s.i++
	} else {
		s.digits()
	}
	if s.peek() == '.' {
		s.i++
		s.digits()
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.i++
		if c := s.peek(); c == '+' || c == '-' {
			s.i++
		}
		s.digits()
	}
}

func (s *scanner) digits() {
	start := s.i
	for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
		s.i++
	}
	if s.i == start {
		s.fail()
	}
}
