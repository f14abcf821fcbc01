package tokens

import "bytes"

// cursor walks JSON that somebody else has checked, or that is thrown away when
// it turns out to be something else: it finds where values end and never reads
// behind the end, but does not judge what is inside them.
type cursor struct {
	b []byte
	i int
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func (c *cursor) space() {
	for c.i < len(c.b) && (c.b[c.i] == ' ' || c.b[c.i] == '\n' || c.b[c.i] == '\t' || c.b[c.i] == '\r') {
		c.i++
	}
}

// peek returns the next byte that is not white space, 0 at the end.
func (c *cursor) peek() byte {
	if c.space(); c.i < len(c.b) {
		return c.b[c.i]
	}
	return 0
}

// take consumes b if it comes next.
func (c *cursor) take(b byte) bool {
	if c.peek() != b {
		return false
	}
	c.i++
	return true
}

// str consumes a string and returns what is between its quotes.
func (c *cursor) str() ([]byte, bool) {
	if !c.take('"') {
		return nil, false
	}
	from := c.i
	for {
		n := bytes.IndexByte(c.b[c.i:], '"')
		if n < 0 {
			c.i = len(c.b)
			return nil, false
		}
		end := c.i + n
		c.i = end + 1
		slashes := 0
		for end-slashes > from && c.b[end-slashes-1] == '\\' {
			slashes++
		}
		if slashes%2 == 0 {
			return c.b[from:end], true
		}
	}
}

// value consumes a value of any kind and returns its bytes.
func (c *cursor) value() ([]byte, bool) {
	first := c.peek()
	from := c.i
	switch first {
	case '"':
		_, ok := c.str()
		return c.b[from:c.i], ok
	case '{', '[':
		ok := c.nested()
		return c.b[from:c.i], ok
	}
	for c.i < len(c.b) && !ends(c.b[c.i]) {
		c.i++
	}
	return c.b[from:c.i], c.i > from
}

// ends reports whether b cannot be part of a number or a word.
func ends(b byte) bool {
	return b <= ' ' || b == ',' || b == ']' || b == '}' || b == ':' || b == '"' || b == '[' || b == '{'
}

// nested consumes an object or an array.
func (c *cursor) nested() bool {
	for depth := 0; c.i < len(c.b); {
		switch c.b[c.i] {
		case '"':
			if _, ok := c.str(); !ok {
				return false
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		c.i++
		if depth == 0 {
			return true
		}
	}
	return false
}

// only returns the first element of an array, and whether there are more.
func (c *cursor) only() (first []byte, more bool) {
	if !c.take('[') || c.peek() == ']' {
		return nil, false
	}
	first, ok := c.value()
	if !ok {
		return nil, false
	}
	return first, c.peek() == ','
}

// ids consumes an array of token ids and appends them to dst. It reports false
// for anything else in it, and for more than most.
func (c *cursor) ids(dst []uint32, most int) ([]uint32, bool) {
	if !c.take('[') {
		return dst, false
	}
	if c.take(']') {
		return dst, true
	}
	for range most {
		if !isDigit(c.peek()) {
			return dst, false
		}
		id := uint64(0)
		for c.i < len(c.b) && isDigit(c.b[c.i]) && id <= 1<<32 {
			id = 10*id + uint64(c.b[c.i]-'0')
			c.i++
		}
		if id >= 1<<32 {
			return dst, false
		}
		dst = append(dst, uint32(id))
		if c.take(',') {
			continue
		}
		return dst, c.take(']')
	}
	return dst, false
}
