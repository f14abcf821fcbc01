package server

import (
	"fmt"
	"net/http"
	"strings"
)

// routes is the whole HTTP surface.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	add := func(method, path string, h http.HandlerFunc) {
		mux.HandleFunc(method+" "+path, h)
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Allow", method)
			writeError(w, &apiError{http.StatusMethodNotAllowed, "Method Not Allowed", ""})
		})
	}
	add("POST", "/v1/chat/completions", s.faulty(true, s.complete(true)))
	add("POST", "/v1/completions", s.faulty(true, s.complete(false)))
	add("GET", "/v1/models", s.faulty(false, s.listModels))
	add("POST", "/tokenize", s.faulty(false, s.tokenize))
	add("POST", "/detokenize", s.faulty(false, s.detokenize))
	add("GET", "/health", s.faulty(false, func(http.ResponseWriter, *http.Request) {}))
	add("GET", "/version", s.faulty(false, func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"version": Version})
	}))
	add("GET", "/metrics", s.faulty(false, s.serveMetrics))
	mux.HandleFunc("POST /sim/fault", s.setFault)
	mux.HandleFunc("DELETE /sim/fault", s.clearFault)
	mux.HandleFunc("GET /sim/state", s.showState)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeError(w, &apiError{http.StatusNotFound, "Not Found", ""})
	})
	return mux
}

func (s *Server) listModels(w http.ResponseWriter, _ *http.Request) {
	type model struct {
		ID          string  `json:"id"`
		Object      string  `json:"object"`
		Created     int64   `json:"created"`
		OwnedBy     string  `json:"owned_by"`
		Root        string  `json:"root"`
		Parent      *string `json:"parent"`
		MaxModelLen int     `json:"max_model_len"`
	}
	writeJSON(w, http.StatusOK, struct {
		Object string  `json:"object"`
		Data   []model `json:"data"`
	}{"list", []model{{s.options.Model, "model", s.epoch.Unix(), "vllm", s.options.Model, nil, int(s.options.MaxModelLen)}}})
}

func (s *Server) checkModel(name string) error {
	if name != "" && name != s.options.Model {
		return &apiError{http.StatusNotFound, fmt.Sprintf("The model `%s` does not exist.", name), "model"}
	}
	return nil
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
		writeError(w, err)
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
		writeError(w, err)
		return
	}
	var text []byte
	for _, t := range q.Tokens {
		text = appendText(text, t)
	}
	writeJSON(w, http.StatusOK, map[string]string{"prompt": strings.ToValidUTF8(string(text), "�")})
}
