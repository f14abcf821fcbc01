package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// messagesRequest is a request of Anthropic's API.
type messagesRequest struct {
	Model         string               `json:"model"`
	Messages      []anthropicMessage   `json:"messages"`
	System        json.RawMessage      `json:"system"`
	MaxTokens     *int                 `json:"max_tokens"`
	StopSequences []string             `json:"stop_sequences"`
	Stream        bool                 `json:"stream"`
	KV            *kvParams            `json:"kv_transfer_params"`
	Encoded       map[string]encodedAt `json:"ec_transfer_params"`
	Tools         []struct {
		Name        string `json:"name"`
		Description string `json:"description,omitempty"`
		InputSchema any    `json:"input_schema"`
	} `json:"tools"`
	ToolChoice struct{ Type, Name string } `json:"tool_choice"`
}

type anthropicMessage struct {
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
}

// block is one piece of content.
type block struct {
	Type   string          `json:"type"`
	Text   string          `json:"text"`
	ID     string          `json:"id"`          // tool_use
	Name   string          `json:"name"`        // tool_use
	Input  json.RawMessage `json:"input"`       // tool_use
	Use    string          `json:"tool_use_id"` // tool_result
	Result json.RawMessage `json:"content"`     // tool_result
	Source struct {
		Type, URL, Data string
		MediaType       string `json:"media_type"`
	} `json:"source"` // image
}

// blocks reads content that is a string or a list of blocks.
func blocks(raw json.RawMessage) ([]block, error) {
	if !given(raw) {
		return nil, nil
	}
	var list []block
	if raw[0] == '[' {
		return list, json.Unmarshal(raw, &list)
	}
	var text string
	if json.Unmarshal(raw, &text) != nil {
		return nil, errors.New("must be a string or a list of blocks")
	}
	return []block{{Type: "text", Text: text}}, nil
}

// textOf joins the texts of blocks.
func textOf(list []block) string {
	var text strings.Builder
	for _, b := range list {
		text.WriteString(b.Text)
	}
	return text.String()
}

// chat turns q into the chat request that vLLM makes of it.
func (q *messagesRequest) chat() (*wireRequest, error) {
	if len(q.Messages) == 0 {
		return nil, badRequest("messages", "messages must contain at least one item")
	}
	c := &wireRequest{Model: q.Model, MaxTokens: q.MaxTokens, Stop: q.StopSequences, Stream: q.Stream}
	c.KV, c.Encoded = q.KV, q.Encoded
	system, err := blocks(q.System)
	if err != nil {
		return nil, badRequest("system", "system: %v", err)
	}
	if len(system) > 0 {
		c.Messages = append(c.Messages, message{Role: "system", Content: quote(textOf(system))})
	}
	for i, m := range q.Messages {
		if m.Role != "user" && m.Role != "assistant" {
			return nil, badRequest("messages", "messages.%d.role: must be user or assistant, not %q", i, m.Role)
		}
		list, err := blocks(m.Content)
		if err == nil {
			err = c.addBlocks(m.Role, list)
		}
		if err != nil {
			return nil, badRequest("messages", "messages.%d.content: %v", i, err)
		}
	}
	return c, q.setTools(c)
}

// addBlocks appends one message to the conversation; the results of tools are
// messages of their own before it.
func (q *wireRequest) addBlocks(role string, list []block) error {
	if len(list) == 0 {
		return errors.New("must not be empty")
	}
	var parts, calls []any
	for _, b := range list {
		switch b.Type {
		case "text":
			parts = append(parts, map[string]any{"type": "text", "text": b.Text})
		case "image":
			url := b.Source.URL
			if b.Source.Type == "base64" {
				url = "data:" + b.Source.MediaType + ";base64," + b.Source.Data
			}
			parts = append(parts, map[string]any{"type": "image_url", "image_url": map[string]any{"url": url}})
		case "tool_use":
			calls = append(calls, callOf(b.ID, b.Name, string(b.Input)))
		case "tool_result":
			result, err := blocks(b.Result)
			if err != nil {
				return fmt.Errorf("tool_result: %w", err)
			}
			q.Messages = append(q.Messages, message{Role: "tool", Content: quote(textOf(result))})
		case "thinking", "redacted_thinking":
			// Earlier thoughts are not shown to the model again.
		default:
			return fmt.Errorf("a block of type %q is not known", b.Type)
		}
	}
	m := message{Role: role}
	if len(parts) > 0 {
		m.Content = appendJSON(nil, parts)
	}
	if len(calls) > 0 {
		m.ToolCalls = appendJSON(nil, calls)
	}
	if len(parts)+len(calls) > 0 {
		q.Messages = append(q.Messages, m)
	}
	return nil
}

// callOf is a tool call as OpenAI's messages have it.
func callOf(id, name, arguments string) any {
	return map[string]any{"id": id, "type": "function", "function": map[string]any{"name": name, "arguments": arguments}}
}

// functionTool is a tool as OpenAI's chat API has it.
func functionTool(name, description string, parameters any) any {
	return map[string]any{"type": "function", "function": map[string]any{"name": name, "description": description, "parameters": parameters}}
}

// functionChoice names the one tool to call.
func functionChoice(name string) json.RawMessage {
	return appendJSON(nil, map[string]any{"type": "function", "function": map[string]any{"name": name}})
}

func (q *messagesRequest) setTools(c *wireRequest) error {
	var tools []any
	for _, t := range q.Tools {
		tools = append(tools, functionTool(t.Name, t.Description, t.InputSchema))
	}
	if len(tools) > 0 {
		c.Tools = appendJSON(nil, tools)
	}
	switch q.ToolChoice.Type {
	case "", "auto", "none":
	case "any":
		c.ToolChoice = quote("required")
	case "tool":
		if q.ToolChoice.Name == "" {
			return badRequest("tool_choice", "tool_choice.name is required when tool_choice.type is 'tool'")
		}
		c.ToolChoice = functionChoice(q.ToolChoice.Name)
	default:
		return badRequest("tool_choice", "tool_choice.type: %q is not known", q.ToolChoice.Type)
	}
	return nil
}

// createMessage handles POST /v1/messages.
func (s *Server) createMessage(w http.ResponseWriter, r *http.Request) {
	var q messagesRequest
	p, err := s.newMessage(r, &q)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer p.release()
	if q.Stream {
		p.stream(w, r, p)
	} else {
		p.whole(w, r, p.body)
	}
}

func (s *Server) newMessage(r *http.Request, q *messagesRequest) (*messageReply, error) {
	if err := readJSON(r, q); err != nil {
		return nil, err
	}
	if q.MaxTokens == nil {
		return nil, badRequest("max_tokens", "max_tokens: field required")
	}
	c, err := q.chat()
	if err != nil {
		return nil, err
	}
	choices, model, err := s.plan(c, true)
	if err != nil {
		return nil, err
	}
	id := requestID(r)
	g, err := s.begin(r.Context(), id, choices)
	return &messageReply{generation: g, id: id, model: model}, err
}

// countMessageTokens handles POST /v1/messages/count_tokens: what input_tokens
// of the answer would be.
func (s *Server) countMessageTokens(w http.ResponseWriter, r *http.Request) {
	var q messagesRequest
	err := readJSON(r, &q)
	if err == nil {
		err = s.checkModel(q.Model)
	}
	var tokens []uint32
	if err == nil {
		var c *wireRequest
		if c, err = q.chat(); err == nil {
			tokens, err = appendChat(nil, c.Messages, c.Tools)
		}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"input_tokens":       len(tokens),
		"context_management": map[string]int{"original_input_tokens": len(tokens)},
	})
}

// anthropicKinds are the error types of Anthropic's API.
var anthropicKinds = map[int]string{
	http.StatusBadRequest:            "invalid_request_error",
	http.StatusUnauthorized:          "authentication_error",
	http.StatusForbidden:             "permission_error",
	http.StatusNotFound:              "not_found_error",
	http.StatusMethodNotAllowed:      "invalid_request_error",
	http.StatusRequestEntityTooLarge: "request_too_large",
	http.StatusTooManyRequests:       "rate_limit_error",
	http.StatusServiceUnavailable:    "overloaded_error",
}

func writeAnthropicError(w http.ResponseWriter, e *apiError) {
	kind := anthropicKinds[e.status]
	if kind == "" {
		kind = "api_error"
	}
	writeJSON(w, e.status, map[string]any{"type": "error", "error": map[string]string{"type": kind, "message": e.message}})
}
