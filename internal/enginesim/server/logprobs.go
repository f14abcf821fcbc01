package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"penstock.dev/penstock/internal/stat"
)

// logprobs is how many alternatives to show with each token: chat asks with
// true and top_logprobs, completions with a number.
type logprobs struct {
	on  bool
	top int
}

// UnmarshalJSON takes null, a boolean or a number.
func (l *logprobs) UnmarshalJSON(raw []byte) error {
	if string(raw) == "null" || json.Unmarshal(raw, &l.on) == nil {
		return nil
	}
	if json.Unmarshal(raw, &l.top) != nil {
		return errors.New("logprobs: must be a boolean or a number")
	}
	l.on = true
	return nil
}

func (l *logprobs) wanted() bool { return l.on }

// likely is one token and how likely it was.
type likely struct {
	Token   string   `json:"token"`
	Logprob float64  `json:"logprob"`
	Bytes   []int    `json:"bytes"`
	Top     []likely `json:"top_logprobs,omitempty"`
}

// guess makes up the probability of a token of choice i, the same wherever the
// token is sent, and up to top alternatives that are less likely.
func guess(text string, n, top int) likely {
	draw := stat.Mix64(uint64(n)<<8 ^ uint64(len(text)))
	for i := range len(text) {
		draw = stat.Mix64(draw ^ uint64(text[i]))
	}
	l := likely{Token: text, Logprob: -float64(draw%1000) / 1000, Bytes: bytesOf(text)}
	for k := range top {
		alternative := likely{Token: text, Logprob: l.Logprob - float64(k)/2, Bytes: l.Bytes}
		if k > 0 {
			alternative.Token = fmt.Sprintf("%s_%d", text, k)
			alternative.Bytes = bytesOf(alternative.Token)
		}
		l.Top = append(l.Top, alternative)
	}
	return l
}

func bytesOf(s string) []int {
	b := make([]int, len(s))
	for i := range len(s) {
		b[i] = int(s[i])
	}
	return b
}

// appendLogprobs appends the log probabilities of tokens from..to of choice i;
// null unless the request wants them.
func (p *reply) appendLogprobs(b []byte, i, from, to int) []byte {
	a := &p.choices[i].answer
	if !p.query.Logprobs.on || p.chat && a.tool != "" {
		return append(b, "null"...)
	}
	top := p.query.Logprobs.top
	if p.query.TopLogprobs != nil && p.chat {
		top = *p.query.TopLogprobs
	}
	var tokens []likely
	for n := from; n < to; n++ {
		if text := a.delta(n); text != "" {
			tokens = append(tokens, guess(text, n, top))
		}
	}
	if p.chat {
		return appendJSON(b, map[string]any{"content": tokens})
	}
	return p.appendOldLogprobs(b, a, from, tokens)
}

// appendOldLogprobs writes them as the completions API has them, in parallel
// lists.
func (p *reply) appendOldLogprobs(b []byte, a *answer, from int, tokens []likely) []byte {
	offset := 0
	if from > 0 {
		offset = a.ends[from-1]
	}
	var offsets, names, values, tops []byte
	for k, t := range tokens {
		if k > 0 {
			offsets, names, values, tops = append(offsets, ','), append(names, ','), append(values, ','), append(tops, ',')
		}
		offsets = strconv.AppendInt(offsets, int64(offset), 10)
		names = append(names, quote(t.Token)...)
		values = appendJSON(values, t.Logprob)
		best := map[string]float64{t.Token: t.Logprob}
		for _, o := range t.Top {
			best[o.Token] = o.Logprob
		}
		tops = appendJSON(tops, best)
		offset += len(t.Token)
	}
	return fmt.Appendf(b, `{"text_offset":[%s],"token_logprobs":[%s],"tokens":[%s],"top_logprobs":[%s]}`, offsets, values, names, tops)
}
