package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
)

// exchangeOf is one recorded exchange with a real engine.
type exchangeOf struct {
	path   string // of the request
	body   string
	status int
	head   string // the answer's status line and header as received
	answer string
	chunks []int  // sizes of the HTTP chunks
	end    string // last-chunk, eof or client-abort
}

func record(t *testing.T, name string) exchangeOf {
	t.Helper()
	read := func(suffix string) []byte {
		raw, err := os.ReadFile(filepath.Join("..", "..", "..", "shared", "captures", name+suffix))
		switch {
		case err == nil:
			return raw
		case os.Getenv("CI") != "":
			t.Fatalf("recorded exchanges are missing: %v", err)
		default:
			t.Skipf("recorded exchanges are not here: %v", err)
		}
		return nil
	}
	var x exchangeOf
	head, body, _ := strings.Cut(string(read(".request.http")), "\r\n\r\n")
	x.body = body
	if _, err := fmt.Sscanf(head, "POST %s", &x.path); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	x.head, x.answer, _ = strings.Cut(string(read(".response.http")), "\r\n\r\n")
	if _, err := fmt.Sscanf(x.head, "HTTP/1.1 %d", &x.status); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	x.chunks, x.end = []int{len(x.answer)}, "last-chunk"
	if strings.Contains(x.head, "text/event-stream") {
		var timing struct {
			ChunkBytes []int `json:"chunk_bytes"`
			End        string
		}
		if err := json.Unmarshal(read(".timing.json"), &timing); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		x.chunks, x.end = timing.ChunkBytes, timing.End
	}
	return x
}

// play writes the recorded answer, framed as it was, and ends it as it ended.
func (x *exchangeOf) play(c net.Conn) {
	var b bytes.Buffer
	b.WriteString(x.head + "\r\n\r\n")
	if !strings.Contains(x.head, "Transfer-Encoding: chunked") {
		b.WriteString(x.answer)
		_, _ = c.Write(b.Bytes())
		return
	}
	rest := x.answer
	for _, n := range x.chunks {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, rest[:n])
		rest = rest[n:]
		if _, err := c.Write(b.Bytes()); err != nil {
			return
		}
		b.Reset()
	}
	if x.end == "last-chunk" {
		_, _ = c.Write([]byte("0\r\n\r\n"))
	}
}

// TestRecordedExchanges replays what real engines sent: well-formed answers
// pass byte by byte, broken ones end in an error.
func TestRecordedExchanges(t *testing.T) {
	const llmd, ollama = "llm-d-inference-sim/", "ollama/"
	known := func(prompt, cached, output fleet.Tokens) fleet.Usage {
		return fleet.Usage{Known: true, Prompt: prompt, Cached: cached, Output: output}
	}
	counted := func(output fleet.Tokens) fleet.Usage { return fleet.Usage{Cached: -1, Output: output} }
	unknown := counted(0)
	for _, c := range []struct {
		name    string
		failure fleet.Failure
		usage   fleet.Usage
		events  int
	}{
		{ollama + "chat", 0, known(10, -1, 12), 0},
		{ollama + "chat-no-finish", 0, unknown, 0},
		{ollama + "chat-no-max-tokens", 0, known(10, -1, 5120), 0},
		{ollama + "chat-over-context", 0, known(512, -1, 4), 0},
		{ollama + "chat-json-object", 0, known(10, -1, 3), 0},
		{ollama + "chat-n3-ignored-options", 0, known(10, -1, 12), 0},
		{ollama + "completions", 0, known(10, -1, 8), 0},
		{ollama + "chat-stream", 0, counted(10), 10},
		{ollama + "chat-stream-usage-true", 0, known(10, -1, 12), 10},
		{ollama + "chat-stream-usage-false", 0, counted(10), 10},
		{ollama + "chat-stream-stop", 0, known(10, -1, 4), 4},
		{ollama + "chat-stream-cold-load", 0, counted(4), 4},
		{ollama + "chat-logprobs-stream", 0, counted(3), 3},
		{ollama + "chat-tools-stream", 0, counted(10), 10},
		{ollama + "completions-stream-usage", 0, known(10, -1, 8), 7},
		{ollama + "chat-stream-no-finish", fleet.FailStream, counted(195), 195},
		{ollama + "chat-stream-runner-killed", fleet.FailStream, unknown, -1},
		{ollama + "chat-stream-server-killed", fleet.FailStream, unknown, -1},
		{ollama + "chat-stream-client-abort", fleet.FailStream, unknown, -1},
		{llmd + "chat", 0, known(11, 0, 4), 0},
		{llmd + "chat-tools", 0, known(11, 8, 12), 0},
		{llmd + "chat-empty-messages", 0, known(0, 0, 3), 0},
		{llmd + "chat-cache-threshold", 0, known(14, -1, 0), 0},
		{llmd + "completions-cached-first", 0, known(28, 0, 2), 0},
		{llmd + "completions-cached-repeat", 0, known(28, 24, 1), 0},
		{llmd + "completions-token-ids", 0, known(9, 0, 4), 0},
		{llmd + "chat-stream", 0, counted(11), 11},
		{llmd + "chat-stream-usage", 0, known(11, 8, 1), 1},
		{llmd + "chat-tools-stream", 0, known(11, 8, 12), 9},
		{llmd + "chat-logprobs-stream", 0, counted(3), 3},
		{llmd + "chat-adapter-stream", 0, known(11, 0, 3), 3},
		{llmd + "completions-stream-cached-usage", 0, known(28, 24, 2), 2},
		{llmd + "completions-two-prompts-stream", 0, counted(5), 5},
		{llmd + "pd-decode-leg-stream", 0, known(23, 16, 4), 4},
		{llmd + "chat-stream-server-sigterm", 0, unknown, -1},
		{llmd + "chat-stream-server-killed", fleet.FailStream, unknown, -1},
		{llmd + "chat-stream-client-abort", fleet.FailStream, unknown, -1},
		{ollama + "responses", 0, known(10, 0, 8), 0},
		{ollama + "responses-stream", 0, known(10, 0, 8), 7},
		{ollama + "messages", 0, known(10, -1, 8), 0},
		{ollama + "messages-stream", 0, known(10, -1, 8), 7},
		{ollama + "embeddings", 0, known(13, -1, 0), 0},
		{ollama + "embeddings-base64", 0, known(5, -1, 0), 0},
		{llmd + "responses-stream", 0, known(6, -1, 5), 5},
		{llmd + "messages-stream", 0, known(11, 0, 5), 5},
		{llmd + "embeddings-base64", 0, known(3, -1, 0), 0},
		{llmd + "tokenize", 0, unknown, 0},
		{llmd + "generate-token-ids", 0, unknown, 0},
		{ollama + "messages-unknown-model", fleet.FailClient, fleet.Usage{}, 0},
		{ollama + "messages-no-max-tokens", fleet.FailClient, fleet.Usage{}, 0},
		{ollama + "chat-empty-messages", fleet.FailClient, fleet.Usage{}, 0},
		{ollama + "chat-tools-unsupported", fleet.FailClient, fleet.Usage{}, 0},
		{ollama + "chat-reasoning-unsupported", fleet.FailClient, fleet.Usage{}, 0},
		{ollama + "chat-unknown-model", fleet.FailClient, fleet.Usage{}, 0},
		{ollama + "chat-unknown-model-stream", fleet.FailClient, fleet.Usage{}, 0},
		{ollama + "completions-token-ids", fleet.FailClient, fleet.Usage{}, 0},
		{llmd + "chat-over-context", fleet.FailClient, fleet.Usage{}, 0},
		{llmd + "chat-unknown-model", fleet.FailClient, fleet.Usage{}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := record(t, c.name)
			r := newRig(t, setup{}, rawEngine(t, func(conn net.Conn, _ *http.Request) { x.play(conn) }))
			a := r.do("POST", x.path, x.body)
			want := x.answer
			if c.failure == fleet.FailStream {
				want += broken(fleet.FailStream)
			}
			if a.err != nil || a.status != x.status || a.body != want {
				t.Errorf("status %d, %v, %d bytes; want %d and %d bytes", a.status, a.err, len(a.body), x.status, len(want))
			}
			got := r.access()
			if got.Failure != c.failure || got.Attempts != 1 {
				t.Errorf("account %+v", got)
			}
			if c.events >= 0 && (got.Events != c.events || got.Usage != c.usage) {
				t.Errorf("%d events, usage %+v; want %d, %+v", got.Events, got.Usage, c.events, c.usage)
			}
			if c.events < 0 && got.Events < 5 {
				t.Errorf("%d events", got.Events)
			}
		})
	}
}

// TestRecordedOverloadsAndFailures: what the engine says of itself becomes the
// gateway's own answer.
func TestRecordedOverloadsAndFailures(t *testing.T) {
	for name, want := range map[string]struct {
		status  int
		code    string
		failure fleet.Failure
	}{
		"ollama/chat-queue-full":                       {503, "overload", fleet.FailOverload},
		"ollama/chat-runner-killed":                    {502, "engine", fleet.FailStatus},
		"llm-d-inference-sim/chat-forced-429":          {503, "overload", fleet.FailOverload},
		"llm-d-inference-sim/chat-injected-rate-limit": {503, "overload", fleet.FailOverload},
		"llm-d-inference-sim/chat-queue-full-429":      {503, "overload", fleet.FailOverload},
		"llm-d-inference-sim/chat-forced-503":          {503, "overload", fleet.FailOverload},
		"llm-d-inference-sim/chat-forced-500":          {502, "engine", fleet.FailStatus},
	} {
		x := record(t, name)
		r := newRig(t, setup{}, rawEngine(t, func(conn net.Conn, _ *http.Request) { x.play(conn) }))
		a := r.do("POST", x.path, x.body)
		wantProblem(t, a, want.status, want.code)
		if (a.header.Get("Retry-After") != "") != (want.status == 503) {
			t.Errorf("%s: Retry-After %q", name, a.header.Get("Retry-After"))
		}
		if got := r.access(); got.Failure != want.failure {
			t.Errorf("%s: account %+v", name, got)
		}
	}
}

// TestRecordedBadRequests are refused as the engines refuse them, without
// asking one.
func TestRecordedBadRequests(t *testing.T) {
	e := newEngine(t, func(http.ResponseWriter, *http.Request) { t.Error("an engine was asked") })
	r := newRig(t, setup{}, e)
	for name, code := range map[string]string{
		"ollama/chat-malformed-json": "invalid_body", "ollama/chat-wrong-type": "invalid_field",
		"llm-d-inference-sim/chat-malformed-json": "invalid_body", "llm-d-inference-sim/chat-bad-max-tokens": "invalid_field",
	} {
		x := record(t, name)
		a := r.do("POST", x.path, x.body)
		if wantProblem(t, a, 400, code); x.status != 400 {
			t.Errorf("%s: the engine answered %d", name, x.status)
		}
	}
}

// TestRecordedChunksAreNotHeldBack: an event is with the client before the engine
// sends the next chunk, in the chunks of a real engine.
func TestRecordedChunksAreNotHeldBack(t *testing.T) {
	x := record(t, "ollama/chat-stream")
	next := make(chan struct{}, 1)
	r := newRig(t, setup{}, rawEngine(t, func(c net.Conn, _ *http.Request) {
		fmt.Fprintf(c, "%s\r\n\r\n", x.head)
		rest := x.answer
		for _, n := range x.chunks {
			fmt.Fprintf(c, "%x\r\n%s\r\n", n, rest[:n])
			rest = rest[n:]
			select {
			case <-next:
			case <-time.After(5 * time.Second):
				return
			}
		}
		fmt.Fprint(c, "0\r\n\r\n")
	}))
	resp, err := r.front.Client().Post(r.front.URL+x.path, "application/json", strings.NewReader(x.body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got strings.Builder
	buf := make([]byte, 64<<10)
	for at := 0; at < len(x.chunks); at++ {
		want := got.Len() + x.chunks[at]
		for got.Len() < want {
			n, err := resp.Body.Read(buf)
			if got.Write(buf[:n]); err != nil {
				t.Fatalf("chunk %d: %v", at, err)
			}
		}
		next <- struct{}{}
	}
	if got.String() != x.answer {
		t.Errorf("got %d bytes, want %d", got.Len(), len(x.answer))
	}
}

// TestRecordedChatsAreToldAsMessages: the text and the tool calls of a chat that
// a real engine streamed are those of the message.
func TestRecordedChatsAreToldAsMessages(t *testing.T) {
	for _, name := range []string{
		"ollama/chat-stream", "ollama/chat-stream-usage-true", "ollama/chat-stream-stop", "ollama/chat-tools-stream",
		"llm-d-inference-sim/chat-stream", "llm-d-inference-sim/chat-stream-usage", "llm-d-inference-sim/chat-tools-stream",
	} {
		x := record(t, name)
		r := newRig(t, setup{silent: engine.APIMessages}, rawEngine(t, func(conn net.Conn, _ *http.Request) { x.play(conn) }))
		a := r.do("POST", messagesPath, messagesStream)
		said, told := "", ""
		for line := range strings.Lines(x.answer) {
			var c struct {
				Choices []struct {
					Delta struct {
						Content   string
						ToolCalls []struct{ Function struct{ Arguments string } } `json:"tool_calls"`
					}
				}
			}
			if data, ok := strings.CutPrefix(line, "data: {"); ok && json.Unmarshal([]byte("{"+data), &c) == nil && len(c.Choices) > 0 {
				said += c.Choices[0].Delta.Content
				for _, call := range c.Choices[0].Delta.ToolCalls {
					said += call.Function.Arguments
				}
			}
		}
		for line := range strings.Lines(a.body) {
			var e struct {
				Delta struct {
					Text    string
					Partial string `json:"partial_json"`
				}
			}
			if data, ok := strings.CutPrefix(line, "data: "); ok && json.Unmarshal([]byte(data), &e) == nil {
				told += e.Delta.Text + e.Delta.Partial
			}
		}
		if said != told || said == "" || !strings.HasSuffix(a.body, "data: {\"type\":\"message_stop\"}\n\n") {
			t.Errorf("%s: said %q, told %q", name, said, told)
		}
	}
}
