// Package gateway is the OpenAI-compatible front: it finds out what a request
// wants, asks its pool where it goes, forwards the bytes as they came and the
// answer event by event, and tells the pool how it went.
package gateway

import (
	"cmp"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/stat"
)

// Fleet is what the gateway asks of the pools behind it.
type Fleet interface {
	// Pool returns the pool that serves a model.
	Pool(model string) (*live.Pool, bool)
	// Models lists the models served, in any order.
	Models() []Model
}

// Model is one entry of the model list.
type Model struct {
	ID          string
	Created     time.Time
	MaxModelLen fleet.Tokens // 0 when unknown
}

// Limits bound what a client or an engine may take. Zero fields take the
// defaults.
type Limits struct {
	MaxBody     int64         // bytes of a request body
	BodyTimeout time.Duration // for a request body to arrive
	FirstByte   time.Duration // from sending to an engine to the first event or whole answer
	Idle        time.Duration // between two events of an engine
	Write       time.Duration // for a client to take what is written
}

// DefaultLimits suit prompts of a few million bytes and answers of minutes.
func DefaultLimits() Limits {
	return Limits{
		MaxBody: 32 << 20, BodyTimeout: time.Minute, FirstByte: 5 * time.Minute, Idle: 2 * time.Minute, Write: time.Minute,
	}
}

// withDefaults fills in what is not set.
func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	l.MaxBody = cmp.Or(l.MaxBody, d.MaxBody)
	l.BodyTimeout = cmp.Or(l.BodyTimeout, d.BodyTimeout)
	l.FirstByte = cmp.Or(l.FirstByte, d.FirstByte)
	l.Idle = cmp.Or(l.Idle, d.Idle)
	l.Write = cmp.Or(l.Write, d.Write)
	return l
}

// Access is what is known of one request at its end.
type Access struct {
	fleet.Outcome
	ID       string // request id as the client knows it
	Pool     string // "" when no pool was found
	Model    string
	Method   string
	Path     string
	Remote   string
	Stream   bool
	Prompt   fleet.Tokens // as estimated at arrival
	Endpoint string       // name of the last endpoint tried
	Err      error        // what went wrong, in the log's words; nil when nothing did
	Panicked bool
	// Decisions are the records of its placements, one per attempt; nil for a
	// request that never reached a pool.
	Decisions []fleet.Decision
	// TraceID names the trace the request is part of; "" when it is not traced.
	TraceID string
	// Arrived is when the request came before its pool; zero when it never did.
	Arrived time.Time
}

// Options are what a Gateway is made of. Fleet and Client are required.
type Options struct {
	Fleet  Fleet
	Client *engine.Client
	// ClientFor returns the client with which a pool's engines are spoken to;
	// without it that is Client.
	ClientFor func(*live.Pool) *engine.Client
	Limits    Limits
	Log       *slog.Logger
	// Observe is told of every request at its end.
	Observe func(*Access)
	// Trace begins to follow a request of the given id; nil follows none.
	Trace func(r *http.Request, id string) Trace
}

// Gateway is an http.Handler for the public port.
type Gateway struct {
	o        Options
	mux      *http.ServeMux
	draining atomic.Bool
	ready    atomic.Bool
	ratios   ratios
}

// New returns a gateway that is not ready until SetReady.
func New(o Options) *Gateway {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Observe == nil {
		o.Observe = func(*Access) {}
	}
	if o.Trace == nil {
		o.Trace = startNoTrace
	}
	if o.ClientFor == nil {
		o.ClientFor = func(*live.Pool) *engine.Client { return o.Client }
	}
	o.Limits = o.Limits.withDefaults()
	g := &Gateway{o: o, mux: http.NewServeMux()}
	g.mux.Handle("/v1/chat/completions", only(http.MethodPost, func(w http.ResponseWriter, r *http.Request) { g.serve(w, r, api.Chat) }))
	g.mux.Handle("/v1/completions", only(http.MethodPost, func(w http.ResponseWriter, r *http.Request) { g.serve(w, r, api.Completion) }))
	g.mux.Handle("/v1/models", only(http.MethodGet, g.listModels))
	g.mux.Handle("/v1/models/{id...}", only(http.MethodGet, g.oneModel))
	g.mux.Handle("/healthz", only(http.MethodGet, func(w http.ResponseWriter, _ *http.Request) { plainOK(w) }))
	g.mux.Handle("/readyz", only(http.MethodGet, g.readyz))
	g.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { writeProblem(w, api.NotFound(r.Method, r.URL.Path)) })
	return g
}

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// On every route: net/http waits for the body of a request even when its
	// handler does not care for it. Not every writer has deadlines (tests'
	// recorders have none); the server's do.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(g.o.Limits.BodyTimeout))
	g.mux.ServeHTTP(w, r)
}

// SetReady makes /readyz answer 200.
func (g *Gateway) SetReady() { g.ready.Store(true) }

// Drain makes /readyz answer 503 from now on, so that load balancers look
// elsewhere. Requests are still served.
func (g *Gateway) Drain() { g.draining.Store(true) }

// Ready reports what /readyz answers.
func (g *Gateway) Ready() bool { return g.ready.Load() && !g.draining.Load() }

func (g *Gateway) readyz(w http.ResponseWriter, _ *http.Request) {
	if !g.Ready() {
		writeProblem(w, api.Refused(fleet.RefuseDraining, 0))
		return
	}
	plainOK(w)
}

func plainOK(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n")) // the prober may have gone
}

// only lets one method through (and HEAD with GET).
func only(method string, h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method && !(method == http.MethodGet && r.Method == http.MethodHead) {
			w.Header().Set("Allow", method)
			writeProblem(w, api.WrongMethod(r.Method, r.URL.Path, method))
			return
		}
		h(w, r)
	})
}

type modelBody struct {
	ID          string `json:"id"`
	Object      string `json:"object"`
	Created     int64  `json:"created"`
	OwnedBy     string `json:"owned_by"`
	MaxModelLen int    `json:"max_model_len,omitempty"`
}

func bodyOf(m Model) modelBody {
	return modelBody{ID: m.ID, Object: "model", Created: m.Created.Unix(), OwnedBy: "penstock", MaxModelLen: int(m.MaxModelLen)}
}

func (g *Gateway) listModels(w http.ResponseWriter, _ *http.Request) {
	list := struct {
		Object string      `json:"object"`
		Data   []modelBody `json:"data"`
	}{Object: "list", Data: []modelBody{}}
	for _, m := range g.o.Fleet.Models() {
		list.Data = append(list.Data, bodyOf(m))
	}
	slices.SortFunc(list.Data, func(a, b modelBody) int { return strings.Compare(a.ID, b.ID) })
	writeJSON(w, http.StatusOK, list)
}

func (g *Gateway) oneModel(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	for _, m := range g.o.Fleet.Models() {
		if m.ID == id {
			writeJSON(w, http.StatusOK, bodyOf(m))
			return
		}
	}
	writeProblem(w, api.UnknownModel(id))
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may have gone
}

// ratios learns how many bytes of a request body make a token, per model.
type ratios struct {
	mu      sync.Mutex
	byModel map[string]*stat.EWMA
}

// The ratio before anything is learnt, the span in which a learnt one is
// believed, and how fast old answers are forgotten.
const (
	bytesPerToken    = 4.0
	minBytesPerToken = 0.5
	maxBytesPerToken = 16
	ratioHalfLife    = 600 // s
	minRatioTokens   = 64  // shorter prompts are mostly chat template
)

func (r *ratios) get(model string) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.byModel[model]; e != nil {
		return e.Value(bytesPerToken)
	}
	return bytesPerToken
}

func (r *ratios) learn(model string, now fleet.Time, textBytes int, prompt fleet.Tokens) {
	if prompt < minRatioTokens || textBytes == 0 {
		return
	}
	ratio := float64(textBytes) / float64(prompt)
	if ratio < minBytesPerToken || ratio > maxBytesPerToken {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byModel == nil {
		r.byModel = map[string]*stat.EWMA{}
	}
	e := r.byModel[model]
	if e == nil {
		e = &stat.EWMA{HalfLife: ratioHalfLife}
		r.byModel[model] = e
	}
	e.Observe(now.Seconds(), ratio)
}
