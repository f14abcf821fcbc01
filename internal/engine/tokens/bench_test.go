package tokens

import (
	"encoding/json"
	"fmt"
	"testing"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/kv"
)

// conversation is the body of a chat of some 12,000 tokens at 4 bytes each.
func conversation() string {
	texts := []string{}
	for i := range 21 {
		text := ""
		for len(text) < 2300 {
			text += fmt.Sprintf("Turbine %d of \"plant\" %d turns.\n", i, len(text))
		}
		texts = append(texts, text)
	}
	return talk(texts...)
}

func BenchmarkKnownPrompt(b *testing.B) {
	e := newOracle()
	e.answer = func(string, []byte) (int, string) { return 200, tokenList(12_000) }
	s := start(b, Options{})
	q := ask(b, e, api.Chat, conversation())
	dst := make([]kv.Key, 0, 1024)
	if r := s.Keys(b.Context(), q, dst); len(r.Keys) != 750 {
		b.Fatalf("%d keys, %v", len(r.Keys), r.Reason)
	}
	b.SetBytes(int64(len(q.Body)))
	b.ReportAllocs()
	for b.Loop() {
		if r := s.Keys(b.Context(), q, dst); r.How != HowCache {
			b.Fatal(r.How)
		}
	}
}

// What BenchmarkKnownPrompt takes for hashing alone.
func BenchmarkHashPrompt(b *testing.B) {
	s := start(b, Options{})
	body := []byte(conversation())
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		s.sum(digest{}, body)
	}
}

func BenchmarkKnownBeginning(b *testing.B) {
	e := newOracle()
	e.answer = func(string, []byte) (int, string) { return 200, tokenList(12_000) }
	s := start(b, Options{})
	s.Keys(b.Context(), ask(b, e, api.Chat, conversation()), nil)
	var texts struct{ Messages []struct{ Content string } }
	if err := json.Unmarshal([]byte(conversation()), &texts); err != nil {
		b.Fatal(err)
	}
	longer := []string{}
	for _, m := range texts.Messages {
		longer = append(longer, m.Content)
	}
	q := ask(b, nil, api.Chat, talk(append(longer, "Yes.", "Go on.")...))
	dst := make([]kv.Key, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		if r := s.Keys(b.Context(), q, dst); r.How != HowPrefix {
			b.Fatal(r.How)
		}
	}
}

func tokenList(n int) string {
	ids := make([]uint32, n)
	for i := range ids {
		ids[i] = uint32(i * 7919 % 151_000)
	}
	b, _ := json.Marshal(map[string]any{"token_ids": ids, "features": nil})
	return string(b)
}

func BenchmarkReadAnswer(b *testing.B) {
	text := []byte(tokenList(12_000))
	a := answer{most: 1 << 20}
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if err := a.read(text); err != nil {
			b.Fatal(err)
		}
	}
}

// An answer of 12,000 tokens from the socket to kept keys; the prompt is new.
func BenchmarkNewPrompt(b *testing.B) {
	text := tokenList(12_000)
	e := newOracle()
	e.answer = func(string, []byte) (int, string) { return 200, text }
	s := start(b, Options{})
	body := []byte(conversation())
	q := ask(b, e, api.Chat, string(body))
	dst := make([]kv.Key, 0, 1024)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		q.Model = fmt.Sprint("m", i)
		if r := s.Keys(b.Context(), q, dst); r.How != HowEngine {
			b.Fatal(r.How, r.Reason)
		}
		e.asked()
		e.bodies = e.bodies[:0]
	}
}
