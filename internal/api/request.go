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
	MaxOut       fleet.Tokens // the limit on the output; 0 when unset
	Lead         []byte       // raw value of what stands before the prompt, such as "system"
	Prompt       []byte       // raw value of the prompt, such as "messages"
	Tools        []byte       // raw value of "tools"
	CacheSalt    []byte       // raw value of "cache_salt"
	Previous     string       // "previous_response_id"
	Declared     Declared     // what it asks of prefix caches

	promptIDs  int  // token ids in the prompt, when it is given as ids
	prompts    int  // when it is a list of texts or of lists of ids
	n, bestOf  bool // more than one answer is asked for
	media      int  // files inlined in the prompt
	mediaBytes int
	places     places

	leadMark, promptMark int // bytes of Lead and Prompt up to the last mark in them
}

// FieldError says that one field of a body is missing or of the wrong type.
type FieldError struct{ Field, Problem string }

func (e *FieldError) Error() string { return fmt.Sprintf("%q %s", e.Field, e.Problem) }

// Scan reads a request body once. It returns a *SyntaxError when the body is
// not one JSON object, and a *FieldError when a field that routing needs is
// missing or of the wrong type; all else is the engine's to judge.
func Scan(body []byte, kind Kind) (Request, error) {
	var r Request
	s := scanner{b: body}
	sh := shapes[kind]
	var bad *FieldError
	it := s.object()
	r.places.begin(s.i)
	for it.next() {
		key := plainKey(it.key)
		r.places.member(key, it.at)
		if e := r.field(&s, key, &sh); e != nil && bad == nil {
			bad = e
		}
		r.places.valueEnds(s.i)
	}
	r.places.end()
	if s.err == nil {
		s.end()
	}
	r.declared(&s)
	switch {
	case s.err != nil:
		return r, s.err
	case bad != nil:
		return r, bad
	}
	if err := r.checkModel(); err != nil {
		return r, err
	}
	if r.Prompt == nil && sh.required {
		return r, &FieldError{sh.prompt[0], "is required"}
	}
	return r, nil
}

func (r *Request) checkModel() error {
	switch {
	case len(r.Model) > maxModel:
		r.Model = ""
		return &FieldError{"model", fmt.Sprintf("must be at most %d bytes long", maxModel)}
	case r.Model == "":
		return &FieldError{"model", "is required: name one of the models that GET /v1/models lists"}
	}
	return nil
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
func (r *Request) field(s *scanner, key []byte, sh *shape) *FieldError {
	switch string(key) {
	case "model":
		s.space()
		r.places.model.from = s.i
		err := stringField(s, "model", &r.Model)
		r.places.model.to = s.i
		return err
	case "stream":
		return boolField(s, "stream", &r.Stream)
	case "stream_options":
		return r.streamOptions(s)
	case "tools":
		r.Tools = s.value()
		return nil
	case "cache_salt":
		s.space()
		r.places.salt.from = s.i
		r.CacheSalt = s.value()
		r.places.salt.to = s.i
		return nil
	case "previous_response_id":
		if sh.continues && s.peek() == '"' {
			return stringField(s, "previous_response_id", &r.Previous)
		}
	}
	switch string(key) {
	case "n":
		r.n = moreThanOne(s.value())
		return nil
	case "best_of":
		r.bestOf = moreThanOne(s.value())
		return nil
	}
	if carries(key) && s.peek() == '{' {
		r.places.inside(s)
		return nil
	}
	if sh.lead != "" && string(key) == sh.lead {
		r.Lead, r.leadMark = s.marked()
		return nil
	}
	for _, name := range sh.prompt {
		if string(key) == name {
			return r.prompt(s, name, sh)
		}
	}
	for _, name := range sh.limit {
		if string(key) == name {
			return r.limit(s, name, sh.echo)
		}
	}
	if !sh.salted || !r.declares(s, key) {
		s.value()
	}
	return nil
}

func (r *Request) prompt(s *scanner, field string, sh *shape) *FieldError {
	c := s.peek()
	media, mediaBytes := s.media, s.mediaBytes
	r.Prompt, r.promptMark = s.marked()
	r.media, r.mediaBytes = s.media-media, s.mediaBytes-mediaBytes
	if sh.starts == "" || bytes.IndexByte([]byte(sh.starts), c) >= 0 {
		r.promptIDs, r.prompts = countIDs(r.Prompt), countPrompts(r.Prompt)
		return nil
	}
	r.Prompt = nil
	return &FieldError{field, sh.wants}
}

// Several reports whether more than one sequence is asked for: answers to several
// prompts, or several to one.
func (r *Request) Several() bool { return r.prompts > 1 || r.n || r.bestOf }

// moreThanOne reports whether a value is a number above 1.
func moreThanOne(raw []byte) bool {
	x, err := strconv.ParseFloat(string(raw), 64)
	return err == nil && x > 1
}

// countPrompts returns how many there are in a list of texts or of lists of ids; 0
// for anything else.
func countPrompts(raw []byte) int {
	s := scanner{b: raw}
	if s.peek() != '[' {
		return 0
	}
	depth, n, quoted := 0, 0, false
	for i := s.i; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			if quoted = !quoted; quoted && depth == 1 {
				n++
			}
		case quoted:
		case c == '{':
			return 0
		case c == '[':
			if depth++; depth == 2 {
				n++
			}
		case c == ']':
			depth--
		}
	}
	return n
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

// limit reads a limit on the output. Where zero is allowed it asks for what can
// be had without output, such as the prompt's log probabilities.
func (r *Request) limit(s *scanner, field string, zero bool) *FieldError {
	raw := s.value()
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	n, err := strconv.ParseInt(string(raw), 10, 32)
	if err != nil || n < 0 || n == 0 && !zero {
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
	text := len(r.Lead) + len(r.Prompt) - r.mediaBytes + len(r.Tools)
	return max(fleet.Tokens(float64(text)/bytesPerToken)+fleet.Tokens(r.media*mediaTokens), 1)
}

// Counted reports whether PromptTokens is a count and no estimate.
func (r *Request) Counted() bool { return r.promptIDs > 0 }

// TextBytes returns how many bytes of the prompt are text, 0 for a prompt of
// token ids or with files in it: the figure from which bytes per token are
// learnt.
func (r *Request) TextBytes() int {
	if r.promptIDs > 0 || r.media > 0 {
		return 0
	}
	return len(r.Lead) + len(r.Prompt) + len(r.Tools)
}

// Chain appends the keys of the prompt's bytes to dst and returns them with the
// number of tokens each covers, given the prompt's length in tokens. Equal
// prefixes of the raw body are equal prefixes of the prompt; what else changes
// the KV of equal text (model, tools, salt, kind of request) seeds the chain.
func (r *Request) Chain(dst []kv.Key, kind Kind, prompt fleet.Tokens) ([]kv.Key, float64) {
	seed := kv.Seed([]byte(r.Model), []byte{byte(kind)}, r.Tools, r.CacheSalt)
	if len(r.Lead) > 0 {
		dst, seed = chainLead(dst, seed, r.Lead)
	}
	if len(dst) == 0 && len(r.Prompt) < kv.ChunkBytes {
		return dst, 0
	}
	return kv.Chain(dst, seed, r.Prompt), float64(prompt) * kv.ChunkBytes / float64(len(r.Lead)+len(r.Prompt))
}

// chainLead appends the keys of what stands before the prompt and returns the
// seed of the prompt's own: the last key, and what was too short for one.
func chainLead(dst []kv.Key, seed kv.Key, lead []byte) ([]kv.Key, kv.Key) {
	dst = kv.Chain(dst, seed, lead)
	if n := len(dst); n > 0 {
		seed = dst[n-1]
	}
	rest := lead[len(lead)/kv.ChunkBytes*kv.ChunkBytes:]
	return dst, kv.Seed(strconv.AppendUint(nil, uint64(seed), 16), rest)
}
