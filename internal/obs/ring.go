package obs

import (
	"math"
	"slices"
	"sync"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
)

// RingBytes bounds the memory of the decision ring.
const RingBytes = 32 << 20

// Ring keeps the records of the latest requests, as many as fit in its bytes.
// It is safe for concurrent use.
type Ring struct {
	// Name returns the name of an endpoint of a pool, "" when it is gone.
	Name func(pool string, id fleet.EndpointID) string
	// Why says why a pair cannot exchange KV; nil where nobody knows.
	Why func(pool string, p fleet.Pair) string

	mu    sync.Mutex
	limit int
	bytes int
	queue []*entry // oldest first, from head on
	head  int
	byID  map[string]*entry
	total uint64
}

type entry struct {
	at     time.Time
	access gateway.Access
	why    string // the first of the pairs that could not exchange KV cannot
	size   int
}

// NewRing returns a ring that holds at most limit bytes.
func NewRing(limit int, name func(pool string, id fleet.EndpointID) string) *Ring {
	return &Ring{Name: name, limit: limit, byID: map[string]*entry{}}
}

// What an entry costs beside its strings and candidates, rounded up.
const (
	entryBytes     = 768
	decisionBytes  = 224
	candidateBytes = 72
)

// Add records a request at its end.
func (r *Ring) Add(at time.Time, a *gateway.Access) {
	e := &entry{at: at, access: *a}
	e.size = entryBytes + len(a.ID) + len(a.Model) + len(a.Path)
	for i := range a.Decisions {
		e.size += decisionBytes + candidateBytes*len(a.Decisions[i].Candidates)
	}
	if at := slices.IndexFunc(a.Decisions, func(d fleet.Decision) bool { return d.Barred > 0 }); at >= 0 && r.Why != nil {
		e.why = r.Why(a.Pool, a.Decisions[at].BarredPair)
		e.size += len(e.why)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total++
	r.bytes += e.size
	r.queue = append(r.queue, e)
	r.byID[a.ID] = e
	for r.bytes > r.limit && r.head < len(r.queue) {
		old := r.queue[r.head]
		r.queue[r.head] = nil
		r.head++
		r.bytes -= old.size
		if r.byID[old.access.ID] == old {
			delete(r.byID, old.access.ID)
		}
	}
	if r.head > len(r.queue)/2 {
		n := copy(r.queue, r.queue[r.head:])
		clear(r.queue[n:])
		r.queue, r.head = r.queue[:n], 0
	}
}

// Find returns the record of the latest request with an id.
func (r *Ring) Find(id string) (Record, bool) {
	r.mu.Lock()
	e := r.byID[id]
	r.mu.Unlock()
	if e == nil {
		return Record{}, false
	}
	return r.render(e), true
}

// Latest returns up to n records, newest first, of one pool or (with "") of
// all.
func (r *Ring) Latest(n int, pool string) []Record {
	r.mu.Lock()
	var picked []*entry
	for i := len(r.queue) - 1; i >= r.head && len(picked) < n; i-- {
		if e := r.queue[i]; pool == "" || e.access.Pool == pool {
			picked = append(picked, e)
		}
	}
	r.mu.Unlock()
	out := make([]Record, 0, len(picked))
	for _, e := range picked {
		out = append(out, r.render(e))
	}
	return out
}

// Size returns the number of records held, their bytes, and how many were ever
// added.
func (r *Ring) Size() (records, bytes int, total uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.queue) - r.head, r.bytes, r.total
}

// Record is what can be told of one request: the wire form of the admin API.
// Times are in milliseconds.
type Record struct {
	Request  string    `json:"request"`
	At       time.Time `json:"at"` // its end
	Pool     string    `json:"pool"`
	Model    string    `json:"model"`
	Path     string    `json:"path"`
	Stream   bool      `json:"stream"`
	Prompt   int       `json:"estimatedPromptTokens"`
	Tokens   string    `json:"tokens,omitempty"` // how the prompt's tokens were found out, or why not
	Terms    *Terms    `json:"terms,omitempty"`  // nil when it asked for none
	Outcome  Outcome   `json:"outcome"`
	Attempts []Attempt `json:"attempts"`
}

// Terms are what a request was to be served on.
type Terms struct {
	Tenant    string  `json:"tenant,omitempty"`
	Objective string  `json:"objective,omitempty"`
	Priority  int     `json:"priority"`
	TTFTMs    float64 `json:"sloTtftMs,omitempty"`
	TPOTMs    float64 `json:"sloTpotMs,omitempty"`
}

// termsOf returns the terms of a request that was placed, nil when it had none.
func termsOf(a *gateway.Access) *Terms {
	t := Terms{Tenant: a.Tenant, Objective: a.Objective}
	if len(a.Decisions) > 0 {
		d := &a.Decisions[0].Terms
		t.Priority, t.TTFTMs, t.TPOTMs = d.Priority, Millis(d.SLO.TTFT), Millis(d.SLO.TPOT)
	}
	if t == (Terms{}) {
		return nil
	}
	return &t
}

// Outcome is what happened.
type Outcome struct {
	Status       int     `json:"status"`
	Endpoint     string  `json:"endpoint,omitempty"`
	Attempts     int     `json:"attempts"`
	Retries      int     `json:"retries"`
	QueueMs      float64 `json:"queueMs"`
	TTFTMs       float64 `json:"ttftMs"`
	ITLMs        float64 `json:"itlP50Ms"`
	TotalMs      float64 `json:"totalMs"`
	PromptTokens int     `json:"promptTokens"`
	CachedTokens *int    `json:"cachedTokens"` // null when the engine did not tell
	OutputTokens int     `json:"outputTokens"`
	Bytes        int64   `json:"bytes"`
	Moved        *Moved  `json:"movedKV,omitempty"` // where the prompt was computed elsewhere
	Failure      string  `json:"failure,omitempty"`
	Refusal      string  `json:"refusal,omitempty"`
	Error        string  `json:"error,omitempty"`
}

// Attempt is one placement: what was known of each candidate and who won.
type Attempt struct {
	Attempt    int            `json:"attempt"`
	Policy     string         `json:"policy"`
	QueuedMs   float64        `json:"queuedMs"`
	Chosen     string         `json:"chosen"`
	RunnerUp   string         `json:"runnerUp,omitempty"`
	Shadow     string         `json:"shadow,omitempty"` // where the shadow policy would have sent it
	Margin     float64        `json:"margin"`
	Counts     map[string]int `json:"endpointsByVerdict"`
	Candidates []Candidate    `json:"candidates"`
	// Prefill is where the prompt is computed, for the chosen to take over; Plans are
	// the best ways of their kinds, where there was a choice between kinds.
	Prefill string `json:"prefill,omitempty"`
	Plans   []Plan `json:"plans,omitempty"`
	// Barred tells of pairs that cannot exchange KV; nil where there is none.
	Barred *Barred `json:"barred,omitempty"`
	// Encoders are where its images are encoded, by image; "" where that is left to
	// whoever computes the prompt.
	Encoders []string `json:"encoders,omitempty"`
	// Source is from whose cache the chosen fetches the prompt's beginning, and Pulled
	// how many tokens of it.
	Source string `json:"source,omitempty"`
	Pulled int    `json:"pulledTokens,omitempty"`
}

// Barred tells of pairs of endpoints that could have served a request, had they
// been able to exchange KV.
type Barred struct {
	Pairs   int    `json:"pairs"`
	Prefill string `json:"prefill"` // of the first
	Decode  string `json:"decode"`
	Why     string `json:"why,omitempty"` // as was known when the request ended
}

// Moved tells of the KV that was moved for a request.
type Moved struct {
	Tokens     int     `json:"tokens"`
	ExpectedMs float64 `json:"expectedMs"`       // as was predicted
	TookMs     float64 `json:"tookMs,omitempty"` // 0 when nothing tells
}

// Plan is one way to serve a request and what it was predicted to cost.
type Plan struct {
	Kind     string  `json:"kind"` // whole, split or pull
	Endpoint string  `json:"endpoint"`
	Prefill  string  `json:"prefill,omitempty"`
	Source   string  `json:"source,omitempty"`
	TTFTMs   float64 `json:"predictedTtftMs"`
	MoveMs   float64 `json:"predictedMoveMs,omitempty"` // of that, to move KV
	Cost     float64 `json:"costSeconds"`               // of the request and of others
	Taken    bool    `json:"taken"`
}

// Candidate is one endpoint as the policy saw it.
type Candidate struct {
	Endpoint    string   `json:"endpoint"`
	Verdict     string   `json:"verdict"`
	Score       *float64 `json:"score"` // null when the policy did not score it
	Matched     int      `json:"matchedTokens"`
	Source      string   `json:"matchedSource,omitempty"` // history, expected or confirmed
	CPU         int      `json:"matchedCpuTokens,omitempty"`
	Disk        int      `json:"matchedDiskTokens,omitempty"`
	Shared      int      `json:"matchedSharedTokens,omitempty"`
	FetchMs     float64  `json:"predictedFetchMs,omitempty"` // to bring those to the GPU
	Backlog     int      `json:"backlogTokens"`
	InFlight    int      `json:"inFlight"`
	TTFTMs      *float64 `json:"predictedTtftMs"` // null when nothing is believed of its speed
	TPOTMs      *float64 `json:"predictedTpotMs"`
	TTFTSpread  float64  `json:"predictedTtftSpread,omitempty"` // standard deviation of the logarithm of measured over predicted
	TPOTSpread  float64  `json:"predictedTpotSpread,omitempty"`
	SampleAgeMs *float64 `json:"sampleAgeMs"`       // null when never scraped
	Adapter     string   `json:"adapter,omitempty"` // of a request for one: loaded, room or full
}

func (r *Ring) render(e *entry) Record {
	a := &e.access
	rec := Record{
		Request: a.ID, At: e.at, Pool: a.Pool, Model: a.Model, Path: a.Path, Stream: a.Stream, Prompt: int(a.Prompt), Tokens: a.Tokens,
		Terms: termsOf(a), Attempts: []Attempt{},
		Outcome: Outcome{
			Status: a.Status, Endpoint: a.Endpoint, Attempts: a.Attempts, Retries: max(a.Attempts-1, 0),
			QueueMs: Millis(a.Queue), TTFTMs: Millis(a.TTFT), ITLMs: Millis(a.ITL), TotalMs: Millis(a.Total),
			PromptTokens: int(a.Usage.Prompt), OutputTokens: int(a.Usage.Output), Bytes: a.Bytes,
		},
	}
	if a.Usage.Known && a.Usage.Cached >= 0 {
		rec.Outcome.CachedTokens = new(int(a.Usage.Cached))
	}
	if m := a.Moved; m.Tokens > 0 {
		rec.Outcome.Moved = &Moved{Tokens: int(m.Tokens), ExpectedMs: Millis(m.Expected), TookMs: Millis(m.Took)}
	}
	if a.Failure != fleet.FailNone {
		rec.Outcome.Failure = a.Failure.String()
	}
	if a.Refusal != fleet.RefuseNone {
		rec.Outcome.Refusal = a.Refusal.String()
	}
	if a.Err != nil {
		rec.Outcome.Error = a.Err.Error()
	}
	for i := range a.Decisions {
		at := r.attempt(a.Pool, &a.Decisions[i])
		if at.Barred != nil {
			at.Barred.Why = e.why
		}
		rec.Attempts = append(rec.Attempts, at)
	}
	return rec
}

// plans returns the kinds of plans that were compared; nothing where there was one
// kind only.
func (r *Ring) plans(pool string, d *fleet.Decision) []Plan {
	if d.Split.Endpoint == fleet.NoEndpoint && d.Pull.Endpoint == fleet.NoEndpoint {
		return nil
	}
	plan := func(kind string, c fleet.PlanCost, taken bool) Plan {
		p := Plan{Kind: kind, Endpoint: r.name(pool, c.Endpoint), TTFTMs: Millis(c.TTFT), MoveMs: Millis(c.Move), Cost: c.Cost, Taken: taken}
		if c.Prefill != fleet.NoEndpoint {
			p.Prefill = r.name(pool, c.Prefill)
		}
		if c.Source != fleet.NoEndpoint {
			p.Source = r.name(pool, c.Source)
		}
		return p
	}
	split, pull := d.Prefill != fleet.NoEndpoint, d.Source != fleet.NoEndpoint
	list := []Plan{plan("whole", d.Whole, !split && !pull)}
	if d.Split.Endpoint != fleet.NoEndpoint {
		list = append(list, plan("split", d.Split, split))
	}
	if d.Pull.Endpoint != fleet.NoEndpoint {
		list = append(list, plan("pull", d.Pull, pull))
	}
	return list
}

func (r *Ring) attempt(pool string, d *fleet.Decision) Attempt {
	at := Attempt{
		Attempt: d.Attempt, Policy: d.Policy, QueuedMs: Millis(d.Queued), Chosen: r.name(pool, d.Chosen), Margin: d.Margin,
		Counts: map[string]int{}, Candidates: []Candidate{},
	}
	if d.RunnerUp != fleet.NoEndpoint {
		at.RunnerUp = r.name(pool, d.RunnerUp)
	}
	if d.Shadow != fleet.NoEndpoint {
		at.Shadow = r.name(pool, d.Shadow)
	}
	if d.Prefill != fleet.NoEndpoint {
		at.Prefill = r.name(pool, d.Prefill)
	}
	if d.Source != fleet.NoEndpoint {
		at.Source, at.Pulled = r.name(pool, d.Source), int(d.Pulled)
	}
	for _, id := range d.Encoders {
		name := ""
		if id != fleet.NoEndpoint {
			name = r.name(pool, id)
		}
		at.Encoders = append(at.Encoders, name)
	}
	at.Plans = r.plans(pool, d)
	if d.Barred > 0 {
		at.Barred = &Barred{Pairs: d.Barred, Prefill: r.name(pool, d.BarredPair.Prefill), Decode: r.name(pool, d.BarredPair.Decode)}
	}
	for v, n := range d.Counts {
		if n > 0 {
			at.Counts[fleet.Verdict(v).String()] = n
		}
	}
	for _, c := range d.Candidates {
		w := Candidate{
			Endpoint: r.name(pool, c.Endpoint), Verdict: c.Verdict.String(), Matched: int(c.Matched), Backlog: int(c.Backlog), InFlight: c.InFlight,
			Adapter: c.Adapter.String(),
		}
		if c.Matched > 0 {
			w.Source, w.FetchMs = c.Cache.Source.String(), Millis(c.Cache.Fetch)
			w.CPU, w.Disk, w.Shared = int(c.Cache.CPU), int(c.Cache.Disk), int(c.Cache.Shared)
		}
		if !math.IsNaN(c.Score) {
			w.Score = new(c.Score)
		}
		if c.TTFT > 0 {
			w.TTFTMs, w.TTFTSpread = new(Millis(c.TTFT)), c.TTFTSpread
		}
		if c.TPOT > 0 {
			w.TPOTMs, w.TPOTSpread = new(Millis(c.TPOT)), c.TPOTSpread
		}
		if c.SampleAge >= 0 {
			w.SampleAgeMs = new(Millis(c.SampleAge))
		}
		at.Candidates = append(at.Candidates, w)
	}
	return at
}

func (r *Ring) name(pool string, id fleet.EndpointID) string {
	if n := r.Name(pool, id); n != "" {
		return n
	}
	return "(gone)"
}
