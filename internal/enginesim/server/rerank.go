package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
)

// texts is one or several texts, each a string or an object with one.
type texts []string

// UnmarshalJSON takes null, a string, a list of strings, or a list of objects that
// have a text.
func (t *texts) UnmarshalJSON(raw []byte) error {
	var one string
	if string(raw) == "null" {
		return nil
	}
	if json.Unmarshal(raw, &one) == nil {
		*t = texts{one}
		return nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return errors.New("must be a string or a list of texts")
	}
	*t = nil
	for _, item := range list {
		var document struct{ Text string }
		if json.Unmarshal(item, &one) == nil {
			document.Text = one
		} else if err := json.Unmarshal(item, &document); err != nil {
			return errors.New("must be a string or a list of texts")
		}
		*t = append(*t, document.Text)
	}
	return nil
}

// compare computes how much each pair of texts has in common. A pair is one
// prompt, as a cross-encoder reads it.
func (s *Server) compare(r *http.Request, adapter string, pairs [][2]string) ([]float64, tally, error) {
	list := make([][]uint32, len(pairs))
	scores := make([]float64, len(pairs))
	const dimensions = 256
	for i, p := range pairs {
		a, b := appendTokens(nil, p[0]), appendTokens(nil, p[1])
		scores[i] = similarity(embed(s.options.Seed, a, dimensions), embed(s.options.Seed, b, dimensions))
		list[i] = append(append(append(list[i], a...), tokenEnd), b...)
	}
	t, err := s.prefill(r, adapter, list)
	return scores, t, err
}

// ranked is one document of a rerank's answer.
type ranked struct {
	Index    int `json:"index"`
	Document struct {
		Text string `json:"text"`
	} `json:"document"`
	Score float64 `json:"relevance_score"`
}

// rerank handles POST /rerank, /v1/rerank and /v2/rerank.
func (s *Server) rerank(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Model     string `json:"model"`
		Query     string `json:"query"`
		Documents texts  `json:"documents"`
		TopN      int    `json:"top_n"`
	}
	err := readJSON(r, &q)
	var m served
	if err == nil {
		m, err = s.find(q.Model, "")
	}
	if err == nil && (q.Query == "" || len(q.Documents) == 0) {
		err = badRequest("documents", "query and documents: must be given")
	}
	var scores []float64
	var t tally
	if err == nil {
		pairs := make([][2]string, len(q.Documents))
		for i, d := range q.Documents {
			pairs[i] = [2]string{q.Query, d}
		}
		scores, t, err = s.compare(r, m.adapter, pairs)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	results := make([]ranked, len(scores))
	for i, score := range scores {
		results[i].Index, results[i].Score, results[i].Document.Text = i, score, q.Documents[i]
	}
	slices.SortStableFunc(results, func(a, b ranked) int {
		switch {
		case a.Score > b.Score:
			return -1
		case a.Score < b.Score:
			return 1
		}
		return 0
	})
	if q.TopN > 0 && q.TopN < len(results) {
		results = results[:q.TopN]
	}
	if s.options.Engine == SGLang {
		writeSGLangRanks(w, results, t)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"id": "rerank-" + requestID(r), "model": m.name, "results": results, "usage": inputUsage{t.prompt, t.prompt},
	})
}

// writeSGLangRanks answers as SGLang does: with the list itself.
func writeSGLangRanks(w http.ResponseWriter, results []ranked, t tally) {
	type document struct {
		Score    float64        `json:"score"`
		Document string         `json:"document"`
		Index    int            `json:"index"`
		Meta     map[string]int `json:"meta_info"`
	}
	list := make([]document, len(results))
	for i, d := range results {
		list[i] = document{d.Score, d.Document.Text, d.Index, map[string]int{"prompt_tokens": t.prompt}}
	}
	writeJSON(w, http.StatusOK, list)
}

// score handles POST /score and /v1/score: one text against several, or
// several in pairs.
func (s *Server) score(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Model     string `json:"model"`
		Text1     texts  `json:"text_1"`
		Text2     texts  `json:"text_2"`
		Queries   texts  `json:"queries"`
		Documents texts  `json:"documents"`
	}
	err := readJSON(r, &q)
	var m served
	if err == nil {
		m, err = s.find(q.Model, "")
	}
	left, right := append(q.Text1, q.Queries...), append(q.Text2, q.Documents...)
	if err == nil && (len(left) == 0 || len(right) == 0 || len(left) != 1 && len(left) != len(right)) {
		err = badRequest("text_1", "text_1 and text_2: must be one text against one or more, or lists of one length")
	}
	var scores []float64
	var t tally
	if err == nil {
		pairs := make([][2]string, len(right))
		for i := range right {
			pairs[i] = [2]string{left[min(i, len(left)-1)], right[i]}
		}
		scores, t, err = s.compare(r, m.adapter, pairs)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	type scored struct {
		Index  int     `json:"index"`
		Object string  `json:"object"`
		Score  float64 `json:"score"`
	}
	data := make([]scored, len(scores))
	for i, v := range scores {
		data[i] = scored{i, "score", v}
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"id": "score-" + requestID(r), "object": "list", "created": unixNow(), "model": m.name,
		"data": data, "usage": inputUsage{t.prompt, t.prompt},
	})
}
