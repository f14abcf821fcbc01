package bench

import "time"

// SchemaV1 names the layout of the JSON result. Fields may be added under it,
// never renamed or removed.
const SchemaV1 = "penstock.dev/bench/v1"

// Report is the result of a run. Latencies are in milliseconds and count from
// the intended send time; requests of the warm-up are left out of everything
// but Requests.Sent, Requests.Warmup and Slice.
type Report struct {
	Schema      string    `json:"schema"`
	Started     time.Time `json:"started"`
	RunID       string    `json:"run_id"` // requests carry it in x-request-id, as run_id-index
	Load        string    `json:"load"`   // in a few words
	Config      Options   `json:"config"` // every option as it was used; secrets left out
	Seconds     float64   `json:"seconds"`
	Interrupted bool      `json:"interrupted"`
	Warnings    []string  `json:"warnings,omitempty"`

	Requests   Requests     `json:"requests"`
	Errors     []ErrorCount `json:"errors,omitempty"` // most frequent first
	Latency    Latency      `json:"latency_ms"`
	Throughput Throughput   `json:"throughput"`
	Tokens     Tokens       `json:"tokens"`
	Cache      Cache        `json:"cache"`
	Goodput    *Goodput     `json:"goodput,omitempty"` // with targets only
	Slice      Slice        `json:"slice"`
}

// Requests counts requests.
type Requests struct {
	Sent       int `json:"sent"`
	Warmup     int `json:"warmup"`     // sent, not measured
	Completed  int `json:"completed"`  // measured, answered whole and right
	Failed     int `json:"failed"`     // measured, see errors
	Corrupted  int `json:"corrupted"`  // of the failed: an answer that is complete but wrong
	Unfinished int `json:"unfinished"` // measured, cancelled by an interrupt
	Waited     int `json:"waited"`     // sent after their time because an earlier answer had not ended
}

// ErrorCount counts one kind of error and shows the first of it.
type ErrorCount struct {
	Kind    string `json:"kind"` // connect, no_answer, timeout, http_NNN, stream_broken, sse_error, corrupt
	Count   int    `json:"count"`
	Example string `json:"example"`
	Request string `json:"request"` // x-request-id of the example
}

// Latency holds the distributions, in ms. TPOT is (E2E - TTFT) / (output
// tokens - 1). ITL is the gap between two events with text.
type Latency struct {
	TTFT    Summary `json:"ttft"`
	ITL     Summary `json:"itl"`
	TPOT    Summary `json:"tpot"`
	E2E     Summary `json:"e2e"`
	SendLag Summary `json:"send_lag"` // how late the load generator itself was
}

// Summary is one distribution; all fields are 0 when Count is. Percentiles go by
// the nearest rank; ITL's are right to within 0.8 %, the others exact.
type Summary struct {
	Count int     `json:"count"`
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

// Throughput holds rates over the measured time.
type Throughput struct {
	Requests float64 `json:"requests_per_s"`
	Input    float64 `json:"input_tokens_per_s"`
	Output   float64 `json:"output_tokens_per_s"`
	Total    float64 `json:"total_tokens_per_s"`
}

// Tokens counts the tokens of completed requests.
type Tokens struct {
	PromptWanted int64 `json:"prompt_wanted"` // as generated
	Prompt       int64 `json:"prompt"`        // as the server counted; as generated where it did not
	Output       int64 `json:"output"`
	NoUsage      int   `json:"no_usage"` // completed requests without a usage report
}

// Cache says how much of the prompts came from the server's cache.
type Cache struct {
	Known       bool    `json:"known"` // the server reports cached tokens
	Cached      int64   `json:"cached_tokens"`
	Prompt      int64   `json:"prompt_tokens"` // of the requests that reported cached tokens
	CachedShare float64 `json:"cached_share"`  // Cached / Prompt, 0..1

	// What one endless cache shared by all requests sent, warm-up included, would
	// have held of earlier prompts. A server that also keeps the answers it
	// generated can hold more when they come back (--real-answers).
	CeilingBlocks float64 `json:"ceiling_blocks"` // of runs; for Mooncake traces a run is a block
	CeilingTokens float64 `json:"ceiling_tokens"`
}

// Goodput counts the requests that met all targets; those that failed did not.
type Goodput struct {
	TTFT  float64 `json:"ttft_ms,omitempty"`
	TPOT  float64 `json:"tpot_ms,omitempty"`
	E2E   float64 `json:"e2e_ms,omitempty"`
	Good  int     `json:"good"`
	Share float64 `json:"share"` // of completed and failed requests, 0..1
	Rate  float64 `json:"requests_per_s"`
}

// Slice identifies what was sent: two runs with equal slices sent the same
// requests, whatever order the answers came in.
type Slice struct {
	Requests    int    `json:"requests"`
	Fingerprint string `json:"fingerprint"`
	Seed        uint64 `json:"seed"`
}
