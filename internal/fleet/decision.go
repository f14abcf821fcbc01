package fleet

import "time"

// Verdict says whether an endpoint was a candidate for a request, and if not,
// why not.
type Verdict uint8

// The verdicts on an endpoint.
const (
	Eligible    Verdict = iota
	OutEjected          // health has taken it out after failures
	OutTrial            // just back: one request at a time until one succeeds
	OutFull             // as many requests in flight as it may hold
	OutDraining         // leaving: finishes what it has
	OutTried            // this request has failed there already
	OutRole             // serves another phase
	OutOwner            // another endpoint holds what this request continues
	OutAdapter          // does not have the adapter the request names
	OutLong             // cannot hold so long a request, and another can
	OutAlone            // answers only what another has computed, and there is none who could
	verdicts
)

// Verdicts is the number of verdicts, for tables indexed by one.
const Verdicts = int(verdicts)

var verdictNames = [...]string{"eligible", "ejected", "trial", "full", "draining", "tried", "role", "owner", "adapter", "too-long", "alone"}

// String returns the verdict's name.
func (v Verdict) String() string { return nameOf(verdictNames[:], int(v)) }

// MaxCandidates is how many candidates a decision record keeps. When there
// were more, it keeps the best BestCandidates and counts the rest by verdict.
const (
	MaxCandidates  = 32
	BestCandidates = 16
)

// Candidate is what was known and thought of one endpoint when a request was
// placed.
type Candidate struct {
	Endpoint EndpointID
	Verdict  Verdict
	Matched  Tokens        // prompt tokens believed cached there
	Cache    Cached        // where they are, and what stands behind that belief
	Backlog  Tokens        // prompt tokens dispatched there and not yet answered with a first token
	InFlight int           // requests dispatched there and not ended
	Score    float64       // the policy's score, higher is better; see Decision.Policy
	TTFT     time.Duration // predicted time to first token; 0 when unknown
	TPOT     time.Duration // predicted time per output token; 0 when unknown
	// By how much measured times spread about such predictions: the standard
	// deviation of the logarithm of one over the other.
	TTFTSpread, TPOTSpread float64
	SampleAge              time.Duration // age of the gauges; -1 when never scraped
	Adapter                AdapterFit    // what the request's adapter takes there
}

// Pair is an endpoint that computes prompts and one that answers; the zero Pair is
// none.
type Pair struct{ Prefill, Decode EndpointID }

// PlanCost is one way to serve a request and what it was predicted to cost.
type PlanCost struct {
	Endpoint, Prefill EndpointID // NoEndpoint where there is none
	Source            EndpointID // whose cache the KV of the prompt's beginning is fetched from; NoEndpoint for none
	TTFT              time.Duration
	Move              time.Duration // of TTFT, to move KV
	Cost              float64       // s, of the request and of others
}

// Decision is the record of one placement: who was considered, what was
// believed, who won and by how much.
type Decision struct {
	Req      ReqID
	Attempt  int // 1 for the first
	At       Time
	Policy   string
	Terms    Terms
	Prompt   Tokens        // prompt tokens as estimated at arrival
	Queued   time.Duration // time from arrival to this decision
	Chosen   EndpointID
	Shadow   EndpointID // where the shadow policy would have sent it; NoEndpoint without one
	RunnerUp EndpointID // NoEndpoint when there was no other candidate
	Margin   float64    // score of the chosen minus score of the runner-up
	Prefill  EndpointID // where the prompt is computed before; NoEndpoint when the chosen one does so itself
	Source   EndpointID // from whose cache the chosen one fetches the prompt's beginning; NoEndpoint for none
	Pulled   Tokens     // how many tokens of it, by what is believed of both
	// Whole, Split and Pull are the best ways of their kinds, where there was more
	// than one kind.
	Whole, Split, Pull PlanCost
	// Encoders are where its images are encoded before: by image, NoEndpoint where
	// that is left to whoever computes the prompt.
	Encoders []EndpointID
	// Barred is how many pairs of endpoints could have served it, had they been able
	// to exchange KV; BarredPair is the first of them.
	Barred     int
	BarredPair Pair
	Counts     [Verdicts]int // endpoints by verdict, all of them
	// Candidates are the endpoints considered, best first. At most
	// MaxCandidates.
	Candidates []Candidate
}

// Speed is what is believed of an endpoint's speed. Times are in seconds, by the
// terms of the step form: see perf.Step.
type Speed struct {
	Known                                                        bool
	Base, PerSeq, PerKV, PerPrompt, PerPair, Experts, PerRequest float64

	Factor    float64 // slowness beside its equals, whose median is 1; 0 without equals
	FactorErr float64 // its standard deviation
	Slow      bool    // slower than chance and ordinary spread explain
	Lessons   int     // measurements its variant has learnt from
	Drifts    int     // times that the variant was found changed
	TTFTError float64 // median |predicted/measured - 1| of the latest; NaN before the first
	TPOTError float64

	Saturation float64 // how near it is to the point where one more request breaks the SLO, which is 1
	Regime     string  // what binds there: idle, linear, latency-bound, prefill-bound, kv-bound, seat-bound, overload
}

// EndpointState is one row of a Snapshot.
type EndpointState struct {
	ID         EndpointID
	Gen        Gen
	Role       Role
	Lean       Role // of one that can do both, what it is used for at present; RoleBoth for either
	Limits     Limits
	Draining   bool
	Health     string        // healthy, ejected or trial
	EjectedFor time.Duration // until the next probe; 0 unless ejected
	InFlight   int           // requests, from the ledger
	External   int           // requests of others, seen in its gauges
	Backlog    Tokens        // prompt tokens before their first token, from the ledger
	Active     Tokens        // tokens whose KV the ledger believes in use
	Gauges     Gauges
	SampleAge  time.Duration // -1 when never scraped
	Cached     Tokens        // tokens believed cached on its GPU
	Cache      CacheState
	Speed      Speed
	Wire       Link          // how fast KV is believed to leave for another endpoint; zero where it cannot
	Asked      time.Duration // until what is asked of that link already has left
	Barred     int           // endpoints whose KV it cannot use though their connector is the same
	Requests   uint64        // attempts dispatched
	Failures   uint64        // attempts failed
	Shadowed   uint64        // attempts the shadow policy would have dispatched
}

// Snapshot is the state of one pool at one instant.
type Snapshot struct {
	At        Time
	Queued    int
	Endpoints []EndpointState
}
