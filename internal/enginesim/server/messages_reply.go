package server

import "encoding/json"

// messageReply is the answer to a messages request, in the making. As in vLLM,
// input_tokens counts the whole prompt, whatever the cache held of it.
type messageReply struct {
	*generation
	id, model string
}

// contentBlock is a block of an answer.
type contentBlock struct {
	Type  string          `json:"type"`
	Text  *string         `json:"text,omitempty"`
	ID    string          `json:"id,omitempty"`
	Name  string          `json:"name,omitempty"`
	Input json.RawMessage `json:"input,omitempty"`
}

// blockOf is the only block of the answer. Arguments that the token limit cut
// short are shown as they are, which is no JSON and so stands in a string.
func (p *messageReply) blockOf(text string) contentBlock {
	tool := p.choices[0].answer.tool
	if tool == "" {
		return contentBlock{Type: "text", Text: &text}
	}
	input := json.RawMessage(text)
	if !json.Valid(input) {
		input = quote(text)
	}
	return contentBlock{Type: "tool_use", ID: p.toolID(), Name: tool, Input: input}
}

func (p *messageReply) toolID() string { return "toolu_" + p.id }

// stopReason says why the answer ended, and the stop sequence if one did.
func (p *messageReply) stopReason() (reason string, sequence *string) {
	switch p.reason(0) {
	case "length":
		return "max_tokens", nil
	case "tool_calls":
		return "tool_use", nil
	}
	if stop := &p.choices[0].answer.stop; *stop != "" {
		return "stop_sequence", stop
	}
	return "end_turn", nil
}

type anthropicUsage struct {
	Input  int `json:"input_tokens"`
	Output int `json:"output_tokens"`
}

func (p *messageReply) usage() anthropicUsage {
	t := p.tally()
	return anthropicUsage{t.prompt, t.out}
}

// anthropicAnswer is a whole message, or the beginning of a streamed one.
type anthropicAnswer struct {
	ID           string         `json:"id"`
	Type         string         `json:"type"`
	Role         string         `json:"role"`
	Content      []contentBlock `json:"content"`
	Model        string         `json:"model"`
	StopReason   *string        `json:"stop_reason"`
	StopSequence *string        `json:"stop_sequence"`
	Usage        anthropicUsage `json:"usage"`
}

func (p *messageReply) answer(content []contentBlock) anthropicAnswer {
	return anthropicAnswer{ID: "msg_" + p.id, Type: "message", Role: "assistant", Content: content, Model: p.model, Usage: p.usage()}
}

func (p *messageReply) body() []byte {
	a := p.answer([]contentBlock{p.blockOf(p.text(0))})
	reason, sequence := p.stopReason()
	a.StopReason, a.StopSequence = &reason, sequence
	b := appendJSON(nil, a)
	return append(p.appendNext(b[:len(b)-1]), '}')
}

// appendEvent writes a named event.
func appendEvent(b []byte, name string, data any) []byte {
	b = append(b, "event: "...)
	b = append(b, name...)
	b = append(b, "\ndata: "...)
	b = appendJSON(b, data)
	return append(b, "\n\n"...)
}

func (p *messageReply) open(b []byte) []byte { return b }

// role begins the message and its content. The first event waits for the first
// token, as in vLLM, which makes these streams out of those of chat.
func (p *messageReply) role(b []byte, _ int) []byte {
	b = appendEvent(b, "message_start", map[string]any{"type": "message_start", "message": p.answer([]contentBlock{})})
	start := any(p.blockOf(""))
	if tool := p.choices[0].answer.tool; tool != "" {
		start = contentBlock{Type: "tool_use", ID: p.toolID(), Name: tool, Input: json.RawMessage("{}")}
	}
	b = appendEvent(b, "content_block_start", map[string]any{"type": "content_block_start", "index": 0, "content_block": start})
	return appendEvent(b, "ping", map[string]string{"type": "ping"})
}

func (p *messageReply) token(b []byte, i, n int) []byte {
	return p.delta(b, escape(p.choices[i].answer.delta(n)))
}

func (p *messageReply) specimen(b []byte, _ int) []byte { return p.delta(b, "cut") }

func (p *messageReply) delta(b []byte, text string) []byte {
	if text == "" {
		return b
	}
	b = append(b, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":"...)
	if p.choices[0].answer.tool == "" {
		b = append(b, `"text_delta","text":"`...)
	} else {
		b = append(b, `"input_json_delta","partial_json":"`...)
	}
	b = append(b, text...)
	return append(b, "\"}}\n\n"...)
}

func (p *messageReply) finish(b []byte, _ int) []byte {
	b = appendEvent(b, "content_block_stop", map[string]any{"type": "content_block_stop", "index": 0})
	reason, sequence := p.stopReason()
	return appendEvent(b, "message_delta", map[string]any{
		"type":  "message_delta",
		"delta": map[string]any{"stop_reason": reason, "stop_sequence": sequence},
		"usage": p.usage(),
	})
}

func (p *messageReply) end(b []byte) []byte {
	return appendEvent(b, "message_stop", map[string]string{"type": "message_stop"})
}
