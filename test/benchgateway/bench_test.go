//go:build linux

package main

import (
	"testing"
	"time"
)

func TestFigures(t *testing.T) {
	v := []float64{5, 1, 3, 2, 4}
	f := figureOf(v)
	if f.Median != 3 || f.Low < 1 || f.Low > 3 || f.High < 3 || f.High > 5 || f.Rounds != 5 {
		t.Errorf("%+v", f)
	}
	if v[0] != 5 {
		t.Error("the series was sorted in place")
	}
	if got := quantile([]float64{0, 10}, 0.99); got < 9.89 || got > 9.91 {
		t.Errorf("p99 of 0 and 10 is %v", got)
	}
	if got := figureOf(pairwise([]float64{9, 10}, []float64{3, 5, 7}, ratio)); got.Median != 2.5 {
		t.Errorf("median of ratios is %v", got.Median)
	}
}

// TestBothEndsAgree sends without a proxy: what the mock wrote is what the
// client read, and a byte that differs is noticed.
func TestBothEndsAgree(t *testing.T) {
	f, err := newFleet(2)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	addr := f.endpoints[1].listener.Addr().String()
	number := 0
	template := makeBody(2<<10, true, 1)
	if n := len(template.raw); n < 2<<10 || n > 5<<9 {
		t.Errorf("request of %d bytes", n)
	}
	receipts, err := streaming(f, addr, template, 3, order{events: 20, gap: time.Millisecond, phase: spread}, &number, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range receipts {
		if r.n != 20+finalCount || len(r.delays) != 20 {
			t.Errorf("%d events, %d delays", r.n, len(r.delays))
		}
		r.sum++
		if r.verdict() == nil {
			t.Error("a damaged stream passed")
		}
	}
	times, err := paced(addr, makeBody(2<<10, false, 1), 2000, 50, &number, 1)
	if err != nil || len(times) != 50 {
		t.Errorf("%d answers: %v", len(times), err)
	}
}

func TestGoals(t *testing.T) {
	r := report{least: 2}
	r.promise("met", "x", 0, 3, []float64{1, 2, 9})
	r.promise("missed", "x", 0, 3, []float64{4, 5})
	r.promise("too little", "x", 2, 3, []float64{1, 1})
	r.promise("void", "x", 0, 3, []float64{1})
	if got := len(r.missed()); got != 3 || !r.Goals[0].Met {
		t.Errorf("missed %q", r.missed())
	}
}

// TestWasteIsProcessorTime holds the injected work to what the bench compares it
// with.
func TestWasteIsProcessorTime(t *testing.T) {
	from := used()
	waste(injected)
	if got := used() - from; got < injected || got > 50*injected {
		t.Errorf("wasted %v", got)
	}
}
