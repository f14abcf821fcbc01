package perf

import (
	"cmp"
	"math"
	"slices"

	"penstock.dev/penstock/internal/fleet"
)

// Book is what one pool believes of the speed of its endpoints, and how it comes
// to believe it: it keeps count of what each is doing, predicts, compares with
// what is measured and learns. Endpoints are known by slot, a small dense number.
// It is not safe for concurrent use.
//
// Endpoints of one variant share their parameters, and each has a factor of its
// own: where equals differ, the slow one is found.
type Book struct {
	classes []*class
	slots   []slot
	lengths Lengths
	serial  uint64 // of the job opened last
}

type slot struct {
	class   *class // nil when there is no such endpoint
	limits  fleet.Limits
	meter   meter
	step    Step // the class's, times factor
	version uint32
	logf    float64      // logarithm of the factor
	lesson  int          // of the class, that was the slot's latest
	lessons [buckets]int // the number of the latest one of each kind, among those of the class
	common  float64      // the class's, then
	varf    float64      // its variance
	ttft    errorRing
	tpot    errorRing
	slo     fleet.SLO // of the latest request

	burst burst // of first tokens that came last

	promised int          // requests whose prompt is computed elsewhere and that will decode here
	coming   fleet.Tokens // tokens of context they bring
}

// Spreads of an endpoint's factor, as standard deviations of its logarithm.
const (
	factorSpread = 0.15  // among endpoints that should be equal
	factorNoise  = 0.15  // of one lesson: it is never better known than from a few
	factorAbsent = 50    // lessons that a slot may miss before it counts as one that gets none
	factorKept   = 300   // lessons missed after which its factor has faded to 1/e
	factorWalk   = 0.004 // by which it may change from one lesson to the next

	// Of a few steps much is not the hardware's: network, tokenising, what was
	// cached. Whole answers tell more.
	fewSteps = 4
	fewNoise = 0.6
)

// An endpoint is called slow when it takes a tenth longer than its equals, which
// is more than equal hardware differs by, and by so many standard deviations.
const (
	slowFactor = 1.1
	slowSigmas = 3
)

// NewBook returns an empty book.
func NewBook() *Book { return &Book{lengths: newLengths()} }

// Add makes a slot stand for an endpoint of a variant, of which prior is believed
// until it is known better; a zero prior is unknown. For a slot already there it
// says what has changed.
func (b *Book) Add(i int, variant uint64, prior Step, limits fleet.Limits) {
	for i >= len(b.slots) {
		b.slots = append(b.slots, slot{})
	}
	s := &b.slots[i]
	s.limits = limits
	c := b.find(variant, prior)
	if s.class == c {
		return
	}
	b.quit(s)
	c.members++
	s.class = c
	s.forget()
	s.refresh()
}

// SetLimits tells an endpoint's limits as they become known.
func (b *Book) SetLimits(i int, limits fleet.Limits) { b.slots[i].limits = limits }

// Renew forgets what is particular to the process behind a slot: a new one may
// run on another machine. Jobs of the old one stay until they are closed.
func (b *Book) Renew(i int) {
	b.slots[i].forget()
}

// Remove frees a slot. Its open jobs must be forgotten by their owners, not
// closed.
func (b *Book) Remove(i int) {
	b.quit(&b.slots[i])
	b.slots[i] = slot{}
}

// find returns the class of a variant. A variant whose prior has changed starts
// anew.
func (b *Book) find(variant uint64, prior Step) *class {
	for _, c := range b.classes {
		if c.variant == variant {
			if c.prior != prior {
				c.setPrior(prior)
			}
			return c
		}
	}
	c := newClass(variant, prior)
	b.classes = append(b.classes, c)
	return c
}

func (b *Book) quit(s *slot) {
	if s.class == nil {
		return
	}
	if s.class.members--; s.class.members == 0 {
		b.classes = slices.DeleteFunc(b.classes, func(c *class) bool { return c == s.class })
	}
	s.class = nil
}

// forget takes the slot for the equal of the others.
func (s *slot) forget() {
	c := s.class
	s.burst = burst{}
	s.logf, s.varf, s.version, s.lesson, s.common = 0, factorSpread*factorSpread, 0, c.lessons, c.common
	clear(s.lessons[:])
}

// missed is for how many lessons of its own, had it got as many as others, the slot
// has had none.
func (s *slot) missed() float64 {
	c := s.class
	return max(float64(c.lessons-s.lesson)/max(c.active.mean, 1)-factorAbsent, 0)
}

// factor is the logarithm of the slot's factor. Of one that gets no more requests it
// fades: if it was found slow by chance, nothing else would ever show that.
func (s *slot) factor() float64 {
	if away := s.missed(); away > 0 {
		return s.logf * math.Exp(-away/factorKept)
	}
	return s.logf
}

// adjust takes in that the slot's factor is r higher than was believed, give or take
// noise, a variance: a scalar Kalman filter on the factor's logarithm. What all
// the slots that get lessons seem to have in common is the class's to learn, and is
// taken out of each; those that get none are not left behind by it.
func (s *slot) adjust(r, noise float64) {
	c := s.class
	away := s.missed()
	s.logf = s.factor()
	if away == 0 {
		s.logf -= c.common - s.common
	}
	s.varf = min(s.varf+factorWalk*factorWalk*(1+away), factorSpread*factorSpread)
	gain := s.varf / (s.varf + noise)
	s.logf += gain * r
	s.varf *= 1 - gain
	c.active.turn(c.lessons, s.lesson)
	c.common += gain * r / max(c.active.mean, 1)
	s.lesson, s.common, s.version = c.lessons, c.common, 0
}

// refresh recomputes the slot's step when its class or factor has changed.
func (s *slot) refresh() {
	if s.version != s.class.version {
		s.version = s.class.version
		s.step = s.class.step().Scale(math.Exp(s.factor()))
	}
}

// Step returns what is believed of a slot's step times now, zero when unknown.
func (b *Book) Step(i int) Step { return *b.StepAt(i) }

// StepAt is Step without a copy: valid until the book is used again.
func (b *Book) StepAt(i int) *Step {
	s := &b.slots[i]
	s.refresh()
	return &s.step
}

// Load sets l to what a request sent now would meet at a slot; others is the number
// of requests there that are not in the book, usage the share of its KV cache in
// use by its own gauge, negative when unknown. It moves the slot's count on to now,
// which a replay must do at the same times.
func (b *Book) Load(now fleet.Time, i, others int, usage float64, l *Load) {
	s := &b.slots[i]
	s.pass(now)
	s.meter.load(others, l)
	l.Budget, l.MaxSeqs, l.KVTokens, l.Output = s.limits.BudgetTokens, s.limits.MaxSeqs, s.limits.KVTokens, b.lengths.mean()
	l.Promised, l.Coming = s.promised, s.coming
	l.TTFTSpread, l.TPOTSpread = s.class.ttftSpread.sd, s.class.tpotSpread.sd
	if usage >= 0 {
		l.Held = fleet.Tokens(usage * float64(l.KVTokens))
	}
}

// Open returns the number of jobs that stand in the book for a slot.
func (b *Book) Open(i int) int { return b.slots[i].meter.ahead + b.slots[i].meter.decoding }

// Backlog returns the prompt tokens that a slot has not computed yet, and the
// tokens of context it holds or will hold for the requests it has.
func (b *Book) Backlog(i int) (backlog, active fleet.Tokens) {
	m := &b.slots[i].meter
	return m.backlog, m.waiting + fleet.Tokens(max(m.context, 0))
}

func (s *slot) pass(now fleet.Time) {
	s.refresh()
	if s.step.Known() {
		s.meter.pass(now, &s.step, &s.class.fading)
		return
	}
	step := s.class.guess()
	s.meter.pass(now, &step, &s.class.fading)
}

// believed is the slot's step, or a guess while it is unknown.
func (s *slot) believed() Step {
	s.refresh()
	if s.step.Known() {
		return s.step
	}
	return s.class.guess()
}

// Ask is a request as the book sees it.
type Ask struct {
	Key    uint64 // whose outputs are alike: tenant and adapter
	SLO    fleet.SLO
	Silent bool         // nothing will tell of its first token
	Prompt fleet.Tokens // prompt tokens
	MaxOut fleet.Tokens // output limit; 0 for none
}

// Output returns how many tokens of output a request is expected to have.
func (b *Book) Output(a Ask) fleet.Tokens { return b.lengths.expect(a) }

// Sent opens j for a request dispatched to a slot, with the tokens of its prompt
// believed cached there and the load it meets, from Load at the same instant.
func (b *Book) Sent(now fleet.Time, i int, a Ask, cached fleet.Tokens, l *Load, j *Job) {
	s := &b.slots[i]
	s.pass(now)
	uncached := max(a.Prompt-cached, 1)
	*j = Job{slot: i, open: true, prompt: a.Prompt, uncached: uncached, pairs: Pairs(cached, uncached), sent: now}
	if s.step.Known() {
		j.ttft, j.tpot = s.step.FirstToken(l, cached, uncached), s.step.PerToken(l, a.Prompt, float64(b.lengths.expect(a)))
		if l.Fetch > 0 {
			here := *l
			here.Fetch = 0
			j.fetch = j.ttft - s.step.FirstToken(&here, cached, uncached)
		}
	}
	step := s.believed()
	j.under, j.vague = step.under(l, step.Time(Work{Seqs: float64(l.Decoding), KV: float64(l.Active)}))
	b.serial++
	j.serial = b.serial
	s.meter.sent(j, &step)
	s.slo = a.SLO
	if a.Silent {
		s.meter.expect(j, now.Add(seconds(step.FirstToken(l, cached, uncached))))
	}
}

// First tells that j's first token has come.
func (b *Book) First(now fleet.Time, j *Job) {
	if !j.open || j.decoding {
		return
	}
	s := &b.slots[j.slot]
	s.pass(now)
	if j.decoding {
		return // it was taken to decode just now, and tells too late
	}
	if j.ttft > 0 {
		s.ttft.add(j.ttft, now.Sub(j.sent).Seconds())
		s.class.ttftSpread.add(j.ttft, now.Sub(j.sent).Seconds())
	}
	s.timePrefill(now, j)
	s.meter.arrived(j)
	s.meter.join(j)
	s.meter.from, s.meter.boundary = now, now
}

// Progress tells how much output j has.
func (b *Book) Progress(now fleet.Time, j *Job, output fleet.Tokens) {
	if !j.open {
		return
	}
	b.First(now, j)
	s := &b.slots[j.slot]
	s.pass(now)
	s.meter.corrected(j, output)
	s.meter.boundary = now
}

// Done closes j, whose answer ended as its engine reports. A says whose outputs
// are alike.
func (b *Book) Done(now fleet.Time, j *Job, a Ask, u fleet.Usage) {
	if !j.open {
		return
	}
	s := &b.slots[j.slot]
	s.pass(now)
	s.meter.boundary = now
	cached := fleet.Tokens(-1)
	if u.Known {
		b.lengths.learn(a, max(u.Output, 1))
		cached = u.Cached
	}
	if j.decoding && !j.guessed {
		s.learnPrefill(j, cached)
		if u.Known && u.Output >= leastOutput {
			s.timeDecode(now, j, u.Output)
		}
	}
	b.Drop(now, j)
}

// Promise notes that a request with so many tokens of context will decode at a
// slot once its prompt has been computed elsewhere; Redeem takes it back, when it
// comes or when it will not.
func (b *Book) Promise(i int, context fleet.Tokens) {
	b.slots[i].promised++
	b.slots[i].coming += context
}

// Promised returns how many promises stand for a slot, and of how much context.
func (b *Book) Promised(i int) (requests int, context fleet.Tokens) {
	return b.slots[i].promised, b.slots[i].coming
}

// Redeem takes back a Promise of as many tokens.
func (b *Book) Redeem(i int, context fleet.Tokens) {
	b.slots[i].promised--
	b.slots[i].coming -= context
}

// Prefilled closes j, whose prompt has been computed and which will decode
// elsewhere; u is what the engine says of it.
func (b *Book) Prefilled(now fleet.Time, j *Job, u fleet.Usage) {
	if !j.open {
		return
	}
	b.First(now, j)
	cached := fleet.Tokens(-1)
	if u.Known {
		cached = u.Cached
	}
	if !j.guessed {
		b.slots[j.slot].tell(j, cached)
	}
	b.Drop(now, j)
}

// Drop closes j without learning from it.
func (b *Book) Drop(now fleet.Time, j *Job) {
	if !j.open {
		return
	}
	s := &b.slots[j.slot]
	s.pass(now)
	s.meter.leave(j)
	*j = Job{}
}

// leastOutput is the length from which an answer tells of the time per token.
const leastOutput fleet.Tokens = 8

// timeDecode learns from the stretch between j's first token and its end.
func (s *slot) timeDecode(now fleet.Time, j *Job, output fleet.Tokens) {
	span, steps := now.Sub(j.first).Seconds(), float64(output-1)
	if span <= 0 {
		return
	}
	if j.tpot > 0 {
		s.tpot.add(j.tpot, span/steps)
		s.class.tpotSpread.add(j.tpot, span/steps)
	}
	m := &s.meter
	n, kv := (m.totals.seqs-j.at.seqs)/span, (m.totals.kv-j.at.kv)/span
	prompt, pairs := m.totals.prompt-j.at.prompt, m.totals.pairs-j.at.pairs
	s.learn(&lesson{steps: steps, seqs: n, kv: kv, prompt: prompt, pairs: pairs, seconds: span})
}

// learn takes in a lesson.
func (s *slot) learn(l *lesson) {
	c := s.class
	touched := 0.0
	if c.prior.Touch > 0 {
		touched = l.steps * c.prior.touched(l.seqs+l.prompt/l.steps)
	}
	l.x = Vector{l.steps, l.steps * l.seqs, l.steps * l.kv, l.prompt, l.pairs, touched, l.requests}
	work := l.prompt * c.theta[3] * c.scale[3]
	l.kind = kindOf(l.seqs, l.kv, work/(work+l.steps*c.theta[0]*c.scale[0]+1e-9))
	noise := factorNoise
	if l.steps < fewSteps {
		noise = fewNoise
	}
	noise = noise*noise + c.noise + l.vague
	l.weight, l.last = factorNoise*factorNoise/noise, &s.lessons[l.kind]
	if residual, share, ok := c.learn(l, math.Exp(s.factor())); ok && c.members > 1 {
		s.adjust(share*min(max(residual-s.factor(), -1), 1), noise)
	}
}

// Standing is what a book believes of one endpoint, for people.
type Standing struct {
	Step      Step    // zero when unknown
	Factor    float64 // slowness beside its equals: their median is 1; 0 when it has none
	FactorErr float64 // standard deviation of Factor
	Slow      bool    // Factor is beyond what chance and ordinary spread explain
	Lessons   int     // learnt by its variant
	Drifts    int     // drift alarms of its variant
	TTFTError float64 // median of |predicted/measured − 1| of the latest; NaN before the first
	TPOTError float64

	Saturation float64 // see Saturation, for the SLO of the latest request
	Regime     Regime
}

// Standing returns what is believed of a slot.
func (b *Book) Standing(i int) Standing {
	s := &b.slots[i]
	st := Standing{
		Step: b.Step(i), Lessons: s.class.lessons, Drifts: s.class.drifts, TTFTError: s.ttft.median(), TPOTError: s.tpot.median(),
	}
	st.Saturation, st.Regime = s.saturation(&st.Step)
	if s.class.members > 1 {
		st.Factor = math.Exp(s.logf - b.midFactor(s.class))
		st.FactorErr = st.Factor * math.Sqrt(s.varf)
		st.Slow = st.Factor > slowFactor && st.Factor-1 > slowSigmas*st.FactorErr
	}
	return st
}

// saturation is that of a slot as it was when something last happened there.
func (s *slot) saturation(step *Step) (float64, Regime) {
	m := &s.meter
	now := Now{Running: m.decoding, Waiting: m.ahead, KV: fleet.Tokens(max(m.context-m.found, 0))}
	if step.PerPrompt > 0 {
		now.Prompts = m.prefill / step.PerPrompt
	}
	if m.ahead > 0 {
		var l Load
		m.load(0, &l)
		l.Budget, l.MaxSeqs, l.KVTokens = s.limits.BudgetTokens, s.limits.MaxSeqs, s.limits.KVTokens
		now.Wait = step.FirstToken(&l, 0, 1)
	}
	return Saturation(*step, now, s.limits, s.slo)
}

// midFactor is the median of the logarithms of a class's factors.
func (b *Book) midFactor(c *class) float64 {
	var all []float64
	for i := range b.slots {
		if b.slots[i].class == c {
			all = append(all, b.slots[i].logf)
		}
	}
	slices.SortFunc(all, cmp.Compare)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

// spread is how the logarithm of measured over predicted times spreads: its
// variance, and the standard deviation that follows.
type spread struct{ variance, sd float64 }

func newSpread(variance float64) spread { return spread{variance, math.Sqrt(variance)} }

const (
	spreadWeight = 0.02  // of one comparison
	leastSpread  = 0.004 // 6 %: no prediction is better for long
	mostSpread   = 1
)

func (v *spread) add(predicted, measured float64) {
	if predicted <= 0 || measured <= 0 {
		return
	}
	e := math.Log(measured / predicted)
	x := v.variance + spreadWeight*(min(e*e, mostSpread)-v.variance)
	*v = newSpread(min(max(x, leastSpread), mostSpread))
}

// errorRing holds the latest relative errors of predictions.
type errorRing struct {
	errs [64]float32
	n    int
}

func (r *errorRing) add(predicted, measured float64) {
	if measured <= 0 {
		return
	}
	r.errs[r.n%len(r.errs)] = float32(math.Abs(predicted/measured - 1))
	r.n++
}

func (r *errorRing) median() float64 {
	n := min(r.n, len(r.errs))
	if n == 0 {
		return math.NaN()
	}
	sorted := slices.Clone(r.errs[:n])
	slices.Sort(sorted)
	return float64(sorted[n/2])
}
