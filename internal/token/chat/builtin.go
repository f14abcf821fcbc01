package chat

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// text returns v as text, which it must be.
func (f *frame) text(v any) string {
	s, ok := v.(string)
	if !ok {
		fail("%s where a text belongs", kindOf(v))
	}
	return s
}

// textOr returns v as text, otherwise where it is none or not given.
func (f *frame) textOr(v any, otherwise string) string {
	switch v {
	case nil, absent{}:
		return otherwise
	}
	return f.text(v)
}

// plain returns s, which must be of letters that have one form in each case.
func plain(s string) string {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			fail("letters in another case")
		}
	}
	return s
}

// textMethods are those of text.
var textMethods = map[string]func(f *frame, s string, a *values) any{
	"strip":  func(f *frame, s string, a *values) any { return strings.Trim(s, f.textOr(a.bind("")[0], space)) },
	"lstrip": func(f *frame, s string, a *values) any { return strings.TrimLeft(s, f.textOr(a.bind("")[0], space)) },
	"rstrip": func(f *frame, s string, a *values) any { return strings.TrimRight(s, f.textOr(a.bind("")[0], space)) },
	"lower":  func(_ *frame, s string, a *values) any { a.bind(); return strings.ToLower(plain(s)) },
	"upper":  func(_ *frame, s string, a *values) any { a.bind(); return strings.ToUpper(plain(s)) },
	"capitalize": func(_ *frame, s string, a *values) any {
		a.bind()
		return capitalized(s)
	},
	"title": func(_ *frame, s string, a *values) any {
		a.bind()
		return titled(s, func(c byte) bool { return c|0x20 < 'a' || c|0x20 > 'z' })
	},
	"startswith": func(f *frame, s string, a *values) any { return f.affix(s, a, strings.HasPrefix) },
	"endswith":   func(f *frame, s string, a *values) any { return f.affix(s, a, strings.HasSuffix) },
	"removeprefix": func(f *frame, s string, a *values) any {
		return strings.TrimPrefix(s, f.text(a.bind("")[0]))
	},
	"removesuffix": func(f *frame, s string, a *values) any {
		return strings.TrimSuffix(s, f.text(a.bind("")[0]))
	},
	"replace": func(f *frame, s string, a *values) any {
		args := a.bind("", "", "count")
		return f.replaced(s, args[0], args[1], args[2])
	},
	"split":  func(f *frame, s string, a *values) any { return f.split(s, a, false) },
	"rsplit": func(f *frame, s string, a *values) any { return f.split(s, a, true) },
	"splitlines": func(f *frame, s string, a *values) any {
		a.bind()
		return f.texts(lines(s))
	},
	"partition":  func(f *frame, s string, a *values) any { return f.partition(s, a, false) },
	"rpartition": func(f *frame, s string, a *values) any { return f.partition(s, a, true) },
	"find":       func(f *frame, s string, a *values) any { return f.find(s, a, strings.Index) },
	"rfind":      func(f *frame, s string, a *values) any { return f.find(s, a, strings.LastIndex) },
	"count":      func(f *frame, s string, a *values) any { return int64(strings.Count(s, f.text(a.bind("")[0]))) },
	"join":       func(f *frame, s string, a *values) any { return f.join(a.bind("")[0], s, f.text) },
}

func capitalized(s string) string {
	if plain(s) == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + strings.ToLower(s[1:])
}

// titled returns s with a large letter at each beginning and after each
// character that ends a word.
func titled(s string, ends func(c byte) bool) string {
	b, first := []byte(plain(s)), true
	for i, c := range b {
		if first {
			b[i] = strings.ToUpper(s[i : i+1])[0]
		} else {
			b[i] = strings.ToLower(s[i : i+1])[0]
		}
		first = ends(c)
	}
	return string(b)
}

// affix tests for a beginning or an end, one or any of a tuple.
func (f *frame) affix(s string, a *values, has func(s, of string) bool) bool {
	v := a.bind("")[0]
	if l, ok := v.(*List); ok && l.shape == shapeTuple {
		f.charge(len(l.items))
		return slices.ContainsFunc(l.items, func(x any) bool { return has(s, f.text(x)) })
	}
	return has(s, f.text(v))
}

func (f *frame) replaced(s string, from, to, count any) string {
	n := int64(-1)
	if (count != nil && count != absent{}) {
		var ok bool
		if n, ok = whole(count); !ok {
			fail("a count of %s", kindOf(count))
		}
	}
	old, now := f.text(from), f.text(to)
	found := strings.Count(s, old)
	if found > maxText/(len(now)+1) {
		fail("too much is replaced")
	}
	f.size(len(s) + found*len(now))
	return strings.Replace(s, old, now, int(max(-1, min(n, maxText))))
}

// texts returns a list of texts.
func (f *frame) texts(parts []string) *List {
	f.charge(len(parts))
	l := &List{items: make([]any, len(parts))}
	for i, s := range parts {
		l.items[i] = s
	}
	return l
}

// split cuts s at each separator, or at white space, at most so many times.
func (f *frame) split(s string, a *values, right bool) any {
	args := a.bind("sep", "maxsplit")
	most := int64(-1)
	if (args[1] != absent{}) {
		var ok bool
		if most, ok = whole(args[1]); !ok {
			fail("a count of %s", kindOf(args[1]))
		}
	}
	n := int(min(most, maxText))
	if args[0] == nil || (args[0] == absent{}) {
		if right && n >= 0 {
			fail("a split from the right")
		}
		return f.texts(fields(s, n))
	}
	sep := f.text(args[0])
	if sep == "" {
		fail("a split at nothing")
	}
	switch {
	case n < 0:
		return f.texts(strings.Split(s, sep))
	case !right:
		return f.texts(strings.SplitN(s, sep, n+1))
	}
	var parts []string
	for at := strings.LastIndex(s, sep); at >= 0 && len(parts) < n; at = strings.LastIndex(s, sep) {
		parts = append(parts, s[at+len(sep):])
		s = s[:at]
	}
	parts = append(parts, s)
	slices.Reverse(parts)
	return f.texts(parts)
}

// fields cuts s at white space, at most n times, or at all of it.
func fields(s string, n int) []string {
	var out []string
	for s = strings.TrimLeft(s, space); s != ""; s = strings.TrimLeft(s, space) {
		end := strings.IndexAny(s, space)
		if end < 0 || n >= 0 && len(out) == n {
			return append(out, s)
		}
		out = append(out, s[:end])
		s = s[end:]
	}
	return out
}

// lines cuts s where Python takes a line to end.
func lines(s string) []string {
	var out []string
	for s != "" {
		end := strings.IndexAny(s, "\n\r\v\f\x1c\x1d\x1e\u0085\u2028\u2029")
		if end < 0 {
			return append(out, s)
		}
		_, n := utf8.DecodeRuneInString(s[end:])
		out = append(out, s[:end])
		if strings.HasPrefix(s[end:], "\r\n") {
			n = 2
		}
		s = s[end+n:]
	}
	return out
}

// partition returns what is before a separator, the separator, and what is
// behind it.
func (f *frame) partition(s string, a *values, right bool) any {
	sep := f.text(a.bind("sep")[0])
	if sep == "" {
		fail("a split at nothing")
	}
	before, after, found := strings.Cut(s, sep)
	if right {
		at := strings.LastIndex(s, sep)
		if found = at >= 0; found {
			before, after = s[:at], s[at+len(sep):]
		} else {
			before, after = "", s
		}
	}
	if !found {
		sep = ""
	}
	return &List{items: []any{before, sep, after}, shape: shapeTuple}
}

// find returns where something is, in characters, -1 for nowhere.
func (f *frame) find(s string, a *values, index func(s, of string) int) any {
	at := index(s, f.text(a.bind("")[0]))
	if at < 0 {
		return int64(-1)
	}
	return int64(utf8.RuneCountInString(s[:at]))
}

// join puts text between values that are made text.
func (f *frame) join(v any, between string, text func(any) string) string {
	var parts []string
	size := 0
	for _, x := range f.sequence(v) {
		s := text(x)
		if size += len(s) + len(between); size > maxText {
			fail("a text of %d bytes", size)
		}
		parts = append(parts, s)
	}
	f.size(size)
	return strings.Join(parts, between)
}

// dictMethods are those of dictionaries.
var dictMethods = map[string]func(f *frame, d *Dict, a *values) any{
	"items":  func(f *frame, d *Dict, a *values) any { a.bind(); return f.pairs(d, shapeView) },
	"keys":   func(f *frame, d *Dict, a *values) any { a.bind(); return &List{items: f.sequence(d), shape: shapeView} },
	"copy":   func(f *frame, d *Dict, a *values) any { a.bind(); return f.dict(&values{list: []any{d}}) },
	"values": func(f *frame, d *Dict, a *values) any { a.bind(); return &List{items: f.valuesOf(d), shape: shapeView} },
	"get": func(f *frame, d *Dict, a *values) any {
		args := a.bind("", "")
		if v, ok := d.values[f.text(args[0])]; ok {
			return v
		}
		if (args[1] == absent{}) {
			return nil
		}
		return args[1]
	},
}

func (f *frame) valuesOf(d *Dict) []any {
	out := f.sequence(d)
	for i, k := range d.keys {
		out[i] = d.values[k]
	}
	return out
}

// pairs returns the keys of a dictionary with their values.
func (f *frame) pairs(d *Dict, shape shape) *List {
	out := f.sequence(d)
	for i, k := range d.keys {
		out[i] = &List{items: []any{k, d.values[k]}, shape: shapeTuple}
	}
	return &List{items: out, shape: shape}
}
