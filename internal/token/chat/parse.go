package chat

import (
	"slices"
	"strings"
)

// statement and expression are what tags are compiled into.
type (
	statement  func(*frame)
	expression func(*frame) any
)

// parser turns lexemes into statements.
type parser struct {
	lexemes []lexeme
	at      int
	depth   int
	loops   int // around what is read
}

func (p *parser) peek() lexeme { return p.ahead(0) }

// ahead returns the n'th lexeme from here.
func (p *parser) ahead(n int) lexeme {
	if p.at+n < len(p.lexemes) {
		return p.lexemes[p.at+n]
	}
	return lexeme{kindEnd, ""}
}

func (p *parser) next() lexeme {
	w := p.peek()
	p.at++
	return w
}

// sign consumes one of the signs if it is next.
func (p *parser) sign(signs ...string) (string, bool) {
	if w := p.peek(); w.kind == kindSign && slices.Contains(signs, w.text) {
		p.at++
		return w.text, true
	}
	return "", false
}

// is reports whether the sign is next, and leaves it.
func (p *parser) is(sign string) bool { return p.peek() == lexeme{kindSign, sign} }

// name consumes the word if it is next.
func (p *parser) name(word string) bool {
	if p.peek() == (lexeme{kindName, word}) {
		p.at++
		return true
	}
	return false
}

func (p *parser) want(sign string) {
	if _, ok := p.sign(sign); !ok {
		fail("%q where %q belongs", p.peek().text, sign)
	}
}

// end consumes the end of a tag.
func (p *parser) end() {
	if w := p.next(); w.kind != kindEnd {
		fail("%q behind the end of what a tag says", w.text)
	}
}

func (p *parser) ident() string {
	w := p.next()
	if w.kind != kindName {
		fail("%q where a name belongs", w.text)
	}
	return w.text
}

// deeper is called before reading what is nested, shallower after it.
func (p *parser) deeper() {
	if p.depth++; p.depth > maxDepth {
		fail("it is nested more than %d deep", maxDepth)
	}
}

func (p *parser) shallower() { p.depth-- }

// block reads statements up to a tag that begins with one of the words, and
// consumes the beginning of that tag; without words, up to the end.
func (p *parser) block(until ...string) []statement {
	p.deeper()
	defer p.shallower()
	var out []statement
	for p.at < len(p.lexemes) {
		switch w := p.next(); w.kind {
		case kindText:
			out = append(out, func(f *frame) { f.write(w.text) })
		case kindPrint:
			e := p.tuple(true)
			p.end()
			out = append(out, func(f *frame) { f.write(f.show(e(f))) })
		case kindBlock:
			if w := p.peek(); w.kind == kindName && slices.Contains(until, w.text) {
				return out
			}
			out = append(out, p.tagged(p.ident()))
		default:
			fail("%q outside of tags", w.text)
		}
	}
	if len(until) > 0 {
		fail("no %s", strings.Join(until, " or "))
	}
	return out
}

// closed reads statements up to the tag of the word, and that tag.
func (p *parser) closed(word string) []statement {
	body := p.block(word)
	p.at++
	p.end()
	return body
}

func (p *parser) tagged(word string) statement {
	switch word {
	case "if":
		return p.ifs()
	case "for":
		return p.loop()
	case "set":
		return p.set()
	case "macro":
		return p.macro()
	case "with":
		return p.with()
	case "break":
		return p.leave(jumpBreak)
	case "continue":
		return p.leave(jumpContinue)
	case "generation": // marks what the model says
		p.end()
		body := p.closed("endgeneration")
		return func(f *frame) { f.within(body) }
	}
	fail("the tag %q", word)
	return nil
}

func (p *parser) leave(how jump) statement {
	if p.end(); p.loops == 0 {
		fail("a loop is left outside of loops")
	}
	return func(f *frame) { f.left = how }
}

func (p *parser) ifs() statement {
	type branch struct {
		cond expression
		body []statement
	}
	var branches []branch
	var otherwise []statement
	for more := true; more; {
		cond := p.tuple(false)
		p.end()
		branches = append(branches, branch{cond, p.block("elif", "else", "endif")})
		more = p.name("elif")
	}
	if p.name("else") {
		p.end()
		otherwise = p.block("endif")
	}
	p.at++
	p.end()
	return func(f *frame) {
		for i := range branches {
			if truth(branches[i].cond(f)) {
				f.run(branches[i].body)
				return
			}
		}
		f.run(otherwise)
	}
}

// target is what a value is given to: a name, a name of a namespace, or several
// targets for the parts of a value.
type target struct {
	name, attr string
	parts      []target
}

// target reads one, or several with commas between.
func (p *parser) target(attrs bool) target {
	first := p.oneTarget(attrs)
	if !p.is(",") {
		return first
	}
	t := target{parts: []target{first}}
	for {
		if _, ok := p.sign(","); !ok || p.peek().kind != kindName && !p.is("(") {
			return t
		}
		if p.peek().text == "in" {
			return t
		}
		t.parts = append(t.parts, p.oneTarget(attrs))
	}
}

func (p *parser) oneTarget(attrs bool) target {
	if _, ok := p.sign("("); ok {
		p.deeper()
		defer p.shallower()
		t := p.target(false)
		p.want(")")
		return t
	}
	t := target{name: p.ident()}
	if reserved[t.name] {
		fail("a value for %q", t.name)
	}
	if attrs {
		if _, ok := p.sign("."); ok {
			t.attr = p.ident()
		}
	}
	return t
}

// reserved are the words that are no names of a template's own: those of the
// language, and what Jinja has inside of blocks and macros.
var reserved = map[string]bool{
	"true": true, "True": true, "false": true, "False": true, "none": true, "None": true, "and": true, "or": true, "not": true,
	"in": true, "is": true, "if": true, "else": true, "loop": true, "self": true, "super": true, "varargs": true, "kwargs": true,
}

// assign gives v to the target.
func (f *frame) assign(t *target, v any) {
	switch {
	case t.parts != nil:
		items := f.sequence(v)
		if len(items) != len(t.parts) {
			fail("%d values for %d names", len(items), len(t.parts))
		}
		for i := range t.parts {
			f.assign(&t.parts[i], items[i])
		}
	case t.attr == "":
		f.vars.names[t.name] = v
	default:
		n, ok := f.vars.get(t.name).(*namespace)
		if !ok {
			fail("a change of what is no namespace")
		}
		n.names[t.attr] = v
	}
}

func (p *parser) set() statement {
	t := p.target(true)
	if _, ok := p.sign("="); ok {
		e := p.tuple(true)
		p.end()
		return func(f *frame) { f.assign(&t, e(f)) }
	}
	p.end()
	body := p.closed("endset")
	return func(f *frame) { f.assign(&t, f.capture(body)) }
}

func (p *parser) with() statement {
	var names []target
	var exprs []expression
	for p.peek().kind == kindName {
		names = append(names, p.oneTarget(false))
		p.want("=")
		exprs = append(exprs, p.expr())
		if _, ok := p.sign(","); !ok {
			break
		}
	}
	p.end()
	body := p.closed("endwith")
	return func(f *frame) {
		outer := f.vars
		vals := make([]any, len(exprs))
		for i, e := range exprs {
			vals[i] = e(f)
		}
		f.enter()
		for i := range names {
			f.assign(&names[i], vals[i])
		}
		f.run(body)
		f.vars = outer
	}
}

func (p *parser) loop() statement {
	t := p.target(false)
	if !p.name("in") {
		fail("a loop without in")
	}
	over := p.tuple(false)
	var only expression
	if p.name("if") {
		only = p.expr()
	}
	p.end()
	p.loops++
	body := p.block("else", "endfor")
	p.loops--
	var empty []statement
	if p.name("else") {
		p.end()
		empty = p.block("endfor")
	}
	p.at++
	p.end()
	return func(f *frame) { f.loop(&t, over(f), only, body, empty) }
}

// macro is a function written in a template.
type macro struct {
	name     string
	params   []string
	defaults []expression // nil for none
	body     []statement
}

func (p *parser) macro() statement {
	m := &macro{name: p.ident()}
	if reserved[m.name] {
		fail("a macro with the name %q", m.name)
	}
	p.want("(")
	for !p.is(")") {
		name := p.ident()
		if reserved[name] || slices.Contains(m.params, name) {
			fail("a parameter with the name %q", name)
		}
		var e expression
		if _, ok := p.sign("="); ok {
			e = p.expr()
		}
		m.params, m.defaults = append(m.params, name), append(m.defaults, e)
		if _, ok := p.sign(","); !ok {
			break
		}
	}
	p.want(")")
	p.end()
	loops := p.loops
	p.loops = 0
	m.body = p.closed("endmacro")
	p.loops = loops
	return func(f *frame) {
		home := f.vars
		f.vars.names[m.name] = &function{m.name, func(f *frame, a *values) any { return f.macro(m, home, a) }}
	}
}
