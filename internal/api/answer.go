package api

import (
	"bytes"
	"slices"
	"strconv"

	"penstock.dev/penstock/internal/fleet"
)

// Chunk is what one event of an answer stream, or a whole answer, says.
type Chunk struct {
	Data     bool // carries JSON
	Done     bool // the closing event: the client has all there is
	Text     bool // carries output: text, reasoning or a tool call
	Finish   bool // carries a finish reason
	Error    bool // carries an error instead of an answer
	Garbage  bool // carries data that is neither JSON nor [DONE]
	Overload bool // with Error: the engine says it is full
	Missed   bool // with Finish: too little of the prompt has KV where it was asked for
	// Usage is the final count when it is known. Before that it may tell the
	// prompt alone.
	Usage fleet.Usage
	// ID is that of the stored response, in the events that carry it whole.
	ID string
}

// ReadChunk reads one event of a chat or text completion stream.
func ReadChunk(event []byte) Chunk { return ReadEvent(Completions, event) }

// ReadEvent reads one event of a stream. Events without data, such as
// keep-alive comments, give a zero Chunk.
func ReadEvent(p Protocol, event []byte) Chunk {
	var c Chunk
	data, ok := eventData(event)
	if !ok {
		return c
	}
	if bytes.Equal(data, []byte("[DONE]")) {
		c.Done = true
		return c
	}
	c, ok = readObject(p, data, true)
	if !ok {
		return Chunk{Garbage: true}
	}
	return c
}

// EventData returns the data of an event, nil when it has none.
func EventData(event []byte) []byte {
	data, _ := eventData(event)
	return data
}

// eventData returns the data of an event. Several data lines are joined with
// line feeds, as the event stream grammar has it; only that allocates.
func eventData(event []byte) (data []byte, found bool) {
	for len(event) > 0 {
		line := event
		if n := bytes.IndexAny(event, "\r\n"); n >= 0 {
			line, event = event[:n], event[n+1:]
		} else {
			event = nil
		}
		more, ok := bytes.CutPrefix(line, []byte("data:"))
		switch {
		case ok && found:
			data = slices.Concat(data, []byte("\n"), more)
		case ok:
			data, found = more, true
		}
	}
	return bytes.TrimSpace(data), found
}

// ReadAnswer reads an answer that is not streamed. It reports false when the
// body is not what the protocol allows: a JSON object, or with AnyJSON also an
// array.
func ReadAnswer(p Protocol, body []byte) (Chunk, bool) {
	if s := (scanner{b: body}); p == AnyJSON && s.peek() != '{' {
		ok := s.peek() == '[' && s.value() != nil
		s.end()
		return Chunk{Data: true, Usage: fleet.Usage{Cached: -1}}, ok && s.err == nil
	}
	return readObject(p, body, false)
}

func readObject(p Protocol, data []byte, event bool) (Chunk, bool) {
	s := scanner{b: data}
	c := Chunk{Data: true, Usage: fleet.Usage{Cached: -1}}
	switch {
	case p == ResponseEvents && event:
		readResponseEvent(&s, &c)
	case p == ResponseEvents:
		readResponse(&s, &c)
	case p == MessageEvents:
		readMessage(&s, &c)
	default:
		readAnswer(&s, &c)
		c.Text = c.Text || p == AnyJSON && !c.Error
	}
	if s.err == nil {
		s.end()
	}
	return c, s.err == nil
}

func readAnswer(s *scanner, c *Chunk) {
	for it := s.object(); it.next(); {
		switch string(it.key) {
		case "choices":
			readChoices(s, c)
		case "usage":
			readUsage(s, &c.Usage)
		case "error":
			readError(s, c)
		default:
			s.value()
		}
	}
}

// readError reads an error, an object with a code or anything else but null.
func readError(s *scanner, c *Chunk) {
	if s.peek() != '{' {
		c.Error = !isEmpty(s.value()) || c.Error
		return
	}
	c.Error = true
	for it := s.object(); it.next(); {
		raw := bytes.Trim(s.value(), `"`)
		switch string(it.key) {
		case "code":
			c.Overload = c.Overload || string(raw) == "429" || string(raw) == "503"
		case "type":
			c.Overload = c.Overload || string(raw) == typeOverload || string(raw) == typeRate
		}
	}
}

func readChoices(s *scanner, c *Chunk) {
	if s.peek() != '[' {
		s.value()
		return
	}
	for all := s.array(); all.next(); {
		if s.peek() != '{' {
			s.value()
			continue
		}
		for it := s.object(); it.next(); {
			switch string(it.key) {
			case "text":
				c.Text = !isEmpty(s.value()) || c.Text
			case "delta", "message":
				readDelta(s, c)
			case "finish_reason":
				raw := s.value()
				c.Finish = !isEmpty(raw) || c.Finish
				c.Missed = c.Missed || string(raw) == `"cache_threshold"`
			default:
				s.value()
			}
		}
	}
}

func readDelta(s *scanner, c *Chunk) {
	if s.peek() != '{' {
		s.value()
		return
	}
	for it := s.object(); it.next(); {
		switch string(it.key) {
		case "role":
			s.value()
		default:
			// content, reasoning, reasoning_content, tool_calls, refusal, audio:
			// whatever else is not empty is output.
			c.Text = !isEmpty(s.value()) || c.Text
		}
	}
}

func isEmpty(raw []byte) bool {
	switch string(raw) {
	case "", `""`, "null", "[]", "{}":
		return true
	}
	return false
}

// readUsage reads a usage object of the OpenAI API, in either naming. Engines
// that send a zero object with every chunk leave u unknown until the real one
// comes.
func readUsage(s *scanner, u *fleet.Usage) {
	if s.peek() != '{' {
		s.value()
		return
	}
	got := fleet.Usage{Cached: -1}
	for it := s.object(); it.next(); {
		switch string(it.key) {
		case "prompt_tokens", "input_tokens":
			got.Prompt = count(s)
		case "completion_tokens", "output_tokens":
			got.Output = count(s)
		case "prompt_tokens_details", "input_tokens_details":
			if s.peek() != '{' {
				s.value()
				continue
			}
			for d := s.object(); d.next(); {
				if string(d.key) == "cached_tokens" && s.peek() != 'n' {
					got.Cached = count(s)
				} else {
					s.value()
				}
			}
		default:
			s.value()
		}
	}
	if got.Prompt > 0 || got.Output > 0 {
		got.Known = true
		*u = got
	}
}

func count(s *scanner) fleet.Tokens {
	n, err := strconv.ParseInt(string(s.value()), 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return fleet.Tokens(n)
}
