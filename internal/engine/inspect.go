package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Report is what an inspection found of one engine.
type Report struct {
	URL      string    `json:"url"`
	Dialect  string    `json:"dialect"`
	Because  string    `json:"because"`
	Model    string    `json:"model"` // the one asked
	Models   []string  `json:"models"`
	Adapters []string  `json:"adapters,omitempty"`
	Gauges   []string  `json:"gauges"`
	Missing  []string  `json:"missingGauges,omitempty"`
	Findings []Finding `json:"findings"`
}

// Finding is the answer to one question put to an engine.
type Finding struct {
	Question string  `json:"question"`
	Answer   Answer  `json:"answer"`
	Detail   string  `json:"detail,omitempty"`
	Millis   float64 `json:"ms"`
}

// Answer is how a question came out.
type Answer string

// The answers.
const (
	Yes     Answer = "yes"
	No      Answer = "no"
	Odd     Answer = "odd"     // it answers, and not as it should
	Unknown Answer = "unknown" // it could not be told
)

// Serves reports whether the engine can stand behind a gateway at all: it lists
// models and generates.
func (r *Report) Serves() bool {
	generates, lists := false, false
	for _, f := range r.Findings {
		generates = generates || f.Answer == Yes && (f.Question == askChat || f.Question == askCompletions)
		lists = lists || f.Answer == Yes && f.Question == askModels
	}
	return generates && lists
}

// The questions that Serves looks at.
const (
	askModels      = "lists models"
	askChat        = "chat"
	askCompletions = "completions"
)

// inspection is one run of the questions.
type inspection struct {
	c      *Client
	base   string
	model  string
	d      Dialect
	limit  time.Duration
	report *Report
}

// question is one thing to find out. It gets at most the inspection's time
// limit.
type question struct {
	name string
	ask  func(*inspection, context.Context) (Answer, string)
}

// questions are put in this order. Together they send about twenty requests,
// each for a few tokens but that of the last, which is broken off.
var questions = []question{
	{"healthy", (*inspection).health},
	{askModels, (*inspection).models},
	{"tells its gauges", (*inspection).gauges},
	{askChat, (*inspection).chat},
	{"chat, streamed", (*inspection).chatStream},
	{"usage in streams on demand", (*inspection).streamUsage},
	{askCompletions, (*inspection).completions},
	{"completions, streamed", (*inspection).completionStream},
	{"prompts as token ids", (*inspection).tokenIDs},
	{"tells cached tokens", (*inspection).cachedTokens},
	{"400 for what is not JSON", (*inspection).malformed},
	{"404 for an unknown model", (*inspection).unknownModel},
	{"tokenize", (*inspection).tokenize},
	{"embeddings", (*inspection).embeddings},
	{"messages (Anthropic)", (*inspection).messages},
	{"count_tokens (Anthropic)", (*inspection).countTokens},
	{"responses", (*inspection).responses},
	{"rerank", (*inspection).rerank},
	{"score", (*inspection).score},
	{"stops when the client leaves", (*inspection).abort},
}

// Inspect asks an engine what it can do. It sends a few short requests and
// changes nothing. model is the model to ask; "" for the first one listed. Each
// question may take limit.
func (c *Client) Inspect(ctx context.Context, base, model string, limit time.Duration) (*Report, error) {
	found, err := c.Detect(ctx, base)
	if err != nil {
		return nil, err
	}
	i := &inspection{c: c, base: base, model: model, d: found.Dialect, limit: limit, report: &Report{
		URL: base, Dialect: found.Dialect.Name, Because: found.Why, Models: []string{}, Gauges: []string{},
	}}
	for _, q := range questions {
		i.put(ctx, q)
		if err := ctx.Err(); err != nil {
			return i.report, fmt.Errorf("inspection of %s: %w", base, err)
		}
	}
	i.report.Model = i.model
	return i.report, nil
}

func (i *inspection) put(ctx context.Context, q question) {
	ctx, cancel := context.WithTimeout(ctx, i.limit)
	defer cancel()
	begun := time.Now()
	answer, detail := q.ask(i, ctx)
	i.report.Findings = append(i.report.Findings, Finding{
		Question: q.name, Answer: answer, Detail: detail, Millis: float64(time.Since(begun).Microseconds()) / 1e3,
	})
}

func (i *inspection) health(ctx context.Context) (Answer, string) {
	if err := i.c.Healthy(ctx, i.d, i.base); err != nil {
		return No, err.Error()
	}
	return Yes, "GET " + i.d.Health
}

func (i *inspection) models(ctx context.Context) (Answer, string) {
	models, err := i.c.Models(ctx, i.base)
	if err != nil {
		return No, err.Error()
	}
	length := fleet.Tokens(0)
	for _, m := range models {
		if m.Parent != "" {
			i.report.Adapters = append(i.report.Adapters, m.ID)
			continue
		}
		i.report.Models = append(i.report.Models, m.ID)
		if i.model == "" {
			i.model = m.ID
		}
		if m.ID == i.model {
			length = m.MaxModelLen
		}
	}
	detail := fmt.Sprintf("%d models, %d adapters", len(i.report.Models), len(i.report.Adapters))
	if length > 0 {
		detail += fmt.Sprintf(", context of %d tokens", length)
	}
	return Yes, detail
}

func (i *inspection) gauges(ctx context.Context) (Answer, string) {
	if i.d.Metrics == "" {
		return No, "this kind of engine has no metrics page: load is known from the gateway's own ledger"
	}
	r, _, _, err := i.c.Scrape(ctx, i.d, i.base, nil)
	i.report.Gauges = append(i.report.Gauges, r.Known.Names()...)
	i.report.Missing = r.Missing.Names()
	switch {
	case err != nil:
		return No, err.Error()
	case r.Known == 0:
		return No, i.d.Metrics + " is not there: the engine must be started with it"
	case r.Missing != 0:
		return Odd, "missing, so unknown: " + strings.Join(r.Missing.Names(), ", ")
	}
	return Yes, strings.Join(r.Known.Names(), ", ")
}

// answerLimit is the largest answer read.
const answerLimit = 8 << 20

// post sends a JSON body and returns status and answer.
func (i *inspection) post(ctx context.Context, path string, body any) (int, []byte, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return 0, nil, err
	}
	return i.postRaw(ctx, path, raw)
}

func (i *inspection) postRaw(ctx context.Context, path string, raw []byte) (int, []byte, error) {
	resp, _, err := i.c.Send(ctx, i.base, path, http.Header{"Content-Type": {"application/json"}}, raw)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	out, err := readInto(nil, resp.Body, answerLimit)
	return resp.StatusCode, out, err
}

// fields are a request's body.
type fields map[string]any

// generation is what the questions read of any answer.
type generation struct {
	Object  string          `json:"object"`
	Error   json.RawMessage `json:"error"`
	Choices []struct {
		FinishReason *string         `json:"finish_reason"`
		Text         *string         `json:"text"`
		Message      json.RawMessage `json:"message"`
		Delta        json.RawMessage `json:"delta"`
	} `json:"choices"`
	Usage *struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
		Details    *struct {
			Cached *int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	} `json:"usage"`
}

// errAbsent is the answer of an engine that does not have a path.
var errAbsent = errors.New("no such path")

// generate posts a request and reads the answer to it.
func (i *inspection) generate(ctx context.Context, path string, body fields) (generation, error) {
	body["model"] = i.model
	status, raw, err := i.post(ctx, path, body)
	var g generation
	switch {
	case err != nil:
		return g, err
	case isAbsent(status):
		return g, fmt.Errorf("%w: status %d for %s", errAbsent, status, path)
	case status != http.StatusOK:
		return g, fmt.Errorf("status %d: %s", status, excerpt(raw))
	}
	if err := json.Unmarshal(raw, &g); err != nil {
		return g, fmt.Errorf("the answer is not JSON: %w", err)
	}
	if len(g.Error) > 0 && string(g.Error) != "null" {
		return g, fmt.Errorf("status 200 with an error inside: %s", excerpt(g.Error))
	}
	return g, nil
}

// excerpt shortens an answer to a line.
func excerpt(raw []byte) string {
	const most = 160
	s := strings.Join(strings.Fields(strings.ToValidUTF8(string(raw[:min(len(raw), 4*most)]), "?")), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
