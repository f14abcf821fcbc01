package chat

import (
	"cmp"
	"strings"
	"unicode/utf8"
)

// Values are undefined, nil, bool, int64, float64, string, markup, *List,
// *Dict, *namespace, *loop and function.

// undefined is what has no value.
type undefined struct{}

// markup is text that has been declared safe. Jinja escapes what is joined to
// it, so that it can be printed here, and little else.
type markup string

// shape is what Python's kind of sequence a List stands for.
type shape uint8

const (
	shapeList shape = iota
	shapeTuple
	shapeRange
	shapeView // of a dictionary: has a length, but no indexes
	shapeLazy // can be gone through once, and has no length
)

// List is a sequence of values.
type List struct {
	items []any
	shape shape
	spent bool // a lazy one that has been gone through
}

// NewList returns a list of the items, which it keeps.
func NewList(items ...any) *List { return &List{items: items} }

// Items returns the items. The caller does not change them.
func (l *List) Items() []any { return l.items }

// Dict is a dictionary, in the order of its making.
type Dict struct {
	keys   []string
	values map[string]any
}

// NewDict returns an empty dictionary.
func NewDict() *Dict { return &Dict{values: map[string]any{}} }

// Set gives key a value: nil, bool, int64, float64, string, *List or *Dict.
func (d *Dict) Set(key string, v any) {
	if _, ok := d.values[key]; !ok {
		d.keys = append(d.keys, key)
	}
	d.values[key] = v
}

// Get returns the value of key.
func (d *Dict) Get(key string) (any, bool) {
	v, ok := d.values[key]
	return v, ok
}

// Keys returns the keys in order. The caller does not change them.
func (d *Dict) Keys() []string { return d.keys }

// namespace is what templates can change.
type namespace struct{ names map[string]any }

// function is what can be called, with the name it was given.
type function struct {
	name string
	call func(f *frame, a *values) any
}

// kindOf names the kind of a value, for errors.
func kindOf(v any) string {
	switch v := v.(type) {
	case undefined:
		return "an undefined value"
	case nil:
		return "none"
	case bool:
		return "a boolean"
	case int64, float64:
		return "a number"
	case string, markup:
		return "a text"
	case *List:
		return [...]string{"a list", "a tuple", "a range", "a view", "an iterator"}[v.shape]
	case *Dict:
		return "a dictionary"
	case *namespace:
		return "a namespace"
	case *loop:
		return "a loop"
	}
	return "a function"
}

// truth returns whether Python takes v for true.
func truth(v any) bool {
	switch v := v.(type) {
	case nil, undefined, absent:
		return false
	case bool:
		return v
	case int64:
		return v != 0
	case float64:
		return v != 0
	case string:
		return v != ""
	case markup:
		return v != ""
	case *List:
		return v.shape == shapeLazy || len(v.items) > 0
	case *Dict:
		return len(v.keys) > 0
	}
	return true
}

// whole returns v as a whole number; a boolean is one, too.
func whole(v any) (int64, bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	case int64:
		return v, true
	}
	return 0, false
}

// number returns v as a number.
func number(v any) (float64, bool) {
	if x, ok := v.(float64); ok {
		return x, true
	}
	n, ok := whole(v)
	return float64(n), ok
}

// sequence returns what one gets from going through v.
func (f *frame) sequence(v any) []any {
	switch v := v.(type) {
	case undefined:
		return nil
	case string:
		f.charge(len(v))
		out := make([]any, 0, len(v))
		for i := 0; i < len(v); {
			_, n := utf8.DecodeRuneInString(v[i:])
			out = append(out, v[i:i+n])
			i += n
		}
		return out
	case *List:
		if v.spent {
			fail("an iterator is gone through twice")
		}
		if v.shape == shapeLazy {
			v.spent = true // and nothing is written to values that others share
		}
		f.charge(len(v.items))
		return v.items
	case *Dict:
		f.charge(len(v.keys))
		out := make([]any, len(v.keys))
		for i, k := range v.keys {
			out[i] = k
		}
		return out
	}
	fail("%s is gone through", kindOf(v))
	return nil
}

// length returns the length of v.
func length(v any) int {
	switch v := v.(type) {
	case undefined:
		return 0
	case string:
		return utf8.RuneCountInString(v)
	case markup:
		return utf8.RuneCountInString(string(v))
	case *List:
		if v.shape != shapeLazy {
			return len(v.items)
		}
	case *Dict:
		return len(v.keys)
	}
	fail("the length of %s", kindOf(v))
	return 0
}

// equal compares as Python does, where a boolean is a number.
func (f *frame) equal(a, b any) bool {
	f.charge(0)
	if x, ok := number(a); ok {
		y, ok := number(b)
		m, ok1 := whole(a)
		n, ok2 := whole(b)
		return ok && (x == y && !(ok1 && ok2) || ok1 && ok2 && m == n)
	}
	switch x := a.(type) {
	case nil, undefined:
		return a == b
	case string:
		if m, ok := b.(markup); ok {
			return x == string(m)
		}
		return a == b
	case markup:
		return f.equal(string(x), b)
	case *List:
		y, ok := b.(*List)
		return ok && f.equalLists(x, y)
	case *Dict:
		y, ok := b.(*Dict)
		if !ok || len(x.keys) != len(y.keys) {
			return false
		}
		f.deeper()
		defer f.shallower()
		for k, v := range x.values {
			if w, ok := y.values[k]; !ok || !f.equal(v, w) {
				return false
			}
		}
		return true
	}
	fail("%s is compared", kindOf(a))
	return false
}

func (f *frame) equalLists(x, y *List) bool {
	if x.shape > shapeTuple || y.shape > shapeTuple {
		fail("%s and %s are compared", kindOf(x), kindOf(y))
	}
	if x.shape != y.shape || len(x.items) != len(y.items) {
		return false
	}
	f.deeper()
	defer f.shallower()
	for i := range x.items {
		if !f.equal(x.items[i], y.items[i]) {
			return false
		}
	}
	return true
}

// order compares what Python can order: numbers, or texts.
func order(a, b any) int {
	if x, ok := a.(string); ok {
		if y, ok := b.(string); ok {
			return strings.Compare(x, y)
		}
	}
	if x, ok := whole(a); ok {
		if y, ok := whole(b); ok {
			return cmp.Compare(x, y)
		}
	}
	x, ok1 := number(a)
	y, ok2 := number(b)
	if !ok1 || !ok2 {
		fail("%s and %s are put in order", kindOf(a), kindOf(b))
	}
	return cmp.Compare(x, y)
}

// contains returns whether v is in in.
func (f *frame) contains(in, v any) bool {
	switch in := in.(type) {
	case undefined:
		return false
	case string:
		if s, ok := v.(string); ok {
			f.size(len(in))
			return strings.Contains(in, s)
		}
	case *Dict:
		switch v := v.(type) {
		case string:
			_, ok := in.values[v]
			return ok
		case nil, bool, int64, float64:
			return false
		}
	case *List:
		for _, x := range f.sequence(in) {
			if f.equal(x, v) {
				return true
			}
		}
		return false
	}
	fail("%s in %s", kindOf(v), kindOf(in))
	return false
}

// compare returns whether a op b.
func (f *frame) compare(op string, a, b any) bool {
	switch op {
	case "==":
		return f.equal(a, b)
	case "!=":
		return !f.equal(a, b)
	case "in":
		return f.contains(b, a)
	case "not in":
		return !f.contains(b, a)
	}
	n := order(a, b)
	return n < 0 && op[0] == '<' || n > 0 && op[0] == '>' || n == 0 && len(op) == 2
}

// item returns v[i].
func (f *frame) item(v, i any) any {
	key, isText := i.(string)
	at, isWhole := whole(i)
	switch v := v.(type) {
	case *Dict:
		if isText {
			if x, ok := v.values[key]; ok {
				return x
			}
			return f.attribute(v, key)
		}
		return undefined{}
	case *List:
		if isWhole && v.shape <= shapeRange {
			if n, ok := index(at, len(v.items)); ok {
				return v.items[n]
			}
			return undefined{}
		}
	case string:
		if isWhole {
			f.size(len(v))
			runes := []rune(v)
			if n, ok := index(at, len(runes)); ok {
				return string(runes[n])
			}
			return undefined{}
		}
	}
	if isText {
		return f.attribute(v, key)
	}
	fail("an item of %s by %s", kindOf(v), kindOf(i))
	return nil
}

// index returns the index that i means in something of n items.
func index(i int64, n int) (int, bool) {
	if i < 0 {
		i += int64(n)
	}
	return int(i), i >= 0 && i < int64(n)
}

// slice returns v[from:to:step], with nil for what is not given.
func (f *frame) slice(v any, bounds [3]any) any {
	n := 0
	var runes []rune
	list, isList := v.(*List)
	if text, ok := v.(string); ok {
		f.size(len(text))
		runes = []rune(text)
		n = len(runes)
	} else if isList && list.shape <= shapeTuple {
		n = len(list.items)
		f.charge(n)
	} else {
		fail("a part of %s", kindOf(v))
	}
	at := indexes(bounds, n)
	if !isList {
		out := make([]rune, len(at))
		for i, from := range at {
			out[i] = runes[from]
		}
		return string(out)
	}
	out := make([]any, len(at))
	for i, from := range at {
		out[i] = list.items[from]
	}
	return &List{items: out, shape: list.shape}
}

// indexes returns the indexes that a slice takes of n items.
func indexes(bounds [3]any, n int) []int {
	given := func(v any, otherwise int) int {
		if v == nil {
			return otherwise
		}
		i, ok := whole(v)
		if !ok {
			fail("%s as the bound of a slice", kindOf(v))
		}
		return int(max(-1<<31, min(i, 1<<31)))
	}
	step := given(bounds[2], 1)
	if step == 0 {
		fail("a slice in steps of 0")
	}
	low, high, from, to := 0, n, 0, n
	if step < 0 {
		low, high, from, to = -1, n-1, n-1, -1
	}
	bound := func(v any, otherwise int) int {
		if v == nil {
			return otherwise
		}
		i := given(v, 0)
		if i < 0 {
			i += n
		}
		return max(low, min(i, high))
	}
	from, to = bound(bounds[0], from), bound(bounds[1], to)
	var out []int
	for i := from; step > 0 && i < to || step < 0 && i > to; i += step {
		out = append(out, i)
	}
	return out
}
