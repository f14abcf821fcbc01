package route

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
)

const (
	// LeastPull is how many tokens are worth asking another endpoint for: engines
	// compute fewer sooner than they have agreed on them.
	LeastPull fleet.Tokens = 64

	// pullGain is by what share serving from a fetched prompt must be cheaper than
	// computing it: it has more that can go wrong. It also keeps a prompt where it is
	// until moving it is worth more than the error of a prediction, so that copies
	// are made for load that lasts.
	pullGain = 0.03
)

// puller compares computing what an endpoint lacks of a prompt with fetching it
// from another's cache. The cost of fetching is
//
//	that of serving whole, with what the source has as cached, once it has come
//	+ link time·busy/(1-busy)    what others wait for the link
//	+ work to make good what the copy pushes out of a full cache
//
// An endpoint that fetches has the prompt from then on: what is asked for more
// than one endpoint can serve is copied to as many as it pays for.
type puller struct {
	from []int     // by slot: where it would fetch from; NoSlot where it would compute
	move []float64 // s
	cost []float64 // s, without fetching
}

// consider scores the candidates that would do better to fetch as if they did.
func (p *puller) consider(v *View, q *Query, reuse float64, out *Plan) {
	for n := len(v.ID); len(p.from) < n; {
		p.from, p.move, p.cost = append(p.from, NoSlot), append(p.move, 0), append(p.cost, 0)
	}
	s := source(v, q)
	for _, c := range q.Candidates {
		p.from[c], p.cost[c] = NoSlot, -out.Score[c]
		if s == NoSlot || !v.Hands(s, c) || v.Cache[s].Ready < v.Matched[c]+LeastPull {
			continue
		}
		sec, move := pullCost(v, q, c, s, reuse)
		if sec < p.cost[c]*(1-pullGain) {
			p.from[c], p.move[c], out.Score[c] = s, move, -sec
		}
	}
}

// source returns the slot that gives most of a prompt soonest: where fetching what
// it has and computing the rest takes least.
func source(v *View, q *Query) int {
	best, least := NoSlot, math.Inf(1)
	for _, s := range q.Sources {
		has := min(v.Cache[s].Ready, q.Prompt)
		if has < LeastPull {
			continue
		}
		rest := max(q.Prompt-has, 1)
		t := fetchTime(v, s, has) + stepOf(v, s).Prompt(rest, perf.Pairs(has, rest))
		if t < least {
			best, least = s, t
		}
	}
	return best
}

// fetchTime is how long so many tokens take from a slot, in seconds, what the slot
// itself has to bring up from slower memory included.
func fetchTime(v *View, s int, tokens fleet.Tokens) float64 {
	return v.Wire[s].Latency + v.Asked[s] + v.Wire[s].PerToken*float64(tokens)
}

// pullCost is the cost of serving the request at c with what slot s has of its
// prompt, and how much of its first token's time the fetching is, in seconds.
func pullCost(v *View, q *Query, c, s int, reuse float64) (sec, move float64) {
	has := min(v.Cache[s].Ready, q.Prompt-1)
	moved := max(has-v.Matched[c], 0)
	move = fetchTime(v, s, moved)
	l := v.Load[c]
	l.Fetch = time.Duration(move * float64(time.Second))
	b := bill{s: stepOf(v, c), l: &l}
	sec = b.of(v, q, c, reuse, has, moved)
	const full = 0.95 // of a link: what waits behind it is bounded
	busy := min(v.Busy[s], full)
	return sec + v.Wire[s].PerToken*float64(moved)*busy/(1-busy), move
}

// settle says of what has been chosen whether it is fetched, and what the best of
// both kinds would have cost.
func (p *puller) settle(v *View, q *Query, out *Plan) {
	whole, pull := noOption, noOption
	whole.Cost, pull.Cost = math.Inf(1), math.Inf(1)
	for _, c := range q.Candidates {
		if p.cost[c] < whole.Cost {
			whole = Option{Slot: c, Prefill: NoSlot, Source: NoSlot, Cost: p.cost[c]}
		}
		if p.from[c] != NoSlot && -out.Score[c] < pull.Cost {
			pull = Option{Slot: c, Prefill: NoSlot, Source: p.from[c], Cost: -out.Score[c], Move: p.move[c]}
		}
	}
	if pull.Slot == NoSlot {
		return
	}
	c := out.Chosen
	if out.Source = p.from[c]; out.Source != NoSlot {
		pull = Option{Slot: c, Prefill: NoSlot, Source: out.Source, Cost: -out.Score[c], Move: p.move[c]}
	}
	whole.TTFT = firstTokenAt(v, q, whole.Slot)
	pull.TTFT = fetchedTokenAt(v, q, &pull)
	out.Whole, out.Pull = whole, pull
}

// fetchedTokenAt is the predicted time to the first token of q where its prompt is
// fetched, in seconds.
func fetchedTokenAt(v *View, q *Query, o *Option) float64 {
	l := v.Load[o.Slot]
	l.Fetch = time.Duration(o.Move * float64(time.Second))
	has := min(v.Cache[o.Source].Ready, q.Prompt-1)
	return stepOf(v, o.Slot).FirstToken(&l, has, max(q.Prompt-has, 1)) + stepOf(v, o.Slot).PerPrompt*adapterCost(v.Adapter[o.Slot])
}
