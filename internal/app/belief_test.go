package app

import (
	"fmt"
	"path/filepath"
	"testing"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/perf"
)

func TestBeliefIsStatedElseMeasuredElsePrior(t *testing.T) {
	profile, err := filepath.Abs("../config/testdata/profile.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for fields, want := range map[string]float64{
		"profile: " + profile + ", stepMs: {base: 20}": 20e-3,
		"profile: " + profile:                          15e-3,
		"weights: bf16":                                0,
	} {
		f, errs := config.Parse(fmt.Appendf(nil, "apiVersion: penstock.dev/v1alpha1\nkind: Fleet\npools:\n- model: Qwen/Qwen3-32B\n  endpoints: [{url: http://h:1}]\n  variants: [{name: v, accelerator: H100, tp: 2, %s}]\n", fields))
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		v := f.Pools[0].Variants[0]
		if want == 0 {
			want = perf.Prior(v.Serving()).Step.Base
		}
		if got := Believe(v).Base; got != want {
			t.Errorf("%s: base %g s, want %g", fields, got, want)
		}
	}
}
