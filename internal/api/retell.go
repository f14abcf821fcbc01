package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"penstock.dev/penstock/internal/fleet"
)

// Retelling turns the answer to a translated request back into one of the
// Messages API. One is used for one answer; its memory is reused from event to
// event.
type Retelling struct {
	Model  string       // as the client named it
	Prompt fleet.Tokens // estimated, said until the engine tells

	open     blockKind // of the content block that is open
	index    int       // of the open block, or of the next when none is open
	call     int       // which of the engine's tool calls is open
	called   bool      // a tool has been called
	begun    bool
	ended    bool
	stop     string // why the engine stopped, in Anthropic's words
	sequence []byte // which stop sequence it met, raw
	usage    fleet.Usage
	pieces   fleet.Tokens // pieces of output, for an engine that does not count
}

type blockKind uint8

const (
	noBlock blockKind = iota
	textBlock
	toolBlock
)

// ErrRetell says that an answer has what the Messages API cannot say.
var ErrRetell = errors.New("the answer cannot be told in the Messages API")

// Whole appends a whole chat completion as a message.
func (r *Retelling) Whole(dst, body []byte) ([]byte, error) {
	var a struct {
		ID      string `json:"id"`
		Choices []struct {
			Message struct {
				Content json.RawMessage `json:"content"`
				Refusal json.RawMessage `json:"refusal"`
				Calls   []struct {
					ID       string `json:"id"`
					Function struct {
						Name      string `json:"name"`
						Arguments string `json:"arguments"`
					} `json:"function"`
				} `json:"tool_calls"`
			} `json:"message"`
			Finish string          `json:"finish_reason"`
			Stop   json.RawMessage `json:"stop_reason"`
		} `json:"choices"`
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return dst, fmt.Errorf("%w: %w", ErrRetell, err)
	}
	if len(a.Choices) != 1 {
		return dst, fmt.Errorf("%w: it has %d choices", ErrRetell, len(a.Choices))
	}
	c, _ := ReadAnswer(Completions, body)
	r.usage = c.Usage
	choice := &a.Choices[0]
	dst = append(dst, `{"id":`...)
	dst = AppendString(dst, messageID(a.ID))
	dst = append(dst, `,"type":"message","role":"assistant","model":`...)
	dst = AppendString(dst, r.Model)
	dst = append(dst, `,"content":[`...)
	comma := ""
	for _, said := range []json.RawMessage{choice.Message.Content, choice.Message.Refusal} {
		if isString(said) && !isEmpty(said) {
			dst = append(append(dst, comma+`{"type":"text","text":`...), said...)
			dst = append(dst, '}')
			comma = ","
		}
	}
	for _, call := range choice.Message.Calls {
		input := []byte(strings.TrimSpace(call.Function.Arguments))
		if len(input) == 0 {
			input = []byte("{}")
		}
		if !json.Valid(input) || input[0] != '{' {
			return dst, fmt.Errorf("%w: the arguments of a tool call are no JSON object", ErrRetell)
		}
		dst = AppendString(append(dst, comma+`{"type":"tool_use","id":`...), call.ID)
		dst = AppendString(append(dst, `,"name":`...), call.Function.Name)
		dst = append(append(append(dst, `,"input":`...), input...), '}')
		comma, r.called = ",", true
	}
	r.stopped(choice.Finish, choice.Stop)
	dst = append(dst, `],`...)
	dst = append(r.why(dst), ',')
	return append(r.appendUsage(dst, false), '}'), nil
}

// messageID makes an engine's id that of a message.
func messageID(id string) string {
	return "msg_" + strings.TrimPrefix(strings.TrimPrefix(id, "chatcmpl-"), "msg_")
}

// stopped notes why the engine stopped.
func (r *Retelling) stopped(finish string, stop json.RawMessage) {
	switch finish {
	case "length":
		r.stop = "max_tokens"
	case "tool_calls", "function_call":
		r.stop = "tool_use"
	case "content_filter":
		r.stop = "refusal"
	default:
		r.stop = "end_turn"
		if isString(stop) {
			r.stop, r.sequence = "stop_sequence", slices.Clone(stop)
		} else if r.called {
			r.stop = "tool_use" // engines say "stop" after a call they were made to make
		}
	}
}

func (r *Retelling) why(dst []byte) []byte {
	dst = append(append(append(dst, `"stop_reason":"`...), r.stop...), `","stop_sequence":`...)
	if r.sequence == nil {
		return append(dst, "null"...)
	}
	return append(dst, r.sequence...)
}

// appendUsage writes what is known of the count, and the estimate until then.
func (r *Retelling) appendUsage(dst []byte, begin bool) []byte {
	u := r.usage
	if !u.Known {
		u = fleet.Usage{Prompt: r.Prompt, Output: r.pieces}
	}
	cached := max(min(u.Cached, u.Prompt), 0)
	if begin {
		u.Output = 0
	}
	dst = strconv.AppendInt(append(dst, `"usage":{"input_tokens":`...), int64(u.Prompt-cached), 10)
	dst = strconv.AppendInt(append(dst, `,"cache_creation_input_tokens":0,"cache_read_input_tokens":`...), int64(cached), 10)
	dst = strconv.AppendInt(append(dst, `,"output_tokens":`...), int64(u.Output), 10)
	return append(dst, '}')
}

// Event appends what one event of a chat completion's stream comes to. An event
// that is no answer, such as a keep-alive comment, is appended as it is.
func (r *Retelling) Event(dst, event []byte) ([]byte, error) {
	data, ok := eventData(event)
	if !ok {
		return append(dst, event...), nil
	}
	if bytes.Equal(data, []byte("[DONE]")) {
		return r.End(dst), nil
	}
	c, _ := readObject(Completions, data, true)
	if c.Usage.Known {
		r.usage = c.Usage
	}
	s := scanner{b: data}
	var finish, stop []byte
	var err error
	out := r.begin(dst, data)
	for it := s.object(); it.next() && err == nil; {
		switch string(it.key) {
		case "choices":
			out, finish, stop, err = r.choices(out, &s)
		default:
			s.value()
		}
	}
	if len(finish) > 2 && isString(finish) {
		r.stopped(string(finish[1:len(finish)-1]), stop)
	}
	return out, err
}

// begin appends the start of the message, once.
func (r *Retelling) begin(dst, data []byte) []byte {
	if r.begun {
		return dst
	}
	r.begun = true
	var head struct {
		ID string `json:"id"`
	}
	_ = json.Unmarshal(data, &head) // it has been read as JSON; an id of another type is none
	dst = append(dst, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":"...)
	dst = AppendString(dst, messageID(head.ID))
	dst = append(dst, `,"type":"message","role":"assistant","model":`...)
	dst = AppendString(dst, r.Model)
	dst = append(dst, `,"content":[],"stop_reason":null,"stop_sequence":null,`...)
	return append(r.appendUsage(dst, true), "}}\n\n"...)
}

func (r *Retelling) choices(dst []byte, s *scanner) (out, finish, stop []byte, err error) {
	if s.peek() != '[' {
		s.value()
		return dst, nil, nil, nil
	}
	for all := s.array(); all.next() && err == nil; {
		if s.peek() != '{' {
			s.value()
			continue
		}
		for it := s.object(); it.next() && err == nil; {
			switch string(it.key) {
			case "delta":
				dst, err = r.delta(dst, s)
			case "finish_reason":
				finish = s.value()
			case "stop_reason":
				stop = s.value()
			default:
				s.value()
			}
		}
	}
	return dst, finish, stop, err
}

func (r *Retelling) delta(dst []byte, s *scanner) ([]byte, error) {
	if s.peek() != '{' {
		s.value()
		return dst, nil
	}
	var err error
	for it := s.object(); it.next() && err == nil; {
		switch string(it.key) {
		case "content", "refusal":
			if v := s.value(); isString(v) && !isEmpty(v) {
				dst = r.text(dst, v)
			}
		case "tool_calls":
			dst, err = r.calls(dst, s)
		default:
			s.value() // reasoning among it: nobody has asked for it
		}
	}
	return dst, err
}

func (r *Retelling) text(dst, raw []byte) []byte {
	if r.open != textBlock {
		dst = r.closeBlock(dst)
		dst = r.event(dst, "content_block_start")
		dst = append(dst, `,"content_block":{"type":"text","text":""}}`+"\n\n"...)
		r.open = textBlock
	}
	r.pieces++
	dst = r.event(dst, "content_block_delta")
	dst = append(append(dst, `,"delta":{"type":"text_delta","text":`...), raw...)
	return append(dst, "}}\n\n"...)
}

// event begins an event of the present content block.
func (r *Retelling) event(dst []byte, name string) []byte {
	dst = append(append(append(dst, "event: "...), name...), "\ndata: {\"type\":\""...)
	dst = append(append(dst, name...), `","index":`...)
	return strconv.AppendInt(dst, int64(r.index), 10)
}

func (r *Retelling) closeBlock(dst []byte) []byte {
	if r.open == noBlock {
		return dst
	}
	dst = append(r.event(dst, "content_block_stop"), "}\n\n"...)
	r.open = noBlock
	r.index++
	return dst
}

func (r *Retelling) calls(dst []byte, s *scanner) ([]byte, error) {
	if s.peek() != '[' {
		s.value()
		return dst, nil
	}
	var err error
	for all := s.array(); all.next() && err == nil; {
		if s.peek() != '{' {
			s.value()
			continue
		}
		var id, name, arguments []byte
		index := 0
		for it := s.object(); it.next(); {
			switch string(it.key) {
			case "index":
				index = int(count(s))
			case "id":
				id = s.value()
			case "function":
				name, arguments = function(s)
			default:
				s.value()
			}
		}
		dst, err = r.toolCall(dst, index, id, name, arguments)
	}
	return dst, err
}

func function(s *scanner) (name, arguments []byte) {
	if s.peek() != '{' {
		s.value()
		return nil, nil
	}
	for it := s.object(); it.next(); {
		switch v := s.value(); string(it.key) {
		case "name":
			name = v
		case "arguments":
			arguments = v
		}
	}
	return name, arguments
}

// toolCall appends one piece of a tool call. Engines send the calls one after
// the other, and a call's id and name with its first piece.
func (r *Retelling) toolCall(dst []byte, index int, id, name, arguments []byte) ([]byte, error) {
	if r.open != toolBlock || index != r.call {
		if !isString(name) || isEmpty(name) {
			return dst, fmt.Errorf("%w: a tool call goes on after another one began, or begins without a name", ErrRetell)
		}
		if !isString(id) {
			return dst, fmt.Errorf("%w: a tool call begins without an id", ErrRetell)
		}
		dst = r.closeBlock(dst)
		r.open, r.call, r.called = toolBlock, index, true
		dst = append(r.event(dst, "content_block_start"), `,"content_block":{"type":"tool_use","id":`...)
		dst = append(append(append(append(dst, id...), `,"name":`...), name...), `,"input":{}}}`+"\n\n"...)
	}
	if isString(arguments) && !isEmpty(arguments) {
		r.pieces++
		dst = append(r.event(dst, "content_block_delta"), `,"delta":{"type":"input_json_delta","partial_json":`...)
		dst = append(append(dst, arguments...), "}}\n\n"...)
	}
	return dst, nil
}

// End appends the end of the message, once: when the stream has said [DONE], or
// has ended in order without.
func (r *Retelling) End(dst []byte) []byte {
	if r.ended || !r.begun {
		return dst
	}
	r.ended = true
	dst = r.closeBlock(dst)
	if r.stop == "" {
		r.stop = "end_turn"
	}
	dst = append(dst, "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{"...)
	dst = append(r.why(dst), "},"...)
	dst = append(r.appendUsage(dst, false), "}\n\n"...)
	return append(dst, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"...)
}

// CountFromTokenize appends the answer of a tokenize API as that of a count of
// tokens.
func CountFromTokenize(dst, body []byte) ([]byte, error) {
	var a struct {
		Count *int64 `json:"count"`
	}
	if err := json.Unmarshal(body, &a); err != nil || a.Count == nil || *a.Count < 0 {
		return dst, fmt.Errorf("%w: it has no count", ErrRetell)
	}
	dst = strconv.AppendInt(append(dst, `{"input_tokens":`...), *a.Count, 10)
	return append(dst, "}\n"...), nil
}
