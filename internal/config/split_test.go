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
