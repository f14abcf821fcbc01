package tokens

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/kv"
)

// An engine over a socket, asked in whatever way it knows, names the tokens that
// it computes: the count of its own usage, and of its tokenizer.
func TestSimulatedEngine(t *testing.T) {
	n, err := server.Listen("127.0.0.1:0", server.Config{Options: server.Options{Model: "penstock/tiny", TP: 1, Speedup: 1000, MaxModelLen: 8192}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	client := engine.NewClient(engine.Options{})
	t.Cleanup(client.Close)
	s := start(t, Options{Budget: 5e9})

	post := func(path string, body []byte, out any) {
		t.Helper()
		resp, err := http.Post(n.URL()+path, "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(out); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", path, resp.Status, err)
		}
	}
	var earlier []kv.Key
	messages := []map[string]string{{"role": "system", "content": sentence}}
	for turn := range 4 {
		messages = append(messages, map[string]string{"role": "user", "content": fmt.Sprintf("Question %d: %s", turn, sentence)})
		body, _ := json.Marshal(map[string]any{"model": "penstock/tiny", "messages": messages, "max_tokens": 20})
		q := ask(t, client, api.Chat, string(body))
		q.Engine = func() (Engine, bool) { return Engine{URL: n.URL(), Client: client}, true }
		r := s.Keys(t.Context(), q, nil)

		var tokenized struct{ Tokens []uint32 }
		post("/tokenize", body, &tokenized)
		if want := kv.ChainTokens(nil, kv.TokenSeed(nil, nil), 16, tokenized.Tokens, nil); r.How != HowEngine || !slices.Equal(want, r.Keys) {
			t.Fatalf("turn %d: %v (%v), keys %x, want %x", turn, r.How, r.Reason, r.Keys, want)
		}
		var done struct {
			Usage struct {
				Prompt int `json:"prompt_tokens"`
			}
			Choices []struct{ Message struct{ Content string } }
		}
		post("/v1/chat/completions", body, &done)
		if done.Usage.Prompt != r.Tokens {
			t.Fatalf("turn %d: %d tokens, the engine computed %d", turn, r.Tokens, done.Usage.Prompt)
		}
		if len(r.Keys) < len(earlier) || !slices.Equal(earlier, r.Keys[:len(earlier)]) {
			t.Fatalf("turn %d does not begin with the one before", turn)
		}
		earlier = r.Keys
		messages = append(messages, map[string]string{"role": "assistant", "content": done.Choices[0].Message.Content})
		if r := s.Keys(t.Context(), q, nil); r.How != HowCache {
			t.Errorf("asked again: %v", r.How)
		}
	}
	if c := s.Status().Cache; c.Grown != 3 || c.Parted != 0 {
		t.Errorf("cache %+v", c)
	}
}
