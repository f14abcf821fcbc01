package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"penstock.dev/penstock/internal/fleet"
)

// Style is the way in which an API writes errors.
type Style uint8

// The styles of errors. The Responses API differs from the rest of OpenAI's in
// the events of a stream only.
const (
	OpenAI Style = iota
	OpenAIResponses
	Anthropic
)

// openAIBody is OpenAI's shape. Code is a string as OpenAI sends it; param is
// null when no field is at fault.
type openAIBody struct {
	Error struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    string  `json:"code"`
	} `json:"error"`
}

// responsesEvent is an error event of the Responses API.
type responsesEvent struct {
	Type    string  `json:"type"`
	Code    string  `json:"code"`
	Message string  `json:"message"`
	Param   *string `json:"param"`
}

// anthropicBody is Anthropic's shape.
type anthropicBody struct {
	Type  string `json:"type"`
	Error struct {
		Type    string `json:"type"`
		Message string `json:"message"`
	} `json:"error"`
	RequestID string `json:"request_id,omitempty"`
}

// Body returns the JSON body of p in a style. Where the style has a place for
// the request's id, it is put there.
func (p Problem) Body(style Style, request string) []byte {
	return append(p.marshal(style, request), '\n')
}

// Event returns p as an event of a stream that has begun.
func (p Problem) Event(style Style, request string) []byte {
	var ev []byte
	switch style {
	case OpenAI:
		ev = append([]byte("data: "), p.marshal(style, request)...)
	case OpenAIResponses:
		ev = append([]byte("event: error\ndata: "), encode(responsesEvent{"error", p.Code, p.Message, p.param()})...)
	case Anthropic:
		ev = append([]byte("event: error\ndata: "), p.marshal(style, request)...)
	}
	return append(ev, '\n', '\n')
}

func (p Problem) param() *string {
	if p.Param == "" {
		return nil
	}
	return &p.Param
}

func (p Problem) marshal(style Style, request string) []byte {
	if style == Anthropic {
		b := anthropicBody{Type: "error", RequestID: request}
		b.Error.Type, b.Error.Message = p.anthropicType(), p.Message
		return encode(b)
	}
	var b openAIBody
	b.Error.Message, b.Error.Type, b.Error.Code, b.Error.Param = p.Message, p.Type, p.Code, p.param()
	return encode(b)
}

// encode marshals plain data, which cannot fail, without escaping what only
// browsers mind.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("api: plain data does not marshal: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// anthropicType returns the error type that Anthropic documents for a status.
func (p Problem) anthropicType() string {
	switch p.Status {
	case 401:
		return "authentication_error"
	case 403:
		return "permission_error"
	case 404:
		return "not_found_error"
	case 413:
		return "request_too_large"
	case 429:
		return typeRate
	case 503, 529:
		return typeOverload
	case 504:
		return "timeout_error"
	}
	if p.Status >= 500 {
		return "api_error"
	}
	return typeInvalid
}

// EngineRefused returns what an engine's error answer with a status below 500
// says, and whether its body is in the style already, so that it can be passed
// on as it is.
func EngineRefused(status int, body []byte, style Style) (p Problem, same bool) {
	p = Problem{Status: status, Type: typeInvalid, Code: "engine_refused"}
	var e struct {
		Type    string          `json:"type"`
		Error   json.RawMessage `json:"error"`
		Message string          `json:"message"`
		Detail  json.RawMessage `json:"detail"`
		Param   any             `json:"param"`
	}
	if json.Unmarshal(body, &e) != nil {
		p.Message = plainMessage(body)
		return p, false
	}
	var in struct {
		Message string `json:"message"`
		Type    string `json:"type"`
		Param   any    `json:"param"`
		Code    any    `json:"code"`
	}
	isObject := json.Unmarshal(e.Error, &in) == nil && in.Message != ""
	switch {
	case isObject:
		p.Message = in.Message
		p.Param, _ = in.Param.(string)
		if code, ok := in.Code.(string); ok && code != "" {
			p.Code = code
		}
		return p, (style == Anthropic) == (e.Type == "error")
	case e.Message != "": // an older vLLM
		p.Message = e.Message
		p.Param, _ = e.Param.(string)
	case len(e.Error) > 0 && string(e.Error) != "null":
		p.Message = rawMessage(e.Error)
	default:
		p.Message = rawMessage(e.Detail)
	}
	if p.Message == "" {
		p.Message = plainMessage(body)
	}
	return p, false
}

// rawMessage is a message that may be a string, as it should, or anything else.
func rawMessage(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return brief(string(raw))
}

// plainMessage is the message of an error that is not JSON.
func plainMessage(body []byte) string {
	text := strings.ToValidUTF8(strings.TrimSpace(string(body)), "�")
	if text == "" || strings.HasPrefix(text, "<") {
		return "The engine refused the request and did not say why."
	}
	return brief(text)
}

// OverContext is the answer to a prompt that cannot fit, in tokens.
func OverContext(limit, prompt fleet.Tokens, counted bool) Problem {
	about := "about "
	if counted {
		about = ""
	}
	return Problem{
		Status: 400, Type: typeInvalid, Code: "context_length_exceeded",
		Message: fmt.Sprintf("This model's maximum context length is %d tokens, but the prompt is %s%d tokens long.", limit, about, prompt),
	}
}
