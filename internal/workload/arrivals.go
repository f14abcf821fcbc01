package workload

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/stat"
)

// ArrivalKind names an arrival process.
type ArrivalKind string

// The arrival processes.
const (
	ArrivalPoisson  ArrivalKind = "poisson"    // independent exponential gaps
	ArrivalConstant ArrivalKind = "constant"   // equal gaps, the first request at once
	ArrivalClosed   ArrivalKind = "concurrent" // no times: the next goes when an earlier one ends
)

// Stage is one stretch of load. Open-loop stages have a rate and a duration,
// closed-loop ones a concurrency and a number of requests.
type Stage struct {
	Rate     float64       // requests per second, above 0
	Duration time.Duration // 0 for endless, which only the last stage may be

	Concurrency int // requests in flight at once, at least 1
	Requests    int // requests to send; 0 for endless, which only the last stage may be
}

// Arrivals gives the intended send times of an open-loop load, or the stage
// numbers of a closed-loop one.
type Arrivals struct {
	kind   ArrivalKind
	stages []Stage
	pause  time.Duration
	rand   *stat.Rand

	stage  int           // current stage
	start  time.Duration // its beginning
	n      int           // requests given in it
	offset float64       // Poisson: seconds into the stage of the last one
}

// NewArrivals returns the arrivals of the given stages in turn, with a pause
// between one and the next. The random stream is used by Poisson only.
func NewArrivals(kind ArrivalKind, stages []Stage, pause time.Duration, r *stat.Rand) *Arrivals {
	return &Arrivals{kind: kind, stages: stages, pause: pause, rand: r}
}

// Next returns the next arrival's offset from the start of the load and its
// stage, or false when all stages are over. A closed-loop load's offsets are 0.
func (a *Arrivals) Next() (at time.Duration, stage int, ok bool) {
	for a.stage < len(a.stages) {
		st := a.stages[a.stage]
		if a.kind == ArrivalClosed {
			if st.Requests == 0 || a.n < st.Requests {
				a.n++
				return 0, a.stage, true
			}
			a.nextStage(0)
			continue
		}
		in := a.gap(st)
		if st.Duration == 0 || in < st.Duration {
			a.n++
			return a.start + in, a.stage, true
		}
		a.nextStage(st.Duration + a.pause)
	}
	return 0, 0, false
}

// gap advances within the current stage and returns the offset in it. Constant
// arrivals multiply instead of adding up, so that the rate does not drift.
func (a *Arrivals) gap(st Stage) time.Duration {
	if a.kind == ArrivalConstant {
		return seconds(float64(a.n) / st.Rate)
	}
	a.offset += a.rand.Exp(1 / st.Rate)
	return seconds(a.offset)
}

func (a *Arrivals) nextStage(length time.Duration) {
	a.start += length
	a.stage++
	a.n, a.offset = 0, 0
}

// seconds converts, holding back what does not fit a Duration.
func seconds(s float64) time.Duration {
	if s >= math.MaxInt64/2/float64(time.Second) {
		return math.MaxInt64 / 2
	}
	return time.Duration(s * float64(time.Second))
}
