package server

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"penstock.dev/penstock/internal/enginesim"
)

// maxBody bounds a request's body; a prompt of the longest context is far
// smaller.
const maxBody = 64 << 20

// maxLogprobs bounds the alternatives shown with each token.
const maxLogprobs = 20

// wireRequest is a completion or chat request. Fields that do not change what
// is simulated are ignored, whatever they hold.
type wireRequest struct {
	Model     string          `json:"model"`
	Prompt    prompts         `json:"prompt"`
	Messages  []message       `json:"messages"`
	Tools     json.RawMessage `json:"tools"`
	CacheSalt string          `json:"cache_salt"`
	LoRAPath  string          `json:"lora_path"` // SGLang's way to name an adapter
	RID       string          `json:"rid"`       // SGLang's way to name the request

	ToolChoice     json.RawMessage `json:"tool_choice"`
	ResponseFormat struct {
		Type       string `json:"type"`
		JSONSchema struct {
			Schema any `json:"schema"`
		} `json:"json_schema"`
	} `json:"response_format"`
	StructuredOutputs struct {
		JSON any `json:"json"`
	} `json:"structured_outputs"`
	Logprobs    logprobs `json:"logprobs"`
	TopLogprobs *int     `json:"top_logprobs"`

	MaxTokens           *int   `json:"max_tokens"`
	MaxCompletionTokens *int   `json:"max_completion_tokens"`
	MinTokens           int    `json:"min_tokens"`
	IgnoreEOS           bool   `json:"ignore_eos"`
	Stop                stops  `json:"stop"`
	IncludeStop         bool   `json:"include_stop_str_in_output"`
	N                   *int   `json:"n"`
	Seed                *int64 `json:"seed"`
	Echo                bool   `json:"echo"`

	Temperature *float64 `json:"temperature"` // read for its type only
	TopP        *float64 `json:"top_p"`

	Stream        bool `json:"stream"`
	StreamOptions struct {
		IncludeUsage    bool `json:"include_usage"`
		ContinuousUsage bool `json:"continuous_usage_stats"`
	} `json:"stream_options"`

	wireTransfer

	fallback int // most tokens, if the request does not say; 0: 16
}

// prompts is one or several prompts, each as tokens.
type prompts [][]uint32

// UnmarshalJSON takes a string, a list of strings, a list of token ids or a
// list of such lists.
func (p *prompts) UnmarshalJSON(raw []byte) error {
	var text string
	var texts []string
	var ids []uint32
	var lists [][]uint32
	switch {
	case string(raw) == "null":
		*p = nil
	case json.Unmarshal(raw, &text) == nil:
		*p = prompts{appendTokens(nil, text)}
	case json.Unmarshal(raw, &texts) == nil:
		for _, t := range texts {
			*p = append(*p, appendTokens(nil, t))
		}
	case json.Unmarshal(raw, &ids) == nil:
		*p = prompts{ids}
	case json.Unmarshal(raw, &lists) == nil:
		*p = lists
	default:
		return errors.New("prompt or input: must be a string, a list of strings, a list of token ids or a list of lists of token ids")
	}
	return nil
}

// stops is the stop strings.
type stops []string

// UnmarshalJSON takes null, a string or a list of strings. Empty strings are
// left out.
func (s *stops) UnmarshalJSON(raw []byte) error {
	var one string
	var list []string
	if json.Unmarshal(raw, &one) == nil {
		list = []string{one}
	} else if json.Unmarshal(raw, &list) != nil {
		return errors.New("stop: must be a string or a list of strings")
	}
	*s = nil
	for _, t := range list {
		if t != "" {
			*s = append(*s, t)
		}
	}
	return nil
}

// readJSON decodes the body of r into v, or says what is wrong with it as a
// client should read it.
func readJSON(r *http.Request, v any) error {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return &apiError{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", maxBody), ""}
		}
		return badRequest("", "reading the body: %v", err)
	}
	err = json.Unmarshal(body, v)
	if err == nil {
		return nil
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return badRequest(wrong.Field, "%s: a JSON %s is not possible here", wrong.Field, wrong.Value)
	}
	return badRequest("", "the body is not a valid request: %v", err)
}

// plan turns a request into the sequences it asks for, and says which model
// will answer.
func (s *Server) plan(q *wireRequest, chat bool) (choices []choice, model string, err error) {
	served, err := s.find(q.Model, q.LoRAPath)
	if err != nil {
		return nil, "", err
	}
	list, v, err := q.prompts(chat)
	if err != nil {
		return nil, "", err
	}
	script, err := q.script()
	if err != nil {
		return nil, "", err
	}
	for _, tokens := range list {
		limit, err := s.outputLimit(q, len(tokens), chat)
		if err != nil {
			return nil, "", err
		}
		choices = append(choices, s.speak(q, served.adapter, tokens, limit, v, script)...)
	}
	if chat && len(choices) > 0 {
		choices[0].sight = sightOf(q.Messages, q.Encoded)
	}
	if s.options.Encoder && (len(choices) == 0 || choices[0].sight == nil) {
		return nil, "", badRequest("messages", "this engine only encodes images, and there is none")
	}
	return choices, served.name, s.join(q, choices)
}

// prompts checks a request and returns the tokens of each prompt, and in which
// voice to go on.
func (q *wireRequest) prompts(chat bool) (prompts, voice, error) {
	switch n := q.count(); {
	case n < 1 || n > 128:
		return nil, 0, badRequest("n", "n must be 1 to 128, got %d", n)
	case q.Echo:
		return nil, 0, badRequest("echo", "echo is not supported by this engine")
	case q.MinTokens < 0:
		return nil, 0, badRequest("min_tokens", "min_tokens must be at least 0, got %d", q.MinTokens)
	case q.TopLogprobs != nil && (*q.TopLogprobs < 0 || *q.TopLogprobs > maxLogprobs) || q.Logprobs.top < 0 || q.Logprobs.top > maxLogprobs:
		return nil, 0, badRequest("logprobs", "at most %d log probabilities per token are shown", maxLogprobs)
	}
	if chat {
		tokens, err := appendChat(nil, q.Messages, q.Tools)
		if err != nil {
			return nil, 0, badRequest("messages", "%v", err)
		}
		return prompts{tokens}, voiceStart, nil
	}
	if len(q.Prompt) == 0 {
		return nil, 0, badRequest("prompt", "prompt: must be given")
	}
	return q.Prompt, voiceMiddle, nil
}

// count is how many choices of each prompt are asked for.
func (q *wireRequest) count() int {
	if q.N == nil {
		return 1
	}
	return *q.N
}

// outputLimit is the most tokens that may follow a prompt of the given length.
func (s *Server) outputLimit(q *wireRequest, prompt int, chat bool) (int, error) {
	asked := q.MaxTokens
	if q.MaxCompletionTokens != nil && chat {
		asked = q.MaxCompletionTokens
	}
	room := int(s.options.MaxModelLen)
	part := "prompt"
	if chat {
		part = "messages"
	}
	switch {
	case prompt == 0:
		return 0, badRequest(part, "%s: must hold at least one token", part)
	case prompt >= room:
		return 0, badRequest(part, "This model's maximum context length is %d tokens. However, your request has %d input tokens. Please reduce the length of the %s.",
			room, prompt, part)
	case asked == nil && chat:
		return room - prompt, nil
	case asked == nil:
		return min(cmp.Or(q.fallback, 16), room-prompt), nil // 16 is the API's default for completions
	case *asked < 1:
		return 0, badRequest("max_tokens", "max_tokens must be at least 1, got %d.", *asked)
	case *asked > room-prompt:
		return 0, badRequest("max_tokens", "This model's maximum context length is %d tokens. However, you requested %d tokens (%d in the %s, %d in the completion). Please reduce the length of the %s or completion.",
			room, prompt+*asked, prompt, part, *asked, part)
	}
	return *asked, nil
}

// startOf is where every prompt begins: nothing is shared between adapters, nor
// between cache salts.
func startOf(adapter, salt string) enginesim.Context {
	if adapter != "" {
		salt = adapter + "\x00" + salt
	}
	return enginesim.NewContext(salt)
}

// speak composes the answers to one prompt.
func (s *Server) speak(q *wireRequest, adapter string, tokens []uint32, limit int, v voice, sc script) []choice {
	n := q.count()
	blocks := (len(tokens) + limit) / int(enginesim.BlockTokens)
	chain, c := enginesim.Chain(make([]uint64, 0, min(blocks, len(tokens)/int(enginesim.BlockTokens)+64)),
		startOf(adapter, q.CacheSalt), tokens)
	choices := make([]choice, n)
	for i := range choices {
		t := terms{seed: s.options.Seed, max: limit, min: q.MinTokens, natural: limit + 1, stops: q.Stop, keepStop: q.IncludeStop, keep: s.kv != nil}
		if q.Seed != nil {
			t.seed ^= uint64(*q.Seed) << 8
		}
		t.seed += uint64(i) << 56 // choices of one prompt differ
		if !q.IgnoreEOS {
			t.natural = int(c.Length(t.seed, s.options.OutputMean))
		}
		own := chain
		if n > 1 {
			own = append(make([]uint64, 0, cap(chain)), chain...)
		}
		choices[i] = choice{prompt: len(tokens), repeat: i > 0, max: limit, adapter: adapter, tokens: tokens, salt: q.CacheSalt}
		if sc.object || len(sc.tools) > 0 {
			choices[i].answer = sc.recite(len(tokens), c, own, t)
		} else {
			choices[i].answer = compose(len(tokens), c, own, v, t)
		}
	}
	return choices
}
