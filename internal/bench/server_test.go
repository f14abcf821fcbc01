package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fakeServer speaks enough of the OpenAI API to be loaded. Each request is
// broken in the way broken says, by order of arrival from 0.
type fakeServer struct {
	*httptest.Server
	broken func(n int) string
	delay  time.Duration // before each token

	mu      sync.Mutex
	bodies  []body
	headers []http.Header
	n       atomic.Int32
	open    atomic.Int32
	peak    atomic.Int32
}

type body struct {
	Model    string `json:"model"`
	Prompt   string `json:"prompt"`
	Messages []struct {
		Role, Content string
	} `json:"messages"`
	MaxTokens     int             `json:"max_tokens"`
	Stream        bool            `json:"stream"`
	IgnoreEOS     bool            `json:"ignore_eos"`
	StreamOptions map[string]bool `json:"stream_options"`
}

// text is the whole prompt, whichever API it came by.
func (b *body) text() string {
	s := b.Prompt
	for _, m := range b.Messages {
		s += m.Content
	}
	return s
}

func newFakeServer(t *testing.T) *fakeServer {
	f := &fakeServer{broken: func(int) string { return "" }}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"fake/model"},{"id":"other"}]}`)
	})
	mux.HandleFunc("POST /v1/completions", f.answer)
	mux.HandleFunc("POST /v1/chat/completions", f.answer)
	f.Server = httptest.NewServer(mux)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeServer) answer(w http.ResponseWriter, r *http.Request) {
	n := int(f.n.Add(1)) - 1
	open := f.open.Add(1)
	defer f.open.Add(-1)
	for p := f.peak.Load(); open > p && !f.peak.CompareAndSwap(p, open); p = f.peak.Load() {
	}
	var b body
	if err := json.NewDecoder(r.Body).Decode(&b); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	f.bodies, f.headers = append(f.bodies, b), append(f.headers, r.Header.Clone())
	f.mu.Unlock()
	how := f.broken(n)
	switch how {
	case "500":
		http.Error(w, `{"error":{"message":"boom"}}`, http.StatusInternalServerError)
		return
	case "hang":
		<-r.Context().Done()
		return
	case "reset":
		panic(http.ErrAbortHandler)
	}
	chat := strings.HasSuffix(r.URL.Path, "chat/completions")
	if !b.Stream {
		f.whole(w, &b, chat)
		return
	}
	f.stream(w, &b, how, "c"+strconv.Itoa(n), chat)
}

func (f *fakeServer) whole(w io.Writer, b *body, chat bool) {
	choice := `"text":" tok"`
	if chat {
		choice = `"message":{"role":"assistant","content":" tok"}`
	}
	fmt.Fprintf(w, `{"id":"x","choices":[{%s,"finish_reason":"length"}],"usage":%s}`, choice, usageJSON(b))
}

// usageJSON reports a token per four bytes of prompt, half of them cached.
func usageJSON(b *body) string {
	n := len(b.text()) / 4
	return fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}`, n, b.MaxTokens, n/2)
}

func (f *fakeServer) stream(w http.ResponseWriter, b *body, how, id string, chat bool) {
	w.Header().Set("Content-Type", "text/event-stream")
	rc := http.NewResponseController(w)
	send := func(data string) {
		fmt.Fprintf(w, "data: %s\n\n", data)
		_ = rc.Flush()
	}
	token := func(text, finish string) {
		if finish != "null" {
			finish = strconv.Quote(finish)
		}
		part := fmt.Sprintf(`"text":%q`, text)
		if chat {
			part = fmt.Sprintf(`"delta":{"content":%q}`, text)
		}
		send(fmt.Sprintf(`{"id":%q,"choices":[{"index":0,%s,"finish_reason":%s}]}`, id, part, finish))
	}
	if chat {
		send(fmt.Sprintf(`{"id":%q,"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`, id))
	}
	for i := range b.MaxTokens {
		time.Sleep(f.delay)
		if i == b.MaxTokens/2 {
			switch how {
			case "cut":
				panic(http.ErrAbortHandler)
			case "close":
				return
			case "half":
				fmt.Fprint(w, `data: {"id":`)
				_ = rc.Flush()
				panic(http.ErrAbortHandler)
			case "error":
				send(`{"error":{"message":"boom","code":500}}`)
				return
			case "double":
				token(" tok", "null")
			case "lose":
				continue
			}
		}
		finish := "null"
		if i == b.MaxTokens-1 {
			finish = "length"
		}
		token(" t"+strconv.Itoa(i%10), finish)
	}
	if how == "nousage" {
		send("[DONE]")
		return
	}
	send(fmt.Sprintf(`{"id":%q,"choices":[],"usage":%s}`, id, usageJSON(b)))
	if how != "nodone" {
		send("[DONE]")
	}
}
