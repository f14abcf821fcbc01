package route

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
)

const (
	// leanOff is for how long it is remembered what a deal brought, leanChance the time
	// in which what is measured is half chance, and leanMost bounds by how much
	// predictions are taken to be off.
	leanOff    = 10 * time.Minute
	leanChance = 20 * time.Second
	leanMost   = 1.5

	// leanFull is the share of the time that endpoints compute prompts from which on
	// they may get more of them than they can compute.
	leanFull = 0.95

	// leanSpill is by how much more, relative to their share, prompts that come faster
	// than they are computed lengthen the mean time of a request.
	leanSpill = 2.5

	// leanDoubt bounds how far what is believed of steps may be from what was told, where
	// none was ever seen without prompts.
	leanDoubt = 1.25
)

// typical is the mean of the group: the step that was told of it, for its form, or
// else that is believed; its cache; and what moving a prompt of so many tokens
// takes, in seconds.
func (l *lean) typical(v *View, prompt float64) (step perf.Step, kvTokens, move float64) {
	n := float64(len(l.group))
	for _, c := range l.group {
		s := v.Told[c]
		if !s.Known() {
			s = v.Step[c]
		}
		step = step.Plus(s.Scale(1 / n))
		kvTokens += float64(v.KVTokens[c]) / n
		move += (v.Wire[c].Latency + v.Wire[c].PerToken*prompt) / n
	}
	return step, kvTokens, move
}

// weigh makes out what requests cost under the load that there is, and remembers what
// the present deal brings.
func (l *lean) weigh(v *View, q *Query) *weigher {
	w := &weigher{l: l, q: q, n: len(l.group), mix: l.mix}
	w.step, w.kvTokens, w.move = l.typical(v, w.mix.Prompt)
	if budget := v.Load[l.group[0]].Budget; budget > 0 {
		w.mix.Share = float64(budget) / w.mix.Uncached
	}
	seen := w.mix
	seen.Rate = 1 / max(l.meter.gap, 1e-6) // all may have come at once
	if l.prefills > 0 {
		l.seenApart(w, &seen)
	} else {
		l.seenTogether(v, w, &seen)
	}
	w.mix.Work, w.mix.Alone, w.mix.Share = seen.Work, seen.Alone, seen.Share
	// What fades over a window stands for less while the window is not yet full.
	w.mix.Rate = l.rate / -math.Expm1(-max(q.Now.Sub(l.began), time.Second).Seconds()/leanWindow.Seconds())
	l.remember(seen, q.Now)
	return w
}

// seenSteps is what the meter saw of a load, in seconds. By Little's law the sequences
// that decode are the tokens asked for per second times what each takes.
type seenSteps struct {
	tpot float64 // of a token
	pure float64 // of a step at that batch that computes no prompt, as told
	told float64 // of what a prompt adds to such a step, as told
}

func (l *lean) steps(w *weigher, m *perf.Stream) (s seenSteps) {
	t := &l.meter
	s.tpot = t.decoding * float64(w.n-l.prefills) / (m.Rate * m.Output)
	at := perf.Work{Seqs: t.decoding, KV: t.decoding * (m.Prompt + m.Output/2)}
	s.pure = w.step.Time(at)
	at.Prompt, at.Pairs = m.Uncached, m.Uncached*(m.Prompt-m.Uncached/2)
	s.told = max(w.step.Time(at)-s.pure, 1e-6)
	return s
}

// seenApart sets the step and what prompts take to what the meter saw where some lean:
// it sees both apart, but for prompts that are computed where they are answered.
func (l *lean) seenApart(w *weigher, m *perf.Stream) {
	t, n, x := &l.meter, float64(w.n), float64(l.prefills)
	if t.decoding <= 0 || t.splits <= 0 {
		return
	}
	s := l.steps(w, m)
	m.Work = s.told * max(l.beside, 1)
	m.Alone = t.busy * x / (m.Rate * t.splits)
	if t.busy > leanFull {
		m.Alone = max(m.Alone, m.Work) // more came than was computed
	}
	if m.Share > 1 {
		// Those that found it busy shared steps already.
		m.Share = 1 / (1 - (1-1/m.Share)*(1-t.busy))
	}
	whole := min(m.Rate*(1-t.splits)*m.Work/(n-x), 0.9)
	l.slower = min(max(s.tpot*(1-whole)/s.pure, 1/meterMost), meterMost)
	w.step = w.step.Scale(l.slower)
}

// seenTogether does so where none leans, and prompts are computed in steps that also
// decode: what a token takes longer than a step is theirs. How long a step is without
// them is what was seen when some leaned, or else something between what was told and
// what is believed, the nearer to that the less of the time is the prompts'.
func (l *lean) seenTogether(v *View, w *weigher, m *perf.Stream) {
	n := float64(w.n)
	if l.meter.decoding <= 0 {
		return
	}
	s := l.steps(w, m)
	at := perf.Work{Seqs: l.meter.decoding, KV: l.meter.decoding * (m.Prompt + m.Output/2)}
	cached, uncached := fleet.Tokens(m.Prompt-m.Uncached), fleet.Tokens(m.Uncached)
	believed := 0.0
	for _, c := range l.group {
		idle := perf.Load{Budget: v.Load[c].Budget}
		believed += v.Step[c].Time(at) / n
		m.Alone += (v.Step[c].FirstToken(&idle, cached, uncached) - v.Step[c].PerRequest) / n
	}
	slower := l.slower
	if slower == 0 {
		slower = math.Pow(min(max(believed/s.pure, 1/leanDoubt), leanDoubt), min(s.pure/s.tpot, 1))
	}
	// At worst a prompt takes a step of its own from those that decode.
	slower = max(slower, s.tpot*(1-m.Rate/n*m.Alone)/s.pure)
	m.Work = min(max((1-s.pure*slower/s.tpot)*n/m.Rate, s.told/meterMost), m.Alone)
	l.beside = m.Work / s.told
	w.step = w.step.Scale(slower)
}

// trial is what so many that lean have brought.
type trial struct {
	mean  float64 // time of a request, s
	trust float64 // 0 to 1: what was measured for a short time may be chance
	full  bool    // prompts came faster than they were computed, or nearly
	load  perf.Stream
	at    fleet.Time
}

// remember notes what the present deal brings: by Little's law the mean time of a
// request is how many are inside over how many come per second.
func (l *lean) remember(m perf.Stream, now fleet.Time) {
	for len(l.tried) <= len(l.group) {
		l.tried = append(l.tried, trial{})
	}
	span := now.Sub(l.meter.from).Seconds()
	l.tried[l.prefills] = trial{
		mean: l.meter.inside / m.Rate, trust: span / (span + leanChance.Seconds()), full: l.meter.busy > leanFull, load: m, at: now,
	}
}

// fresh reports whether it is remembered what was tried.
func (t *trial) fresh(now fleet.Time) bool { return t.at > 0 && now.Sub(t.at) <= leanOff }

// weigher tells what a request costs under a load, by how many endpoints lean.
type weigher struct {
	l              *lean
	step           perf.Step
	mix            perf.Stream
	n              int // endpoints
	kvTokens, move float64
	q              *Query
}

// expected is the mean time of a request where x lean: what is predicted, by as much
// off as it was there or nearby.
func (w *weigher) expected(x int) float64 {
	cost := w.cost(w.mix, x, w.q.SLO)
	if x == 0 {
		cost *= 1 - leanPlain
	}
	if w.l.tried[x].fresh(w.q.Now) {
		return cost * w.off(x)
	}
	return cost * w.nearby(x)
}

// off is what was measured where x lean over what is predicted of the load that there
// was, with what is known now.
func (w *weigher) off(x int) float64 {
	t := &w.l.tried[x]
	load := t.load
	load.Work, load.Alone, load.Share = w.mix.Work, w.mix.Alone, w.mix.Share
	predicted := w.cost(load, x, fleet.SLO{})
	if math.IsInf(predicted, 1) {
		return 1
	}
	return 1 + t.trust*(min(max(t.mean/predicted, 1/leanMost), leanMost)-1)
}

// nearby is by how much the prediction was off where about as many leaned as x: half
// as much for each one more or fewer. Where too few leaned for the prompts that
// came, that tells nothing of more.
func (w *weigher) nearby(x int) float64 {
	if x == 0 {
		return 1
	}
	at, nearest := 0, len(w.l.tried)
	for i := 1; i < len(w.l.tried); i++ {
		t := &w.l.tried[i]
		apart := max(i-x, x-i)
		if t.fresh(w.q.Now) && apart < nearest && !(t.full && x > i) {
			at, nearest = i, apart
		}
	}
	if at == 0 {
		return 1
	}
	return math.Pow(w.off(at), math.Pow(0.5, float64(nearest-1)))
}

// cost is the mean time of a request where x lean, longer by how far it misses its
// SLO.
func (w *weigher) cost(m perf.Stream, x int, slo fleet.SLO) float64 {
	s := w.step.Whole(m, float64(w.n), w.kvTokens)
	if x > 0 {
		s = w.step.Split(m, float64(x), float64(w.n-x), &w.step, w.move, w.kvTokens)
	}
	cost := s.E2E
	// Requests queue for prompts until that is as bad as serving them whole.
	cost *= 1 + min(leanSpill*s.Spilt, -leantGain)
	if slo.TTFT > 0 {
		cost *= 1 + max(s.TTFT/slo.TTFT.Seconds()-1, 0)
	}
	if slo.TPOT > 0 {
		cost *= 1 + max(s.TPOT/slo.TPOT.Seconds()-1, 0)
	}
	return cost
}
