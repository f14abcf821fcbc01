package perf

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Observation is what was measured over a stretch of steps: the mean work of a
// step and the mean seconds it took.
type Observation struct {
	Work     Work    // mean per step
	Mixed    float64 // share of the steps that computed prompt tokens beside decoding, 0 to 1
	Apart    float64 // steps that only computed prompt tokens, per step that decoded; Seconds includes them
	Dark     float64 // mean prompt tokens per step beyond Work's that take no time of their own: in the shadow of the weights
	Requests float64 // mean number of requests per step whose own overhead (PerRequest) is in Seconds
	Steps    float64 // steps that the means are over; 0 counts as many
	Seconds  float64 // mean duration of a step
	Weight   float64 // trust relative to others; 0 counts as 1
}

// Row returns the regressors of an observation: its predicted duration is their
// inner product with the step's Vector. Steps with and without prompt tokens
// touch experts differently, so kinds of steps are averaged rather than tokens.
func (s Step) Row(o Observation) Vector {
	v := Vector{1 + o.Apart, o.Work.Seqs, o.Work.KV, o.Work.Prompt, o.Work.Pairs, 0, o.Requests}
	if s.Touch > 0 {
		v[5] = s.touched(o.Work.Seqs)
		if both := o.Mixed + o.Apart; both > 0 {
			prompt := (o.Work.Prompt + o.Dark) / both
			v[5] += o.Mixed*(s.touched(o.Work.Seqs+prompt)-v[5]) + o.Apart*s.touched(prompt)
		}
	}
	return v
}

// Belief is a step with how sure it is.
type Belief struct {
	Step Step
	// Spread holds the standard deviations of the parameters, each in units of the
	// parameter; 0 says that it is certain.
	Spread Vector
}

// Fitted is the outcome of a fit.
type Fitted struct {
	Step   Step
	Sigma  Vector // standard deviation of each parameter, in its own unit
	Lo, Hi Vector // 95 % confidence interval of each parameter, in its own unit; Lo is at least 0
	// Kept marks the parameters that the observations cannot tell: each stands as
	// the prior has it, at 0 without a prior.
	Kept [Params]bool
	// Error is the weighted mean of the fit's relative errors, 0.03 for 3 %.
	Error float64
}

// Untold returns the names of the parameters that were kept.
func (f Fitted) Untold() []string {
	var names []string
	for i, name := range ParamNames() {
		if f.Kept[i] {
			names = append(names, name)
		}
	}
	return names
}

// What a fit trusts.
const (
	formError  = 0.03  // relative error of the form itself, from docs/decisions/0010
	stepNoise  = 0.15  // relative spread of one step's duration
	huber      = 1.345 // residuals, in spreads, beyond which weight falls: 95 % efficient for normal errors
	rounds     = 12    // of reweighting
	informed   = 0.95  // posterior over prior spread above which nothing was learnt
	collinear  = 1e-3  // share of a column's square that must be its own, without a prior
	normal95   = 1.96  // standard deviations on either side
	spreadOfMD = 1.483 // standard deviations in a median absolute deviation
)

// ErrNothingToFit says that no observation has a positive duration.
var ErrNothingToFit = errors.New("nothing to fit: no observation with a positive duration")

// Fit returns the step that explains the observations and the prior best: least
// squares of relative errors (weights 1/T²) with parameters >= 0, a ridge towards
// the prior as wide as its spreads, and Huber's weights against outliers.
// Parameters that the observations do not tell stay at the prior. The prior's
// zero parameters stay 0. Without a prior (zero Belief.Step) parameters are fitted
// freely; touch is then the share of experts a token touches, else the prior's.
func Fit(prior Belief, touch float64, obs []Observation) (Fitted, error) {
	p, err := newProblem(prior, touch, obs)
	if err != nil {
		return Fitted{}, err
	}
	var kept [Params]bool
	for {
		x := p.robust()
		cov := p.posterior()
		j := p.untold(&cov)
		if j < 0 {
			return p.report(x, &cov, kept), nil
		}
		kept[j] = true
		p.free[j] = false
	}
}

// problem is a fit in units in which columns are alike: of the prior's
// parameters, or of the columns' lengths without one.
type problem struct {
	rows   []Vector // relative regressors: scale · row / seconds
	weight []float64
	huber  []float64
	scale  Vector
	free   [Params]bool
	held   Vector // in units of scale, of parameters that are not free
	spread Vector // its standard deviations in units of scale
	step   Step
	known  bool
	info   Matrix // of the rows and the ridge, as last solved
	data   Matrix // of the rows alone
}

func newProblem(prior Belief, touch float64, obs []Observation) (*problem, error) {
	p := &problem{step: prior.Step, known: prior.Step.Known()}
	if !p.known {
		p.step = Step{Touch: touch}
	}
	var length Vector
	for i, o := range obs {
		if math.IsNaN(o.Seconds) || math.IsInf(o.Seconds, 0) || o.Weight < 0 {
			return nil, fmt.Errorf("observation %d: %g s with weight %g", i, o.Seconds, o.Weight)
		}
		if o.Seconds <= 0 {
			continue
		}
		row := p.step.Row(o)
		for j := range row {
			if row[j] /= o.Seconds; math.IsNaN(row[j]) || math.IsInf(row[j], 0) || row[j] < 0 {
				return nil, fmt.Errorf("observation %d: %s has %g to do", i, ParamNames()[j], row[j]*o.Seconds)
			}
			length[j] += row[j] * row[j]
		}
		w := 1.0
		if o.Weight > 0 {
			w = o.Weight
		}
		if o.Steps > 0 {
			w /= 1 + stepNoise*stepNoise/(formError*formError*o.Steps)
		}
		p.rows, p.weight, p.huber = append(p.rows, row), append(p.weight, w), append(p.huber, 1)
	}
	if len(p.rows) == 0 {
		return nil, ErrNothingToFit
	}
	p.setUnits(prior, &length)
	return p, nil
}

// setUnits chooses the scale of the columns and lays the ridge.
func (p *problem) setUnits(prior Belief, length *Vector) {
	theta := p.step.Vector()
	for j := range Params {
		switch {
		case p.known:
			p.scale[j] = theta[j]
			p.free[j] = theta[j] > 0 && prior.Spread[j] > 0
		case length[j] > 0:
			p.scale[j] = math.Sqrt(float64(len(p.rows)) / length[j])
			p.free[j] = true
		}
		if p.known && theta[j] > 0 {
			p.held[j] = 1
		}
	}
	for i := range p.rows {
		for j := range Params {
			p.rows[i][j] *= p.scale[j]
		}
	}
	p.spread = prior.Spread
}

// robust solves by reweighting until Huber's weights settle.
func (p *problem) robust() Vector {
	for i := range p.huber {
		p.huber[i] = 1
	}
	x := p.solve()
	for range rounds {
		spread := p.residual(x)
		moved := 0.0
		for i, row := range p.rows {
			w := 1.0
			if r := math.Abs(1 - dot(row, x)); r > huber*spread {
				w = huber * spread / r
			}
			moved = max(moved, math.Abs(w-p.huber[i]))
			p.huber[i] = w
		}
		if moved < 1e-3 {
			break
		}
		x = p.solve()
	}
	return x
}

// residual estimates the standard deviation of good residuals, never below what
// the form can do.
func (p *problem) residual(x Vector) float64 {
	abs := make([]float64, len(p.rows))
	for i, row := range p.rows {
		abs[i] = math.Abs(1 - dot(row, x))
	}
	slices.Sort(abs)
	return max(formError, spreadOfMD*abs[len(abs)/2])
}

// solve returns the parameters, in units of scale, for the present weights.
func (p *problem) solve() Vector {
	p.data = Matrix{}
	var b Vector
	for i, row := range p.rows {
		w := p.weight[i] * p.huber[i] / (formError * formError)
		p.data.add(row, w)
		left := 1.0
		for j := range row {
			if !p.free[j] {
				left -= row[j] * p.held[j]
			}
		}
		for j := range row {
			b[j] += w * left * row[j]
		}
	}
	p.info = p.data
	for j := range Params {
		if p.known && p.free[j] {
			ridge := 1 / (p.spread[j] * p.spread[j])
			p.info[j][j] += ridge
			b[j] += ridge // the prior is 1 in units of scale
		}
	}
	x := p.info.nonNegative(b, p.free)
	for j := range x {
		if !p.free[j] {
			x[j] = p.held[j]
		}
	}
	return x
}

// posterior returns the covariance of the parameters in units of scale, as the
// spread of the form has it.
func (p *problem) posterior() Matrix { return p.info.inverse(p.free) }

// untold returns the parameter that the observations tell least of, or -1 when
// they tell of all that are free: with a prior those count whose spread they
// hardly narrow, without one those whose column the others nearly span.
func (p *problem) untold(cov *Matrix) int {
	worst, most := -1, 1.0
	for j := range Params {
		if !p.free[j] {
			continue
		}
		var blur float64 // beyond 1 it is too much
		switch {
		case p.known:
			blur = cov[j][j] / (informed * informed * p.spread[j] * p.spread[j])
		case cov[j][j] <= 0:
			blur = math.Inf(1)
		default:
			// Share of the column's square that is its own, inverted.
			blur = cov[j][j] * p.data[j][j] * collinear
		}
		if blur > most {
			worst, most = j, blur
		}
	}
	return worst
}

// report puts the result into the parameters' own units.
func (p *problem) report(x Vector, cov *Matrix, kept [Params]bool) Fitted {
	f := Fitted{Kept: kept}
	var theta Vector
	var sum, all float64
	for i, row := range p.rows {
		sum += p.weight[i] * math.Abs(1-dot(row, x))
		all += p.weight[i]
	}
	f.Error = sum / all
	wide := p.residual(x) / formError
	for j := range Params {
		theta[j] = x[j] * p.scale[j]
		variance := cov[j][j] * wide * wide
		if kept[j] || p.known && !p.free[j] {
			variance = p.spread[j] * p.spread[j]
		} else if p.known {
			variance = min(variance, p.spread[j]*p.spread[j])
		}
		f.Sigma[j] = math.Sqrt(max(variance, 0)) * p.scale[j]
		f.Lo[j], f.Hi[j] = max(theta[j]-normal95*f.Sigma[j], 0), theta[j]+normal95*f.Sigma[j]
	}
	f.Step = p.step.With(theta)
	return f
}
