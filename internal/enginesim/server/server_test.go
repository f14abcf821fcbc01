package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/enginesim"
)

const question = "Tell me about the water that comes down the pipe and turns the wheel."

func TestChatWholeAndStreamedAgree(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/chat/completions"
	request := map[string]any{"model": "penstock/tiny", "messages": user(question), "max_tokens": 40, "ignore_eos": true}
	whole := ask(t, url, request)
	c := whole.Choices[0]
	if whole.Object != "chat.completion" || c.Message == nil || c.Message.Role != "assistant" || *c.FinishReason != "length" {
		t.Errorf("answer: %+v", whole)
	}
	if !strings.HasPrefix(whole.ID, "chatcmpl-") || whole.Model != "penstock/tiny" {
		t.Errorf("id %q, model %q", whole.ID, whole.Model)
	}
	if u := whole.Usage; u.CompletionTokens != 40 || u.TotalTokens != u.PromptTokens+40 {
		t.Errorf("usage: %+v", u)
	}
	if strings.TrimSpace(c.Message.Content) != c.Message.Content {
		t.Errorf("a chat answer has space around it: %q", c.Message.Content)
	}

	request["stream_options"] = map[string]any{"include_usage": true}
	evs := stream(t, url, request)
	// Role, 40 tokens, finish, usage.
	if len(evs) != 43 {
		t.Fatalf("%d events, want 43", len(evs))
	}
	first, finish, last := evs[0], evs[41], evs[42]
	if d := first.Choices[0].Delta; d.Role == nil || *d.Role != "assistant" || *d.Content != "" {
		t.Errorf("first event: %+v", first)
	}
	if f := finish.Choices[0]; *f.FinishReason != "length" || f.Delta.Content != nil {
		t.Errorf("finish event: %+v", finish)
	}
	if len(last.Choices) != 0 || last.Usage == nil || last.Usage.CompletionTokens != 40 {
		t.Errorf("usage event: %+v", last)
	}
	var text strings.Builder
	for _, e := range evs[1:41] {
		if e.Object != "chat.completion.chunk" || e.ID != first.ID || e.Usage != nil || e.Choices[0].FinishReason != nil {
			t.Fatalf("event: %+v", e)
		}
		text.WriteString(*e.Choices[0].Delta.Content)
	}
	if text.String() != c.Message.Content {
		t.Errorf("streamed %q\nwhole    %q", text.String(), c.Message.Content)
	}
}

func TestCompletionWholeAndStreamedAgree(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/completions"
	request := map[string]any{
		"prompt": question, "max_tokens": 20, "ignore_eos": true,
		"stream_options": map[string]any{"include_usage": true, "continuous_usage_stats": true},
	}
	whole := ask(t, url, request)
	evs := stream(t, url, request)
	text := ""
	for i, e := range evs[:20] {
		text += *e.Choices[0].Text
		if e.Usage == nil || e.Usage.CompletionTokens != i+1 {
			t.Fatalf("continuous usage in event %d: %+v", i, e.Usage)
		}
	}
	if text != *whole.Choices[0].Text || len(evs) != 22 || whole.Object != "text_completion" {
		t.Errorf("%d events, streamed %q, whole %+v", len(evs), text, whole)
	}
	delete(request, "max_tokens")
	delete(request, "stream")
	if u := ask(t, url, request).Usage; u.CompletionTokens != 16 {
		t.Errorf("default length of a completion: %d tokens, want 16", u.CompletionTokens)
	}
}

func TestTextDependsOnContextAndSeedOnly(t *testing.T) {
	a, b := listen(t, fast), listen(t, Options{Model: "penstock/tiny", TP: 2, Speedup: 500, Replica: 3, Noise: 0.2, MaxModelLen: 4096})
	request := map[string]any{"prompt": question, "max_tokens": 30, "ignore_eos": true}
	text := func(n *Node, change string, v any) string {
		r := map[string]any{}
		maps.Copy(r, request)
		if change != "" {
			r[change] = v
		}
		return *ask(t, n.URL()+"/v1/completions", r).Choices[0].Text
	}
	same := text(a, "", nil)
	if got := text(b, "", nil); got != same {
		t.Errorf("another replica says %q, not %q", got, same)
	}
	for change, v := range map[string]any{"prompt": question + "!", "seed": 5, "cache_salt": "x"} {
		if text(a, change, v) == same {
			t.Errorf("a different %s gives the same text", change)
		}
	}
	// Going on where an answer stopped says the same as not having stopped.
	half := text(a, "max_tokens", 12)
	if !strings.HasPrefix(same, half) {
		t.Errorf("%q does not begin with %q", same, half)
	}
}

func TestAnswersEndByThemselvesOrAtTheLimit(t *testing.T) {
	n := listen(t, fast)
	reasons := map[string]int{}
	for i := range 20 {
		b := ask(t, n.URL()+"/v1/chat/completions", map[string]any{"messages": user(question), "seed": i, "max_tokens": 150, "min_tokens": 3})
		reasons[*b.Choices[0].FinishReason]++
		if u := b.Usage.CompletionTokens; u < 3 || u > 150 || *b.Choices[0].FinishReason == "length" && u != 150 {
			t.Errorf("%d tokens, %s", u, *b.Choices[0].FinishReason)
		}
	}
	if reasons["stop"] == 0 || reasons["length"] == 0 {
		t.Errorf("reasons of 20 answers: %v", reasons)
	}
}

func TestRepeatedPromptIsCachedInFullBlocks(t *testing.T) {
	n := listen(t, fast)
	request := map[string]any{"prompt": strings.Repeat(question, 10), "max_tokens": 2}
	first := ask(t, n.URL()+"/v1/completions", request)
	second := ask(t, n.URL()+"/v1/completions", request)
	want := (first.Usage.PromptTokens - 1) / 16 * 16
	if first.Usage.PromptTokensDetails.CachedTokens != 0 || second.Usage.PromptTokensDetails.CachedTokens != want {
		t.Errorf("cached: %d, then %d; want 0, then %d", first.Usage.PromptTokensDetails.CachedTokens, second.Usage.PromptTokensDetails.CachedTokens, want)
	}
}

func TestNextTurnReusesTheAnswer(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/chat/completions"
	messages := user(strings.Repeat(question+" ", 10))
	first := ask(t, url, map[string]any{"messages": messages, "max_tokens": 200, "ignore_eos": true})
	messages = append(messages, map[string]any{"role": "assistant", "content": first.Choices[0].Message.Content}, user("And then?")[0])
	second := ask(t, url, map[string]any{"messages": messages, "max_tokens": 2})
	// The last token of the answer has never been computed.
	want := (first.Usage.PromptTokens + 199) / 16 * 16
	if got := second.Usage.PromptTokensDetails.CachedTokens; got != want {
		t.Errorf("cached %d tokens of the second turn, want %d of the first turn's %d", got, want, first.Usage.TotalTokens)
	}
}

func TestStopStrings(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/completions"
	full := *ask(t, url, map[string]any{"prompt": question, "max_tokens": 30, "ignore_eos": true}).Choices[0].Text
	stop := full[len(full)/2-3 : len(full)/2+4] // seven bytes: over a border of tokens
	at := strings.Index(full, stop)
	for name, v := range map[string]any{"string": stop, "list": []string{"no such thing", stop}} {
		request := map[string]any{"prompt": question, "max_tokens": 30, "ignore_eos": true, "stop": v}
		b := ask(t, url, request)
		c := b.Choices[0]
		if *c.Text != full[:at] || *c.FinishReason != "stop" || c.StopReason == nil || *c.StopReason != stop {
			t.Errorf("%s: %q (%s), want %q", name, *c.Text, *c.FinishReason, full[:at])
		}
		if b.Usage.CompletionTokens >= 30 {
			t.Errorf("%s: %d tokens", name, b.Usage.CompletionTokens)
		}
		text := ""
		for _, e := range stream(t, url, request) {
			text += *e.Choices[0].Text
		}
		if text != full[:at] {
			t.Errorf("%s, streamed: %q", name, text)
		}
	}
	b := ask(t, url, map[string]any{"prompt": question, "max_tokens": 30, "ignore_eos": true, "stop": stop, "include_stop_str_in_output": true})
	if *b.Choices[0].Text != full[:at]+stop {
		t.Errorf("with the stop string: %q", *b.Choices[0].Text)
	}
}

func TestManyPromptsAndChoices(t *testing.T) {
	n := listen(t, fast)
	request := map[string]any{"prompt": []string{"one small prompt", "another prompt"}, "n": 2, "max_tokens": 5, "ignore_eos": true}
	b := ask(t, n.URL()+"/v1/completions", request)
	texts := map[string]bool{}
	for i, c := range b.Choices {
		texts[*c.Text] = true
		if c.Index != i {
			t.Errorf("choice %d has index %d", i, c.Index)
		}
	}
	if len(b.Choices) != 4 || len(texts) != 4 || b.Usage.CompletionTokens != 20 {
		t.Errorf("answer: %+v", b)
	}
	got := map[int]string{}
	for _, e := range stream(t, n.URL()+"/v1/completions", request) {
		got[e.Choices[0].Index] += *e.Choices[0].Text
	}
	for i, c := range b.Choices {
		if got[i] != *c.Text {
			t.Errorf("choice %d streamed %q, whole %q", i, got[i], *c.Text)
		}
	}
	ids := appendTokens(nil, "one small prompt")
	byID := ask(t, n.URL()+"/v1/completions", map[string]any{"prompt": ids, "max_tokens": 5, "ignore_eos": true})
	if *byID.Choices[0].Text != *b.Choices[0].Text || byID.Usage.PromptTokens != len(ids) {
		t.Errorf("the prompt as ids: %+v", byID)
	}
}

func TestRequestIDBecomesPartOfTheID(t *testing.T) {
	n := listen(t, fast)
	_, raw := post(t, n.URL()+"/v1/completions", map[string]any{"prompt": "hello", "max_tokens": 1}, "X-Request-Id", `req-"7"`)
	if id := parse(t, raw).ID; id != `cmpl-req-"7"` {
		t.Errorf("id %q", id)
	}
}

func TestErrors(t *testing.T) {
	n := listen(t, fast)
	chat, completion := "/v1/chat/completions", "/v1/completions"
	long := strings.Repeat("word ", 4100)
	for _, tc := range []struct {
		name, path string
		body       any
		status     int
		kind       string
		says       []string
	}{
		{"malformed", chat, `{"model":"penstock/tiny","messages":[`, 400, "BadRequestError", []string{"not a valid request"}},
		{"wrong type", chat, `{"messages":[{"role":"user","content":"x"}],"max_tokens":"ten"}`, 400, "BadRequestError", []string{"max_tokens"}},
		{"wrong prompt", completion, `{"prompt":{"a":1}}`, 400, "BadRequestError", []string{"prompt"}},
		{"wrong stop", completion, `{"prompt":"a","stop":3}`, 400, "BadRequestError", []string{"stop"}},
		{"wrong content", chat, `{"messages":[{"role":"user","content":3}]}`, 400, "BadRequestError", []string{"messages[0].content"}},
		{"no messages", chat, `{}`, 400, "BadRequestError", []string{"messages"}},
		{"no prompt", completion, `{}`, 400, "BadRequestError", []string{"prompt"}},
		{"empty prompt", completion, `{"prompt":""}`, 400, "BadRequestError", []string{"prompt"}},
		{"negative length", completion, `{"prompt":"a","max_tokens":-1}`, 400, "BadRequestError", []string{"max_tokens"}},
		{"no choice", completion, `{"prompt":"a","n":0}`, 400, "BadRequestError", []string{"n must be"}},
		{"echo", completion, `{"prompt":"a","echo":true}`, 400, "BadRequestError", []string{"echo"}},
		{"unknown model", chat, `{"model":"gpt-7","messages":[{"role":"user","content":"x"}]}`, 404, "NotFoundError", []string{"gpt-7"}},
		{"prompt over context", completion, map[string]any{"prompt": long}, 400, "BadRequestError", []string{"4096", "8200"}},
		{"output over context", completion, `{"prompt":"one two","max_tokens":4096}`, 400, "BadRequestError", []string{"4096", "4098 tokens (2 in the prompt"}},
		{"unknown path", "/v2/nothing", `{}`, 404, "NotFoundError", nil},
		{"wrong method", "/v1/models", `{}`, 405, "MethodNotAllowedError", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, raw := post(t, n.URL()+tc.path, tc.body)
			b := parse(t, raw)
			if status != tc.status || b.Error == nil || b.Error.Code != tc.status || b.Error.Type != tc.kind {
				t.Fatalf("status %d: %s", status, raw)
			}
			for _, s := range tc.says {
				if !strings.Contains(b.Error.Message, s) {
					t.Errorf("message %q does not say %q", b.Error.Message, s)
				}
			}
		})
	}
	if status, _ := get(t, n.URL()+chat); status != http.StatusMethodNotAllowed {
		t.Errorf("GET of chat completions: %d", status)
	}
}

func TestUnknownFieldsAndToolsAreTolerated(t *testing.T) {
	n := listen(t, fast)
	request := map[string]any{"messages": user("hello"), "max_tokens": 3, "logit_bias": map[string]int{"1": 2}, "x": []int{1}}
	plain := ask(t, n.URL()+"/v1/chat/completions", request)
	request["tools"] = []map[string]any{{"type": "function", "function": map[string]any{"name": "weather"}}}
	request["messages"] = []map[string]any{{"role": "user", "content": []map[string]any{
		{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": map[string]any{"url": "data:,"}},
	}}}
	if tools := ask(t, n.URL()+"/v1/chat/completions", request); tools.Usage.PromptTokens <= plain.Usage.PromptTokens {
		t.Errorf("tools and an image add no tokens: %+v, %+v", plain.Usage, tools.Usage)
	}
}

func TestModelsHealthVersionTokenize(t *testing.T) {
	n := listen(t, fast)
	status, models := get(t, n.URL()+"/v1/models")
	if status != 200 || !strings.Contains(models, `"id":"penstock/tiny"`) || !strings.Contains(models, `"max_model_len":4096`) {
		t.Errorf("models: %d %s", status, models)
	}
	if status, body := get(t, n.URL()+"/health"); status != 200 || body != "" {
		t.Errorf("health: %d %q", status, body)
	}
	if _, v := get(t, n.URL()+"/version"); v != `{"version":"`+Version+`"}` {
		t.Errorf("version: %s", v)
	}
	const text = "Turbines — and\n\"rivers\"  in flood."
	_, raw := post(t, n.URL()+"/tokenize", map[string]any{"model": "penstock/tiny", "prompt": text})
	var tokens struct {
		Count       int
		MaxModelLen int `json:"max_model_len"`
		Tokens      []uint32
	}
	if err := json.Unmarshal(raw, &tokens); err != nil || tokens.Count != len(tokens.Tokens) || tokens.MaxModelLen != 4096 || tokens.Count == 0 {
		t.Fatalf("tokenize: %s", raw)
	}
	_, raw = post(t, n.URL()+"/detokenize", map[string]any{"tokens": tokens.Tokens})
	var back struct{ Prompt string }
	if err := json.Unmarshal(raw, &back); err != nil || back.Prompt != text {
		t.Errorf("detokenize: %s", raw)
	}
	_, raw = post(t, n.URL()+"/tokenize", map[string]any{"messages": user("hi")})
	if err := json.Unmarshal(raw, &tokens); err != nil || tokens.Tokens[0] != tokenStart {
		t.Errorf("tokenize of messages: %s", raw)
	}
}

func TestDisconnectFreesTheEngine(t *testing.T) {
	o := fast
	o.Speedup = 1 // one answer would take half a minute
	n := listen(t, o)
	free := func() bool {
		s := n.Server.Stats()
		return s.Running == 0 && s.UsedBlocks == 0
	}
	request := map[string]any{"prompt": question, "max_tokens": 4000, "ignore_eos": true}

	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		resp, err := send(ctx, n.URL()+"/v1/completions", request)
		if err == nil {
			resp.Body.Close()
		}
		gone <- err
	}()
	until(t, "the request to run", func() bool { return n.Server.Stats().Running == 1 })
	leave()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the request ended with %v", err)
	}
	until(t, "the engine to be free of an unstreamed request", free)

	ctx, leave = context.WithCancel(t.Context())
	defer leave()
	request["stream"] = true
	resp, err := send(ctx, n.URL()+"/v1/completions", request)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if free() {
		t.Error("nothing runs after the first event")
	}
	leave()
	until(t, "the engine to be free of a stream", free)
	if s := n.Server.Stats(); s.Finished[enginesim.NotFinished] != 2 {
		t.Errorf("aborts = %d, want 2", s.Finished[enginesim.NotFinished])
	}
}

func TestShutdownLetsStreamsFinish(t *testing.T) {
	n := listen(t, fast)
	resp, err := send(t.Context(), n.URL()+"/v1/completions", map[string]any{"prompt": question, "max_tokens": 500, "ignore_eos": true, "stream": true})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	ended := make(chan error, 1)
	go func() { ended <- n.Shutdown(t.Context()) }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if evs := events(t, raw); len(evs) != 501 {
		t.Errorf("%d events, want 501", len(evs))
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	<-n.Done()
	if _, err := http.Get(n.URL() + "/health"); err == nil {
		t.Error("the engine still answers")
	}
}

func TestOptionsSayWhatIsWrong(t *testing.T) {
	for field, o := range map[string]Options{
		"model: ":         {Model: "gpt-7"},
		"engine: ":        {Engine: "steam"},
		"max-loras: ":     {MaxLoRAs: -1},
		"lora: a=/y ":     {LoRAs: []string{"a", "a=/y"}},
		"lora: =/x ":      {LoRAs: []string{"=/x"}},
		"accelerator: ":   {Accelerator: "abacus"},
		"tp: ":            {TP: 3},
		"speedup: ":       {Speedup: -1},
		"factor: ":        {Factor: -1},
		"noise: ":         {Noise: 2},
		"max-seqs: ":      {MaxSeqs: -1},
		"budget-tokens: ": {BudgetTokens: -1},
		"kv-tokens: ":     {KVTokens: 1, MaxModelLen: 1},
		"max-model-len: ": {MaxModelLen: 1 << 30},
		"replica: ":       {Replica: -1},
		"output-mean: ":   {OutputMean: 0.5},
	} {
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if err := (Options{}).Validate(); err != nil {
		t.Errorf("the zero value: %v", err)
	}
	l := Options{}.Limits()
	if l.MaxModelLen != 131_072 || l.MaxSeqs != 256 || l.BudgetTokens != 8192 || l.BlockTokens != 16 || l.KVTokens < 290_000 {
		t.Errorf("limits of the default: %+v", l)
	}
	if _, err := Listen("127.0.0.1:0", Config{Options: Options{TP: 3}}); err == nil {
		t.Error("an impossible engine listens")
	}
	if _, err := Listen("nowhere:nothing", Config{}); err == nil {
		t.Error("an engine listens nowhere")
	}
}
