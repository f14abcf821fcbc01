package chat

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
)

// filter returns v|name(a).
func (f *frame) filter(name string, v any, a *values) any {
	f.charge(0)
	fn, ok := filters(name)
	if !ok {
		fail("the filter %q", name)
	}
	if _, ok := v.(markup); ok && name != "tojson" && name != "length" && name != "safe" {
		fail("the filter %q of a safe text", name)
	}
	return fn(f, v, a)
}

// filters returns the filter of the name. Filters call each other by name, which
// a table cannot.
func filters(name string) (func(f *frame, v any, a *values) any, bool) {
	switch name {
	case "tojson":
		return tojson, true
	case "map":
		return (*frame).mapped, true
	case "select", "reject":
		return func(f *frame, v any, a *values) any { return f.selected(v, a, "", name == "select") }, true
	case "selectattr", "rejectattr":
		return func(f *frame, v any, a *values) any {
			if len(a.list) == 0 {
				fail("%s without a name", name)
			}
			return f.selected(v, &values{list: a.list[1:], names: a.names}, f.text(a.list[0]), name == "selectattr")
		}, true
	}
	fn, ok := plainFilters[name]
	return fn, ok
}

// plainFilters are those that know of no other.
var plainFilters = map[string]func(f *frame, v any, a *values) any{
	"trim": func(f *frame, v any, a *values) any {
		return strings.Trim(f.show(v), f.textOr(a.bind("chars")[0], space))
	},
	"length":  func(_ *frame, v any, a *values) any { a.bind(); return int64(length(v)) },
	"count":   func(_ *frame, v any, a *values) any { a.bind(); return int64(length(v)) },
	"default": defaulted,
	"d":       defaulted,
	"first":   func(f *frame, v any, a *values) any { a.bind(); return f.end(v, true) },
	"last":    func(f *frame, v any, a *values) any { a.bind(); return f.end(v, false) },
	"list":    func(f *frame, v any, a *values) any { a.bind(); return &List{items: slices.Clone(f.sequence(v))} },
	"items": func(f *frame, v any, a *values) any {
		a.bind()
		d, ok := v.(*Dict)
		if !ok {
			fail("the items of %s", kindOf(v))
		}
		return f.pairs(d, shapeLazy)
	},
	"reverse":    reversed,
	"string":     func(f *frame, v any, a *values) any { a.bind(); return f.show(v) },
	"safe":       func(f *frame, v any, a *values) any { a.bind(); return markup(f.show(v)) },
	"upper":      func(f *frame, v any, a *values) any { a.bind(); return strings.ToUpper(plain(f.show(v))) },
	"lower":      func(f *frame, v any, a *values) any { a.bind(); return strings.ToLower(plain(f.show(v))) },
	"capitalize": func(f *frame, v any, a *values) any { a.bind(); return capitalized(f.show(v)) },
	"title": func(f *frame, v any, a *values) any {
		a.bind()
		return titled(f.show(v), func(c byte) bool { return strings.IndexByte("-({[<"+space[:10], c) >= 0 })
	},
	"replace": func(f *frame, v any, a *values) any {
		args := a.bind("old", "new", "count")
		return f.replaced(f.show(v), args[0], args[1], args[2])
	},
	"join": func(f *frame, v any, a *values) any {
		return f.join(v, f.textOr(a.bind("d")[0], ""), f.show)
	},
	"dictsort": dictsort,
	"sort":     sorted,
	"unique":   unique,
	"indent":   indented,
	"int":      toInt,
	"abs": func(_ *frame, v any, a *values) any {
		a.bind()
		if x, ok := v.(float64); ok {
			return math.Abs(x)
		}
		if n, ok := whole(v); ok && n > math.MinInt64 {
			return max(n, -n)
		}
		fail("the size of %s", kindOf(v))
		return nil
	},
}

func defaulted(_ *frame, v any, a *values) any {
	args := a.bind("default_value", "boolean")
	if (v == undefined{}) || truth(args[1]) && !truth(v) {
		if (args[0] == absent{}) {
			return ""
		}
		return args[0]
	}
	return v
}

// end returns the first or the last item.
func (f *frame) end(v any, first bool) any {
	if l, ok := v.(*List); ok && !first && l.shape == shapeLazy {
		fail("the last of an iterator")
	}
	items := f.sequence(v)
	switch {
	case len(items) == 0:
		return undefined{}
	case first:
		return items[0]
	}
	return items[len(items)-1]
}

func reversed(f *frame, v any, a *values) any {
	a.bind()
	if s, ok := v.(string); ok {
		f.size(len(s))
		runes := []rune(s)
		slices.Reverse(runes)
		return string(runes)
	}
	if l, ok := v.(*List); ok && l.shape == shapeLazy || (v == undefined{}) {
		fail("%s backwards", kindOf(v))
	}
	out := slices.Clone(f.sequence(v))
	slices.Reverse(out)
	return &List{items: out, shape: shapeLazy}
}

// mapped returns an attribute of each item, or what a filter makes of it.
func (f *frame) mapped(v any, a *values) any {
	out := &List{shape: shapeLazy}
	if len(a.names) > 0 && len(a.list) == len(a.names) {
		args := a.bind("attribute", "default")
		path := f.text(args[0])
		for _, x := range f.sequence(v) {
			x = f.path(x, path)
			if (x == undefined{}) && (args[1] != absent{}) {
				x = args[1]
			}
			out.items = append(out.items, x)
		}
		return out
	}
	if len(a.list) == 0 {
		fail("map without a filter")
	}
	name, rest := f.text(a.list[0]), &values{list: a.list[1:], names: a.names}
	for _, x := range f.sequence(v) {
		out.items = append(out.items, f.filter(name, x, rest))
	}
	return out
}

// path returns an attribute of an attribute and so on, with dots between.
func (f *frame) path(v any, path string) any {
	for name := range strings.SplitSeq(path, ".") {
		if (v == undefined{}) {
			fail("%q of an undefined value", name)
		}
		if n, err := strconv.Atoi(name); err == nil {
			v = f.item(v, int64(n))
		} else {
			v = f.item(v, name)
		}
	}
	return v
}

// selected returns the items of which an attribute, or the whole where it has no
// name, passes a test.
func (f *frame) selected(v any, a *values, path string, keep bool) any {
	out := &List{shape: shapeLazy}
	for _, x := range f.sequence(v) {
		of := x
		if path != "" {
			of = f.path(x, path)
		}
		passed := false
		if len(a.list) == 0 {
			passed = truth(of)
		} else {
			passed = f.test(f.text(a.list[0]), of, &values{list: a.list[1:], names: a.names})
		}
		if passed == keep {
			out.items = append(out.items, x)
		}
	}
	return out
}

// folded returns what Jinja sorts v by, where large and small letters are alike.
func folded(v any, exact bool) any {
	if s, ok := v.(string); ok && !exact {
		return strings.ToLower(plain(s))
	}
	return v
}

func dictsort(f *frame, v any, a *values) any {
	args := a.bind("case_sensitive", "by", "reverse")
	d, ok := v.(*Dict)
	if !ok || f.textOr(args[1], "key") != "key" {
		fail("%s in order", kindOf(v))
	}
	l := f.pairs(d, shapeList)
	key := func(v any) any { return folded(v.(*List).items[0], truth(args[0])) }
	arrange(l.items, truth(args[2]), func(x, y any) int { return cmp.Compare(key(x).(string), key(y).(string)) })
	return l
}

func sorted(f *frame, v any, a *values) any {
	args := a.bind("reverse", "case_sensitive", "attribute")
	out := slices.Clone(f.sequence(v))
	key := func(v any) any {
		if (args[2] != absent{}) {
			v = f.path(v, f.text(args[2]))
		}
		return folded(v, truth(args[1]))
	}
	f.charge(len(out) * 16)
	arrange(out, truth(args[0]), func(x, y any) int { return order(key(x), key(y)) })
	return &List{items: out}
}

// arrange sorts as Python does: what is equal stays as it was, backwards too.
func arrange(items []any, reverse bool, compare func(x, y any) int) {
	slices.SortStableFunc(items, func(x, y any) int {
		if reverse {
			return compare(y, x)
		}
		return compare(x, y)
	})
}

func unique(f *frame, v any, a *values) any {
	a.bind()
	seen := map[any]bool{}
	out := &List{shape: shapeLazy}
	for _, x := range f.sequence(v) {
		switch x.(type) {
		case nil, string, int64:
		default:
			fail("%s only once", kindOf(x))
		}
		if key := folded(x, false); !seen[key] {
			seen[key] = true
			out.items = append(out.items, x)
		}
	}
	return out
}

func indented(f *frame, v any, a *values) any {
	args := a.bind("width", "first", "blank")
	by := "    "
	switch w := args[0].(type) {
	case absent:
	case string:
		by = w
	default:
		n, ok := whole(w)
		if !ok || n < 0 || n > 256 {
			fail("an indent of %s", kindOf(w))
		}
		by = strings.Repeat(" ", int(n))
	}
	parts := lines(f.text(v) + "\n")
	f.size(len(f.text(v)) + len(parts)*len(by))
	for i, s := range parts {
		if (i > 0 || truth(args[1])) && (s != "" || truth(args[2])) {
			parts[i] = by + s
		}
	}
	if truth(args[1]) && parts[0] == "" {
		parts[0] = by
	}
	return strings.Join(parts, "\n")
}

func toInt(f *frame, v any, a *values) any {
	args := a.bind("default", "base")
	if (args[1] != absent{}) {
		fail("a number in another base")
	}
	if n, ok := whole(v); ok {
		return n
	}
	if x, ok := v.(float64); ok && math.Abs(x) < 1<<53 {
		return int64(x)
	}
	s := strings.Trim(f.text(v), space)
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n
	}
	if strings.ContainsAny(s, "0123456789_nN") || len(plain(s)) > 64 {
		fail("%.20q as a number", s)
	}
	if (args[0] == absent{}) {
		return int64(0)
	}
	return args[0]
}

// comparisons are the tests that compare.
var comparisons = map[string]string{
	"eq": "==", "equalto": "==", "==": "==", "ne": "!=", "!=": "!=", "lt": "<", "lessthan": "<", "<": "<", "le": "<=", "<=": "<=",
	"gt": ">", "greaterthan": ">", ">": ">", "ge": ">=", ">=": ">=", "in": "in",
}

// test returns whether v is name(a).
func (f *frame) test(name string, v any, a *values) bool {
	f.charge(0)
	if op, ok := comparisons[name]; ok {
		with := a.bind("")[0]
		if (with == absent{}) {
			fail("the test %q with nothing", name)
		}
		return f.compare(op, v, with)
	}
	if name == "divisibleby" {
		return f.math("%", v, a.bind("num")[0]) == int64(0)
	}
	a.bind()
	fn, ok := tests[name]
	if !ok {
		fail("the test %q", name)
	}
	return fn(v)
}

// tests are those of one value.
var tests = map[string]func(v any) bool{
	"defined":   func(v any) bool { return v != undefined{} },
	"undefined": func(v any) bool { return v == undefined{} },
	"none":      func(v any) bool { return v == nil },
	"true":      func(v any) bool { return v == true },
	"false":     func(v any) bool { return v == false },
	"boolean":   func(v any) bool { return v == true || v == false },
	"string": func(v any) bool {
		_, ok := v.(string)
		_, safe := v.(markup)
		return ok || safe
	},
	"mapping": func(v any) bool {
		_, ok := v.(*Dict)
		return ok
	},
	"number": func(v any) bool {
		_, ok := number(v)
		return ok
	},
	"integer": func(v any) bool {
		_, ok := v.(int64)
		return ok
	},
	"float": func(v any) bool {
		_, ok := v.(float64)
		return ok
	},
	"callable": func(v any) bool {
		_, ok := v.(*function)
		return ok
	},
	"sequence": func(v any) bool {
		switch v := v.(type) {
		case undefined, string, markup, *Dict:
			return true
		case *List:
			return v.shape <= shapeRange
		case *loop:
			fail("a loop is tested")
		}
		return false
	},
	"iterable": func(v any) bool {
		switch v.(type) {
		case undefined, string, markup, *Dict, *List:
			return true
		case *loop:
			fail("a loop is tested")
		}
		return false
	},
	"odd":   func(v any) bool { return parity(v) == 1 },
	"even":  func(v any) bool { return parity(v) == 0 },
	"lower": func(v any) bool { return cased(v, strings.ToLower, strings.ToUpper) },
	"upper": func(v any) bool { return cased(v, strings.ToUpper, strings.ToLower) },
}

func parity(v any) int64 {
	n, ok := whole(v)
	if !ok {
		fail("%s as odd or even", kindOf(v))
	}
	return n & 1
}

// cased reports whether a text has letters, all of one case.
func cased(v any, to, from func(string) string) bool {
	s, ok := v.(string)
	if !ok {
		fail("the case of %s", kindOf(v))
	}
	return to(plain(s)) == s && from(s) != s
}
