package clients

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/responses"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
)

func respond(text string) responses.ResponseNewParams {
	return responses.ResponseNewParams{
		Model: model, MaxOutputTokens: param.NewOpt[int64](24),
		Input: responses.ResponseNewParamsInputUnion{OfString: param.NewOpt(text)},
	}
}

func TestOpenAIResponsesAndTheirIDs(t *testing.T) {
	c := fleet(t)
	var ids []string
	for range 4 { // both endpoints hold some
		whole, err := c.Responses.New(t.Context(), respond("Tell me of rivers."))
		if err != nil || whole.OutputText() == "" || whole.ID == "" {
			t.Fatalf("%+v %v", whole, err)
		}
		ids = append(ids, whole.ID)
		text, id := "", ""
		s := c.Responses.NewStreaming(t.Context(), respond("Tell me of rivers."))
		for s.Next() {
			switch e := s.Current().AsAny().(type) {
			case responses.ResponseTextDeltaEvent:
				text += e.Delta
			case responses.ResponseCompletedEvent:
				id = e.Response.ID
			case responses.ResponseIncompleteEvent:
				id = e.Response.ID
			}
		}
		if err := s.Err(); err != nil || text != whole.OutputText() {
			t.Errorf("streamed %q, whole %q (%v)", text, whole.OutputText(), err)
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		got, err := c.Responses.Get(t.Context(), id, responses.ResponseGetParams{})
		if err != nil || got.ID != id {
			t.Errorf("get %q: %v", id, err)
		}
		p := respond("And then?")
		p.PreviousResponseID = param.NewOpt(id)
		next, err := c.Responses.New(t.Context(), p)
		if err != nil || next.PreviousResponseID != id {
			t.Errorf("continue %q: %+v %v", id, next, err)
		}
	}
	_, err := c.Responses.Get(t.Context(), "resp_none", responses.ResponseGetParams{})
	if e, ok := errors.AsType[*openai.Error](err); !ok || e.StatusCode != 404 {
		t.Errorf("unknown id: %v", err)
	}
}

func TestOpenAIEmbeddings(t *testing.T) {
	c := fleet(t)
	got, err := c.Embeddings.New(t.Context(), openai.EmbeddingNewParams{
		Model: model, Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"ka so", "mi re tolu"}},
	})
	if err != nil || len(got.Data) != 2 || len(got.Data[1].Embedding) == 0 || got.Usage.PromptTokens == 0 {
		t.Errorf("%+v %v", got, err)
	}
}

func TestOpenAIToolCallsPassThrough(t *testing.T) {
	c := fleet(t)
	p := chat("What time is it?")
	p.MaxCompletionTokens = param.NewOpt[int64](400)
	p.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{
		Name: "get_time", Parameters: openai.FunctionParameters{
			"type": "object", "properties": map[string]any{"zone": map[string]any{"type": "string"}}, "required": []string{"zone"},
		},
	})}
	p.ToolChoice = openai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: param.NewOpt("required")}
	whole, err := c.Chat.Completions.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	var acc openai.ChatCompletionAccumulator
	s := c.Chat.Completions.NewStreaming(t.Context(), p)
	for s.Next() {
		acc.AddChunk(s.Current())
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]openai.ChatCompletionMessage{"whole": whole.Choices[0].Message, "streamed": acc.Choices[0].Message} {
		if len(m.ToolCalls) != 1 || m.ToolCalls[0].Function.Name != "get_time" || !json.Valid([]byte(m.ToolCalls[0].Function.Arguments)) {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

func TestOpenAIAliasesAreExact(t *testing.T) {
	c := openAI(gateway(t, server.Options{}, func(p *config.Pool) { p.Aliases = map[string]string{"gpt-4o": model} }))
	p := chat("Tell me of rivers.")
	p.Model = "gpt-4o"
	whole, err := c.Chat.Completions.New(t.Context(), p)
	if err != nil || whole.Model != "gpt-4o" {
		t.Errorf("%+v %v", whole, err)
	}
	s := c.Chat.Completions.NewStreaming(t.Context(), p)
	for s.Next() {
		if m := s.Current().Model; m != "gpt-4o" {
			t.Errorf("a chunk is from %q", m)
		}
	}
	if err := s.Err(); err != nil {
		t.Error(err)
	}
	models, err := c.Models.List(t.Context())
	if err != nil || len(models.Data) != 2 || !strings.Contains(models.RawJSON(), `"root":"`+model+`"`) {
		t.Errorf("%s %v", models.RawJSON(), err)
	}
}
