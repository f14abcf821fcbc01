package api

// Kind is the API that a request speaks.
type Kind uint8

// The kinds of request.
const (
	Chat Kind = iota
	Completion
	Responses
	Messages
	CountTokens
	Embeddings
	Tokenize
	Rerank
	Score
	Other // any other body that names a model
)

// shape says which fields of a body mean what to routing.
type shape struct {
	lead     string   // what engines put before the prompt
	prompt   []string // the fields that can be the prompt; the last one present counts
	starts   string   // the bytes a prompt's value may begin with; "" for any
	wants    string   // the same in words
	required bool
	limit    []string // the fields that bound the output
	echo     bool     // no output at all may be asked for
	salted   bool     // the API has a cache_salt

	continues bool // a request can continue a stored response
}

const listOfMessages = "must be an array of messages"

var shapes = [...]shape{
	Chat: {
		prompt: []string{"messages"}, starts: "[", wants: listOfMessages, required: true,
		limit: []string{"max_tokens", "max_completion_tokens"}, salted: true,
	},
	Completion: {
		prompt: []string{"prompt"}, starts: "[\"", wants: "must be a string, or an array of strings or token ids", required: true,
		limit: []string{"max_tokens", "max_completion_tokens"}, echo: true, salted: true,
	},
	Responses: {
		lead: "instructions", prompt: []string{"input"}, starts: "[\"", wants: "must be a string or an array of items",
		limit: []string{"max_output_tokens"}, salted: true, continues: true,
	},
	Messages: {
		lead: "system", prompt: []string{"messages"}, starts: "[", wants: listOfMessages, required: true,
		limit: []string{"max_tokens"}, salted: true,
	},
	CountTokens: {lead: "system", prompt: []string{"messages"}, starts: "[", wants: listOfMessages, required: true},
	Embeddings:  {prompt: []string{"input", "messages"}},
	Tokenize:    {},
	Rerank:      {lead: "query", prompt: []string{"documents"}},
	Score:       {lead: "text_1", prompt: []string{"text_2"}},
	Other:       {prompt: []string{"messages", "prompt", "input", "text"}},
}

// Salted reports whether requests of the kind have a cache salt.
func (k Kind) Salted() bool { return shapes[k].salted }

// Protocol is how answers are written.
type Protocol uint8

// The protocols of answers.
const (
	Completions    Protocol = iota // chat and text completions, and their chunks
	ResponseEvents                 // the Responses API
	MessageEvents                  // the Messages API of Anthropic
	AnyJSON                        // JSON of any other kind
)

// Protocol returns how requests of the kind are answered.
func (k Kind) Protocol() Protocol {
	switch k {
	case Chat, Completion:
		return Completions
	case Responses:
		return ResponseEvents
	case Messages:
		return MessageEvents
	}
	return AnyJSON
}
