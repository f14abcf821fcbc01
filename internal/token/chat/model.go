package chat

import (
	"errors"
	"fmt"
	"time"
)

// Model is how a model's own files write conversations. It never changes.
type Model struct {
	plain, tools *Template // for conversations without tools, and with them
	special      *Dict     // tokens by the names that templates have for them
}

// ErrNone says that a model's files have no chat template.
var ErrNone = errors.New("no chat template")

// specials are the names of tokens in tokenizer_config.json.
var specials = []string{"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}

// ReadModel reads a model's tokenizer_config.json and, before the templates in
// that, its chat_template.jinja; either may be nil.
func ReadModel(config, template []byte) (*Model, error) {
	m := &Model{special: NewDict()}
	var in any
	if len(config) > 0 {
		d, err := object(config)
		if err != nil {
			return nil, err
		}
		m.special = specialsOf(d)
		in, _ = d.Get("chat_template")
	}
	if len(template) > 0 {
		in = string(template)
	}
	return m, m.read(in)
}

// object reads a JSON object.
func object(raw []byte) (*Dict, error) {
	v, err := FromJSON(raw)
	if err != nil {
		return nil, err
	}
	d, ok := v.(*Dict)
	if !ok {
		return nil, fmt.Errorf("%w: no JSON object", ErrRefused)
	}
	return d, nil
}

// specialsOf returns the special tokens, which are written as text or as objects
// with their text.
func specialsOf(config *Dict) *Dict {
	out := NewDict()
	for _, name := range specials {
		v, _ := config.Get(name)
		if d, ok := v.(*Dict); ok {
			v, _ = d.Get("content")
		}
		if s, ok := v.(string); ok {
			out.Set(name, s)
		}
	}
	return out
}

// read reads templates: one, or a list of them by name.
func (m *Model) read(in any) error {
	named := map[string]any{"default": in}
	if list, ok := in.(*List); ok {
		clear(named)
		for _, v := range list.items {
			d, _ := v.(*Dict)
			if d == nil {
				return fmt.Errorf("%w: a list of %s", ErrRefused, kindOf(v))
			}
			if name, ok := d.values["name"].(string); ok {
				named[name] = d.values["template"]
			}
		}
	}
	var err error
	if m.plain, err = parsed(named["default"]); err != nil {
		return err
	}
	m.tools = m.plain
	if source, ok := named["tool_use"]; ok {
		m.tools, err = parsed(source)
	}
	return err
}

func parsed(source any) (*Template, error) {
	switch s := source.(type) {
	case nil:
		return nil, ErrNone
	case string:
		return Parse(s)
	}
	return nil, fmt.Errorf("%w: %s where a template belongs", ErrRefused, kindOf(source))
}

// Render renders a conversation from the variables of a template; tools among
// them that are not none choose the template for tools. It keeps vars, and adds
// to them what is missing.
func (m *Model) Render(vars *Dict, now time.Time) (string, error) {
	t := m.plain
	if vars.values["tools"] != nil {
		t = m.tools
	}
	for _, name := range m.special.keys {
		if _, ok := vars.values[name]; !ok {
			vars.Set(name, m.special.values[name])
		}
	}
	return t.Render(vars, now)
}
