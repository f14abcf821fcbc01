package server

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestResponsesWholeAndStreamedAgree(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/responses"
	request := map[string]any{"model": "penstock/tiny", "input": question, "max_output_tokens": 20, "ignore_eos": true}
	whole := object(t, url, request, 200)
	text, _ := at(whole, "output", 0, "content", 0, "text").(string)
	if whole["object"] != "response" || whole["status"] != "incomplete" || at(whole, "incomplete_details", "reason") != "max_output_tokens" || text == "" {
		t.Errorf("answer: %v", whole)
	}
	if at(whole, "usage", "output_tokens") != 20.0 || at(whole, "usage", "total_tokens") != at(whole, "usage", "input_tokens").(float64)+20 {
		t.Errorf("usage: %v", whole["usage"])
	}

	request["stream"] = true
	_, raw := post(t, url, request, "X-Request-Id", "river")
	evs := namedEvents(t, raw)
	want := []string{
		"response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
		"response.output_text.delta", "response.output_text.done", "response.content_part.done",
		"response.output_item.done", "response.completed",
	}
	if d := cmp.Diff(want, names(evs)); d != "" {
		t.Errorf("events:\n%s", d)
	}
	streamed := ""
	for i, e := range evs {
		if e.data["sequence_number"] != float64(i) {
			t.Errorf("event %d has number %v", i, e.data["sequence_number"])
		}
		if e.name == "response.output_text.delta" {
			streamed += e.data["delta"].(string)
			if e.data["item_id"] != "msg_river" || e.data["output_index"] != 0.0 || e.data["content_index"] != 0.0 {
				t.Errorf("delta: %v", e.data)
			}
		}
	}
	last := evs[len(evs)-1].data
	if streamed != text || at(last, "response", "output", 0, "content", 0, "text") != text || at(last, "response", "id") != "resp_river" {
		t.Errorf("streamed %q, whole %q, last event %v", streamed, text, last)
	}
	if at(evs[0].data, "response", "status") != "in_progress" || at(evs[0].data, "response", "usage") != nil {
		t.Errorf("first event: %v", evs[0].data)
	}
	// What was streamed can be read again.
	status, again := get(t, url+"/resp_river")
	var stored any
	if err := json.Unmarshal([]byte(again), &stored); err != nil || status != 200 {
		t.Fatalf("%d %s", status, again)
	}
	if d := cmp.Diff(last["response"], stored); d != "" {
		t.Errorf("stored:\n%s", d)
	}
}

func TestResponsesGoOnFromPreviousOnes(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/responses"
	first := object(t, url, map[string]any{"input": question, "instructions": "Be brief.", "max_output_tokens": 30}, 200)
	second := object(t, url, map[string]any{
		"input":                []any{map[string]any{"role": "user", "content": []any{map[string]any{"type": "input_text", "text": "And then?"}}}},
		"previous_response_id": first["id"], "instructions": "Be brief.", "max_output_tokens": 30,
	}, 200)
	chat := ask(t, n.URL()+"/v1/chat/completions", map[string]any{"max_tokens": 30, "messages": []map[string]any{
		{"role": "system", "content": "Be brief."},
		{"role": "user", "content": question},
		{"role": "assistant", "content": at(first, "output", 0, "content", 0, "text")},
		{"role": "user", "content": "And then?"},
	}})
	if at(second, "output", 0, "content", 0, "text") != chat.Choices[0].Message.Content || second["previous_response_id"] != first["id"] {
		t.Errorf("second turn: %v\nin chat: %+v", second, chat)
	}
	if cached := at(second, "usage", "input_tokens_details", "cached_tokens").(float64); cached == 0 {
		t.Error("the second turn found nothing in the cache")
	}
	object(t, url, map[string]any{"input": "x", "previous_response_id": "resp_none"}, 404)
}

func TestResponsesCallFunctions(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/responses"
	request := map[string]any{
		"input": question, "tool_choice": map[string]any{"type": "function", "name": "get_time"},
		"tools": []any{
			map[string]any{"type": "web_search"},
			map[string]any{"type": "function", "name": "get_time", "parameters": map[string]any{"type": "object", "properties": map[string]any{"zone": map[string]any{"enum": []string{"UTC"}}}}},
		},
	}
	whole := object(t, url, request, 200)
	if at(whole, "output", 0, "type") != "function_call" || at(whole, "output", 0, "arguments") != `{"zone":"UTC"}` || at(whole, "output", 0, "name") != "get_time" {
		t.Errorf("answer: %v", whole)
	}
	request["stream"] = true
	_, raw := post(t, url, request)
	evs := namedEvents(t, raw)
	want := []string{
		"response.created", "response.in_progress", "response.output_item.added",
		"response.function_call_arguments.delta", "response.function_call_arguments.done",
		"response.output_item.done", "response.completed",
	}
	if d := cmp.Diff(want, names(evs)); d != "" {
		t.Errorf("events:\n%s", d)
	}
	delete(request, "stream")
	delete(request, "tool_choice")
	request["previous_response_id"] = whole["id"]
	request["input"] = []any{map[string]any{"type": "function_call_output", "call_id": at(whole, "output", 0, "call_id"), "output": "noon"}}
	if next := object(t, url, request, 200); at(next, "output", 0, "type") != "message" {
		t.Errorf("after the call: %v", next)
	}
}

func TestResponsesInTheBackgroundAndCancelled(t *testing.T) {
	o := fast
	o.Speedup = 1
	n := listen(t, o)
	url := n.URL() + "/v1/responses"
	status := func(id any) any {
		_, raw := get(t, fmt.Sprintf("%s/%s", url, id))
		var m map[string]any
		if err := json.Unmarshal([]byte(raw), &m); err != nil {
			t.Fatal(raw)
		}
		return m["status"]
	}
	short := object(t, url, map[string]any{"input": "x", "background": true, "max_output_tokens": 2}, 200)
	if short["status"] != "queued" {
		t.Errorf("background: %v", short)
	}
	until(t, "the response to end", func() bool { return status(short["id"]) == "incomplete" })

	long := object(t, url, map[string]any{"input": "x", "background": true, "max_output_tokens": 4000, "ignore_eos": true}, 200)
	until(t, "the response to run", func() bool { return n.Server.Stats().Running == 1 })
	if s := status(long["id"]); s != "in_progress" {
		t.Errorf("status %v", s)
	}
	cancel := fmt.Sprintf("%s/%s/cancel", url, long["id"])
	if got := object(t, cancel, "", 200); got["status"] != "cancelled" {
		t.Errorf("cancelled: %v", got)
	}
	if s := n.Server.Stats(); s.Running != 0 || status(long["id"]) != "cancelled" {
		t.Errorf("after the cancel: %+v, %v", s, status(long["id"]))
	}
	object(t, cancel, "", 400)
	object(t, url+"/resp_none/cancel", "", 404)

	// An engine that is closed does not leave work behind.
	object(t, url, map[string]any{"input": "x", "background": true, "max_output_tokens": 4000, "ignore_eos": true}, 200)
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

func TestResponsesThatAreNotStored(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/responses"
	got := object(t, url, map[string]any{"input": "x", "store": false, "max_output_tokens": 2}, 200)
	if status, _ := get(t, fmt.Sprintf("%s/%s", url, got["id"])); status != 404 {
		t.Errorf("an answer that was not to be stored: %d", status)
	}
	for what, request := range map[string]map[string]any{
		"input":        {},
		"input[0]":     {"input": []any{map[string]any{"type": "smell"}}},
		"background":   {"input": "x", "background": true, "stream": true},
		"does not":     {"input": "x", "model": "none"},
		"tool_choice":  {"input": "x", "tool_choice": "required"},
		"is not known": {"input": "x", "text": map[string]any{"format": map[string]any{"type": "haiku"}}},
	} {
		status, raw := post(t, url, request)
		if status != 400 && status != 404 || !strings.Contains(string(raw), what) {
			t.Errorf("%v: %d %s", request, status, raw)
		}
	}
}

func TestResponseStoreForgetsTheOldest(t *testing.T) {
	var rs responseStore
	for i := range maxStored + 1 {
		rs.add(fmt.Sprint(i), &storedResponse{})
	}
	if rs.find("0") != nil || rs.find("1") == nil || len(rs.byID) != maxStored || len(rs.order) != maxStored {
		t.Errorf("%d kept", len(rs.byID))
	}
}
