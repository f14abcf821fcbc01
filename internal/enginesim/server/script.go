package server

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/stat"
)

// script is what a request allows the model to say. The zero value is anything;
// otherwise it is JSON: arguments of one of the tools, or an object.
type script struct {
	tools  []tool // one of them is called
	object bool
	schema any // of the object; nil for any
}

// tool is a function that the model may call.
type tool struct {
	Name       string `json:"name"`
	Parameters any    `json:"parameters"`
}

// script reads what a chat request asks for. A tool is called only if one must
// be: this model, asked to choose, would rather talk.
func (q *wireRequest) script() (script, error) {
	tools, err := q.mustCall()
	if err != nil || len(tools) > 0 {
		return script{tools: tools}, err
	}
	if schema := q.StructuredOutputs.JSON; schema != nil {
		return script{object: true, schema: schema}, nil
	}
	switch f := q.ResponseFormat; f.Type {
	case "", "text":
		return script{}, nil
	case "json_object":
		return script{object: true}, nil
	case "json_schema":
		return script{object: true, schema: f.JSONSchema.Schema}, nil
	default:
		return script{}, badRequest("response_format", "response_format: type %q is not known", f.Type)
	}
}

// mustCall returns the tools of which tool_choice demands one.
func (q *wireRequest) mustCall() ([]tool, error) {
	choice, name := "", ""
	if given(q.ToolChoice) && json.Unmarshal(q.ToolChoice, &choice) != nil {
		var named struct{ Function struct{ Name string } }
		if err := json.Unmarshal(q.ToolChoice, &named); err != nil || named.Function.Name == "" {
			return nil, badRequest("tool_choice", "tool_choice: must be none, auto, required or name a function")
		}
		choice, name = "required", named.Function.Name
	}
	switch choice {
	case "", "none", "auto":
		return nil, nil
	case "required":
	default:
		return nil, badRequest("tool_choice", "tool_choice: %q is not known", choice)
	}
	var list []struct{ Function tool }
	if given(q.Tools) {
		if err := json.Unmarshal(q.Tools, &list); err != nil {
			return nil, badRequest("tools", "tools: %v", err)
		}
	}
	var tools []tool
	for _, t := range list {
		if t.Function.Name != "" && (name == "" || name == t.Function.Name) {
			tools = append(tools, t.Function)
		}
	}
	switch {
	case len(list) == 0:
		return nil, badRequest("tool_choice", "When using `tool_choice`, `tools` must be set.")
	case len(tools) == 0:
		return nil, badRequest("tool_choice", "tool_choice: no function %q in `tools`", name)
	}
	return tools, nil
}

// recite says what the script wants after a prompt of the given length, context
// and chain, which it extends past its length.
func (s script) recite(prompt int, c enginesim.Context, chain []uint64, t terms) answer {
	draw := c.Draw(t.seed)
	a := answer{chain: chain, finish: enginesim.FinishStop}
	schema, tokens := s.schema, []uint32(nil)
	if len(s.tools) > 0 {
		called := s.tools[draw%uint64(len(s.tools))]
		a.tool, schema = called.Name, called.Parameters
		tokens = appendCall(tokens, called.Name, "")
	}
	if schema == nil && len(s.tools) == 0 {
		schema = map[string]any{"type": "object", "properties": map[string]any{"answer": map[string]any{"type": "string"}}}
	}
	p := prophet{root: schema, draw: draw}
	text := string(p.value(nil, schema, 0))
	header := len(tokens)
	tokens = appendTokens(tokens, text)
	if len(tokens) > t.max {
		tokens, a.finish = tokens[:t.max], enginesim.FinishLength
	}
	if t.keep {
		a.tokens = tokens
	}
	end := 0
	var piece []byte
	for i, token := range tokens {
		c = c.Add(token)
		if (prompt+i+1)%int(enginesim.BlockTokens) == 0 {
			a.chain = append(a.chain, c.Key())
		}
		if i >= header {
			piece = appendText(piece[:0], token)
			end += len(piece)
		}
		whole := end // a character comes with its last byte
		for whole < len(text) && !utf8.RuneStart(text[whole]) {
			whole--
		}
		a.ends = append(a.ends, whole)
	}
	a.text = text[:a.ends[len(a.ends)-1]]
	return a
}

// appendCall appends a call of a tool, as the model says it and as a
// conversation repeats it.
func appendCall(dst []uint32, name, arguments string) []uint32 {
	dst = append(dst, tokenCall)
	dst = appendTokens(dst, name)
	dst = appendTokens(dst, "\n")
	return appendTokens(dst, arguments)
}

// prophet invents JSON values that fit a schema of the simple kind: types,
// enums, constants, properties, items, bounds, alternatives and local
// references. What it does not know, it ignores.
type prophet struct {
	root any
	draw uint64
}

// maxDepth ends schemas that refer to themselves.
const maxDepth = 12

// roll returns a number below n.
func (p *prophet) roll(n int) int {
	p.draw = stat.Mix64(p.draw)
	return int(p.draw % uint64(max(1, n)))
}

// word returns a word or two.
func (p *prophet) word() string {
	v, text := voiceStart, []byte(nil)
	for range 2 + p.roll(3) {
		p.draw = stat.Mix64(p.draw)
		text = appendText(text, v.next(p.draw))
	}
	return string(text)
}

// value appends one value of the schema.
func (p *prophet) value(b []byte, schema any, depth int) []byte {
	m, _ := schema.(map[string]any)
	if depth > maxDepth {
		return append(b, "null"...)
	}
	if ref, ok := m["$ref"].(string); ok {
		return p.value(b, p.resolve(ref), depth+1)
	}
	if v, ok := m["const"]; ok {
		return appendJSON(b, v)
	}
	if list, ok := m["enum"].([]any); ok && len(list) > 0 {
		return appendJSON(b, list[p.roll(len(list))])
	}
	for _, key := range []string{"anyOf", "oneOf", "allOf"} {
		if list, ok := m[key].([]any); ok && len(list) > 0 {
			return p.value(b, list[0], depth+1)
		}
	}
	switch kind(m) {
	case "object":
		return p.object(b, m, depth)
	case "array":
		n := int(number(m, "minItems", float64(1+p.roll(2))))
		b = append(b, '[')
		for i := range min(n, int(number(m, "maxItems", 16))) {
			if i > 0 {
				b = append(b, ',')
			}
			b = p.value(b, m["items"], depth+1)
		}
		return append(b, ']')
	case "integer":
		low := number(m, "minimum", 1)
		return strconv.AppendInt(b, int64(low)+int64(p.roll(int(number(m, "maximum", low+99)-low)+1)), 10)
	case "number":
		low := number(m, "minimum", 0)
		return appendJSON(b, low+(number(m, "maximum", low+100)-low)*float64(p.roll(1000))/1000)
	case "boolean":
		return strconv.AppendBool(b, p.roll(2) == 1)
	case "null":
		return append(b, "null"...)
	}
	return append(b, quote(p.word())...)
}

// object appends all properties, in order of their names.
func (p *prophet) object(b []byte, m map[string]any, depth int) []byte {
	properties, _ := m["properties"].(map[string]any)
	b = append(b, '{')
	for i, name := range slices.Sorted(maps.Keys(properties)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, quote(name)...), ':')
		b = p.value(b, properties[name], depth+1)
	}
	return append(b, '}')
}

// resolve finds what "#/..." refers to; nil if there is no such thing.
func (p *prophet) resolve(ref string) any {
	at := p.root
	for step := range strings.SplitSeq(strings.TrimPrefix(ref, "#"), "/") {
		if step != "" {
			m, _ := at.(map[string]any)
			at = m[step]
		}
	}
	return at
}

// kind is the type of a schema, the first one of several. A schema that has
// none is guessed from what else it has.
func kind(m map[string]any) string {
	switch t := m["type"].(type) {
	case string:
		return t
	case []any:
		if len(t) > 0 {
			return fmt.Sprint(t[0])
		}
	}
	switch {
	case m == nil || m["properties"] != nil:
		return "object"
	case m["items"] != nil:
		return "array"
	}
	return "string"
}

func number(m map[string]any, key string, otherwise float64) float64 {
	if v, ok := m[key].(float64); ok {
		return v
	}
	return otherwise
}

func appendJSON(b []byte, v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // it was JSON before
	}
	return append(b, text...)
}
