package engine

// API is a set of public APIs, or one of them: what a kind of engine speaks.
type API uint16

// The APIs that engines speak or do not. Each stands for the paths that belong
// together.
const (
	APIChat         API = 1 << iota // /v1/chat/completions
	APICompletions                  // /v1/completions
	APIResponses                    // /v1/responses, and by id
	APIMessages                     // /v1/messages of Anthropic
	APICountTokens                  // /v1/messages/count_tokens
	APIEmbeddings                   // /v1/embeddings
	APITokenize                     // /tokenize and /detokenize
	APIRerank                       // /rerank, /v1/rerank, /v2/rerank
	APIScore                        // /score, /v1/score
	APIAudio                        // /v1/audio/...
	APIImages                       // /v1/images/...
	APITokenizeChat                 // /tokenize takes messages and tools as well
)

// Has reports whether all of want is in the set.
func (a API) Has(want API) bool { return a&want == want }
