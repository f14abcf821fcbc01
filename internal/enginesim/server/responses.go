package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// responsesRequest is a request of OpenAI's responses API.
type responsesRequest struct {
	Model           string               `json:"model"`
	Input           json.RawMessage      `json:"input"`
	Instructions    *string              `json:"instructions"`
	MaxOutputTokens *int                 `json:"max_output_tokens"`
	Stream          bool                 `json:"stream"`
	KV              *kvParams            `json:"kv_transfer_params"`
	Encoded         map[string]encodedAt `json:"ec_transfer_params"`
	Background      bool                 `json:"background"`
	Store           *bool                `json:"store"` // nil: yes
	Previous        *string              `json:"previous_response_id"`
	Tools           json.RawMessage      `json:"tools"`
	ToolChoice      json.RawMessage      `json:"tool_choice"`
	Metadata        json.RawMessage      `json:"metadata"`
	Temperature     *float64             `json:"temperature"`
	TopP            *float64             `json:"top_p"`
	CacheSalt       string               `json:"cache_salt"`
	IgnoreEOS       bool                 `json:"ignore_eos"`
	Text            struct {
		Format struct {
			Type   string `json:"type"`
			Schema any    `json:"schema"`
		} `json:"format"`
	} `json:"text"`
}

func (q *responsesRequest) stored() bool { return q.Store == nil || *q.Store }

// item is one piece of the input.
type item struct {
	Type      string          `json:"type"`
	Role      string          `json:"role"`
	Content   json.RawMessage `json:"content"`
	CallID    string          `json:"call_id"`
	Name      string          `json:"name"`
	Arguments string          `json:"arguments"`
	Output    json.RawMessage `json:"output"`
}

// chat turns q into a chat request, after the conversation so far. The new
// messages, without instructions, are what the next turn goes on from.
func (q *responsesRequest) chat(before []message) (c *wireRequest, turns []message, err error) {
	c = &wireRequest{Model: q.Model, MaxTokens: q.MaxOutputTokens, CacheSalt: q.CacheSalt, IgnoreEOS: q.IgnoreEOS}
	c.KV, c.Encoded = q.KV, q.Encoded
	if turns, err = q.turns(before); err != nil {
		return nil, nil, err
	}
	if q.Instructions != nil {
		c.Messages = append(c.Messages, message{Role: "system", Content: quote(*q.Instructions)})
	}
	c.Messages = append(c.Messages, turns...)
	c.ResponseFormat.Type, c.ResponseFormat.JSONSchema.Schema = q.Text.Format.Type, q.Text.Format.Schema
	return c, turns, q.setTools(c)
}

// turns returns the conversation before and the input.
func (q *responsesRequest) turns(before []message) ([]message, error) {
	var text string
	turns := append([]message(nil), before...)
	if !given(q.Input) {
		return nil, badRequest("input", "input: must be given")
	}
	if json.Unmarshal(q.Input, &text) == nil {
		return append(turns, message{Role: "user", Content: quote(text)}), nil
	}
	var items []item
	if err := json.Unmarshal(q.Input, &items); err != nil {
		return nil, badRequest("input", "input: must be a string or a list of items")
	}
	for i, it := range items {
		switch it.Type {
		case "", "message":
			content, err := chatContent(it.Content)
			if err != nil {
				return nil, badRequest("input", "input[%d].content: %v", i, err)
			}
			turns = append(turns, message{Role: it.Role, Content: content})
		case "function_call":
			turns = append(turns, message{Role: "assistant", ToolCalls: appendJSON(nil, []any{callOf(it.CallID, it.Name, it.Arguments)})})
		case "function_call_output":
			turns = append(turns, message{Role: "tool", Content: it.Output})
		case "reasoning":
			// Earlier thoughts are not shown to the model again.
		default:
			return nil, badRequest("input", "input[%d]: type %q is not known", i, it.Type)
		}
	}
	return turns, nil
}

// chatContent turns an item's content into that of a chat message.
func chatContent(raw json.RawMessage) (json.RawMessage, error) {
	if !given(raw) || raw[0] != '[' {
		return raw, nil
	}
	var parts []struct {
		Type, Text string
		ImageURL   string `json:"image_url"`
	}
	if err := json.Unmarshal(raw, &parts); err != nil {
		return nil, err
	}
	var out []any
	for _, p := range parts {
		switch p.Type {
		case "input_text", "output_text", "text":
			out = append(out, map[string]any{"type": "text", "text": p.Text})
		case "input_image":
			out = append(out, map[string]any{"type": "image_url", "image_url": map[string]any{"url": p.ImageURL}})
		default:
			return nil, fmt.Errorf("a part of type %q is not known", p.Type)
		}
	}
	return appendJSON(nil, out), nil
}

// setTools translates functions, which this API writes without a level that
// chat's has. Tools that the provider would run itself are left out.
func (q *responsesRequest) setTools(c *wireRequest) error {
	var list []struct {
		Type, Name, Description string
		Parameters              any
	}
	if given(q.Tools) {
		if err := json.Unmarshal(q.Tools, &list); err != nil {
			return badRequest("tools", "tools: %v", err)
		}
	}
	var tools []any
	for _, t := range list {
		if t.Type == "function" {
			tools = append(tools, functionTool(t.Name, t.Description, t.Parameters))
		}
	}
	if len(tools) > 0 {
		c.Tools = appendJSON(nil, tools)
	}
	var named struct{ Name string }
	if c.ToolChoice = q.ToolChoice; given(q.ToolChoice) && json.Unmarshal(q.ToolChoice, &named) == nil {
		c.ToolChoice = functionChoice(named.Name)
	}
	return nil
}

// createResponse handles POST /v1/responses.
func (s *Server) createResponse(w http.ResponseWriter, r *http.Request) {
	var q responsesRequest
	p, err := s.newResponse(r, &q)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	switch {
	case q.Background:
		s.answerLater(w, r, p)
		return
	case q.Stream:
		defer p.close()
		p.stream(w, r, p)
	default:
		defer p.close()
		p.whole(w, r, p.body)
	}
}

func (s *Server) newResponse(r *http.Request, q *responsesRequest) (*responseReply, error) {
	if err := readJSON(r, q); err != nil {
		return nil, err
	}
	if q.Background && (q.Stream || !q.stored()) {
		return nil, badRequest("background", "background: needs `store`, and cannot be streamed by this engine")
	}
	var before []message
	if q.Previous != nil {
		stored := s.responses.find(*q.Previous)
		if stored == nil {
			return nil, noResponse(*q.Previous)
		}
		if before = stored.conversation(); len(before) == 0 {
			return nil, badRequest("previous_response_id", "previous_response_id: %s has not been completed", *q.Previous)
		}
	}
	c, turns, err := q.chat(before)
	if err != nil {
		return nil, err
	}
	choices, model, err := s.plan(c, true)
	if err != nil {
		return nil, err
	}
	id := requestID(r)
	p := &responseReply{query: q, id: "resp_" + id, item: "msg_" + id, created: unixNow(), turns: turns}
	if choices[0].answer.tool != "" {
		p.item = "fc_" + id
	}
	p.model = model
	if p.generation, err = s.begin(r.Context(), p.id, choices); err != nil {
		return nil, err
	}
	if q.stored() {
		p.record = &storedResponse{call: p.call, over: make(chan struct{})}
		p.save("in_progress")
		s.responses.add(p.id, p.record)
	}
	return p, nil
}

// answerLater answers that a response is queued and makes it behind the
// client's back.
func (s *Server) answerLater(w http.ResponseWriter, r *http.Request, p *responseReply) {
	queued := appendJSON(nil, p.object("queued"))
	ctx := context.WithoutCancel(r.Context())
	started := s.later(func() {
		defer p.close()
		if p.await(ctx) == nil {
			p.body()
		}
	})
	if !started {
		p.close()
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(queued)
}

func noResponse(id string) error {
	return &apiError{http.StatusNotFound, fmt.Sprintf("Response with id '%s' not found.", id), "response_id"}
}

// showResponse handles GET /v1/responses/{id}.
func (s *Server) showResponse(w http.ResponseWriter, r *http.Request) {
	stored := s.responses.find(r.PathValue("id"))
	if stored == nil {
		s.fail(w, r, noResponse(r.PathValue("id")))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(stored.show())
}

// cancelResponse handles POST /v1/responses/{id}/cancel. It answers with what
// the response has become.
func (s *Server) cancelResponse(w http.ResponseWriter, r *http.Request) {
	stored := s.responses.find(r.PathValue("id"))
	if stored == nil {
		s.fail(w, r, noResponse(r.PathValue("id")))
		return
	}
	if !s.abort(stored.call) {
		s.fail(w, r, badRequest("response_id", "Cannot cancel a synchronous response."))
		return
	}
	select {
	case <-stored.over:
	case <-r.Context().Done():
		return
	case <-s.closed:
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(stored.show())
}
