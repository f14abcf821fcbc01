package api

import (
	"encoding/json"
	"fmt"
)

// block is one content block of the Messages API.
type block struct {
	Type      string          `json:"type"`
	Text      json.RawMessage `json:"text"`
	Citations json.RawMessage `json:"citations"`
	Source    *struct {
		Type  string `json:"type"`
		Media string `json:"media_type"`
		Data  string `json:"data"`
		URL   string `json:"url"`
	} `json:"source"`
	ID      json.RawMessage `json:"id"`
	Name    json.RawMessage `json:"name"`
	Input   json.RawMessage `json:"input"`
	Use     json.RawMessage `json:"tool_use_id"`
	Content json.RawMessage `json:"content"`
}

// blocks reads content: a string, which is one block of text, or a list.
func blocks(raw json.RawMessage, field string) ([]block, error) {
	if isString(raw) {
		return []block{{Type: "text", Text: raw}}, nil
	}
	var list []block
	if len(raw) == 0 || raw[0] != '[' || json.Unmarshal(raw, &list) != nil {
		return nil, &FieldError{field, mustBeMessage}
	}
	for i := range list {
		b := &list[i]
		at := fmt.Sprintf("%s[%d]", field, i)
		switch b.Type {
		case "text":
			if !isString(b.Text) {
				return nil, &FieldError{at + ".text", "must be a string"}
			}
			if len(b.Citations) > 0 && !isEmpty(b.Citations) {
				return nil, &InexactError{at + ".citations", noChatWord}
			}
		case "image", "tool_use", "tool_result":
		case "":
			return nil, &FieldError{at + ".type", "must be a string"}
		default:
			return nil, &InexactError{at, fmt.Sprintf(blockNoWord, brief(b.Type))}
		}
	}
	return list, nil
}

func (t *toChat) system(raw json.RawMessage) error {
	if raw == nil {
		return nil
	}
	list, err := blocks(raw, "system")
	if err != nil || len(list) == 0 {
		return err
	}
	for i := range list {
		if list[i].Type != "text" {
			return &FieldError{fmt.Sprintf("system[%d]", i), "must be text"}
		}
	}
	t.begin("system")
	t.texts(list)
	t.b = append(t.b, '}')
	return nil
}

// begin begins a message, up to the value of its content.
func (t *toChat) begin(role string) {
	t.next()
	t.b = append(t.b, `{"role":"`+role+`","content":`...)
}

func (t *toChat) messages(raw json.RawMessage) error {
	var list []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return &FieldError{"messages", listOfMessages}
	}
	for i := range list {
		at := fmt.Sprintf("messages[%d]", i)
		content, err := blocks(list[i].Content, at+".content")
		if err != nil {
			return err
		}
		switch list[i].Role {
		case "user":
			err = t.userMessage(content, at+".content")
		case "assistant":
			if i == len(list)-1 {
				return &InexactError{at, "begins the answer, which " + noChatWord}
			}
			err = t.assistantMessage(content, at+".content")
		default:
			return &FieldError{at + ".role", "must be user or assistant"}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// userMessage writes what a user said, and results of tools as messages of
// their own, in the order in which they stand.
func (t *toChat) userMessage(content []block, field string) error {
	from := 0
	for i := range content {
		b := &content[i]
		switch b.Type {
		case "tool_result":
			if i > from {
				t.userParts(content[from:i])
			}
			from = i + 1
			if err := t.toolResult(b, fmt.Sprintf("%s[%d]", field, i)); err != nil {
				return err
			}
		case "tool_use":
			return &FieldError{fmt.Sprintf("%s[%d]", field, i), "is a tool call, which only the assistant makes"}
		case "image":
			if err := checkImage(b, fmt.Sprintf("%s[%d]", field, i)); err != nil {
				return err
			}
		}
	}
	if from < len(content) || len(content) == 0 {
		t.userParts(content[from:])
	}
	return nil
}

func checkImage(b *block, field string) error {
	switch {
	case b.Source == nil:
		return &FieldError{field + ".source", "is required"}
	case b.Source.Type == "base64" && b.Source.Media != "" && b.Source.Data != "", b.Source.Type == "url" && b.Source.URL != "":
		return nil
	case b.Source.Type == "base64" || b.Source.Type == "url":
		return &FieldError{field + ".source", "lacks its data"}
	}
	return &InexactError{field + ".source", fmt.Sprintf(blockNoWord, brief(b.Source.Type))}
}

func (t *toChat) userParts(content []block) {
	t.begin("user")
	hasImage := false
	for i := range content {
		hasImage = hasImage || content[i].Type == "image"
	}
	if !hasImage {
		t.texts(content)
		t.b = append(t.b, '}')
		return
	}
	t.b = append(t.b, '[')
	for i := range content {
		if i > 0 {
			t.b = append(t.b, ',')
		}
		b := &content[i]
		if b.Type == "text" {
			t.textPart(b)
			continue
		}
		url := b.Source.URL
		if b.Source.Type == "base64" {
			url = "data:" + b.Source.Media + ";base64," + b.Source.Data
		}
		t.b = append(t.b, `{"type":"image_url","image_url":{"url":`...)
		t.b = append(AppendString(t.b, url), '}', '}')
	}
	t.b = append(t.b, ']', '}')
}

// texts writes content that is text: one block as a string, several as a list.
func (t *toChat) texts(content []block) {
	switch len(content) {
	case 0:
		t.b = append(t.b, `""`...)
		return
	case 1:
		t.b = append(t.b, content[0].Text...)
		return
	}
	t.b = append(t.b, '[')
	for i := range content {
		if i > 0 {
			t.b = append(t.b, ',')
		}
		t.textPart(&content[i])
	}
	t.b = append(t.b, ']')
}

func (t *toChat) textPart(b *block) {
	t.b = append(t.b, `{"type":"text","text":`...)
	t.b = append(append(t.b, b.Text...), '}')
}

func (t *toChat) toolResult(b *block, field string) error {
	if !isString(b.Use) {
		return &FieldError{field + ".tool_use_id", "must be a string"}
	}
	var content []block
	if b.Content != nil && string(b.Content) != "null" {
		var err error
		if content, err = blocks(b.Content, field+".content"); err != nil {
			return err
		}
	}
	for i := range content {
		if content[i].Type != "text" {
			return &InexactError{fmt.Sprintf("%s.content[%d]", field, i), fmt.Sprintf(blockNoWord, content[i].Type)}
		}
	}
	t.begin("tool")
	t.texts(content)
	t.b = append(t.b, `,"tool_call_id":`...)
	t.b = append(append(t.b, b.Use...), '}')
	return nil
}

func (t *toChat) assistantMessage(content []block, field string) error {
	var said, calls []block
	for i := range content {
		b := &content[i]
		at := fmt.Sprintf("%s[%d]", field, i)
		switch b.Type {
		case "text":
			if len(calls) > 0 {
				return &InexactError{at, "stands behind a tool call, which " + noChatWord}
			}
			said = append(said, *b)
		case "tool_use":
			if !isString(b.ID) || !isString(b.Name) || len(b.Input) == 0 || b.Input[0] != '{' {
				return &FieldError{at, "must have an id, a name and an input"}
			}
			calls = append(calls, *b)
		default:
			return &FieldError{at, "is nothing that the assistant says"}
		}
	}
	t.begin("assistant")
	if len(said) == 0 && len(calls) > 0 {
		t.b = append(t.b, "null"...)
	} else {
		t.texts(said)
	}
	if len(calls) > 0 {
		t.b = append(t.b, `,"tool_calls":[`...)
		for i := range calls {
			if i > 0 {
				t.b = append(t.b, ',')
			}
			t.b = append(append(t.b, `{"id":`...), calls[i].ID...)
			t.b = append(append(t.b, `,"type":"function","function":{"name":`...), calls[i].Name...)
			t.b = append(t.b, `,"arguments":`...)
			t.b = append(AppendString(t.b, string(calls[i].Input)), '}', '}')
		}
		t.b = append(t.b, ']')
	}
	t.b = append(t.b, '}')
	return nil
}
