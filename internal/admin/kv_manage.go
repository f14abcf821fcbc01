package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Caches is what the admin port can find out and do about engines' caches. What
// cannot be done is refused with an error that says why; one that wraps
// ErrNotFound names something that is not there.
type Caches interface {
	Where(ctx context.Context, t *KVTarget) (*KVWhere, error)
	Prefetch(ctx context.Context, r *KVPrefetch) (*KVResults, error)
	Pin(ctx context.Context, r *KVPin) (*KVKept, error)
	// Kept returns what is kept in a pool, of all for "".
	Kept(pool string) (*KVKeptList, error)
	Unpin(pool string, id uint64) error
	Clear(ctx context.Context, r *KVClear) (*KVResults, error)
	Quotas(pool string) (*KVQuotas, error)
	SetQuotas(q *KVQuotas) error
}

// ErrNotFound is wrapped by errors about what is not there.
var ErrNotFound = errors.New("not found")

// KVTarget names a prompt: one of Prompt, Messages, Body, Session, Request or Of.
type KVTarget struct {
	// Pool or Model says where; neither is needed where there is one pool.
	Pool   string `json:"pool,omitempty"`
	Model  string `json:"model,omitempty"`
	Tenant string `json:"tenant,omitempty"`

	Prompt   string          `json:"prompt,omitempty"`   // of /v1/completions
	Messages json.RawMessage `json:"messages,omitempty"` // of /v1/chat/completions
	// Body is a whole request, to Path; /v1/chat/completions or /v1/completions by
	// what it has.
	Body    json.RawMessage `json:"body,omitempty"`
	Path    string          `json:"path,omitempty"`
	Session string          `json:"session,omitempty"` // a prompt_cache_key
	Request string          `json:"request,omitempty"` // the id of a late request
	Of      string          `json:"of,omitempty"`      // a session, a request or a prompt, whichever it is
}

// KVWhere tells who has a prompt.
type KVWhere struct {
	Pool      string   `json:"pool"`
	Of        string   `json:"of"` // prompt, session or request
	Tokens    int      `json:"tokens"`
	ByTokens  bool     `json:"byTokens"` // its tokens are known, so that events count
	Kept      bool     `json:"kept"`     // its text is
	Endpoints []KVHeld `json:"endpoints"`
}

// KVHeld is what one endpoint has of a prompt, in tokens.
type KVHeld struct {
	Endpoint string  `json:"endpoint"`
	Role     string  `json:"role"`
	Tokens   int     `json:"tokens"` // at any tier
	GPU      int     `json:"gpu"`
	CPU      int     `json:"cpu"`
	Disk     int     `json:"disk"`
	Shared   int     `json:"shared"`
	Source   string  `json:"source"` // confirmed, expected or history
	FetchMs  float64 `json:"fetchMs"`
}

// KVPrefetch asks for a prompt to be cached.
type KVPrefetch struct {
	KVTarget

	Endpoints []string `json:"endpoints,omitempty"` // by name, or ["all"]
	Copies    int      `json:"copies,omitempty"`    // endpoints that shall have it, where none are named; 1 by default
}

// KVPin asks for a prompt to be kept cached.
type KVPin struct {
	KVPrefetch

	For string `json:"for,omitempty"` // a duration since it was last asked for; for ever without
}

// KVResult is what came of something at one endpoint.
type KVResult struct {
	Endpoint string  `json:"endpoint"`
	Done     bool    `json:"done"`
	Reason   string  `json:"reason,omitempty"` // why not, or what is to be noted
	Tokens   int     `json:"tokens,omitempty"` // of the prompt
	Cached   *int    `json:"cached,omitempty"` // of these, those that were there before, as the engine tells
	TookMs   float64 `json:"tookMs,omitempty"`
	Before   *int    `json:"tokensBefore,omitempty"` // on its GPU
	After    *int    `json:"tokensAfter,omitempty"`
	// Confirmed says that the engine's events told of it.
	Confirmed *bool `json:"confirmed,omitempty"`
}

// KVResults are those of one request.
type KVResults struct {
	Pool    string     `json:"pool"`
	Results []KVResult `json:"results"`
}

// KVKept is a prefix that is kept.
type KVKept struct {
	ID        uint64   `json:"id"`
	Pool      string   `json:"pool"`
	Source    string   `json:"source"` // pinned, declared or hot
	Tenant    string   `json:"tenant,omitempty"`
	Session   string   `json:"session,omitempty"`
	Tokens    int      `json:"tokens"`
	Copies    int      `json:"copies"`
	Endpoints []string `json:"endpoints,omitempty"` // that shall have it; any without
	Has       []string `json:"has"`                 // that are believed to
	AgeS      float64  `json:"ageSeconds"`          // since it was last asked for
	LeftS     *float64 `json:"secondsLeft"`         // null for ever
	Error     string   `json:"error,omitempty"`     // why it could not be sent
}

// KVKeptList is what is kept, and what keeping has done.
type KVKeptList struct {
	Kept  []KVKept     `json:"kept"`
	Pools []KVKeepPool `json:"pools"`
}

// KVKeepPool is what keeping has done in one pool.
type KVKeepPool struct {
	Pool     string            `json:"pool"`
	Bytes    int               `json:"bytes"` // of text
	MaxBytes int               `json:"maxBytes"`
	Orders   map[string]uint64 `json:"orders"` // by what for
	Failed   uint64            `json:"failedOrders"`
	Seconds  float64           `json:"engineSeconds"`
	Refused  map[string]uint64 `json:"refused"` // never kept, by why
	Dropped  map[string]uint64 `json:"dropped"` // no longer kept, by why
}

// KVClear asks for caches to be emptied.
type KVClear struct {
	Pool      string   `json:"pool"`
	Endpoints []string `json:"endpoints"` // by name, or ["all"]
}

// KVQuotas are how many tokens each tenant may have kept in a pool.
type KVQuotas struct {
	Pool    string         `json:"pool"`
	Default int            `json:"default"`
	Tenants map[string]int `json:"tenants"`
	Used    map[string]int `json:"used,omitempty"` // an answer's
}

// maxKVRequest is the largest body of a request about caches, which may have a
// prompt in it.
const maxKVRequest = 32 << 20

// registerCaches adds the routes of what can be done about caches.
func (a *adminPort) registerCaches(mux *http.ServeMux) {
	if a.o.Caches == nil {
		return
	}
	mux.HandleFunc("POST /api/kv/where", managed(a.o.Caches.Where))
	mux.HandleFunc("POST /api/kv/prefetch", managed(a.o.Caches.Prefetch))
	mux.HandleFunc("POST /api/kv/pins", managed(func(ctx context.Context, r *KVPin) (*KVKept, error) {
		if r.For != "" {
			if d, err := time.ParseDuration(r.For); err != nil || d <= 0 {
				return nil, fmt.Errorf("for: must be a positive duration such as 24h, is %q", r.For)
			}
		}
		return a.o.Caches.Pin(ctx, r)
	}))
	mux.HandleFunc("GET /api/kv/pins", func(w http.ResponseWriter, r *http.Request) {
		told(w)(a.o.Caches.Kept(r.URL.Query().Get("pool")))
	})
	mux.HandleFunc("DELETE /api/kv/pins/{id}", a.unpin)
	mux.HandleFunc("POST /api/kv/clear", managed(a.o.Caches.Clear))
	mux.HandleFunc("GET /api/kv/quotas", func(w http.ResponseWriter, r *http.Request) {
		told(w)(a.o.Caches.Quotas(r.URL.Query().Get("pool")))
	})
	mux.HandleFunc("PUT /api/kv/quotas", managed(func(_ context.Context, q *KVQuotas) (*KVQuotas, error) {
		if err := a.o.Caches.SetQuotas(q); err != nil {
			return nil, err
		}
		return a.o.Caches.Quotas(q.Pool)
	}))
}

// managed is the handler of a request with a JSON body.
func managed[In, Out any](do func(context.Context, *In) (*Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		in := new(In)
		d := json.NewDecoder(io.LimitReader(r.Body, maxKVRequest))
		d.DisallowUnknownFields()
		if err := d.Decode(in); err != nil {
			fail(w, http.StatusBadRequest, fmt.Sprintf("the body is not what %s takes: %v", r.URL.Path, err))
			return
		}
		out, err := do(r.Context(), in)
		told(w)(out, err)
	}
}

// told returns what writes an answer, or why there is none.
func told(w http.ResponseWriter) func(v any, err error) {
	return func(v any, err error) {
		switch {
		case errors.Is(err, ErrNotFound):
			fail(w, http.StatusNotFound, err.Error())
		case err != nil:
			fail(w, http.StatusBadRequest, err.Error())
		default:
			reply(w, http.StatusOK, v)
		}
	}
}

func (a *adminPort) unpin(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		fail(w, http.StatusBadRequest, fmt.Sprintf("%q is not the id of a pin; GET /api/kv/pins lists them", r.PathValue("id")))
		return
	}
	if err := a.o.Caches.Unpin(r.URL.Query().Get("pool"), id); err != nil {
		told(w)(nil, err)
		return
	}
	reply(w, http.StatusOK, map[string]string{"result": "ok"})
}
