package stat

import (
	"math"
	"reflect"
	"testing"
)

func TestHistSurvivesItsEncodingExactly(t *testing.T) {
	r := NewRand(1, "hist")
	for _, n := range []int{0, 1, 10_000} {
		var h, back Hist
		for range n {
			h.Observe(int64(r.LogNormal(1e8, 2)))
		}
		if n > 1 {
			h.Observe(0)
			h.Observe(math.MaxInt64)
		}
		raw, err := h.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if err := back.UnmarshalBinary(raw); err != nil || !reflect.DeepEqual(h, back) {
			t.Errorf("%d observations came back as others: %v", n, err)
		}
	}
}

func TestHistRefusesWhatIsNone(t *testing.T) {
	var h Hist
	for v := range int64(100) {
		h.Observe(v * v)
	}
	raw, err := h.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for cut := range raw {
		if err := new(Hist).UnmarshalBinary(raw[:cut]); err == nil {
			t.Errorf("%d of %d bytes were taken", cut, len(raw))
		}
	}
	if err := new(Hist).UnmarshalBinary([]byte{0, 0}); err == nil {
		t.Error("bytes after an empty histogram were taken")
	}
}

func FuzzHistUnmarshal(f *testing.F) {
	var h Hist
	h.Observe(7)
	h.Observe(7_000_000)
	raw, err := h.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var h Hist
		if h.UnmarshalBinary(raw) == nil && h.Count() > 0 && h.Quantile(1) != float64(h.Max()) {
			t.Errorf("taken, but the maximum is %v and not %v", h.Quantile(1), h.Max())
		}
	})
}
