package route

import (
	"cmp"
	"math"
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
)

// lean decides which of the endpoints that can do both lean to computing prompts
// for the others. One request alone gains nothing from being split among endpoints
// that all decode: only where some are left free of decoding, and others free of
// prompts, do both go faster, so it is decided for the load as a whole. Endpoints
// are taken in order of their ids, so that gateways that see the same lean alike.
type lean struct {
	rate     float64 // requests per second, fading
	mix      perf.Stream
	seen     int
	began    fleet.Time // of the first request
	last     fleet.Time // of the latest
	due      fleet.Time // when to think again
	prefills int        // how many lean to prompts
	is       []bool     // by slot
	group    []int      // the slots that are dealt, by their ids
	meter    meter
	tried    []trial // by how many lean
	liked    int     // how many it would have been the last time, were they tried
	beside   float64 // what a prompt adds to steps that also decode, over what was told of it; 0 before it was measured
	slower   float64 // what a step that only decodes takes, over what was told of it; 0 before it was measured
}

const (
	// leanWindow is over how long arrivals are counted, and leanMemory over how many
	// requests lengths are averaged.
	leanWindow = 60 * time.Second
	leanMemory = 200

	// leanFew is how many requests must have been seen before anything leans.
	leanFew = 50

	// leanEvery is the time between two thoughts, and leanPause how long nothing is
	// measured after endpoints were dealt anew: answers that an endpoint has still to
	// decode when it begins to lean take seconds to end.
	leanEvery = 10 * time.Second
	leanPause = 5 * time.Second

	// leanGain is by what share the mean time of a request must be shorter for more
	// endpoints to lean, or fewer; leanBegin, for any to lean where none does.
	leanGain  = 0.02
	leanBegin = 0.03

	// leanSure is the gain with which what was never tried is tried at once, and not
	// only when it looks better for the second time.
	leanSure = 0.1

	// leanOff is for how long it is remembered what a deal brought, leanAlike by what
	// share a load may differ from the one of then, and leanMost bounds by how much
	// predictions are taken to be off.
	leanOff   = 10 * time.Minute
	leanAlike = 0.1
	leanMost  = 1.5

	// leanFull is the share of the time that endpoints compute prompts from which on
	// they may get more of them than they can compute.
	leanFull = 0.95

	// leanShare is the share of requests that must be split for endpoints to go on
	// leaning: where single requests do not like it, the load as a whole cannot.
	leanShare = 0.3
	leanRest  = time.Minute // for which nothing leans then
)

// note counts a request of which so much is cached where it would go.
func (l *lean) note(q *Query, cached fleet.Tokens) {
	if l.seen == 0 {
		l.began, l.last = q.Now, q.Now
	}
	dt := q.Now.Sub(l.last).Seconds()
	l.last = q.Now
	l.rate = l.rate*math.Exp(-dt/leanWindow.Seconds()) + 1/leanWindow.Seconds()
	l.seen++
	weight := max(1/float64(l.seen), 1.0/leanMemory)
	l.mix.Prompt += weight * (float64(q.Prompt) - l.mix.Prompt)
	l.mix.Uncached += weight * (float64(max(q.Prompt-cached, 1)) - l.mix.Uncached)
	l.mix.Output += weight * (float64(max(q.Output, 1)) - l.mix.Output)
}

// think deals the endpoints anew when it is time to.
func (l *lean) think(v *View, q *Query) {
	for len(l.is) < len(v.ID) {
		l.is = append(l.is, false)
	}
	l.meter.look(v, q.Now, l.group, l.is)
	if len(q.Prefills) < 2 || q.Now < l.due || l.seen < leanFew || len(l.group) > 0 && !l.meter.settled(q.Now) {
		return
	}
	l.due = q.Now.Add(leanEvery)
	before := len(l.group)
	l.group = l.group[:0]
	for _, c := range q.Candidates {
		if slices.Contains(q.Prefills, c) && v.Connector[c] == v.Connector[q.Prefills[0]] && v.Step[c].Known() {
			l.group = append(l.group, c)
		}
	}
	if len(l.group) != len(q.Prefills) {
		return // roles are dealt by configuration, or some are not there: as it was
	}
	if len(l.group) != before {
		l.meter, l.tried = meter{from: q.Now}, l.tried[:0]
	}
	slices.SortFunc(l.group, func(a, b int) int { return cmp.Compare(v.ID[a], v.ID[b]) })
	l.deal(v, q)
}

// deal decides how many lean, and which.
func (l *lean) deal(v *View, q *Query) {
	m := l.mix
	// What fades over a window stands for less while the window is not yet full.
	m.Rate = l.rate / -math.Expm1(-max(q.Now.Sub(l.began), time.Second).Seconds()/leanWindow.Seconds())
	n := len(l.group)
	step, kvTokens, move := l.typical(v, m.Prompt)
	if l.meter.n < meterFew {
		return // the group has just been made
	}
	seen := m
	seen.Rate = 1 / l.meter.gap
	l.measured(&step, &seen)
	m.Work, m.Alone = seen.Work, seen.Alone
	l.remember(l.cost(&step, seen, l.prefills, n, kvTokens, move, fleet.SLO{}), seen, q.Now)
	now := l.expected(&step, m, l.prefills, kvTokens, move, q)
	gain := leanGain
	if l.prefills == 0 {
		gain = leanBegin
	}
	best, at := now, l.prefills
	for x := range n {
		if c := l.expected(&step, m, x, kvTokens, move, q); c < best && c < now*(1-gain) {
			best, at = c, x
		}
	}
	// What has never been seen here may look better by chance, and to try it costs.
	liked := at
	if !l.tried[at].fresh(q.Now) && best > now*(1-leanSure) && (l.liked == 0) != (at == 0) {
		at = l.prefills
	}
	l.liked = liked
	if l.prefills > 0 && l.meter.splits < leanShare {
		at, l.due = 0, q.Now.Add(leanRest)
	}
	if at != l.prefills {
		l.meter = meter{from: q.Now.Add(leanPause)}
	}
	l.prefills = at
	clear(l.is)
	for _, c := range l.group[:at] {
		l.is[c] = true
	}
}

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

// measured sets step and m to what the meter says. By Little's law the sequences
// that decode are the tokens asked for per second times what each takes; where
// prompts are computed beside them, the rest of that time is the prompts'.
func (l *lean) measured(step *perf.Step, m *perf.Stream) {
	t := &l.meter
	n, x := float64(len(l.group)), float64(l.prefills)
	if t.decoding <= 0 || m.Rate <= 0 {
		return
	}
	tpot := t.decoding * (n - x) / (m.Rate * m.Output)
	told := step.Prompt(fleet.Tokens(m.Uncached), m.Uncached*(m.Prompt-m.Uncached/2))
	pure := step.Time(perf.Work{Seqs: t.decoding, KV: t.decoding * (m.Prompt + m.Output/2)})
	if x > 0 && t.splits > 0 {
		m.Alone = t.busy * x / (m.Rate * t.splits)
		m.Work = told * max(l.beside, 1)
		if t.busy > leanFull {
			m.Alone = max(m.Alone, m.Work) // more came than was computed
		}
		whole := min(m.Rate*(1-t.splits)*m.Work/(n-x), 0.9)
		l.slower = min(max(tpot*(1-whole)/pure, 1/meterMost), meterMost)
		*step = step.Scale(l.slower)
		return
	}
	if l.slower > 0 {
		*step, pure = step.Scale(l.slower), pure*l.slower
	}
	m.Work = min(max((1-pure/tpot)*n/m.Rate, told), meterMost*told)
	l.beside = m.Work / told
}

// trial is what so many that lean have brought.
type trial struct {
	mean  float64 // time of a request, s
	ratio float64 // of that to what was predicted
	full  bool    // prompts came faster than they were computed, or nearly
	load  perf.Stream
	at    fleet.Time
}

// remember notes what the present deal brings: by Little's law the mean time of a
// request is how many are inside over how many come per second.
func (l *lean) remember(predicted float64, m perf.Stream, now fleet.Time) {
	for len(l.tried) <= len(l.group) {
		l.tried = append(l.tried, trial{})
	}
	t := trial{mean: l.meter.inside / m.Rate, ratio: 1, full: l.meter.busy > leanFull, load: m, at: now}
	if !math.IsInf(predicted, 1) {
		t.ratio = min(max(t.mean/predicted, 1/leanMost), leanMost)
	}
	l.tried[l.prefills] = t
}

// fresh reports whether it is remembered what was tried.
func (t *trial) fresh(now fleet.Time) bool { return t.at > 0 && now.Sub(t.at) <= leanOff }

// alike reports whether a load is nearly the one of the trial.
func (t *trial) alike(m perf.Stream) bool {
	near := func(a, b float64) bool { return math.Abs(a-b) <= leanAlike*b }
	return near(t.load.Rate, m.Rate) && near(t.load.Prompt, m.Prompt) && near(t.load.Uncached, m.Uncached) && near(t.load.Output, m.Output)
}

// expected is what a request would cost where x lean: the mean time that was seen
// there, if the load was as it is now, or else what is predicted, by as much off as
// it was there or nearby; in either case longer by how far its SLO would be missed.
func (l *lean) expected(step *perf.Step, m perf.Stream, x int, kvTokens, move float64, q *Query) float64 {
	n := len(l.group)
	cost := l.cost(step, m, x, n, kvTokens, move, q.SLO)
	t := &l.tried[x]
	switch {
	case !t.fresh(q.Now):
		return cost * l.nearby(x, q.Now)
	case !t.alike(m):
		return cost * t.ratio
	}
	if plain := l.cost(step, m, x, n, kvTokens, move, fleet.SLO{}); !math.IsInf(plain, 1) {
		return t.mean * cost / plain
	}
	return t.mean
}

// nearby is by how much the prediction was off where about as many leaned as x: half
// as much for each one more or fewer. Where too few leaned for the prompts that
// came, that tells nothing of more.
func (l *lean) nearby(x int, now fleet.Time) float64 {
	if x == 0 {
		return 1
	}
	ratio, nearest := 1.0, len(l.tried)
	for i := 1; i < len(l.tried); i++ {
		t := &l.tried[i]
		apart := max(i-x, x-i)
		if t.fresh(now) && apart < nearest && !(t.full && x > i) {
			ratio, nearest = t.ratio, apart
		}
	}
	return math.Pow(ratio, math.Pow(0.5, float64(nearest-1)))
}

// cost is the mean time of a request where x of n endpoints lean, longer by how far
// it misses its SLO.
func (l *lean) cost(step *perf.Step, m perf.Stream, x, n int, kvTokens, move float64, slo fleet.SLO) float64 {
	s := step.Whole(m, float64(n), kvTokens)
	if x > 0 {
		s = step.Split(m, float64(x), float64(n-x), step, move, kvTokens)
	}
	cost := s.E2E
	if slo.TTFT > 0 {
		cost *= 1 + max(s.TTFT/slo.TTFT.Seconds()-1, 0)
	}
	if slo.TPOT > 0 {
		cost *= 1 + max(s.TPOT/slo.TPOT.Seconds()-1, 0)
	}
	return cost
}

// answering returns the candidates that do not lean to prompts; all where there
// are no others.
func (l *lean) answering(q *Query, dst []int) []int {
	if l.prefills == 0 {
		return q.Candidates
	}
	dst = dst[:0]
	for _, c := range q.Candidates {
		if c >= len(l.is) || !l.is[c] {
			dst = append(dst, c)
		}
	}
	if len(dst) == 0 {
		return q.Candidates
	}
	return dst
}

// computing returns the prefill slots that lean so, or can do nothing else; all
// where there are none.
func (l *lean) computing(q *Query, dst []int) []int {
	dst = dst[:0]
	for _, c := range q.Prefills {
		if c < len(l.is) && l.is[c] || !slices.Contains(q.Candidates, c) {
			dst = append(dst, c)
		}
	}
	if len(dst) == 0 {
		return q.Prefills
	}
	return dst
}

// leave forgets a slot whose endpoint is another.
func (l *lean) leave(slot int) {
	if slot < len(l.is) {
		l.is[slot] = false
	}
}

// of returns what an endpoint that can do both leans to; RoleBoth where none lean.
func (l *lean) of(slot int) fleet.Role {
	switch {
	case l.prefills == 0:
		return fleet.RoleBoth
	case slot < len(l.is) && l.is[slot]:
		return fleet.RolePrefill
	}
	return fleet.RoleDecode
}
