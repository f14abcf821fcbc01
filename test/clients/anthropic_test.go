package clients

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
)

// anthropicFleets are gateways before engines that speak the Messages API, and
// before engines that do not.
func anthropicFleets(t *testing.T, test func(t *testing.T, c *anthropic.Client)) {
	t.Helper()
	for name, engines := range map[string]struct {
		options server.Options
		dialect string
	}{
		"passed through": {server.Options{}, "vllm"},
		"translated":     {server.Options{NoMessages: true}, "openai"},
	} {
		t.Run(name, func(t *testing.T) {
			url := gateway(t, engines.options, func(p *config.Pool) { p.Dialect = engines.dialect })
			c := anthropic.NewClient(option.WithBaseURL(url), option.WithAPIKey("sk-ant-anything"), option.WithMaxRetries(0))
			test(t, &c)
		})
	}
}

func ask(text string) anthropic.MessageNewParams {
	return anthropic.MessageNewParams{
		Model: model, MaxTokens: 24, System: []anthropic.TextBlockParam{{Text: "You are a river."}},
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(text))},
	}
}

// stream reads a whole stream into a message.
func stream(t *testing.T, c *anthropic.Client, p anthropic.MessageNewParams) (m anthropic.Message, events int) {
	t.Helper()
	s := c.Messages.NewStreaming(t.Context(), p)
	for s.Next() {
		if err := m.Accumulate(s.Current()); err != nil {
			t.Fatal(err)
		}
		events++
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return m, events
}

func TestAnthropicStreamedMessageEqualsWhole(t *testing.T) {
	anthropicFleets(t, func(t *testing.T, c *anthropic.Client) {
		whole, err := c.Messages.New(t.Context(), ask("Tell me of the sea."))
		if err != nil {
			t.Fatal(err)
		}
		streamed, events := stream(t, c, ask("Tell me of the sea."))
		if len(whole.Content) != 1 || len(streamed.Content) != 1 || whole.Content[0].Text == "" || whole.Content[0].Text != streamed.Content[0].Text {
			t.Errorf("whole %s, streamed %+v", whole.RawJSON(), streamed.Content)
		}
		if whole.StopReason != streamed.StopReason || whole.StopReason == "" || whole.Usage.OutputTokens != streamed.Usage.OutputTokens || whole.Usage.OutputTokens == 0 {
			t.Errorf("whole %+v %s, streamed %+v %s", whole.Usage, whole.StopReason, streamed.Usage, streamed.StopReason)
		}
		if whole.Model != model || streamed.Model != model || whole.Role != "assistant" || events < int(whole.Usage.OutputTokens) {
			t.Errorf("whole from %q, streamed from %q in %d events", whole.Model, streamed.Model, events)
		}
		if prompt := whole.Usage.InputTokens + whole.Usage.CacheReadInputTokens; prompt < 5 {
			t.Errorf("usage %+v", whole.Usage)
		}
	})
}

func TestAnthropicToolCalls(t *testing.T) {
	anthropicFleets(t, func(t *testing.T, c *anthropic.Client) {
		p := ask("What time is it?")
		p.MaxTokens = 400
		p.Tools = []anthropic.ToolUnionParam{{OfTool: &anthropic.ToolParam{
			Name: "get_time", Description: anthropic.String("tells the time"),
			InputSchema: anthropic.ToolInputSchemaParam{Properties: map[string]any{"zone": map[string]any{"type": "string"}}, Required: []string{"zone"}},
		}}}
		p.ToolChoice = anthropic.ToolChoiceUnionParam{OfAny: &anthropic.ToolChoiceAnyParam{}}
		whole, err := c.Messages.New(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		streamed, _ := stream(t, c, p)
		for name, m := range map[string]*anthropic.Message{"whole": whole, "streamed": &streamed} {
			if m.StopReason != anthropic.StopReasonToolUse {
				t.Errorf("%s: stopped for %s: %s", name, m.StopReason, m.RawJSON())
			}
			call := m.Content[len(m.Content)-1].AsToolUse()
			var input map[string]any
			if err := json.Unmarshal(call.Input, &input); err != nil || call.Name != "get_time" || call.ID == "" || input["zone"] == nil {
				t.Errorf("%s: %+v %v", name, call, err)
			}
		}
		// The conversation goes on with the result.
		call := whole.Content[len(whole.Content)-1].AsToolUse()
		p.ToolChoice = anthropic.ToolChoiceUnionParam{}
		p.Messages = append(p.Messages, whole.ToParam(), anthropic.NewUserMessage(anthropic.NewToolResultBlock(call.ID, "noon", false)))
		next, err := c.Messages.New(t.Context(), p)
		if err != nil || len(next.Content) == 0 {
			t.Errorf("%+v %v", next, err)
		}
	})
}

func TestAnthropicCountTokens(t *testing.T) {
	c := anthropic.NewClient(option.WithBaseURL(gateway(t, server.Options{}, nil)), option.WithAPIKey("k"), option.WithMaxRetries(0))
	n, err := c.Messages.CountTokens(t.Context(), anthropic.MessageCountTokensParams{
		Model: model, Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("How long is this?"))},
	})
	if err != nil || n.InputTokens < 3 {
		t.Errorf("%+v %v", n, err)
	}
}

func TestAnthropicErrorsAreTyped(t *testing.T) {
	anthropicFleets(t, func(t *testing.T, c *anthropic.Client) {
		p := ask("hi")
		p.Model = "claude-none"
		_, err := c.Messages.New(t.Context(), p)
		e, ok := errors.AsType[*anthropic.Error](err)
		if !ok || e.StatusCode != 404 || !strings.Contains(e.RawJSON(), `"not_found_error"`) || e.RequestID == "" {
			t.Errorf("unknown model: %v", err)
		}
		_, err = c.Messages.New(t.Context(), ask(strings.Repeat("word ", 200_000)))
		if e, ok := errors.AsType[*anthropic.Error](err); !ok || e.StatusCode != 400 || !strings.Contains(e.RawJSON(), "131072") {
			t.Errorf("over context: %.300v", err)
		}
	})
	url := gateway(t, server.Options{NoMessages: true}, func(p *config.Pool) { p.Dialect = "openai" })
	c := anthropic.NewClient(option.WithBaseURL(url), option.WithAPIKey("k"), option.WithMaxRetries(0))
	p := ask("hi")
	p.Thinking = anthropic.ThinkingConfigParamOfEnabled(1024)
	_, err := c.Messages.New(t.Context(), p)
	if e, ok := errors.AsType[*anthropic.Error](err); !ok || e.StatusCode != 501 || !strings.Contains(e.RawJSON(), "thinking") {
		t.Errorf("thinking: %v", err)
	}
	_, err = c.Messages.CountTokens(t.Context(), anthropic.MessageCountTokensParams{Model: model, Messages: p.Messages})
	if e, ok := errors.AsType[*anthropic.Error](err); !ok || e.StatusCode != 501 {
		t.Errorf("counting: %v", err)
	}
}
