package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// message is one message of a chat request.
type message struct {
	Role      string          `json:"role"`
	Content   json.RawMessage `json:"content"`
	ToolCalls json.RawMessage `json:"tool_calls"`
}

// appendChat appends the tokens of a conversation, ready for the assistant to
// speak:
//
//	[<|tools|> tools] {<|im_start|> role \n content <|im_end|> \n} <|im_start|> assistant \n
//
// Every piece of the template and every content is tokenized by itself, so an
// earlier answer has the tokens it was generated with.
func appendChat(dst []uint32, messages []message, tools json.RawMessage) ([]uint32, error) {
	if len(messages) == 0 {
		return nil, errors.New("messages: must not be empty")
	}
	if given(tools) {
		dst = append(dst, tokenTools)
		dst = appendTokens(dst, string(tools))
	}
	for i, m := range messages {
		if m.Role == "" {
			return nil, fmt.Errorf("messages[%d].role: must be given", i)
		}
		dst = append(dst, tokenStart)
		dst = appendTokens(dst, m.Role)
		dst = appendTokens(dst, "\n")
		var err error
		if dst, err = appendContent(dst, m.Content); err != nil {
			return nil, fmt.Errorf("messages[%d].content: %w", i, err)
		}
		if given(m.ToolCalls) {
			dst = appendTokens(dst, string(m.ToolCalls))
		}
		dst = append(dst, tokenEnd)
		dst = appendTokens(dst, "\n")
	}
	dst = append(dst, tokenStart)
	dst = appendTokens(dst, "assistant")
	return appendTokens(dst, "\n"), nil
}

func given(raw json.RawMessage) bool { return len(raw) > 0 && !bytes.Equal(raw, []byte("null")) }

// appendContent appends a message's content: null, a string, or a list of
// parts. A part that is not text is a few tokens that depend on all of it.
func appendContent(dst []uint32, raw json.RawMessage) ([]uint32, error) {
	if !given(raw) {
		return dst, nil
	}
	switch raw[0] {
	case '"':
		var text string
		if err := json.Unmarshal(raw, &text); err != nil {
			return nil, err
		}
		return appendTokens(dst, text), nil
	case '[':
	default:
		return nil, errors.New("must be a string or a list of parts")
	}
	var parts []json.RawMessage
	if err := json.Unmarshal(raw, &parts); err != nil {
		return nil, err
	}
	for i, p := range parts {
		var part struct{ Type, Text string }
		if err := json.Unmarshal(p, &part); err != nil {
			return nil, fmt.Errorf("part %d: %w", i, err)
		}
		if part.Type == "text" {
			dst = appendTokens(dst, part.Text)
			continue
		}
		dst = append(dst, tokenPart)
		dst = appendTokens(dst, fmt.Sprintf("%016x", xxhash.Sum64(p)))
	}
	return dst, nil
}
