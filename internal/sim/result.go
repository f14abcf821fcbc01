package sim

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// Result is what came of a simulated load. Times are in nanoseconds of virtual
// time.
type Result struct {
	Arrived, Done, Failed, Refused int
	Retries                        int
	Splits                         int   // dispatches in two legs
	Pulls                          int   // dispatches for which something was fetched from another replica's cache
	MovedTokens                    int64 // between replicas
	Good                           int   // done within the targets
	TTFT, TPOT, E2E                stat.Hist
	ITL                            stat.Hist // between two tokens of an answer, with Config.Tokens
	TTFTError, TPOTError           stat.Hist // |predicted/measured - 1| of what was predicted at dispatch, in millionths
	PromptTokens, CachedTokens     int64     // of requests that had a first token
	CachedCPU, CachedDisk          int64     // of those, loaded from slower tiers
	OutputTokens                   int64
	Preemptions                    uint64
	PerReplica                     []int         // requests dispatched
	Span                           time.Duration // from the first arrival to the last end
	Index                          IndexAudit    // with Events.Audit
	first, last                    fleet.Time
}

// Outcome is what became of one request.
type Outcome struct {
	Stage, Replica        int        // of the load; that it was last sent to
	Start, First, End     fleet.Time // First is 0 when no token came
	Input, Cached, Output fleet.Tokens
	Done                  bool // the whole answer came
}

func newResult(replicas int) *Result {
	return &Result{PerReplica: make([]int, replicas), first: fleet.Never}
}

func (res *Result) firstToken(q *request, o enginesim.Output) {
	res.TTFT.Observe(int64(q.first.Sub(q.start)))
	predicted(&res.TTFTError, q.ttft, q.first.Sub(q.sent))
	if q.stage == stageAnswer {
		return // its prompt was counted where it was computed
	}
	res.PromptTokens += int64(q.Input)
	res.CachedTokens += int64(q.cached)
	res.CachedCPU += int64(o.FromCPU)
	res.CachedDisk += int64(o.FromDisk)
}

func (res *Result) done(q *request, at fleet.Time, t Targets) {
	res.Done++
	res.OutputTokens += int64(q.Output)
	ttft, e2e := q.first.Sub(q.start), at.Sub(q.start)
	tpot := time.Duration(0)
	if q.Output > 1 {
		tpot = at.Sub(q.first) / time.Duration(q.Output-1)
		res.TPOT.Observe(int64(tpot))
		predicted(&res.TPOTError, q.tpot, tpot)
	}
	res.E2E.Observe(int64(e2e))
	if (t.TTFT == 0 || ttft <= t.TTFT) && (t.TPOT == 0 || tpot <= t.TPOT) && (t.E2E == 0 || e2e <= t.E2E) {
		res.Good++
	}
	res.first, res.last = min(res.first, q.start), max(res.last, at)
}

// predicted observes the error of a prediction, unless there was none.
func predicted(h *stat.Hist, believed, measured time.Duration) {
	if believed > 0 && measured > 0 {
		h.Observe(int64(math.Abs(float64(believed)/float64(measured)-1) * 1e6))
	}
}

func (r *run) finish() {
	for _, en := range r.engines {
		r.res.Preemptions += en.lost
		if en.Engine != nil {
			r.res.Preemptions += en.Stats().Preemptions
		}
	}
	r.finishAudit()
	if r.res.first != fleet.Never {
		r.res.Span = r.res.last.Sub(r.res.first)
	}
}

// CachedShare returns the share of prompt tokens that engines had cached.
func (res *Result) CachedShare() float64 {
	if res.PromptTokens == 0 {
		return 0
	}
	return float64(res.CachedTokens) / float64(res.PromptTokens)
}

// Imbalance returns the requests of the replica that got most, over the mean.
func (res *Result) Imbalance() float64 {
	most, sum := 0, 0
	for _, n := range res.PerReplica {
		most, sum = max(most, n), sum+n
	}
	if sum == 0 {
		return 0
	}
	return float64(most) * float64(len(res.PerReplica)) / float64(sum)
}
