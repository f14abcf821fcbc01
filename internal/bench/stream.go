package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cespare/xxhash/v2"
)

// verifyLevel says how closely a stream is looked at.
type verifyLevel uint8

const (
	verifyOff     verifyLevel = iota
	verifyFraming             // events, ids, finish_reason, [DONE], counts not above usage
	verifyStrict              // and one event with content per token
)

// maxEvent bounds one event: no honest one comes near.
const maxEvent = 1 << 20

// stream follows one answer. It is reused from request to request.
type stream struct {
	verify verifyLevel
	keep   bool                 // collect the answer's text
	clock  func() time.Duration // since the start of the load

	buf  []byte // read buffer; [0:fill] is unread or half an event
	fill int

	first, last time.Duration // first and latest event with content; 0 for none
	end         time.Duration // when the answer was complete or broke
	gaps        []time.Duration
	tokens      int // events with content
	id          []byte
	finish      string
	done        bool
	usage       chunk // of the last event that carried usage
	text        []byte
	hash        xxhash.Digest
	wrong       string // first thing found wrong, empty for none
}

func newStream() *stream { return &stream{buf: make([]byte, 16<<10)} }

// reset makes the stream ready for another answer.
func (s *stream) reset(v verifyLevel, keep bool, clock func() time.Duration) {
	buf, gaps, id, text := s.buf, s.gaps[:0], s.id[:0], s.text[:0]
	*s = stream{verify: v, keep: keep, clock: clock, buf: buf, gaps: gaps, id: id, text: text}
	s.hash.Reset()
}

// An sseError is an error the server sent as an event of the stream.
type sseError struct{ body string }

func (e *sseError) Error() string { return "the server sent an error event: " + e.body }

// errCut means that a stream ended before the answer did.
var errCut = errors.New("the stream ended before the answer")

// read takes the answer in until it ends. What is wrong with the content goes
// to wrong; the error says that it broke off or that the server gave up.
func (s *stream) read(r io.Reader) error {
	for {
		n, err := r.Read(s.buf[s.fill:])
		now := s.clock()
		s.fill += n
		if !s.done { // what follows [DONE] is no part of the answer
			s.end = now
		}
		if n > 0 {
			if err := s.events(now); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return s.atEnd()
		case err != nil:
			return fmt.Errorf("%w: %w", errCut, err)
		}
		if s.fill == len(s.buf) {
			if s.fill >= maxEvent {
				s.found("an event is longer than %d bytes", maxEvent)
				return errCut
			}
			s.buf = append(s.buf, make([]byte, len(s.buf))...)
		}
	}
}

// events handles all whole events in the buffer and moves the rest to its front.
func (s *stream) events(now time.Duration) error {
	start, line := 0, 0 // of the event, and of the line in it
	for {
		nl := bytes.IndexByte(s.buf[line:s.fill], '\n')
		if nl < 0 {
			break
		}
		end := line + nl
		if blank := end == line || (end == line+1 && s.buf[line] == '\r'); blank {
			if err := s.event(s.buf[start:line], now); err != nil {
				return err
			}
			start = end + 1
		}
		line = end + 1
	}
	copy(s.buf, s.buf[start:s.fill])
	s.fill -= start
	return nil
}

// event handles the lines of one event. Nearly all have one data line, which is
// used where it stands.
func (s *stream) event(lines []byte, now time.Duration) error {
	var data []byte
	n := 0
	for len(lines) > 0 {
		nl := bytes.IndexByte(lines, '\n')
		line := bytes.TrimSuffix(lines[:nl], []byte("\r"))
		lines = lines[nl+1:]
		switch {
		case bytes.HasPrefix(line, []byte("data:")):
			d := bytes.TrimPrefix(line[len("data:"):], []byte(" "))
			if n++; n == 1 {
				data = d
			} else {
				data = append(append(bytes.Clone(data), '\n'), d...)
			}
		case len(line) == 0 || line[0] == ':' || isField(line):
		default:
			s.found("line %.60q is no field of an event stream", line)
		}
	}
	if n == 0 {
		return nil // comments keep the connection alive
	}
	return s.data(data, now)
}

func isField(line []byte) bool {
	name, _, _ := bytes.Cut(line, []byte(":"))
	return string(name) == "event" || string(name) == "id" || string(name) == "retry"
}

// data handles the data of one event.
func (s *stream) data(data []byte, now time.Duration) error {
	if s.done {
		s.found("an event after [DONE]: %.60q", data)
		return nil
	}
	if string(data) == "[DONE]" {
		s.done = true
		return nil
	}
	k, ok := parseChunk(data)
	if !ok {
		s.found("an event is not a JSON object: %.80q", data)
		return nil
	}
	if k.fail != nil {
		return &sseError{body: clip(string(k.fail))}
	}
	if len(s.id) == 0 {
		s.id = append(s.id, k.id...)
	} else if len(k.id) > 0 && !bytes.Equal(k.id, s.id) {
		s.found("the id changed from %.40q to %.40q", s.id, k.id)
	}
	if len(k.content) > 0 {
		if s.finish != "" {
			s.found("text after finish_reason")
		}
		s.content(k.content, now)
	}
	if len(k.finish) > 0 {
		if s.finish != "" {
			s.found("finish_reason twice")
		}
		s.finish = string(k.finish)
	}
	if k.usage {
		s.usage = chunk{usage: true, prompt: k.prompt, output: k.output, cached: k.cached}
	}
	return nil
}

func (s *stream) content(text []byte, now time.Duration) {
	now = max(now, 1) // 0 means none
	if s.tokens == 0 {
		s.first = now
	} else {
		s.gaps = append(s.gaps, now-s.last)
	}
	s.last = now
	s.tokens++
	_, _ = s.hash.Write(text) // never fails
	if s.keep {
		s.text = append(s.text, text...)
	}
}

// atEnd judges a stream that ended without an error of the connection.
func (s *stream) atEnd() error {
	switch {
	case s.done && s.fill > 0:
		s.found("%d bytes after [DONE]", s.fill)
	case s.done:
	case s.finish == "" || s.fill > 0:
		return errCut
	default:
		s.found("no [DONE] at the end")
	}
	if s.finish == "" {
		s.found("no finish_reason")
	}
	return nil
}

// count compares what came with what the server counted and what was wanted.
// exact says that the server was told to generate exactly wanted tokens.
func (s *stream) count(wanted int, exact bool) {
	out := s.output()
	if s.usage.usage && s.tokens > out {
		s.found("%d events with text for %d tokens", s.tokens, out)
	}
	if s.verify == verifyStrict && s.usage.usage && s.tokens < out {
		s.found("%d events with text for %d tokens (use --verify framing if the engine puts several tokens into one event)", s.tokens, out)
	}
	if exact && (s.usage.usage || s.verify == verifyStrict) && out != wanted {
		s.found("%d tokens where %d were wanted (use --no-ignore-eos if the server does not know ignore_eos)", out, wanted)
	}
}

// output is the number of tokens generated: the server's count where it gives one.
func (s *stream) output() int {
	if s.usage.usage {
		return s.usage.output
	}
	return s.tokens
}

// found notes what is wrong with a stream, the first thing only: the rest
// usually follows from it.
func (s *stream) found(format string, args ...any) {
	if s.verify != verifyOff && s.wrong == "" {
		s.wrong = fmt.Sprintf(format, args...)
	}
}

// clip keeps messages from servers short.
func clip(s string) string {
	if len(s) > 300 {
		return s[:300] + "..."
	}
	return s
}
