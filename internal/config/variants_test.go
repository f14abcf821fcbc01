package config

import (
	"strings"
	"testing"

	"penstock.dev/penstock/internal/catalog"
)

func TestVariantsAreResolved(t *testing.T) {
	f, errs := Load("testdata/variants.good.yaml")
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	p := f.Pools[0]
	fast, own := p.Variants[0], p.Variants[1]
	if s := fast.Serving(); s.Shape.Layers != 64 || s.Weights != catalog.FP8 || s.KV != catalog.FP8 || s.Engine != "sglang" || s.Devices() != 2 {
		t.Errorf("fast is served as %+v", s)
	}
	if l := fast.Limits(); l.KVTokens != 400_000 || l.MaxSeqs != 128 || l.BudgetTokens != 4096 {
		t.Errorf("limits of fast: %+v", l)
	}
	// The stated sheet replaces the known one: 2 x 2.50, not 2 x 3.00.
	if fast.Cost() != 5 || own.Cost() != 1.5 {
		t.Errorf("a replica costs %v and %v dollars per hour", fast.Cost(), own.Cost())
	}
	if s := own.Serving(); s.Shape.Layers != 36 || s.Shape.Name != "shape.json" || s.Accelerator.Memory != 64e9 || own.Step().Base != 20e-3 {
		t.Errorf("own is served as %+v with %+v", s, own.Step())
	}
	if p.Replicas(0) != 2 || p.Replicas(1) != 3 || f.Pools[1].Replicas(0) != 1 {
		t.Errorf("replicas: %d, %d, %d", p.Replicas(0), p.Replicas(1), f.Pools[1].Replicas(0))
	}
	if i, ok := p.FindVariant("own"); i != 1 || !ok {
		t.Errorf("own is variant %d, %v", i, ok)
	}
	if _, ok := p.FindVariant(""); ok {
		t.Error("an endpoint of a pool with two variants got one without naming it")
	}
	if _, ok := f.Pools[1].FindVariant(""); !ok {
		t.Error("an endpoint of a pool with one variant is not of it")
	}
}

func TestOnlyServingNeedsEndpoints(t *testing.T) {
	const file = "../../examples/simulate_fleet.yaml"
	if _, errs := LoadSimulated(file); len(errs) > 0 {
		t.Error(errs)
	}
	if _, errs := Load(file); len(errs) != 1 || !strings.Contains(errs[0].Error(), "pools[0].endpoints: is empty") {
		t.Errorf("taken for serving: %v", errs)
	}
}
