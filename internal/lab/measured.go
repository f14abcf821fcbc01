package lab

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/stat"
)

// measured is the physics of a replica whose step times are what its answers
// showed, where no data sheet is known.
type measured struct {
	step          perf.Step
	factor, noise float64
	seed          uint64
}

// StepTime implements enginesim.Physics.
func (m *measured) StepTime(b enginesim.Batch) time.Duration {
	decodes, prompt := float64(b.Decodes), float64(b.Prompt)
	prompt = max(prompt-max(m.step.Shadow-decodes, 0), 0) // some are computed while the weights are read
	t := m.factor * m.step.Time(perf.Work{Seqs: decodes, KV: float64(b.Context), Prompt: prompt, Pairs: b.Attention})
	if m.noise > 0 {
		// The mean of the log-normal stays 1.
		t *= math.Exp(m.noise*normal(m.seed, b.Step) - m.noise*m.noise/2)
	}
	return max(1, time.Duration(t*1e9))
}

// Typical is it without noise.
func (m *measured) Typical() enginesim.Physics {
	quiet := *m
	quiet.noise = 0
	return &quiet
}

// Floor implements enginesim.Floored.
func (m *measured) Floor(float64, fleet.Tokens) enginesim.Floor {
	f := enginesim.Floor{Base: m.step.Base, Decode: m.step.PerSeq, KV: m.step.PerKV, Again: 1, Prompt: m.step.PerPrompt, Pair: m.step.PerPair}
	return f.Times(m.factor)
}

// normal is the i-th draw of a standard normal stream (Box and Muller, 1958): a
// step asked about twice takes as long both times.
func normal(seed, i uint64) float64 {
	h := stat.Mix64(seed ^ stat.Mix64(i))
	const unit = 1.0 / (1 << 53)
	u, v := (float64(h>>11)+0.5)*unit, float64(stat.Mix64(h)>>11)*unit
	return math.Sqrt(-2*math.Log(u)) * math.Cos(2*math.Pi*v)
}
