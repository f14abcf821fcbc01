package server

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"strings"
	"testing"
)

// embeddings asks for vectors of 1024 dimensions as numbers.
func embeddings(t *testing.T, url string, input any) [][]float32 {
	t.Helper()
	status, raw := post(t, url, map[string]any{"model": "penstock/tiny", "input": input})
	var list struct {
		Object, Model string
		Data          []struct {
			Object    string
			Index     int
			Embedding []float32
		}
		Usage usage
	}
	if err := json.Unmarshal(raw, &list); err != nil || status != 200 || list.Object != "list" || list.Model != "penstock/tiny" {
		t.Fatalf("%d %s", status, raw)
	}
	if list.Usage.PromptTokens == 0 || list.Usage.TotalTokens != list.Usage.PromptTokens {
		t.Errorf("usage: %+v", list.Usage)
	}
	var vectors [][]float32
	for i, d := range list.Data {
		if d.Index != i || d.Object != "embedding" {
			t.Errorf("item %d: %+v", i, d)
		}
		vectors = append(vectors, d.Embedding)
	}
	return vectors
}

func TestEmbeddings(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/embeddings"
	one := embeddings(t, url, question)[0]
	list := embeddings(t, url, []string{question, "water comes down the pipe", "quarterly figures, as promised"})
	ids := embeddings(t, url, [][]uint32{appendTokens(nil, question)})[0]
	length := 0.0
	for i, v := range one {
		length += float64(v) * float64(v)
		if v != list[0][i] || v != ids[i] {
			t.Fatalf("coordinate %d: %v, %v, %v", i, v, list[0][i], ids[i])
		}
	}
	if len(one) != 768 || math.Abs(length-1) > 1e-5 {
		t.Errorf("%d dimensions, length %v", len(one), length)
	}
	if near, far := similarity(one, list[1]), similarity(one, list[2]); near <= far {
		t.Errorf("words in common: %v, none: %v", near, far)
	}

	packed := object(t, url, map[string]any{"input": question, "encoding_format": "base64", "dimensions": 8}, 200)
	raw, err := base64.StdEncoding.DecodeString(at(packed, "data", 0, "embedding").(string))
	if err != nil || len(raw) != 32 {
		t.Fatalf("base64: %v", packed)
	}
	want := embed(0, appendTokens(nil, question), 8)
	for i, v := range want {
		if got := math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:])); got != v {
			t.Errorf("coordinate %d: %v, want %v", i, got, v)
		}
	}
	if s := n.Server.Stats(); s.GenerationTokens != 0 || s.PromptTokens == 0 {
		t.Errorf("embeddings were generated: %+v", s)
	}
	for what, q := range map[string]map[string]any{
		"input":           {},
		"input 1":         {"input": []string{"x", ""}},
		"dimensions":      {"input": "x", "dimensions": 769},
		"encoding_format": {"input": "x", "encoding_format": "stone"},
		"4096 tokens":     {"input": strings.Repeat("word ", 5000)},
	} {
		if got := object(t, url, q, 400); !strings.Contains(at(got, "error", "message").(string), what) {
			t.Errorf("%s: %v", what, got)
		}
	}
}

func TestAnEmbeddingTakesTheTimeOfItsPrefill(t *testing.T) {
	o := Options{Speedup: 10}
	n := listen(t, o)
	object(t, n.URL()+"/v1/embeddings", map[string]any{"input": strings.Repeat("word ", 3000)}, 200)
	s := n.Server.Stats()
	if s.Steps != 1 || s.Busy.Seconds()*10 < 0.1 {
		t.Errorf("%d steps, %v", s.Steps, s.Busy)
	}
}

func TestRerankAndScore(t *testing.T) {
	n := listen(t, fast)
	documents := []any{"quarterly figures", map[string]any{"text": "the water comes down the pipe"}, "nothing at all"}
	for _, path := range []string{"/rerank", "/v1/rerank", "/v2/rerank"} {
		got := object(t, n.URL()+path, map[string]any{"query": question, "documents": documents, "top_n": 2}, 200)
		results, _ := got["results"].([]any)
		if len(results) != 2 || at(results, 0, "index") != 1.0 || at(results, 0, "document", "text") != "the water comes down the pipe" ||
			at(results, 0, "relevance_score").(float64) <= at(results, 1, "relevance_score").(float64) || at(got, "usage", "prompt_tokens") == 0.0 {
			t.Errorf("%s: %v", path, got)
		}
	}
	for _, path := range []string{"/score", "/v1/score"} {
		got := object(t, n.URL()+path, map[string]any{"text_1": question, "text_2": []string{question, "nothing at all"}}, 200)
		if same := at(got, "data", 0, "score").(float64); same < 0.999 || at(got, "data", 1, "score").(float64) >= same || at(got, "data", 1, "object") != "score" {
			t.Errorf("%s: %v", path, got)
		}
	}
	object(t, n.URL()+"/score", map[string]any{"text_1": []string{"a", "b"}, "text_2": []string{"a", "b", "c"}}, 400)
	object(t, n.URL()+"/rerank", map[string]any{"query": "x"}, 400)
}
