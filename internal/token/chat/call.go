package chat

import (
	"math"
	"slices"
	"strings"
	"time"
)

// globals are the names that every template has. Nothing changes them.
var globals = map[string]any{
	"range":           &function{"range", ranged},
	"namespace":       &function{"namespace", func(f *frame, a *values) any { return &namespace{f.dict(a).values} }},
	"dict":            &function{"dict", func(f *frame, a *values) any { return f.dict(a) }},
	"raise_exception": &function{"raise_exception", raise},
	"strftime_now": &function{"strftime_now", func(f *frame, a *values) any {
		return strftime(f.now, f.text(a.bind("format")[0]))
	}},
	"lipsum": &function{"lipsum", unmade},
	"cycler": &function{"cycler", unmade},
	"joiner": &function{"joiner", unmade},
}

func unmade(*frame, *values) any {
	fail("a call of what is not known here")
	return nil
}

func raise(f *frame, a *values) any {
	fail("it refuses the conversation: %.200q", f.show(a.bind("message")[0]))
	return nil
}

// dict returns a dictionary of one before it and named values.
func (f *frame) dict(a *values) *Dict {
	d, first := NewDict(), len(a.list)-len(a.names)
	f.charge(len(a.list))
	for _, v := range a.list[:first] {
		from, ok := v.(*Dict)
		if !ok || first > 1 {
			fail("a dictionary of %s", kindOf(v))
		}
		f.charge(len(from.keys))
		for _, k := range from.keys {
			d.Set(k, from.values[k])
		}
	}
	for i, name := range a.names {
		d.Set(name, a.list[first+i])
	}
	return d
}

func ranged(f *frame, a *values) any {
	if len(a.list) == 0 || len(a.list) > 3 || len(a.names) > 0 {
		fail("a range of %d values", len(a.list))
	}
	var n [3]int64
	for i, v := range a.list {
		var ok bool
		if n[i], ok = whole(v); !ok || n[i] > maxWork || n[i] < -maxWork {
			fail("a range of %s", kindOf(v))
		}
	}
	from, to, step := n[0], n[1], n[2]
	switch len(a.list) {
	case 1:
		from, to, step = 0, n[0], 1
	case 2:
		step = 1
	}
	if step == 0 {
		fail("a range in steps of 0")
	}
	l := &List{shape: shapeRange}
	for i := from; step > 0 && i < to || step < 0 && i > to; i += step {
		f.charge(0)
		l.items = append(l.items, i)
	}
	return l
}

// layouts are the directives of strftime and what they are in Go, in English as
// in the C locale.
var layouts = map[byte]string{
	'd': "02", 'm': "01", 'y': "06", 'Y': "2006", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'p': "PM",
	'b': "Jan", 'B': "January", 'a': "Mon", 'A': "Monday", 'j': "002", 'e': "_2",
}

// strftime writes the time as Python does.
func strftime(now time.Time, layout string) string {
	var b strings.Builder
	for i := 0; i < len(layout); i++ {
		if layout[i] != '%' {
			b.WriteByte(layout[i])
			continue
		}
		i++
		switch to, ok := layouts[at(layout, i)]; {
		case ok:
			b.WriteString(now.Format(to))
		case at(layout, i) == '%':
			b.WriteByte('%')
		default:
			fail("the time as %q", layout)
		}
	}
	return b.String()
}

// at returns a byte of s, 0 behind its end.
func at(s string, i int) byte {
	if i < len(s) {
		return s[i]
	}
	return 0
}

// call returns what fn returns.
func (f *frame) call(fn any, a *values) any {
	f.charge(0)
	if fn, ok := fn.(*function); ok {
		f.deeper()
		defer f.shallower()
		return fn.call(f, a)
	}
	fail("a call of %s", kindOf(fn))
	return nil
}

// macro runs a macro, which sees the names of where it was made.
func (f *frame) macro(m *macro, home *scope, a *values) any {
	given := a.bind(m.params...)
	in := &frame{work: f.work, vars: home, out: &strings.Builder{}}
	in.enter()
	for i, name := range m.params {
		v := given[i]
		if (v == absent{}) {
			if v = (undefined{}); m.defaults[i] != nil {
				v = m.defaults[i](in)
			}
		}
		in.vars.names[name] = v
	}
	in.run(m.body)
	return in.out.String()
}

// loop is what a loop's body sees of it.
type loop struct {
	items  []any
	i      int
	depth  int64
	length bool // known
}

// loop runs body for each of what it goes over, and empty where there is none.
func (f *frame) loop(t *target, over any, only expression, body, empty []statement) {
	list, _ := over.(*List)
	sized := only == nil && (list == nil || list.shape != shapeLazy)
	items := f.sequence(over)
	outer := f.vars
	defer func() { f.vars = outer }()
	if only != nil {
		kept := make([]any, 0, len(items))
		for _, v := range items {
			f.charge(0)
			f.vars = &scope{map[string]any{"loop": undefined{}}, outer}
			if f.assign(t, v); truth(only(f)) {
				kept = append(kept, v)
			}
		}
		items = kept
	}
	l := &loop{items: items, depth: 1, length: sized || only != nil}
	if around, ok := outer.get("loop").(*loop); ok {
		l.depth = around.depth + 1
	}
	if len(items) == 0 {
		f.vars = outer
		f.within(empty)
	}
	for i, v := range items {
		l.i = i
		f.charge(0)
		f.vars = &scope{map[string]any{"loop": l}, outer}
		f.assign(t, v)
		f.run(body)
		how := f.left
		if f.left = jumpNone; how == jumpBreak {
			return
		}
	}
}

func (l *loop) attribute(name string) any {
	n := len(l.items)
	switch name {
	case "index":
		return int64(l.i + 1)
	case "index0":
		return int64(l.i)
	case "first":
		return l.i == 0
	case "last":
		return l.i == n-1
	case "length":
		return int64(n)
	case "revindex":
		return int64(n - l.i)
	case "revindex0":
		return int64(n - l.i - 1)
	case "depth":
		return l.depth
	case "depth0":
		return l.depth - 1
	case "previtem":
		if l.i > 0 {
			return l.items[l.i-1]
		}
		return undefined{}
	case "nextitem":
		if l.i+1 < n {
			return l.items[l.i+1]
		}
		return undefined{}
	}
	fail("%q of a loop", name)
	return nil
}

// attribute returns v.name: a method, or what a dictionary has by the name.
func (f *frame) attribute(v any, name string) any {
	if strings.HasPrefix(name, "__") {
		fail("the name %q", name)
	}
	switch v := v.(type) {
	case undefined:
		fail("%q of an undefined value", name)
	case *Dict:
		if m, ok := dictMethods[name]; ok {
			return &function{name, func(f *frame, a *values) any { return m(f, v, a) }}
		}
		if !slices.Contains(dictOthers, name) {
			return orUndefined(v.values, name)
		}
		fail("the method %q of a dictionary", name)
	case *namespace:
		return orUndefined(v.names, name)
	case string:
		if m, ok := textMethods[name]; ok {
			return &function{name, func(f *frame, a *values) any {
				f.size(len(v))
				return m(f, v, a)
			}}
		}
		if slices.Contains(textOthers, name) {
			fail("the method %q of a text", name)
		}
	case *loop:
		return v.attribute(name)
	case *function:
		if name == "name" {
			return v.name
		}
		fail("%q of a function", name)
	case *List:
		if slices.Contains(listOthers, name) || v.shape > shapeTuple {
			fail("the method %q of %s", name, kindOf(v))
		}
	case markup, int64, float64, bool:
		if _, ok := v.(markup); ok || slices.Contains(numberOthers, name) {
			fail("%q of %s", name, kindOf(v))
		}
	}
	return undefined{}
}

func orUndefined(names map[string]any, name string) any {
	if v, ok := names[name]; ok {
		return v
	}
	return undefined{}
}

// What Python has by these names is not known here.
var (
	dictOthers   = []string{"clear", "fromkeys", "pop", "popitem", "setdefault", "update"}
	listOthers   = []string{"append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"}
	numberOthers = []string{
		"as_integer_ratio", "bit_count", "bit_length", "conjugate", "denominator", "from_bytes", "fromhex", "hex", "imag", "is_integer",
		"numerator", "real", "to_bytes", "from_number",
	}
	textOthers = []string{
		"casefold", "center", "encode", "expandtabs", "format", "format_map", "index", "isalnum", "isalpha", "isascii", "isdecimal",
		"isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "ljust", "maketrans",
		"rindex", "rjust", "swapcase", "translate", "zfill",
	}
)

// math returns a op b.
func (f *frame) math(op string, a, b any) any {
	f.charge(0)
	if op == "~" {
		return f.joined(a, b)
	}
	switch x := a.(type) {
	case string:
		if y, ok := b.(string); ok && op == "+" {
			f.size(len(x) + len(y))
			return x + y
		}
		if n, ok := whole(b); ok && op == "*" {
			return f.repeated(x, n)
		}
	case *List:
		if y, ok := b.(*List); ok && op == "+" && x.shape == y.shape && x.shape <= shapeTuple {
			f.charge(len(x.items) + len(y.items))
			return &List{items: slices.Concat(x.items, y.items), shape: x.shape}
		}
	}
	if y, ok := b.(string); ok && op == "*" {
		if n, ok := whole(a); ok {
			return f.repeated(y, n)
		}
	}
	x, ok1 := whole(a)
	y, ok2 := whole(b)
	if ok1 && ok2 && op != "/" {
		return integers(op, x, y)
	}
	r, ok1 := number(a)
	s, ok2 := number(b)
	if !ok1 || !ok2 {
		fail("%s %s %s", kindOf(a), op, kindOf(b))
	}
	return floats(op, r, s)
}

func (f *frame) joined(a, b any) any {
	for _, v := range []any{a, b} {
		if _, ok := v.(markup); ok {
			fail("a safe text is joined to another")
		}
	}
	x, y := f.show(a), f.show(b)
	f.size(len(x) + len(y))
	return x + y
}

func (f *frame) repeated(s string, n int64) any {
	n = max(n, 0)
	if n > maxText || int64(len(s))*n > maxText {
		fail("a text of %d times %d bytes", n, len(s))
	}
	f.size(len(s) * int(n))
	return strings.Repeat(s, int(n))
}

// integers returns x op y for whole numbers that stay small.
func integers(op string, x, y int64) any {
	const small = 1 << 31
	exact := max(x, -x, y, -y) < small && x > math.MinInt64 && y > math.MinInt64
	switch sum, less := x+y, x-y; {
	case op == "+" && (sum > x) == (y > 0):
		return sum
	case op == "-" && (less < x) == (y > 0):
		return less
	case op == "*" && exact:
		return x * y
	case op == "**" && y >= 0 && exact:
		return power(x, y)
	case op == "**" && y < 0 && x != 0:
		return math.Pow(float64(x), float64(y))
	case (op == "//" || op == "%") && y != 0 && x > math.MinInt64:
		div, mod := x/y, x%y
		if mod != 0 && (mod < 0) != (y < 0) { // Python rounds down
			div, mod = div-1, mod+y
		}
		if op == "%" {
			return mod
		}
		return div
	}
	fail("%d %s %d", x, op, y)
	return nil
}

func power(x, y int64) any {
	out := int64(1)
	for ; y > 0; y-- {
		if out *= x; max(out, -out) >= 1<<31 {
			fail("a large power")
		}
		if out == 0 || out == 1 && x == 1 {
			break
		}
	}
	return out
}

// floats returns x op y for numbers of which one is not whole, or a quotient.
func floats(op string, x, y float64) any {
	switch {
	case op == "+":
		return x + y
	case op == "-":
		return x - y
	case op == "*":
		return x * y
	case op == "/" && y != 0:
		return x / y
	}
	fail("%v %s %v", x, op, y)
	return nil
}
