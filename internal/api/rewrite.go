package api

import (
	"bytes"
	"cmp"
	"slices"
	"unicode/utf8"
)

// span is a range of bytes of a body.
type span struct{ from, to int }

// places is where in a body the values stand that the gateway may have to
// change, and what it must take out.
type places struct {
	open  int // just behind the opening brace; 0 in a form
	model span
	salt  span
	strip []span

	cuts
}

// cuts is where in an object the walk is, between members that stay and members
// that go.
type cuts struct {
	kept    bool // a member that stays has been seen
	ends    int  // where the member before ended
	control bool // the present member goes
	leading bool // and none before it stays, so that its comma behind it goes too
	at      int  // where it starts
}

// isControl reports whether a field is one with which gateways tell engines to
// move KV or encoded images, and from where. From clients these are taken out: they
// would make an engine fetch from hosts of the client's choosing.
func isControl(key []byte) bool {
	switch string(key) {
	case "kv_transfer_params", "ec_transfer_params", "disaggregated_params", "disagg_prefill_dp_rank", "data_parallel_rank", "routed_dp_rank":
		return true
	}
	return bytes.HasPrefix(key, []byte("bootstrap_")) || bytes.HasPrefix(key, []byte("remote_"))
}

// carries reports whether a field is an object whose members engines take for
// parameters of their own, those that move KV among them.
func carries(key []byte) bool {
	switch string(key) {
	case "vllm_xargs", "sampling_params", "extra_args":
		return true
	}
	return false
}

// inside walks an object that carries parameters, for those that go.
func (p *places) inside(s *scanner) {
	outer := p.cuts
	it := s.object()
	p.cuts = cuts{ends: s.i}
	for it.next() {
		key := plainKey(it.key)
		p.member(key, it.at)
		if carries(key) && s.peek() == '{' {
			p.inside(s)
		} else {
			s.value()
		}
		p.valueEnds(s.i)
	}
	p.end()
	p.cuts = outer
}

func (p *places) begin(open int) { p.open, p.ends = open, open }

// member notes where the next member starts.
func (p *places) member(key []byte, at int) {
	p.closeLeading(at)
	p.control, p.at = isControl(key), at
}

// valueEnds notes where the present member's value ended.
func (p *places) valueEnds(at int) {
	switch {
	case !p.control:
		p.kept = true
	case p.kept:
		p.strip = append(p.strip, span{p.ends, at}) // with the comma before it
	default:
		p.leading = true
	}
	p.ends = at
}

// end ends the walk.
func (p *places) end() { p.closeLeading(p.ends) }

// closeLeading takes out a member without one before it: up to the next.
func (p *places) closeLeading(next int) {
	if p.leading {
		p.strip = append(p.strip, span{p.at, next})
		p.leading = false
	}
}

// Changes are what is put into a body.
type Changes struct {
	Model string // instead of the model's name; "" leaves it
	Salt  string // as cache_salt, of JSON bodies only; "" leaves it
}

// Rewrite returns body, which Scan or ScanForm has read as r, with changes made
// and fields taken out that clients may not set. All other bytes stay, and a
// body without changes is returned as it is.
func (r *Request) Rewrite(body []byte, c Changes) []byte {
	p := &r.places
	type edit struct {
		span
		with []byte
	}
	var edits []edit
	for _, s := range p.strip {
		edits = append(edits, edit{span: s})
	}
	if c.Model != "" {
		with := []byte(c.Model)
		if p.open > 0 {
			with = AppendString(nil, c.Model)
		}
		edits = append(edits, edit{p.model, with})
	}
	if c.Salt != "" && p.open > 0 {
		at, with := p.salt, AppendString(nil, c.Salt)
		if at.to == 0 {
			at, with = span{p.open, p.open}, slices.Concat([]byte(`"cache_salt":`), with, []byte{','})
		}
		edits = append(edits, edit{at, with})
	}
	if len(edits) == 0 {
		return body
	}
	// The salt is put in where a member that goes may begin.
	slices.SortFunc(edits, func(a, b edit) int { return cmp.Or(a.from-b.from, a.to-b.to) })
	out := make([]byte, 0, len(body)+len(c.Model)+len(c.Salt)+32)
	at := 0
	for _, e := range edits {
		out = append(append(out, body[at:e.from]...), e.with...)
		at = e.to
	}
	return append(out, body[at:]...)
}

// AppendString appends s as a JSON string.
func AppendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			dst = append(dst, c)
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r) // what is not UTF-8 becomes U+FFFD, as JSON needs
			i += n
			continue
		}
		i++
	}
	return append(dst, '"')
}
