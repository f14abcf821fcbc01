package tokens

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/token"
)

// tokenizing answers as an engine with the tokenizer of the file would.
func tokenizing(t *testing.T, file []byte) func(string, []byte) (int, string) {
	tok, err := token.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	return func(_ string, body []byte) (int, string) {
		var q struct{ Prompt string }
		if err := json.Unmarshal(body, &q); err != nil {
			t.Error(err)
		}
		before, after := tok.Around()
		ids, ok := tok.Encoder().Encode(slices.Clone(before), q.Prompt)
		if !ok {
			return 400, `{}`
		}
		b, _ := json.Marshal(map[string]any{"tokens": append(ids, after...)})
		return 200, string(b)
	}
}

func vocabulary(t *testing.T) []byte {
	t.Helper()
	b, err := readVocabulary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readVocabulary() ([]byte, error) { return os.ReadFile("../../token/testdata/bytes.json") }

func TestTokenizesHereOnceProven(t *testing.T) {
	file := vocabulary(t)
	m, err := ReadModel(file)
	if err != nil {
		t.Fatal(err)
	}
	e := newOracle()
	e.answer = tokenizing(t, file)
	s := start(t, Options{})
	if _, err := s.Verify(t.Context(), "p", "m", Engine{"http://e", e}); err == nil {
		t.Error("verified nothing")
	}
	s.Use("p", m)
	answer := e.answer
	e.answer = func(string, []byte) (int, string) { return 503, "" }
	if trust, err := s.Verify(t.Context(), "p", "m", Engine{"http://e", e}); err == nil || trust.Text || !strings.Contains(trust.WhyText, "503") {
		t.Errorf("%+v, %v", trust, err)
	}
	e.answer = answer
	body := func(text string) string {
		b, _ := json.Marshal(map[string]any{"model": "m", "prompt": strings.Repeat(text, 20)})
		return string(b)
	}
	check(t, s, ask(t, e, api.Completion, body("one river ")), HowEngine, ReasonNone)
	trust, err := s.Verify(t.Context(), "p", "m", Engine{"http://e", e})
	if err != nil || !trust.Text || trust.Chat {
		t.Fatalf("%+v, %v", trust, err)
	}
	e.asked()
	r := check(t, s, ask(t, e, api.Completion, body("two rivers ")), HowLocal, ReasonNone)
	ids, _ := m.encode(nil, strings.Repeat("two rivers ", 20), true)
	if want := kv.ChainTokens(nil, kv.TokenSeed(nil, nil), 16, ids, nil); !slices.Equal(want, r.Keys) || len(e.asked()) > 0 {
		t.Errorf("keys %x, want %x", r.Keys, want)
	}
	check(t, s, ask(t, e, api.Completion, body("two rivers ")), HowCache, ReasonNone)
	// What may be read in another way is left to the engine, and so are
	// conversations.
	check(t, s, ask(t, e, api.Completion, strings.Replace(body("3 "), "3", `\ud800`, 1)), HowEngine, ReasonNone)
	check(t, s, ask(t, e, api.Completion, `{"truncate_prompt_tokens":5,`+body("4 ")[1:]), HowEngine, ReasonNone)

	// Another tokenizer behind the same name: one difference is enough.
	e.answer = func(path string, b []byte) (int, string) {
		status, text := tokenizing(t, file)(path, b)
		return status, strings.Replace(text, "]", ",7]", 1)
	}
	if trust, err = s.Verify(t.Context(), "p", "m", Engine{"http://e", e}); err != nil || trust.Text || !strings.Contains(trust.WhyText, "sample 0") {
		t.Errorf("%+v, %v", trust, err)
	}
	check(t, s, ask(t, e, api.Completion, body("five ")), HowEngine, ReasonNone)
	e.answer = func(string, []byte) (int, string) { return 500, "" }
	if again, err := s.Verify(t.Context(), "p", "m", Engine{"http://e", e}); err == nil || again != trust {
		t.Errorf("%+v, %v", again, err)
	}
	if st := s.Status().Pools[0]; !st.Has || st.Local != trust {
		t.Errorf("status %+v", st)
	}
}
