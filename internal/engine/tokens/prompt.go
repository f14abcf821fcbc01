package tokens

import (
	"bytes"
	"encoding/json"
	"hash/maphash"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/stat"
)

// turning are the members of a body, beside the prompt and the tools, that
// change which tokens a prompt becomes. Sampling and limits do not.
var turning = map[string]bool{
	"add_generation_prompt": true, "continue_final_message": true, "add_special_tokens": true,
	"chat_template": true, "chat_template_kwargs": true, "documents": true, "reasoning_effort": true,
	"tool_choice": true, "mm_processor_kwargs": true, "truncate_prompt_tokens": true,
}

// untold are members that make a prompt which no engine tells in tokens.
var untold = map[string]bool{"prompt_embeds": true, "suffix": true, "previous_response_id": true, "conversation": true}

// member is a name in a body, without quotes, and its raw value.
type member struct{ name, value []byte }

// maxMembers is how many members that change tokens are read; there are fewer
// names of them.
const maxMembers = 16

// prompt is a request as far as it decides on tokens. It points into the query.
type prompt struct {
	raw     []byte // messages, or text; for ids the list of them
	chat    bool
	ids     bool
	members [maxMembers]member
	n       int // of members
}

// read finds out what of q decides on tokens.
func read(q *Query) (prompt, Reason) {
	p := prompt{raw: bytes.TrimSpace(q.Prompt), chat: q.Kind != api.Completion}
	switch q.Kind {
	case api.Chat, api.Messages, api.Responses, api.Completion:
	default:
		return p, ReasonKind
	}
	if len(p.raw) == 0 || !p.turn(q) {
		return p, ReasonKind
	}
	if q.Kind == api.Completion {
		return p, p.completion()
	}
	return p, ReasonNone
}

// completion sees what kind of prompt a completion has: one text or one list of
// ids, alone or as the only one of a list.
func (p *prompt) completion() Reason {
	for range 2 {
		if p.raw[0] == '"' {
			return ReasonNone
		}
		c := cursor{b: p.raw}
		first, more := c.only()
		switch {
		case len(first) == 0:
			return ReasonKind
		case isDigit(first[0]):
			p.ids = true
			return ReasonNone
		case more:
			return ReasonSeveral
		}
		p.raw = first
	}
	return ReasonKind
}

// turn collects the members that change tokens. It reports whether an engine
// could tell them.
func (p *prompt) turn(q *Query) bool {
	c := cursor{b: q.Body}
	if !c.take('{') {
		return len(q.Body) == 0
	}
	for c.peek() == '"' {
		name, ok := c.str()
		if !ok || !c.take(':') {
			return false
		}
		c.space()
		value, ok := c.jump(q.Prompt, q.Tools, q.Lead)
		if !ok {
			return false
		}
		if len(value) > 0 && string(value) != "null" {
			switch {
			case untold[string(name)]:
				return false
			case turning[string(name)] && p.n < maxMembers:
				p.members[p.n] = member{name, value}
				p.n++
			}
		}
		if !c.take(',') {
			break
		}
	}
	return c.take('}')
}

// jump is value for a value that may be one of the known ones, which it does
// not read again; it then returns nil. What begins like a whole string, array
// or object is that one.
func (c *cursor) jump(known ...[]byte) ([]byte, bool) {
	for _, k := range known {
		if len(k) > 1 && (k[0] == '"' || k[0] == '[' || k[0] == '{') && bytes.HasPrefix(c.b[c.i:], k) {
			c.i += len(k)
			return nil, true
		}
	}
	return c.value()
}

// digest is a hash of 128 bits of the beginning of a request. Its seeds are the
// process's own: nobody outside can make two that meet.
type digest struct{ hi, lo uint64 }

// sum goes on from d over b.
func (s *Source) sum(d digest, b []byte) digest {
	return digest{
		stat.Mix64(d.hi*0x9e3779b97f4a7c15 ^ maphash.Bytes(s.seeds[0], b)),
		stat.Mix64(d.lo*0x9e3779b97f4a7c15 ^ maphash.Bytes(s.seeds[1], b)),
	}
}

func (s *Source) sumString(d digest, t string) digest {
	return digest{
		stat.Mix64(d.hi*0x9e3779b97f4a7c15 ^ maphash.String(s.seeds[0], t)),
		stat.Mix64(d.lo*0x9e3779b97f4a7c15 ^ maphash.String(s.seeds[1], t)),
	}
}

// heads returns the digest of all that decides on tokens and keys and is not
// the prompt. Where a prompt begins with what stands before it, such as tools,
// equal prompts with other heads have nothing in common.
func (s *Source) heads(q *Query, p *prompt) digest {
	d := digest{uint64(q.Kind)<<8 | uint64(q.Space.Mode)<<4 | uint64(q.Form), uint64(q.Space.Block)<<32 | uint64(q.Block)}
	d = s.sumString(s.sumString(s.sumString(d, q.Pool), q.Model), q.Adapter)
	d = s.sum(s.sum(s.sum(d, q.Tools), q.Lead), q.Salt)
	if q.Space.Mode == kv.KeysDirect {
		d = s.sum(d, q.Space.Root[:])
	}
	for _, m := range p.members[:p.n] {
		d = s.sum(s.sum(d, m.name), m.value)
	}
	return d
}

const (
	// maxBounds is how many bounds of a prompt are kept: its first messages, which
	// others share, and its last, where the next turn goes on.
	maxBounds   = 256
	firstBounds = 32
	// chunk is what stands for a message where a prompt is one text, in bytes.
	chunk = 4096
)

// bounds appends the digests of the prompt's beginnings, each a message longer
// than the one before; the last, which is always there, is of the whole.
func (s *Source) bounds(dst []digest, head digest, raw []byte) []digest {
	d, at := head, len(dst)
	add := func(part []byte) {
		d = s.sum(d, part)
		if len(dst)-at >= maxBounds {
			copy(dst[at+firstBounds:], dst[at+firstBounds+1:])
			dst = dst[:len(dst)-1]
		}
		dst = append(dst, d)
	}
	if c := (cursor{b: raw}); c.take('[') {
		for c.peek() != ']' {
			part, ok := c.value()
			if !ok {
				break
			}
			add(part)
			if !c.take(',') {
				break
			}
		}
	}
	if len(dst) > at {
		return dst
	}
	for len(raw) > chunk {
		add(raw[:chunk])
		raw = raw[chunk:]
	}
	add(raw)
	return dst
}

// text returns what a raw JSON string says.
func text(raw []byte) string {
	if n := len(raw); n >= 2 && raw[0] == '"' && bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : n-1])
	}
	var t string
	if json.Unmarshal(raw, &t) != nil {
		return ""
	}
	return t
}

// mediaWords are names and types of the parts of messages that are no text.
var mediaWords = map[string]bool{
	"image_url": true, "input_image": true, "image_embeds": true, "image_pil": true, "image": true, "video_url": true, "video": true,
	"audio_url": true, "input_audio": true, "audio_embeds": true, "audio": true, "file": true, "input_file": true,
}

// hasMedia reports whether messages may have media in them.
func hasMedia(messages []byte) bool {
	for c := (cursor{b: messages}); ; {
		next := bytes.IndexByte(c.b[c.i:], '"')
		if next < 0 {
			return false
		}
		c.i += next
		if word, ok := c.str(); !ok || mediaWords[string(word)] {
			return ok
		}
	}
}
