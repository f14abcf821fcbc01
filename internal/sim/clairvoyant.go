package sim

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/stat"
)

// Clairvoyant names the policy that decides by the rule of predictive, but knows
// what only a simulator can: what every engine holds and has to do, how long its
// steps take, what it has cached, and how long this answer will be. It is greedy:
// of what comes later it knows nothing, nor the noise of steps to come. It shows
// what better prediction could still win.
const Clairvoyant = "clairvoyant-greedy"

// clairvoyantRule is the policy of the catalogue whose rule it is.
const clairvoyantRule = "predictive"

// prefillWindow is over how long a replica's share of prompts is averaged, as in
// a gateway's own book.
const prefillWindow = 30 * time.Second

// clairvoyant fills a view with the truth and lets the rule decide.
type clairvoyant struct {
	run   *run
	rule  route.Policy
	view  route.View
	query route.Query
	up    []int // candidates whose process is there
}

// flow is what comes to a replica, lately.
type flow struct {
	seen     fleet.Time
	prefill  float64 // share of its time that prompts take
	arrivals float64 // prompts per second
}

// pass lets time go by.
func (f *flow) pass(now fleet.Time) {
	fade := math.Exp(-max(now.Sub(f.seen).Seconds(), 0) / prefillWindow.Seconds())
	f.prefill, f.arrivals, f.seen = f.prefill*fade, f.arrivals*fade, now
}

// Pick implements route.Policy.
func (c *clairvoyant) Pick(v *route.View, q *route.Query, r *stat.Rand, out *route.Plan) {
	req := c.run.requests.get(indexOf(q.Req))
	c.up = c.up[:0]
	for _, slot := range q.Candidates {
		if c.run.engines[replicaOf(v, slot)].Engine != nil {
			c.up = append(c.up, slot)
		} else {
			out.Score[slot] = math.Inf(-1)
		}
	}
	if len(c.up) == 0 {
		c.rule.Pick(v, q, r, out)
		return
	}
	c.query = *q
	c.query.Candidates, c.query.Output = c.up, fleet.Tokens(max(req.Output, 1))
	c.grow(v)
	for _, slot := range c.up {
		c.look(slot, replicaOf(v, slot), req)
	}
	c.rule.Pick(&c.view, &c.query, r, out)
	// What comes to the replica is known from now on.
	s := out.Chosen
	f := &c.run.engines[replicaOf(v, s)].flow
	uncached := c.query.Prompt - c.view.Matched[s]
	f.prefill += c.view.Step[s].Prompt(uncached, perf.Pairs(c.view.Matched[s], uncached)) / prefillWindow.Seconds()
	f.arrivals += 1 / prefillWindow.Seconds()
}

func replicaOf(v *route.View, slot int) int { return int(v.ID[slot]) - 1 }

// grow makes c's view the brain's but for what is known better.
func (c *clairvoyant) grow(v *route.View) {
	own := c.view
	c.view = *v
	if len(own.Step) < len(v.Step) {
		n := len(v.Step)
		own.Step, own.Load = make([]perf.Step, n), make([]perf.Load, n)
		own.Matched, own.Cached, own.KVTokens = make([]fleet.Tokens, n), make([]fleet.Tokens, n), make([]fleet.Tokens, n)
	}
	c.view.Step, c.view.Load = own.Step, own.Load
	c.view.Matched, c.view.Cached, c.view.KVTokens = own.Matched, own.Cached, own.KVTokens
}

// look fills the view of replica k, at slot, with the truth.
func (c *clairvoyant) look(slot, k int, req *request) {
	now, en, limits := c.run.now, c.run.engines[k], c.run.c.Replicas[k].Limits
	c.run.collect(k, now)
	st := en.State()
	en.flow.pass(now)
	c.view.Matched[slot] = en.Expected(req.engineChain(), c.query.Prompt)
	c.view.KVTokens[slot], c.view.Cached[slot] = limits.KVTokens, st.Held+st.Cached
	l := &c.view.Load[slot]
	*l = perf.Load{
		Decoding: st.Decoding, Active: st.Context, Ahead: st.Ahead, Backlog: st.Prompt, Pairs: st.Pairs,
		Prefill: en.flow.prefill, Arrivals: en.flow.arrivals,
		Budget: limits.BudgetTokens, MaxSeqs: limits.MaxSeqs, KVTokens: limits.KVTokens, Held: st.Held,
	}
	if st.Started != fleet.Never {
		l.Elapsed = max(now.Sub(st.Started), 0) // what is computed of a prompt counts from the step's end
	}
	if st.Decoding > 0 {
		l.Output = float64(st.Output) / float64(st.Decoding)
	}
	c.view.Step[slot] = c.step(en, l, c.view.Matched[slot])
}

// step returns the linear form of a replica's step about the batches that the
// rule asks about: it is exact for the middle of this answer and for this prompt's
// mean step, and linear in the others between the batch there is and a little
// more. A rank of a lockstep set is taken as if the other ranks were never slower.
func (c *clairvoyant) step(en *engine, l *perf.Load, cached fleet.Tokens) perf.Step {
	const moreKV, moreSeqs = 1 << 14, 8 // graphs come in sizes of 8 sequences
	seconds := func(b enginesim.Batch) float64 { return en.typical.StepTime(b).Seconds() }
	q := &c.query
	mid := enginesim.Batch{Decodes: l.Decoding + 1, Context: l.Active + q.Prompt + q.Output/2}
	more := mid
	t := seconds(mid)
	more.Context += moreKV
	s := perf.Step{PerKV: (seconds(more) - t) / moreKV, PerRequest: 2 * c.run.c.Hop.Seconds()}
	more = mid
	more.Decodes += moreSeqs
	s.PerSeq = (seconds(more) - t) / moreSeqs
	s.Base = t - s.PerSeq*float64(mid.Decodes) - s.PerKV*float64(mid.Context)

	uncached := max(q.Prompt-cached, 1)
	room := max(l.Budget-fleet.Tokens(l.Decoding), 1)
	steps := (uncached + room - 1) / room
	chunk := uncached / steps
	pairs := perf.Pairs(cached, uncached) / float64(steps)
	prompt := enginesim.Batch{Decodes: l.Decoding, Prefills: 1, Context: l.Active + cached + (uncached-chunk)/2, Prompt: chunk}
	bare := seconds(prompt)
	prompt.Attention = pairs
	with := seconds(prompt)
	if pairs > 0 {
		s.PerPair = (with - bare) / pairs
	}
	s.PerPrompt = max(bare-s.Time(perf.Work{Seqs: float64(l.Decoding), KV: float64(l.Active)}), 0) / float64(max(chunk, 1))
	return s
}
