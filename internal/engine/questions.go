package engine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// few is how many tokens the questions ask for.
const few = 8

func hello() []fields { return []fields{{"role": "user", "content": "Say hello."}} }

// verdict turns the outcome of a plain question into an answer, and notes where
// it is not what the dialect is thought to do.
func (i *inspection) verdict(api API, err error, detail string) (Answer, string) {
	claimed := i.d.Speaks.Has(api)
	switch {
	case err == nil && !claimed:
		return Yes, join(detail, "not known of "+i.d.Name)
	case err == nil:
		return Yes, detail
	case errors.Is(err, errAbsent) && claimed:
		return No, join(err.Error(), "known of "+i.d.Name+": a setting, or an older release?")
	}
	return No, err.Error()
}

func join(a, b string) string { return strings.TrimPrefix(a+"; "+b, "; ") }

func (i *inspection) chat(ctx context.Context) (Answer, string) {
	g, err := i.generate(ctx, "/v1/chat/completions", fields{"messages": hello(), "max_tokens": few})
	if err == nil && (len(g.Choices) == 0 || len(g.Choices[0].Message) == 0) {
		return Odd, "an answer without a message"
	}
	return i.verdict(APIChat, err, usageOf(g))
}

func (i *inspection) completions(ctx context.Context) (Answer, string) {
	g, err := i.generate(ctx, "/v1/completions", fields{"prompt": "Hello", "max_tokens": few})
	if err == nil && (len(g.Choices) == 0 || g.Choices[0].Text == nil) {
		return Odd, "an answer without text"
	}
	return i.verdict(APICompletions, err, usageOf(g))
}

func usageOf(g generation) string {
	switch {
	case g.Usage == nil:
		return "no usage"
	case g.Usage.Prompt == 0 && g.Usage.Completion == 0:
		return "usage is all zero"
	}
	return fmt.Sprintf("usage %d + %d tokens", g.Usage.Prompt, g.Usage.Completion)
}

// streamed is what a stream came to.
type streamed struct {
	events   int
	usage    int // events with a usage that is not null
	finished bool
	done     bool // ended with [DONE]
	last     generation
}

// stream posts a streamed request and reads it to its end, or until stop is
// true.
func (i *inspection) stream(ctx context.Context, path string, body fields, stop func(*streamed) bool) (streamed, error) {
	var s streamed
	body["model"], body["stream"] = i.model, true
	raw, err := json.Marshal(body)
	if err != nil {
		return s, err
	}
	resp, _, err := i.c.Send(ctx, i.base, path, http.Header{"Content-Type": {"application/json"}, "Accept": {"text/event-stream"}}, raw)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	if isAbsent(resp.StatusCode) {
		return s, fmt.Errorf("%w: status %d for %s", errAbsent, resp.StatusCode, path)
	}
	if t := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(t, "text/event-stream") {
		head, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // an excerpt of what there is
		return s, fmt.Errorf("status %d of type %q: %s", resp.StatusCode, t, excerpt(head))
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, answerLimit)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data:"))
		if !ok {
			continue
		}
		if err := s.take(bytes.TrimSpace(data)); err != nil {
			return s, err
		}
		if stop != nil && stop(&s) {
			return s, nil
		}
	}
	return s, lines.Err()
}

// take reads one event.
func (s *streamed) take(data []byte) error {
	if string(data) == "[DONE]" {
		s.done = true
		return nil
	}
	s.events++
	var g generation
	if err := json.Unmarshal(data, &g); err != nil {
		return fmt.Errorf("event %d is not JSON: %w", s.events, err)
	}
	if len(g.Error) > 0 && string(g.Error) != "null" {
		return fmt.Errorf("an error in the stream: %s", excerpt(g.Error))
	}
	if g.Usage != nil {
		s.usage++
	}
	for _, c := range g.Choices {
		s.finished = s.finished || c.FinishReason != nil && *c.FinishReason != ""
	}
	s.last = g
	return nil
}

// whole judges a stream that was read to its end.
func (i *inspection) whole(api API, s streamed, err error) (Answer, string) {
	switch {
	case err == nil && !s.finished:
		return Odd, fmt.Sprintf("%d events and no finish reason: cannot be told from a broken stream", s.events)
	case err == nil && !s.done:
		return Odd, fmt.Sprintf("%d events, no [DONE]", s.events)
	}
	return i.verdict(api, err, fmt.Sprintf("%d events", s.events))
}

func (i *inspection) chatStream(ctx context.Context) (Answer, string) {
	s, err := i.stream(ctx, "/v1/chat/completions", fields{"messages": hello(), "max_tokens": few}, nil)
	return i.whole(APIChat, s, err)
}

func (i *inspection) completionStream(ctx context.Context) (Answer, string) {
	s, err := i.stream(ctx, "/v1/completions", fields{"prompt": "Hello", "max_tokens": few}, nil)
	return i.whole(APICompletions, s, err)
}

func (i *inspection) streamUsage(ctx context.Context) (Answer, string) {
	body := fields{"messages": hello(), "max_tokens": few, "stream_options": fields{"include_usage": true}}
	s, err := i.stream(ctx, "/v1/chat/completions", body, nil)
	switch {
	case err != nil:
		return No, err.Error()
	case s.usage == 0:
		return No, "stream_options.include_usage has no effect"
	case s.last.Usage == nil || s.last.Usage.Prompt == 0:
		return Odd, "usage does not come in the last event"
	}
	return Yes, usageOf(s.last)
}

func (i *inspection) tokenIDs(ctx context.Context) (Answer, string) {
	g, err := i.generate(ctx, "/v1/completions", fields{"prompt": []int{1, 2, 3, 4}, "max_tokens": 1})
	if err != nil {
		return No, err.Error()
	}
	return Yes, usageOf(g)
}

// cachedTokens sends one prompt twice. The prompt is new in every inspection, so
// that the first answer must not find it.
func (i *inspection) cachedTokens(ctx context.Context) (Answer, string) {
	prompt := "Inspection " + strconv.FormatInt(time.Now().UnixNano(), 36) + ". " + strings.Repeat("The gate lets in as much water as the wheel can turn. ", 40)
	var cached [2]int
	for n := range cached {
		g, err := i.generate(ctx, "/v1/completions", fields{"prompt": prompt, "max_tokens": 1})
		switch {
		case err != nil:
			return Unknown, err.Error()
		case g.Usage == nil || g.Usage.Details == nil || g.Usage.Details.Cached == nil:
			return No, "usage has no prompt_tokens_details.cached_tokens: what is cached is believed, not confirmed"
		}
		cached[n] = *g.Usage.Details.Cached
	}
	switch {
	case cached[0] >= cached[1] && cached[1] > 0:
		return Odd, fmt.Sprintf("a new prompt had %d tokens cached, the same again %d", cached[0], cached[1])
	case cached[1] == 0:
		return Odd, "the same prompt twice, and nothing cached: is prefix caching on?"
	}
	return Yes, fmt.Sprintf("%d, then %d when repeated", cached[0], cached[1])
}

func (i *inspection) malformed(ctx context.Context) (Answer, string) {
	status, raw, err := i.postRaw(ctx, "/v1/chat/completions", []byte(`{"model": "x", "messages": [`))
	return refusal(status, raw, err, http.StatusBadRequest)
}

func (i *inspection) unknownModel(ctx context.Context) (Answer, string) {
	status, raw, err := i.post(ctx, "/v1/chat/completions", fields{"model": "penstock-no-such-model", "messages": hello(), "max_tokens": 1})
	return refusal(status, raw, err, http.StatusNotFound)
}

// refusal judges an error answer: its status, and whether it has the public
// API's form.
func refusal(status int, raw []byte, err error, want int) (Answer, string) {
	switch {
	case err != nil:
		return Unknown, err.Error()
	case status != want && status < 400:
		return No, fmt.Sprintf("status %d", status)
	case status != want:
		return Odd, fmt.Sprintf("status %d: %s", status, excerpt(raw))
	}
	var body struct {
		Error *struct {
			Message string `json:"message"`
			Type    string `json:"type"`
		} `json:"error"`
	}
	if json.Unmarshal(raw, &body) != nil || body.Error == nil || body.Error.Message == "" {
		return Odd, "without an error object: " + excerpt(raw)
	}
	return Yes, "type " + body.Error.Type
}

// plain asks whether a path answers a body with JSON that has a field.
func (i *inspection) plain(ctx context.Context, api API, path, field string, body fields) (Answer, string) {
	body["model"] = i.model
	status, raw, err := i.post(ctx, path, body)
	switch {
	case err != nil:
	case isAbsent(status):
		err = fmt.Errorf("%w: status %d for %s", errAbsent, status, path)
	case status != http.StatusOK:
		err = fmt.Errorf("status %d: %s", status, excerpt(raw))
	}
	if err != nil {
		return i.verdict(api, err, "")
	}
	var answer map[string]json.RawMessage
	if json.Unmarshal(raw, &answer) != nil || answer[field] == nil {
		return Odd, fmt.Sprintf("an answer without %q: %s", field, excerpt(raw))
	}
	return i.verdict(api, nil, "")
}

func (i *inspection) tokenize(ctx context.Context) (Answer, string) {
	// llama.cpp calls the text by another name.
	return i.plain(ctx, APITokenize, "/tokenize", "tokens", fields{"prompt": "Hello", "content": "Hello"})
}

func (i *inspection) embeddings(ctx context.Context) (Answer, string) {
	return i.plain(ctx, APIEmbeddings, "/v1/embeddings", "data", fields{"input": []string{"Hello"}})
}

func (i *inspection) messages(ctx context.Context) (Answer, string) {
	return i.plain(ctx, APIMessages, "/v1/messages", "content", fields{"messages": hello(), "max_tokens": few})
}

func (i *inspection) countTokens(ctx context.Context) (Answer, string) {
	return i.plain(ctx, APICountTokens, "/v1/messages/count_tokens", "input_tokens", fields{"messages": hello()})
}

func (i *inspection) responses(ctx context.Context) (Answer, string) {
	return i.plain(ctx, APIResponses, "/v1/responses", "output", fields{"input": "Hello", "max_output_tokens": 16, "store": false})
}

func (i *inspection) rerank(ctx context.Context) (Answer, string) {
	return i.plain(ctx, APIRerank, "/v1/rerank", "results", fields{"query": "water", "documents": []string{"a river", "a stone"}})
}

func (i *inspection) score(ctx context.Context) (Answer, string) {
	return i.plain(ctx, APIScore, "/v1/score", "data", fields{"text_1": "water", "text_2": []string{"a river"}})
}

// The request that is broken off: long enough to be seen running afterwards, and
// how long the engine may take to notice.
const (
	abortTokens = 400
	abortWait   = 3 * time.Second
	abortPoll   = 50 * time.Millisecond
)

// abort breaks a stream off and watches the gauges. Only an otherwise idle
// engine can tell.
func (i *inspection) abort(ctx context.Context) (Answer, string) {
	busy := func() (int, bool) {
		r, _, _, err := i.c.Scrape(ctx, i.d, i.base, nil)
		return r.Running + r.Waiting, err == nil && r.Known.Has(fleet.KnownRunning)
	}
	switch n, known := busy(); {
	case !known:
		return Unknown, "it does not tell how many requests run"
	case n > 0:
		return Unknown, fmt.Sprintf("%d requests of others run", n)
	}
	body := fields{"prompt": "Tell a long story.", "max_tokens": abortTokens, "min_tokens": abortTokens, "ignore_eos": true}
	seen := false
	s, err := i.stream(ctx, "/v1/completions", body, func(s *streamed) bool {
		if s.events == 1 {
			n, _ := busy()
			seen = n > 0
		}
		return true
	})
	switch {
	case err != nil:
		return Unknown, err.Error()
	case s.events == 0 || !seen:
		return Unknown, "the gauges did not show the request while it ran"
	}
	left := time.Now()
	for time.Since(left) < abortWait {
		if n, known := busy(); known && n == 0 {
			return Yes, fmt.Sprintf("nothing runs %d ms after leaving", time.Since(left).Milliseconds())
		}
		select {
		case <-time.After(abortPoll):
		case <-ctx.Done():
			return Unknown, ctx.Err().Error()
		}
	}
	return No, fmt.Sprintf("still running %v after the client left: its slot is freed late", abortWait)
}
