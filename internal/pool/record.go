package pool

import (
	"cmp"
	"math"
	"slices"

	"penstock.dev/penstock/internal/fleet"
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
		Queued: b.now.Sub(r.arrived), Chosen: b.view.ID[b.plan.Chosen], Candidates: d.Candidates[:0],
	}
	if b.shadow.plan.Chosen >= 0 && b.deps.Shadow != nil {
		d.Shadow = b.view.ID[b.shadow.plan.Chosen]
	}
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
	for i := range b.endpoints {
		if b.endpoints[i].present {
			b.recordCandidate(d, i, r, keep)
		}
	}
	if len(d.Candidates) > 1 && d.Candidates[1].Verdict == fleet.Eligible && !math.IsNaN(d.Candidates[1].Score) {
		d.RunnerUp = d.Candidates[1].Endpoint
		d.Margin = d.Candidates[0].Score - d.Candidates[1].Score
	}
	return d
}

// recordCandidate inserts slot i into the record's list, which stays sorted and
// at most keep long.
func (b *Brain) recordCandidate(d *fleet.Decision, i int, r *request, keep int) {
	if len(d.Candidates) == keep && i != b.plan.Chosen {
		if last := &d.Candidates[keep-1]; b.verdict[i] != fleet.Eligible || b.plan.Score[i] <= last.Score {
			return // most of a large pool
		}
	}
	c := fleet.Candidate{
		Endpoint: b.view.ID[i], Verdict: b.verdict[i], Matched: b.view.Matched[i], Backlog: b.view.Backlog[i],
		InFlight: b.view.InFlight[i], Score: math.NaN(), SampleAge: b.view.SampleAge[i], Adapter: b.view.Adapter[i],
	}
	if c.Verdict == fleet.Eligible {
		c.Score = b.plan.Score[i]
	}
	at, _ := slices.BinarySearchFunc(d.Candidates, c, func(x, y fleet.Candidate) int { return better(d.Chosen, x, y) })
	if at >= keep {
		return
	}
	c.TTFT = b.view.Step[i].TTFT(b.view.Load[i], c.Matched, r.Prompt-c.Matched)
	c.TPOT = b.view.Step[i].TPOT(b.view.Load[i], r.Prompt, b.query.Output)
	if len(d.Candidates) == keep {
		d.Candidates = d.Candidates[:keep-1]
	}
	d.Candidates = slices.Insert(d.Candidates, at, c)
}

// The ranks of candidates in a record.
const (
	chosenOne = iota
	scored
	unseen // eligible, but the policy did not look at it
	ruledOut
)

// better orders candidates for the record: by rank, the scored ones by falling
// score and the others by id.
func better(chosen fleet.EndpointID, x, y fleet.Candidate) int {
	rank := func(c fleet.Candidate) int {
		switch {
		case c.Endpoint == chosen:
			return chosenOne
		case c.Verdict == fleet.Eligible && !math.IsNaN(c.Score):
			return scored
		case c.Verdict == fleet.Eligible:
			return unseen
		}
		return ruledOut
	}
	if o := cmp.Compare(rank(x), rank(y)); o != 0 {
		return o
	}
	if o := cmp.Compare(y.Score, x.Score); o != 0 && rank(x) == scored {
		return o
	}
	return cmp.Compare(x.Endpoint, y.Endpoint)
}
