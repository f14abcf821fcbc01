// Package gateway is the OpenAI-compatible front: it finds out what a request
// wants, asks its pool where it goes, forwards the bytes as they came and the
// answer event by event, and tells the pool how it went.
package gateway

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/engine/tokens"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/live"
)

// Fleet is what the gateway asks of the pools behind it.
type Fleet interface {
	// Find returns how the model that clients call by a name is served.
	Find(model string) (Service, bool)
	// Speaks returns what all engines of a pool can be asked, as far as they are
	// known.
	Speaks(p *live.Pool) engine.API
	// Models lists the models served, in any order.
	Models() []Model
}

// Service is how a model is served.
type Service struct {
	Pool        *live.Pool
	Model       string        // its name at the engines; another than that asked for under an alias
	MaxModelLen fleet.Tokens  // 0 when unknown
	Adapter     fleet.Adapter // NoAdapter unless it is one
	// Load has the model, an adapter, loaded at an endpoint that lacks it; nil when
	// nobody may. It is called before each attempt and is cheap where the adapter
	// is there.
	Load func(ctx context.Context, e live.Endpoint) error
	// Tokens finds out the tokens of prompts; nil where nobody uses them.
	Tokens *Tokens
	Keep   Keep // nil where nothing is kept
}

// Tokens is how a pool's prompts become tokens, and tokens keys of KV blocks.
type Tokens struct {
	Source *tokens.Source
	Space  kv.KeySpace
	Engine func() (tokens.Engine, bool) // one that may be asked
	Form   func() kv.ExtraForm          // how the engines write extras
}

// Limits bound what a client or an engine may take. Zero fields take the
// defaults.
type Limits struct {
	MaxBody     int64         // bytes of a request body
	MaxRequests int           // served at once, streams included; 0 does not bound them
	BodyTimeout time.Duration // for a request body to arrive
	FirstByte   time.Duration // from sending to an engine to the first event or whole answer
	Encode      time.Duration // for a request's images to be encoded elsewhere
	Idle        time.Duration // between two events of an engine
	Write       time.Duration // for a client to take what is written
}

// DefaultLimits suit prompts of a few million bytes and answers of minutes.
func DefaultLimits() Limits {
	return Limits{
		MaxBody: 32 << 20, BodyTimeout: time.Minute, FirstByte: 5 * time.Minute, Encode: 10 * time.Second, Idle: 2 * time.Minute, Write: time.Minute,
	}
}

// withDefaults fills in what is not set.
func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	l.MaxBody = cmp.Or(l.MaxBody, d.MaxBody)
	l.BodyTimeout = cmp.Or(l.BodyTimeout, d.BodyTimeout)
	l.FirstByte = cmp.Or(l.FirstByte, d.FirstByte)
	l.Encode = cmp.Or(l.Encode, d.Encode)
	l.Idle = cmp.Or(l.Idle, d.Idle)
	l.Write = cmp.Or(l.Write, d.Write)
	return l
}

// Access is what is known of one request at its end.
type Access struct {
	fleet.Outcome
	ID     string // request id as the client knows it
	Pool   string // "" when no pool was found
	Model  string
	Method string
	Path   string
	Remote string
	Stream bool
	Prompt fleet.Tokens // as estimated at arrival, or counted
	// Tokens says how the prompt's tokens were found out, and why not: see
	// tokens.How and tokens.Reason; "" where nobody asked for them.
	Tokens   string
	Endpoint string // name of the last endpoint tried
	Tenant   string // whom it is charged to, by name; "" for nobody in particular
	// Objective is the name under which the terms of its service were asked for;
	// the terms themselves are in the decisions.
	Objective string
	Err       error // what went wrong, in the log's words; nil when nothing did
	Panicked  bool
	// Decisions are the records of its placements, one per attempt; nil for a
	// request that never reached a pool.
	Decisions []fleet.Decision
	// TraceID names the trace the request is part of; "" when it is not traced.
	TraceID string
	// Arrived is when the request came before its pool; zero when it never did.
	Arrived time.Time
	// Moved is the KV that was moved for the last attempt; zero where none was.
	Moved live.Moved
}

// Options are what a Gateway is made of. Fleet and Client are required.
type Options struct {
	Fleet  Fleet
	Client *engine.Client
	// ClientFor returns the client with which a pool's engines are spoken to;
	// without it that is Client.
	ClientFor func(*live.Pool) *engine.Client
	Limits    Limits
	Policy    Policy
	Log       *slog.Logger
	// Observe is told of every request at its end.
	Observe func(*Access)
	// Transfers keeps account of the KV that split requests move; nil does not.
	Transfers Transfers
	// Trace begins to follow a request of the given id; nil follows none.
	Trace func(r *http.Request, id string) Trace
}

// Gateway is an http.Handler for the public port.
type Gateway struct {
	o        Options
	mux      *http.ServeMux
	draining atomic.Bool
	ready    atomic.Bool
	policy   atomic.Pointer[Policy]
	ratios   ratios
	owners   owners
	open     atomic.Int64 // requests being served
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
	g.SetPolicy(o.Policy)
	g.register()
	return g
}

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// On every route: net/http waits for the body of a request even when its
	// handler does not care for it. Not every writer has deadlines (tests'
	// recorders have none); the server's do.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(g.o.Limits.BodyTimeout))
	if g.cors(w, r) {
		return
	}
	g.mux.ServeHTTP(w, r)
}

// SetPolicy replaces the policy for requests that come from now on.
func (g *Gateway) SetPolicy(p Policy) { g.policy.Store(&p) }

// SetReady makes /readyz answer 200.
func (g *Gateway) SetReady() { g.ready.Store(true) }

// Drain makes /readyz answer 503 from now on, so that load balancers look
// elsewhere. Requests are still served.
func (g *Gateway) Drain() { g.draining.Store(true) }

// Ready reports what /readyz answers.
func (g *Gateway) Ready() bool { return g.ready.Load() && !g.draining.Load() }

func (g *Gateway) readyz(w http.ResponseWriter, _ *http.Request) {
	if !g.Ready() {
		writeProblem(w, api.Refused(fleet.RefuseDraining, 0), api.OpenAI, "")
		return
	}
	plainOK(w)
}

func plainOK(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n")) // the prober may have gone
}
