package config

import (
	"fmt"
	"testing"

	"penstock.dev/penstock/internal/pool"
)

// SGLang's engines do one leg only, whatever a file says of splitting but never.
func TestSGLangIsNeverWhole(t *testing.T) {
	for _, c := range []struct {
		connector, says string
		want            pool.Split
	}{
		{"sglang", "", pool.SplitOnly},
		{"sglang", "split: always,", pool.SplitOnly},
		{"sglang", "split: never,", pool.SplitNever},
		{"nixl", "", pool.SplitAuto},
		{"nixl", "split: only,", pool.SplitOnly},
	} {
		f, errs := Parse(fmt.Appendf(nil, `
apiVersion: penstock.dev/v1alpha1
kind: Fleet
pools:
- {model: m, %s kv: {transfer: {connector: %s}}, endpoints: [{url: "http://p:1", role: prefill}, {url: "http://d:1", role: decode}]}
`, c.says, c.connector))
		if len(errs) > 0 || f.Pools[0].Split != c.want {
			t.Errorf("%s %s: split %s, %v; want %s", c.connector, c.says, f.Pools[0].Split, errs, c.want)
		}
	}
}

// A pool that names no dialect has that of the engines that have its connector.
func TestDialectFollowsTheConnector(t *testing.T) {
	for kv, want := range map[string]string{"": "vllm", "kv: {transfer: {connector: nixl}},": "vllm", "kv: {transfer: {connector: sglang}},": "sglang"} {
		f, errs := Parse(fmt.Appendf(nil, `
apiVersion: penstock.dev/v1alpha1
kind: Fleet
pools:
- {model: m, api: true, %s}
`, kv))
		if len(errs) > 0 || f.Pools[0].Dialect != want {
			t.Errorf("%s: dialect %q, %v; want %s", kv, f.Pools[0].Dialect, errs, want)
		}
	}
	if d := DefaultPool().Dialect; d != "vllm" {
		t.Errorf("default %q", d)
	}
}

// What is split otherwise than usual, and can be.
func TestSplitsAreRead(t *testing.T) {
	if _, errs := Load("testdata/split.good.yaml"); len(errs) > 0 {
		t.Error(errs)
	}
}
