package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// nativeRequest is a request of SGLang's own API.
type nativeRequest struct {
	Text     texts   `json:"text"`
	InputIDs prompts `json:"input_ids"`
	RID      string  `json:"rid"`
	LoRAPath string  `json:"lora_path"`
	Stream   bool    `json:"stream"`
	Sampling struct {
		MaxNewTokens *int   `json:"max_new_tokens"`
		MinNewTokens int    `json:"min_new_tokens"`
		N            *int   `json:"n"`
		Stop         stops  `json:"stop"`
		NoStopTrim   bool   `json:"no_stop_trim"`
		IgnoreEOS    bool   `json:"ignore_eos"`
		Seed         *int64 `json:"sampling_seed"`
		JSONSchema   string `json:"json_schema"`
	} `json:"sampling_params"`

	roomParams

	batch bool // the answer is a list
}

// UnmarshalJSON also notes whether several prompts were given, even if the list
// has one.
func (q *nativeRequest) UnmarshalJSON(raw []byte) error {
	type plain nativeRequest
	if err := json.Unmarshal(raw, (*plain)(q)); err != nil {
		return err
	}
	var shape struct {
		Text     json.RawMessage   `json:"text"`
		InputIDs []json.RawMessage `json:"input_ids"`
	}
	if err := json.Unmarshal(raw, &shape); err != nil {
		return err
	}
	q.batch = len(shape.Text) > 0 && shape.Text[0] == '[' || len(shape.InputIDs) > 0 && shape.InputIDs[0][0] == '['
	return nil
}

// completion turns q into a completion request.
func (q *nativeRequest) completion() (*wireRequest, error) {
	p := q.Sampling
	c := &wireRequest{
		Prompt: q.InputIDs, LoRAPath: q.LoRAPath, MaxTokens: p.MaxNewTokens, MinTokens: p.MinNewTokens, N: p.N,
		Stop: p.Stop, IncludeStop: p.NoStopTrim, IgnoreEOS: p.IgnoreEOS, Seed: p.Seed, fallback: 128,
	}
	c.roomParams = q.roomParams
	for _, text := range q.Text {
		c.Prompt = append(c.Prompt, appendTokens(nil, text))
	}
	if p.JSONSchema != "" {
		if err := json.Unmarshal([]byte(p.JSONSchema), &c.StructuredOutputs.JSON); err != nil {
			return nil, badRequest("json_schema", "json_schema: %v", err)
		}
	}
	return c, nil
}

// nativeReply is the answer to a native request, in the making.
type nativeReply struct {
	*generation
	id      string
	batch   bool
	ids     [][]uint32 // tokens of each choice's whole text
	started time.Time
}

// generateNative handles POST /generate.
func (s *Server) generateNative(w http.ResponseWriter, r *http.Request) {
	q := nativeRequest{}
	err := readJSON(r, &q)
	var c *wireRequest
	if err == nil {
		c, err = q.completion()
	}
	var choices []choice
	if err == nil {
		choices, _, err = s.plan(c, false)
	}
	fill(&q.RID, requestID(r))
	p := &nativeReply{id: q.RID, batch: q.batch || len(choices) > 1, started: time.Now()}
	if err == nil {
		p.generation, err = s.begin(r.Context(), q.RID, choices)
	}
	if err != nil {
		s.failBegun(w, r, err, q.Stream)
		return
	}
	defer p.release()
	for i := range choices {
		p.ids = append(p.ids, appendTokens(nil, choices[i].answer.text))
	}
	if q.Stream {
		p.stream(w, r, p)
	} else {
		p.whole(w, r, p.body)
	}
}

// nativeAnswer is an answer, whole or as far as it has come: SGLang repeats
// all of the text in each event.
type nativeAnswer struct {
	Text      string         `json:"text"`
	OutputIDs []uint32       `json:"output_ids"`
	Meta      map[string]any `json:"meta_info"`
	Index     *int           `json:"index,omitempty"` // in streams of several
}

// answer is choice i after n tokens, with a reason if it has ended.
func (p *nativeReply) answer(i, n int, over bool) nativeAnswer {
	ch := &p.choices[i]
	text := ""
	if n > 0 {
		text = ch.answer.text[:ch.answer.ends[n-1]]
	}
	id := p.id
	if len(p.choices) > 1 {
		id = fmt.Sprintf("%s_%d", p.id, i)
	}
	meta := map[string]any{
		"id": id, "finish_reason": nil, "prompt_tokens": ch.prompt, "completion_tokens": n,
		"cached_tokens": p.call.legs[i].cached.Load(), "weight_version": "default",
	}
	if over {
		meta["finish_reason"] = p.nativeReason(i, n)
		meta["e2e_latency"] = time.Since(p.started).Seconds()
	}
	return nativeAnswer{Text: text, OutputIDs: p.ids[i][:min(n, len(p.ids[i]))], Meta: meta}
}

func (p *nativeReply) nativeReason(i, n int) map[string]any {
	switch reason := p.reason(i); reason {
	case "length":
		return map[string]any{"type": "length", "length": n}
	case "abort":
		return map[string]any{"type": "abort", "message": "Aborted", "status_code": nil, "err_type": nil}
	}
	if stop := p.choices[i].answer.stop; stop != "" {
		return map[string]any{"type": "stop", "matched": stop}
	}
	return map[string]any{"type": "stop", "matched": json.RawMessage(eosToken)}
}

func (p *nativeReply) body() []byte {
	list := make([]nativeAnswer, len(p.choices))
	for i := range list {
		list[i] = p.answer(i, p.have(i), true)
	}
	if p.batch {
		return appendJSON(nil, list)
	}
	return appendJSON(nil, list[0])
}

func (p *nativeReply) event(b []byte, i, n int, over bool) []byte {
	a := p.answer(i, n, over)
	if p.batch {
		a.Index = &i
	}
	b = append(b, "data: "...)
	b = appendJSON(b, a)
	return append(b, "\n\n"...)
}

func (p *nativeReply) open(b []byte) []byte        { return b }
func (p *nativeReply) role(b []byte, _ int) []byte { return b }

// token leaves the last token to finish: SGLang's last event has both.
func (p *nativeReply) token(b []byte, i, n int) []byte {
	if n+1 == len(p.choices[i].answer.ends) {
		return b
	}
	return p.event(b, i, n+1, false)
}

func (p *nativeReply) specimen(b []byte, i int) []byte { return p.event(b, i, p.sent[i], false) }
func (p *nativeReply) finish(b []byte, i int) []byte   { return p.event(b, i, p.sent[i], true) }
func (p *nativeReply) end(b []byte) []byte             { return append(b, "data: [DONE]\n\n"...) }
