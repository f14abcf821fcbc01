package lab

import (
	"os"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/workload"
)

// The published simulation of this trace has 36.6 % of its blocks in a cache
// without end, and eight engines of 298,000 tokens served live found 9.6 % with
// prefixes kept and 4.6 % dealt in turn.
func TestCacheCurveOfARealTrace(t *testing.T) {
	const path = "../../../shared/traces/mooncake_conversation_trace.jsonl"
	raw, err := os.ReadFile(path)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("no recorded trace here: ", err)
	}
	trace, err := workload.ReadTrace(strings.NewReader(string(raw)), workload.FormatAuto)
	if err != nil {
		t.Fatal(err)
	}
	source, err := Replay(trace, 0)(1, 1)
	if err != nil {
		t.Fatal(err)
	}
	c, err := CacheCurve(t.Context(), source, CurveOptions{Replicas: []int{8}, Sizes: []fleet.Tokens{298_000, 298_000 * 100}, Rate: 0.05})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name      string
		got, want float64
	}{{"without end", c.Ceiling, 0.366}, {"kept", c.Rows[0].Kept[0], 0.096}, {"in turn", c.Rows[0].Spread[0], 0.046}} {
		if d := x.got - x.want; d < -0.015 || d > 0.015 {
			t.Errorf("%s: %.3f of the blocks are found, want about %.3f", x.name, x.got, x.want)
		}
	}
	if c.Rows[0].Kept[1] > c.Ceiling+0.01 || c.Rows[0].Kept[1] < c.Ceiling-0.02 {
		t.Errorf("caches that hold all find %.3f, one without end %.3f", c.Rows[0].Kept[1], c.Ceiling)
	}
}

func TestCacheCurveRefuses(t *testing.T) {
	for name, o := range map[string]CurveOptions{
		"no replicas": {Sizes: []fleet.Tokens{100}, Rate: 1},
		"no sizes":    {Replicas: []int{1}, Rate: 1},
		"tiny cache":  {Replicas: []int{1}, Sizes: []fleet.Tokens{1}, Rate: 1},
		"rate":        {Replicas: []int{1}, Sizes: []fleet.Tokens{100}, Rate: 2},
	} {
		if _, err := CacheCurve(t.Context(), nil, o); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
