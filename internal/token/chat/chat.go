// Package chat renders conversations with a model's own chat template, which is
// written in Jinja. It renders what Python's Jinja renders, in the environment
// that transformers gives to chat templates, or refuses: what it does not know
// it refuses where it comes to it, and never guesses. Templates are read once;
// what conversations say is data, and is never read as a template.
package chat

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Template is a chat template. It never changes.
type Template struct{ body []statement }

// Bounds of reading and rendering: a template is a program, and a conversation
// its input.
const (
	maxSource = 1 << 20 // bytes of a template
	maxText   = 1 << 24 // bytes of a text, and of all that is written
	maxWork   = 2 << 20 // statements, expressions, and some dozens of bytes of text each
	maxDepth  = 100     // of brackets, blocks, calls and values within each other
	maxChain  = 1000    // of operators in a row
)

// ErrRefused is wrapped by all errors of this package.
var ErrRefused = errors.New("chat template")

// failure is thrown where reading or rendering cannot go on.
type failure struct{ err error }

// fail ends reading or rendering.
func fail(format string, args ...any) {
	panic(failure{fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))})
}

// catch turns a failure into an error.
func catch(err *error) {
	switch r := recover().(type) {
	case nil:
	case failure:
		*err = r.err
	default:
		panic(r)
	}
}

// Parse reads a template as transformers do: white space around blocks trimmed,
// and one newline at the end left out.
func Parse(source string) (t *Template, err error) {
	defer catch(&err)
	if len(source) > maxSource {
		fail("it has %d bytes, more than %d", len(source), maxSource)
	}
	source = strings.ReplaceAll(strings.ReplaceAll(source, "\r\n", "\n"), "\r", "\n")
	l := lexer{s: strings.TrimSuffix(source, "\n"), starts: true}
	l.run()
	p := parser{lexemes: l.out}
	return &Template{p.block()}, nil
}

// Render renders the template with the variables, of which it changes none. Now
// is the time for templates that tell it, in the zone that they tell it in.
func (t *Template) Render(vars *Dict, now time.Time) (text string, err error) {
	defer catch(&err)
	f := &frame{work: &work{now: now}, out: &strings.Builder{}}
	f.vars = &scope{names: vars.values, outer: &scope{names: globals}}
	f.enter()
	f.run(t.body)
	return f.out.String(), nil
}

// frame is the state of rendering, one for the template and one for each call
// of a macro.
type frame struct {
	*work
	vars *scope
	out  *strings.Builder
	left jump
}

// work is what rendering has taken so far, with all the frames of it.
type work struct {
	now   time.Time
	done  int
	depth int
}

// charge counts n pieces of work.
func (w *work) charge(n int) {
	if w.done += n + 1; w.done > maxWork || n < 0 {
		fail("it does not come to an end")
	}
}

// size charges for n bytes of text that are about to be made.
func (w *work) size(n int) {
	if n > maxText {
		fail("it makes a text of %d bytes", n)
	}
	w.charge(n >> 5)
}

// deeper is called before going into values or calls within others, shallower
// after it.
func (w *work) deeper() {
	if w.depth++; w.depth > maxDepth {
		fail("it goes more than %d deep", maxDepth)
	}
}

func (w *work) shallower() { w.depth-- }

// write writes text.
func (f *frame) write(s string) {
	f.size(len(s))
	if f.out.Len()+len(s) > maxText {
		fail("it writes more than %d bytes", maxText)
	}
	f.out.WriteString(s)
}

// jump is how a loop's body is left.
type jump uint8

const (
	jumpNone jump = iota
	jumpBreak
	jumpContinue
)

// scope holds names. The template, loops, macros and a few blocks have their own.
type scope struct {
	names map[string]any
	outer *scope
}

// get returns the value of a name.
func (s *scope) get(name string) any {
	for ; s != nil; s = s.outer {
		if v, ok := s.names[name]; ok {
			return v
		}
	}
	return undefined{}
}

// enter begins a scope inside the current one; the caller ends it by setting
// vars back.
func (f *frame) enter() { f.vars = &scope{names: map[string]any{}, outer: f.vars} }

// run executes statements until one leaves the loop around them.
func (f *frame) run(body []statement) {
	for _, s := range body {
		f.charge(0)
		if s(f); f.left != jumpNone {
			return
		}
	}
}

// within executes statements in a scope of their own.
func (f *frame) within(body []statement) {
	outer := f.vars
	f.enter()
	f.run(body)
	f.vars = outer
}

// capture returns what body writes.
func (f *frame) capture(body []statement) string {
	out := f.out
	f.out = &strings.Builder{}
	f.within(body)
	text := f.out.String()
	f.out = out
	return text
}
