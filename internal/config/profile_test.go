package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
)

func TestProfileSurvivesItsFile(t *testing.T) {
	step := perf.Step{Base: 14e-3, PerSeq: 60e-6, PerKV: 4e-8, PerPrompt: 40e-6, PerPair: 7e-9, PerRequest: 6e-3, Shadow: 222, Experts: 3e-3, Touch: 0.0625}
	fit := perf.Fitted{Step: step, Sigma: perf.Vector{1e-3, 6e-6, 0, 4e-6, 7e-9, 3e-4, 6e-3}}
	key := ProfileKey{Model: "m", Engine: "vllm", TP: 2, Arguments: ProfileArguments{MaxSeqs: 9}}
	limits := fleet.Limits{MaxModelLen: 5, KVTokens: 4, BlockTokens: 3, MaxSeqs: 2, BudgetTokens: 1}
	raw, err := NewProfile(key, fit, 0.04, limits, time.Date(2026, 5, 4, 10, 0, 0, 0, time.UTC)).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	p, errs := ParseProfile(raw)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	b := p.Belief()
	if p.Key != key || p.Date != "2026-05-04T10:00:00Z" || p.Error != 0.04 || p.Limits.FleetLimits() != limits {
		t.Errorf("read %+v", p)
	}
	for j, want := range step.Vector() {
		if got := b.Step.Vector()[j]; got < want*(1-1e-12) || got > want*(1+1e-12) {
			t.Errorf("%s: %g, want %g", perf.ParamNames()[j], got, want)
		}
		if got, want := b.Spread[j], fit.Sigma[j]/want; got < want-1e-9 || got > want+1e-9 {
			t.Errorf("spread of %s: %g, want %g", perf.ParamNames()[j], got, want)
		}
	}
	if b.Step.Shadow != 222 || b.Step.Touch != 0.0625 {
		t.Errorf("read %+v", b.Step)
	}
}

func TestProfileKeysNameTheDifference(t *testing.T) {
	k := ProfileKey{Model: "m", Engine: "vllm", Version: "1", Accelerator: "H100", TP: 2, Arguments: ProfileArguments{MaxModelLen: 7}}
	if d := k.Differs(k); d != "" {
		t.Errorf("a key differs from itself: %s", d)
	}
	o := k
	o.TP = 4
	if d := k.Differs(o); d != "tp is 2, not 4" {
		t.Error(d)
	}
	o = k
	o.Arguments.MaxModelLen = 8
	if d := k.Differs(o); d != "arguments.maxModelLen is 7, not 8" {
		t.Error(d)
	}
}

func TestBadProfilesAreRefused(t *testing.T) {
	good, err := os.ReadFile("testdata/profile.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, replacement, want string }{
		{"kind: Profile", "kind: Fleet", "kind: must be"},
		{"v1alpha1", "v9", "apiVersion: must be"},
		{"2026-05-04T10:00:00Z", "yesterday", "date: must be"},
		{"model: qwen/qwen3-32b, ", "", "key.model: is required"},
		{"base: 15", "base: -15", "stepMs.base: must not be negative"},
		{"stepMs: {base: 15, perSeq: 0.05, perKV: 4.0e-05, perPrompt: 0.05,", "stepMs: {", "stepMs: is empty"},
		{"kvTokens: 298000", "kvTokens: -1", "limits: must not be negative"},
		{"tp: 2", "tq: 2", "key.tq: unknown field"},
		{"error: 0.04", "error: -1", "error: must not be negative"},
		{"base: 0.3", "base: -0.3", "sigmaMs.base: must not be negative"},
	} {
		text := strings.Replace(string(good), c.old, c.replacement, 1)
		_, errs := ParseProfile([]byte(text))
		if text == string(good) || len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.replacement, errs, c.want)
		}
	}
}

// profiledFleet is a fleet with one variant that names testdata/profile.yaml.
func profiledFleet(t *testing.T, variant string) (Fleet, []error) {
	t.Helper()
	dir, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("apiVersion: penstock.dev/v1alpha1\nkind: Fleet\npools:\n- model: Qwen/Qwen3-32B\n  endpoints: [{url: http://h:1}]\n  variants: [{name: v, profile: %s/profile.yaml, %s}]\n", dir, variant)
	return Parse([]byte(text))
}

func TestVariantsTakeWhatTheirProfileMeasured(t *testing.T) {
	f, errs := profiledFleet(t, "accelerator: H100, tp: 2, maxSeqs: 64")
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	v := f.Pools[0].Variants[0]
	if l := v.Limits(); l.MaxSeqs != 64 || l.KVTokens != 298_000 || l.MaxModelLen != 40_960 {
		t.Errorf("limits %+v", l)
	}
	if s := v.Step(); s.Base != 15e-3 || s.Shadow != 200 {
		t.Errorf("step %+v", s)
	}
	f, errs = profiledFleet(t, "accelerator: H100, tp: 2, stepMs: {base: 20}")
	if len(errs) > 0 || f.Pools[0].Variants[0].Step() != (perf.Step{Base: 20e-3}) {
		t.Errorf("stated step: %+v, %v", f.Pools[0].Variants, errs)
	}
}

func TestProfilesOfOtherVariantsAreRefused(t *testing.T) {
	for variant, want := range map[string]string{
		"accelerator: A100, tp: 2":                              "key.accelerator",
		"accelerator: H100, tp: 4":                              "key.tp: 2 is not that of the variant, 4",
		"accelerator: H100, tp: 2, weights: fp8":                "key.weights",
		"accelerator: H100, tp: 2, kv: fp8":                     "key.kv",
		"accelerator: H100, tp: 2, engine: sglang":              "key.engine",
		"accelerator: H100, tp: 2, shape: Qwen/Qwen3-8B":        "key.model",
		"accelerator: H100, tp: 2, shape: Qwen3-32B-FP8":        "",
		"accelerator: H100, tp: 2, dp: 2":                       "key.dp",
		"accelerator: H100, tp: 2, engine: vllm, weights: bf16": "",
	} {
		_, errs := profiledFleet(t, variant)
		switch {
		case want == "" && len(errs) == 0:
		case want == "" || len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), "pools[0].variants[0].profile: ") || !strings.Contains(errs[0].Error(), want):
			t.Errorf("%s: %v, want %q", variant, errs, want)
		}
	}
}
