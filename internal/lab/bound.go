package lab

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// FluidBound returns how many requests of a load can at most be good on this
// fleet, whoever routes them, as a real number. Span, when above 0, is the longest
// that runs took from the first arrival to the last answer; loads in which turns
// wait for answers, and targets that let requests wait for ever, are bounded by
// it alone.
//
// It is an upper bound, for every step of an engine is paid for by requests, none
// pays more than the step's time, and no good request pays less than its price:
//
//   - A step takes at least a + Σv (enginesim.Floor), where v is what a request's
//     own tokens take. Let those of a step share its time T in proportion to v: a
//     request pays v·T/Σv, at least v·T/(T−a), as Σv is at most T−a.
//   - A good answer's D steps after the first token take τD together, τ its target.
//     x/(x−a) is convex and falls, and v grows along an answer; so by Jensen they
//     pay at least D·v₀·τ/(τ−a) + Σ(v−v₀). Where there is no target, they pay at
//     least v + a/M, with M the seats of an engine, if a is shared by head instead.
//   - A prompt token must have been computed on some replica of the variant that
//     serves it. Of m prompts that begin alike each pays 1/m of that: whichever of
//     them are good pay at most what it took, however late each came and whatever
//     caches hold. Attention pairs are paid for in the same way. Decoding reads
//     context that others may read too at the price of what is read again.
//   - Good requests pay in the time from the first arrival until the last of them
//     must have ended. What all replicas of a variant have of it is what can be
//     paid. Choosing the most requests, each served by fractions of variants, is a
//     linear program; for any prices y ≥ 0 of a variant's second its optimum is at
//     most Σ y·capacity + Σ max(0, 1 − y·w) (weak duality), and the bound is the
//     least of these that is found.
//   - Requests that an idle replica with all that is shared in its cache could not
//     serve within the targets are not counted at all.
//
// Noise of steps has the mean 1 and cannot be foreseen, so that a sum of steps
// strays as a martingale; the bound allows for six standard deviations of it, and
// of a single step's noise where single requests are looked at.
func (s *Scene) FluidBound(load float64, seed uint64, span time.Duration) (float64, error) {
	b := bound{s: s, cfg: s.config(Cell{Policy: sim.Clairvoyant, Load: load, Seed: seed})}
	if err := b.read(load, seed); err != nil {
		return 0, err
	}
	b.lucky = math.Exp(-sigmas*s.Noise - s.Noise*s.Noise/2)
	b.span = b.end
	if span > 0 {
		b.span = min(b.span, span.Seconds())
	}
	least := float64(len(b.requests))
	for _, split := range []float64{0, 0.25, 0.5, 0.75, 1} {
		for _, bySeats := range []bool{false, true} {
			least = min(least, b.solve(split, bySeats))
		}
	}
	return least, nil
}

// bounds returns, by load and seed, the share of the requests that can at most be
// good; NaN without targets.
func (s *Scene) bounds(cells []Cell, results []*sim.Result) (map[Cell]float64, error) {
	spans, offered := map[Cell]time.Duration{}, map[Cell]int{}
	for i, x := range cells {
		k := Cell{Load: x.Load, Seed: x.Seed}
		spans[k], offered[k] = max(spans[k], results[i].Span), results[i].Arrived
	}
	out := make(map[Cell]float64, len(spans))
	for k, span := range spans {
		if s.Targets == (sim.Targets{}) {
			out[k] = math.NaN()
			continue
		}
		most, err := s.FluidBound(k.Load, k.Seed, span)
		if err != nil {
			return nil, err
		}
		out[k] = most / float64(offered[k])
	}
	return out, nil
}

// sigmas is how many standard deviations of noise the bound allows for.
const sigmas = 6

type bound struct {
	s        *Scene
	cfg      sim.Config
	requests []demand
	end      float64 // s from the first arrival until the last good answer must have ended
	span     float64 // s in which is paid
	lucky    float64 // least factor of one step's noise
}

// demand is what a request asks of whoever serves it.
type demand struct {
	prompt, output int
	tokens, pairs  float64 // its share of what must be computed of its prompt
	own, ownPairs  float64 // prompt tokens that nobody else's prompt has, and their pairs
}

// kind is a variant's replicas, in terms of the fastest.
type kind struct {
	floor    enginesim.Floor
	limits   fleet.Limits
	capacity float64   // s of the fastest
	price    []float64 // s of the fastest, by request; infinite where it cannot serve it
}

// read takes in the load.
func (b *bound) read(load float64, seed uint64) error {
	const block = int(enginesim.BlockTokens)
	uses := map[uint64]int32{}
	visit := func(q *workload.Request, f func(key uint64, blocks, tokens, before int)) {
		key, before := uint64(0), 0
		for _, seg := range q.Prompt {
			blocks := seg.Tokens / block
			f(stat.Mix64(key^stat.Mix64(seg.ID)), blocks, seg.Tokens, before)
			if blocks > 0 { // what follows is keyed by the whole blocks before it
				key = stat.Mix64(stat.Mix64(key^stat.Mix64(seg.ID)) + uint64(blocks))
			}
			before += seg.Tokens
		}
	}
	src, err := b.s.Load(load, seed)
	if err != nil {
		return err
	}
	for q := range workload.All(src) {
		visit(&q, func(key uint64, blocks, _, _ int) {
			if blocks > 0 {
				uses[key]++
			}
		})
	}
	if src, err = b.s.Load(load, seed); err != nil {
		return err
	}
	first := math.Inf(1)
	for q := range workload.All(src) {
		d := demand{prompt: max(q.Input, 1), output: max(q.Output, 1)}
		visit(&q, func(key uint64, blocks, tokens, before int) {
			whole := float64(blocks * block)
			rest := float64(tokens) - whole
			pairs := func(n, x float64) float64 { return n*x + n*(n-1)/2 }
			share := 1.0
			if blocks > 0 {
				share = 1 / float64(uses[key])
			}
			after := pairs(rest, float64(before)+whole)
			d.tokens += whole*share + rest
			d.pairs += pairs(whole, float64(before))*share + after
			d.own, d.ownPairs = d.own+rest, d.ownPairs+after
			if share == 1 {
				d.own, d.ownPairs = d.own+whole, d.ownPairs+pairs(whole, float64(before))
			}
		})
		b.requests = append(b.requests, d)
		first = min(first, q.At.Seconds())
		b.end = max(b.end, q.At.Seconds()+b.allowed(&q))
	}
	b.end -= first
	return nil
}

// allowed is how long after its time a request may end and be good, in seconds.
func (b *bound) allowed(q *workload.Request) float64 {
	t := b.s.Targets
	switch {
	case q.After >= 0:
		return math.Inf(1)
	case t.E2E > 0:
		return t.E2E.Seconds()
	case t.TTFT > 0 && (t.TPOT > 0 || q.Output <= 1):
		return t.TTFT.Seconds() + float64(max(q.Output-1, 0))*t.TPOT.Seconds()
	}
	return math.Inf(1)
}

// kinds returns the variants under the floor of a split.
func (b *bound) kinds(split float64) []kind {
	list := make([]kind, len(b.s.Variants))
	for i := range list {
		list[i].floor.Base = math.Inf(1)
	}
	sum := func(f enginesim.Floor) float64 { return f.Base + f.Decode + f.Prompt }
	floors := make([]enginesim.Floor, len(b.cfg.Replicas))
	for j := range b.cfg.Replicas {
		r := &b.cfg.Replicas[j]
		floors[j] = enginesim.Floor{Again: 1}
		if p, ok := r.Physics.(enginesim.Floored); ok {
			floors[j] = p.Floor(split, r.Limits.BudgetTokens).Times(b.fastest(j))
		}
		k := &list[r.Variant-1]
		k.limits = r.Limits
		if math.IsInf(k.floor.Base, 1) || sum(floors[j]) < sum(k.floor) {
			k.floor = floors[j]
		}
	}
	for j := range b.cfg.Replicas {
		k := &list[b.cfg.Replicas[j].Variant-1]
		share := 1.0
		if x := sum(floors[j]); x > 0 {
			share = sum(k.floor) / x
		}
		k.capacity += share * b.paid(j)
	}
	return list
}

// fastest is the least factor that faults ever put on a replica's steps.
func (b *bound) fastest(j int) float64 {
	f := 1.0
	for i := range b.s.Faults {
		if b.s.Faults[i].Replica == j && b.s.Faults[i].Kind == sim.Slow {
			f = min(f, b.s.Faults[i].Factor)
		}
	}
	return f
}

// paid is the seconds of steps, as they are without noise, that a replica can do.
func (b *bound) paid(j int) float64 {
	if math.IsInf(b.span, 1) {
		return b.span
	}
	r := &b.cfg.Replicas[j]
	longest := enginesim.Typical(r.Physics).StepTime(enginesim.Batch{
		Decodes: r.Limits.MaxSeqs, Prefills: r.Limits.MaxSeqs, Context: r.Limits.KVTokens * fleet.Tokens(r.Limits.MaxSeqs),
		Prompt: r.Limits.BudgetTokens, Attention: float64(r.Limits.BudgetTokens) * float64(r.Limits.KVTokens),
	}).Seconds()
	for i := range b.s.Faults {
		if f := &b.s.Faults[i]; f.Replica == j && f.Kind == sim.Slow {
			longest *= max(f.Factor, 1)
		}
	}
	// W seconds of steps take W − sigmas·noise·√(longest·W) at least.
	h := sigmas * b.s.Noise * math.Sqrt(longest) / 2
	root := h + math.Sqrt(h*h+b.span)
	return root * root
}

// solve returns the bound of one floor and one way to share what steps take
// whatever is in them.
func (b *bound) solve(split float64, bySeats bool) float64 {
	kinds := b.kinds(split)
	var can []kind
	for _, k := range kinds {
		if k.capacity == 0 {
			continue
		}
		k.price = make([]float64, len(b.requests))
		for i := range b.requests {
			k.price[i] = b.priceOf(&k, &b.requests[i], bySeats)
		}
		can = append(can, k)
	}
	if math.IsInf(b.span, 1) {
		return dual(can, make([]float64, len(can)), len(b.requests))
	}
	return cheapest(can, len(b.requests))
}

// priceOf is the least that a good request pays at a kind, in seconds.
func (b *bound) priceOf(k *kind, d *demand, bySeats bool) float64 {
	f, t := &k.floor, &b.s.Targets
	steps := float64(d.output - 1)
	need := (d.prompt + d.output - 1 + int(enginesim.BlockTokens) - 1) / int(enginesim.BlockTokens)
	if fleet.Tokens(need)*enginesim.BlockTokens > k.limits.KVTokens {
		return math.Inf(1)
	}
	v := f.Decode + f.KV*(d.own+f.Again*(float64(d.prompt)-d.own))
	first := b.lucky*(f.Base*max(math.Ceil(d.own/float64(k.limits.BudgetTokens)), 1)+f.Prompt*d.own+f.Pair*d.ownPairs) + 2*b.s.Hop.Seconds()
	target := math.Inf(1) // of the mean step
	if t.TPOT > 0 {
		target = t.TPOT.Seconds()
	}
	if t.E2E > 0 && steps > 0 {
		target = min(target, (t.E2E.Seconds()-first)/steps)
	}
	target /= b.lucky
	late := t.TTFT > 0 && first > t.TTFT.Seconds() || t.E2E > 0 && first > t.E2E.Seconds()
	if late || steps > 0 && f.Base+v > target {
		return math.Inf(1)
	}
	price := f.Prompt*d.tokens + f.Pair*d.pairs + f.KV*steps*(steps-1)/2
	switch {
	case bySeats:
		price += steps * (v + f.Base/float64(k.limits.MaxSeqs))
	case math.IsInf(target, 1):
		price += steps * v
	default:
		price += steps * v * target / (target - f.Base)
	}
	return price
}

// dual is the bound that prices y of the kinds' seconds give.
func dual(kinds []kind, y []float64, requests int) float64 {
	sum := 0.0
	for v := range kinds {
		if y[v] > 0 {
			sum += y[v] * kinds[v].capacity
		}
	}
	for i := range requests {
		best := 0.0
		for v := range kinds {
			if p := kinds[v].price[i]; !math.IsInf(p, 1) {
				best = max(best, 1-y[v]*p)
			}
		}
		sum += best
	}
	return sum
}

// cheapest looks for prices that make the bound small: it goes down along one
// kind after another, which need not find the least but finds a bound.
func cheapest(kinds []kind, requests int) float64 {
	const rounds, halvings, wide = 3, 30, 15
	y := make([]float64, len(kinds))
	least := dual(kinds, y, requests)
	for v := range kinds {
		y[v] = float64(requests) / max(kinds[v].capacity, 1e-9) / float64(len(kinds))
	}
	for range rounds {
		for v := range kinds {
			mid := math.Log(y[v])
			lo, hi := mid-wide, mid+wide
			at := func(x float64) float64 {
				y[v] = math.Exp(x)
				d := dual(kinds, y, requests)
				least = min(least, d)
				return d
			}
			for range halvings {
				a, c := lo+(hi-lo)/3, hi-(hi-lo)/3
				if at(a) <= at(c) {
					hi = c
				} else {
					lo = a
				}
			}
			y[v] = math.Exp((lo + hi) / 2)
		}
	}
	return least
}
