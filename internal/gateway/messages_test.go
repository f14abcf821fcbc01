package gateway

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
)

const (
	messagesPath   = "/v1/messages"
	messagesBody   = `{"model":"m","max_tokens":8,"system":"be brief","messages":[{"role":"user","content":"hi"}]}`
	messagesStream = `{"model":"m","max_tokens":8,"stream":true,"system":"be brief","messages":[{"role":"user","content":"hi"}]}`
	asChat         = `{"model":"m","messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hi"}],"max_tokens":8}`
)

// TestMessagesAreTranslated: to engines that speak only chat completions.
func TestMessagesAreTranslated(t *testing.T) {
	e, got := recorder(t, anyJSON, wholeReply)
	r := newRig(t, setup{silent: engine.APIMessages}, e)
	a := r.do("POST", messagesPath, messagesBody)
	want := `{"id":"msg_c","type":"message","role":"assistant","model":"m","content":[{"type":"text","text":" word"}],"stop_reason":"end_turn","stop_sequence":null,` +
		`"usage":{"input_tokens":36,"cache_creation_input_tokens":0,"cache_read_input_tokens":64,"output_tokens":2}}`
	if a.status != 200 || a.body != want || a.header.Get("Request-Id") == "" {
		t.Errorf("%+v\nwant %s", a, want)
	}
	if q := <-got; q.path != chatPath || q.body != asChat {
		t.Errorf("the engine was asked %+v", q)
	}
	if x := r.access(); x.Usage != wholeUsage || x.Path != messagesPath || x.Stream || x.Bytes != int64(len(want)) {
		t.Errorf("account %+v", x)
	}
}

func TestMessagesStreamIsTranslated(t *testing.T) {
	e, got := recorder(t, "text/event-stream", ": ping\n\n"+whole)
	r := newRig(t, setup{silent: engine.APIMessages}, e)
	a := r.do("POST", messagesPath, messagesStream)
	var kinds []string
	api.Events([]byte(a.body), func(ev []byte) {
		name, _, _ := strings.Cut(string(ev), "\n")
		kinds = append(kinds, strings.TrimPrefix(name, "event: "))
	})
	want := ": ping message_start content_block_start content_block_delta content_block_delta content_block_stop message_delta message_stop"
	if strings.Join(kinds, " ") != want || a.err != nil {
		t.Errorf("%v\n%s", kinds, a.body)
	}
	if !strings.Contains(a.body, `"usage":{"input_tokens":36,"cache_creation_input_tokens":0,"cache_read_input_tokens":64,"output_tokens":2}`) {
		t.Errorf("no usage: %s", a.body)
	}
	if q := <-got; q.body != strings.TrimSuffix(asChat, "}")+`,"stream":true,"stream_options":{"include_usage":true}}` {
		t.Errorf("the engine was asked %+v", q)
	}
	if x := r.access(); x.Usage != wholeUsage || x.Events != 2 || !x.Stream || x.TTFT == 0 || x.Bytes != int64(len(a.body)) {
		t.Errorf("account %+v", x)
	}
}

// TestMessagesStreamsEndAsTheyShould: without [DONE], with an error of the
// engine's, or broken.
func TestMessagesStreamsEndAsTheyShould(t *testing.T) {
	for _, c := range []struct {
		name, stream, ends string
		failure            fleet.Failure
	}{
		{"no done", role + word + finish + usage, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", fleet.FailNone},
		{"broken", role + word, `"type":"api_error","message":"The engine failed in the middle of the answer (stream); what was sent so far is incomplete."`, fleet.FailStream},
		{"error", role + word + `data: {"error":{"message":"boom","code":500}}` + "\n\n" + done, `"type":"api_error","message":"boom"`, fleet.FailStatus},
		{"untellable", role + `data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}` + "\n\n" + done, `"type":"api_error"`, fleet.FailGarbage},
	} {
		e, _ := recorder(t, "text/event-stream", c.stream)
		r := newRig(t, setup{silent: engine.APIMessages}, e)
		a := r.do("POST", messagesPath, messagesStream)
		if !strings.Contains(a.body, c.ends) || strings.Count(a.body, "event: error") > 1 || strings.Contains(a.body, "[DONE]") {
			t.Errorf("%s: %s", c.name, a.body)
		}
		if x := r.access(); x.Failure != c.failure {
			t.Errorf("%s: account %+v", c.name, x)
		}
	}
}

// TestMessagesRetryElsewhere: an answer that cannot be told is one that another
// engine may give better.
func TestMessagesRetryElsewhere(t *testing.T) {
	bad, _ := recorder(t, anyJSON, `{"choices":[{"message":{"tool_calls":[{"id":"t","function":{"name":"f","arguments":"{"}}]},"finish_reason":"tool_calls"}]}`)
	good, _ := recorder(t, anyJSON, wholeReply)
	r := newRig(t, setup{silent: engine.APIMessages}, bad, good)
	for range 2 {
		if a := r.do("POST", messagesPath, messagesBody); a.status != 200 || !strings.Contains(a.body, `"type":"message"`) {
			t.Errorf("%+v", a)
		}
	}
}

func TestMessagesThatCannotBeExact(t *testing.T) {
	e := newEngine(t, func(http.ResponseWriter, *http.Request) { t.Error("an engine was asked") })
	r := newRig(t, setup{silent: engine.APIMessages | engine.APICountTokens | engine.APITokenizeChat}, e)
	a := r.do("POST", messagesPath, `{"model":"m","max_tokens":9,"thinking":{"type":"enabled","budget_tokens":1024},"messages":[]}`)
	wantAnthropic(t, a, 501, "api_error")
	if !strings.Contains(a.body, `\"thinking\"`) {
		t.Errorf("the field is not named: %s", a.body)
	}
	wantAnthropic(t, r.do("POST", messagesPath, `{"model":"m","messages":[]}`), 400, "invalid_request_error")
	wantAnthropic(t, r.do("POST", messagesPath+"/count_tokens", messagesBody), 501, "api_error")
	none := newRig(t, setup{silent: ^engine.API(0)}, e)
	wantAnthropic(t, none.do("POST", messagesPath, messagesBody), 501, "api_error")
	wantProblem(t, none.do("POST", "/v1/responses", `{"model":"m","input":"x"}`), 501, "not_supported")
}

func TestCountTokensIsTranslated(t *testing.T) {
	e, got := recorder(t, anyJSON, `{"count":17,"tokens":[],"max_model_len":100}`)
	r := newRig(t, setup{silent: engine.APICountTokens}, e)
	a := r.do("POST", messagesPath+"/count_tokens", `{"model":"m","messages":[{"role":"user","content":"hi"}]}`)
	if a.status != 200 || strings.TrimSpace(a.body) != `{"input_tokens":17}` {
		t.Errorf("%+v", a)
	}
	if q := <-got; q.path != "/tokenize" || q.body != `{"model":"m","messages":[{"role":"user","content":"hi"}],"add_generation_prompt":true}` {
		t.Errorf("the engine was asked %+v", q)
	}
}

// TestMessagesPassThrough: to engines that speak them, with the headers that
// belong to the API and no others.
func TestMessagesPassThrough(t *testing.T) {
	const stream = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"m\",\"usage\":{\"input_tokens\":3,\"output_tokens\":0}}}\n\n" +
		"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0}\n\n" +
		"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"x\"}}\n\n" +
		"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":5}}\n\n" +
		"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
	e, got := recorder(t, "text/event-stream", stream)
	r := newRig(t, setup{}, e)
	req, err := http.NewRequest("POST", r.front.URL+messagesPath, strings.NewReader(messagesStream))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"X-Api-Key": "secret", "Anthropic-Version": "2023-06-01", "Anthropic-Beta": "b"} {
		req.Header.Set(k, v)
	}
	resp, err := r.front.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != stream {
		t.Errorf("%v %s", err, body)
	}
	q := <-got
	if q.body != messagesStream || q.header.Get("Anthropic-Version") != "2023-06-01" || q.header.Get("Anthropic-Beta") != "b" || q.header.Get("X-Api-Key") != "" {
		t.Errorf("the engine was asked %+v", q)
	}
	if x := r.access(); x.Usage != (fleet.Usage{Known: true, Prompt: 3, Cached: -1, Output: 5}) || x.Events != 1 {
		t.Errorf("account %+v", x)
	}
}
