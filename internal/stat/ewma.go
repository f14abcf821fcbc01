package stat

import "math"

// EWMA is an average that forgets: an observation's weight halves every
// HalfLife seconds. The zero value with a HalfLife set is ready to use.
type EWMA struct {
	HalfLife float64 // seconds; must be positive

	value, weight, last float64
}

// Observe adds x at time now (seconds). Observations out of order count as if
// made at the latest time seen.
func (e *EWMA) Observe(now, x float64) {
	e.decay(now)
	e.weight++
	e.value += (x - e.value) / e.weight
}

func (e *EWMA) decay(now float64) {
	if e.weight > 0 && now > e.last {
		e.weight *= math.Exp2(-(now - e.last) / e.HalfLife)
	}
	e.last = max(e.last, now)
}

// Value returns the average, or fallback when nothing has been observed.
func (e *EWMA) Value(fallback float64) float64 {
	if e.weight == 0 {
		return fallback
	}
	return e.value
}

// Rate counts events per second, forgetting with a half-life like EWMA.
type Rate struct {
	HalfLife float64 // seconds; must be positive

	mass, last float64
	started    bool
}

// Add counts n events at time now (seconds).
func (r *Rate) Add(now, n float64) {
	r.decay(now)
	r.mass += n
}

// PerSecond returns the rate at time now. An average over the first half-life
// underestimates; callers that must not be fooled check their own start time.
func (r *Rate) PerSecond(now float64) float64 {
	r.decay(now)
	return r.mass * math.Ln2 / r.HalfLife
}

func (r *Rate) decay(now float64) {
	if r.started && now > r.last {
		r.mass *= math.Exp2(-(now - r.last) / r.HalfLife)
	}
	r.last = max(r.last, now)
	r.started = true
}
