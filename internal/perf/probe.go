package perf

import (
	"math"
	"slices"

	"penstock.dev/penstock/internal/fleet"
)

// Probe is one thing to measure of an engine: as many requests at once as it has
// streams, each with a prompt that nobody has sent before and an answer of fixed
// length.
type Probe struct {
	Streams int          // requests at once, at least 1
	Prompt  fleet.Tokens // of each, in tokens, at least 1
	Output  fleet.Tokens // of each, in tokens, at least 2
	Rounds  int          // times one after another, of which the median counts; at least 1
}

// Measurement is what a probe found.
type Measurement struct {
	Probe   Probe
	Prompt  float64 // tokens of each prompt that were computed, as the engine counts
	Cached  float64 // tokens of each that were found in its cache
	TTFT    float64 // s from sending to first token, mean over streams; 0 unknown
	Step    float64 // s per step over the stretch in which all streams decode; 0: there was none
	Steps   float64 // steps of that stretch, all rounds together
	Context float64 // tokens of context that each stream has in the middle of it
	Seconds float64 // s that all of it took
}

// Goal is what probing is for.
type Goal struct {
	Input, Output float64 // mean tokens of prompts and answers, at least 1 each
	SLO           fleet.SLO
	Streams       int     // most requests at once; 0 leaves it to the limits
	Error         float64 // relative standard error of predictions at which to stop, 0.05 for 5 %
	Seconds       float64 // s that all probes may take together
}

// mix is the requests of the goal.
func (g Goal) mix() Mix { return Mix{Input: max(g.Input, 1), Output: max(g.Output, 1)} }

// Survey is what is known while an engine is probed. It decides what to ask next
// and has no other state than its fields: equal surveys choose equal probes.
type Survey struct {
	Prior   Belief       // the zero Belief: nothing is known of the engine
	Limits  fleet.Limits // zero fields are unknown
	Goal    Goal
	Done    []Measurement
	Refused []Probe // that the engine did not carry out: none as large is chosen again
}

// Choice is a probe to run.
type Choice struct {
	Probe Probe
	Cost  float64 // s that it is expected to take
	Error float64 // relative standard error of predictions at the goal that is expected after it
}

// Stop says why no further probe is chosen; "" for none.
type Stop string

// The reasons to stop.
const (
	StopTight Stop = "the predicted error is small enough"
	StopTime  Stop = "the time left is too short for another probe"
	StopSpent Stop = "nothing is left to ask that the limits allow"
	StopFlat  Stop = "nothing left to ask would shrink the error"
)

// What is asked where limits are not known, which is neither nothing nor
// everything.
const (
	cautiousSeqs   = 64
	cautiousLength = 8192
	cautiousKV     = 64 << 10

	decodeSteps  = 48   // steps a decode probe is to last
	ladderOutput = 16   // tokens answered to a prompt of the ladder
	lengthSlack  = 1.06 // prompts are made before the engine counts them
	fastest      = 0.5  // pace within 1/2 and 2 is what spreads are for
	guessSpread  = 3.0  // of each parameter where there is no prior
	nearlyBest   = 0.9  // of the largest gain, what is as good: the cheapest such probe is taken
	tellShadow   = 3    // lone prompts from which the shadow can be told
	clearly      = 0.8  // of the fit's error, what another shadow must reach
	worthAsking  = 0.98 // of the error, what must be left at most for a probe to be worth its time
)

// Doubted returns the belief as what it is where it was made for something else: a
// guess.
func (b Belief) Doubted() Belief {
	for j, v := range b.Step.Vector() {
		b.Spread[j] = 0
		if v > 0 {
			b.Spread[j] = guessSpread
		}
	}
	return b
}

// Next returns the probe that shrinks the predicted errors at the goal most (the
// sum of their squares: the largest alone would not see how two shrink in turn),
// among those that the limits and the time allow, or why there is none. spent is
// the seconds that probing has taken so far. The first probe is always the
// shortest: it finds the shortest step there is.
func (s *Survey) Next(spent float64) (Choice, Stop) {
	at := s.Outlook()
	list := s.candidates()
	if len(s.Done)+len(s.Refused) == 0 {
		list = list[:min(len(list), 1)]
	} else if at.Error() <= s.Goal.Error {
		return Choice{}, StopTight
	}
	stop := StopSpent
	var open []Choice
	var left []float64
	least := math.Inf(1)
	for _, p := range list {
		c := Choice{Probe: p, Cost: s.cost(&at, p)}
		if c.Cost > s.Goal.Seconds-spent {
			stop = StopTime
			continue
		}
		var sum float64
		c.Error, sum = at.after(s.expected(&at, p))
		open, left = append(open, c), append(left, sum)
		least = min(least, sum)
	}
	_, now := at.errors()
	switch {
	case len(open) == 0:
		return Choice{}, stop
	case len(s.Done)+len(s.Refused) > 0 && least > worthAsking*now:
		if stop == StopSpent {
			stop = StopFlat
		}
		return Choice{}, stop
	}
	best := -1
	for i, c := range open {
		// The first probe need not gain: it is the only one in the list.
		if len(open) == 1 || now-left[i] >= nearlyBest*(now-least) && (best < 0 || c.Cost < open[best].Cost) {
			best = i
		}
	}
	return open[best], ""
}

// Check returns the one probe that tells whether a belief from elsewhere holds
// here: a middling prompt alone, and steps of one sequence.
func (s *Survey) Check() Choice {
	at := s.Outlook()
	p := Probe{Streams: 1, Prompt: 1024, Output: 32, Rounds: 3}
	for !s.allowed(p) && p.Prompt > 1 {
		p.Prompt /= 2
	}
	c := Choice{Probe: p, Cost: s.cost(&at, p)}
	c.Error, _ = at.after(s.expected(&at, p))
	return c
}

// candidates lists what may be asked and has not been, the shortest first: a
// lone short request, a ladder of prompts, and a ladder of decoding streams with
// short and long contexts.
func (s *Survey) candidates() []Probe {
	list := []Probe{{Streams: 1, Prompt: 16, Output: 32, Rounds: 3}}
	for _, p := range []fleet.Tokens{256, 1024, 4096, 16384, fleet.Tokens(s.Goal.mix().Input)} {
		// A step alone is noisy, and those of short prompts are cheap.
		rounds := 8
		if p > 1024 {
			rounds = max(int(16384/p), 2)
		}
		list = append(list, Probe{Streams: 1, Prompt: p, Output: ladderOutput, Rounds: min(rounds, 8)})
	}
	long := fleet.Tokens(min(max(s.Goal.Input, 1024), 4096))
	for _, prompt := range []fleet.Tokens{64, long} {
		most := s.seats(prompt + decodeSteps)
		half := max(most/2, 1)
		for _, n := range []int{1, 8, 64, half} {
			list = append(list, s.decode(min(n, most), prompt))
		}
	}
	var out []Probe
	for _, p := range list {
		known := slices.ContainsFunc(s.Done, func(m Measurement) bool { return p.like(m.Probe) }) ||
			slices.ContainsFunc(s.Refused, func(r Probe) bool { return p.Streams >= r.Streams && p.Prompt >= r.Prompt }) ||
			slices.ContainsFunc(out, p.like)
		if !known && s.allowed(p) {
			out = append(out, p)
		}
	}
	return out
}

// like reports whether two probes ask the same.
func (p Probe) like(q Probe) bool { return p.Streams == q.Streams && p.Prompt == q.Prompt }

// decode is the probe of n streams with such prompts: it answers for long enough
// that all decode together for decodeSteps, although the first begin while the
// last are still being computed.
func (s *Survey) decode(n int, prompt fleet.Tokens) Probe {
	early := math.Ceil(float64(n) * float64(prompt) / (tokenBudget(s.Limits) / 2))
	return Probe{Streams: n, Prompt: prompt, Output: fleet.Tokens(decodeSteps + min(early, 512)), Rounds: 1}
}

// seats is how many sequences of a length the limits allow at once.
func (s *Survey) seats(length fleet.Tokens) int {
	n := cautiousSeqs
	if s.Limits.MaxSeqs > 0 {
		n = s.Limits.MaxSeqs
	}
	if s.Goal.Streams > 0 {
		n = min(n, s.Goal.Streams)
	}
	return max(min(n, int(s.room()/(float64(length)*lengthSlack))), 1)
}

// room is the tokens of KV that probes may take.
func (s *Survey) room() float64 {
	if s.Limits.KVTokens > 0 {
		return fullKV * float64(s.Limits.KVTokens)
	}
	return cautiousKV
}

// allowed reports whether the limits allow a probe.
func (s *Survey) allowed(p Probe) bool {
	longest, most := float64(cautiousLength), cautiousSeqs
	if s.Limits.MaxModelLen > 0 {
		longest = float64(s.Limits.MaxModelLen)
	}
	if s.Limits.MaxSeqs > 0 {
		most = s.Limits.MaxSeqs
	}
	if s.Goal.Streams > 0 {
		most = min(most, s.Goal.Streams)
	}
	length := float64(p.Prompt)*lengthSlack + float64(p.Output)
	return p.Streams <= most && length <= longest && float64(p.Streams)*length <= s.room()
}

// cost is the seconds that a probe is expected to take.
func (s *Survey) cost(at *Outlook, p Probe) float64 {
	n, prompt, output := float64(p.Streams), float64(p.Prompt), float64(p.Output)
	step := at.Fit.Step
	first := step.prefill(&Load{Budget: s.Limits.BudgetTokens}, n*prompt, n*Pairs(0, p.Prompt))
	decoding := output * step.Time(Work{Seqs: n, KV: n * (prompt + output/2)})
	return float64(max(p.Rounds, 1)) * (step.PerRequest + first + decoding)
}

// expected is what a probe is expected to find.
func (s *Survey) expected(at *Outlook, p Probe) Measurement {
	m := Measurement{
		Probe: p, Prompt: float64(p.Prompt), Steps: float64((min(p.Output, decodeSteps) - 1) * fleet.Tokens(max(p.Rounds, 1))),
		Context: float64(p.Prompt) + float64(p.Output)/2,
	}
	m.TTFT, m.Step = at.Fit.Step.Expect(m, s.Limits)
	return m
}

// Expect returns the seconds to first token and per step that a probe finds where
// the step holds. It does not tell the former for several streams, whose
// prompts wait for one another.
func (s Step) Expect(m Measurement, l fleet.Limits) (ttft, step float64) {
	n := float64(m.Probe.Streams)
	step = s.Time(Work{Seqs: n, KV: n * m.Context})
	if m.Probe.Streams == 1 {
		ttft = s.PerRequest + s.prefill(&Load{Budget: l.BudgetTokens}, m.Prompt, m.pairs())
	}
	return ttft, step
}

func (m Measurement) pairs() float64 { return m.Prompt*m.Cached + m.Prompt*(m.Prompt-1)/2 }

// observations turns what was measured into what a fit reads. shadowed is the
// step that tells which prompt tokens are lit.
func (m Measurement) observations(shadowed Step, l fleet.Limits) []Observation {
	var out []Observation
	n := float64(m.Probe.Streams)
	if m.Step > 0 && m.Steps > 0 {
		out = append(out, Observation{Work: Work{Seqs: n, KV: n * m.Context}, Steps: m.Steps, Seconds: m.Step})
	}
	if m.Probe.Streams != 1 || m.TTFT <= 0 || m.Prompt < 1 {
		return out
	}
	steps := math.Ceil(m.Prompt / tokenBudget(l))
	each := m.Prompt / steps
	lit := shadowed.lit(each, 0)
	return append(out, Observation{
		Work: Work{Prompt: lit, Pairs: m.pairs() / steps}, Dark: each - lit, Mixed: 1, Requests: 1 / steps,
		Steps: steps * float64(max(m.Probe.Rounds, 1)), Seconds: m.TTFT / steps,
	})
}

// Outlook is what the probes so far amount to.
type Outlook struct {
	Fit Fitted
	// Pace is by how much the engine was found slower than the prior, all
	// parameters alike; 1 unless it is more than twice as slow or as fast.
	Pace  float64
	Prior Step // at that pace, and with the shadow that fits: what the fit leans on

	survey *Survey
	scale  Vector
	free   [Params]bool
	info   Matrix // precision of the parameters, in units of scale
	blur   float64
}

// Outlook returns what the probes so far amount to: the prior, before the first.
func (s *Survey) Outlook() Outlook {
	b := s.Prior
	if !b.Step.Known() {
		b.Step = Guess()
		b.Step.Shadow = b.Step.Base / b.Step.PerPrompt
		b = b.Doubted()
	}
	at := Outlook{survey: s, Pace: s.pace(b.Step)}
	if at.Pace != 1 {
		perRequest := b.Step.PerRequest // the network is as far from a fast engine as from a slow one
		b.Step = b.Step.Scale(at.Pace)
		b.Step.PerRequest = perRequest
	}
	b.Step.Shadow = s.shadow(b)
	at.Prior, at.scale = b.Step, b.Step.Vector()
	obs := s.observations(b.Step)
	for j := range Params {
		if at.free[j] = at.scale[j] > 0 && b.Spread[j] > 0; at.free[j] {
			at.info[j][j] = 1 / (b.Spread[j] * b.Spread[j])
		}
	}
	fit, err := Fit(b, 0, obs)
	if err != nil { // nothing with a duration was observed
		fit = Fitted{Step: b.Step}
		for j := range Params {
			fit.Kept[j] = true
			fit.Sigma[j] = b.Spread[j] * at.scale[j]
			fit.Lo[j], fit.Hi[j] = max(at.scale[j]-normal95*fit.Sigma[j], 0), at.scale[j]+normal95*fit.Sigma[j]
		}
	}
	at.Fit = fit
	at.blur = blur(fit.Step, obs)
	for _, o := range obs {
		at.learn(o)
	}
	return at
}

// observations are those of all that was measured.
func (s *Survey) observations(shadowed Step) []Observation {
	var obs []Observation
	for _, m := range s.Done {
		obs = append(obs, m.observations(shadowed, s.Limits)...)
	}
	return obs
}

// shadow is how many prompt tokens are taken to be in the shadow of the weights.
// It is no parameter of a linear fit, so that a few values around the prior's are
// tried, and another is taken only where it explains clearly more.
func (s *Survey) shadow(b Belief) float64 {
	lone := 0
	for _, m := range s.Done {
		if m.Probe.Streams == 1 && m.TTFT > 0 {
			lone++
		}
	}
	prior := b.Step.Shadow
	if lone < tellShadow || prior == 0 {
		return prior
	}
	best, least := prior, math.Inf(1)
	for _, factor := range []float64{1, 0.5, 2, 0.25, 0.125} {
		b.Step.Shadow = prior * factor
		fit, err := Fit(b, 0, s.observations(b.Step))
		if err == nil && fit.Error < clearly*least {
			best, least = b.Step.Shadow, fit.Error
		}
	}
	return best
}

// pace is the median of measured over believed step times, 1 when that is
// within what a prior's spreads are for.
func (s *Survey) pace(prior Step) float64 {
	var ratios []float64
	for _, m := range s.Done {
		if _, want := prior.Expect(m, s.Limits); m.Step > 0 && want > 0 {
			ratios = append(ratios, m.Step/want)
		}
	}
	if len(ratios) == 0 {
		return 1
	}
	slices.Sort(ratios)
	if r := ratios[len(ratios)/2]; r < fastest || r > 1/fastest {
		return r
	}
	return 1
}

// blur is by how much residuals are wider than the form's own error, at least 1.
func blur(s Step, obs []Observation) float64 {
	if len(obs) < 3 {
		return 1 // so few say nothing of the form
	}
	var abs []float64
	for _, o := range obs {
		row := s.Row(o)
		abs = append(abs, math.Abs(1-dot(row, s.Vector())/o.Seconds))
	}
	slices.Sort(abs)
	return max(1, spreadOfMD*abs[len(abs)/2]/formError)
}

// learn adds what an observation tells.
func (at *Outlook) learn(o Observation) {
	row := at.Fit.Step.Row(o)
	for j := range row {
		row[j] *= at.scale[j] / o.Seconds
	}
	variance := at.blur * at.blur * formError * formError
	if o.Steps > 0 {
		variance += stepNoise * stepNoise / o.Steps
	}
	at.info.add(row, 1/variance)
}

// after is the errors that are left when m has been found.
func (at Outlook) after(m Measurement) (worst, sum float64) {
	for _, o := range m.observations(at.Prior, at.survey.Limits) {
		at.learn(o)
	}
	return at.errors()
}

// Error is the relative standard error of predictions at the goal, the largest
// of three: the step of a lone sequence, the step at the concurrency that fits,
// and the time to first token of a lone prompt.
func (at *Outlook) Error() float64 {
	worst, _ := at.errors()
	return worst
}

// errors are the largest of the errors at the goal and the root of the sum of
// their squares.
func (at *Outlook) errors() (worst, sum float64) {
	s := at.survey
	cov := at.info.inverse(at.free)
	n, _ := Concurrency(at.Fit.Step, s.Goal.mix(), s.Limits, s.Goal.SLO)
	if n == 0 {
		n = s.seats(fleet.Tokens(s.Goal.Input + s.Goal.Output))
	}
	prompt := Measurement{Probe: Probe{Streams: 1}, Prompt: s.Goal.mix().Input}
	prompt.TTFT, _ = at.Fit.Step.Expect(prompt, s.Limits)
	take := func(e float64) { worst, sum = max(worst, e), math.Hypot(sum, e) }
	for _, o := range prompt.observations(at.Prior, s.Limits) {
		take(at.spread(&cov, o))
	}
	take(at.stepSpread(&cov, at.work(1)))
	take(at.stepSpread(&cov, at.work(n)))
	return worst, sum
}

// work is the step of n sequences of the goal's shape.
func (at *Outlook) work(n int) Work {
	return Work{Seqs: float64(n), KV: float64(n) * at.survey.Goal.mix().context()}
}

// At returns the seconds of a step of n sequences of the goal's shape, and the
// standard error of that in seconds.
func (at *Outlook) At(n int) (seconds, sigma float64) {
	cov, w := at.info.inverse(at.free), at.work(n)
	seconds = at.Fit.Step.Time(w)
	return seconds, seconds * at.stepSpread(&cov, w)
}

func (at *Outlook) stepSpread(cov *Matrix, w Work) float64 {
	return at.spread(cov, Observation{Work: w, Seconds: at.Fit.Step.Time(w)})
}

// spread is the relative standard error of what an observation would find.
func (at *Outlook) spread(cov *Matrix, o Observation) float64 {
	if o.Seconds <= 0 {
		return 0
	}
	row := at.Fit.Step.Row(o)
	for j := range row {
		row[j] *= at.scale[j] / o.Seconds
	}
	variance := 0.0
	for j := range row {
		variance += row[j] * dot(cov[j], row)
	}
	return math.Sqrt(max(variance, 0))
}

// Concurrency returns how many sequences of a mix's shape may decode at once:
// as many as there are seats, as the KV cache holds, and as leave a step within
// the TPOT target; and which of these binds. It is 0 and Linear when nothing is
// known to bind, 0 and LatencyBound when a lone sequence misses the target.
func Concurrency(s Step, m Mix, l fleet.Limits, slo fleet.SLO) (int, Regime) {
	const most = 1 << 20
	n, bound := most, Linear
	take := func(limit int, r Regime) {
		if limit < n {
			n, bound = max(limit, 0), r
		}
	}
	if l.MaxSeqs > 0 {
		take(l.MaxSeqs, SeatBound)
	}
	if l.KVTokens > 0 {
		take(int(fullKV*float64(l.KVTokens)/m.context()), KVBound)
	}
	if target := slo.TPOT.Seconds(); target > 0 && s.Known() {
		low, high := 0, n+1 // the largest that meets it is at least low and below high
		for low+1 < high {
			mid := (low + high) / 2
			if s.Time(Work{Seqs: float64(mid), KV: float64(mid) * m.context()}) <= target {
				low = mid
			} else {
				high = mid
			}
		}
		take(low, LatencyBound)
	}
	if n == most {
		return 0, bound
	}
	return n, bound
}
