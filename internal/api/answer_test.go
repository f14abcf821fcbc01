package api

import (
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
		{"whole", `{"id":"c","choices":[{"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],
			"usage":{"prompt_tokens":11,"completion_tokens":4,"prompt_tokens_details":{"audio_tokens":1,"cached_tokens":8}}}`, true,
			Chunk{Data: true, Text: true, Finish: true, Usage: fleet.Usage{Known: true, Prompt: 11, Cached: 8, Output: 4}}},
		{"all-zero usage is none", `{"choices":[{"text":"x"}],"usage":{"prompt_tokens":0,"completion_tokens":0}}`, true,
			Chunk{Data: true, Text: true, Usage: unknown}},
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
		got, ok := ReadAnswer([]byte(c.body))
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s: %+v %v, want %+v %v", c.name, got, ok, c.want, c.ok)
		}
	}
}
