package tokens

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"penstock.dev/penstock/internal/token/chat"
)

// form is how engines hand the contents of messages to templates. vLLM finds out
// from the template; here the form is taken in which it comes to the same.
type form uint8

const (
	formText  form = iota // text, its parts with newlines between
	formParts             // a list of parts
	forms
)

// errLeft is wrapped by what leaves a conversation to the engine.
var errLeft = errors.New("left to the engine")

func left(what string) error { return fmt.Errorf("%w: %s", errLeft, what) }

// chat appends the tokens of a conversation to dst. Question is what an engine
// would be asked.
func (m *Model) chat(dst []uint32, question []byte, as form, now time.Time) ([]uint32, error) {
	if m.template == nil {
		return dst, left(m.why)
	}
	text, err := m.write(question, as, now)
	if err != nil {
		return dst, err
	}
	if strings.Contains(text, "\ufffd") {
		return dst, left("it may be no text") // which engines read otherwise
	}
	dst, ok := m.encode(dst, text, false)
	if !ok {
		return dst, left("its text is not tokenized here")
	}
	return dst, nil
}

// write returns the text of a conversation.
func (m *Model) write(question []byte, as form, now time.Time) (string, error) {
	v, err := chat.FromJSON(question)
	if err != nil {
		return "", err
	}
	q, ok := v.(*chat.Dict)
	if !ok {
		return "", left("no object")
	}
	vars, last, err := variables(q, as)
	if err != nil {
		return "", err
	}
	text, err := m.template.Render(vars, now)
	if err != nil || last == nil {
		return text, err
	}
	return m.unfinished(text, vars, last, now)
}

// endMark marks the end of a message, as no message has it.
const endMark = "\ue000\uf8ff\ue000"

// unfinished returns the text up to where the last message ends, which the model
// is to go on with.
func (m *Model) unfinished(text string, vars, last *chat.Dict, now time.Time) (string, error) {
	v, _ := last.Get("content")
	content, ok := v.(string)
	if !ok || content == "" || strings.TrimSpace(content) != content || strings.Contains(text, endMark) {
		return "", left("a message to go on with that may be trimmed")
	}
	last.Set("content", content+endMark)
	marked, err := m.template.Render(vars, now)
	if err != nil {
		return "", err
	}
	text, after, ok := cutLast(text, content)
	if before, behind, found := strings.Cut(marked, endMark); !ok || !found || before != text || behind != after {
		return "", left("a message to go on with that the template changes")
	}
	return text, nil
}

// cutLast cuts text behind the last occurrence of part.
func cutLast(text, part string) (before, after string, ok bool) {
	at := strings.LastIndex(text, part)
	if at < 0 {
		return text, "", false
	}
	at += len(part)
	return text[:at], text[at:], true
}

// own are the variables of templates that no request sets by itself, and what
// engines take out of the others.
var own = []string{
	"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "conversation", "tokenize",
	"padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "reasoning_effort",
}

// variables returns those of a template for a question, and the message to go on
// with, if one is.
func variables(q *chat.Dict, as form) (vars, last *chat.Dict, err error) {
	vars = chat.NewDict()
	for _, name := range []string{"messages", "tools", "documents"} {
		vars.Set(name, nil)
	}
	vars.Set("add_generation_prompt", false)
	proceed := false
	for _, name := range q.Keys() {
		v, _ := q.Get(name)
		given, isBool := v.(bool)
		switch {
		case v == nil, name == "model", name == "tool_choice" && v == "auto", name == "add_special_tokens" && v == false:
		case name == "messages":
			v, last, err = messages(v, as)
			vars.Set(name, v)
		case name == "tools":
			err = tools(v)
			vars.Set(name, v)
		case name == "add_generation_prompt" && isBool:
			vars.Set(name, given)
		case name == "continue_final_message" && isBool:
			proceed = given
		case name == "chat_template_kwargs":
			err = arguments(vars, v)
		default:
			err = left(fmt.Sprintf("%q", name))
		}
		if err != nil {
			return nil, nil, err
		}
	}
	if !proceed {
		return vars, nil, nil
	}
	if ready, _ := vars.Get("add_generation_prompt"); ready == true || last == nil {
		return nil, nil, left("a message to go on with, and one to begin")
	}
	return vars, last, nil
}

// arguments adds the variables of a request's own.
func arguments(vars *chat.Dict, v any) error {
	d, ok := v.(*chat.Dict)
	if !ok {
		return left("arguments that are no object")
	}
	for _, name := range d.Keys() {
		if slices.Contains(own, name) {
			return left(fmt.Sprintf("an argument %q", name))
		}
		v, _ := d.Get(name)
		vars.Set(name, v)
	}
	return nil
}

// shaped reports whether v is an object with these names, in this order: what
// engines then read and write again stays as it is.
func shaped(v any, names ...string) (*chat.Dict, bool) {
	d, ok := v.(*chat.Dict)
	return d, ok && slices.Equal(d.Keys(), names)
}

// tools checks that tools are as engines write them.
func tools(v any) error {
	list, ok := v.(*chat.List)
	if !ok || len(list.Items()) == 0 {
		return left("tools that are no list")
	}
	for _, v := range list.Items() {
		tool, ok := shaped(v, "type", "function")
		if !ok {
			return left("a tool in another form")
		}
		f, _ := tool.Get("function")
		d, ok := shaped(f, "name", "description", "parameters")
		if !ok {
			return left("a tool in another form")
		}
		name, _ := d.Get("name")
		description, _ := d.Get("description")
		if !isText(name) || !isText(description) {
			return left("a tool in another form")
		}
	}
	return nil
}

func isText(v any) bool {
	_, ok := v.(string)
	return ok
}

// messages returns messages as engines hand them to templates, and the last.
func messages(v any, as form) (*chat.List, *chat.Dict, error) {
	list, ok := v.(*chat.List)
	if !ok {
		return nil, nil, left("messages that are no list")
	}
	out := make([]any, 0, len(list.Items()))
	var last *chat.Dict
	for _, v := range list.Items() {
		d, ok := v.(*chat.Dict)
		if !ok {
			return nil, nil, left("a message that is no object")
		}
		m, err := message(d, as)
		if err != nil {
			return nil, nil, err
		}
		out, last = append(out, m), m
	}
	return chat.NewList(out...), last, nil
}

// message returns a message as engines hand it to templates.
func message(d *chat.Dict, as form) (*chat.Dict, error) {
	role, _ := d.Get("role")
	raw, _ := d.Get("content")
	content, err := contents(raw, as)
	if err != nil || !isText(role) {
		return nil, left("a message without text")
	}
	m := chat.NewDict()
	m.Set("role", role)
	m.Set("content", content)
	for _, name := range d.Keys() {
		v, _ := d.Get(name)
		if v == nil || name == "role" || name == "content" {
			continue
		}
		if calls, ok := v.(*chat.List); ok && name == "tool_calls" && len(calls.Items()) == 0 {
			continue
		}
		switch {
		case name == "tool_calls" && role == "assistant":
			if v, err = toolCalls(v); err != nil {
				return nil, err
			}
		case name == "tool_call_id" && role == "tool" && isText(v), name == "name" && isText(v):
		default:
			return nil, left(fmt.Sprintf("%q of a message", name))
		}
		m.Set(name, v)
	}
	if v, ok := m.Get("name"); ok { // which comes last
		m = without(m, "name")
		m.Set("name", v)
	}
	return m, nil
}

// without returns the dictionary without a name.
func without(d *chat.Dict, name string) *chat.Dict {
	out := chat.NewDict()
	for _, k := range d.Keys() {
		if k != name {
			v, _ := d.Get(k)
			out.Set(k, v)
		}
	}
	return out
}

// contents returns the content of a message in a form.
func contents(v any, as form) (any, error) {
	var texts []string
	switch v := v.(type) {
	case nil:
	case string:
		texts = []string{v}
	case *chat.List:
		for _, part := range v.Items() {
			d, ok := shaped(part, "type", "text")
			if !ok {
				return nil, errLeft
			}
			kind, _ := d.Get("type")
			text, _ := d.Get("text")
			s, ok := text.(string)
			if kind != "text" || !ok {
				return nil, errLeft
			}
			texts = append(texts, s)
		}
	default:
		return nil, errLeft
	}
	if as == formText {
		return strings.Join(slices.DeleteFunc(texts, func(s string) bool { return s == "" }), "\n"), nil
	}
	parts := make([]any, len(texts))
	for i, s := range texts {
		d := chat.NewDict()
		d.Set("type", "text")
		d.Set("text", s)
		parts[i] = d
	}
	return chat.NewList(parts...), nil
}

// toolCalls returns calls with their arguments read.
func toolCalls(v any) (any, error) {
	list, ok := v.(*chat.List)
	if !ok {
		return nil, left("calls that are no list")
	}
	var out []any
	for _, v := range list.Items() {
		c, ok := shaped(v, "id", "type", "function")
		if !ok {
			return nil, left("a call in another form")
		}
		f, _ := c.Get("function")
		fn, ok := shaped(f, "name", "arguments")
		if !ok {
			return nil, left("a call in another form")
		}
		raw, _ := fn.Get("arguments")
		text, ok := raw.(string)
		if !ok {
			return nil, left("a call in another form")
		}
		args := any(chat.NewDict())
		if text != "" {
			var err error
			if args, err = chat.FromJSON([]byte(text)); err != nil {
				return nil, err
			}
			if _, ok := args.(*chat.Dict); !ok {
				return nil, left("a call in another form")
			}
		}
		fn.Set("arguments", args)
		out = append(out, c)
	}
	return chat.NewList(out...), nil
}
