package api

import (
	"bytes"
	"encoding/json"

	"penstock.dev/penstock/internal/fleet"
)

// readResponseEvent reads the data of one event of the Responses API. What it
// means hangs on its type, which may come last.
func readResponseEvent(s *scanner, c *Chunk) {
	var kind []byte
	var r Chunk // what the response inside says
	r.Usage.Cached = -1
	for it := s.object(); it.next(); {
		switch string(it.key) {
		case "type":
			kind = bytes.Trim(s.value(), `"`)
		case "response":
			if s.peek() == '{' {
				readResponse(s, &r)
			} else {
				s.value()
			}
		case "error":
			readError(s, &r)
		case "code":
			code := string(bytes.Trim(s.value(), `"`))
			r.Overload = r.Overload || code == "429" || code == "503"
		default:
			s.value()
		}
	}
	c.ID = r.ID
	switch string(kind) {
	case "response.completed", "response.incomplete", "response.cancelled":
		c.Done, c.Finish, c.Usage = true, true, r.Usage
	case "response.failed", "error":
		c.Error, c.Overload = true, r.Overload
	case "":
		// Not an event of this API; an error object may still be in it.
		c.Error, c.Overload = r.Error, r.Overload
	default:
		c.Text = bytes.HasSuffix(kind, []byte(".delta"))
	}
}

// readResponse reads a response object: a whole answer, or what the first and
// the last events carry.
func readResponse(s *scanner, c *Chunk) {
	for it := s.object(); it.next(); {
		switch string(it.key) {
		case "id":
			c.ID = text(s)
		case "usage":
			readUsage(s, &c.Usage)
		case "error":
			readError(s, c)
		case "output":
			c.Text = !isEmpty(s.value()) || c.Text
		case "status":
			switch string(s.value()) {
			case `"completed"`, `"incomplete"`, `"cancelled"`:
				c.Finish = true
			}
		default:
			s.value()
		}
	}
}

// text consumes a value and returns it as a string, "" when it is none.
func text(s *scanner) string {
	raw := s.value()
	if len(raw) < 2 || raw[0] != '"' {
		return ""
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1])
	}
	var v string
	if err := json.Unmarshal(raw, &v); err != nil {
		return ""
	}
	return v
}

// readMessage reads an object of the Messages API of Anthropic: a whole answer,
// or the data of an event.
func readMessage(s *scanner, c *Chunk) {
	var kind []byte
	for it := s.object(); it.next(); {
		switch string(it.key) {
		case "type":
			kind = bytes.Trim(s.value(), `"`)
		case "usage":
			readMessageUsage(s, &c.Usage)
		case "message":
			if s.peek() == '{' {
				for m := s.object(); m.next(); {
					if string(m.key) == "usage" {
						readMessageUsage(s, &c.Usage)
					} else {
						s.value()
					}
				}
			} else {
				s.value()
			}
		case "delta":
			readStop(s, c)
		case "stop_reason":
			c.Finish = !isEmpty(s.value()) || c.Finish
		case "content":
			c.Text = !isEmpty(s.value()) || c.Text
		case "error":
			readError(s, c)
		default:
			s.value()
		}
	}
	switch string(kind) {
	case "content_block_delta":
		c.Text = true
	case "message_stop":
		c.Done, c.Finish = true, true
	case "error":
		c.Error = true
	}
	// A count is final when the engine says why it stopped.
	c.Usage.Known = c.Usage.Known && c.Finish
}

func readStop(s *scanner, c *Chunk) {
	if s.peek() != '{' {
		s.value()
		return
	}
	for it := s.object(); it.next(); {
		if raw := s.value(); string(it.key) == "stop_reason" {
			c.Finish = !isEmpty(raw) || c.Finish
		}
	}
}

// readMessageUsage reads a usage object of Anthropic's, which counts cached
// tokens apart from the others.
func readMessageUsage(s *scanner, u *fleet.Usage) {
	if s.peek() != '{' {
		s.value()
		return
	}
	got := fleet.Usage{Cached: -1}
	for it := s.object(); it.next(); {
		switch string(it.key) {
		case "input_tokens", "cache_creation_input_tokens":
			got.Prompt += count(s)
		case "cache_read_input_tokens":
			if s.peek() == 'n' {
				s.value()
				continue
			}
			got.Cached = count(s)
			got.Prompt += got.Cached
		case "output_tokens":
			got.Output = count(s)
		default:
			s.value()
		}
	}
	if got.Prompt > 0 || got.Output > 0 {
		got.Known = true
		*u = got
	}
}
