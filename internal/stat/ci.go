package stat

import "math"

// t95 are the 97.5 % points of Student's t distribution by degrees of freedom
// from 1; beyond the table the normal value is close enough.
var t95 = [...]float64{12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086}

// MeanCI returns the mean of xs and the half-width of its 95 % confidence
// interval, by Student's t. With one value the half-width is NaN; without any,
// both are.
func MeanCI(xs []float64) (mean, half float64) {
	n := float64(len(xs))
	for _, x := range xs {
		mean += x / n
	}
	if len(xs) < 2 {
		if len(xs) == 0 {
			mean = math.NaN()
		}
		return mean, math.NaN()
	}
	ss := 0.0
	for _, x := range xs {
		ss += (x - mean) * (x - mean)
	}
	t := 1.96
	if df := len(xs) - 1; df <= len(t95) {
		t = t95[df-1]
	}
	return mean, t * math.Sqrt(ss/(n-1)/n)
}
