package bench

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// tally adds up results. The dispatcher's goroutine is its only user.
type tally struct {
	p      *plan
	ended  int // sent and over, warm-up included
	warmup int // of them
	done   int // answered, whole or not
	failed int // of them
	unfin  int
	good   int

	ttft, tpot, e2e, lag series
	itl                  stat.Hist // ns
	recent               stat.Hist // TTFT since the last progress line, ns

	tokens      Tokens
	cached      int64
	cachedOf    int64
	errors      map[string]*ErrorCount
	from, until time.Duration // measured time

	reuse       workload.Reuse
	fingerprint uint64
	sent        int
}

func newTally(p *plan) *tally {
	return &tally{p: p, errors: map[string]*ErrorCount{}, from: math.MaxInt64}
}

// begin counts a request that is being sent.
func (t *tally) begin(r *workload.Request) {
	t.sent++
	t.fingerprint += r.Fingerprint()
	t.reuse.Add(r.Prompt)
}

// add counts one result.
func (t *tally) add(r *Result) {
	t.ended++
	if !r.Measured {
		t.warmup++
		return
	}
	t.lag.add(r.lag)
	t.from = min(t.from, r.intended)
	if r.Error == unfinished {
		t.unfin++
		return
	}
	t.done++
	t.until = max(t.until, r.end)
	if r.Error != "" {
		t.failed++
		e := t.errors[r.Error]
		if e == nil {
			e = &ErrorCount{Kind: r.Error, Example: r.Detail, Request: r.ID}
			t.errors[r.Error] = e
		}
		e.Count++
		return
	}
	t.addWhole(r)
}

// addWhole counts an answer that is whole and right.
func (t *tally) addWhole(r *Result) {
	if r.Good {
		t.good++
	}
	t.e2e.add(r.e2e)
	if r.Events > 0 {
		t.ttft.add(r.ttft)
		t.recent.Observe(int64(r.ttft))
	}
	if r.Output > 1 && r.Events > 0 && t.p.Stream {
		t.tpot.add(r.tpot)
	}
	if r.gaps != nil {
		for _, g := range r.gaps.gaps {
			t.itl.Observe(int64(g))
		}
	}
	t.tokens.PromptWanted += int64(r.PromptWanted)
	t.tokens.Output += int64(r.Output)
	if r.Prompt < 0 {
		t.tokens.NoUsage++
		t.tokens.Prompt += int64(r.PromptWanted)
	} else {
		t.tokens.Prompt += int64(r.Prompt)
	}
	if r.Cached >= 0 {
		t.cached += int64(r.Cached)
		t.cachedOf += int64(r.Prompt)
	}
}

// series keeps all values of a per-request metric, for exact percentiles.
type series []time.Duration

func (s *series) add(d time.Duration) { *s = append(*s, d) }

// summary sorts the series and condenses it.
func (s series) summary() Summary {
	if len(s) == 0 {
		return Summary{}
	}
	slices.Sort(s)
	var sum float64
	for _, d := range s {
		sum += float64(d)
	}
	rank := func(q float64) float64 { return ms(s[max(int(math.Ceil(q*float64(len(s))))-1, 0)]) }
	return Summary{
		Count: len(s), Mean: sum / float64(len(s)) / float64(time.Millisecond),
		P50: rank(0.5), P90: rank(0.9), P99: rank(0.99), Max: ms(s[len(s)-1]),
	}
}

func histSummary(h *stat.Hist) Summary {
	if h.Count() == 0 {
		return Summary{}
	}
	q := func(p float64) float64 { return h.Quantile(p) / float64(time.Millisecond) }
	return Summary{
		Count: int(h.Count()), Mean: h.Mean() / float64(time.Millisecond),
		P50: q(0.5), P90: q(0.9), P99: q(0.99), Max: ms(time.Duration(h.Max())),
	}
}

// report condenses everything. waited and blocked come from the dispatcher.
func (t *tally) report(waited int, blocked bool) *Report {
	r := &Report{Schema: SchemaV1, Load: t.p.what, Config: withoutSecrets(t.p.Options), Warnings: slices.Clone(t.p.notes)}
	r.Requests = Requests{
		Sent: t.sent, Warmup: t.warmup, Completed: t.done - t.failed, Failed: t.failed, Unfinished: t.unfin, Waited: waited,
	}
	for _, e := range t.errors {
		r.Errors = append(r.Errors, *e)
		if e.Kind == errCorrupt {
			r.Requests.Corrupted = e.Count
		}
	}
	slices.SortFunc(r.Errors, func(a, b ErrorCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Kind, b.Kind))
	})
	r.Latency = Latency{
		TTFT: t.ttft.summary(), ITL: histSummary(&t.itl), TPOT: t.tpot.summary(), E2E: t.e2e.summary(), SendLag: t.lag.summary(),
	}
	r.Tokens = t.tokens
	r.Cache = Cache{
		Known: t.cachedOf > 0, Cached: t.cached, Prompt: t.cachedOf,
		CeilingBlocks: t.reuse.RunShare(), CeilingTokens: t.reuse.TokenShare(),
	}
	if t.cachedOf > 0 {
		r.Cache.CachedShare = float64(t.cached) / float64(t.cachedOf)
	}
	if t.until > t.from {
		r.Seconds = (t.until - t.from).Seconds()
		r.Throughput = Throughput{
			Requests: float64(r.Requests.Completed) / r.Seconds,
			Input:    float64(t.tokens.Prompt) / r.Seconds,
			Output:   float64(t.tokens.Output) / r.Seconds,
			Total:    float64(t.tokens.Prompt+t.tokens.Output) / r.Seconds,
		}
	}
	r.Slice = Slice{Requests: t.sent, Fingerprint: fmt.Sprintf("%016x", t.fingerprint), Seed: t.p.Seed}
	r.Goodput = t.goodput(r.Seconds)
	t.warn(r, blocked)
	return r
}

func (t *tally) goodput(secs float64) *Goodput {
	if t.p.targets == (Targets{}) {
		return nil
	}
	g := &Goodput{TTFT: ms(t.p.targets.TTFT), TPOT: ms(t.p.targets.TPOT), E2E: ms(t.p.targets.E2E), Good: t.good}
	if t.done > 0 {
		g.Share = float64(t.good) / float64(t.done)
	}
	if secs > 0 {
		g.Rate = float64(t.good) / secs
	}
	return g
}

// Bounds beyond which the load generator says that its own part is in doubt.
const (
	lagBound    = 20.0 // ms of send lag at the 99th percentile
	countsBound = 0.05 // relative error of the prompt lengths
)

func (t *tally) warn(r *Report, blocked bool) {
	add := func(format string, args ...any) { r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...)) }
	if blocked {
		add("--max-in-flight %d held requests back; the load was not fully open loop", t.p.MaxInFlight)
	} else if r.Latency.SendLag.P99 > lagBound {
		add("the load generator itself was late: %.0f ms at p99; it needs more CPU, and the latencies include this lag", r.Latency.SendLag.P99)
	}
	if n := r.Requests.Completed - t.tokens.NoUsage; n > 0 && t.tokens.PromptWanted > 0 {
		off := float64(t.tokens.Prompt)/float64(t.tokens.PromptWanted) - 1
		if math.Abs(off) > countsBound {
			add("the server counted %+.0f %% prompt tokens against those wanted: its tokenizer cuts the generated words otherwise", 100*off)
		}
	}
	if t.tokens.NoUsage > 0 {
		add("%d answers reported no usage; their tokens were counted by events", t.tokens.NoUsage)
	}
}

// withoutSecrets blanks the values of headers that usually carry a secret.
func withoutSecrets(o Options) Options {
	if len(o.Header) == 0 {
		o.Header = nil
		return o
	}
	h := map[string]string{}
	for k, v := range o.Header {
		low := strings.ToLower(k)
		for _, word := range []string{"auth", "key", "token", "cookie", "secret"} {
			if strings.Contains(low, word) {
				v = "***"
			}
		}
		h[k] = v
	}
	o.Header = h
	return o
}
