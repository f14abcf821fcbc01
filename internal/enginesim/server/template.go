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
		if dst, err = appendToolCalls(dst, m.ToolCalls); err != nil {
			return nil, fmt.Errorf("messages[%d].tool_calls: %w", i, err)
		}
		dst = append(dst, tokenEnd)
		dst = appendTokens(dst, "\n")
	}
	dst = append(dst, tokenStart)
	dst = appendTokens(dst, "assistant")
	return appendTokens(dst, "\n"), nil
}

func given(raw json.RawMessage) bool { return len(raw) > 0 && !bytes.Equal(raw, []byte("null")) }

// appendToolCalls appends the calls of an assistant's message, with the tokens
// they were generated with.
func appendToolCalls(dst []uint32, raw json.RawMessage) ([]uint32, error) {
	if !given(raw) {
		return dst, nil
	}
	var calls []struct {
		Function struct{ Name, Arguments string }
	}
	if err := json.Unmarshal(raw, &calls); err != nil {
		return nil, err
	}
	for _, c := range calls {
		dst = appendCall(dst, c.Function.Name, c.Function.Arguments)
	}
	return dst, nil
}

// imageTokens is what every image costs.
const imageTokens = 256

// appendImage appends an image: always as many tokens, which depend on its
// address, that is on its bytes when they are in a data URL.
func appendImage(dst []uint32, url string) []uint32 {
	n := len(dst)
	dst = append(dst, tokenPart)
	dst = appendTokens(dst, imageHash(url))
	for len(dst) < n+imageTokens {
		dst = append(dst, tokenPart)
	}
	return dst
}

// appendContent appends a message's content: null, a string, or a list of
// parts. A part that is neither text nor an image is a few tokens that depend
// on all of it.
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
		var part struct {
			Type, Text string
			ImageURL   struct{ URL string } `json:"image_url"`
		}
		if err := json.Unmarshal(p, &part); err != nil {
			return nil, fmt.Errorf("part %d: %w", i, err)
		}
		switch part.Type {
		case "text":
			dst = appendTokens(dst, part.Text)
			continue
		case "image_url":
			dst = appendImage(dst, part.ImageURL.URL)
			continue
		}
		dst = append(dst, tokenPart)
		dst = appendTokens(dst, fmt.Sprintf("%016x", xxhash.Sum64(p)))
	}
	return dst, nil
}
