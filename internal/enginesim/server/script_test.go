package server

import (
	"encoding/json"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/enginesim"
)

// clock is a tool with a simple schema.
var clock = map[string]any{"type": "function", "function": map[string]any{
	"name": "get_time", "description": "time", "parameters": map[string]any{
		"type": "object", "required": []string{"zone"}, "properties": map[string]any{
			"zone": map[string]any{"type": "string"}, "hours": map[string]any{"type": "integer", "minimum": 3, "maximum": 4},
			"kind": map[string]any{"enum": []string{"süß", "größer"}},
		},
	},
}}

func TestToolCallsWholeAndStreamedAgree(t *testing.T) {
	for _, engine := range []string{VLLM, SGLang} {
		o := fast
		o.Engine = engine
		n := listen(t, o)
		url := n.URL() + "/v1/chat/completions"
		for _, choice := range []any{"required", map[string]any{"type": "function", "function": map[string]any{"name": "get_time"}}} {
			request := map[string]any{"messages": user(question), "tools": []any{clock}, "tool_choice": choice, "max_tokens": 200}
			whole := object(t, url, request, 200)
			call := at(whole, "choices", 0, "message", "tool_calls", 0)
			arguments, _ := at(call, "function", "arguments").(string)
			if at(whole, "choices", 0, "finish_reason") != "tool_calls" || at(call, "function", "name") != "get_time" || at(call, "id") == "" {
				t.Errorf("answer: %v", whole)
			}
			var a struct {
				Zone, Kind string
				Hours      int
			}
			if err := json.Unmarshal([]byte(arguments), &a); err != nil || a.Zone == "" || a.Hours < 3 || a.Hours > 4 || a.Kind == "" {
				t.Errorf("arguments %s: %v", arguments, err)
			}

			request["stream"] = true
			_, raw := post(t, url, request)
			parts := strings.Split(strings.TrimSuffix(string(raw), "data: [DONE]\n\n"), "\n\n")
			streamed, name, reason := "", "", any(nil)
			for _, p := range parts[:len(parts)-1] {
				var e any
				if err := json.Unmarshal([]byte(strings.TrimPrefix(p, "data: ")), &e); err != nil {
					t.Fatal(p)
				}
				delta := at(e, "choices", 0, "delta", "tool_calls", 0, "function")
				if s, ok := at(delta, "arguments").(string); ok {
					streamed += s
				}
				if s, ok := at(delta, "name").(string); ok {
					name += s
				}
				reason = at(e, "choices", 0, "finish_reason")
			}
			if streamed != arguments || name != "get_time" || reason != "tool_calls" {
				t.Errorf("%s: streamed %s(%s) and %v, whole %s", engine, name, streamed, reason, arguments)
			}
		}
	}
}

func TestToolsAreCalledOnlyIfTheyMust(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/chat/completions"
	for _, choice := range []any{nil, "auto", "none"} {
		b := ask(t, url, map[string]any{"messages": user(question), "tools": []any{clock}, "tool_choice": choice, "max_tokens": 5})
		if b.Choices[0].Message.Content == "" {
			t.Errorf("%v: %+v", choice, b)
		}
	}
	for name, q := range map[string]map[string]any{
		"without tools": {"tool_choice": "required"},
		"unknown":       {"tool_choice": map[string]any{"type": "function", "function": map[string]any{"name": "x"}}, "tools": []any{clock}},
		"nonsense":      {"tool_choice": "perhaps", "tools": []any{clock}},
		"a number":      {"tool_choice": 7, "tools": []any{clock}},
	} {
		q["messages"] = user(question)
		if got := object(t, url, q, 400); at(got, "error", "param") != "tool_choice" {
			t.Errorf("%s: %v", name, got)
		}
	}
	cut := object(t, url, map[string]any{"messages": user(question), "tools": []any{clock}, "tool_choice": "required", "max_tokens": 8}, 200)
	if at(cut, "choices", 0, "finish_reason") != "length" || at(cut, "usage", "completion_tokens") != 8.0 {
		t.Errorf("at the limit: %v", cut)
	}
}

// What comes back of a tool finds the call in the cache, as text would be.
func TestTheTurnAfterACallReusesIt(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/chat/completions"
	messages := user(strings.Repeat(question, 10))
	first := object(t, url, map[string]any{"messages": messages, "tools": []any{clock}, "tool_choice": "required"}, 200)
	messages = append(messages,
		map[string]any{"role": "assistant", "content": nil, "tool_calls": at(first, "choices", 0, "message", "tool_calls")},
		map[string]any{"role": "tool", "content": "noon"})
	second := object(t, url, map[string]any{"messages": messages, "tools": []any{clock}, "max_tokens": 2}, 200)
	computed := at(first, "usage", "total_tokens").(float64) - 1
	if got := at(second, "usage", "prompt_tokens_details", "cached_tokens").(float64); got < computed-16 {
		t.Errorf("found %v of %v", got, computed)
	}
}

func TestResponseFormats(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/chat/completions"
	content := func(format any) string {
		return ask(t, url, map[string]any{"messages": user(question), "response_format": format}).Choices[0].Message.Content
	}
	var free struct{ Answer string }
	if text := content(map[string]any{"type": "json_object"}); json.Unmarshal([]byte(text), &free) != nil || free.Answer == "" {
		t.Errorf("json_object: %s", text)
	}
	text := content(map[string]any{"type": "json_schema", "json_schema": map[string]any{"name": "x", "schema": map[string]any{
		"type": "object", "properties": map[string]any{"list": map[string]any{"type": "array", "minItems": 2, "maxItems": 2, "items": map[string]any{"type": "boolean"}}},
	}}})
	var shaped struct{ List []bool }
	if json.Unmarshal([]byte(text), &shaped) != nil || len(shaped.List) != 2 {
		t.Errorf("json_schema: %s", text)
	}
	object(t, url, map[string]any{"messages": user("x"), "response_format": map[string]any{"type": "haiku"}}, 400)
}

func TestInventedValuesFitTheirSchemas(t *testing.T) {
	for schema, want := range map[string]func(v any) bool{
		`{"type":["null","string"]}`:                                  func(v any) bool { return v == nil },
		`{"const":{"a":1}}`:                                           func(v any) bool { return at(v, "a") == 1.0 },
		`{"anyOf":[{"type":"null"},{"type":"string"}]}`:               func(v any) bool { return v == nil },
		`{"type":"number","minimum":5,"maximum":6}`:                   func(v any) bool { return v.(float64) >= 5 && v.(float64) <= 6 },
		`{"type":"integer","minimum":-3,"maximum":-3}`:                func(v any) bool { return v == -3.0 },
		`{"items":{"type":"null"}}`:                                   func(v any) bool { return at(v, 0) == nil && len(v.([]any)) > 0 },
		`{"$ref":"#/$defs/x","$defs":{"x":{"enum":["y"]}}}`:           func(v any) bool { return v == "y" },
		`{"properties":{"a":{"$ref":"#"}}}`:                           func(v any) bool { _, ok := v.(map[string]any); return ok },
		`{"type":"object"}`:                                           func(v any) bool { return len(v.(map[string]any)) == 0 },
		`{"properties":{"b":{"$ref":"#/none/x"},"a":{"type":"odd"}}}`: func(v any) bool { _, ok := at(v, "a").(string); return ok },
	} {
		var root any
		if err := json.Unmarshal([]byte(schema), &root); err != nil {
			t.Fatal(err)
		}
		for draw := range uint64(20) {
			var v any
			text := (&prophet{root: root, draw: draw}).value(nil, root, 0)
			if err := json.Unmarshal(text, &v); err != nil || !want(v) {
				t.Errorf("%s: %s", schema, text)
			}
		}
	}
}

// A character of several bytes may lie across tokens; it is sent when whole.
func TestRecitedPiecesAreWholeCharacters(t *testing.T) {
	s := script{object: true, schema: map[string]any{"const": "aé—ü 漢字 🙂🙂"}}
	a := s.recite(0, enginesim.NewContext(""), nil, terms{max: 100})
	text := ""
	for i := range a.ends {
		d := a.delta(i)
		if strings.ToValidUTF8(d, "!") != d {
			t.Errorf("piece %d is %q", i, d)
		}
		text += d
	}
	if text != `"aé—ü 漢字 🙂🙂"` {
		t.Errorf("text %s", text)
	}
}

func TestLogprobs(t *testing.T) {
	n := listen(t, fast)
	chat := map[string]any{"messages": user(question), "max_tokens": 4, "ignore_eos": true, "logprobs": true, "top_logprobs": 2}
	whole := object(t, n.URL()+"/v1/chat/completions", chat, 200)
	list := at(whole, "choices", 0, "logprobs", "content").([]any)
	text := ""
	for _, l := range list {
		text += at(l, "token").(string)
		if len(at(l, "top_logprobs").([]any)) != 2 || at(l, "top_logprobs", 0, "logprob") != at(l, "logprob") ||
			at(l, "top_logprobs", 1, "logprob").(float64) >= at(l, "logprob").(float64) || at(l, "bytes", 0) != float64(at(l, "token").(string)[0]) {
			t.Errorf("%v", l)
		}
	}
	if len(list) != 4 || text != at(whole, "choices", 0, "message", "content") {
		t.Errorf("%d log probabilities of %q", len(list), text)
	}
	chat["stream"] = true
	_, raw := post(t, n.URL()+"/v1/chat/completions", chat)
	var e any
	if err := json.Unmarshal([]byte(strings.TrimPrefix(strings.Split(string(raw), "\n\n")[2], "data: ")), &e); err != nil {
		t.Fatal(err)
	}
	if got := at(e, "choices", 0, "logprobs", "content", 0, "logprob"); got == nil || got != at(list, 1, "logprob") {
		t.Errorf("streamed %v, whole %v", e, list[1])
	}
	old := object(t, n.URL()+"/v1/completions", map[string]any{"prompt": question, "max_tokens": 4, "ignore_eos": true, "logprobs": 2}, 200)
	l := at(old, "choices", 0, "logprobs")
	if len(at(l, "tokens").([]any)) != 4 || at(l, "text_offset", 1) != float64(len(at(l, "tokens", 0).(string))) || len(at(l, "top_logprobs", 0).(map[string]any)) != 2 || at(l, "token_logprobs", 3) == nil {
		t.Errorf("completions: %v", l)
	}
	object(t, n.URL()+"/v1/completions", map[string]any{"prompt": "x", "logprobs": 50}, 400)
}
