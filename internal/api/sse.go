package api

import (
	"bytes"
	"errors"
)

// MaxEvent is the size at which an event without an end is given up.
const MaxEvent = 1 << 20

// ErrEventTooLong says that an event grew beyond MaxEvent without its blank
// line.
var ErrEventTooLong = errors.New("event is longer than 1 MiB")

// Splitter cuts an event stream into whole events. The caller reads into Space,
// calls Filled, and takes Whole, whose bytes it may forward; an incomplete
// event stays until its blank line comes. Bytes are never changed.
//
// Lines may end in LF, CRLF or CR, as the event stream grammar of the HTML
// standard (section 9.2.6) allows.
type Splitter struct {
	buf   []byte
	from  int // start of what has not been taken
	fill  int // end of what has been read
	seen  int // scanned for line ends up to here
	line  int // start of the present line
	whole int // end of the last whole event
}

// minSpace is the least room offered to a read.
const minSpace = 4 << 10

// Space returns room to read into. It is valid until the next call.
func (s *Splitter) Space() []byte {
	if s.from > 0 && (s.from == s.fill || len(s.buf)-s.fill < minSpace) {
		n := copy(s.buf, s.buf[s.from:s.fill])
		s.seen -= s.from
		s.line -= s.from
		s.whole -= s.from
		s.from, s.fill = 0, n
	}
	if len(s.buf)-s.fill < minSpace {
		s.buf = append(s.buf[:s.fill], make([]byte, max(len(s.buf), 2*minSpace))...)
		s.buf = s.buf[:cap(s.buf)]
	}
	return s.buf[s.fill:]
}

// Filled says that n bytes were read into Space. It fails when the incomplete
// event has grown too long.
func (s *Splitter) Filled(n int) error {
	s.fill += n
	s.scan()
	if s.fill-s.whole > MaxEvent {
		return ErrEventTooLong
	}
	return nil
}

func (s *Splitter) scan() {
	for s.seen < s.fill {
		rest := s.buf[s.seen:s.fill]
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			end = len(rest)
		}
		if cr := bytes.IndexByte(rest[:end], '\r'); cr >= 0 {
			end = cr
		}
		if end == len(rest) {
			s.seen = s.fill
			return
		}
		at := s.seen + end // the line end
		next := at + 1
		if s.buf[at] == '\r' {
			if next == s.fill && (at > s.line || s.crlf()) {
				// The LF of a CRLF may still come. After a line that ended in a
				// bare CR it will not, and the event must not wait for it.
				return
			}
			if next < s.fill && s.buf[next] == '\n' {
				next++
			}
		}
		if at == s.line {
			s.whole = next
		}
		s.line, s.seen = next, next
	}
}

// crlf reports whether the line before the present one ended in CRLF.
func (s *Splitter) crlf() bool {
	return s.line >= s.from+2 && s.buf[s.line-1] == '\n' && s.buf[s.line-2] == '\r'
}

// Whole takes the whole events read so far, nil when there is none. The bytes
// are valid until the next call of Space.
func (s *Splitter) Whole() []byte {
	b := s.buf[s.from:s.whole]
	s.from = s.whole
	if len(b) == 0 {
		return nil
	}
	return b
}

// Reset forgets everything but the memory.
func (s *Splitter) Reset() { *s = Splitter{buf: s.buf} }

// Rest returns the bytes of an event that was never ended.
func (s *Splitter) Rest() []byte { return s.buf[s.from:s.fill] }

// Events calls f for each event of whole, which must be what Whole returned.
func Events(whole []byte, f func(event []byte)) {
	for len(whole) > 0 {
		n := eventEnd(whole)
		f(whole[:n])
		whole = whole[n:]
	}
}

// eventEnd returns the length of the first event of b, blank line included.
func eventEnd(b []byte) int {
	line := 0
	for i := 0; i < len(b); i++ {
		if b[i] != '\n' && b[i] != '\r' {
			n := bytes.IndexByte(b[i:], '\n')
			if n < 0 {
				n = len(b) - i
			}
			if cr := bytes.IndexByte(b[i:i+n], '\r'); cr >= 0 {
				n = cr
			}
			i += n
			if i >= len(b) {
				return len(b)
			}
		}
		blank := i == line
		if b[i] == '\r' && i+1 < len(b) && b[i+1] == '\n' {
			i++
		}
		if blank {
			return i + 1
		}
		line = i + 1
	}
	return len(b)
}
