package admin

import (
	"context"
	"io"
	"net/http"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/obs"
)

// Feeds tell the state of KV events.
type Feeds interface {
	// FeedsOf returns the feeds of a pool by name of endpoint, and how the tokens of
	// its prompts are found out, empty when nobody needs them.
	FeedsOf(pool string) (map[string]Feed, *TokenStatus)
	// FeedStates writes what the feeds of a pool know, for another gateway to begin
	// with.
	FeedStates(ctx context.Context, pool string, w io.Writer) error
}

// Feed is the state of one endpoint's feed. Times are in milliseconds.
type Feed struct {
	From      string            `json:"from"`
	State     string            `json:"state"` // connecting, replaying, live, gap, unknown restarted or misfit
	Connected bool              `json:"connected"`
	Whole     bool              `json:"whole"` // what was told is all that is there
	Error     string            `json:"error,omitempty"`
	Rank      *int32            `json:"rank,omitempty"` // as its batches say
	Next      uint64            `json:"nextBatch"`
	Batches   map[string]uint64 `json:"batches"` // by what became of them
	Dropped   map[string]uint64 `json:"dropped"` // events and blocks by why they were left out
	Keys      int               `json:"engineKeys"`
	Orphans   int               `json:"orphans"` // events that wait for their parent
	// DirectKeys says that the engine's hashes are sha256_cbor from a known root, so
	// that keys: direct would do.
	DirectKeys bool `json:"directKeysPossible"`
	// KeysEqual and KeysUnequal count first blocks that were compared with
	// sha256_cbor from that root.
	KeysEqual   uint64 `json:"keysEqual"`
	KeysUnequal uint64 `json:"keysUnequal"`
	EngineBlock int    `json:"engineBlockTokens,omitempty"` // 0 before any was told
	// Refused says why nothing that comes is believed, under keys: direct.
	Refused string `json:"refused,omitempty"`
}

// TokenStatus says how the tokens of prompts are found out.
type TokenStatus struct {
	By       map[string]uint64 `json:"by"`      // requests by how
	Without  map[string]uint64 `json:"without"` // requests of which not all is known, by why
	AnswerMs float64           `json:"engineAnswerMs"`
	Circuit  string            `json:"circuit"`
	Local    string            `json:"local,omitempty"` // whether a tokenizer of the gateway's own is trusted
	Bytes    int64             `json:"cacheBytes"`
}

// KVStatus is the answer of /api/kv.
type KVStatus struct {
	Pools []KVPool `json:"pools"`
}

// KVPool is what is known of one pool's caches.
type KVPool struct {
	Name        string       `json:"name"`
	BlockTokens int          `json:"blockTokens"`
	Index       KVIndex      `json:"index"`
	Tokens      *TokenStatus `json:"tokens"` // null when nobody needs them
	Endpoints   []KVEndpoint `json:"endpoints"`
}

// KVIndex is the index of events.
type KVIndex struct {
	Blocks  int    `json:"blocks"` // different ones
	Max     int    `json:"maxBlocks"`
	Bytes   int64  `json:"bytes"`
	Evicted uint64 `json:"evictedBlocks"`
}

// KVEndpoint is what is known of one endpoint's cache, in tokens.
type KVEndpoint struct {
	Name     string  `json:"name"`
	Role     string  `json:"role"`
	Source   string  `json:"source"` // history, or confirmed by events
	Believed int     `json:"believedTokens"`
	Capacity int     `json:"capacityTokens,omitempty"`
	GPU      int     `json:"gpuTokens"` // confirmed by events
	CPU      int     `json:"cpuTokens"`
	Disk     int     `json:"diskTokens"`
	Shared   int     `json:"sharedTokens"`
	Whole    bool    `json:"whole"`
	Demoted  bool    `json:"demoted"` // its events were found to tell what is not so
	LagMs    float64 `json:"lagMs"`   // from a first token to the events that confirm its prompt
	Feed     *Feed   `json:"feed"`    // null when it has none

	Accuracy KVAccuracy `json:"accuracy"`
}

// KVAccuracy compares what was believed cached with what answers reported.
type KVAccuracy struct {
	Answers     uint64  `json:"answers"`
	Claimed     int     `json:"believedTokens"`
	Reported    int     `json:"reportedTokens"`
	Over        int     `json:"overTokens"`
	Under       int     `json:"underTokens"`
	OverShare   float64 `json:"recentOverShare"`
	Unconfirmed uint64  `json:"unconfirmedPrompts"`
}

func (a *adminPort) kvStatus(w http.ResponseWriter, r *http.Request) {
	only := r.URL.Query().Get("pool")
	s := KVStatus{Pools: []KVPool{}}
	for _, p := range a.o.Pools() {
		if only == "" || only == p.Pool.Name() {
			s.Pools = append(s.Pools, a.kvPool(&p))
		}
	}
	if only != "" && len(s.Pools) == 0 {
		fail(w, http.StatusNotFound, "there is no pool "+only)
		return
	}
	reply(w, http.StatusOK, s)
}

// kvState writes what another gateway of the same pool can begin with.
func (a *adminPort) kvState(w http.ResponseWriter, r *http.Request) {
	pool := r.URL.Query().Get("pool")
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := a.o.Feeds.FeedStates(r.Context(), pool, w); err != nil {
		w.Header().Del("Content-Type")
		fail(w, http.StatusNotFound, err.Error())
	}
}

func (a *adminPort) kvPool(p *PoolInfo) KVPool {
	feeds, tokens := a.o.Feeds.FeedsOf(p.Pool.Name())
	b := p.Pool.Blocks()
	out := KVPool{
		Name: p.Pool.Name(), BlockTokens: p.BlockTokens, Tokens: tokens, Endpoints: []KVEndpoint{},
		Index: KVIndex{Blocks: b.Blocks, Max: b.Max, Bytes: b.Bytes, Evicted: b.Evicted},
	}
	var snap fleet.Snapshot
	p.Pool.View(&snap)
	for i := range snap.Endpoints {
		e := &snap.Endpoints[i]
		name := p.Pool.EndpointName(e.ID)
		k := kvEndpoint(name, e)
		if f, ok := feeds[name]; ok {
			k.Feed = &f
		}
		out.Endpoints = append(out.Endpoints, k)
	}
	return out
}

func kvEndpoint(name string, e *fleet.EndpointState) KVEndpoint {
	c := &e.Cache
	return KVEndpoint{
		Name: name, Role: e.Role.String(), Source: c.Source.String(), Believed: int(e.Cached), Capacity: int(e.Limits.KVTokens),
		GPU: int(c.GPU), CPU: int(c.CPU), Disk: int(c.Disk), Shared: int(c.Shared), Whole: c.Whole, Demoted: c.Demoted, LagMs: obs.Millis(c.Lag),
		Accuracy: KVAccuracy{
			Answers: c.Audits, Claimed: int(c.Claimed), Reported: int(c.Reported), Over: int(c.Over), Under: int(c.Under),
			OverShare: c.OverShare, Unconfirmed: c.Unconfirmed,
		},
	}
}
