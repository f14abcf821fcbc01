package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// InexactError says that a field of a request cannot be carried over to the API
// that the engines speak.
type InexactError struct{ Field, Problem string }

func (e *InexactError) Error() string { return fmt.Sprintf("%q %s", e.Field, e.Problem) }

const (
	noChatWord    = "has no counterpart in a chat completion, which is all that the engines of this model speak"
	blockNoWord   = "of type %q " + noChatWord
	mustBeMessage = "must be a string or an array of content blocks"
)

// sameInChat are the fields of the Messages API that mean the same in a chat
// completion, by the name they have there, and what engines take beside the API.
var sameInChat = map[string]string{
	"max_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stop_sequences": "stop",
	"cache_salt": "cache_salt", "priority": "priority", "seed": "seed", "min_p": "min_p", "min_tokens": "min_tokens",
	"repetition_penalty": "repetition_penalty", "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty",
	"ignore_eos": "ignore_eos", "chat_template_kwargs": "chat_template_kwargs",
}

// treated are the fields that have code of their own here, and hints that an
// engine without a counterpart loses nothing by not seeing.
var treated = map[string]bool{
	"model": true, "messages": true, "system": true, "tools": true, "tool_choice": true, "stream": true, "metadata": true,
	"thinking": true, "output_config": true, "output_format": true,
	"service_tier": true, "cache_control": true, // prefixes are cached anyway
}

// toChat writes the body of a chat completion.
type toChat struct {
	b     []byte
	comma bool
}

// MessagesToChat translates a request of the Messages API, which Scan has read,
// into one for a chat completion that asks model. It returns a *FieldError for
// what is wrong, and an *InexactError for what a chat completion cannot say.
//
// What says how sure the client is that a tool failed ("is_error") and what asks
// for caching has no place there and is left out: it changes no text.
func MessagesToChat(body []byte, model string) ([]byte, error) {
	t := toChat{b: make([]byte, 0, len(body)+len(body)/8+256)}
	fields, err := t.conversation(body, model)
	if err != nil {
		return nil, err
	}
	if _, ok := fields["max_tokens"]; !ok {
		return nil, &FieldError{"max_tokens", "is required"}
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if same := sameInChat[name]; same != "" {
			t.raw(same, fields[name])
		}
	}
	for _, part := range []func(map[string]json.RawMessage) error{t.toolChoice, t.thinking, t.output, t.user, t.stream} {
		if err := part(fields); err != nil {
			return nil, err
		}
	}
	return append(t.b, '}'), nil
}

// MessagesToTokenize translates a request to count a message's tokens into one
// for the tokenize API of vLLM and its like.
func MessagesToTokenize(body []byte, model string) ([]byte, error) {
	t := toChat{b: make([]byte, 0, len(body)+len(body)/8+256)}
	if _, err := t.conversation(body, model); err != nil {
		return nil, err
	}
	return append(t.b, `,"add_generation_prompt":true}`...), nil
}

// conversation writes model, messages and tools, and returns all fields.
func (t *toChat) conversation(body []byte, model string) (map[string]json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, &FieldError{"messages", "must be valid JSON"}
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if sameInChat[name] == "" && !treated[name] {
			return nil, &InexactError{name, noChatWord}
		}
		if string(fields[name]) == "null" {
			delete(fields, name)
		}
	}
	t.b = append(t.b, '{')
	t.key("model")
	t.b = AppendString(t.b, model)
	t.key("messages")
	t.b, t.comma = append(t.b, '['), false
	if err := t.system(fields["system"]); err != nil {
		return nil, err
	}
	if err := t.messages(fields["messages"]); err != nil {
		return nil, err
	}
	t.b, t.comma = append(t.b, ']'), true
	return fields, t.tools(fields["tools"])
}

// key begins a member.
func (t *toChat) key(name string) {
	t.next()
	t.b = AppendString(t.b, name)
	t.b = append(t.b, ':')
	t.comma = true
}

// next writes the comma between two members or elements.
func (t *toChat) next() {
	if t.comma {
		t.b = append(t.b, ',')
	}
	t.comma = true
}

// raw writes a member whose value is carried over as it is.
func (t *toChat) raw(name string, v json.RawMessage) {
	t.key(name)
	t.b = append(t.b, v...)
}

func (t *toChat) stream(f map[string]json.RawMessage) error {
	if string(f["stream"]) == "true" {
		t.b = append(t.b, `,"stream":true,"stream_options":{"include_usage":true}`...)
	}
	return nil
}

func (t *toChat) user(f map[string]json.RawMessage) error {
	var meta struct {
		User json.RawMessage `json:"user_id"`
	}
	if raw := f["metadata"]; raw != nil && json.Unmarshal(raw, &meta) != nil {
		return &FieldError{"metadata", "must be an object"}
	}
	if isString(meta.User) {
		t.raw("user", meta.User)
	}
	return nil
}

func (t *toChat) thinking(f map[string]json.RawMessage) error {
	var v struct {
		Type string `json:"type"`
	}
	raw := f["thinking"]
	if raw != nil && json.Unmarshal(raw, &v) != nil {
		return &FieldError{"thinking", "must be an object"}
	}
	if raw != nil && v.Type != "disabled" {
		return &InexactError{"thinking", noChatWord}
	}
	return nil
}

// output writes the format that the answer must have.
func (t *toChat) output(f map[string]json.RawMessage) error {
	format, field := f["output_format"], "output_format"
	if raw := f["output_config"]; raw != nil {
		var c map[string]json.RawMessage
		if json.Unmarshal(raw, &c) != nil {
			return &FieldError{"output_config", "must be an object"}
		}
		for _, name := range slices.Sorted(maps.Keys(c)) {
			if name != "format" {
				return &InexactError{"output_config." + name, noChatWord}
			}
			format, field = c[name], "output_config.format"
		}
	}
	if format == nil || string(format) == "null" {
		return nil
	}
	var v struct {
		Type   string          `json:"type"`
		Schema json.RawMessage `json:"schema"`
	}
	if json.Unmarshal(format, &v) != nil || v.Type != "json_schema" || v.Schema == nil {
		return &InexactError{field, noChatWord}
	}
	t.key("response_format")
	t.b = append(t.b, `{"type":"json_schema","json_schema":{"name":"answer","strict":true,"schema":`...)
	t.b = append(append(t.b, v.Schema...), '}', '}')
	return nil
}

func (t *toChat) toolChoice(f map[string]json.RawMessage) error {
	raw := f["tool_choice"]
	if raw == nil {
		return nil
	}
	var v struct {
		Type   string `json:"type"`
		Name   string `json:"name"`
		Single bool   `json:"disable_parallel_tool_use"`
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return &FieldError{"tool_choice", "must be an object"}
	}
	switch v.Type {
	case "auto", "none":
		t.key("tool_choice")
		t.b = AppendString(t.b, v.Type)
	case "any":
		t.key("tool_choice")
		t.b = append(t.b, `"required"`...)
	case "tool":
		t.key("tool_choice")
		t.b = append(t.b, `{"type":"function","function":{"name":`...)
		t.b = append(AppendString(t.b, v.Name), '}', '}')
	default:
		return &FieldError{"tool_choice.type", "must be auto, any, tool or none"}
	}
	if v.Single {
		t.b = append(t.b, `,"parallel_tool_calls":false`...)
	}
	return nil
}

// toolFields are the fields of a tool that can be carried over or left out.
var toolFields = map[string]bool{
	"type": true, "name": true, "description": true, "input_schema": true, "strict": true, "cache_control": true, "eager_input_streaming": true,
}

func (t *toChat) tools(raw json.RawMessage) error {
	if raw == nil {
		return nil
	}
	var tools []map[string]json.RawMessage
	if err := json.Unmarshal(raw, &tools); err != nil {
		return &FieldError{"tools", "must be an array of tools"}
	}
	if len(tools) == 0 {
		return nil
	}
	t.key("tools")
	t.b = append(t.b, '[')
	for i, tool := range tools {
		at := fmt.Sprintf("tools[%d]", i)
		if kind := tool["type"]; kind != nil && string(kind) != `"custom"` && string(kind) != "null" {
			return &InexactError{at + ".type", fmt.Sprintf("%s names a tool of the server, which "+noChatWord, brief(string(kind)))}
		}
		for _, name := range slices.Sorted(maps.Keys(tool)) {
			if !toolFields[name] {
				return &InexactError{at + "." + name, noChatWord}
			}
		}
		if !isString(tool["name"]) {
			return &FieldError{at + ".name", "must be a string"}
		}
		if i > 0 {
			t.b = append(t.b, ',')
		}
		t.b = append(t.b, `{"type":"function","function":{`...)
		t.comma = false
		t.raw("name", tool["name"])
		for _, f := range [...][2]string{{"description", "description"}, {"input_schema", "parameters"}, {"strict", "strict"}} {
			if v := tool[f[0]]; v != nil && string(v) != "null" {
				t.raw(f[1], v)
			}
		}
		t.b, t.comma = append(t.b, '}', '}'), true
	}
	t.b = append(t.b, ']')
	return nil
}

func isString(raw json.RawMessage) bool { return len(raw) > 0 && raw[0] == '"' }
