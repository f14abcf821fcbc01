package api

import (
	"encoding/json"
	"testing"

	"penstock.dev/penstock/internal/fleet"
)

func TestReadAnswer(t *testing.T) {
	unknown := fleet.Usage{Cached: -1}
	for _, c := range []struct {
		name, body string
		ok         bool
		want       Chunk
	}{
		{
			"whole", `{"id":"c","choices":[{"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],
			"usage":{"prompt_tokens":11,"completion_tokens":4,"prompt_tokens_details":{"audio_tokens":1,"cached_tokens":8}}}`, true,
			Chunk{Data: true, Text: true, Finish: true, Usage: fleet.Usage{Known: true, Prompt: 11, Cached: 8, Output: 4}},
		},
		{
			"more after the text", `{"choices":[{"message":{"content":"hi","tool_calls":[],"refusal":null},"finish_reason":"stop"}]}`, true,
			Chunk{Data: true, Text: true, Finish: true, Usage: unknown},
		},
		{
			"several choices", `{"choices":[{"text":"a","finish_reason":"stop"},{"text":"b","finish_reason":"stop"},{"text":"","finish_reason":null}]}`, true,
			Chunk{Data: true, Text: true, Finish: true, Usage: unknown},
		},
		{
			"all-zero usage is none", `{"choices":[{"text":"x"}],"usage":{"prompt_tokens":0,"completion_tokens":0}}`, true,
			Chunk{Data: true, Text: true, Usage: unknown},
		},
		{"usage null", `{"choices":[],"usage":null}`, true, Chunk{Data: true, Usage: unknown}},
		{"impossible counts", `{"usage":{"prompt_tokens":-5,"completion_tokens":99999999999}}`, true, Chunk{Data: true, Usage: unknown}},
		{"error inside", `{"error":{"message":"boom","code":500}}`, true, Chunk{Data: true, Error: true, Usage: unknown}},
		{"error as text", `{"error":"boom"}`, true, Chunk{Data: true, Error: true, Usage: unknown}},
		{"overload with the code as text", `{"error":{"code":"429"}}`, true, Chunk{Data: true, Error: true, Overload: true, Usage: unknown}},
		{"odd choices", `{"choices":[7,{"message":null},{"delta":[]}]}`, true, Chunk{Data: true, Usage: unknown}},
		{"choices of another type", `{"choices":{"a":1}}`, true, Chunk{Data: true, Usage: unknown}},
		{"array", `[]`, false, Chunk{}},
		{"empty", ``, false, Chunk{}},
		{"HTML", `<html>hello</html>`, false, Chunk{}},
		{"cut off", `{"choices":[{"message":{"content":"h`, false, Chunk{}},
		{"two objects", `{} {}`, false, Chunk{}},
	} {
		got, ok := ReadAnswer(Completions, []byte(c.body))
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s: %+v %v, want %+v %v", c.name, got, ok, c.want, c.ok)
		}
	}
}

// FuzzReadAnswer holds that an answer is taken exactly when it is a JSON
// object.
func FuzzReadAnswer(f *testing.F) {
	f.Add([]byte(`{"choices":[{"text":"a","delta":{"content":"x","tool_calls":[{}]},"finish_reason":"stop"},{"text":"b"}],"usage":{"prompt_tokens":1}}`))
	f.Add([]byte(`{"error":{"code":"503"},"usage":{"prompt_tokens_details":{"cached_tokens":null}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var obj map[string]json.RawMessage
		want := json.Unmarshal(body, &obj) == nil && obj != nil
		if c, ok := ReadAnswer(Completions, body); ok != want && len(body) < maxDepth {
			t.Fatalf("taken: %v (%+v), JSON object: %v", ok, c, want)
		}
	})
}
