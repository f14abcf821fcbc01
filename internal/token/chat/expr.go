package chat

import (
	"slices"
	"strconv"
	"strings"
)

// chain counts operators in a row: each goes one deeper when it is evaluated.
type chain int

func (c *chain) link() {
	if *c++; *c > maxChain {
		fail("more than %d operators in a row", maxChain)
	}
}

// tuple reads one expression, or several with commas between. Conditions in them
// are read where the grammar has them.
func (p *parser) tuple(cond bool) expression {
	one := p.or
	if cond {
		one = p.expr
	}
	first := one()
	if !p.is(",") {
		return first
	}
	items := []expression{first}
	for {
		if _, ok := p.sign(","); !ok || p.over() {
			return listOf(items, shapeTuple)
		}
		items = append(items, one())
	}
}

// over reports whether what comes next ends a list.
func (p *parser) over() bool {
	return p.peek().kind == kindEnd || p.is(")") || p.is("]") || p.is("}") || p.is("=")
}

func (p *parser) expr() expression {
	p.deeper()
	defer p.shallower()
	then := p.or()
	for c := chain(0); p.name("if"); c.link() {
		yes, cond := then, p.or()
		no := expression(func(*frame) any { return undefined{} })
		if p.name("else") {
			no = p.expr()
		}
		then = func(f *frame) any {
			if truth(cond(f)) {
				return yes(f)
			}
			return no(f)
		}
	}
	return then
}

func (p *parser) or() expression {
	left := p.and()
	for c := chain(0); p.name("or"); c.link() {
		a, b := left, p.and()
		left = func(f *frame) any {
			if v := a(f); truth(v) {
				return v
			}
			return b(f)
		}
	}
	return left
}

func (p *parser) and() expression {
	left := p.not()
	for c := chain(0); p.name("and"); c.link() {
		a, b := left, p.not()
		left = func(f *frame) any {
			if v := a(f); !truth(v) {
				return v
			}
			return b(f)
		}
	}
	return left
}

func (p *parser) not() expression {
	if !p.name("not") {
		return p.compare()
	}
	p.deeper()
	defer p.shallower()
	e := p.not()
	return func(f *frame) any { return !truth(e(f)) }
}

// comparison consumes the operator of a comparison.
func (p *parser) comparison() (string, bool) {
	if op, ok := p.sign("==", "!=", "<", ">", "<=", ">="); ok {
		return op, true
	}
	if p.peek() == (lexeme{kindName, "not"}) && p.ahead(1) == (lexeme{kindName, "in"}) {
		p.at += 2
		return "not in", true
	}
	return "in", p.name("in")
}

func (p *parser) compare() expression {
	first := p.math(0)
	var ops []string
	var others []expression
	for op, ok := p.comparison(); ok; op, ok = p.comparison() {
		ops, others = append(ops, op), append(others, p.math(0))
	}
	if ops == nil {
		return first
	}
	return func(f *frame) any {
		a := first(f)
		for i, op := range ops {
			b := others[i](f)
			if !f.compare(op, a, b) {
				return false
			}
			a = b
		}
		return true
	}
}

// levels are the operators between two values, from the weakest.
var levels = [][]string{{"+", "-"}, {"~"}, {"*", "/", "//", "%"}, {"**"}}

func (p *parser) math(level int) expression {
	if level == len(levels) {
		return p.unary(true)
	}
	left := p.math(level + 1)
	c := chain(0)
	for op, ok := p.sign(levels[level]...); ok; op, ok = p.sign(levels[level]...) {
		c.link()
		a, b := left, p.math(level+1)
		left = func(f *frame) any { return f.math(op, a(f), b(f)) }
	}
	return left
}

// unary reads a value with what is in front of it and behind it.
func (p *parser) unary(filters bool) expression {
	p.deeper()
	defer p.shallower()
	var e expression
	if op, ok := p.sign("-", "+"); ok {
		of := p.unary(false)
		e = func(f *frame) any {
			v := of(f)
			if x, ok := v.(float64); ok && op == "-" {
				return -x // which may be -0
			}
			return f.math(op, int64(0), v)
		}
	} else {
		e = p.postfix(p.primary())
	}
	for c := chain(0); filters; c.link() {
		in := e
		if _, ok := p.sign("|"); ok {
			e = p.filter(in)
		} else if p.name("is") {
			e = p.test(in)
		} else if p.is("(") {
			args := p.args()
			e = func(f *frame) any { return f.call(in(f), args.eval(f)) }
		} else {
			break
		}
	}
	return e
}

func (p *parser) filter(in expression) expression {
	name, args := p.ident(), &arguments{}
	if p.is("(") {
		args = p.args()
	}
	return func(f *frame) any { return f.filter(name, in(f), args.eval(f)) }
}

func (p *parser) test(in expression) expression {
	negated := p.name("not")
	name, args := p.ident(), &arguments{}
	switch w := p.peek(); {
	case p.is("("):
		args = p.args()
	case w.kind == kindName && w.text == "is":
		fail("a test of a test")
	case w.kind == kindName && !slices.Contains([]string{"else", "or", "and"}, w.text),
		w.kind == kindString, w.kind == kindInt, w.kind == kindFloat, p.is("["), p.is("{"):
		args.list = []expression{p.postfix(p.primary())}
	}
	return func(f *frame) any { return f.test(name, in(f), args.eval(f)) != negated }
}

func (p *parser) postfix(e expression) expression {
	for c := chain(0); ; c.link() {
		in := e
		if _, ok := p.sign("."); ok {
			w := p.next()
			switch w.kind {
			case kindName:
				e = func(f *frame) any { return f.attribute(in(f), w.text) }
			case kindInt:
				at := integer(w.text)
				e = func(f *frame) any { return f.item(in(f), at) }
			default:
				fail("%q behind a dot", w.text)
			}
		} else if _, ok := p.sign("["); ok {
			e = p.subscript(in)
		} else if p.is("(") {
			args := p.args()
			e = func(f *frame) any { return f.call(in(f), args.eval(f)) }
		} else {
			return e
		}
	}
}

// subscript reads an index or a slice.
func (p *parser) subscript(in expression) expression {
	var bounds [3]expression
	n := 0
	for !p.is("]") {
		if _, ok := p.sign(":"); ok {
			if n++; n > 2 {
				fail("a slice of %d parts", n+1)
			}
			continue
		}
		if bounds[n] != nil {
			fail("%q inside of a slice", p.peek().text)
		}
		bounds[n] = p.expr()
	}
	p.want("]")
	if n == 0 {
		if bounds[0] == nil {
			fail("an index of nothing")
		}
		return func(f *frame) any { return f.item(in(f), bounds[0](f)) }
	}
	return func(f *frame) any {
		v := in(f)
		var at [3]any
		for i, b := range bounds {
			if b != nil {
				at[i] = b(f)
			}
		}
		return f.slice(v, at)
	}
}

// arguments are those of a call.
type arguments struct {
	list  []expression
	names []string // of the last of the list
}

// args reads arguments in brackets.
func (p *parser) args() *arguments {
	p.want("(")
	a := &arguments{}
	for !p.is(")") {
		if p.peek().kind == kindName && p.ahead(1) == (lexeme{kindSign, "="}) {
			name := p.ident()
			if p.at++; slices.Contains(a.names, name) {
				fail("two arguments with the name %q", name)
			}
			a.names = append(a.names, name)
		} else if len(a.names) > 0 {
			fail("an argument without a name behind one with")
		}
		a.list = append(a.list, p.expr())
		if _, ok := p.sign(","); !ok {
			break
		}
	}
	p.want(")")
	return a
}

// values are arguments with their values.
type values struct {
	list  []any
	names []string // of the last of the list
}

func (a *arguments) eval(f *frame) *values {
	v := &values{names: a.names}
	if len(a.list) > 0 {
		v.list = make([]any, len(a.list))
	}
	for i, e := range a.list {
		v.list[i] = e(f)
	}
	return v
}

// absent is an argument that is not given.
type absent struct{}

// bind returns the arguments in the order of these names, absent where they are
// not given.
func (v *values) bind(names ...string) []any {
	out := make([]any, len(names))
	for i := range out {
		out[i] = absent{}
	}
	first := len(v.list) - len(v.names)
	if first > len(names) {
		fail("%d arguments, more than %d", first, len(names))
	}
	copy(out, v.list[:first])
	for i, name := range v.names {
		at := slices.Index(names, name)
		if at < first {
			fail("an argument with the name %q", name)
		}
		out[at] = v.list[first+i]
	}
	return out
}

// constants are the words that are values.
var constants = map[string]any{"true": true, "True": true, "false": false, "False": false, "none": nil, "None": nil}

func (p *parser) primary() expression {
	switch w := p.next(); w.kind {
	case kindString:
		text := []string{w.text}
		for p.peek().kind == kindString {
			text = append(text, p.next().text)
		}
		return constant(strings.Join(text, ""))
	case kindInt:
		return constant(integer(w.text))
	case kindFloat:
		x, err := strconv.ParseFloat(w.text, 64)
		if err != nil {
			fail("the number %q", w.text)
		}
		return constant(x)
	case kindName:
		if v, ok := constants[w.text]; ok {
			return constant(v)
		}
		if reserved[w.text] && w.text != "loop" {
			fail("%q where a value belongs", w.text)
		}
		return func(f *frame) any {
			f.charge(0)
			return f.vars.get(w.text)
		}
	case kindSign:
		switch w.text {
		case "(":
			return p.parens()
		case "[":
			return p.list()
		case "{":
			return p.dict()
		}
		fail("%q where a value belongs", w.text)
	default:
		fail("a tag that ends where a value belongs")
	}
	return nil
}

func constant(v any) expression { return func(*frame) any { return v } }

func integer(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		fail("the number %q", text)
	}
	return n
}

// parens reads what is in brackets: a value, or a tuple.
func (p *parser) parens() expression {
	if _, ok := p.sign(")"); ok {
		return listOf(nil, shapeTuple)
	}
	e := p.tuple(true)
	p.want(")")
	return e
}

func (p *parser) list() expression {
	var items []expression
	for !p.is("]") {
		items = append(items, p.expr())
		if _, ok := p.sign(","); !ok {
			break
		}
	}
	p.want("]")
	return listOf(items, shapeList)
}

func listOf(items []expression, shape shape) expression {
	return func(f *frame) any {
		f.charge(len(items))
		l := &List{items: make([]any, len(items)), shape: shape}
		for i, e := range items {
			l.items[i] = e(f)
		}
		return l
	}
}

func (p *parser) dict() expression {
	var keys, vals []expression
	for !p.is("}") {
		keys = append(keys, p.expr())
		p.want(":")
		vals = append(vals, p.expr())
		if _, ok := p.sign(","); !ok {
			break
		}
	}
	p.want("}")
	return func(f *frame) any {
		f.charge(len(keys))
		d := NewDict()
		for i := range keys {
			d.Set(f.text(keys[i](f)), vals[i](f))
		}
		return d
	}
}
