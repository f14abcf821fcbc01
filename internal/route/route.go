// Package route decides where a request goes: from one view of the endpoints
// it scores the candidates and picks one. Policies are small types in one
// catalogue; adding one is a file with its type, its test and a line in
// catalogue.go.
package route

import (
	"fmt"
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/stat"
)

// View is the state of a pool as a policy sees it: arrays indexed by slot,
// owned by the caller and valid during one Pick. The ledger's figures are the
// gateway's own and current; gauges are as old as SampleAge says.
type View struct {
	ID       []fleet.EndpointID
	InFlight []int          // requests in flight: the ledger's, plus those of others seen in gauges
	Backlog  []fleet.Tokens // prompt tokens dispatched and not yet computed, by the ledger
	Active   []fleet.Tokens // tokens of context in use, by the ledger
	KVTokens []fleet.Tokens // KV capacity; 0 unknown
	Cached   []fleet.Tokens // prompt tokens of any request believed cached there
	Matched  []fleet.Tokens // those of this request
	Cache    []fleet.Cached // the same in full: where they are, what stands behind it, and how long they take to fetch

	Adapter []fleet.AdapterFit // what this request's adapter takes there; AdapterNone without one

	Gauges    []fleet.Gauges
	SampleAge []time.Duration // -1 when never scraped

	Step []perf.Step // believed step time; the zero Step where unknown
	Told []perf.Step // what was believed of it before anything was measured; the zero Step for nothing
	Load []perf.Load // what the request would meet there, by the ledger

	Connector []uint64     // slots of the same one can exchange KV; 0 cannot
	Wire      []fleet.Link // how fast KV leaves for another endpoint; zero where it cannot
	Asked     []float64    // s until what is asked of that link already has left
	Busy      []float64    // share of time in which that link was busy of late, 0..1
	// Barred are, by the slot that answers, the slots whose KV it cannot use though
	// their connectors are the same; the empty Slots almost everywhere.
	Barred []Slots
}

// Hands reports whether slot pre can hand KV over to slot dec.
func (v *View) Hands(pre, dec int) bool {
	return pre != dec && v.Connector[pre] != 0 && v.Connector[pre] == v.Connector[dec] && !(len(v.Barred) > 0 && v.Barred[dec].Has(pre))
}

// Slots is a set of slots; nil is the empty one.
type Slots []uint64

// bitsPerWord is how many slots a word of Slots holds.
const bitsPerWord = 64

// Has reports whether slot is in s.
func (s Slots) Has(slot int) bool {
	return slot/bitsPerWord < len(s) && s[slot/bitsPerWord]>>(slot%bitsPerWord)&1 != 0
}

// With returns s with slot in it, in the memory of s where there is room.
func (s Slots) With(slot int) Slots {
	for len(s) <= slot/bitsPerWord {
		s = append(s, 0)
	}
	s[slot/bitsPerWord] |= 1 << (slot % bitsPerWord)
	return s
}

// Query is what a policy may know of the request.
type Query struct {
	Now        fleet.Time
	Req        fleet.ReqID  // which it is; nothing to decide by
	Prompt     fleet.Tokens // prompt tokens, estimated
	MaxOut     fleet.Tokens // output limit; 0 unknown
	Output     fleet.Tokens // output tokens expected; at least 1
	SLO        fleet.SLO    // zero fields ask for nothing
	Chain      []kv.Key     // of the prompt, for policies that keep an index of their own; not kept
	KeyTokens  float64      // prompt tokens each key of Chain covers
	Candidates []int        // eligible slots, ascending; never empty
	// Prefills are the slots that can compute the prompt for another, ascending;
	// empty when requests are not split.
	Prefills []int
	// Sources are the slots from whose caches others can fetch, ascending; empty when
	// nothing is fetched.
	Sources []int
}

// Plan is the outcome of a Pick.
type Plan struct {
	Chosen int       // slot that answers
	Score  []float64 // by slot, higher is better; set for candidates, NaN where the policy did not look
	// Prefill is the slot that computes the prompt before, NoSlot when the chosen one
	// does so itself.
	Prefill int
	// Source is the slot from whose cache the chosen one fetches what it lacks of the
	// prompt, NoSlot when it computes that.
	Source int
	// Whole, Split and Pull are the best of their kinds, where the policy has compared
	// more than one.
	Whole, Split, Pull Option
}

// NoSlot is the number of no slot.
const NoSlot = -1

// Option is one way to serve a request, and what it was predicted to cost.
type Option struct {
	Slot, Prefill, Source int     // NoSlot where there is none
	TTFT                  float64 // s
	Cost                  float64 // s, of the request and of others; lower is better
	Move                  float64 // s, of TTFT, to move KV
}

// noOption is no way to serve a request.
var noOption = Option{Slot: NoSlot, Prefill: NoSlot, Source: NoSlot}

// Reset makes p a plan of nothing, before a Pick.
func (p *Plan) Reset() {
	p.Chosen, p.Prefill, p.Source = NoSlot, NoSlot, NoSlot
	p.Whole, p.Split, p.Pull = noOption, noOption, noOption
}

// Policy picks one of the candidates. It may keep state of its own, must draw
// randomness only from r, must not allocate in steady state, and must score
// every candidate it looked at so that the decision can be explained.
type Policy interface {
	Pick(v *View, q *Query, r *stat.Rand, p *Plan)
}

// Leaver is a policy with state by slot: it is told when what it knows of a slot
// is void, since its endpoint has left or is a new process.
type Leaver interface{ Leave(slot int) }

// Leaner is a policy that has some of the endpoints that can do both lean to one
// role. RoleBoth is of those that do not.
type Leaner interface{ Leans(slot int) fleet.Role }

// pickBest sets p.Chosen to the candidate with the highest score; ties go to
// one of them at random, so that several gateways with equal views do not herd.
// Candidates without a score are passed over; one must have one.
func pickBest(q *Query, r *stat.Rand, p *Plan) {
	best, ties := -1, 0
	for _, c := range q.Candidates {
		switch {
		case math.IsNaN(p.Score[c]):
		case best < 0 || p.Score[c] > p.Score[best]:
			best, ties = c, 1
		case p.Score[c] == p.Score[best]:
			ties++
			if r.IntN(ties) == 0 {
				best = c
			}
		}
	}
	p.Chosen = best
}

// Signals says how the figures of a view are to be trusted.
type Signals struct {
	// StaleAfter is the age at which gauges stop counting: older ones are
	// unknown. Stale gauges never stop dispatch.
	StaleAfter time.Duration `json:"staleAfter"`
}

// DefaultSignals trusts gauges for ten seconds, ten scrapes at the default
// interval.
func DefaultSignals() Signals { return Signals{StaleAfter: 10 * time.Second} }

// Validate returns what is wrong with s, field by field.
func (s Signals) Validate() []error {
	if s.StaleAfter <= 0 {
		return []error{fmt.Errorf("staleAfter: must be positive, is %v", s.StaleAfter)}
	}
	return nil
}
