package clients

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"

	"penstock.dev/penstock/internal/app"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
)

// gateway starts a gateway before two simulated engines and returns its URL.
func gateway(t *testing.T, engines server.Options, change func(*config.Pool)) string {
	t.Helper()
	engines.Speedup, engines.Seed = 20, 1
	sim, err := app.Simulate(engines, app.Fleet{Replicas: 2})
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&sim.Pool)
	}
	o := app.Options{
		Config: config.Default(), Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Seed: 1, Version: "test",
		Log: slog.New(slog.DiscardHandler), DrainTimeout: 5 * time.Second,
	}
	o.Config.Pools = []config.Pool{sim.Pool}
	a, err := app.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(a.Close(), sim.Close()); err != nil {
			t.Error(err)
		}
	})
	return a.URL()
}

// fleet returns an official OpenAI client for a gateway, without retries of its
// own.
func fleet(t *testing.T) *openai.Client {
	t.Helper()
	return openAI(gateway(t, server.Options{}, nil))
}

func openAI(url string) *openai.Client {
	c := openai.NewClient(option.WithBaseURL(url+"/v1"), option.WithAPIKey("sk-anything"), option.WithMaxRetries(0))
	return &c
}

const model = "Qwen/Qwen3-32B"

func chat(text string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)}, MaxCompletionTokens: param.NewOpt[int64](24),
	}
}

func TestOpenAIStreamedChatEqualsWholeChat(t *testing.T) {
	c := fleet(t)
	whole, err := c.Chat.Completions.New(t.Context(), chat("Tell me of rivers."))
	if err != nil {
		t.Fatal(err)
	}
	p := chat("Tell me of rivers.")
	p.StreamOptions.IncludeUsage = param.NewOpt(true)
	stream := c.Chat.Completions.NewStreaming(t.Context(), p)
	var acc openai.ChatCompletionAccumulator
	chunks := 0
	for stream.Next() {
		if !acc.AddChunk(stream.Current()) {
			t.Fatal("the accumulator refuses a chunk")
		}
		chunks++
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if got, want := acc.Choices[0].Message.Content, whole.Choices[0].Message.Content; got != want || got == "" {
		t.Errorf("streamed %q, whole %q", got, want)
	}
	if acc.Usage.CompletionTokens != whole.Usage.CompletionTokens || chunks < int(acc.Usage.CompletionTokens) {
		t.Errorf("%d chunks, usage %+v, whole %+v", chunks, acc.Usage, whole.Usage)
	}
	if acc.Choices[0].FinishReason != whole.Choices[0].FinishReason {
		t.Errorf("finish reasons %q and %q", acc.Choices[0].FinishReason, whole.Choices[0].FinishReason)
	}
}

func TestOpenAICachedTokensAndModels(t *testing.T) {
	c := fleet(t)
	long := strings.Repeat("A river runs to the sea and takes its time. ", 60)
	var cached int64
	for range 3 {
		r, err := c.Chat.Completions.New(t.Context(), chat(long))
		if err != nil {
			t.Fatal(err)
		}
		cached = r.Usage.PromptTokensDetails.CachedTokens
	}
	if cached < 100 {
		t.Errorf("a repeated prompt had %d cached tokens", cached)
	}
	models, err := c.Models.List(t.Context())
	if err != nil || len(models.Data) != 1 || models.Data[0].ID != model {
		t.Errorf("models %+v %v", models, err)
	}
	m, err := c.Models.Get(t.Context(), model)
	if err != nil || m.ID != model {
		t.Errorf("model %+v %v", m, err)
	}
	text, err := c.Completions.New(t.Context(), openai.CompletionNewParams{
		Model: model, Prompt: openai.CompletionNewParamsPromptUnion{OfString: param.NewOpt("Once upon")}, MaxTokens: param.NewOpt[int64](5),
	})
	if err != nil || text.Choices[0].Text == "" {
		t.Errorf("completion %+v %v", text, err)
	}
}

func TestOpenAIErrorsAreTyped(t *testing.T) {
	c := fleet(t)
	p := chat("hi")
	p.Model = "gpt-none"
	_, err := c.Chat.Completions.New(t.Context(), p)
	if e, ok := errors.AsType[*openai.Error](err); !ok || e.StatusCode != 404 || e.Code != "model_not_found" || e.Param != "model" {
		t.Errorf("unknown model: %v", err)
	}
	p = chat(strings.Repeat("word ", 200_000))
	_, err = c.Chat.Completions.New(t.Context(), p)
	if e, ok := errors.AsType[*openai.Error](err); !ok || e.StatusCode != 400 || !strings.Contains(e.Message, "131072") {
		t.Errorf("over context: %.200v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stream := c.Chat.Completions.NewStreaming(ctx, chat("stop me"))
	if !stream.Next() {
		t.Fatal(stream.Err())
	}
	cancel()
	for stream.Next() {
	}
	if err := stream.Err(); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled stream: %v", err)
	}
}
