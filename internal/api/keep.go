package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"time"
)

// Declared is what a request asks of prefix caches: how long to keep what it
// begins with, and under which name.
type Declared struct {
	Session string        // "prompt_cache_key"
	Life    time.Duration // 0 when none is declared
	// Part is the share of the prompt that is marked, 1 for all of it.
	Part float64
}

// Keeps reports whether anything is asked.
func (d *Declared) Keeps() bool { return d.Session != "" || d.Life > 0 }

// The lifetimes that can be declared.
const (
	usualLife = 5 * time.Minute // of a cache_control without a ttl
	longLife  = time.Hour
	dayLife   = 24 * time.Hour // of "prompt_cache_retention": "24h"
)

// maxSession is the longest name of a session that is remembered.
const maxSession = 256

// marks are the cache_control members that a walk has come by.
type marks struct {
	life time.Duration // the longest
	end  int           // of the last one
}

// cacheControl consumes the value of a cache_control.
func (s *scanner) cacheControl() {
	raw := s.value()
	if len(raw) == 0 || raw[0] != '{' {
		return
	}
	life := usualLife
	if bytes.Contains(raw, []byte(`"1h"`)) {
		life = longLife
	}
	s.marks.life, s.marks.end = max(s.marks.life, life), s.i
}

// marked consumes a value and returns with it how many of its bytes end with a
// mark, 0 for none.
func (s *scanner) marked() (raw []byte, upTo int) {
	s.space()
	from := s.i
	raw = s.value()
	return raw, max(s.marks.end-from, 0)
}

// isCacheControl compares lengths first: it is asked of every member of a body.
func isCacheControl(key []byte) bool {
	const name = "cache_control"
	return len(key) == len(name) && string(key) == name
}

// declares consumes the value of a top-level field that speaks of caches, and
// reports whether key is one. What engines may refuse is theirs to judge.
func (r *Request) declares(s *scanner, key []byte) bool {
	switch string(key) {
	case "prompt_cache_key":
		if raw := s.value(); len(raw) > 2 && raw[0] == '"' && len(raw) <= maxSession {
			_ = json.Unmarshal(raw, &r.Declared.Session) // the scanner has checked it
		}
	case "prompt_cache_retention":
		if string(s.value()) == `"24h"` {
			r.Declared.Life = max(r.Declared.Life, dayLife)
		}
	case "cache_control":
		s.cacheControl()
		s.marks.end = 0 // the whole prompt
	default:
		return false
	}
	return true
}

// declared puts together what was declared, at the end of a walk.
func (r *Request) declared(s *scanner) {
	d := &r.Declared
	d.Life, d.Part = max(d.Life, s.marks.life), 1
	if d.Session != "" && d.Life == 0 {
		d.Life = usualLife
	}
	all := len(r.Lead) + len(r.Prompt)
	if s.marks.end == 0 || d.Session != "" || all == 0 {
		return
	}
	upTo := r.leadMark
	if r.promptMark > 0 {
		upTo = len(r.Lead) + r.promptMark
	}
	d.Part = float64(upTo) / float64(all)
}

// errNoReplay says that a request cannot be sent again for the sake of its cache.
var errNoReplay = errors.New("requests of this kind cannot be sent again with an answer of one token")

// Replay returns a body with the prompt of body, and an answer of one token that
// nobody is told of. It is for caches: what decides about the answer only is left
// out.
func Replay(body []byte, kind Kind) ([]byte, error) {
	limit := ""
	switch kind {
	case Chat, Completion, Messages:
		limit = "max_tokens"
	case Responses:
		limit = "max_output_tokens"
	default:
		return nil, errNoReplay
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, err
	}
	if _, newer := fields["max_completion_tokens"]; newer {
		limit = "max_completion_tokens"
	}
	for _, name := range answerFields {
		delete(fields, name)
	}
	fields[limit], fields["stream"] = json.RawMessage("1"), json.RawMessage("false")
	if kind == Responses {
		fields["store"] = json.RawMessage("false")
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	err := e.Encode(fields)
	return out.Bytes(), err
}

// answerFields decide about an answer and not about what is cached for it.
var answerFields = []string{
	"stream", "stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "n", "best_of", "echo", "stop", "stop_sequences",
	"logprobs", "top_logprobs", "prompt_logprobs", "response_format", "ignore_eos", "use_beam_search", "background", "metadata",
}
