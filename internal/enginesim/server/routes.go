package server

import (
	"net/http"
	"strings"
)

// routes is the whole HTTP surface.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	methods := map[string][]string{}
	add := func(method, path string, inference bool, h http.HandlerFunc) {
		mux.HandleFunc(method+" "+path, s.faulty(inference, h))
		methods[path] = append(methods[path], method)
	}
	add("POST", "/v1/chat/completions", true, s.complete(true))
	add("POST", "/v1/completions", true, s.complete(false))
	add("POST", "/v1/embeddings", true, s.createEmbeddings)
	if !s.options.NoResponses {
		add("POST", "/v1/responses", true, s.createResponse)
		add("GET", "/v1/responses/{id}", false, s.showResponse)
		add("POST", "/v1/responses/{id}/cancel", false, s.cancelResponse)
	}
	add("GET", "/v1/models", false, s.listModels)
	add("POST", "/tokenize", false, s.tokenize)
	add("POST", "/detokenize", false, s.detokenize)
	add("GET", "/health", false, func(http.ResponseWriter, *http.Request) {})
	if !s.options.NoMetrics {
		add("GET", "/metrics", false, s.serveMetrics)
	}
	if s.options.Engine == SGLang {
		s.routesSGLang(add)
	} else {
		s.routesVLLM(add)
	}
	for path, allowed := range methods {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			s.fail(w, r, &apiError{http.StatusMethodNotAllowed, "Method Not Allowed", ""})
		})
	}
	mux.HandleFunc("POST /sim/fault", s.setFault)
	mux.HandleFunc("DELETE /sim/fault", s.clearFault)
	mux.HandleFunc("GET /sim/state", s.showState)
	mux.HandleFunc("GET /sim/kv", s.showKV)
	mux.HandleFunc("POST /sim/kv", s.matchKV)
	mux.HandleFunc("GET /sim/pd", s.showPD)
	mux.HandleFunc("GET /sim/embeddings/{hash}", s.sendEmbedding)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, &apiError{http.StatusNotFound, "Not Found", ""})
	})
	return mux
}

// routesVLLM adds what only vLLM has.
func (s *Server) routesVLLM(add func(method, path string, inference bool, h http.HandlerFunc)) {
	if !s.options.NoMessages {
		add("POST", "/v1/messages", true, s.createMessage)
		add("POST", "/v1/messages/count_tokens", false, s.countMessageTokens)
	}
	for _, path := range []string{"/v1/audio/transcriptions", "/v1/audio/translations"} {
		add("POST", path, true, s.transcribe)
	}
	for _, path := range []string{"/rerank", "/v1/rerank", "/v2/rerank"} {
		add("POST", path, true, s.rerank)
	}
	for _, path := range []string{"/score", "/v1/score"} {
		add("POST", path, true, s.score)
	}
	add("GET", "/version", false, func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"version": Version})
	})
	add("GET", "/load", false, func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]int64{"server_load": s.load.Load()})
	})
	for _, method := range []string{"GET", "POST"} {
		add(method, "/ping", false, func(http.ResponseWriter, *http.Request) {})
	}
	if s.options.DevMode {
		s.routesDev(add)
	}
	if s.options.LoadLoRA {
		add("POST", "/v1/load_lora_adapter", false, s.loadLoRA)
		add("POST", "/v1/unload_lora_adapter", false, s.unloadLoRA)
	}
}

func (s *Server) tokenize(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Model    string    `json:"model"`
		Prompt   *string   `json:"prompt"`
		Messages []message `json:"messages"`
	}
	tokens, err := []uint32{}, readJSON(r, &q)
	if err == nil {
		err = s.checkModel(q.Model)
	}
	switch {
	case err != nil:
	case q.Prompt != nil:
		tokens = appendTokens(tokens, *q.Prompt)
	default:
		tokens, err = appendChat(tokens, q.Messages, nil)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, struct {
		Count       int      `json:"count"`
		MaxModelLen int      `json:"max_model_len"`
		Tokens      []uint32 `json:"tokens"`
		TokenStrs   []string `json:"token_strs"`
	}{len(tokens), int(s.options.MaxModelLen), tokens, nil})
}

func (s *Server) detokenize(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Model  string   `json:"model"`
		Tokens []uint32 `json:"tokens"`
	}
	err := readJSON(r, &q)
	if err == nil {
		err = s.checkModel(q.Model)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	var text []byte
	for _, t := range q.Tokens {
		text = appendText(text, t)
	}
	writeJSON(w, http.StatusOK, map[string]string{"prompt": strings.ToValidUTF8(string(text), "�")})
}
