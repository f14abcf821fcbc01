package api

import (
	"slices"
	"strconv"
)

// Field is a member of a JSON object: a plain name and a raw value.
type Field struct {
	Name string
	Raw  []byte
}

// Splice returns the JSON object body with members of the given names put in, in
// the place of any that it has, and those named in drop taken out. All other bytes
// stay, so that numbers keep their digits. Body must be valid.
func Splice(body []byte, put []Field, drop ...string) ([]byte, error) {
	s := scanner{b: body}
	gone := func(key []byte) bool {
		key = plainKey(key)
		return slices.Contains(drop, string(key)) || slices.ContainsFunc(put, func(f Field) bool { return f.Name == string(key) })
	}
	size := len(body)
	for _, f := range put {
		size += len(f.Name) + len(f.Raw) + 4
	}
	it := s.object()
	out := append(make([]byte, 0, size), body[:s.i]...)
	first := true
	comma := func() {
		if !first {
			out = append(out, ',')
		}
		first = false
	}
	for _, f := range put {
		comma()
		out = append(append(AppendString(out, f.Name), ':'), f.Raw...)
	}
	for it.next() {
		at, out1 := it.at, gone(it.key)
		s.value()
		if s.err != nil {
			break
		}
		if !out1 {
			comma()
			out = append(out, body[at:s.i]...)
		}
	}
	if s.err != nil {
		return nil, s.err
	}
	return append(out, body[s.i-1:]...), nil
}

// Member returns the raw value of a top-level member of the JSON object body, nil
// when there is none.
func Member(body []byte, name string) []byte {
	s := scanner{b: body}
	var found []byte
	for it := s.object(); it.next(); {
		match := string(plainKey(it.key)) == name
		if v := s.value(); match {
			found = v
		}
	}
	if s.err != nil {
		return nil
	}
	return found
}

// ToPrefill turns the body of a request into one that has its prompt computed and
// one token generated, not streamed, with more fields put in. It keeps the limit's
// name that the request has.
func (k Kind) ToPrefill(body []byte, more ...Field) ([]byte, error) {
	one := []byte("1")
	put := []Field{{"stream", []byte("false")}}
	limits := shapes[k].limit
	for i, name := range limits {
		if i == 0 || Member(body, name) != nil {
			put = append(put, Field{name, one})
		}
	}
	if k.Protocol() == Completions {
		// An answer that ends by itself leaves nothing for the other engine to fetch.
		put = append(put, Field{"ignore_eos", []byte("true")})
	}
	return Splice(body, append(put, more...), "stream_options", "min_tokens", "n", "best_of", "stop", "stop_token_ids")
}

// SetCached appends to dst an answer, or the data of one of its events, that says
// of so many of its prompt tokens that they were cached; where it tells no usage it
// stays as it is. An engine that takes a prompt over from another counts what was
// moved as cached, which it was for nobody.
func SetCached(dst, body []byte, cached int) []byte {
	usage := memberAt(body, "usage")
	if usage == nil || len(usage.raw) == 0 || usage.raw[0] != '{' {
		return append(dst, body...)
	}
	for _, name := range [...]string{"prompt_tokens_details", "input_tokens_details"} {
		details := memberAt(usage.raw, name)
		if details == nil || len(details.raw) == 0 || details.raw[0] != '{' {
			continue
		}
		if n := memberAt(details.raw, "cached_tokens"); n != nil {
			from := usage.from + details.from + n.from
			dst = strconv.AppendInt(append(dst, body[:from]...), int64(cached), 10)
			return append(dst, body[from+len(n.raw):]...)
		}
	}
	return append(dst, body...)
}

// SetCachedEvent is SetCached of a whole event, whose data is on one line.
func SetCachedEvent(dst, event []byte, cached int) []byte {
	data, rest, found := cutData(event)
	if !found {
		return append(dst, event...)
	}
	before := len(event) - len(rest) - len(data)
	dst = SetCached(append(dst, event[:before]...), data, cached)
	return append(dst, rest...)
}

// member is the place of a member's value.
type member struct {
	from int
	raw  []byte
}

// memberAt returns where the value of a top-level member stands, nil when there is
// none.
func memberAt(body []byte, name string) *member {
	s := scanner{b: body}
	var found *member
	for it := s.object(); it.next(); {
		match := string(plainKey(it.key)) == name
		s.space()
		from := s.i
		if v := s.value(); match && s.err == nil {
			found = &member{from, v}
		}
	}
	if s.err != nil {
		return nil
	}
	return found
}
