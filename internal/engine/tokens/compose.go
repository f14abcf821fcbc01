package tokens

import (
	"bytes"
	"encoding/json"

	"penstock.dev/penstock/internal/api"
)

// compose writes what an engine is asked: the same for every way to ask.
func compose(q *Query, p *prompt) ([]byte, Reason) {
	switch q.Kind {
	case api.Messages:
		b, err := api.MessagesToTokenize(q.Body, q.Model)
		if err != nil {
			return nil, ReasonKind
		}
		return b, ReasonNone
	case api.Responses:
		messages, ok := inputMessages(q.Lead, p.raw)
		if !ok || given(q.Tools) {
			return nil, ReasonKind
		}
		return question(q, p, "messages", messages), ReasonNone
	case api.Completion:
		return question(q, p, "prompt", p.raw), ReasonNone
	}
	return question(q, p, "messages", p.raw), ReasonNone
}

// given reports whether a member has a value.
func given(raw []byte) bool { return len(raw) > 0 && string(raw) != "null" }

// question writes one with the prompt under its name.
func question(q *Query, p *prompt, name string, value []byte) []byte {
	b := make([]byte, 0, len(value)+len(q.Tools)+512)
	b = api.AppendString(append(b, `{"model":`...), q.Model)
	b = member{[]byte(name), value}.append(b)
	if given(q.Tools) {
		b = member{[]byte("tools"), q.Tools}.append(b)
	}
	ready := !p.chat
	for _, m := range p.members[:p.n] {
		b = m.append(b)
		ready = ready || string(m.name) == "add_generation_prompt"
	}
	if !ready {
		b = append(b, `,"add_generation_prompt":true`...)
	}
	return append(b, '}')
}

// append writes the member, which is not the first, to b.
func (m member) append(b []byte) []byte {
	b = append(append(b, `,"`...), m.name...)
	return append(append(b, `":`...), m.value...)
}

// inputMessages turns the input of the Responses API into messages, if it is
// text: for items of other kinds each engine has its own ways.
func inputMessages(instructions, input []byte) ([]byte, bool) {
	type message struct {
		Type    string  `json:"type,omitempty"`
		Role    string  `json:"role"`
		Content *string `json:"content"`
	}
	var out []message
	if given(instructions) {
		t := text(instructions)
		out = append(out, message{Role: "system", Content: &t})
	}
	if input[0] == '"' {
		t := text(input)
		out = append(out, message{Role: "user", Content: &t})
	} else {
		var items []message
		d := json.NewDecoder(bytes.NewReader(input))
		d.DisallowUnknownFields()
		if d.Decode(&items) != nil {
			return nil, false
		}
		for _, m := range items {
			if m.Content == nil || m.Type != "" && m.Type != "message" {
				return nil, false
			}
			m.Type = ""
			out = append(out, m)
		}
	}
	b, err := json.Marshal(out)
	return b, err == nil
}
