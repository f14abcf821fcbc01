// Package admin is the operator's port: the state of the pools, the records of
// decisions, metrics and profiles. It listens on loopback unless it is given a
// token.
package admin

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/obs"
	"penstock.dev/penstock/internal/pool"
)

// Options are what the admin port shows. All fields but Token and Caches are required.
type Options struct {
	Version string
	Started time.Time
	Pools   func() []PoolInfo
	Ring    *obs.Ring
	Metrics http.Handler
	Ready   func() bool
	Fleet   Fleet
	Feeds   Feeds
	Caches  Caches // nil where nothing can be done about them
	// Transfers tells of the KV that engines hand over; nil where nobody keeps account.
	Transfers Transfers
	Reload    func() ReloadState
	// RegisterToken lets engines register themselves; "" lets nobody.
	RegisterToken string
	// Token, when set, must come as a bearer token with every request. Without
	// one only requests to a loopback name are answered, so that a web page
	// elsewhere cannot read this port through a browser.
	Token string
}

// PoolInfo is a pool and what configuration says of it.
type PoolInfo struct {
	Pool   *live.Pool
	Models []string
	Policy string
	// BlockTokens is how many tokens a key of the index of KV events stands for.
	BlockTokens int
	// Undecided are servers whose ranks are not in the pool yet.
	Undecided []Undecided
	// Turning are the changes of role under way, by endpoint.
	Turning map[string]Turning
}

// Undecided is a server of which it is not known yet how its data-parallel ranks
// are told apart.
type Undecided struct {
	Endpoint string `json:"endpoint"`
	URL      string `json:"url"`
	Ranks    int    `json:"ranks"`
	Why      string `json:"why"`
}

// New returns the handler of the admin port.
func New(o Options) http.Handler {
	a := &adminPort{o}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.index)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", a.readyz)
	mux.HandleFunc("GET /api/status", a.status)
	mux.HandleFunc("GET /api/decisions", a.decisions)
	mux.HandleFunc("GET /api/decisions/{id}", a.decision)
	mux.HandleFunc("GET /api/kv", a.kvStatus)
	mux.HandleFunc("GET /api/kv/state", a.kvState)
	a.registerCaches(mux)
	mux.HandleFunc("GET /api/transfers", a.transfers)
	mux.HandleFunc("POST /api/transfers/{id}/abort", a.abortTransfer)
	mux.HandleFunc("POST /api/endpoints", a.putEndpoint)
	mux.HandleFunc("DELETE /api/endpoints/{pool}/{name}", a.deleteEndpoint)
	mux.HandleFunc("POST /api/endpoints/{pool}/{name}/drain", a.drainEndpoint)
	mux.HandleFunc("DELETE /api/endpoints/{pool}/{name}/drain", a.undrainEndpoint)
	mux.HandleFunc("POST /api/endpoints/{pool}/{name}/role", a.setRole)
	mux.HandleFunc("DELETE /api/endpoints/{pool}/{name}/role", a.clearRole)
	mux.Handle("GET /metrics", o.Metrics)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	all := http.NewServeMux()
	all.Handle("/", a.guard(mux))
	// Engines have a token of their own and come from elsewhere.
	all.HandleFunc("POST /api/register", a.register)
	return all
}

// CheckListen refuses an address that others can reach when there is no token.
func CheckListen(addr, token string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("admin address %q: %w", addr, err)
	}
	if token == "" && !isLoopback(host) {
		return fmt.Errorf("admin address %q can be reached from elsewhere: set --admin-token, or listen on 127.0.0.1", addr)
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

type adminPort struct{ o Options }

// guard lets in who may look.
func (a *adminPort) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.o.Token != "" {
			got, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			if !bearer || subtle.ConstantTimeCompare([]byte(got), []byte(a.o.Token)) != 1 {
				w.Header().Set("WWW-Authenticate", "Bearer")
				fail(w, http.StatusUnauthorized, "the admin port wants its token: Authorization: Bearer …")
				return
			}
		} else if host := hostOnly(r.Host); !isLoopback(host) {
			fail(w, http.StatusForbidden, fmt.Sprintf("the admin port answers to loopback names only, not to %q", host))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func hostOnly(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.Trim(hostport, "[]")
}

func (a *adminPort) index(w http.ResponseWriter, _ *http.Request) {
	text(w, http.StatusOK, "Penstock "+a.o.Version+`

GET /api/status            pools, endpoints, counts
GET /api/decisions         the latest requests and why they went where they did (?limit=N, ?pool=NAME)
GET /api/decisions/{id}    one request
GET /api/kv                what is cached where, and how well it is known (?pool=NAME)
GET /api/kv/state          the same for another gateway to begin with (?pool=NAME)
POST /api/kv/where         {"pool"|"model","prompt"|"messages"|"session"|"request"}: who has it cached
POST /api/kv/prefetch      {…,"endpoints":["NAME"]|["all"],"copies"}: have it cached
GET, POST /api/kv/pins     what is kept cached; DELETE /api/kv/pins/{id} (?pool=NAME)
POST /api/kv/clear         {"pool","endpoints":["NAME"]|["all"]}: empty caches
GET, PUT /api/kv/quotas    {"pool","default","tenants":{}}: tokens kept by tenant (?pool=NAME)
GET /api/transfers         KV handed over between engines: pairs, tickets, links (?tickets=N)
POST /api/transfers/{id}/abort             {"reason"}: give one up; its request is served elsewhere
POST /api/endpoints        {"pool","url","name","lease","ranks","rankMode"}: add one, or renew its lease
DELETE /api/endpoints/{pool}/{name}        take it out (?drain=30s)
POST /api/endpoints/{pool}/{name}/drain    nothing new for it; DELETE lets it serve again
POST /api/endpoints/{pool}/{name}/role     {"role","timeout"}: another role, after a drain; DELETE: as its source says
POST /api/register         the same as POST /api/endpoints, for engines with --register-token
GET /metrics               Prometheus
GET /healthz, /readyz
GET /debug/pprof/`)
}

func (a *adminPort) readyz(w http.ResponseWriter, _ *http.Request) {
	if !a.o.Ready() {
		text(w, http.StatusServiceUnavailable, "not ready")
		return
	}
	text(w, http.StatusOK, "ok")
}

// Status is the answer of /api/status. Times are in milliseconds.
type Status struct {
	Version string       `json:"version"`
	Started time.Time    `json:"started"`
	Ready   bool         `json:"ready"`
	Reload  ReloadState  `json:"configuration"`
	Ring    RingStatus   `json:"decisionRing"`
	Pools   []PoolStatus `json:"pools"`
}

// RingStatus tells how full the ring of decision records is.
type RingStatus struct {
	Records int    `json:"records"`
	Bytes   int    `json:"bytes"`
	Total   uint64 `json:"total"` // ever recorded
}

// PoolStatus is one pool.
type PoolStatus struct {
	Name      string           `json:"name"`
	Models    []string         `json:"models"`
	Policy    string           `json:"policy"`
	Tally     pool.Tally       `json:"requests"`
	Endpoints []EndpointStatus `json:"endpoints"`
	Undecided []Undecided      `json:"undecidedRanks,omitempty"`
}

// RankStatus says which data-parallel rank of its server an endpoint is.
type RankStatus struct {
	Rank int    `json:"rank"`
	Of   int    `json:"of"`
	Mode string `json:"mode"` // port: it has one of its own; header: requests name it
}

// EndpointStatus is one endpoint: the ledger's figures, what its gauges said
// and how long ago.
type EndpointStatus struct {
	Name        string   `json:"name"`
	URL         string   `json:"url,omitempty"`
	Role        string   `json:"role"`
	Lean        string   `json:"lean,omitempty"` // of one that can do both, what it is used for at present
	Health      string   `json:"health"`
	Draining    bool     `json:"draining"`
	NextProbeMs float64  `json:"nextProbeMs,omitempty"`
	InFlight    int      `json:"inFlight"`
	External    int      `json:"external"`
	Backlog     int      `json:"backlogTokens"`
	Active      int      `json:"activeTokens"`
	Cached      int      `json:"believedCachedTokens"`
	KVTokens    int      `json:"kvTokens,omitempty"`
	SampleAgeMs *float64 `json:"sampleAgeMs"` // null when never scraped
	Running     *int     `json:"running"`     // gauges: null when unknown
	Waiting     *int     `json:"waiting"`
	KVUsage     *float64 `json:"kvUsage"`
	Attempts    uint64   `json:"attempts"`
	FailedCount uint64   `json:"failedAttempts"`
	Speed       *Speed   `json:"speed"` // null when nothing is believed of it

	Rank *RankStatus `json:"dataParallel,omitempty"`
	Wire *WireStatus `json:"kvLink,omitempty"` // nil where KV does not leave it
	// Turning tells of a change of role under way; nil where there is none.
	Turning *Turning `json:"turning,omitempty"`
}

// WireStatus is what a pool believes of the link by which an endpoint hands KV
// over, and what stands before it.
type WireStatus struct {
	LatencyMs  float64 `json:"latencyMs"`
	PerTokenUs float64 `json:"perTokenUs"`
	QueueMs    float64 `json:"queueMs"`                 // until what is asked of it already has left
	Barred     int     `json:"cannotUseKVOf,omitempty"` // endpoints of the same connector
}

// Speed is what is believed of an endpoint's step time, in milliseconds, and how
// well it has predicted.
type Speed struct {
	BaseMs       float64  `json:"baseMs"`                // per step
	PerSeqMs     float64  `json:"perSequenceMs"`         // per decoding sequence
	PerKVMs      float64  `json:"perContextTokenMs"`     // per token of context
	PerPromptMs  float64  `json:"perPromptTokenMs"`      // per prompt token
	PerPairMs    float64  `json:"perAttentionPairMs"`    // per pair of prompt token and token before it
	ExpertsMs    float64  `json:"expertsMs,omitempty"`   // to read the weights of all experts
	PerRequestMs float64  `json:"perRequestMs"`          // per request, outside steps
	Lessons      int      `json:"lessons"`               // measurements its variant has learnt from
	Drifts       int      `json:"drifts"`                // times its variant was found changed
	Factor       float64  `json:"factor,omitempty"`      // slowness beside its equals, whose median is 1
	FactorError  float64  `json:"factorError,omitempty"` // standard deviation
	Slow         bool     `json:"slow"`                  // beyond what chance explains
	TTFTError    *float64 `json:"ttftError"`             // median |predicted/measured - 1| of the latest 64; null before the first
	TPOTError    *float64 `json:"tpotError"`
	Saturation   float64  `json:"saturation"` // 1 where one more request breaks the SLO
	Regime       string   `json:"regime"`     // what binds there
}

func (a *adminPort) status(w http.ResponseWriter, _ *http.Request) {
	s := Status{Version: a.o.Version, Started: a.o.Started, Ready: a.o.Ready(), Reload: a.o.Reload(), Pools: []PoolStatus{}}
	s.Ring.Records, s.Ring.Bytes, s.Ring.Total = a.o.Ring.Size()
	var snap fleet.Snapshot
	for _, p := range a.o.Pools() {
		ps := PoolStatus{Name: p.Pool.Name(), Models: p.Models, Policy: p.Policy, Tally: p.Pool.Tally(), Endpoints: []EndpointStatus{}, Undecided: p.Undecided}
		p.Pool.View(&snap)
		for _, e := range snap.Endpoints {
			at, _ := p.Pool.Endpoint(e.ID)
			es := endpointStatus(at, e)
			if t, turning := p.Turning[at.Name]; turning {
				es.Turning = &t
			}
			ps.Endpoints = append(ps.Endpoints, es)
		}
		s.Pools = append(s.Pools, ps)
	}
	reply(w, http.StatusOK, s)
}

func endpointStatus(at live.Endpoint, e fleet.EndpointState) EndpointStatus {
	s := EndpointStatus{
		Name: at.Name, URL: at.URL, Role: e.Role.String(), Rank: rankStatus(at.Rank), Health: e.Health, Draining: e.Draining, NextProbeMs: obs.Millis(e.EjectedFor), InFlight: e.InFlight, External: e.External,
		Backlog: int(e.Backlog), Active: int(e.Active), Cached: int(e.Cached), KVTokens: int(e.Limits.KVTokens),
		Attempts: e.Requests, FailedCount: e.Failures,
	}
	s.Speed = speedOf(e.Speed)
	if e.Lean != fleet.RoleBoth {
		s.Lean = e.Lean.String()
	}
	if w := e.Wire; w != (fleet.Link{}) {
		const ms, us = 1e3, 1e6
		s.Wire = &WireStatus{LatencyMs: w.Latency * ms, PerTokenUs: w.PerToken * us, QueueMs: obs.Millis(e.Asked), Barred: e.Barred}
	}
	if e.SampleAge >= 0 {
		s.SampleAgeMs = new(obs.Millis(e.SampleAge))
	}
	if e.Gauges.Known.Has(fleet.KnownRunning) {
		s.Running = new(e.Gauges.Running)
	}
	if e.Gauges.Known.Has(fleet.KnownWaiting) {
		s.Waiting = new(e.Gauges.Waiting)
	}
	if e.Gauges.Known.Has(fleet.KnownKVUsage) {
		s.KVUsage = new(e.Gauges.KVUsage)
	}
	return s
}

func rankStatus(r live.Rank) *RankStatus {
	if r.Of == 0 {
		return nil
	}
	s := &RankStatus{Rank: r.Index, Of: r.Of, Mode: "port"}
	if r.Shared {
		s.Mode = "header"
	}
	return s
}

func speedOf(v fleet.Speed) *Speed {
	if !v.Known {
		return nil
	}
	const ms = 1e3
	s := &Speed{
		BaseMs: v.Base * ms, PerSeqMs: v.PerSeq * ms, PerKVMs: v.PerKV * ms, PerPromptMs: v.PerPrompt * ms, PerPairMs: v.PerPair * ms,
		ExpertsMs: v.Experts * ms, PerRequestMs: v.PerRequest * ms, Lessons: v.Lessons, Drifts: v.Drifts,
		Factor: v.Factor, FactorError: v.FactorErr, Slow: v.Slow, Saturation: v.Saturation, Regime: v.Regime,
	}
	if !math.IsNaN(v.TTFTError) {
		s.TTFTError = new(v.TTFTError)
	}
	if !math.IsNaN(v.TPOTError) {
		s.TPOTError = new(v.TPOTError)
	}
	return s
}

// The number of records a list has, and at most has.
const (
	defaultLimit = 50
	maxLimit     = 1000
)

func (a *adminPort) decisions(w http.ResponseWriter, r *http.Request) {
	limit := defaultLimit
	if v := r.URL.Query().Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxLimit {
			fail(w, http.StatusBadRequest, fmt.Sprintf("limit must be a number from 1 to %d, is %q", maxLimit, v))
			return
		}
		limit = n
	}
	reply(w, http.StatusOK, struct {
		Decisions []obs.Record `json:"decisions"`
	}{a.o.Ring.Latest(limit, r.URL.Query().Get("pool"))})
}

func (a *adminPort) decision(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	rec, ok := a.o.Ring.Find(id)
	if !ok {
		fail(w, http.StatusNotFound, fmt.Sprintf("no record of request %q: it has not ended yet, is not of this gateway, or is older than what the ring of %d MB keeps", id, obs.RingBytes>>20))
		return
	}
	reply(w, http.StatusOK, rec)
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		// A number that is none is a mistake here, and must not look like an empty answer.
		status = http.StatusInternalServerError
		body = fmt.Appendf(nil, `{"error": %q}`, "the answer cannot be written: "+err.Error())
	}
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the reader may have gone
}

func fail(w http.ResponseWriter, status int, message string) {
	reply(w, status, map[string]string{"error": message})
}

func text(w http.ResponseWriter, status int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(s + "\n")) // the reader may have gone
}
