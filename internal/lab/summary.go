package lab

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// Interval is a mean over seeds and the half-width of its 95 % confidence
// interval. The half-width is NaN with one seed, the mean too where nothing was
// there to be measured.
type Interval struct{ Mean, Half float64 }

// Known reports whether there is a mean.
func (v Interval) Known() bool { return !math.IsNaN(v.Mean) && !math.IsInf(v.Mean, 0) }

// MarshalJSON leaves out what is not known.
func (v Interval) MarshalJSON() ([]byte, error) {
	switch {
	case !v.Known():
		return []byte("null"), nil
	case math.IsNaN(v.Half):
		return json.Marshal(map[string]float64{"mean": v.Mean})
	}
	return json.Marshal(map[string]float64{"mean": v.Mean, "ci95": v.Half})
}

// Text prints the interval in another unit; a half-width that rounds to nothing
// is left out, and what is not known is a dash.
func (v Interval) Text(scale float64, format, unit string) string {
	if !v.Known() {
		return "-"
	}
	s := fmt.Sprintf(format, v.Mean*scale)
	zero := fmt.Sprintf(format, 0.0)
	if half := fmt.Sprintf(format, v.Half*scale); !math.IsNaN(v.Half) && half != zero {
		s += "±" + half
	}
	return s + unit
}

// Spread is how a time is distributed over the requests of a run, in seconds.
type Spread struct {
	Mean Interval `json:"mean"`
	P50  Interval `json:"p50"`
	P90  Interval `json:"p90"`
	P99  Interval `json:"p99"`
}

// Row is what came of one policy under one load, over all seeds.
type Row struct {
	Policy   string   `json:"policy"`
	Load     float64  `json:"load"`
	Requests int      `json:"requests"` // of one run
	Failed   Interval `json:"failed"`   // requests of one run
	Refused  Interval `json:"refused"`
	Retries  Interval `json:"retries"`

	Rate      Interval `json:"requests_per_s"`
	Output    Interval `json:"output_tokens_per_s"`
	GoodRate  Interval `json:"good_requests_per_s"` // within the targets; without targets all that are done
	GoodShare Interval `json:"good_share"`          // of all that arrived
	Bound     Interval `json:"good_share_bound"`    // that no routing can exceed; unknown without targets

	TTFT Spread `json:"ttft_s"`
	TPOT Spread `json:"tpot_s"`
	E2E  Spread `json:"e2e_s"`

	Cached    Interval `json:"cached_share"`   // of prompt tokens
	Ceiling   Interval `json:"cached_ceiling"` // of an endless cache shared by all, on the same requests
	Imbalance Interval `json:"imbalance"`      // requests of the busiest replica over the mean
	Preempted Interval `json:"preemptions"`

	TTFTError Interval `json:"ttft_error"` // median of |predicted/measured - 1|
	TPOTError Interval `json:"tpot_error"`

	Cost       float64  `json:"cost_per_hour"`            // US dollars; 0 unknown
	CostPerTok Interval `json:"cost_per_million_outputs"` // US dollars per million output tokens

	Shares   []float64 `json:"shares"` // of the requests, by replica
	recorded bool      // measured, not simulated
	ttft     stat.Hist // over all seeds, ns
	tpot     stat.Hist
}

// Setting is something that an experiment was run with, for people.
type Setting struct{ Name, Value string }

// Comparison is what came of an experiment.
type Comparison struct {
	Schema   string    `json:"schema"`
	Command  string    `json:"command"`
	Settings []Setting `json:"-"`
	Seeds    int       `json:"seeds"`
	Replicas int       `json:"replicas"`
	Targets  Targets   `json:"targets_s"`
	Rows     []Row     `json:"rows"` // by load, then policy
	Notes    []string  `json:"notes,omitempty"`

	fleet []Variant
}

// Targets are what makes a request good, in seconds; 0 is no target.
type Targets struct {
	TTFT float64 `json:"ttft"`
	TPOT float64 `json:"tpot"`
	E2E  float64 `json:"e2e"`
}

// schema names the form of a Comparison as JSON.
const schema = "penstock.dev/simulate/v2"

// Compare sums up results, which are in the order of their cells.
func (s *Scene) Compare(cells []Cell, results []*sim.Result) (*Comparison, error) {
	c := &Comparison{
		Schema: schema, fleet: s.Variants,
		Targets: Targets{s.Targets.TTFT.Seconds(), s.Targets.TPOT.Seconds(), s.Targets.E2E.Seconds()},
	}
	cost := 0.0
	for i := range s.Variants {
		v := &s.Variants[i]
		c.Replicas += v.Replicas
		cost += float64(v.Replicas) * v.CostPerHour()
	}
	type key struct {
		policy string
		load   float64
	}
	groups, order := map[key][]*sim.Result{}, []key{}
	ceilings := map[float64]map[uint64]float64{}
	bounds, err := s.bounds(cells, results)
	if err != nil {
		return nil, err
	}
	for i, x := range cells {
		k := key{x.Policy, x.Load}
		if groups[k] == nil {
			order = append(order, k)
		}
		groups[k] = append(groups[k], results[i])
		if ceilings[x.Load] == nil {
			ceilings[x.Load] = map[uint64]float64{}
		}
		if _, known := ceilings[x.Load][x.Seed]; !known {
			share, err := s.ceiling(x.Load, x.Seed)
			if err != nil {
				return nil, err
			}
			ceilings[x.Load][x.Seed] = share
		}
		c.Seeds = max(c.Seeds, len(groups[k]))
	}
	for _, k := range order {
		var shares, most []float64
		for _, x := range cells {
			if x.Policy == k.policy && x.Load == k.load {
				shares = append(shares, ceilings[x.Load][x.Seed])
				most = append(most, bounds[Cell{Load: x.Load, Seed: x.Seed}])
			}
		}
		row := newRow(groups[k], cost)
		row.Policy, row.Load, row.Ceiling, row.Bound = k.policy, k.load, mean(shares), mean(most)
		c.Rows = append(c.Rows, row)
	}
	return c, nil
}

// Insert puts a row before the others of its load, or before all if there are
// none.
func (c *Comparison) Insert(row Row) {
	row.Bound = Interval{math.NaN(), math.NaN()} // of another fleet than the one compared
	at := max(slices.IndexFunc(c.Rows, func(r Row) bool { return r.Load == row.Load }), 0)
	c.Rows = slices.Insert(c.Rows, at, row)
}

// ceiling is the share of prompt tokens that an endless cache would have held.
func (s *Scene) ceiling(load float64, seed uint64) (float64, error) {
	src, err := s.Load(load, seed)
	if err != nil {
		return 0, err
	}
	var u workload.Reuse
	for q := range workload.All(src) {
		u.Add(q.Prompt)
	}
	return u.TokenShare(), nil
}

func mean(xs []float64) Interval {
	m, h := stat.MeanCI(xs)
	return Interval{m, h}
}

// newRow sums up the results of one policy under one load.
func newRow(of []*sim.Result, cost float64) Row {
	over := func(f func(*sim.Result) float64) Interval {
		var xs []float64
		for _, r := range of {
			xs = append(xs, f(r))
		}
		return mean(xs)
	}
	const ns, millionths = 1e-9, 1e-6
	spread := func(h func(*sim.Result) *stat.Hist) Spread {
		at := func(q float64) Interval {
			return over(func(r *sim.Result) float64 { return h(r).Quantile(q) * ns })
		}
		return Spread{Mean: over(func(r *sim.Result) float64 { return h(r).Mean() * ns }), P50: at(0.5), P90: at(0.9), P99: at(0.99)}
	}
	perSecond := func(f func(*sim.Result) float64) Interval {
		return over(func(r *sim.Result) float64 { return f(r) / r.Span.Seconds() })
	}
	row := Row{
		Requests: of[0].Arrived, Cost: cost,
		Failed:    over(func(r *sim.Result) float64 { return float64(r.Failed) }),
		Refused:   over(func(r *sim.Result) float64 { return float64(r.Refused) }),
		Retries:   over(func(r *sim.Result) float64 { return float64(r.Retries) }),
		Rate:      perSecond(func(r *sim.Result) float64 { return float64(r.Done) }),
		Output:    perSecond(func(r *sim.Result) float64 { return float64(r.OutputTokens) }),
		GoodRate:  perSecond(func(r *sim.Result) float64 { return float64(r.Good) }),
		GoodShare: over(func(r *sim.Result) float64 { return float64(r.Good) / float64(r.Arrived) }),
		TTFT:      spread(func(r *sim.Result) *stat.Hist { return &r.TTFT }),
		TPOT:      spread(func(r *sim.Result) *stat.Hist { return &r.TPOT }),
		E2E:       spread(func(r *sim.Result) *stat.Hist { return &r.E2E }),
		Cached:    over((*sim.Result).CachedShare),
		Imbalance: over((*sim.Result).Imbalance),
		Preempted: over(func(r *sim.Result) float64 { return float64(r.Preemptions) }),
		TTFTError: over(func(r *sim.Result) float64 { return r.TTFTError.Quantile(0.5) * millionths }),
		TPOTError: over(func(r *sim.Result) float64 { return r.TPOTError.Quantile(0.5) * millionths }),
		CostPerTok: over(func(r *sim.Result) float64 {
			if cost == 0 {
				return math.NaN()
			}
			return cost * r.Span.Hours() / float64(r.OutputTokens) * 1e6
		}),
		Shares: make([]float64, len(of[0].PerReplica)),
	}
	sent := 0
	for _, r := range of {
		row.ttft.Merge(&r.TTFT)
		row.tpot.Merge(&r.TPOT)
		for i, n := range r.PerReplica {
			row.Shares[i] += float64(n)
			sent += n
		}
	}
	for i := range row.Shares {
		row.Shares[i] /= float64(max(sent, 1))
	}
	return row
}

// Describe lists what the scene's cells have in common, for people.
func (s *Scene) Describe() []Setting {
	var list []Setting
	add := func(name, format string, args ...any) {
		list = append(list, Setting{name, fmt.Sprintf(format, args...)})
	}
	for i := range s.Variants {
		v := &s.Variants[i]
		add("fleet", "%s", v.describe())
	}
	add("targets of a good request", "%s", s.targetsText())
	add("noise of step times", "%v (standard deviation of the logarithm)", s.Noise)
	add("spread of replicas' speeds", "up to ±%v of their variant's", s.Spread)
	add("gauges", "read every %v", s.Scrape)
	add("gateway to engine", "%v one way", s.Hop)
	if s.Gateways > 1 {
		add("gateways", "%d, each with a view of its own", s.Gateways)
	}
	if e := s.Events; e != nil {
		add("KV events", "%v late, %v batches to ask for again", e.Lag, e.Ring)
	}
	for i := range s.Faults {
		add("fault", "%s", faultText(&s.Faults[i]))
	}
	return list
}

// describe tells a variant in one line.
func (v *Variant) describe() string {
	l := v.limits()
	what := "step times as the journal shows them"
	if v.Measured == nil {
		n := v.Serving.Normal()
		what = fmt.Sprintf("%s in %s on %d x %s (tp %d, pp %d, dp %d, ep %d)", n.Shape.Name, n.Weights, n.Devices(), n.Accelerator.Name, n.TP, n.PP, n.DP, n.EP)
	}
	cost := ""
	if c := v.CostPerHour(); c > 0 {
		cost = fmt.Sprintf(", $%.2f per hour each", c)
	}
	return fmt.Sprintf("%d x %s: %s; %d tokens of KV, %d sequences, %d tokens per step%s", v.Replicas, v.Name, what, l.KVTokens, l.MaxSeqs, l.BudgetTokens, cost)
}

// targetsText tells the targets in one line.
func (s *Scene) targetsText() string {
	var list []string
	for _, t := range []struct {
		name string
		d    time.Duration
	}{{"TTFT", s.Targets.TTFT}, {"TPOT", s.Targets.TPOT}, {"E2E", s.Targets.E2E}} {
		if t.d > 0 {
			list = append(list, fmt.Sprintf("%s within %v", t.name, t.d))
		}
	}
	if len(list) == 0 {
		return "none: all that are done are good"
	}
	return strings.Join(list, ", ")
}
