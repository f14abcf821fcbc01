package perf

import (
	"math"

	"penstock.dev/penstock/internal/fleet"
)

// prefill is a stretch of time in which prompts were computed, and what was beside
// them.
type prefill struct {
	span     float64 // s
	seqs, kv float64 // that decoded
	idle     bool    // it began when nothing was ahead
	joint    bool    // another got its first token in the same step
	under    float64 // of the step under way when it began, the share left
	vague    float64 // variance of that
}

// computed is what prompts took to compute.
type computed struct {
	prompt, pairs float64
	doubt         float64 // standard deviation of the time for what was perhaps cached, s
}

// burst is the first tokens that come of one step. Where prompts are computed for
// others most steps bring several, and each request is closed as its own comes: they
// tell of the step together, when the next one comes.
type burst struct {
	at        fleet.Time
	fill      prefill // of the one that came first
	all, told int     // first tokens, and those whose prompts are in what
	what      computed
}

// sameStep is the time between the first tokens of one step on their way here, in
// seconds.
const sameStep = 0.002

// foundDoubt is the standard deviation of what an engine has cached of a prompt
// about what it is believed to have, as a share of that.
const foundDoubt = 0.2

// timePrefill keeps how long j's prompt took, until it is known how much of it had
// to be computed. Of a step that brings two first tokens, neither tells alone.
func (s *slot) timePrefill(now fleet.Time, j *Job) {
	m := &s.meter
	from := max(m.from, j.sent)
	j.fill = prefill{span: now.Sub(from).Seconds(), seqs: float64(m.decoding), kv: m.context, idle: from == j.sent, under: j.under, vague: j.vague}
	if m.latest != nil && now.Sub(m.latestAt).Seconds() < sameStep {
		j.fill.joint = true
		if m.latest.serial == m.latestSerial {
			m.latest.fill.joint = true
		}
		s.burst.all++
	} else {
		s.learnBurst()
		s.burst = burst{at: now, fill: j.fill, all: 1}
	}
	m.latest, m.latestAt, m.latestSerial = j, now, j.serial
}

// found returns what of j's prompt had to be computed; cached is what the engine said
// of it, negative when it did not.
func (s *slot) found(j *Job, cached fleet.Tokens) (c computed) {
	if cached < 0 {
		cached = j.prompt - j.uncached
		c.doubt = foundDoubt * float64(cached) * s.class.theta[3] * s.class.scale[3]
	}
	uncached := max(j.prompt-cached, 1)
	c.prompt, c.pairs = float64(uncached), Pairs(cached, uncached)
	return c
}

// learnPrefill learns from how long j's prompt took, now that j has ended.
func (s *slot) learnPrefill(j *Job, cached fleet.Tokens) {
	if j.fill.joint || j.fetch > 0 {
		return // what was fetched hides what was computed
	}
	s.learnStretch(&j.fill, s.found(j, cached))
}

// tell adds to the burst that j's first token came in what j's prompt took, which is
// all that was asked of j.
func (s *slot) tell(j *Job, cached fleet.Tokens) {
	u := &s.burst
	if j.fetch > 0 || j.first.Sub(u.at).Seconds() >= sameStep {
		return
	}
	c := s.found(j, cached)
	u.told++
	u.what.prompt += c.prompt
	u.what.pairs += c.pairs
	u.what.doubt = math.Hypot(u.what.doubt, c.doubt)
}

// learnBurst learns from the latest burst, when all that was computed in it is known.
func (s *slot) learnBurst() {
	if u := &s.burst; u.told > 0 && u.told == u.all {
		s.learnStretch(&u.fill, u.what)
	}
}

// learnStretch learns from a stretch in which so much was computed.
func (s *slot) learnStretch(p *prefill, c computed) {
	if p.span <= 0 {
		return
	}
	budget := s.limits.BudgetTokens
	if budget <= 0 {
		budget = DefaultBudget
	}
	chunks := math.Ceil(c.prompt / max(float64(budget)-p.seqs, 1))
	l := lesson{
		steps: chunks, seqs: p.seqs, kv: p.kv, prompt: c.prompt, pairs: c.pairs, seconds: p.span,
		vague: c.doubt * c.doubt / (p.span * p.span), chunks: chunks, each: c.prompt / chunks,
	}
	if p.idle {
		l.requests = 1
		if p.seqs > 0 {
			step := s.believed()
			under := step.Time(Work{Seqs: p.seqs, KV: p.kv}) / p.span
			l.steps, l.vague = l.steps+p.under, l.vague+p.vague*under*under
		}
	}
	s.learn(&l)
}
