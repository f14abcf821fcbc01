package api

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestMessagesToChat(t *testing.T) {
	const hi = `"max_tokens":9,"messages":[{"role":"user","content":"hi"}]`
	const chatHi = `{"model":"served","messages":[{"role":"user","content":"hi"}],"max_tokens":9`
	for _, c := range []struct{ name, body, want string }{
		{"plain", `{"model":"m",` + hi + `}`, chatHi + `}`},
		{"streamed", `{"model":"m","stream":true,` + hi + `}`, chatHi + `,"stream":true,"stream_options":{"include_usage":true}}`},
		{
			"system, blocks and sampling",
			`{"model":"m","max_tokens":9,"system":[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}},{"type":"text","text":"b\u00e9"}],"temperature":0.70,"top_p":1,"top_k":5,"stop_sequences":["X"],
			"metadata":{"user_id":"u"},"service_tier":"auto","thinking":{"type":"disabled"},"system_":null,"messages":[{"role":"user","content":[{"type":"text","text":"one"}]}]}`,
			"",
		},
		{
			"system", `{"model":"m","system":"be brief","temperature":0.70,"top_k":5,"stop_sequences":["X"],"metadata":{"user_id":"u"},"service_tier":"auto","thinking":{"type":"disabled"},"tools":[],` + hi + `}`,
			`{"model":"served","messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hi"}],"max_tokens":9,"stop":["X"],"temperature":0.70,"top_k":5,"user":"u"}`,
		},
		{
			"images", `{"model":"m","max_tokens":9,"messages":[{"role":"user","content":[{"type":"text","text":"see"},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAA="}},{"type":"image","source":{"type":"url","url":"https://x/y"}}]}]}`,
			`{"model":"served","messages":[{"role":"user","content":[{"type":"text","text":"see"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAA="}},{"type":"image_url","image_url":{"url":"https://x/y"}}]}],"max_tokens":9}`,
		},
		{
			"tools",
			`{"model":"m","max_tokens":9,"tools":[{"name":"f","description":"d","input_schema":{"type":"object"},"cache_control":null},{"type":"custom","name":"g","input_schema":{},"strict":true}],"tool_choice":{"type":"any","disable_parallel_tool_use":true},
			"messages":[{"role":"user","content":"q"},{"role":"assistant","content":[{"type":"text","text":"I ask"},{"type":"tool_use","id":"t1","name":"f","input":{"a": "b\n"}},{"type":"tool_use","id":"t2","name":"g","input":{}}]},
			{"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":"one"},{"type":"tool_result","tool_use_id":"t2","is_error":true,"content":[{"type":"text","text":"x"},{"type":"text","text":"y"}]},{"type":"text","text":"go on"}]}]}`,
			`{"model":"served","messages":[{"role":"user","content":"q"},{"role":"assistant","content":"I ask","tool_calls":[{"id":"t1","type":"function","function":{"name":"f","arguments":"{\"a\": \"b\\n\"}"}},{"id":"t2","type":"function","function":{"name":"g","arguments":"{}"}}]},` +
				`{"role":"tool","content":"one","tool_call_id":"t1"},{"role":"tool","content":[{"type":"text","text":"x"},{"type":"text","text":"y"}],"tool_call_id":"t2"},{"role":"user","content":"go on"}],` +
				`"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object"}}},{"type":"function","function":{"name":"g","parameters":{},"strict":true}}],"max_tokens":9,"tool_choice":"required","parallel_tool_calls":false}`,
		},
		{
			"a call without words, and its empty result", `{"model":"m","max_tokens":9,"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"f","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t"}]}]}`,
			`{"model":"served","messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"t","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","content":"","tool_call_id":"t"}],"max_tokens":9}`,
		},
		{"one tool", `{"model":"m","tool_choice":{"type":"tool","name":"f"},` + hi + `}`, chatHi + `,"tool_choice":{"type":"function","function":{"name":"f"}}}`},
		{"no tool", `{"model":"m","tool_choice":{"type":"none"},` + hi + `}`, chatHi + `,"tool_choice":"none"}`},
		{"a schema", `{"model":"m","output_config":{"format":{"type":"json_schema","schema":{"a":1}}},` + hi + `}`, chatHi + `,"response_format":{"type":"json_schema","json_schema":{"name":"answer","strict":true,"schema":{"a":1}}}}`},
		{"what engines take beside", `{"model":"m","cache_salt":"s","seed":1,` + hi + `}`, `{"model":"served","messages":[{"role":"user","content":"hi"}],"cache_salt":"s","max_tokens":9,"seed":1}`},
	} {
		got, err := MessagesToChat([]byte(c.body), "served")
		if c.want == "" {
			if inexact, ok := errors.AsType[*InexactError](err); !ok || inexact.Field != "system_" {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %v\n got %s\nwant %s", c.name, err, got, c.want)
		}
		if !json.Valid(got) {
			t.Errorf("%s: not JSON", c.name)
		}
	}
}

func TestMessagesThatCannotBeTranslatedNameTheField(t *testing.T) {
	message := func(role, content string) string {
		return `"messages":[{"role":"` + role + `","content":[` + content + `]},{"role":"user","content":"x"}]`
	}
	for _, c := range []struct {
		rest, field string
		inexact     bool
	}{
		{`"thinking":{"type":"enabled","budget_tokens":1024},` + message("user", ""), "thinking", true},
		{`"container":"c",` + message("user", ""), "container", true},
		{`"mcp_servers":[],` + message("user", ""), "mcp_servers", true},
		{`"output_config":{"effort":"low"},` + message("user", ""), "output_config.effort", true},
		{`"output_format":{"type":"grammar"},` + message("user", ""), "output_format", true},
		{`"tools":[{"type":"web_search_20250305","name":"web_search"}],` + message("user", ""), "tools[0].type", true},
		{`"tools":[{"name":"a","input_schema":{}},{"name":"f","defer_loading":true}],` + message("user", ""), "tools[1].defer_loading", true},
		{message("assistant", `{"type":"thinking","thinking":"t","signature":"s"}`), "messages[0].content[0]", true},
		{message("assistant", `{"type":"redacted_thinking","data":"x"}`), "messages[0].content[0]", true},
		{message("assistant", `{"type":"tool_use","id":"t","name":"f","input":{}},{"type":"text","text":"x"}`), "messages[0].content[1]", true},
		{message("user", `{"type":"document","source":{}}`), "messages[0].content[0]", true},
		{message("user", `{"type":"image","source":{"type":"file","file_id":"f"}}`), "messages[0].content[0].source", true},
		{message("user", `{"type":"text","text":"x","citations":[{"a":1}]}`), "messages[0].content[0].citations", true},
		{message("user", `{"type":"tool_result","tool_use_id":"t","content":[{"type":"image","source":{"type":"url","url":"u"}}]}`), "messages[0].content[0].content[0]", true},
		{`"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"Sure:"}]`, "messages[1]", true},
		{message("system", ""), "messages[0].role", false},
		{message("user", `{"type":"text","text":7}`), "messages[0].content[0].text", false},
		{message("user", `{"text":"x"}`), "messages[0].content[0].type", false},
		{message("user", `{"type":"image"}`), "messages[0].content[0].source", false},
		{message("user", `{"type":"tool_use","id":"t","name":"f","input":{}}`), "messages[0].content[0]", false},
		{message("user", `{"type":"tool_result","content":"x"}`), "messages[0].content[0].tool_use_id", false},
		{message("assistant", `{"type":"tool_use","id":"t","name":"f","input":"x"}`), "messages[0].content[0]", false},
		{message("assistant", `{"type":"image","source":{"type":"url","url":"u"}}`), "messages[0].content[0]", false},
		{`"messages":[{"role":"user","content":7}]`, "messages[0].content", false},
		{`"messages":[7]`, "messages", false},
		{`"system":7,` + message("user", ""), "system", false},
		{`"system":[{"type":"image","source":{"type":"url","url":"u"}}],` + message("user", ""), "system[0]", false},
		{`"tools":7,` + message("user", ""), "tools", false},
		{`"tools":[{"input_schema":{}}],` + message("user", ""), "tools[0].name", false},
		{`"tool_choice":{"type":"some"},` + message("user", ""), "tool_choice.type", false},
		{`"tool_choice":7,` + message("user", ""), "tool_choice", false},
		{`"metadata":7,` + message("user", ""), "metadata", false},
		{`"thinking":7,` + message("user", ""), "thinking", false},
	} {
		_, err := MessagesToChat([]byte(`{"model":"m","max_tokens":9,`+c.rest+`}`), "served")
		inexact, isInexact := errors.AsType[*InexactError](err)
		wrong, isWrong := errors.AsType[*FieldError](err)
		if isInexact && inexact.Field != c.field || isWrong && wrong.Field != c.field || isInexact != c.inexact || !isInexact && !isWrong {
			t.Errorf("%s: %v, want %s (inexact %v)", c.rest, err, c.field, c.inexact)
		}
		if p := BadBody(err); c.inexact && (p.Status != 501 || p.Param != c.field) || !c.inexact && p.Status != 400 {
			t.Errorf("%s: %+v", c.rest, p)
		}
	}
	if _, err := MessagesToChat([]byte(`{"model":"m",`+message("user", "")+`}`), "s"); err == nil || !strings.Contains(err.Error(), "max_tokens") {
		t.Errorf("no max_tokens: %v", err)
	}
}

func TestMessagesToTokenize(t *testing.T) {
	got, err := MessagesToTokenize([]byte(`{"model":"m","system":"s","messages":[{"role":"user","content":"hi"}],"tools":[{"name":"f","input_schema":{}}]}`), "served")
	want := `{"model":"served","messages":[{"role":"system","content":"s"},{"role":"user","content":"hi"}],"tools":[{"type":"function","function":{"name":"f","parameters":{}}}],"add_generation_prompt":true}`
	if err != nil || string(got) != want {
		t.Errorf("%s %v", got, err)
	}
	if out, err := CountFromTokenize(nil, []byte(`{"count":3,"tokens":[1,2,3],"max_model_len":10}`)); err != nil || string(out) != `{"input_tokens":3}`+"\n" {
		t.Errorf("%s %v", out, err)
	}
	for _, bad := range []string{`{"tokens":[]}`, `{"count":-1}`, `[]`, ``} {
		if _, err := CountFromTokenize(nil, []byte(bad)); err == nil {
			t.Errorf("%s is a count", bad)
		}
	}
}

// FuzzMessagesToChat holds that a translation is a chat completion's request
// that says the same: it scans, and every text of the original is in it.
func FuzzMessagesToChat(f *testing.F) {
	f.Add([]byte(`{"model":"m","max_tokens":9,"system":"s","stream":true,"messages":[{"role":"user","content":[{"type":"text","text":"\u00e9\ud800"},{"type":"image","source":{"type":"url","url":"u"}}]}],"tools":[{"name":"f","input_schema":{}}]}`))
	f.Add([]byte(`{"model":"m","max_tokens":9,"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"f","input":{"a":[]}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"x"}]}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		asked, err := Scan(body, Messages)
		if err != nil {
			return
		}
		out, err := MessagesToChat(body, "served")
		if err != nil {
			if p := BadBody(err); p.Code != "not_supported" && p.Code != "invalid_field" {
				t.Fatalf("%v: %+v", err, p)
			}
			return
		}
		r, err := Scan(out, Chat)
		if err != nil {
			t.Fatalf("%s became %s: %v", body, out, err)
		}
		if r.Model != "served" || r.Stream != asked.Stream || r.MaxOut != asked.MaxOut {
			t.Fatalf("%s became %s", body, out)
		}
		var was struct {
			Messages []struct {
				Role    string
				Content any
			}
		}
		var is struct{ Messages []struct{ Role string } }
		if json.Unmarshal(body, &was) != nil || json.Unmarshal(out, &is) != nil {
			t.Fatalf("%s became %s, which does not decode", body, out)
		}
		assistant := func(n int, role string) int {
			if role == "assistant" {
				return n + 1
			}
			return n
		}
		a, b := 0, 0
		for _, m := range was.Messages {
			a = assistant(a, m.Role)
		}
		for _, m := range is.Messages {
			b = assistant(b, m.Role)
		}
		if a != b {
			t.Fatalf("%s became %s", body, out)
		}
	})
}
