package perf

import "math"

// Params is the number of a step's parameters that are seconds, all but Touch.
const Params = 7

// Vector holds one value per parameter, in the order of Step's fields.
type Vector [Params]float64

// Matrix is a square matrix over the parameters.
type Matrix [Params]Vector

// ParamNames returns the names of the parameters in the order of a Vector.
func ParamNames() [Params]string {
	return [Params]string{"base", "perSeq", "perKV", "perPrompt", "perPair", "experts", "perRequest"}
}

// Vector returns the parameters of s that are seconds.
func (s Step) Vector() Vector {
	return Vector{s.Base, s.PerSeq, s.PerKV, s.PerPrompt, s.PerPair, s.Experts, s.PerRequest}
}

// With returns s with the parameters of v.
func (s Step) With(v Vector) Step {
	return Step{Base: v[0], PerSeq: v[1], PerKV: v[2], PerPrompt: v[3], PerPair: v[4], Experts: v[5], PerRequest: v[6], Touch: s.Touch, Shadow: s.Shadow}
}

// dot is the inner product.
func dot(a, b Vector) float64 {
	var sum float64
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}

// add adds scale times the outer product of v to m.
func (m *Matrix) add(v Vector, scale float64) {
	for i := range v {
		for j := range v {
			m[i][j] += scale * v[i] * v[j]
		}
	}
}

// tiny is the pivot, as a share of the diagonal, below which a column is taken
// for a combination of those before it.
const tiny = 1e-12

// solve returns x with m x = b over the parameters in free, and 0 elsewhere. m is
// symmetric and not negative; a column that the others already span gets 0.
func (m *Matrix) solve(b Vector, free [Params]bool) Vector {
	var l Matrix
	var ok [Params]bool
	for i := range Params {
		if !free[i] {
			continue
		}
		for j := range i + 1 {
			if j < i && !ok[j] {
				continue
			}
			sum := m[i][j]
			for k := range j {
				sum -= l[i][k] * l[j][k]
			}
			if j < i {
				l[i][j] = sum / l[j][j]
			} else if ok[i] = sum > tiny*m[i][i]; ok[i] {
				l[i][i] = math.Sqrt(sum)
			} else {
				l[i] = Vector{}
			}
		}
	}
	var y, x Vector
	for i := range Params {
		if ok[i] {
			y[i] = (b[i] - dot(l[i], y)) / l[i][i]
		}
	}
	for i := Params - 1; i >= 0; i-- {
		if !ok[i] {
			continue
		}
		sum := y[i]
		for k := i + 1; k < Params; k++ {
			sum -= l[k][i] * x[k]
		}
		x[i] = sum / l[i][i]
	}
	return x
}

// inverse returns the inverse of m over the parameters in free, 0 elsewhere.
func (m *Matrix) inverse(free [Params]bool) Matrix {
	var out Matrix
	for j := range Params {
		if !free[j] {
			continue
		}
		var unit Vector
		unit[j] = 1
		x := m.solve(unit, free)
		for i := range x {
			out[i][j] = x[i]
		}
	}
	return out
}

// nonNegative returns the x >= 0, with 0 outside free, that makes
// x'mx/2 - b'x least: the active-set method of Lawson and Hanson on the normal
// equations. Seven parameters need no more than a dozen rounds.
func (m *Matrix) nonNegative(b Vector, free [Params]bool) Vector {
	var x Vector
	var in [Params]bool
	for range 8 * Params {
		best, gain := -1, 0.0
		for j := range Params {
			if !free[j] || in[j] || m[j][j] <= 0 {
				continue
			}
			// The gradient in units in which all columns are equally long.
			if g := (b[j] - dot(m[j], x)) / math.Sqrt(m[j][j]); g > gain && g > 1e-9*math.Abs(b[j])/math.Sqrt(m[j][j]) {
				best, gain = j, g
			}
		}
		if best < 0 {
			return x
		}
		in[best] = true
		x = m.retreat(b, x, &in)
	}
	return x
}

// retreat moves x towards the solution over in as far as nothing turns
// negative, drops from in what has reached 0, and repeats until it is there.
func (m *Matrix) retreat(b, x Vector, in *[Params]bool) Vector {
	for range Params + 1 {
		want := m.solve(b, *in)
		part, first := 1.0, -1
		for j := range Params {
			if !in[j] || want[j] > 0 {
				continue
			}
			p := 0.0
			if x[j] > want[j] {
				p = x[j] / (x[j] - want[j])
			}
			if p < part {
				part, first = p, j
			}
		}
		for j := range Params {
			if in[j] {
				x[j] += part * (want[j] - x[j])
			}
		}
		if first < 0 {
			return x
		}
		x[first], in[first] = 0, false
	}
	return x
}
