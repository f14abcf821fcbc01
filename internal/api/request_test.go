package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/fleet"
)

func TestScanFindsWhatRoutingNeeds(t *testing.T) {
	body := `{"messages":[{"role":"user","content":"hi \"model\": \"no\" }"}], "model" : "m\u0041",
	 "stream":true,"stream_options":{"include_usage":true},"max_completion_tokens":17,"tools":[{"a":1}],"cache_salt":"s","x":[1,-2.5e3,null,{}]}`
	r, err := Scan([]byte(body), Chat)
	if err != nil {
		t.Fatal(err)
	}
	if r.Model != "mA" || !r.Stream || !r.IncludeUsage || r.MaxOut != 17 {
		t.Errorf("scan = %+v", r)
	}
	if string(r.Tools) != `[{"a":1}]` || string(r.CacheSalt) != `"s"` || !strings.HasPrefix(string(r.Prompt), `[{"role"`) {
		t.Errorf("raw fields: %s %s %s", r.Tools, r.CacheSalt, r.Prompt)
	}
}

func TestScanErrorsSayWhatAndWhere(t *testing.T) {
	for _, c := range []struct {
		kind       Kind
		body, want string
	}{
		{Chat, ``, "not valid JSON at byte 0: expected an object"},
		{Chat, `[]`, "expected an object"},
		{Chat, `{"model":"m"`, "at byte 12: expected a comma or the end"},
		{Chat, `{"model":"m",}`, "at byte 13: expected a string"},
		{Chat, `{"model":"m"} x`, "at byte 14: expected the end of the body"},
		{Chat, "{\"model\":\"a\nb\"}", "no control character"},
		{Chat, `{"model":"\x"}`, "expected an escape"},
		{Chat, `{"model":"\u12g4"}`, "four hex digits"},
		{Chat, `{"model":"unended`, "the end of a string"},
		{Chat, `{"a":01}`, "a comma"},
		{Chat, `{"a":1.}`, "a digit"},
		{Chat, `{"a":` + strings.Repeat("[", 600) + strings.Repeat("]", 600) + `}`, "at most 512 levels"},
		{Chat, `{"messages":[]}`, `"model" is required`},
		{Chat, `{"model":7,"messages":[]}`, `"model" must be a string`},
		{Chat, `{"model":"m"}`, `"messages" is required`},
		{Chat, `{"model":"m","messages":"hi"}`, `"messages" must be an array`},
		{Completion, `{"model":"m","messages":[]}`, `"prompt" is required`},
		{Completion, `{"model":"m","prompt":5}`, `"prompt" must be a string`},
		{Chat, `{"model":"m","messages":[],"stream":"yes"}`, `"stream" must be true or false`},
		{Chat, `{"model":"m","messages":[],"stream_options":1}`, `"stream_options" must be an object`},
		{Chat, `{"model":"m","messages":[],"max_tokens":"ten"}`, `"max_tokens" must be a positive integer`},
		{Chat, `{"model":"m","messages":[],"max_tokens":0}`, `"max_tokens" must be a positive integer`},
		{Chat, `{"model":"m","messages":[],"max_tokens":1e99}`, `"max_tokens" must be a positive integer`},
		{Completion, `{"model":"m","prompt":"","max_tokens":-1}`, `"max_tokens" must be a positive integer`},
		{Chat, `{"model":"` + strings.Repeat("m", 600) + `","messages":[]}`, `"model" must be at most 512 bytes`},
	} {
		_, err := Scan([]byte(c.body), c.kind)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60s: %v, want %q", c.body, err, c.want)
			continue
		}
		p := BadBody(err)
		if p.Status != 400 || !json.Valid(p.Body(OpenAI, "")) {
			t.Errorf("%.60s: problem %+v", c.body, p)
		}
		if _, isField := errors.AsType[*FieldError](err); isField && p.Param == "" {
			t.Errorf("%.60s: the field at fault is not named", c.body)
		}
	}
}

func TestLastOfARepeatedFieldCounts(t *testing.T) {
	r, err := Scan([]byte(`{"model":"a","prompt":"x","model":"b","prompt":"y"}`), Completion)
	if err != nil || r.Model != "b" || string(r.Prompt) != `"y"` {
		t.Errorf("%+v %v", r, err)
	}
}

// TestEscapedFieldNamesAreSeenThrough: the engine's JSON library reads them, so
// a model that hides behind an escape must not be served as another.
func TestEscapedFieldNamesAreSeenThrough(t *testing.T) {
	r, err := Scan([]byte(`{"model":"a","m\u006fdel":"b","\u0070rompt":"y","max\u005ftokens":3}`), Completion)
	if err != nil || r.Model != "b" || string(r.Prompt) != `"y"` || r.MaxOut != 3 {
		t.Errorf("%+v %v", r, err)
	}
}

func TestCompletionsMayAskForNoOutput(t *testing.T) {
	r, err := Scan([]byte(`{"model":"m","prompt":"x","max_tokens":0,"echo":true,"logprobs":1}`), Completion)
	if err != nil || r.MaxOut != 0 {
		t.Errorf("%+v %v", r, err)
	}
}

func TestProblemsEchoOnlyALittle(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for _, p := range []Problem{UnknownModel(long), NotFound(long, long), WrongMethod(long, long, "GET")} {
		if n := len(p.Body(OpenAI, "")); n > 2000 || n < 100 {
			t.Errorf("status %d: a body of %d bytes", p.Status, n)
		}
	}
}

func TestPromptTokens(t *testing.T) {
	image := `data:image/png;base64,` + strings.Repeat("A", 100_000)
	for _, c := range []struct {
		name, body string
		kind       Kind
		want       fleet.Tokens
	}{
		{"text", `{"model":"m","prompt":"` + strings.Repeat("x", 398) + `"}`, Completion, 100},
		{"ids are counted", `{"model":"m","prompt":[1, 22,333 ,4]}`, Completion, 4},
		{"lists of ids too", `{"model":"m","prompt":[[1,2],[3,4,5]]}`, Completion, 5},
		{"an empty list is one token", `{"model":"m","messages":[]}`, Chat, 1},
		{"digits in text are text", `{"model":"m","prompt":["1 2 3 4"]}`, Completion, 2},
		{"an image is not its bytes", `{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"` + image + `"}}]}]}`, Chat, 768 + 18},
	} {
		r, err := Scan([]byte(c.body), c.kind)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.PromptTokens(4); got < c.want-1 || got > c.want+1 {
			t.Errorf("%s: %d tokens, want %d", c.name, got, c.want)
		}
	}
}

func TestChainsShareThePrefixOfAConversation(t *testing.T) {
	turn := func(n int) string {
		var msgs []string
		for i := range n {
			msgs = append(msgs, fmt.Sprintf(`{"role":"user","content":"%s %d"}`, strings.Repeat("word ", 100), i))
		}
		return `{"model":"m","messages":[` + strings.Join(msgs, ",") + `]}`
	}
	scan := func(body string) Request {
		r, err := Scan([]byte(body), Chat)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	a, b := scan(turn(3)), scan(turn(4))
	ca, per := a.Chain(nil, Chat, 400)
	cb, _ := b.Chain(nil, Chat, 533)
	if len(ca) < 6 || per < 63 || per > 70 {
		t.Fatalf("%d keys of %v tokens", len(ca), per)
	}
	for i := range ca[:len(ca)-1] {
		if ca[i] != cb[i] {
			t.Errorf("key %d differs between turns", i)
		}
	}
	salted := scan(strings.Replace(turn(3), `{"model"`, `{"cache_salt":"t1","model"`, 1))
	if c, _ := salted.Chain(nil, Chat, 400); c[0] == ca[0] {
		t.Error("a cache salt must change every key")
	}
}

func FuzzScan(f *testing.F) {
	f.Add([]byte(`{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}`))
	f.Add([]byte(`{"model":"m","prompt":[1,2],"max_tokens":3,"stream_options":{"include_usage":null}}`))
	f.Add([]byte(`{"a":"\u00e9\\","b":-0.5e+7}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, k := range []Kind{Chat, Completion} {
			r, err := Scan(body, k)
			syntax, isSyntax := errors.AsType[*SyntaxError](err)
			var obj map[string]json.RawMessage
			jsonErr := json.Unmarshal(body, &obj)
			ok := jsonErr == nil && obj != nil
			if isSyntax && ok && !strings.Contains(syntax.Want, "levels") {
				t.Fatalf("refused valid JSON: %v", err)
			}
			if !isSyntax && !ok {
				t.Fatalf("took invalid JSON (%v): %+v", jsonErr, r)
			}
			if err == nil {
				r.PromptTokens(4)
				r.Chain(nil, k, 10)
			}
		}
	})
}

func BenchmarkScan(b *testing.B) {
	for _, size := range []int{2 << 10, 100 << 10, 400 << 10} {
		body := []byte(`{"model":"m","stream":true,"messages":[{"role":"user","content":"` + strings.Repeat("the quick brown fox \\n", size/22) + `"}]}`)
		b.Run(fmt.Sprintf("bytes=%d", len(body)), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Scan(body, Chat); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
