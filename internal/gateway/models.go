package gateway

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/fleet"
)

// Model is one entry of the model list.
type Model struct {
	ID          string
	Created     time.Time
	MaxModelLen fleet.Tokens // 0 when unknown
	Root        string       // of an alias: the model it stands for
	Parent      string       // of an adapter: its base model
}

type modelBody struct {
	ID          string `json:"id"`
	Object      string `json:"object"`
	Created     int64  `json:"created"`
	OwnedBy     string `json:"owned_by"`
	MaxModelLen int    `json:"max_model_len,omitempty"`
	Root        string `json:"root,omitempty"`
	Parent      string `json:"parent,omitempty"`
}

func bodyOf(m Model) modelBody {
	return modelBody{
		ID: m.ID, Object: "model", Created: m.Created.Unix(), OwnedBy: "penstock", MaxModelLen: int(m.MaxModelLen),
		Root: m.Root, Parent: m.Parent,
	}
}

// models returns the model list by name, each name once: that of the first pool
// that has it, which is the pool its requests go to.
func (g *Gateway) models() []Model {
	all := slices.Clone(g.o.Fleet.Models())
	slices.SortStableFunc(all, func(a, b Model) int { return strings.Compare(a.ID, b.ID) })
	return slices.CompactFunc(all, func(a, b Model) bool { return a.ID == b.ID })
}

func (g *Gateway) listModels(w http.ResponseWriter, _ *http.Request) {
	list := struct {
		Object string      `json:"object"`
		Data   []modelBody `json:"data"`
	}{Object: "list", Data: []modelBody{}}
	for _, m := range g.models() {
		list.Data = append(list.Data, bodyOf(m))
	}
	writeJSON(w, http.StatusOK, list)
}

func (g *Gateway) oneModel(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	for _, m := range g.models() {
		if m.ID == id {
			writeJSON(w, http.StatusOK, bodyOf(m))
			return
		}
	}
	writeProblem(w, api.UnknownModel(id), api.OpenAI, "")
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may have gone
}
