package bench

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const completionEvent = `{"id":"cmpl-7f3a","object":"text_completion","created":1760000000,"model":"sim/qwen3-32b","choices":[{"index":0,"text":" bak","logprobs":null,"finish_reason":null,"stop_reason":null}]}`

const usageEvent = `{"id":"a","choices":[],"usage":{"prompt_tokens":1200,"total_tokens":1328,"completion_tokens":128,"prompt_tokens_details":{"audio_tokens":0,"cached_tokens":1024}}}`

func TestParseChunk(t *testing.T) {
	type want struct {
		ID, Content, Finish, Fail      string
		Usage                          bool
		Prompt, Output, Cached, Broken int
	}
	for text, w := range map[string]want{
		completionEvent: {ID: "cmpl-7f3a", Content: " bak", Cached: -1},
		usageEvent:      {ID: "a", Usage: true, Prompt: 1200, Output: 128, Cached: 1024},
		`{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}`:           {Cached: -1},
		`{"choices":[{"delta":{"content":"a\"\u00e9"}}]}`:                                          {Content: `a\"\u00e9`, Cached: -1},
		`{"choices":[{"delta":{"reasoning_content":"hm","content":null},"finish_reason":"stop"}]}`: {Content: "hm", Finish: "stop", Cached: -1},
		` { "usage" : null , "choices" : null , "error" : null } `:                                 {Cached: -1},
		`{"usage":{"prompt_tokens":5,"completion_tokens":1,"prompt_tokens_details":null}}`:         {Usage: true, Prompt: 5, Output: 1, Cached: -1},
		`{"usage":{"prompt_tokens_details":{"cached_tokens":null}}}`:                               {Usage: true, Cached: -1},
		`{"error":{"message":"boom","code":500}}`:                                                  {Fail: `{"message":"boom","code":500}`, Cached: -1},
		`{"choices":[{"text":"x"}`:                                                                 {Broken: 1},
		`{"choices":[{"text":"x"}]}}`:                                                              {Broken: 1},
		`{"a":01}`:                                                                                 {Broken: 1},
		`{"a":"\x"}`:                                                                               {Broken: 1},
		`[1]`:                                                                                      {Broken: 1},
		``:                                                                                         {Broken: 1},
	} {
		k, ok := parseChunk([]byte(text))
		if !ok {
			k, w.Cached = chunk{}, 0
		}
		got := want{string(k.id), string(k.content), string(k.finish), string(k.fail), k.usage, k.prompt, k.output, k.cached, 0}
		if !ok {
			got.Broken = 1
		}
		if d := cmp.Diff(w, got); d != "" {
			t.Errorf("%s: %s", text, d)
		}
	}
}

func TestParseChunkAllocatesNothing(t *testing.T) {
	data := []byte(completionEvent)
	if n := testing.AllocsPerRun(100, func() { parseChunk(data) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// The scanner accepts exactly the objects that encoding/json calls valid.
func FuzzParseChunk(f *testing.F) {
	for _, s := range []string{completionEvent, usageEvent, `{"error":[1,-2.5e+3,true]}`, `{"choices":[{"delta":{}},null,[]]}`, `{`, `{"a":"\ud83d"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, ok := parseChunk(data)
		valid := json.Valid(data) && strings.HasPrefix(strings.TrimLeft(string(data), " \t\r\n"), "{")
		if ok && !valid {
			t.Fatalf("accepted %q", data)
		}
		// Deep nesting is refused on purpose.
		if valid && !ok && strings.Count(string(data), "[")+strings.Count(string(data), "{") < maxDepth {
			t.Fatalf("refused %q", data)
		}
	})
}

func BenchmarkParseChunk(b *testing.B) {
	data := []byte(completionEvent)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := parseChunk(data); !ok {
			b.Fatal("refused")
		}
	}
}
