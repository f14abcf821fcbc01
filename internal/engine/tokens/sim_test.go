package tokens

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/engine/kvfeed"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/kv"
)

// simulated starts a simulated engine that publishes KV events.
func simulated(t *testing.T) *server.Node { return hashing(t, "", "") }

// hashing is simulated with a way to name blocks.
func hashing(t *testing.T, hash, seed string) *server.Node {
	t.Helper()
	n, err := server.Listen("127.0.0.1:0", server.Config{Options: server.Options{
		Model: "penstock/tiny", TP: 1, Speedup: 1000, MaxModelLen: 8192, KVEvents: "127.0.0.1:0", KVReplay: "127.0.0.1:0",
		KVHash: hash, KVHashSeed: seed, LoRAs: []string{"poet"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func post(t *testing.T, url string, body []byte, out any) {
	t.Helper()
	resp, err := http.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
}

// An engine over a socket, asked in whatever way it knows, names the tokens that
// it computes: the count of its own usage, and of its tokenizer.
func TestSimulatedEngine(t *testing.T) {
	n := simulated(t)
	client := engine.NewClient(engine.Options{})
	t.Cleanup(client.Close)
	s := start(t, Options{})
	var earlier []kv.Key
	messages := []map[string]string{{"role": "system", "content": sentence}}
	for turn := range 4 {
		messages = append(messages, map[string]string{"role": "user", "content": fmt.Sprintf("Question %d: %s", turn, sentence)})
		body, _ := json.Marshal(map[string]any{"model": "penstock/tiny", "messages": messages, "max_tokens": 20})
		q := ask(t, client, api.Chat, string(body))
		q.Engine = func() (Engine, bool) { return Engine{URL: n.URL(), Client: client}, true }
		r := s.Keys(t.Context(), q, nil)

		var tokenized struct{ Tokens []uint32 }
		post(t, n.URL()+"/tokenize", body, &tokenized)
		if want := kv.ChainTokens(nil, kv.TokenSeed(nil, nil), 16, tokenized.Tokens, nil); r.How != HowEngine || !slices.Equal(want, r.Keys) {
			t.Fatalf("turn %d: %v (%v), keys %x, want %x", turn, r.How, r.Reason, r.Keys, want)
		}
		var done struct {
			Usage struct {
				Prompt int `json:"prompt_tokens"`
			}
			Choices []struct{ Message struct{ Content string } }
		}
		post(t, n.URL()+"/v1/chat/completions", body, &done)
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

// What the engine says it has cached of a request has the keys that the request
// was given, whatever the size of own blocks; of what is in no full block of its
// own, 16 tokens, it says nothing.
func TestKeysAreThoseOfEvents(t *testing.T) {
	direct := kv.KeySpace{Block: 16, Mode: kv.KeysDirect, Root: kv.VLLMRoot("42")}
	for _, space := range []kv.KeySpace{{Block: 16}, {Block: 8}, {Block: 32}, direct} {
		for name, body := range map[string]map[string]any{
			"chat":    {"messages": []any{map[string]string{"role": "user", "content": sentence + sentence}}},
			"text":    {"prompt": sentence + sentence},
			"salted":  {"prompt": sentence + sentence, "cache_salt": "pepper"},
			"adapter": {"prompt": sentence + sentence, "model": "poet", "cache_salt": "pepper"},
			"ids":     {"prompt": slices.Repeat([]int{1, 2, 300, 4000}, 16)},
		} {
			t.Run(fmt.Sprint(name, space.Block, space.Mode), func(t *testing.T) {
				n := hashing(t, server.HashCBOR, "42")
				client := engine.NewClient(engine.Options{})
				defer client.Close()
				kind, path := api.Completion, "/v1/completions"
				if name == "chat" {
					kind, path = api.Chat, "/v1/chat/completions"
				}
				if body["max_tokens"] = 1; body["model"] == nil {
					body["model"] = "penstock/tiny"
				}
				raw, _ := json.Marshal(body)
				q := ask(t, client, kind, string(raw))
				q.Space, q.Block, q.Form = space, space.Block, kv.ExtraPaired
				q.Adapter = map[string]string{"adapter": "poet"}[name]
				q.Engine = func() (Engine, bool) { return Engine{URL: n.URL(), Client: client}, true }
				r := start(t, Options{}).Keys(t.Context(), q, nil)
				if r.Reason != ReasonNone {
					t.Fatalf("%v (%v)", r.How, r.Reason)
				}
				post(t, n.URL()+path, raw, new(any))
				want := r.Keys[:r.Tokens/16*16/space.Block]
				got := published(t, n, space)
				for until := time.Now().Add(10 * time.Second); len(got) < len(want) && time.Now().Before(until); {
					got = published(t, n, space) // it tells after it has answered
				}
				if !slices.Equal(got, want) || len(got) == 0 {
					t.Errorf("events tell of %x, the request has %x", got, r.Keys)
				}
			})
		}
	}
}

// published returns the keys of what an engine has told of until now.
func published(t *testing.T, n *server.Node, space kv.KeySpace) []kv.Key {
	t.Helper()
	_, replay := n.KVAddresses()
	c, err := kvfeed.Dial(t.Context(), replay, "DEALER")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.AskReplay(0); err != nil {
		t.Fatal(err)
	}
	var keys []kv.Key
	var b kv.Batch
	names := kv.NewNames(space, 1000)
	err = c.ReadReplay(func(_ uint64, payload []byte) {
		if err := b.Decode(payload); err != nil {
			t.Error(err)
		}
		for _, change := range names.Apply(&b, nil) {
			keys = append(keys, change.Keys...)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}
