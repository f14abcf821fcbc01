package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine/tokens"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// Keep remembers what is worth keeping cached. Note is told of every request
// whose answer is generated, as it is put to the engines; it must be quick, and
// may keep nothing of s.
type Keep interface{ Note(s *Seen) }

// Seen is a request whose KV may be kept.
type Seen struct {
	ID       string
	Tenant   string
	Service  Service
	Kind     api.Kind // as it is put to the engines, like Path and Body
	Path     string
	Body     []byte
	Prompt   kv.Prompt
	Terms    fleet.Terms
	Declared api.Declared
}

// note tells the pool's keep of the request.
func (x *exchange) note(chain, blocks []kv.Key, keyTokens float64) {
	if k := x.service.Keep; k != nil && x.toward.kind.Salted() && x.owner == fleet.NoEndpoint && x.req.Previous == "" {
		s := x.seen(chain, blocks, keyTokens)
		k.Note(&s)
	}
}

func (x *exchange) seen(chain, blocks []kv.Key, keyTokens float64) Seen {
	return Seen{
		ID: x.access.ID, Tenant: x.access.Tenant, Service: x.service, Kind: x.toward.kind, Path: x.toward.path, Body: x.toward.body,
		Prompt: kv.Prompt{Tokens: x.access.Prompt, Chain: chain, KeyTokens: keyTokens, Blocks: blocks}, Terms: x.terms, Declared: x.req.Declared,
	}
}

// Read reads a request to a path of the API as if a tenant's client had sent it,
// up to where it would come before its pool. What is returned is the caller's;
// body is too, and must not change.
func (g *Gateway) Read(ctx context.Context, path, tenant string, body []byte) (*Seen, error) {
	at := slices.IndexFunc(routes, func(rt route) bool { return rt.path == path && !rt.form && rt.kind.Salted() })
	if at < 0 {
		return nil, errors.New(path + " is not a path at which answers are generated")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, path, http.NoBody)
	if err != nil {
		return nil, err
	}
	var said refusal
	x := &exchange{g: g, w: &said, r: r, route: &routes[at], policy: g.policy.Load(), start: time.Now(), body: body}
	x.access.Tenant = tenant
	if !x.understand() {
		return nil, said.err()
	}
	if x.req.Previous != "" {
		return nil, errors.New("a request that continues a stored response has its prompt at an engine, not here")
	}
	x.terms.Tenant = tenantOf(tenant)
	blocks := x.patientBlocks()
	chain, keyTokens := x.req.Chain(nil, x.toward.kind, x.access.Prompt)
	s := x.seen(chain, blocks, keyTokens)
	return &s, nil
}

// patientBlocks are the keys of the prompt's blocks, for those who can wait for an
// engine to tell its tokens: what comes over budget serves the next who asks.
func (x *exchange) patientBlocks() []kv.Key {
	const every, tries = 50 * time.Millisecond, 40
	for n := 0; ; n++ {
		blocks := x.blocks(nil)
		if n == tries || x.r.Context().Err() != nil || !strings.HasSuffix(x.access.Tokens, ": "+tokens.ReasonBudget.String()) {
			return blocks
		}
		select {
		case <-time.After(every):
		case <-x.r.Context().Done():
		}
	}
}

// refusal takes an answer that says why a request cannot be.
type refusal struct {
	header http.Header
	body   bytes.Buffer
}

func (w *refusal) Header() http.Header {
	if w.header == nil {
		w.header = http.Header{}
	}
	return w.header
}

func (w *refusal) WriteHeader(int)             {}
func (w *refusal) Write(b []byte) (int, error) { return w.body.Write(b) }

func (w *refusal) err() error {
	var said struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	_ = json.Unmarshal(w.body.Bytes(), &said) // it was written here
	return errors.New(cmp.Or(said.Error.Message, "the request cannot be read"))
}
