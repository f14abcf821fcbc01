package server

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// fast is an engine that answers at once: a tiny model, two hundred times as
// fast as life.
var fast = Options{Model: "penstock/tiny", TP: 1, Speedup: 200, MaxModelLen: 4096}

func listen(t testing.TB, o Options) *Node {
	t.Helper()
	n, err := Listen("127.0.0.1:0", Config{Options: o})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// post sends body, which is JSON text or marshalled, and returns the status
// and the whole answer.
func post(t testing.TB, url string, body any, header ...string) (int, []byte) {
	t.Helper()
	resp, err := send(t.Context(), url, body, header...)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b
}

func send(ctx context.Context, url string, body any, header ...string) (*http.Response, error) {
	text, ok := body.(string)
	if !ok {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		text = string(b)
	}
	req, err := http.NewRequestWithContext(ctx, "POST", url, strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return http.DefaultClient.Do(req)
}

func get(t testing.TB, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

type usage struct {
	PromptTokens        int `json:"prompt_tokens"`
	CompletionTokens    int `json:"completion_tokens"`
	TotalTokens         int `json:"total_tokens"`
	PromptTokensDetails struct {
		CachedTokens int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
}

// body is any answer, whole or one event of a stream.
type body struct {
	ID, Object, Model string
	Created           int64
	Choices           []struct {
		Index        int
		Text         *string
		Message      *struct{ Role, Content string }
		Delta        *struct{ Role, Content *string }
		FinishReason *string `json:"finish_reason"`
		StopReason   *string `json:"stop_reason"`
	}
	Usage *usage
	Error *struct {
		Message, Type string
		Param         *string
		Code          int
	}
}

func parse(t testing.TB, raw []byte) body {
	t.Helper()
	var b body
	if err := json.Unmarshal(raw, &b); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	return b
}

// ask posts to an OpenAI route and wants a whole answer.
func ask(t testing.TB, url string, request map[string]any) body {
	t.Helper()
	status, raw := post(t, url, request)
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, raw)
	}
	return parse(t, raw)
}

// events splits a stream and checks its frame: each event one data line, the
// last [DONE].
func events(t testing.TB, raw []byte) []body {
	t.Helper()
	parts := strings.SplitAfter(string(raw), "\n\n")
	if len(parts) < 2 || parts[len(parts)-1] != "" || parts[len(parts)-2] != "data: [DONE]\n\n" {
		t.Fatalf("the stream does not end with [DONE]:\n%s", raw)
	}
	var evs []body
	for _, p := range parts[:len(parts)-2] {
		data, ok := strings.CutPrefix(p, "data: ")
		if !ok {
			t.Fatalf("event %q", p)
		}
		evs = append(evs, parse(t, []byte(data)))
	}
	return evs
}

func stream(t testing.TB, url string, request map[string]any) []body {
	t.Helper()
	request["stream"] = true
	status, raw := post(t, url, request)
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, raw)
	}
	return events(t, raw)
}

// named is one event of a stream whose events have names.
type named struct {
	name string
	data map[string]any
}

// namedEvents splits such a stream and checks that the names agree with the
// types in the data.
func namedEvents(t testing.TB, raw []byte) []named {
	t.Helper()
	parts := strings.Split(string(raw), "\n\n")
	if parts[len(parts)-1] != "" {
		t.Fatalf("the stream does not end with an event:\n%s", raw)
	}
	var evs []named
	for _, p := range parts[:len(parts)-1] {
		first, second, _ := strings.Cut(p, "\n")
		name, ok := strings.CutPrefix(first, "event: ")
		text, ok2 := strings.CutPrefix(second, "data: ")
		e := named{name: name}
		if err := json.Unmarshal([]byte(text), &e.data); !ok || !ok2 || err != nil || e.data["type"] != name {
			t.Fatalf("event %q: %v", p, err)
		}
		evs = append(evs, e)
	}
	return evs
}

// names returns the names of events, equal ones in a row once.
func names(evs []named) []string {
	var list []string
	for _, e := range evs {
		if len(list) == 0 || list[len(list)-1] != e.name {
			list = append(list, e.name)
		}
	}
	return list
}

// at follows keys and indexes into decoded JSON; nil where there is nothing.
func at(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

// object posts and decodes a whole answer of any shape.
func object(t testing.TB, url string, body any, want int) map[string]any {
	t.Helper()
	status, raw := post(t, url, body)
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil || status != want {
		t.Fatalf("status %d, want %d: %s", status, want, raw)
	}
	return m
}

func user(text string) []map[string]any {
	return []map[string]any{{"role": "user", "content": text}}
}

// until polls a condition that another goroutine brings about.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.After(5 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited 5 s for %s", what)
		}
	}
}
