package server

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMessagesWholeAndStreamedAgree(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/messages"
	request := map[string]any{"model": "penstock/tiny", "max_tokens": 20, "messages": user(question)}
	whole := object(t, url, request, 200)
	text, _ := at(whole, "content", 0, "text").(string)
	if whole["type"] != "message" || whole["role"] != "assistant" || at(whole, "content", 0, "type") != "text" || text == "" {
		t.Errorf("answer: %v", whole)
	}
	// A stop sequence that is not there is null, not absent.
	if s, ok := whole["stop_sequence"]; !ok || s != nil {
		t.Errorf("stop_sequence: %v", whole)
	}

	request["stream"] = true
	_, raw := post(t, url, request)
	evs := namedEvents(t, raw)
	want := []string{
		"message_start", "content_block_start", "ping", "content_block_delta",
		"content_block_stop", "message_delta", "message_stop",
	}
	if d := cmp.Diff(want, names(evs)); d != "" {
		t.Errorf("events:\n%s", d)
	}
	streamed := ""
	for _, e := range evs {
		if s, ok := at(e.data, "delta", "text").(string); ok {
			streamed += s
		}
	}
	start, delta := evs[0].data, evs[len(evs)-2].data
	if streamed != text || at(start, "message", "usage", "input_tokens") != at(whole, "usage", "input_tokens") {
		t.Errorf("streamed %q of %v, whole %q of %v", streamed, start, text, whole)
	}
	if at(delta, "usage", "output_tokens") != at(whole, "usage", "output_tokens") || at(delta, "delta", "stop_reason") != whole["stop_reason"] {
		t.Errorf("message_delta: %v", delta)
	}
	if content, ok := at(start, "message", "content").([]any); !ok || len(content) != 0 {
		t.Errorf("message_start: %v", start)
	}
	if s, ok := at(evs[1].data, "content_block", "text").(string); !ok || s != "" {
		t.Errorf("content_block_start: %v", evs[1].data)
	}
}

// Messages are chat in other words: the same model gets the same tokens.
func TestMessagesAreChatInOtherWords(t *testing.T) {
	n := listen(t, fast)
	picture := map[string]any{"type": "image_url", "image_url": map[string]any{"url": "data:image/png;base64,AAAA"}}
	chat := ask(t, n.URL()+"/v1/chat/completions", map[string]any{"max_tokens": 30, "messages": []map[string]any{
		{"role": "system", "content": "Be brief."},
		{"role": "user", "content": []any{map[string]any{"type": "text", "text": question}, picture}},
		{"role": "assistant", "tool_calls": []any{map[string]any{"id": "x", "type": "function", "function": map[string]any{"name": "look", "arguments": `{"at":"it"}`}}}},
		{"role": "tool", "tool_call_id": "x", "content": "a wheel"},
	}})
	request := map[string]any{
		"max_tokens": 30, "model": "penstock/tiny",
		"system": []any{map[string]any{"type": "text", "text": "Be "}, map[string]any{"type": "text", "text": "brief."}},
		"messages": []map[string]any{
			{"role": "user", "content": []any{
				map[string]any{"type": "text", "text": question},
				map[string]any{"type": "image", "source": map[string]any{"type": "base64", "media_type": "image/png", "data": "AAAA"}},
			}},
			{"role": "assistant", "content": []any{map[string]any{"type": "tool_use", "id": "x", "name": "look", "input": json.RawMessage(`{"at":"it"}`)}}},
			{"role": "user", "content": []any{map[string]any{"type": "tool_result", "tool_use_id": "x", "content": "a wheel"}}},
		},
	}
	got := object(t, n.URL()+"/v1/messages", request, 200)
	if at(got, "content", 0, "text") != chat.Choices[0].Message.Content || at(got, "usage", "input_tokens") != float64(chat.Usage.PromptTokens) {
		t.Errorf("messages: %v\nchat: %+v", got, chat)
	}
	if chat.Usage.PromptTokens < imageTokens {
		t.Errorf("an image is free: %+v", chat.Usage)
	}
	delete(request, "max_tokens")
	count := object(t, n.URL()+"/v1/messages/count_tokens", request, 200)
	if count["input_tokens"] != float64(chat.Usage.PromptTokens) {
		t.Errorf("count_tokens: %v, want %d", count, chat.Usage.PromptTokens)
	}
}

func TestMessagesStopReasons(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/messages"
	base := map[string]any{"max_tokens": 30, "messages": user(question)}
	with := func(more map[string]any) map[string]any {
		m := maps.Clone(base)
		maps.Copy(m, more)
		return m
	}
	text, _ := at(object(t, url, with(map[string]any{"max_tokens": 5}), 200), "content", 0, "text").(string)
	stop := text[2:6]
	tools := []any{map[string]any{"name": "get_time", "input_schema": map[string]any{"type": "object", "properties": map[string]any{"zone": map[string]any{"type": "string"}}}}}
	for _, tc := range []struct {
		name   string
		more   map[string]any
		reason string
		stop   any
	}{
		{"limit", map[string]any{"max_tokens": 2}, "max_tokens", nil},
		{"stop sequence", map[string]any{"stop_sequences": []string{stop}}, "stop_sequence", stop},
		{"any tool", map[string]any{"max_tokens": 100, "tools": tools, "tool_choice": map[string]any{"type": "any"}}, "tool_use", nil},
		{"named tool", map[string]any{"max_tokens": 100, "tools": tools, "tool_choice": map[string]any{"type": "tool", "name": "get_time"}}, "tool_use", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := object(t, url, with(tc.more), 200)
			if got["stop_reason"] != tc.reason || got["stop_sequence"] != tc.stop {
				t.Errorf("answer: %v", got)
			}
			if tc.reason != "tool_use" {
				return
			}
			if _, ok := at(got, "content", 0, "input", "zone").(string); !ok || at(got, "content", 0, "name") != "get_time" {
				t.Errorf("tool use: %v", got)
			}
			tc.more["stream"] = true
			_, raw := post(t, url, with(tc.more))
			arguments := ""
			for _, e := range namedEvents(t, raw) {
				if s, ok := at(e.data, "delta", "partial_json").(string); ok {
					arguments += s
				}
			}
			want, _ := json.Marshal(at(got, "content", 0, "input"))
			if arguments != string(want) {
				t.Errorf("streamed %s, whole %s", arguments, want)
			}
		})
	}
}

func TestMessagesErrorsAreAnthropics(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/messages"
	for _, tc := range []struct {
		body   any
		status int
		kind   string
	}{
		{map[string]any{"messages": user("x")}, 400, "invalid_request_error"},
		{map[string]any{"max_tokens": 3, "messages": []any{}}, 400, "invalid_request_error"},
		{map[string]any{"max_tokens": 3, "messages": user("x"), "model": "none"}, 404, "not_found_error"},
		{map[string]any{"max_tokens": 3, "messages": []map[string]any{{"role": "system", "content": "x"}}}, 400, "invalid_request_error"},
		{map[string]any{"max_tokens": 3, "messages": []map[string]any{{"role": "user", "content": []any{map[string]any{"type": "smell"}}}}}, 400, "invalid_request_error"},
		{map[string]any{"max_tokens": 3, "messages": user(strings.Repeat("word ", 5000))}, 400, "invalid_request_error"},
		{"{", 400, "invalid_request_error"},
	} {
		got := object(t, url, tc.body, tc.status)
		if got["type"] != "error" || at(got, "error", "type") != tc.kind || at(got, "error", "message") == "" {
			t.Errorf("%v: %v", tc.body, got)
		}
	}
	if err := n.Server.SetFault(Fault{Kind: "refuse", Status: 429, Count: 1}); err != nil {
		t.Fatal(err)
	}
	if got := object(t, url, map[string]any{"max_tokens": 3, "messages": user("x")}, 429); at(got, "error", "type") != "rate_limit_error" {
		t.Errorf("refusal: %v", got)
	}
	o := fast
	o.NoMessages = true
	if got := object(t, listen(t, o).URL()+"/v1/messages", map[string]any{"max_tokens": 3, "messages": user("x")}, 404); at(got, "error", "type") != "NotFoundError" {
		t.Errorf("an engine without messages: %v", got)
	}
}
