package gateway

import (
	"net/http"
	"slices"
	"strings"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
)

// route is one path of the public API that asks for a model.
type route struct {
	path  string
	kind  api.Kind
	form  bool // the body is a multipart form
	style api.Style
	// needs is what the engines must speak; nothing where their own answer says
	// it better.
	needs engine.API
	other bool // not a path of the API: an engine's own
}

var routes = []route{
	{path: "/v1/chat/completions", kind: api.Chat},
	{path: "/v1/completions", kind: api.Completion},
	{path: "/v1/responses", kind: api.Responses, style: api.OpenAIResponses, needs: engine.APIResponses},
	{path: "/v1/messages", kind: api.Messages, style: api.Anthropic, needs: engine.APIMessages},
	{path: "/v1/messages/count_tokens", kind: api.CountTokens, style: api.Anthropic, needs: engine.APICountTokens},
	{path: "/v1/embeddings", kind: api.Embeddings},
	{path: "/tokenize", kind: api.Tokenize},
	{path: "/detokenize", kind: api.Tokenize},
	{path: "/rerank", kind: api.Rerank},
	{path: "/v1/rerank", kind: api.Rerank},
	{path: "/v2/rerank", kind: api.Rerank},
	{path: "/score", kind: api.Score},
	{path: "/v1/score", kind: api.Score},
	{path: "/pooling", kind: api.Embeddings},
	{path: "/classify", kind: api.Embeddings},
	{path: "/v1/audio/transcriptions", kind: api.Other, form: true},
	{path: "/v1/audio/translations", kind: api.Other, form: true},
	{path: "/v1/audio/speech", kind: api.Other},
	{path: "/v1/images/generations", kind: api.Other},
	{path: "/v1/images/edits", kind: api.Other, form: true},
	{path: "/v1/images/variations", kind: api.Other, form: true},
}

// enginePath stands for all other paths of engines.
var enginePath = route{kind: api.Other, other: true}

// register fills the mux.
func (g *Gateway) register() {
	for i := range routes {
		rt := &routes[i]
		g.handle(http.MethodPost, rt.path, rt.style, func(w http.ResponseWriter, r *http.Request) { g.serve(w, r, rt) })
	}
	g.handle(http.MethodGet, "/v1/responses/{id}", api.OpenAIResponses, g.serveStored, http.MethodDelete)
	g.mux.HandleFunc("POST /v1/responses/{id}", g.serveOther) // not an id but a question, such as input_tokens
	g.handle(http.MethodPost, "/v1/responses/{id}/cancel", api.OpenAIResponses, g.serveStored)
	g.handle(http.MethodGet, "/v1/responses/{id}/input_items", api.OpenAIResponses, g.serveStored)
	g.mux.HandleFunc("/v1/messages/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, api.NotFound(r.Method, r.URL.Path), api.Anthropic, requestID(r))
	})
	g.mux.HandleFunc("/v1/realtime", func(w http.ResponseWriter, _ *http.Request) { writeProblem(w, api.NoRealtime(), api.OpenAI, "") })
	g.handle(http.MethodGet, "/v1/models", api.OpenAI, g.listModels)
	g.handle(http.MethodGet, "/v1/models/{id...}", api.OpenAI, g.oneModel)
	g.handle(http.MethodGet, "/healthz", api.OpenAI, func(w http.ResponseWriter, _ *http.Request) { plainOK(w) })
	g.handle(http.MethodGet, "/readyz", api.OpenAI, g.readyz)
	g.mux.HandleFunc("/", g.serveOther)
}

// handle serves a path for a method (and HEAD with GET), and further ones.
func (g *Gateway) handle(method, path string, style api.Style, h http.HandlerFunc, further ...string) {
	allowed := append([]string{method}, further...)
	g.mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		for _, m := range allowed {
			if r.Method == m || m == http.MethodGet && r.Method == http.MethodHead {
				h(w, r)
				return
			}
		}
		allow := strings.Join(allowed, ", ")
		w.Header().Set("Allow", allow)
		writeProblem(w, api.WrongMethod(r.Method, r.URL.Path, allow), style, requestID(r))
	})
}

// serveOther passes a request to a path that is not of the API on to the
// engines, if its body names a model and the path is none that changes an
// engine.
func (g *Gateway) serveOther(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || changesEngine(r.URL.Path) {
		writeProblem(w, api.NotFound(r.Method, r.URL.Path), api.OpenAI, "")
		return
	}
	g.serve(w, r, &enginePath)
}

// operating are the words in the paths of engines with which they are operated:
// put to sleep, given other weights, profiled, told to run code. Clients ask for
// answers; who operates an engine reaches it without the gateway.
var operating = strings.Fields(`
	abort aborted admin blob blobs cache caches close collective config configure copy create debug delete destroy dump elastic
	expert experts flush freeze gc group init internal kill load loading log logging lora memory metrics open pause paused
	profile props pull push record recording release reload reset restart resume rpc save scale scaling server session set
	show shutdown sleep sleeping slots start state stop trace unload update wake weight weights`)

// changesEngine reports whether a path has one of the operating words in it.
func changesEngine(path string) bool {
	words := strings.FieldsFunc(strings.ToLower(path), func(r rune) bool { return r < 'a' || r > 'z' })
	return slices.ContainsFunc(words, func(w string) bool { return slices.Contains(operating, w) })
}
