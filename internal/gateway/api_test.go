package gateway

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
)

// asked is what an engine was asked.
type asked struct {
	method, path, body string
	header             http.Header
}

// recorder is an engine that keeps what it is asked and answers as told.
func recorder(t testing.TB, contentType, answer string) (string, <-chan asked) {
	t.Helper()
	got := make(chan asked, 64)
	return newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- asked{r.Method, r.URL.RequestURI(), string(body), r.Header}
		if contentType == "text/event-stream" {
			pieces(w, strings.SplitAfter(answer, "\n\n")...)
			return
		}
		w.Header().Set("Content-Type", contentType)
		_, _ = io.WriteString(w, answer)
	}), got
}

const (
	embedReply = `{"object":"list","data":[{"embedding":[0.5]}],"model":"m","usage":{"prompt_tokens":13,"total_tokens":13}}` + "\n"
	anyJSON    = "application/json; charset=utf-8"
)

// TestEveryRoutePassesBytes: what a client sends is what the engine gets, and
// what it answers is what the client gets, byte by byte.
func TestEveryRoutePassesBytes(t *testing.T) {
	for _, c := range []struct {
		path, body, contentType, answer string
		usage                           fleet.Usage
	}{
		{"/v1/embeddings", `{ "model":"m", "input":["a","b"]}`, anyJSON, embedReply, fleet.Usage{Known: true, Prompt: 13, Cached: -1}},
		{"/v1/embeddings", `{"model":"m","input":[1,2,3]}`, anyJSON, `{"object":"list","data":[]}`, fleet.Usage{Cached: -1}},
		{"/v1/responses", `{"model":"m","input":"hi"}`, anyJSON, `{"id":"resp_1","status":"completed","error":null,"output":[],"usage":{"input_tokens":5,"output_tokens":2}}`, fleet.Usage{Known: true, Prompt: 5, Cached: -1, Output: 2}},
		{"/v1/messages", `{"model":"m","max_tokens":1,"messages":[]}`, anyJSON, `{"type":"message","content":[],"stop_reason":"end_turn","usage":{"input_tokens":5,"output_tokens":2}}`, fleet.Usage{Known: true, Prompt: 5, Cached: -1, Output: 2}},
		{"/v1/messages/count_tokens", `{"model":"m","messages":[]}`, anyJSON, `{"input_tokens":3}`, fleet.Usage{Cached: -1}},
		{"/tokenize", `{"model":"m","prompt":"x"}`, anyJSON, `{"count":1,"tokens":[7]}`, fleet.Usage{Cached: -1}},
		{"/detokenize", `{"model":"m","tokens":[7]}`, anyJSON, `{"prompt":"x"}`, fleet.Usage{Cached: -1}},
		{"/rerank", `{"model":"m","query":"q","documents":["a"]}`, anyJSON, `[{"index":0,"score":1}]`, fleet.Usage{Cached: -1}},
		{"/v1/rerank", `{"model":"m","query":"q","documents":["a"]}`, anyJSON, `{"results":[]}`, fleet.Usage{Cached: -1}},
		{"/v2/rerank", `{"model":"m","query":"q","documents":["a"]}`, anyJSON, `{"results":[]}`, fleet.Usage{Cached: -1}},
		{"/score", `{"model":"m","text_1":"q","text_2":["a"]}`, anyJSON, `{"data":[]}`, fleet.Usage{Cached: -1}},
		{"/v1/score", `{"model":"m","text_1":"q","text_2":"a"}`, anyJSON, `{"data":[]}`, fleet.Usage{Cached: -1}},
		{"/pooling", `{"model":"m","input":"q"}`, anyJSON, `{"data":[]}`, fleet.Usage{Cached: -1}},
		{"/classify", `{"model":"m","input":"q"}`, anyJSON, `{"data":[]}`, fleet.Usage{Cached: -1}},
		{"/v1/images/generations", `{"model":"m","prompt":"a cat"}`, anyJSON, `{"data":[{"b64_json":"AAAA"}]}`, fleet.Usage{Cached: -1}},
		{"/v1/audio/speech", `{"model":"m","input":"hello"}`, "audio/mpeg", "ID3\x00\xff{not JSON", fleet.Usage{Cached: -1}},
		{"/api/chat", `{"model":"m","messages":[]}`, "application/x-ndjson", "{\"done\":false}\n{\"done\":true}\n", fleet.Usage{Cached: -1}},
		{"/v1/responses/input_tokens", `{"model":"m","input":"x"}`, anyJSON, `{"object":"response.input_tokens","input_tokens":1}`, fleet.Usage{Cached: -1}},
		{"/inference/v1/generate?x=1", `{"model":"m","token_ids":[1]}`, anyJSON, `{"choices":[]}`, fleet.Usage{Cached: -1}},
		{"/openai/deployments/a%2Fb/completions", `{"model":"m"}`, anyJSON, `{}`, fleet.Usage{Cached: -1}},
	} {
		e, got := recorder(t, c.contentType, c.answer)
		r := newRig(t, setup{models: []Model{{ID: "m"}}}, e)
		a := r.do("POST", c.path, c.body)
		if a.status != 200 || a.body != c.answer || a.err != nil || a.header.Get("Content-Type") != c.contentType {
			t.Errorf("%s: %+v", c.path, a)
		}
		if q := <-got; q.path != c.path || q.body != c.body || q.method != "POST" {
			t.Errorf("%s: the engine was asked %+v", c.path, q)
		}
		x := r.access()
		if x.Status != 200 || x.Usage != c.usage && c.contentType == anyJSON || x.Model != "m" || x.Bytes != int64(len(c.answer)) || x.Attempts != 1 || x.Failure != fleet.FailNone {
			t.Errorf("%s: account %+v", c.path, x)
		}
		if y := r.pool.Tally(); y.Done != 1 {
			t.Errorf("%s: tally %+v", c.path, y)
		}
	}
}

func TestRealtimeIsNotSupported(t *testing.T) {
	r := newRig(t, setup{})
	for _, method := range []string{"GET", "POST"} {
		wantProblem(t, r.do(method, "/v1/realtime?model=m", ""), 501, "not_supported")
	}
}

// TestEnginePathsNeedAKnownModel: what is not of the API goes to an engine only
// when its body says to which, and never to operate one.
func TestEnginePathsNeedAKnownModel(t *testing.T) {
	e, got := recorder(t, anyJSON, `{}`)
	r := newRig(t, setup{models: []Model{{ID: "m"}}}, e)
	for _, c := range []struct{ method, path, body string }{
		{"POST", "/api/generate", `{"model":"other"}`},
		{"POST", "/api/generate", `{"model":7}`},
		{"POST", "/api/generate", `not JSON`},
		{"POST", "/api/generate", ``},
		{"GET", "/api/generate", `{"model":"m"}`},
		{"PUT", "/api/generate", `{"model":"m"}`},
		{"POST", "/v1/load_lora_adapter", `{"model":"m","lora_name":"x"}`},
		{"POST", "/v1/unload_lora_adapter", `{"model":"m"}`},
		{"POST", "/sleep", `{"model":"m"}`},
		{"POST", "/%73leep", `{"model":"m"}`},
		{"POST", "/x%2Fsleep", `{"model":"m"}`},
		{"POST", "/wake_up", `{"model":"m"}`},
		{"POST", "/reset_prefix_cache", `{"model":"m"}`},
		{"POST", "/collective_rpc", `{"model":"m"}`},
		{"POST", "/update_weights_from_disk", `{"model":"m"}`},
		{"POST", "/release_memory_occupation", `{"model":"m"}`},
		{"POST", "/abort_requests", `{"model":"m"}`},
		{"POST", "/inference/v1/abort_requests", `{"model":"m"}`},
		{"POST", "/FLUSH_CACHE", `{"model":"m"}`},
		{"POST", "/api/pull", `{"model":"m"}`},
		{"POST", "/api/delete", `{"model":"m"}`},
		{"POST", "/start_profile", `{"model":"m"}`},
		{"POST", "/scale_elastic_ep", `{"model":"m"}`},
		{"POST", "/slots/0", `{"model":"m"}`},
		{"POST", "/metrics", `{"model":"m"}`},
	} {
		wantProblem(t, r.do(c.method, c.path, c.body), 404, "unknown_url")
	}
	if len(got) > 0 {
		t.Errorf("an engine was asked %+v", <-got)
	}
	if a := r.do("POST", "/api/generate", `{"model":"m"}`); a.status != 200 {
		t.Errorf("%+v", a)
	}
}

const formBody = "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\nRIFF\x00\xff\r\n--B\r\n" +
	"Content-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--B\r\nContent-Disposition: form-data; name=\"response_format\"\r\n\r\ntext\r\n--B--\r\n"

// form posts a form with the boundary B.
func (r *rig) form(path, body string) answer {
	r.t.Helper()
	req, err := http.NewRequest("POST", r.front.URL+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", `multipart/form-data; boundary="B"`)
	resp, err := r.front.Client().Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(raw), err}
}

func TestFormsGoByTheirModel(t *testing.T) {
	for _, path := range []string{"/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits", "/v1/images/variations"} {
		e, got := recorder(t, "text/plain; charset=utf-8", "hello\n")
		r := newRig(t, setup{models: []Model{{ID: "whisper"}, {ID: "w", Root: "whisper"}}}, e)
		if a := r.form(path, formBody); a.status != 200 || a.body != "hello\n" {
			t.Errorf("%s: %+v", path, a)
		}
		if q := <-got; q.body != formBody || q.path != path || q.header.Get("Content-Type") != `multipart/form-data; boundary="B"` {
			t.Errorf("%s: the engine was asked %+v", path, q)
		}
		alias := strings.Replace(formBody, "\r\n\r\nwhisper\r\n", "\r\n\r\nw\r\n", 1)
		if a := r.form(path, alias); a.status != 200 {
			t.Errorf("%s: %+v", path, a)
		}
		if q := <-got; q.body != formBody {
			t.Errorf("%s: the alias reached the engine as %q", path, q.body)
		}
		wantProblem(t, r.form(path, strings.Replace(formBody, "whisper", "other", 1)), 404, "model_not_found")
		wantProblem(t, r.form(path, strings.Replace(formBody, "--B--", "", 1)), 400, "invalid_body")
		wantProblem(t, r.form(path, strings.Replace(formBody, `"model"`, `"mode"`, 1)), 400, "invalid_field")
		wantProblem(t, r.do("POST", path, `{"model":"whisper"}`), 400, "invalid_body")
	}
}

// TestRawAnswersThatBreak: of sound nobody can tell that it is incomplete, so the
// connection must say it.
func TestRawAnswersThatBreak(t *testing.T) {
	e := newEngine(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "audio/wav")
		_, _ = w.Write([]byte("RIFF"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	r := newRig(t, setup{}, e)
	a := r.do("POST", "/v1/audio/speech", `{"model":"m","input":"x"}`)
	if a.status != 200 || a.body != "RIFF" || a.err == nil {
		t.Errorf("%+v", a)
	}
	if x := r.access(); x.Failure != fleet.FailStream || x.Err == nil {
		t.Errorf("account %+v", x)
	}
	if y := r.pool.Tally(); y.Failed != 1 {
		t.Errorf("tally %+v", y)
	}
}

func TestStreamsOfOtherProtocols(t *testing.T) {
	const transcript = "data: {\"type\":\"transcript.text.delta\",\"delta\":\"x\"}\n\ndata: {\"type\":\"transcript.text.done\"}\n\n"
	e, _ := recorder(t, "text/event-stream", transcript)
	r := newRig(t, setup{}, e)
	if a := r.form("/v1/audio/transcriptions", formBody); a.body != transcript || a.err != nil {
		t.Errorf("%+v", a)
	}
	const broken = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}\n\nevent: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n"
	e, _ = recorder(t, "text/event-stream", broken)
	r = newRig(t, setup{}, e)
	a := r.do("POST", "/v1/responses", `{"model":"m","stream":true,"input":"x"}`)
	last, ok := strings.CutPrefix(a.body, broken)
	if !ok || !strings.HasPrefix(last, "event: error\ndata: {\"type\":\"error\",\"code\":\"stream_broken\"") {
		t.Errorf("%s", a.body)
	}
}

func TestOverContextSaysBothLengths(t *testing.T) {
	e := newEngine(t, func(http.ResponseWriter, *http.Request) { t.Error("an engine was asked") })
	r := newRig(t, setup{models: []Model{{ID: "m", MaxModelLen: 100}}}, e)
	long := strings.Repeat("x", 4*500)
	for _, c := range []struct{ path, body, says string }{
		{textPath, `{"model":"m","prompt":"` + long + `"}`, "100 tokens, but the prompt is about 500"},
		{textPath, `{"model":"m","prompt":[` + strings.Repeat("7,", 100) + `7]}`, "100 tokens, but the prompt is 101"},
	} {
		a := r.do("POST", c.path, c.body)
		wantProblem(t, a, 400, "context_length_exceeded")
		if !strings.Contains(a.body, c.says) {
			t.Errorf("%s", a.body)
		}
	}
	a := r.do("POST", "/v1/messages", `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"`+long+`"}]}`)
	wantAnthropic(t, a, 400, "invalid_request_error")
	e2, _ := recorder(t, anyJSON, wholeReply)
	near := newRig(t, setup{models: []Model{{ID: "m", MaxModelLen: 100}}}, e2)
	if a := near.do("POST", textPath, `{"model":"m","prompt":"`+long[:1200]+`"}`); a.status != 200 {
		t.Errorf("an estimate of 300 tokens is refused: %+v", a)
	}
}

// wantAnthropic checks an answer for Anthropic's error shape.
func wantAnthropic(t testing.TB, a answer, status int, kind string) {
	t.Helper()
	var b struct {
		Type  string
		Error struct{ Type, Message string }
		ID    string `json:"request_id"`
	}
	err := json.Unmarshal([]byte(a.body), &b)
	if err != nil || a.status != status || b.Type != "error" || b.Error.Type != kind || b.Error.Message == "" || b.ID == "" || b.ID != a.header.Get("Request-Id") {
		t.Errorf("status %d, %s (%v), want %d and %s", a.status, a.body, err, status, kind)
	}
}

// TestErrorsAreInTheCallersDialect: whoever finds the error, and in whatever
// shape an engine says it.
func TestErrorsAreInTheCallersDialect(t *testing.T) {
	const messagesBody = `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}]}`
	shapes := []string{
		`{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}`,
		`{"type":"error","error":{"type":"invalid_request_error","message":"too long"}}`,
		`{"object":"error","message":"too long","type":"BadRequestError","code":400}`,
		`too long`,
	}
	for i, shape := range shapes {
		e := newEngine(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(400)
			_, _ = io.WriteString(w, shape)
		})
		for _, silent := range []engine.API{0, engine.APIMessages} {
			r := newRig(t, setup{silent: silent}, e)
			open, anthropic := r.do("POST", chatPath, chatBody), r.do("POST", "/v1/messages", messagesBody)
			if i == 0 && open.body != shape || i == 1 && anthropic.body != shape {
				t.Errorf("an error in the right shape was changed: %s, %s", open.body, anthropic.body)
			}
			if i != 0 {
				wantProblem(t, open, 400, "engine_refused")
			}
			if i != 1 {
				wantAnthropic(t, anthropic, 400, "invalid_request_error")
			}
			for _, a := range []answer{open, anthropic} {
				if !strings.Contains(a.body, "too long") || a.status != 400 {
					t.Errorf("%+v", a)
				}
			}
			for range 2 {
				if x := r.access(); x.Failure != fleet.FailClient || x.Status != 400 {
					t.Errorf("account %+v", x)
				}
			}
		}
	}
	r := newRig(t, setup{models: []Model{{ID: "m"}}})
	wantAnthropic(t, r.do("POST", "/v1/messages", `{`), 400, "invalid_request_error")
	wantAnthropic(t, r.do("POST", "/v1/messages", `{"model":"x","messages":[]}`), 404, "not_found_error")
	wantAnthropic(t, r.do("POST", "/v1/messages", messagesBody), 503, "overloaded_error")
	wantAnthropicMethod(t, r.do("GET", "/v1/messages", ""))
	if a := r.do("POST", "/v1/messages/batches", `{"model":"m"}`); a.status != 404 || !strings.HasPrefix(a.body, `{"type":"error"`) {
		t.Errorf("%+v", a)
	}
}

func wantAnthropicMethod(t testing.TB, a answer) {
	t.Helper()
	if a.status != 405 || a.header.Get("Allow") != "POST" || !strings.HasPrefix(a.body, `{"type":"error"`) {
		t.Errorf("%+v", a)
	}
}
