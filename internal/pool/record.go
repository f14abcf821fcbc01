package pool

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/route"
)

// writeRecord returns the record of the decision just made for r, valid until
// the next step.
func (b *Brain) writeRecord(r *request) *fleet.Decision {
	if b.used == len(b.records) {
		b.records = append(b.records, &fleet.Decision{})
	}
	d := b.records[b.used]
	b.used++
	*d = fleet.Decision{
		Req: r.Req, Attempt: r.attempts, At: b.now, Policy: b.config.Policy.Name, Terms: r.Terms, Prompt: r.Prompt,
		Queued: b.now.Sub(r.arrived), Chosen: b.view.ID[b.plan.Chosen], Candidates: d.Candidates[:0], Encoders: d.Encoders[:0],
	}
	if b.shadow.plan.Chosen >= 0 && b.deps.Shadow != nil {
		d.Shadow = b.view.ID[b.shadow.plan.Chosen]
	}
	if b.plan.Prefill != route.NoSlot {
		d.Prefill = b.view.ID[b.plan.Prefill]
	}
	if s := b.plan.Source; s != route.NoSlot {
		d.Source, d.Pulled = b.view.ID[s], b.view.Cache[s].Ready-b.view.Matched[b.plan.Chosen]
	}
	d.Whole, d.Split, d.Pull = b.planCost(&b.plan.Whole), b.planCost(&b.plan.Split), b.planCost(&b.plan.Pull)
	d.Barred, d.BarredPair = b.countBarred()
	present := 0
	for i := range b.endpoints {
		if b.endpoints[i].present {
			present++
			d.Counts[b.verdict[i]]++
		}
	}
	keep := fleet.MaxCandidates
	if present > keep {
		keep = fleet.BestCandidates
	}
	for _, i := range b.rank(keep) {
		d.Candidates = append(d.Candidates, b.candidate(i, r))
	}
	if len(d.Candidates) > 1 && d.Candidates[1].Verdict == fleet.Eligible && !math.IsNaN(d.Candidates[1].Score) {
		d.RunnerUp = d.Candidates[1].Endpoint
		d.Margin = d.Candidates[0].Score - d.Candidates[1].Score
	}
	return d
}

// planCost is an option as the record has it.
func (b *Brain) planCost(o *route.Option) fleet.PlanCost {
	c := fleet.PlanCost{TTFT: seconds(o.TTFT), Move: seconds(o.Move), Cost: o.Cost}
	if o.Slot != route.NoSlot {
		c.Endpoint = b.view.ID[o.Slot]
	}
	if o.Prefill != route.NoSlot {
		c.Prefill = b.view.ID[o.Prefill]
	}
	if o.Source != route.NoSlot {
		c.Source = b.view.ID[o.Source]
	}
	return c
}

// rank returns the slots that the record shows, the best keep of those present.
func (b *Brain) rank(keep int) []int {
	order := b.order[:0]
	for i := range b.endpoints {
		if !b.endpoints[i].present {
			continue
		}
		if len(order) == keep {
			if b.better(order[keep-1], i) {
				continue // most of a large pool
			}
			order = order[:keep-1]
		}
		at := len(order)
		for order = append(order, i); at > 0 && b.better(i, order[at-1]); at-- {
			order[at] = order[at-1]
		}
		order[at] = i
	}
	b.order = order
	return order
}

// candidate is what the record says of slot i.
func (b *Brain) candidate(i int, r *request) fleet.Candidate {
	c := fleet.Candidate{
		Endpoint: b.view.ID[i], Verdict: b.verdict[i], Matched: b.view.Matched[i], Cache: b.view.Cache[i], Backlog: b.view.Backlog[i],
		InFlight: b.view.InFlight[i], Score: math.NaN(), SampleAge: b.view.SampleAge[i], Adapter: b.view.Adapter[i],
	}
	if c.Verdict == fleet.Eligible {
		c.Score = b.plan.Score[i]
	}
	step, load := &b.view.Step[i], &b.view.Load[i]
	c.TTFT = seconds(step.FirstToken(load, c.Matched, r.Prompt-c.Matched))
	c.TPOT = seconds(step.PerToken(load, r.Prompt, float64(b.query.Output)))
	c.TTFTSpread, c.TPOTSpread = load.TTFTSpread, load.TPOTSpread
	return c
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// The ranks of candidates in a record.
const (
	chosenOne = iota
	scored
	unseen // eligible, but the policy did not look at it
	ruledOut
)

// better orders slots for the record: by rank, the scored ones by falling score
// and the others by id.
func (b *Brain) better(i, k int) bool {
	x, y := b.rankOf(i), b.rankOf(k)
	if x != y {
		return x < y
	}
	if x == scored && b.plan.Score[i] != b.plan.Score[k] {
		return b.plan.Score[i] > b.plan.Score[k]
	}
	return b.view.ID[i] < b.view.ID[k]
}

func (b *Brain) rankOf(i int) int {
	switch {
	case i == b.plan.Chosen:
		return chosenOne
	case b.verdict[i] == fleet.Eligible && !math.IsNaN(b.plan.Score[i]):
		return scored
	case b.verdict[i] == fleet.Eligible:
		return unseen
	}
	return ruledOut
}
