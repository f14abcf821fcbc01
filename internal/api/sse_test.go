package api

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/fleet"
)

// split feeds stream in pieces of at most n bytes and returns the events.
func split(t testing.TB, stream string, n int) (events []string, rest string) {
	t.Helper()
	var s Splitter
	for in := []byte(stream); len(in) > 0; {
		k := copy(s.Space(), in[:min(n, len(in))])
		in = in[k:]
		if err := s.Filled(k); err != nil {
			t.Fatal(err)
		}
		Events(s.Whole(), func(e []byte) { events = append(events, string(e)) })
	}
	return events, string(s.Rest())
}

func TestSplitterCutsAtBlankLinesWhateverTheReads(t *testing.T) {
	for _, c := range []struct {
		name, stream string
		want         []string
		rest         string
	}{
		{"LF", "data: a\n\ndata: b\n\n", []string{"data: a\n\n", "data: b\n\n"}, ""},
		{"CRLF", "data: a\r\n\r\n: ping\r\n\r\n", []string{"data: a\r\n\r\n", ": ping\r\n\r\n"}, ""},
		{"CR", "data: a\r\rdata: b\r\r", []string{"data: a\r\r", "data: b\r\r"}, ""},
		{"several lines", "event: x\ndata: 1\ndata: 2\n\n", []string{"event: x\ndata: 1\ndata: 2\n\n"}, ""},
		{"unended", "data: a\n\ndata: {\"b", []string{"data: a\n\n"}, "data: {\"b"},
		{"ended by one newline only", "data: a\n", nil, "data: a\n"},
	} {
		for n := 1; n <= len(c.stream); n++ {
			got, rest := split(t, c.stream, n)
			if strings.Join(got, "|") != strings.Join(c.want, "|") || rest != c.rest {
				t.Errorf("%s in reads of %d: %q rest %q, want %q rest %q", c.name, n, got, rest, c.want, c.rest)
			}
		}
	}
}

func TestSplitterGivesUpAnEndlessEvent(t *testing.T) {
	var s Splitter
	for range 2 * MaxEvent / minSpace {
		space := s.Space()
		for i := range space {
			space[i] = 'x'
		}
		if err := s.Filled(len(space)); err != nil {
			if !errors.Is(err, ErrEventTooLong) {
				t.Fatal(err)
			}
			return
		}
	}
	t.Error("took 2 MiB without a blank line")
}

func TestSplitterDoesNotAllocateInSteadyState(t *testing.T) {
	var s Splitter
	ev := []byte(`data: {"id":"c","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}` + "\n\n")
	step := func() {
		k := copy(s.Space(), ev)
		if err := s.Filled(k); err != nil {
			t.Fatal(err)
		}
		if c := ReadChunk(s.Whole()); !c.Text {
			t.Fatal("no text")
		}
	}
	step()
	if n := testing.AllocsPerRun(1000, step); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
}

func TestReadChunk(t *testing.T) {
	for _, c := range []struct {
		name, event string
		want        Chunk
	}{
		{"comment", ": keep-alive\n\n", Chunk{}},
		{"done", "data: [DONE]\n\n", Chunk{Done: true}},
		{"role only", `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}` + "\n\n", Chunk{Data: true}},
		{"content", `data: {"choices":[{"delta":{"content":"x"}}]}` + "\n\n", Chunk{Data: true, Text: true}},
		{"reasoning", `data:{"choices":[{"delta":{"reasoning":"x"}}]}` + "\r\n\r\n", Chunk{Data: true, Text: true}},
		{"tool call", `data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}` + "\n\n", Chunk{Data: true, Text: true}},
		{"completion text", `data: {"choices":[{"index":0,"text":" a","finish_reason":"length"}]}` + "\n\n", Chunk{Data: true, Text: true, Finish: true}},
		{"the word usage inside text", `data: {"choices":[{"delta":{"content":"\"usage\":{\"prompt_tokens\":9}"}}]}` + "\n\n", Chunk{Data: true, Text: true}},
		{"zero usage is none", `data: {"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0}}` + "\n\n", Chunk{Data: true}},
		{
			"usage", `data: {"choices":[],"usage":{"prompt_tokens":23,"completion_tokens":4,"total_tokens":27,"prompt_tokens_details":{"cached_tokens":16}}}` + "\n\n",
			Chunk{Data: true, Usage: fleet.Usage{Known: true, Prompt: 23, Output: 4, Cached: 16}},
		},
		{
			"usage without details", `data: {"choices":[],"usage":{"prompt_tokens":23,"completion_tokens":4,"prompt_tokens_details":null}}` + "\n\n",
			Chunk{Data: true, Usage: fleet.Usage{Known: true, Prompt: 23, Output: 4, Cached: -1}},
		},
		{"error", `data: {"error":{"message":"boom","code":500}}` + "\n\n", Chunk{Data: true, Error: true}},
		{"garbage", "data: \x00\x01{]\n\n", Chunk{Garbage: true}},
		{"garbage after the object", "data: {}]\n\n", Chunk{Garbage: true}},
		{"data that is not an object", "data: 7\n\n", Chunk{Garbage: true}},
		{"data over several lines", "data: {\"choices\":[\ndata:  {\"text\":\"x\"}]}\n\n", Chunk{Data: true, Text: true}},
		{"overload", `data: {"error":{"message":"full","code":503}}` + "\n\n", Chunk{Data: true, Error: true, Overload: true}},
		{"no error", `data: {"error":null,"choices":[]}` + "\n\n", Chunk{Data: true}},
		{"event name first", "event: x\r\nid: 1\r\ndata: [DONE]\r\n\r\n", Chunk{Done: true}},
	} {
		if !c.want.Usage.Known && c.want.Data {
			c.want.Usage.Cached = -1
		}
		if got := ReadChunk([]byte(c.event)); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestRefusalsHaveTheRightStatus(t *testing.T) {
	for r, status := range map[fleet.Refusal]int{
		fleet.RefuseQueueFull: 429, fleet.RefuseExpired: 503, fleet.RefuseNoEndpoint: 503, fleet.RefuseOverload: 503,
		fleet.RefuseDraining: 503, fleet.RefuseCrowded: 503, fleet.RefuseEngine: 502, fleet.RefuseTimeout: 504,
	} {
		p := Refused(r, 1500e6)
		if p.Status != status || p.Message == "" {
			t.Errorf("%v: %+v, want status %d", r, p, status)
		}
		if p.RetryAfterSeconds() != 2 {
			t.Errorf("%v: Retry-After %d, want 1.5 s rounded up", r, p.RetryAfterSeconds())
		}
	}
	ev := StreamBroke(fleet.FailConnect).Event(OpenAI, "")
	if c := ReadChunk(ev); !c.Error || !bytes.HasSuffix(ev, []byte("}\n\n")) {
		t.Errorf("our own error event does not read as one: %s", ev)
	}
}

func FuzzSplitter(f *testing.F) {
	f.Add("data: a\n\ndata: b\r\n\r\n\r\r:", 3)
	f.Add("\n\n\r\n\r", 1)
	f.Fuzz(func(t *testing.T, stream string, n int) {
		if n < 1 || len(stream) > 1<<16 {
			t.Skip()
		}
		events, rest := split(t, stream, n)
		if strings.Join(events, "")+rest != stream {
			t.Fatal("bytes changed")
		}
		if strings.Contains(rest, "\n\n") {
			t.Fatalf("a whole event was kept back: %q", rest)
		}
		for _, e := range events {
			ReadChunk([]byte(e))
		}
	})
}

func BenchmarkReadChunk(b *testing.B) {
	ev := []byte(`data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1790000000,"model":"Qwen/Qwen3-32B","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}` + "\n\n")
	b.SetBytes(int64(len(ev)))
	b.ReportAllocs()
	for b.Loop() {
		ReadChunk(ev)
	}
}
