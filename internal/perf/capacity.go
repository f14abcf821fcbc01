package perf

import (
	"math"

	"penstock.dev/penstock/internal/fleet"
)

// Mix is what the requests of one kind, or of all kinds together, look like.
type Mix struct {
	Input  float64 // mean prompt tokens, at least 1
	Cached float64 // share of a prompt that is found in the cache, 0 to 1
	Output float64 // mean output tokens, at least 1
	// Squared coefficients of variation: 0 when all are alike, 1 for exponential.
	InputSCV  float64
	OutputSCV float64
	// Burst is the squared coefficient of variation of the times between
	// arrivals; 0 counts as 1, a Poisson process.
	Burst float64
}

// uncached is the mean number of prompt tokens to compute.
func (m Mix) uncached() float64 { return max(m.Input*(1-m.Cached), 1) }

// pairs is the mean number of attention pairs of a prompt's computation.
func (m Mix) pairs() float64 {
	u := m.Input * (1 - m.Cached)
	return (1 + m.InputSCV) * u * (m.Input*m.Cached + u/2)
}

// context is the mean number of tokens that a decoding sequence has, seen at any
// time: long answers are met more often than short ones.
func (m Mix) context() float64 { return m.Input + m.Output*(1+m.OutputSCV)/2 }

// Regime is what bounds an endpoint.
type Regime uint8

// The regimes, from the least to the most loaded.
const (
	Idle         Regime = iota // nothing runs
	Linear                     // time grows with load, nothing is near its bound
	LatencyBound               // time per output token is at its target before memory is full
	PrefillBound               // prompts wait for prompts: time to first token is at its target
	KVBound                    // KV cache is full
	SeatBound                  // all sequences that may run do
	Overload                   // work comes in faster than it can be done
)

var regimeNames = [...]string{"idle", "linear", "latency-bound", "prefill-bound", "kv-bound", "seat-bound", "overload"}

// String returns the regime's name as reports print it.
func (r Regime) String() string {
	if int(r) >= len(regimeNames) {
		return "unknown"
	}
	return regimeNames[r]
}

const (
	fullKV   = 0.9  // share of the KV cache beyond which engines preempt: sequences grow while they run
	mostBusy = 0.95 // share of an engine's time that arrivals may ask for
)

// Charge returns the engine seconds that one request takes from all others,
//
//	w = PerPrompt·uncached + PerPair·A + output·(PerSeq + PerKV·(input + output/2))
//
// for a prompt of input tokens of which cached are found in the cache. It is what
// a request adds to an engine that is busy anyway; Base and Experts are left out.
func (s Step) Charge(input, cached, output float64) float64 {
	u := max(input-cached, 0)
	return s.PerPrompt*u + s.PerPair*u*(cached+u/2) + output*(s.PerSeq+s.PerKV*(input+output/2))
}

// charge is the mean Charge of a mix's requests.
func (s Step) charge(m Mix) float64 {
	return s.PerPrompt*m.uncached() + s.PerPair*m.pairs() + m.Output*(s.PerSeq+s.PerKV*m.context())
}

// share is the engine's time that one request of a mix takes from the others. With
// a mixture of experts it is its charge and the steps its prompt takes: such
// engines were measured to decode no faster than if prompts had steps of their own.
func (s Step) share(m Mix, l fleet.Limits) float64 {
	w := s.charge(m)
	if s.Experts > 0 {
		w += math.Ceil(m.uncached()/tokenBudget(l)) * (s.Base + s.Experts)
	}
	return w
}

// tokenBudget is the number of tokens a step may process.
func tokenBudget(l fleet.Limits) float64 {
	if l.BudgetTokens <= 0 {
		return float64(DefaultBudget)
	}
	return float64(l.BudgetTokens)
}

// Lockstep returns the seconds of one step of a lockstep set: that of the rank
// with most to do, and dispatch seconds in which experts are told and answer.
// Each rank's work is its own; s is the step of one rank.
func (s Step) Lockstep(ranks []Work, dispatch float64) float64 {
	slowest := 0.0
	for _, w := range ranks {
		slowest = max(slowest, s.Time(w))
	}
	return slowest + dispatch
}

// Steady is what a rate of requests makes of an endpoint in the long run.
type Steady struct {
	Rho  float64 // share of its time that requests ask for, beyond what steps cost anyway
	TPOT float64 // s, mean
	Seqs float64 // mean sequences decoding
	KV   float64 // mean tokens of KV they hold
	Wait float64 // s, mean wait of a prompt for those before it
	// Of a request, with the quantile asked for:
	TTFTMet float64 // chance of TTFT within its target; 1 without one
	TPOTq   float64 // s, TPOT that the quantile stays within
}

// Steady returns the state that requests of a mix, coming at rate per second,
// lead to; q is the quantile for TPOTq. Beyond what the endpoint can do, times
// are infinite.
//
// With n sequences decoding, each token costs T = Base + k·n with k the charge per
// output token. Requests share the engine alike, so that the number of them is
// distributed as a negative binomial with Base/k + 1 and rho = rate·w, whatever
// the distribution of outputs (Kelly 1979): E[T] = (Base + k)/(1 − rho), the
// Base/(1 − rho) of mean-field models with the request itself counted. The wait
// of prompts is that of an M/G/1 queue, P(W > t) ≈ rho_p·exp(−rho_p·t/E[W]).
func (s Step) Steady(m Mix, rate float64, l fleet.Limits, slo fleet.SLO, q float64) Steady {
	w := s.share(m, l)
	out := Steady{Rho: rate * w, TTFTMet: 1}
	if slo.TTFT > 0 {
		out.TTFTMet = 0
	}
	if out.Rho >= 1 {
		out.TPOT, out.TPOTq, out.Wait = math.Inf(1), math.Inf(1), math.Inf(1)
		out.Seqs, out.KV = math.Inf(1), math.Inf(1)
		return out
	}
	perToken := w / m.Output
	base := s.Base
	// The experts touched depend on the sequences, and they on the time.
	for range experts {
		out.TPOT = (base + perToken) / (1 - out.Rho)
		out.Seqs = rate * m.Output * out.TPOT
		if s.Experts == 0 {
			break
		}
		base = s.Base + s.Experts*s.touched(max(out.Seqs, 1))
	}
	out.KV = out.Seqs * m.context()
	sd := 0.0
	if perToken > 0 {
		sd = perToken * math.Sqrt((base/perToken+1)*out.Rho) / (1 - out.Rho)
	}
	out.TPOTq = out.TPOT + max(normal(q), 0)*sd
	s.wait(&out, m, rate, l, slo)
	return out
}

// experts is the number of rounds in which sequences and experts settle.
const experts = 40

// wait fills in what prompts meet.
func (s Step) wait(out *Steady, m Mix, rate float64, l fleet.Limits, slo fleet.SLO) {
	budget := tokenBudget(l)
	step := s.Base + s.Experts + out.Seqs*(s.PerSeq+s.PerKV*m.context()) // with a prompt, apart from what the prompt adds
	own := s.PerPrompt*m.uncached() + s.PerPair*m.pairs()
	service := own + step*m.uncached()/budget // prompts in a row share the steps' costs
	busy := rate * service
	if busy >= 1 {
		out.Wait = math.Inf(1)
		return
	}
	burst := m.Burst
	if burst == 0 {
		burst = 1
	}
	out.Wait = busy * service * (burst + m.InputSCV) / 2 / (1 - busy)
	if slo.TTFT <= 0 {
		return
	}
	// Half a step is under way when a request comes, and its own prompt takes its steps.
	left := slo.TTFT.Seconds() - s.PerRequest - out.TPOT/2 - step*math.Ceil(m.uncached()/budget) - own
	switch {
	case left < 0:
		out.TTFTMet = 0
	case out.Wait == 0:
		out.TTFTMet = 1
	default:
		out.TTFTMet = 1 - busy*math.Exp(-busy*left/out.Wait)
	}
}

// normal returns the standard normal's quantile.
func normal(q float64) float64 { return math.Sqrt2 * math.Erfinv(2*q-1) }

// broken returns what a steady state breaks, Linear when nothing.
func (st Steady) broken(l fleet.Limits, slo fleet.SLO, q float64) Regime {
	switch {
	case slo.TPOT > 0 && st.TPOTq > slo.TPOT.Seconds():
		return LatencyBound
	case slo.TTFT > 0 && st.TTFTMet < q:
		return PrefillBound
	case l.KVTokens > 0 && st.KV > fullKV*float64(l.KVTokens):
		return KVBound
	case l.MaxSeqs > 0 && st.Seqs > float64(l.MaxSeqs):
		return SeatBound
	case st.Rho > mostBusy || math.IsInf(st.Wait, 1):
		return Overload
	}
	return Linear
}

// Capacity returns the largest rate of requests of a mix, per second, at which an
// endpoint answers each within its targets with chance q (at least 0.5,
// below 1) and has room for them, the state it is then in, and what bounds
// it. Zero limits and targets are unknown and bind nothing. The rate is 0 when
// even a lone request misses, with the regime saying which target, and when the
// step is unknown.
func Capacity(s Step, m Mix, l fleet.Limits, slo fleet.SLO, q float64) (rate float64, at Steady, bound Regime) {
	w := s.share(m, l)
	if !s.Known() || w <= 0 {
		return 0, Steady{}, Idle
	}
	const lone = 1e-9 // of the rate at which nothing else fits
	low, high := lone*mostBusy/w, mostBusy/w
	if bound = s.Steady(m, low, l, slo, q).broken(l, slo, q); bound != Linear {
		return 0, s.Steady(m, low, l, slo, q), bound
	}
	bound = s.Steady(m, high, l, slo, q).broken(l, slo, q)
	if bound == Linear {
		return high, s.Steady(m, high, l, slo, q), Overload
	}
	for range 60 {
		mid := (low + high) / 2
		if b := s.Steady(m, mid, l, slo, q).broken(l, slo, q); b != Linear {
			high, bound = mid, b
		} else {
			low = mid
		}
	}
	return low, s.Steady(m, low, l, slo, q), bound
}

// Now is an endpoint's load at this moment, as far as it is known.
type Now struct {
	Running int          // sequences decoding
	Waiting int          // requests not yet running
	KV      fleet.Tokens // tokens of KV they hold
	Prompts float64      // prompt tokens computed per second
	Wait    float64      // s, predicted wait of the next request
}

// Saturation returns one number for how near an endpoint is to the point where
// one more request breaks the SLO, 1 being there: the largest of rho/(1 −
// base/T*), KV over what may be full, running over seats, and the predicted wait
// over the TTFT target; and the regime the largest stands for. rho is the share
// of the engine's time that sequences and prompts take beyond base, the cost of
// any step. Zero limits and targets bind nothing; an unknown step has no rho.
func Saturation(s Step, now Now, l fleet.Limits, slo fleet.SLO) (float64, Regime) {
	if now.Running == 0 && now.Waiting == 0 && now.Prompts == 0 {
		return 0, Idle
	}
	n := float64(now.Running)
	prompt := min(s.PerPrompt*now.Prompts, 1)
	rho, room := 0.0, mostBusy
	if s.Known() {
		base := s.Time(Work{Seqs: n}) - s.PerSeq*n
		own := s.PerSeq*n + s.PerKV*float64(now.KV)
		if base+own > 0 {
			rho = 1 - (1-prompt)*base/(base+own)
		}
		if slo.TPOT > 0 {
			room = min(room, max(1-base/slo.TPOT.Seconds(), 1e-3))
		}
	}
	worst, regime := rho/room, LatencyBound
	if rho > mostBusy {
		regime = Overload
	}
	take := func(share float64, r Regime) {
		if share > worst {
			worst, regime = share, r
		}
	}
	if slo.TTFT > 0 {
		take(now.Wait/slo.TTFT.Seconds(), PrefillBound)
	}
	if l.KVTokens > 0 {
		take(float64(now.KV)/(fullKV*float64(l.KVTokens)), KVBound)
	}
	if l.MaxSeqs > 0 {
		take(n/float64(l.MaxSeqs), SeatBound)
	}
	if worst < 1 {
		regime = Linear
	}
	return worst, regime
}
