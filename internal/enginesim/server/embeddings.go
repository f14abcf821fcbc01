package server

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"net/http"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/stat"
)

// prefill computes prompts without generating anything, and waits until the
// engine has done so. The result is for counting only.
func (s *Server) prefill(r *http.Request, adapter string, list [][]uint32) (tally, error) {
	choices := make([]choice, len(list))
	for i, tokens := range list {
		switch {
		case len(tokens) == 0:
			return tally{}, badRequest("input", "input %d: must hold at least one token", i)
		case len(tokens) > int(s.options.MaxModelLen):
			return tally{}, badRequest("input", "This model's maximum context length is %d tokens. However, your request has %d input tokens. Please reduce the length of the input.",
				s.options.MaxModelLen, len(tokens))
		}
		chain, _ := enginesim.Chain(nil, startOf(adapter, ""), tokens)
		choices[i] = choice{prompt: len(tokens), adapter: adapter, pool: true, tokens: tokens, answer: answer{chain: chain, finish: enginesim.FinishStop}}
	}
	g, err := s.begin(r.Context(), requestID(r), choices)
	if err != nil {
		return tally{}, err
	}
	defer g.release()
	if err := g.await(r.Context()); err != nil {
		panic(http.ErrAbortHandler) // the only way to break off without an answer
	}
	return g.tally(), nil
}

// embed returns a vector of length 1 that depends on the tokens, on the seed
// and, a little, on their order. Each token adds to a few coordinates of its
// own (feature hashing: Weinberger et al., 2009), so that texts with words in
// common lie close together.
func embed(seed uint64, tokens []uint32, dimensions int) []float32 {
	const features = 16
	sum := make([]float64, dimensions)
	c := enginesim.NewContext("embedding")
	for _, token := range tokens {
		c = c.Add(token)
		draw := stat.Mix64(seed ^ uint64(token)*0x9e3779b97f4a7c15)
		for range features {
			draw = stat.Mix64(draw)
			sum[(draw>>1)%uint64(dimensions)] += float64(draw&1)*2 - 1
		}
	}
	draw := c.Draw(seed)
	for i := range sum { // no vector is zero, and no two texts have the same
		draw = stat.Mix64(draw)
		sum[i] += float64(draw%2048)/1024 - 1
	}
	norm := 0.0
	for _, v := range sum {
		norm += v * v
	}
	norm = math.Sqrt(norm)
	vector := make([]float32, dimensions)
	for i, v := range sum {
		vector[i] = float32(v / norm)
	}
	return vector
}

// similarity is the cosine of two vectors of length 1, moved to 0 to 1.
func similarity(a, b []float32) float64 {
	dot := 0.0
	for i := range a {
		dot += float64(a[i]) * float64(b[i])
	}
	return min(1, max(0, (dot+1)/2))
}

// vector is an embedding as JSON shows it: numbers, or base64 of little-endian
// float32.
type vector struct {
	values []float32
	packed bool
}

// MarshalJSON writes either form.
func (v vector) MarshalJSON() ([]byte, error) {
	if !v.packed {
		return json.Marshal(v.values)
	}
	b := make([]byte, 0, 4*len(v.values))
	for _, f := range v.values {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
	}
	return json.Marshal(base64.StdEncoding.EncodeToString(b))
}

// inputUsage is the usage of what generates nothing.
type inputUsage struct {
	Prompt int `json:"prompt_tokens"`
	Total  int `json:"total_tokens"`
}

// createEmbeddings handles POST /v1/embeddings.
func (s *Server) createEmbeddings(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Model      string    `json:"model"`
		Input      prompts   `json:"input"`
		Messages   []message `json:"messages"`
		Format     string    `json:"encoding_format"`
		Dimensions *int      `json:"dimensions"`
	}
	err := readJSON(r, &q)
	var m served
	if err == nil {
		m, err = s.find(q.Model, "")
	}
	dimensions := s.dimensions()
	switch {
	case err != nil:
	case q.Format != "" && q.Format != "float" && q.Format != "base64":
		err = badRequest("encoding_format", "encoding_format: %q is not known", q.Format)
	case q.Dimensions != nil && (*q.Dimensions < 1 || *q.Dimensions > dimensions):
		err = badRequest("dimensions", "dimensions: must be 1 to %d, got %d", dimensions, *q.Dimensions)
	case q.Dimensions != nil:
		dimensions = *q.Dimensions
	}
	if err == nil && len(q.Messages) > 0 {
		q.Input = make(prompts, 1)
		q.Input[0], err = appendChat(nil, q.Messages, nil)
	}
	if err == nil && len(q.Input) == 0 {
		err = badRequest("input", "input: must be given")
	}
	var t tally
	if err == nil {
		t, err = s.prefill(r, m.adapter, q.Input)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	type embedding struct {
		Object    string `json:"object"`
		Index     int    `json:"index"`
		Embedding vector `json:"embedding"`
	}
	data := make([]embedding, len(q.Input))
	for i, tokens := range q.Input {
		data[i] = embedding{"embedding", i, vector{embed(s.options.Seed, tokens, dimensions), q.Format == "base64"}}
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"id": "embd-" + requestID(r), "object": "list", "created": unixNow(), "model": m.name,
		"data": data, "usage": inputUsage{t.prompt, t.prompt},
	})
}

// dimensions is the length of an embedding: what the model has inside.
func (s *Server) dimensions() int {
	spec, err := s.options.serving()
	if err != nil {
		panic(err) // New has looked
	}
	return spec.Shape.Hidden
}
