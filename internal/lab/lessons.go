package lab

import (
	"errors"
	"math"
	"slices"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
)

// meter follows what one recorded endpoint was doing. All lengths are those that
// were measured, which no gateway knew at the time.
type meter struct {
	budget  float64
	shadow  float64
	now     fleet.Time
	waiting int // for their first token
	crowd   int // requests that came or left while another waited
	totals
	decoding, context float64
	lessons           []perf.Observation
}

// totals are sums over the time so far.
type totals struct{ seqs, kv, prompt, pairs float64 }

// flight is one attempt as the meter sees it.
type flight struct {
	open, decoding bool
	sent, first    fleet.Time
	alone          bool // nobody else waited when it was sent
	crowd          int
	at             totals
}

func (m *meter) pass(now fleet.Time) {
	dt := now.Sub(m.now).Seconds()
	m.now = now
	m.seqs += m.decoding * dt
	m.kv += m.context * dt
}

// room is how many prompt tokens a step may compute.
func (m *meter) room() float64 { return max(m.budget-m.decoding, 1) }

// lit is how many of a prompt's tokens add to the time of its steps: some are
// computed while the weights are read.
func (m *meter) lit(prompt float64) float64 {
	steps := math.Ceil(prompt / m.room())
	return max(prompt-steps*max(m.shadow-m.decoding, 0), 0)
}

func (m *meter) sent(f *flight) {
	*f = flight{open: true, sent: m.now, alone: m.waiting == 0}
	m.crowd++
	m.waiting++
	f.crowd = m.crowd
}

// first takes the lesson of a prompt that was computed alone: what waits behind
// others tells little that they do not tell.
func (m *meter) first(f *flight, q *recorded) {
	if !f.open || f.decoding {
		return
	}
	m.waiting--
	cached := max(q.cached, 0)
	uncached := max(q.prompt-cached, 1)
	lit, pairs := m.lit(float64(uncached)), perf.Pairs(cached, uncached)
	span := m.now.Sub(f.sent).Seconds()
	if f.alone && f.crowd == m.crowd && span > 0 {
		steps := math.Ceil(float64(uncached) / m.room())
		all := steps
		if m.decoding > 0 {
			all += 0.5 // on average half a step was under way when it came
		}
		m.lessons = append(m.lessons, perf.Observation{
			Work:  perf.Work{Seqs: m.decoding, KV: m.context, Prompt: lit / all, Pairs: pairs / all},
			Mixed: steps / all, Requests: 1 / all, Steps: all, Seconds: span / all,
		})
	}
	m.prompt += lit
	m.pairs += pairs
	f.decoding, f.first, f.at = true, m.now, m.totals
	m.decoding++
	m.context += float64(q.prompt) + float64(q.output)/2
}

// done takes the lesson of the steps between an answer's first token and its end.
func (m *meter) done(f *flight, q *recorded) {
	if f.decoding && q.output >= leastOutput {
		span, steps := m.now.Sub(f.first).Seconds(), float64(q.output-1)
		if span > 0 {
			m.lessons = append(m.lessons, perf.Observation{
				Work: perf.Work{
					Seqs: (m.seqs - f.at.seqs) / span, KV: (m.kv - f.at.kv) / span,
					Prompt: (m.prompt - f.at.prompt) / steps, Pairs: (m.pairs - f.at.pairs) / steps,
				},
				Steps: steps, Seconds: span / steps,
			})
		}
	}
	m.drop(f, q)
}

func (m *meter) drop(f *flight, q *recorded) {
	switch {
	case !f.open:
	case f.decoding:
		m.decoding--
		m.context -= float64(q.prompt) + float64(q.output)/2
	default:
		m.waiting--
		m.crowd++
	}
	*f = flight{}
}

// leastOutput is the length in tokens from which an answer tells of its steps.
const leastOutput = 8

// lessons returns what the recorded answers tell of each endpoint's steps.
func (rec *Recording) lessons() [][]perf.Observation {
	meters := make([]meter, len(rec.endpoints))
	for i := range meters {
		e := &rec.endpoints[i]
		meters[i] = meter{budget: float64(e.limits.BudgetTokens), shadow: e.step.Shadow}
		if meters[i].budget == 0 {
			meters[i].budget = float64(perf.DefaultBudget)
		}
	}
	flights, where := make([]flight, len(rec.requests)), make([]int, len(rec.requests))
	for _, k := range rec.marks {
		q, f := &rec.requests[k.req], &flights[k.req]
		if f.open {
			meters[where[k.req]].pass(k.at)
		}
		switch k.kind {
		case fleet.PhaseSent:
			if f.open { // an attempt that was given up
				meters[where[k.req]].drop(f, q)
			}
			where[k.req] = k.endpoint
			meters[k.endpoint].pass(k.at)
			meters[k.endpoint].sent(f)
		case fleet.PhaseFirstToken:
			meters[where[k.req]].first(f, q)
		case fleet.PhaseDone:
			meters[where[k.req]].done(f, q)
		case fleet.PhaseFailed:
			meters[where[k.req]].drop(f, q)
		}
	}
	out := make([][]perf.Observation, len(meters))
	for i := range meters {
		out[i] = meters[i].lessons
	}
	return out
}

// leastLessons is how many lessons a variant's step time is fitted to.
const leastLessons = 20

var errFewLessons = errors.New("too few whole answers to tell how fast its engines are")

// fitStep fits a step time to the lessons of a variant's endpoints, and how much
// slower each endpoint is beside it. What was believed stands where the lessons
// say nothing; errFewLessons comes with it, if it is known, when there are hardly any.
func fitStep(believed perf.Step, members []int, lessons [][]perf.Observation) (perf.Step, []float64, error) {
	var all []perf.Observation
	for _, i := range members {
		all = append(all, lessons[i]...)
	}
	switch {
	case len(all) >= leastLessons:
	case believed.Known():
		return believed, nil, errFewLessons
	default:
		return perf.Step{}, nil, errFewLessons
	}
	prior := perf.Belief{Step: believed}
	for j := range prior.Spread {
		prior.Spread[j] = 1
	}
	fitted, err := perf.Fit(prior, believed.Touch, all)
	if err != nil {
		return perf.Step{}, nil, err
	}
	step := fitted.Step
	var factors []float64
	for _, i := range members {
		var ratios []float64
		for _, o := range lessons[i] {
			row, theta, predicted := step.Row(o), step.Vector(), 0.0
			for j := range row {
				predicted += row[j] * theta[j]
			}
			if predicted > 0 {
				ratios = append(ratios, o.Seconds/predicted)
			}
		}
		factor := 1.0
		if len(ratios) >= leastLessons {
			slices.Sort(ratios)
			factor = ratios[len(ratios)/2]
		}
		factors = append(factors, factor)
	}
	return step, factors, nil
}
