package route

import (
	"math"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// llmdLatency routes as llm-d's predicted-latency configuration does (v0.10.0,
// streamingMode on): prefix-cache-affinity-filter at 0.99, slo-headroom-tier-filter,
// prefix-cache-affinity-filter at 0.80, latency-scorer with strategy least and
// weights 0.8 for TTFT and 0.2 for TPOT, weighted-random-picker.
//
//   - Affinity: endpoints of which the index of llm-d holds that share of the prompt
//     are kept, if there are any, unless the best of them would take 18 s longer
//     than the best of the others to its first token: there, prompt tokens in flight
//     over 15,928 a second, a constant of one GPU type.
//   - Tiers: of endpoints that meet the SLO and such that do not, those that do; one
//     time in a hundred the others. Headroom is the SLO minus the prediction.
//   - Score: the least headroom that is left is best; it fills endpoints up. When
//     none has any: idle endpoints only, if there are any; else those that miss
//     only TPOT, else only TTFT, else both, the smallest miss first. A figure in
//     which all are equal does not count. 0.01 to 1.01 in hundredths.
//   - Picked at random in proportion to the score.
//   - No prediction at all: (1 − usage + queue + prefix)/3 instead.
//
// Predictions are the pool's believed step at the present load, where llm-d asks a
// model trained online, on gauges as old as its scrape: in its favour. Without any
// SLO all is a miss, and the smallest prediction best, as there; where only one
// of the two is asked for, the other is taken to have no headroom and no miss (in
// its favour: there it is a miss of a target of zero).
//
// Not reproduced: the tightest TPOT of requests running on an endpoint, which a
// policy cannot know; predictions failing above 100 candidates (in its favour);
// admission.
//
// Endpoints that a filter removed have no score.
type llmdLatency struct {
	llmd
	kept []int // scratch: slots that the filters leave
	work []int // scratch: of a filter, or a bucket of the scorer
	room []headroom
}

// headroom is what an endpoint's predictions leave of the SLO, in seconds.
type headroom struct {
	ttft, tpot float64
	known      bool
}

func (h headroom) misses() bool { return h.ttft < 0 || h.tpot < 0 }

const (
	llmdStrict, llmdLoose       = 0.99, 0.80
	llmdMaxPenalty              = 18.0   // s
	llmdPeakPrefill             = 15_928 // tokens/s
	llmdExplore                 = 0.01
	llmdTTFTWeight              = 0.8
	llmdTPOTWeight              = 0.2
	llmdSteps, llmdSmallestSpan = 100, 1e-9
)

func newLLMDLatency() *llmdLatency { return &llmdLatency{llmd: *newLLMD()} }

func (p *llmdLatency) Pick(v *View, q *Query, r *stat.Rand, out *Plan) {
	p.gauges.update(v, q)
	b := newBlocking(q.KeyTokens, llmdBlock, llmdMaxPrefix)
	total := p.match(v, q, b)
	known := p.predict(v, q, total)
	p.kept = append(p.kept[:0], q.Candidates...)
	p.affinity(v, total, llmdStrict)
	p.tier(known, r)
	p.affinity(v, total, llmdLoose)
	for _, c := range q.Candidates {
		out.Score[c] = math.NaN()
	}
	for _, c := range p.kept {
		out.Score[c] = 0
	}
	if p.anyKnown() {
		p.score(v, out)
	} else {
		p.composite(total, out)
	}
	p.draw(r, out)
	p.index.insert(out.Chosen, p.capacity(out.Chosen)/b.perKey, b, q.Chain)
}

// predict sets room for the candidates and reports whether any has a prediction.
func (p *llmdLatency) predict(v *View, q *Query, total int) bool {
	for len(p.room) < len(v.ID) {
		p.room = append(p.room, headroom{})
	}
	found := false
	for _, c := range q.Candidates {
		p.room[c] = headroom{}
		s, l := &v.Step[c], &v.Load[c]
		if !s.Known() {
			continue
		}
		found = true
		cached := min(max(q.Prompt-1, 0), q.Prompt*fleet.Tokens(p.count[c])/fleet.Tokens(max(total, 1)))
		h := headroom{
			ttft: q.SLO.TTFT.Seconds() - s.FirstToken(l, cached, q.Prompt-cached),
			tpot: q.SLO.TPOT.Seconds() - s.PerToken(l, q.Prompt, float64(max(q.Output, 1))), known: true,
		}
		switch {
		case q.SLO.TTFT == 0 && q.SLO.TPOT > 0:
			h.ttft = 0
		case q.SLO.TPOT == 0 && q.SLO.TTFT > 0:
			h.tpot = 0
		}
		p.room[c] = h
	}
	return found
}

func (p *llmdLatency) anyKnown() bool {
	for _, c := range p.kept {
		if p.room[c].known {
			return true
		}
	}
	return false
}

// affinity keeps the endpoints that hold at least the threshold's share of the
// prompt.
func (p *llmdLatency) affinity(v *View, total int, threshold float64) {
	if len(p.kept) <= 1 || total == 0 {
		return
	}
	p.work = p.work[:0]
	holder, other := math.Inf(1), math.Inf(1)
	for _, c := range p.kept {
		wait := float64(v.Backlog[c]) / llmdPeakPrefill
		if float64(p.count[c])/float64(total) >= threshold {
			p.work = append(p.work, c)
			holder = min(holder, wait)
		} else {
			other = min(other, wait)
		}
	}
	if len(p.work) > 0 && (len(p.work) == len(p.kept) || holder-other <= llmdMaxPenalty) {
		p.kept, p.work = p.work, p.kept
	}
}

// tier keeps the endpoints that meet the SLO, or seldom those that do not.
// Without a prediction an endpoint is not known to meet it.
func (p *llmdLatency) tier(known bool, r *stat.Rand) {
	if len(p.kept) <= 1 || !known {
		return
	}
	meets := p.bucket(func(h headroom) bool { return h.known && !h.misses() })
	if meets == 0 || meets == len(p.kept) {
		return
	}
	if r.Float64() < llmdExplore {
		p.bucket(func(h headroom) bool { return !h.known || h.misses() })
	}
	p.kept, p.work = p.work, p.kept
}

// bucket sets work to the kept endpoints of which f is true, and returns how many.
func (p *llmdLatency) bucket(f func(headroom) bool) int {
	p.work = p.work[:0]
	for _, c := range p.kept {
		if f(p.room[c]) {
			p.work = append(p.work, c)
		}
	}
	return len(p.work)
}

// score scores the best bucket of the kept endpoints; the others keep zero. An
// endpoint without a prediction counts as one that meets its SLO exactly.
func (p *llmdLatency) score(v *View, out *Plan) {
	if p.bucket(func(h headroom) bool { return !h.misses() }) > 0 {
		p.scoreWork(out)
		return
	}
	p.work = p.work[:0]
	for _, c := range p.kept {
		if v.InFlight[c] == 0 {
			p.work = append(p.work, c)
		}
	}
	if len(p.work) == 0 &&
		p.bucket(func(h headroom) bool { return h.ttft >= 0 }) == 0 &&
		p.bucket(func(h headroom) bool { return h.tpot >= 0 }) == 0 {
		p.work = append(p.work[:0], p.kept...)
	}
	p.scoreWork(out)
}

// scoreWork scores the endpoints in work by how near to the SLO they are, on
// either side of it.
func (p *llmdLatency) scoreWork(out *Plan) {
	first := p.room[p.work[0]]
	loTTFT, loTPOT := math.Abs(first.ttft), math.Abs(first.tpot)
	hiTTFT, hiTPOT := loTTFT, loTPOT
	for _, c := range p.work {
		ttft, tpot := math.Abs(p.room[c].ttft), math.Abs(p.room[c].tpot)
		loTTFT, hiTTFT = min(loTTFT, ttft), max(hiTTFT, ttft)
		loTPOT, hiTPOT = min(loTPOT, tpot), max(hiTPOT, tpot)
	}
	// They count in milliseconds.
	spanTTFT, spanTPOT := (hiTTFT-loTTFT)*1000, (hiTPOT-loTPOT)*1000
	alpha, beta := llmdTTFTWeight, llmdTPOTWeight
	switch {
	case spanTTFT <= llmdSmallestSpan && spanTPOT > llmdSmallestSpan:
		alpha, beta = 0, 1
	case spanTPOT <= llmdSmallestSpan && spanTTFT > llmdSmallestSpan:
		alpha, beta = 1, 0
	}
	for _, c := range p.work {
		ttft, tpot := 0.5, 0.5
		if spanTTFT > llmdSmallestSpan {
			ttft = (math.Abs(p.room[c].ttft) - loTTFT) * 1000 / spanTTFT
		}
		if spanTPOT > llmdSmallestSpan {
			tpot = (math.Abs(p.room[c].tpot) - loTPOT) * 1000 / spanTPOT
		}
		out.Score[c] = (math.Floor((1-(alpha*ttft+beta*tpot))*llmdSteps) + 1) / llmdSteps
	}
}

// composite scores without predictions.
func (p *llmdLatency) composite(total int, out *Plan) {
	most := 0
	for _, c := range p.kept {
		most = max(most, p.gauges.last[c].Waiting)
	}
	for _, c := range p.kept {
		g := p.gauges.last[c]
		queue, prefix := 1.0, 0.0
		if most > 0 {
			queue = float64(most-g.Waiting) / float64(most)
		}
		if total > 0 {
			prefix = float64(p.count[c]) / float64(total)
		}
		out.Score[c] = math.Round(llmdSteps*(1-min(max(g.KVUsage, 0), 1)+queue+prefix)/3) / llmdSteps
	}
}

// draw chooses a kept endpoint with a probability proportional to its score.
func (p *llmdLatency) draw(r *stat.Rand, out *Plan) {
	sum := 0.0
	for _, c := range p.kept {
		sum += out.Score[c]
	}
	out.Chosen = p.kept[r.IntN(len(p.kept))]
	at := r.Float64() * sum
	for _, c := range p.kept {
		if at -= out.Score[c]; at < 0 {
			out.Chosen = c
			return
		}
	}
}
