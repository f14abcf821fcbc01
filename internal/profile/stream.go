package profile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sort"
	"strings"
	"time"

	"penstock.dev/penstock/internal/engine"
)

// asker sends single streamed requests and times their answers. What an engine
// turns out not to know is left away from then on.
type asker struct {
	client  *engine.Client
	base    string
	model   string
	dialect engine.Dialect
	rand    *rand.Rand

	chat     bool    // completions are not there
	plain    bool    // without fields that the public API does not have
	noUsage  bool    // without stream_options
	perToken float64 // bytes of prompt per token, as the engine was last seen to count
}

// firstPerToken is the bytes of random words that a token is taken to hold before
// the engine has counted any: few, since prompts that come out too long are
// refused.
const firstPerToken = 2.5

// answer is one answer with the times, since it was asked for, at which parts of
// it came. It is taken apart when all is over, so that reading one stream does not
// delay the others.
type answer struct {
	raw   []byte
	marks []mark

	tokens  []time.Duration // events with text
	prompt  int             // tokens; 0 when the engine does not count
	cached  int
	output  int // tokens; 0 when the engine does not count
	ended   bool
	started time.Time
}

// mark says that raw was there up to end after so long.
type mark struct {
	end int
	at  time.Duration
}

// refusal is an answer whose status is an error.
type refusal struct {
	status int
	text   string
}

// Error implements error.
func (r *refusal) Error() string {
	return fmt.Sprintf("status %d: %s", r.status, strings.Join(strings.Fields(r.text), " "))
}

// words is a prompt of about so many bytes that nobody has sent before: random
// syllables, so that no part of it is in a prefix cache.
func (a *asker) words(n int) string {
	const consonants, vowels = "bcdfghjklmnprstvwz", "aeiou"
	b := make([]byte, 0, n+8)
	for len(b) < n {
		for range 1 + a.rand.IntN(3) {
			b = append(b, consonants[a.rand.IntN(len(consonants))], vowels[a.rand.IntN(len(vowels))])
		}
		b = append(b, ' ')
	}
	return string(b[:max(n, 1)])
}

// request is a body and how many bytes of it are the prompt's.
type request struct {
	body []byte
	text int
}

// request makes one with a new prompt of about so many tokens.
func (a *asker) request(prompt, output int) (request, error) {
	if a.perToken <= 0 {
		a.perToken = firstPerToken
	}
	text := a.words(int(float64(prompt) * a.perToken))
	fields := map[string]any{"model": a.model, "max_tokens": output, "stream": true}
	if a.chat {
		fields["messages"] = []map[string]string{{"role": "user", "content": text}}
	} else {
		fields["prompt"] = text
	}
	if !a.plain {
		a.dialect.Fix(fields, output)
	}
	if !a.noUsage {
		fields["stream_options"] = map[string]bool{"include_usage": true}
	}
	body, err := json.Marshal(fields)
	return request{body, len(text)}, err
}

// introduce sends a first request and leaves away, one after the other, what the
// engine refuses for not knowing it.
func (a *asker) introduce(ctx context.Context, prompt, output int) (*answer, error) {
	for {
		q, err := a.request(prompt, output)
		if err != nil {
			return nil, err
		}
		r, err := a.ask(ctx, q.body)
		no, refused := errors.AsType[*refusal](err)
		unknown := refused && (no.status == http.StatusBadRequest || no.status == http.StatusUnprocessableEntity)
		switch {
		case refused && no.status == http.StatusNotFound && !a.chat:
			a.chat = true
		case unknown && !a.plain && a.dialect.Fix(map[string]any{}, output):
			a.plain = true
		case unknown && !a.noUsage:
			a.noUsage = true
		case err != nil:
			return nil, err
		default:
			a.learn(r, q)
			return r, nil
		}
	}
}

// learn takes the engine's count of a prompt for the next one's length.
func (a *asker) learn(r *answer, q request) {
	const enough = 64 // tokens beside which those of a chat's template do not count
	if r.prompt >= enough {
		a.perToken = float64(q.text) / float64(r.prompt)
	}
}

// maxAnswer bounds an answer: a token's event has some hundred bytes.
const maxAnswer = 64 << 20

// ask sends a request and reads the answer to its end.
func (a *asker) ask(ctx context.Context, body []byte) (*answer, error) {
	path := "/v1/completions"
	if a.chat {
		path = "/v1/chat/completions"
	}
	r := &answer{started: time.Now()}
	resp, _, err := a.client.Send(ctx, a.base, path, http.Header{"Content-Type": {"application/json"}, "Accept": {"text/event-stream"}}, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300)) // the status says enough without
		return nil, &refusal{resp.StatusCode, string(text)}
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			r.raw = append(r.raw, buf[:n]...)
			r.marks = append(r.marks, mark{len(r.raw), time.Since(r.started)})
		}
		switch {
		case errors.Is(err, io.EOF):
			return r, r.parse()
		case err != nil:
			return nil, fmt.Errorf("the answer broke off: %w", err)
		case len(r.raw) > maxAnswer:
			return nil, fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
		}
	}
}

// event is what matters of one event of a stream.
type event struct {
	Error   json.RawMessage `json:"error"`
	Choices []struct {
		Text   string  `json:"text"`
		Finish *string `json:"finish_reason"`
		Delta  struct {
			Content          string `json:"content"`
			Reasoning        string `json:"reasoning"`
			ReasoningContent string `json:"reasoning_content"`
		} `json:"delta"`
	} `json:"choices"`
	Usage *struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
		Details    *struct {
			Cached int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	} `json:"usage"`
}

// parse takes the answer apart.
func (r *answer) parse() error {
	for at := 0; at < len(r.raw); {
		end := bytes.IndexByte(r.raw[at:], '\n')
		if end < 0 {
			break
		}
		line := r.raw[at : at+end]
		at += end + 1
		data, ok := bytes.CutPrefix(line, []byte("data:"))
		if data = bytes.TrimSpace(data); !ok || string(data) == "[DONE]" {
			continue
		}
		var e event
		if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("an event is not JSON: %w", err)
		}
		if len(e.Error) > 0 && string(e.Error) != "null" {
			return fmt.Errorf("an error in the stream: %.200s", e.Error)
		}
		r.take(&e, at)
	}
	r.raw = nil
	if !r.ended || len(r.tokens) == 0 {
		return errors.New("the stream ended before the answer")
	}
	return nil
}

// take notes an event that was there when raw had reached end.
func (r *answer) take(e *event, end int) {
	text := false
	for _, c := range e.Choices {
		text = text || c.Text+c.Delta.Content+c.Delta.Reasoning+c.Delta.ReasoningContent != ""
		r.ended = r.ended || c.Finish != nil && *c.Finish != ""
	}
	if text {
		i := sort.Search(len(r.marks), func(i int) bool { return r.marks[i].end >= end })
		r.tokens = append(r.tokens, r.marks[i].at)
	}
	if u := e.Usage; u != nil && u.Completion > 0 {
		r.prompt, r.output, r.cached = u.Prompt, u.Completion, 0
		if u.Details != nil {
			r.cached = u.Details.Cached
		}
	}
}

// perEvent is how many tokens an event with text stands for.
func (r *answer) perEvent() float64 {
	if r.output == 0 {
		return 1
	}
	return float64(r.output) / float64(len(r.tokens))
}
