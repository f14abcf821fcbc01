package lab

import (
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/catalog"
)

// sizing is a question about gpt-oss-120b on H100.
func sizing(t *testing.T, devices int) *Sizing {
	t.Helper()
	m, err := catalog.FindModel("openai/gpt-oss-120b")
	if err != nil {
		t.Fatal(err)
	}
	a, err := catalog.FindAccelerator("H100")
	if err != nil {
		t.Fatal(err)
	}
	return &Sizing{
		Serving: catalog.Serving{Shape: m, Accelerator: a}, Devices: devices, Input: 4000, Output: 40,
		TTFT: time.Second, TPOT: 20 * time.Millisecond, Share: 0.9, NIC: 50e9, MaxSeqs: 256, Seeds: 1, Noise: 0.05, Within: 0.1,
	}
}

func TestLayoutsUseAllDevices(t *testing.T) {
	z := sizing(t, 4)
	seen := map[string]bool{}
	for _, l := range z.Layouts() {
		if n := l.Prefill.devices() + l.Decode.devices(); n != 4 {
			t.Errorf("%v uses %d devices", &l, n)
		}
		if seen[l.String()] {
			t.Errorf("%v is there twice", &l)
		}
		seen[l.String()] = true
	}
	for _, want := range []string{"4xTP1 whole", "1xTP4 whole", "1xEP4 whole", "2xTP1 prefill + 1xTP2 decode", "1xTP1 prefill + 3xTP1 decode", "1xEP2 prefill + 1xTP2 decode"} {
		if !seen[want] {
			t.Errorf("%s is missing among %v", want, seen)
		}
	}
	z.Whole = true
	for _, l := range z.Layouts() {
		if l.Split() {
			t.Errorf("%v splits", &l)
		}
	}
}

// TestSizeFindsTheHighestRate: the best layout's rate holds the targets and one a
// little higher does not, as playing them once more shows; nobody else has more.
func TestSizeFindsTheHighestRate(t *testing.T) {
	z := sizing(t, 2)
	all, err := z.Size(t.Context(), func(int, *Layout) {})
	if err != nil {
		t.Fatal(err)
	}
	best := all[0]
	for _, s := range all[1:] {
		if s.Rate > best.Rate {
			t.Errorf("%v has %.2f, the best %v %.2f", &s.Layout, s.Rate, &best.Layout, best.Rate)
		}
	}
	for _, c := range []struct {
		rate  float64
		holds bool
	}{{best.Rate, true}, {best.Above.Rate, false}, {best.Rate / 3, true}} {
		r, err := z.play(t.Context(), &best.Layout, c.rate)
		if err != nil {
			t.Fatal(err)
		}
		if (r.Good >= z.Share) != c.holds {
			t.Errorf("%v at %.2f req/s: %.3f good", &best.Layout, c.rate, r.Good)
		}
	}
	if best.Above.Rate > best.Rate*(1+2*z.Within) {
		t.Errorf("%.2f holds, %.2f does not: want no more than %v between", best.Rate, best.Above.Rate, z.Within)
	}
	if b := best.Bounds; best.Rate > b.Answers || best.Rate > b.Prompts {
		t.Errorf("%v serves %.2f req/s, beyond its bounds %+v", &best.Layout, best.Rate, b)
	}
	if why := strings.Join(best.Why(z), "\n"); !strings.Contains(why, "missed first") {
		t.Errorf("%s", why)
	}
}

func TestSizingRefuses(t *testing.T) {
	for _, c := range []struct {
		name, want string
		change     func(*Sizing)
	}{
		{"no devices", "devices: must be at least 1", func(z *Sizing) { z.Devices = 0 }},
		{"no prompt", "input: must be at least 1", func(z *Sizing) { z.Input = 0 }},
		{"one token", "output: must be at least 2", func(z *Sizing) { z.Output = 1 }},
		{"all must", "share: must be between 0 and 1", func(z *Sizing) { z.Share = 1 }},
		{"too large", "sizes: a replica takes at least 1 and at most all 2", func(z *Sizing) { z.Sizes = []int{4} }},
		{"does not fit", "cannot be laid out on 1 H100", func(z *Sizing) {
			z.Devices = 1
			z.Serving.Weights = catalog.BF16
		}},
	} {
		z := sizing(t, 2)
		c.change(z)
		if err := z.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
}
