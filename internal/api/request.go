package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// Request is what a body says of itself, as far as routing needs it. Byte
// fields point into the body.
type Request struct {
	Model        string
	Stream       bool
	IncludeUsage bool         // stream_options.include_usage
	MaxOut       fleet.Tokens // max_completion_tokens or max_tokens; 0 when unset
	Prompt       []byte       // raw value of "prompt" or "messages"
	Tools        []byte       // raw value of "tools"
	CacheSalt    []byte       // raw value of "cache_salt"

	promptIDs  int // token ids in the prompt, when it is given as ids
	media      int // files inlined in the prompt
	mediaBytes int
}

// Kind is the API that a request speaks.
type Kind uint8

// The kinds of request.
const (
	Chat Kind = iota
	Completion
)

// FieldError says that one field of a body is missing or of the wrong type.
type FieldError struct{ Field, Problem string }

func (e *FieldError) Error() string { return fmt.Sprintf("%q %s", e.Field, e.Problem) }

// Scan reads a request body once. It returns a *SyntaxError when the body is
// not one JSON object, and a *FieldError when a field that routing needs is
// missing or of the wrong type; all else is the engine's to judge.
func Scan(body []byte, kind Kind) (Request, error) {
	var r Request
	s := scanner{b: body}
	var bad *FieldError
	for it := s.object(); it.next(); {
		if e := r.field(&s, plainKey(it.key), kind); e != nil && bad == nil {
			bad = e
		}
	}
	if s.err == nil {
		s.end()
	}
	switch {
	case s.err != nil:
		return r, s.err
	case bad != nil:
		return r, bad
	case len(r.Model) > maxModel:
		r.Model = ""
		return r, &FieldError{"model", fmt.Sprintf("must be at most %d bytes long", maxModel)}
	case r.Model == "":
		return r, &FieldError{"model", "is required: name one of the models that GET /v1/models lists"}
	case r.Prompt == nil && kind == Chat:
		return r, &FieldError{"messages", "is required"}
	case r.Prompt == nil:
		return r, &FieldError{"prompt", "is required"}
	}
	return r, nil
}

// maxModel is the longest model name taken: it goes into logs and metrics.
const maxModel = 512

// plainKey returns a field's name without escapes: an engine would see through
// them, and must not find another model than the gateway did.
func plainKey(raw []byte) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw
	}
	var name string
	if err := json.Unmarshal(slices.Concat([]byte{'"'}, raw, []byte{'"'}), &name); err != nil {
		return raw // the scanner has checked it; nothing to find here
	}
	return []byte(name)
}

// field consumes the value of one top-level field. A repeated field counts by
// its last value, as JSON libraries read it.
func (r *Request) field(s *scanner, key []byte, kind Kind) *FieldError {
	switch string(key) {
	case "model":
		return stringField(s, "model", &r.Model)
	case "stream":
		return boolField(s, "stream", &r.Stream)
	case "stream_options":
		return r.streamOptions(s)
	case "max_tokens", "max_completion_tokens":
		return r.limit(s, string(key), kind)
	case "tools":
		r.Tools = s.value()
	case "cache_salt":
		r.CacheSalt = s.value()
	case "messages":
		if kind != Chat {
			s.value()
			return nil
		}
		return r.prompt(s, "messages", "[")
	case "prompt":
		if kind != Completion {
			s.value()
			return nil
		}
		return r.prompt(s, "prompt", "[\"")
	default:
		s.value()
	}
	return nil
}

func (r *Request) prompt(s *scanner, field, starts string) *FieldError {
	c := s.peek()
	media, mediaBytes := s.media, s.mediaBytes
	r.Prompt = s.value()
	r.media, r.mediaBytes = s.media-media, s.mediaBytes-mediaBytes
	for i := range len(starts) {
		if c == starts[i] {
			r.promptIDs = countIDs(r.Prompt)
			return nil
		}
	}
	r.Prompt = nil
	if field == "messages" {
		return &FieldError{field, "must be an array of messages"}
	}
	return &FieldError{field, "must be a string, or an array of strings or token ids"}
}

// countIDs returns how many numbers a prompt of token ids holds; 0 for text.
func countIDs(raw []byte) int {
	ids, digit := 0, false
	for _, c := range raw {
		switch {
		case c == '"' || c == '{':
			return 0
		case c >= '0' && c <= '9':
			if !digit {
				ids++
			}
			digit = true
		default:
			digit = false
		}
	}
	return ids
}

func (r *Request) streamOptions(s *scanner) *FieldError {
	if s.peek() != '{' {
		if raw := s.value(); string(raw) != "null" {
			return &FieldError{"stream_options", "must be an object"}
		}
		return nil
	}
	var bad *FieldError
	for it := s.object(); it.next(); {
		if string(it.key) == "include_usage" {
			bad = boolField(s, "stream_options.include_usage", &r.IncludeUsage)
		} else {
			s.value()
		}
	}
	return bad
}

func stringField(s *scanner, field string, dst *string) *FieldError {
	if s.peek() != '"' {
		s.value()
		return &FieldError{field, "must be a string"}
	}
	raw := s.value()
	if raw == nil {
		return nil
	}
	// Unescapes; raw is valid by now.
	if err := json.Unmarshal(raw, dst); err != nil {
		return &FieldError{field, "must be a string"}
	}
	return nil
}

func boolField(s *scanner, field string, dst *bool) *FieldError {
	switch string(s.value()) {
	case "true":
		*dst = true
	case "false", "null", "":
		*dst = false
	default:
		return &FieldError{field, "must be true or false"}
	}
	return nil
}

// limit reads a limit on the output. Text completions may set it to zero: with
// "echo" that asks for the prompt's log probabilities alone.
func (r *Request) limit(s *scanner, field string, kind Kind) *FieldError {
	raw := s.value()
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	n, err := strconv.ParseInt(string(raw), 10, 32)
	if err != nil || n < 0 || n == 0 && kind == Chat {
		return &FieldError{field, "must be a positive integer"}
	}
	r.MaxOut = fleet.Tokens(n)
	return nil
}

// mediaTokens is what one inlined image or file is taken for, in tokens: the
// size of a full-size image in several model families. Its bytes say nothing.
const mediaTokens = 768

// PromptTokens estimates the prompt's length at the given bytes per token.
// Prompts of token ids are counted exactly.
func (r *Request) PromptTokens(bytesPerToken float64) fleet.Tokens {
	if r.promptIDs > 0 {
		return fleet.Tokens(r.promptIDs)
	}
	text := len(r.Prompt) - r.mediaBytes + len(r.Tools)
	return max(fleet.Tokens(float64(text)/bytesPerToken)+fleet.Tokens(r.media*mediaTokens), 1)
}

// TextBytes returns how many bytes of the prompt are text, 0 for a prompt of
// token ids or with files in it: the figure from which bytes per token are
// learnt.
func (r *Request) TextBytes() int {
	if r.promptIDs > 0 || r.media > 0 {
		return 0
	}
	return len(r.Prompt) + len(r.Tools)
}

// Chain appends the keys of the prompt's bytes to dst and returns them with the
// number of tokens each covers, given the prompt's length in tokens. Equal
// prefixes of the raw body are equal prefixes of the prompt; what else changes
// the KV of equal text (model, tools, salt, kind of request) seeds the chain.
func (r *Request) Chain(dst []kv.Key, kind Kind, prompt fleet.Tokens) ([]kv.Key, float64) {
	seed := kv.Seed([]byte(r.Model), []byte{byte(kind)}, r.Tools, r.CacheSalt)
	if len(r.Prompt) < kv.ChunkBytes {
		return dst, 0
	}
	return kv.Chain(dst, seed, r.Prompt), float64(prompt) * kv.ChunkBytes / float64(len(r.Prompt))
}
