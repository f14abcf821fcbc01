package server

import (
	"encoding/json"
	"strconv"
	"time"
)

// responseReply is the answer to a responses request, in the making.
type responseReply struct {
	*generation
	query     *responsesRequest
	id, item  string
	model     string
	created   int64
	turns     []message // the conversation that is answered
	record    *storedResponse
	sequence  int // number of the next event
	completed bool
}

func unixNow() int64 { return time.Now().Unix() }

// responseObject is a response, whole or under way.
type responseObject struct {
	ID                string          `json:"id"`
	Object            string          `json:"object"`
	CreatedAt         int64           `json:"created_at"`
	Status            string          `json:"status"`
	Background        bool            `json:"background"`
	Error             *string         `json:"error"`
	IncompleteDetails map[string]any  `json:"incomplete_details"`
	Instructions      *string         `json:"instructions"`
	MaxOutputTokens   *int            `json:"max_output_tokens"`
	MaxToolCalls      *int            `json:"max_tool_calls"`
	Metadata          json.RawMessage `json:"metadata"`
	Model             string          `json:"model"`
	Output            []outputItem    `json:"output"`
	ParallelToolCalls bool            `json:"parallel_tool_calls"`
	Previous          *string         `json:"previous_response_id"`
	Reasoning         *string         `json:"reasoning"`
	ServiceTier       string          `json:"service_tier"`
	Store             bool            `json:"store"`
	Temperature       *float64        `json:"temperature"`
	Text              map[string]any  `json:"text"`
	ToolChoice        json.RawMessage `json:"tool_choice"`
	Tools             json.RawMessage `json:"tools"`
	TopP              *float64        `json:"top_p"`
	Truncation        string          `json:"truncation"`
	Usage             *responsesUsage `json:"usage"`
}

type responsesUsage struct {
	Input        int            `json:"input_tokens"`
	InputDetail  map[string]int `json:"input_tokens_details"`
	Output       int            `json:"output_tokens"`
	OutputDetail map[string]int `json:"output_tokens_details"`
	Total        int            `json:"total_tokens"`
}

// outputItem is a message, or the call of a function.
type outputItem struct {
	ID        string        `json:"id"`
	Type      string        `json:"type"`
	Status    string        `json:"status"`
	Role      string        `json:"role,omitempty"`
	Content   *[]outputPart `json:"content,omitempty"`
	CallID    string        `json:"call_id,omitempty"`
	Name      string        `json:"name,omitempty"`
	Arguments *string       `json:"arguments,omitempty"`
}

type outputPart struct {
	Type        string `json:"type"`
	Text        string `json:"text"`
	Annotations []any  `json:"annotations"`
	Logprobs    []any  `json:"logprobs"`
}

func partOf(text string) outputPart {
	return outputPart{"output_text", text, []any{}, []any{}}
}

// itemOf is the only item of the answer.
func (p *responseReply) itemOf(status string, parts []outputPart, arguments string) outputItem {
	if tool := p.tool(); tool != "" {
		return outputItem{ID: p.item, Type: "function_call", Status: status, CallID: "call_" + p.id, Name: tool, Arguments: &arguments}
	}
	return outputItem{ID: p.item, Type: "message", Status: status, Role: "assistant", Content: &parts}
}

func (p *responseReply) tool() string { return p.choices[0].answer.tool }

// object is the response in the given state.
func (p *responseReply) object(status string) responseObject {
	q := p.query
	or := func(raw json.RawMessage, otherwise string) json.RawMessage {
		if given(raw) {
			return raw
		}
		return json.RawMessage(otherwise)
	}
	format := q.Text.Format.Type
	fill(&format, "text")
	o := responseObject{
		ID: p.id, Object: "response", CreatedAt: p.created, Status: status, Background: q.Background,
		Instructions: q.Instructions, MaxOutputTokens: q.MaxOutputTokens, Metadata: or(q.Metadata, "{}"),
		Model: p.model, Output: []outputItem{}, ParallelToolCalls: true, Previous: q.Previous, ServiceTier: "auto",
		Store: q.stored(), Temperature: q.Temperature, Text: map[string]any{"format": map[string]string{"type": format}},
		ToolChoice: or(q.ToolChoice, `"auto"`), Tools: or(q.Tools, "[]"), TopP: q.TopP, Truncation: "disabled",
	}
	if status == "incomplete" {
		o.IncompleteDetails = map[string]any{"reason": "max_output_tokens"}
	}
	return o
}

// final is the response as it has ended.
func (p *responseReply) final() responseObject {
	status := map[string]string{"length": "incomplete", "abort": "cancelled"}[p.reason(0)]
	fill(&status, "completed")
	o := p.object(status)
	text := p.text(0)
	itemStatus := status
	if status == "cancelled" {
		itemStatus = "incomplete"
	}
	o.Output = []outputItem{p.itemOf(itemStatus, []outputPart{partOf(text)}, text)}
	t := p.tally()
	o.Usage = &responsesUsage{t.prompt, map[string]int{"cached_tokens": t.cached}, t.out, map[string]int{"reasoning_tokens": 0}, t.prompt + t.out}
	p.store(o)
	return o
}

// store keeps the end of a response and what the next turn goes on from.
func (p *responseReply) store(o responseObject) {
	p.completed = true
	if p.record == nil {
		return
	}
	answer := message{Role: "assistant", Content: quote(p.text(0))}
	if tool := p.tool(); tool != "" {
		answer = message{Role: "assistant", ToolCalls: appendJSON(nil, []any{callOf("call_"+p.id, tool, p.text(0))})}
	}
	p.record.mu.Lock()
	p.record.json = appendJSON(nil, o)
	p.record.turns = append(p.turns, answer)
	p.record.mu.Unlock()
	close(p.record.over)
}

// save keeps a response that is under way.
func (p *responseReply) save(status string) {
	p.record.mu.Lock()
	defer p.record.mu.Unlock()
	p.record.json = appendJSON(nil, p.object(status))
}

// close ends the handler: one that did not come to the end is cancelled.
func (p *responseReply) close() {
	p.release()
	if p.record != nil && !p.completed {
		p.save("cancelled")
		close(p.record.over)
	}
}

func (p *responseReply) body() []byte {
	b := appendJSON(nil, p.final())
	return append(p.appendNext(b[:len(b)-1]), '}')
}

// event writes an event under the next number.
func (p *responseReply) event(b []byte, name string, data map[string]any) []byte {
	data["type"], data["sequence_number"] = name, p.sequence
	p.sequence++
	return appendEvent(b, name, data)
}

// place adds to data where in the output it belongs.
func (p *responseReply) place(data map[string]any, inContent bool) map[string]any {
	data["output_index"], data["item_id"] = 0, p.item
	if inContent {
		data["content_index"] = 0
	}
	return data
}

// open answers at once, before the engine has looked at the request.
func (p *responseReply) open(b []byte) []byte {
	b = p.event(b, "response.created", map[string]any{"response": p.object("in_progress")})
	return p.event(b, "response.in_progress", map[string]any{"response": p.object("in_progress")})
}

func (p *responseReply) role(b []byte, _ int) []byte {
	b = p.event(b, "response.output_item.added", map[string]any{"output_index": 0, "item": p.itemOf("in_progress", []outputPart{}, "")})
	if p.tool() != "" {
		return b
	}
	return p.event(b, "response.content_part.added", p.place(map[string]any{"part": partOf("")}, true))
}

func (p *responseReply) token(b []byte, i, n int) []byte {
	return p.delta(b, escape(p.choices[i].answer.delta(n)))
}

func (p *responseReply) specimen(b []byte, _ int) []byte { return p.delta(b, "cut") }

func (p *responseReply) delta(b []byte, text string) []byte {
	if text == "" {
		return b
	}
	name, more := "response.output_text.delta", `","content_index":0,"logprobs":[],"output_index":0,"item_id":"`
	if p.tool() != "" {
		name, more = "response.function_call_arguments.delta", `","output_index":0,"item_id":"`
	}
	for _, part := range []string{"event: ", name, "\ndata: {\"type\":\"", name, `","delta":"`, text, more, p.item, `","sequence_number":`} {
		b = append(b, part...)
	}
	b = strconv.AppendInt(b, int64(p.sequence), 10)
	p.sequence++
	return append(b, "}\n\n"...)
}

func (p *responseReply) finish(b []byte, _ int) []byte {
	o := p.final()
	text := p.text(0)
	if p.tool() != "" {
		b = p.event(b, "response.function_call_arguments.done", p.place(map[string]any{"arguments": text, "name": p.tool()}, false))
	} else {
		b = p.event(b, "response.output_text.done", p.place(map[string]any{"text": text, "logprobs": []any{}}, true))
		b = p.event(b, "response.content_part.done", p.place(map[string]any{"part": partOf(text)}, true))
	}
	b = p.event(b, "response.output_item.done", map[string]any{"output_index": 0, "item": o.Output[0]})
	// The last event has this name whatever the status, as in vLLM.
	return p.event(b, "response.completed", map[string]any{"response": o})
}

func (p *responseReply) end(b []byte) []byte { return b }
