package stat

import (
	"math"
	"slices"
	"testing"
)

func TestHistQuantilesAreWithinOnePercent(t *testing.T) {
	r := NewRand(1, "hist")
	var h Hist
	var all []float64
	for range 20000 {
		v := int64(r.LogNormal(5e7, 2))
		h.Observe(v)
		all = append(all, float64(v))
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 0.999, 1} {
		want := all[max(int(math.Ceil(q*float64(len(all))))-1, 0)]
		if got := h.Quantile(q); math.Abs(got-want) > 0.01*want {
			t.Errorf("quantile %v = %v, want %v within 1 %%", q, got, want)
		}
	}
}

func TestHistSmallValuesAreExact(t *testing.T) {
	var h Hist
	for v := range int64(subCount) {
		h.Observe(v)
	}
	if got := h.Quantile(0.5); got != subCount/2-1 {
		t.Errorf("median of 0..%d = %v", subCount-1, got)
	}
	h.Observe(math.MaxInt64)
	if h.Quantile(1) != math.MaxInt64 {
		t.Errorf("largest value lost: %v", h.Quantile(1))
	}
}

func TestHistBucketsCoverEveryValueOnce(t *testing.T) {
	last := -1
	for _, v := range []int64{0, 1, 63, 64, 65, 127, 128, 129, 255, 256, 1 << 20, 1<<20 + 1<<13, 1<<62 + 1<<61, math.MaxInt64} {
		b := bucketOf(v)
		if b <= last && v > 64 && b != last {
			t.Errorf("bucket of %d is %d, not above %d", v, b, last)
		}
		if b < 0 || b >= histTotal {
			t.Fatalf("bucket of %d is %d, outside [0,%d)", v, b, histTotal)
		}
		if m := midOf(b); math.Abs(float64(m)-float64(v)) > 0.01*float64(v)+0.5 {
			t.Errorf("middle of %d's bucket is %d", v, m)
		}
		last = b
	}
}

func TestHistMergeEqualsObservingBoth(t *testing.T) {
	var a, b, both Hist
	for i := range int64(100) {
		a.Observe(i * 7)
		b.Observe(i * 1000)
		both.Observe(i * 7)
		both.Observe(i * 1000)
	}
	a.Merge(&b)
	for _, q := range []float64{0.1, 0.5, 0.9} {
		if a.Quantile(q) != both.Quantile(q) {
			t.Errorf("quantile %v differs after merge", q)
		}
	}
	if a.Count() != both.Count() || a.Mean() != both.Mean() {
		t.Error("count or mean differs after merge")
	}
}

func TestEWMAHalfLife(t *testing.T) {
	e := EWMA{HalfLife: 10}
	for range 1000 {
		e.Observe(0, 1)
	}
	// One half-life later a thousand zeros weigh twice the old ones.
	for range 1000 {
		e.Observe(10, 0)
	}
	if got := e.Value(-1); math.Abs(got-1.0/3) > 1e-3 {
		t.Errorf("value = %v, want 1/3", got)
	}
	if got := (&EWMA{HalfLife: 1}).Value(42); got != 42 {
		t.Errorf("empty value = %v, want the fallback", got)
	}
}

func TestRateConverges(t *testing.T) {
	r := Rate{HalfLife: 5}
	for i := range 1000 {
		r.Add(float64(i)*0.1, 1)
	}
	if got := r.PerSecond(100); math.Abs(got-10) > 0.2 {
		t.Errorf("rate = %v, want 10", got)
	}
}

func TestRandStreamsAreIndependentAndRepeatable(t *testing.T) {
	if NewRand(7, "a").Uint64() != NewRand(7, "a").Uint64() {
		t.Error("same seed and name differ")
	}
	if NewRand(7, "a").Uint64() == NewRand(7, "b").Uint64() || NewRand(7, "a").Uint64() == NewRand(8, "a").Uint64() {
		t.Error("different seed or name agree")
	}
}

func TestMeanCI(t *testing.T) {
	// By hand: mean 3, standard deviation sqrt(2.5), t of 4 degrees 2.776.
	mean, half := MeanCI([]float64{1, 2, 3, 4, 5})
	if math.Abs(mean-3) > 1e-12 || math.Abs(half-2.776*math.Sqrt(2.5/5)) > 1e-9 {
		t.Errorf("%v ± %v", mean, half)
	}
	if _, half := MeanCI([]float64{7}); !math.IsNaN(half) {
		t.Errorf("one value has an interval of %v", half)
	}
	if mean, _ := MeanCI(nil); !math.IsNaN(mean) {
		t.Errorf("the mean of nothing is %v", mean)
	}
}
