package api

import (
	"strings"
	"testing"

	"penstock.dev/penstock/internal/fleet"
)

func TestReadEventOfOtherProtocols(t *testing.T) {
	none := fleet.Usage{Cached: -1}
	for _, c := range []struct {
		p    Protocol
		data string
		want Chunk
	}{
		{ResponseEvents, `{"type":"response.created","response":{"id":"resp_1","status":"in_progress","error":null,"usage":null}}`, Chunk{Data: true, ID: "resp_1", Usage: none}},
		{ResponseEvents, `{"response":{"id":"resp_2"},"sequence_number":1,"type":"response.in_progress"}`, Chunk{Data: true, ID: "resp_2", Usage: none}},
		{ResponseEvents, `{"type":"response.output_text.delta","delta":"x"}`, Chunk{Data: true, Text: true, Usage: none}},
		{ResponseEvents, `{"type":"response.function_call_arguments.delta","delta":"x"}`, Chunk{Data: true, Text: true, Usage: none}},
		{ResponseEvents, `{"type":"response.output_text.done","text":"x"}`, Chunk{Data: true, Usage: none}},
		{
			ResponseEvents, `{"type":"response.completed","response":{"id":"r","output":[{}],"status":"completed","usage":{"input_tokens":10,"output_tokens":8,"input_tokens_details":{"cached_tokens":4}}}}`,
			Chunk{Data: true, Done: true, Finish: true, ID: "r", Usage: fleet.Usage{Known: true, Prompt: 10, Output: 8, Cached: 4}},
		},
		{ResponseEvents, `{"type":"response.incomplete","response":{"status":"incomplete"}}`, Chunk{Data: true, Done: true, Finish: true, Usage: none}},
		{ResponseEvents, `{"type":"response.failed","response":{"id":"r","error":{"code":"server_error","message":"x"}}}`, Chunk{Data: true, Error: true, ID: "r", Usage: none}},
		{ResponseEvents, `{"type":"error","code":"503","message":"x"}`, Chunk{Data: true, Error: true, Overload: true, Usage: none}},
		{ResponseEvents, `{"error":{"message":"x","code":429}}`, Chunk{Data: true, Error: true, Overload: true, Usage: none}},
		{ResponseEvents, `[1]`, Chunk{Garbage: true}},

		{MessageEvents, `{"type":"message_start","message":{"content":[],"stop_reason":null,"usage":{"input_tokens":3,"cache_read_input_tokens":2,"output_tokens":1}}}`, Chunk{Data: true, Usage: fleet.Usage{Prompt: 5, Cached: 2, Output: 1}}},
		{MessageEvents, `{"type":"ping"}`, Chunk{Data: true, Usage: none}},
		{MessageEvents, `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`, Chunk{Data: true, Usage: none}},
		{MessageEvents, `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}`, Chunk{Data: true, Text: true, Usage: none}},
		{MessageEvents, `{"delta":{"stop_reason":"max_tokens"},"usage":{"output_tokens":8},"type":"message_delta"}`, Chunk{Data: true, Finish: true, Usage: fleet.Usage{Known: true, Cached: -1, Output: 8}}},
		{MessageEvents, `{"type":"message_stop"}`, Chunk{Data: true, Done: true, Finish: true, Usage: none}},
		{MessageEvents, `{"type":"error","error":{"type":"overloaded_error","message":"x"}}`, Chunk{Data: true, Error: true, Overload: true, Usage: none}},
		{MessageEvents, `{"type":"error","error":{"type":"api_error","message":"x"}}`, Chunk{Data: true, Error: true, Usage: none}},

		{AnyJSON, `{"type":"transcript.text.delta","delta":"x"}`, Chunk{Data: true, Text: true, Usage: none}},
		{AnyJSON, `{"error":"x"}`, Chunk{Data: true, Error: true, Usage: none}},
	} {
		if got := ReadEvent(c.p, []byte("event: x\ndata: "+c.data+"\n\n")); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.data, got, c.want)
		}
	}
}

func TestReadAnswerOfOtherProtocols(t *testing.T) {
	for _, c := range []struct {
		p    Protocol
		body string
		ok   bool
		want Chunk
	}{
		{
			ResponseEvents, `{"id":"resp_\u0031","object":"response","status":"completed","error":null,"output":[{}],"usage":{"input_tokens":10,"output_tokens":8}}`, true,
			Chunk{Data: true, Text: true, Finish: true, ID: "resp_1", Usage: fleet.Usage{Known: true, Prompt: 10, Output: 8, Cached: -1}},
		},
		{ResponseEvents, `{"id":"r","status":"failed","error":{"code":"x"}}`, true, Chunk{Data: true, Error: true, ID: "r", Usage: fleet.Usage{Cached: -1}}},
		{
			MessageEvents, `{"type":"message","content":[{"type":"text","text":"x"}],"stop_reason":"end_turn","usage":{"input_tokens":4,"cache_creation_input_tokens":3,"cache_read_input_tokens":null,"output_tokens":8}}`, true,
			Chunk{Data: true, Text: true, Finish: true, Usage: fleet.Usage{Known: true, Prompt: 7, Output: 8, Cached: -1}},
		},
		{AnyJSON, `{"object":"list","data":[{"embedding":[0.5,-1e-3]}],"usage":{"prompt_tokens":13,"total_tokens":13}}`, true, Chunk{Data: true, Text: true, Usage: fleet.Usage{Known: true, Prompt: 13, Cached: -1}}},
		{AnyJSON, ` [{"index":0,"score":0.5}] `, true, Chunk{Data: true, Usage: fleet.Usage{Cached: -1}}},
		{AnyJSON, `[1`, false, Chunk{}},
		{AnyJSON, `[1] 2`, false, Chunk{}},
		{AnyJSON, `x`, false, Chunk{}},
		{MessageEvents, `[]`, false, Chunk{}},
	} {
		got, ok := ReadAnswer(c.p, []byte(c.body))
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s: %+v %v, want %+v", c.body, got, ok, c.want)
		}
	}
}

func TestDeltasOfOtherProtocolsAllocateNothing(t *testing.T) {
	for p, data := range map[Protocol]string{
		ResponseEvents: `{"content_index":0,"delta":" word","item_id":"m","output_index":0,"sequence_number":4,"type":"response.output_text.delta"}`,
		MessageEvents:  `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" word"}}`,
		AnyJSON:        `{"type":"transcript.text.delta","delta":"x"}`,
	} {
		ev := []byte("event: x\ndata: " + data + "\n\n")
		if n := testing.AllocsPerRun(100, func() { ReadEvent(p, ev) }); n != 0 {
			t.Errorf("protocol %d: %v allocations per event", p, n)
		}
	}
}

func TestErrorsInEachStyle(t *testing.T) {
	p := Problem{Status: 404, Type: typeInvalid, Code: "c", Param: "model", Message: "no <such> model"}
	for style, want := range map[Style][2]string{
		OpenAI:          {`{"error":{"message":"no <such> model","type":"invalid_request_error","param":"model","code":"c"}}`, "data: BODY\n\n"},
		OpenAIResponses: {`{"error":{"message":"no <such> model","type":"invalid_request_error","param":"model","code":"c"}}`, `event: error` + "\n" + `data: {"type":"error","code":"c","message":"no <such> model","param":"model"}` + "\n\n"},
		Anthropic:       {`{"type":"error","error":{"type":"not_found_error","message":"no <such> model"},"request_id":"id"}`, "event: error\ndata: BODY\n\n"},
	} {
		body := strings.TrimSpace(string(p.Body(style, "id")))
		if body != want[0] {
			t.Errorf("style %d: %s, want %s", style, body, want[0])
		}
		if ev := string(p.Event(style, "id")); ev != strings.Replace(want[1], "BODY", body, 1) {
			t.Errorf("style %d: event %q", style, ev)
		}
	}
	for status, kind := range map[int]string{
		400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 413: "request_too_large", 429: "rate_limit_error",
		500: "api_error", 502: "api_error", 503: "overloaded_error", 504: "timeout_error",
	} {
		if got := (Problem{Status: status}).anthropicType(); got != kind {
			t.Errorf("%d: %s, want %s", status, got, kind)
		}
	}
}

func TestEngineRefusedReadsEveryShape(t *testing.T) {
	for _, c := range []struct {
		body          string
		style         Style
		same          bool
		message, code string
	}{
		{`{"error":{"message":"m","type":"t","param":null,"code":400}}`, OpenAI, true, "m", "engine_refused"},
		{`{"error":{"message":"m","code":"model_not_found"}}`, Anthropic, false, "m", "model_not_found"},
		{`{"type":"error","error":{"type":"invalid_request_error","message":"m"}}`, Anthropic, true, "m", "engine_refused"},
		{`{"type":"error","error":{"type":"invalid_request_error","message":"m"}}`, OpenAI, false, "m", "engine_refused"},
		{`{"object":"error","message":"m","type":"BadRequestError","param":"p","code":400}`, OpenAI, false, "m", "engine_refused"},
		{`{"error":"Unauthorized"}`, OpenAI, false, "Unauthorized", "engine_refused"},
		{`{"detail":[{"loc":["body"],"msg":"field required"}]}`, OpenAI, false, `[{"loc":["body"],"msg":"field required"}]`, "engine_refused"},
		{`{"detail":"Not Found"}`, OpenAI, false, "Not Found", "engine_refused"},
		{"404 page not found\n", OpenAI, false, "404 page not found", "engine_refused"},
		{"<html>no</html>", OpenAI, false, "The engine refused the request and did not say why.", "engine_refused"},
		{"", Anthropic, false, "The engine refused the request and did not say why.", "engine_refused"},
		{"{}", OpenAI, false, "{}", "engine_refused"},
	} {
		p, same := EngineRefused(400, []byte(c.body), c.style)
		if same != c.same || p.Message != c.message || p.Code != c.code || p.Status != 400 {
			t.Errorf("%s: %+v same %v", c.body, p, same)
		}
	}
}
