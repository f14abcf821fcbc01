package chat

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// show returns what printing v writes.
func (f *frame) show(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case markup:
		return string(v)
	case undefined:
		return ""
	}
	var b strings.Builder
	f.repr(&b, v)
	return b.String()
}

// repr writes v as Python writes it inside of other values.
func (f *frame) repr(b *strings.Builder, v any) {
	f.charge(0)
	f.deeper()
	defer f.shallower()
	switch v := v.(type) {
	case nil:
		b.WriteString("None")
		return
	case bool:
		b.WriteString(map[bool]string{true: "True", false: "False"}[v])
		return
	case int64:
		b.WriteString(strconv.FormatInt(v, 10))
		return
	case float64:
		b.WriteString(float(v))
		return
	case string:
		f.size(len(v))
		quote(b, v)
		return
	case *List:
		if v.shape <= shapeTuple {
			f.reprList(b, v)
			return
		}
	case *Dict:
		b.WriteByte('{')
		for i, k := range v.keys {
			if i > 0 {
				b.WriteString(", ")
			}
			quote(b, k)
			b.WriteString(": ")
			f.repr(b, v.values[k])
		}
		b.WriteByte('}')
		return
	}
	fail("%s is printed", kindOf(v))
}

func (f *frame) reprList(b *strings.Builder, l *List) {
	first, last := byte('['), "]"
	if l.shape == shapeTuple {
		first, last = '(', ")"
		if len(l.items) == 1 {
			last = ",)"
		}
	}
	b.WriteByte(first)
	for i, x := range l.items {
		if i > 0 {
			b.WriteString(", ")
		}
		f.repr(b, x)
	}
	b.WriteString(last)
}

// float returns a number as Python writes it.
func float(x float64) string {
	if math.IsInf(x, 0) || math.IsNaN(x) {
		fail("a number that is none")
	}
	s := strconv.FormatFloat(x, 'e', -1, 64)
	exp, _ := strconv.Atoi(s[strings.IndexByte(s, 'e')+1:])
	if exp < -4 || exp >= 16 {
		return s
	}
	if s = strconv.FormatFloat(x, 'f', -1, 64); !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// quote writes text as Python does with quotes around.
func quote(b *strings.Builder, s string) {
	mark := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		mark = '"'
	}
	b.WriteByte(mark)
	for _, r := range s {
		switch {
		case r == rune(mark) || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case r < ' ' || r >= 0x7f && !unicode.IsPrint(r):
			fail("a character in quotes that is not printed")
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte(mark)
}

// dump is how JSON is written.
type dump struct {
	f      *frame
	b      strings.Builder
	ascii  bool   // nothing but ASCII
	sorted bool   // keys in order
	broken bool   // into lines
	indent string // of a line, for each level
	item   string // between values
	colon  string // between keys and values
}

// line begins a line at the level.
func (d *dump) line(level int) {
	if !d.broken {
		return
	}
	d.b.WriteByte('\n')
	for range level {
		d.b.WriteString(d.indent)
	}
}

func (d *dump) value(v any, level int) {
	d.f.charge(level)
	d.f.deeper()
	defer d.f.shallower()
	switch v := v.(type) {
	case nil:
		d.b.WriteString("null")
	case bool:
		d.b.WriteString(strconv.FormatBool(v))
	case int64:
		d.b.WriteString(strconv.FormatInt(v, 10))
	case float64:
		d.b.WriteString(float(v))
	case string:
		d.text(v)
	case markup:
		d.text(string(v))
	case *List:
		if v.shape > shapeTuple {
			fail("%s as JSON", kindOf(v))
		}
		d.many('[', ']', len(v.items), level, func(i int) { d.value(v.items[i], level+1) })
	case *Dict:
		keys := v.keys
		if d.sorted {
			keys = slices.Sorted(slices.Values(keys))
		}
		d.many('{', '}', len(keys), level, func(i int) {
			d.text(keys[i])
			d.b.WriteString(d.colon)
			d.value(v.values[keys[i]], level+1)
		})
	default:
		fail("%s as JSON", kindOf(v))
	}
}

// many writes n things in brackets.
func (d *dump) many(first, last byte, n, level int, write func(i int)) {
	d.b.WriteByte(first)
	for i := range n {
		if i > 0 {
			d.b.WriteString(d.item)
		}
		d.line(level + 1)
		write(i)
	}
	if n > 0 {
		d.line(level)
	}
	d.b.WriteByte(last)
}

// short are the characters that JSON has short escapes for.
var short = map[rune]string{'"': `\"`, '\\': `\\`, '\n': `\n`, '\r': `\r`, '\t': `\t`, '\f': `\f`, '\b': `\b`}

func (d *dump) text(s string) {
	d.f.size(len(s))
	d.b.WriteByte('"')
	from := 0
	for i, r := range s {
		if r >= ' ' && r != '"' && r != '\\' && (r < 0x7f || !d.ascii) {
			continue
		}
		d.b.WriteString(s[from:i])
		from = i + utf8.RuneLen(r)
		if to, ok := short[r]; ok {
			d.b.WriteString(to)
		} else if r >= 1<<16 {
			r -= 1 << 16
			d.code(0xd800 + r>>10)
			d.code(0xdc00 + r&0x3ff)
		} else {
			d.code(r)
		}
	}
	d.b.WriteString(s[from:])
	d.b.WriteByte('"')
}

// code writes a code unit as an escape.
func (d *dump) code(r rune) {
	const digits = "0123456789abcdef"
	d.b.WriteString(`\u`)
	for at := 12; at >= 0; at -= 4 {
		d.b.WriteByte(digits[r>>at&0xf])
	}
}

// tojson writes JSON as the filter of transformers does.
func tojson(f *frame, v any, a *values) any {
	args := a.bind("ensure_ascii", "indent", "separators", "sort_keys")
	d := dump{f: f, item: ", ", colon: ": ", ascii: truth(args[0]), sorted: truth(args[3])}
	switch indent := args[1].(type) {
	case nil, absent:
	case string:
		d.indent, d.broken, d.item = indent, true, ","
	default:
		n, ok := whole(indent)
		if !ok || n > 64 {
			fail("JSON indented by %s", kindOf(indent))
		}
		d.indent, d.broken, d.item = strings.Repeat(" ", int(max(0, n))), true, ","
	}
	switch s := args[2].(type) {
	case nil, absent:
	case *List:
		if len(s.items) != 2 {
			fail("JSON with %d separators", len(s.items))
		}
		d.item, d.colon = f.text(s.items[0]), f.text(s.items[1])
	default:
		fail("JSON with %s as separators", kindOf(s))
	}
	d.value(v, 0)
	return d.b.String()
}
