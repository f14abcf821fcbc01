package engine

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestInspectSeesFaults asks an engine that does much of it wrong.
func TestInspectSeesFaults(t *testing.T) {
	events := func(w http.ResponseWriter, list ...string) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, e := range list {
			fmt.Fprintf(w, "data: %s\n\n", e)
		}
	}
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		body := string(raw)
		switch {
		case r.URL.Path == "/v1/models":
			_, _ = io.WriteString(w, `{"data":[{"id":"m","max_model_len":512},{"id":"a","parent":"m"}]}`)
		case r.URL.Path == "/v1/chat/completions" && strings.Contains(body, "include_usage"):
			events(w, `{"choices":[{"delta":{},"finish_reason":"stop"}]}`, "[DONE]")
		case r.URL.Path == "/v1/chat/completions" && strings.Contains(body, `"stream":true`):
			events(w, `{"choices":[{"delta":{"content":"x"}}]}`, "[DONE]")
		case r.URL.Path == "/v1/chat/completions" && !strings.Contains(body, `"model":"m"`):
			http.Error(w, "what?", http.StatusInternalServerError)
		case r.URL.Path == "/v1/chat/completions":
			_, _ = io.WriteString(w, `{"error":{"message":"overloaded"}}`)
		case r.URL.Path == "/v1/completions" && strings.Contains(body, `"stream":true`):
			events(w, `{"choices":[{"text":"x","finish_reason":"length"}]}`)
		case r.URL.Path == "/v1/completions":
			_, _ = io.WriteString(w, `{"choices":[{"text":"x"}],"usage":{"prompt_tokens":9,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":0}}}`)
		default:
			http.NotFound(w, r)
		}
	})
	r, err := newClient(t).Inspect(t.Context(), base, "", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]struct {
		answer Answer
		detail string
	}{
		"lists models":                 {Yes, "1 models, 1 adapters, context of 512"},
		"tells its gauges":             {No, "no metrics page"},
		"chat":                         {No, "error inside"},
		"chat, streamed":               {Odd, "no finish reason"},
		"usage in streams on demand":   {No, "no effect"},
		"completions":                  {Yes, "usage 9 + 1"},
		"completions, streamed":        {Odd, "no [DONE]"},
		"tells cached tokens":          {Odd, "nothing cached"},
		"400 for what is not JSON":     {Odd, "status 500"},
		"404 for an unknown model":     {Odd, "status 500"},
		"embeddings":                   {No, "known of openai"},
		"tokenize":                     {No, "404"},
		"stops when the client leaves": {Unknown, "does not tell"},
	}
	seen := 0
	for _, f := range r.Findings {
		w, ok := want[f.Question]
		if !ok {
			continue
		}
		seen++
		if f.Answer != w.answer || !strings.Contains(f.Detail, w.detail) {
			t.Errorf("%s: %s (%s), want %s with %q", f.Question, f.Answer, f.Detail, w.answer, w.detail)
		}
	}
	if seen != len(want) || !r.Serves() || r.Model != "m" || len(r.Adapters) != 1 {
		t.Errorf("%d of %d questions, %+v", seen, len(want), r)
	}
	if _, err := newClient(t).Inspect(t.Context(), closedPort(t), "", time.Second); err == nil {
		t.Error("nobody there, and no error")
	}
}
