package server

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// loraModule is an adapter that can be asked for by its name.
type loraModule struct {
	name, path string
	loaded     time.Time
}

// parseLoRA reads "name" or "name=path", as vLLM's --lora-modules has it.
func parseLoRA(s string) loraModule {
	name, path, ok := strings.Cut(s, "=")
	if !ok {
		path = "/adapters/" + name
	}
	return loraModule{name: name, path: path, loaded: time.Now()}
}

// served is a model as a client names it.
type served struct {
	name    string
	adapter string // empty: the base model
}

// find returns the model of that name: the base model, which the empty name is
// too, or an adapter. SGLang also takes "base:adapter", or the adapter's name
// in a field of its own.
func (s *Server) find(name, lora string) (served, error) {
	base := s.options.Model
	if s.options.Engine == SGLang {
		if before, after, ok := strings.Cut(name, ":"); ok && before == base && lora == "" {
			lora = after
		}
		if lora != "" {
			if !s.hasLoRA(lora) {
				return served{}, badRequest("lora_path", "Got LoRA adapter that has never been loaded: %s", lora)
			}
			return served{name, lora}, nil
		}
		// SGLang has one model and does not look at its name.
		if !s.hasLoRA(name) {
			fill(&name, base)
			return served{name: name}, nil
		}
	}
	switch {
	case name == "" || name == base:
		return served{name: base}, nil
	case s.hasLoRA(name):
		return served{name, name}, nil
	}
	return served{}, &apiError{http.StatusNotFound, fmt.Sprintf("The model `%s` does not exist.", name), "model"}
}

// checkModel refuses names that nothing is served under.
func (s *Server) checkModel(name string) error {
	_, err := s.find(name, "")
	return err
}

func (s *Server) hasLoRA(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loraLocked(name) >= 0
}

func (s *Server) loraLocked(name string) int {
	return slices.IndexFunc(s.loras, func(l loraModule) bool { return l.name == name })
}

// listModels shows the base model and its adapters.
func (s *Server) listModels(w http.ResponseWriter, _ *http.Request) {
	type model struct {
		ID          string  `json:"id"`
		Object      string  `json:"object"`
		Created     int64   `json:"created"`
		OwnedBy     string  `json:"owned_by"`
		Root        string  `json:"root"`
		Parent      *string `json:"parent"`
		MaxModelLen *int    `json:"max_model_len"`
	}
	base := &s.options.Model
	limit := new(int(s.options.MaxModelLen))
	models := []model{{*base, "model", s.epoch.Unix(), s.options.Engine, *base, nil, limit}}
	s.mu.Lock()
	for _, l := range s.loras {
		m := model{l.name, "model", l.loaded.Unix(), s.options.Engine, l.path, base, limit}
		if s.options.Engine == SGLang {
			m.MaxModelLen = nil
		}
		models = append(models, m)
	}
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, struct {
		Object string  `json:"object"`
		Data   []model `json:"data"`
	}{"list", models})
}

// loraRequest is the body of both routes.
type loraRequest struct {
	Name    string `json:"lora_name"`
	Path    string `json:"lora_path"`
	InPlace bool   `json:"load_inplace"`
}

// loadLoRA adds an adapter, as vLLM answers.
func (s *Server) loadLoRA(w http.ResponseWriter, r *http.Request) {
	var q loraRequest
	err := readJSON(r, &q)
	if err == nil {
		err = s.addLoRA(q)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	fmt.Fprintf(w, "Success: LoRA adapter '%s' added successfully.", q.Name)
}

func (s *Server) addLoRA(q loraRequest) error {
	if q.Name == "" || q.Path == "" {
		return badRequest("", "Both 'lora_name' and 'lora_path' must be provided.")
	}
	if q.Name == s.options.Model {
		return badRequest("lora_name", "The lora adapter '%s' has the name of the base model.", q.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.loraLocked(q.Name)
	switch {
	case i < 0:
		s.loras = append(s.loras, loraModule{q.Name, q.Path, time.Now()})
	case q.InPlace:
		s.loras[i].path = q.Path
	default:
		return badRequest("lora_name", "The lora adapter '%s' has already been loaded.", q.Name)
	}
	return nil
}

// unloadLoRA removes an adapter. Requests that run with it end as they would.
func (s *Server) unloadLoRA(w http.ResponseWriter, r *http.Request) {
	var q loraRequest
	err := readJSON(r, &q)
	if err == nil {
		err = s.removeLoRA(q.Name)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	fmt.Fprintf(w, "Success: LoRA adapter '%s' removed successfully.", q.Name)
}

func (s *Server) removeLoRA(name string) error {
	if name == "" {
		return badRequest("lora_name", "'lora_name' must be provided.")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.loraLocked(name)
	if i < 0 {
		return &apiError{http.StatusNotFound, fmt.Sprintf("The lora adapter '%s' cannot be found.", name), "lora_name"}
	}
	s.loras = slices.Delete(s.loras, i, i+1)
	return nil
}

// maxLoRASeries bounds the series that lora_requests_info leaves behind.
const maxLoRASeries = 32

// loraSeries is one combination of adapters and when it was last true. vLLM's
// gauge works so: each combination is a series of its own, its value the time,
// and those that are no longer true stay on the page.
type loraSeries struct {
	labels string
	seen   float64 // Unix seconds
}

// noteLoRAs records which adapters run and are waited for. It needs s.mu.
func (s *Server) noteLoRAs() {
	running, waiting := s.engine.Adapters()
	labels := fmt.Sprintf(`max_lora="%d",running_lora_adapters="%s",waiting_lora_adapters="%s"`,
		s.options.MaxLoRAs, escapeLabel(strings.Join(running, ",")), escapeLabel(strings.Join(waiting, ",")))
	now := float64(time.Now().UnixMilli()) / 1000
	i := slices.IndexFunc(s.loraSeen, func(l loraSeries) bool { return l.labels == labels })
	if i < 0 {
		if len(s.loraSeen) == maxLoRASeries {
			s.loraSeen = slices.Delete(s.loraSeen, 0, 1)
		}
		s.loraSeen = append(s.loraSeen, loraSeries{labels: labels})
		i = len(s.loraSeen) - 1
	}
	s.loraSeen[i].seen = now
}

// appendLoRAs writes vllm:lora_requests_info as of now. It needs s.mu.
func (s *Server) appendLoRAs(b []byte) []byte {
	s.noteLoRAs()
	const name = "vllm:lora_requests_info"
	b = appendFamily(b, name, "Running stats on lora requests.", "gauge")
	for _, l := range s.loraSeen {
		b = appendSample(b, name, l.labels, l.seen)
	}
	return b
}
