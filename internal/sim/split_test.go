package sim

import (
	"reflect"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
)

// pd is a fleet of which so many compute prompts and the others answer.
func pd(t testing.TB, prefills, decodes int) Config {
	t.Helper()
	c := qwen(t, prefills+decodes, "predictive")
	for i := range c.Replicas {
		r := &c.Replicas[i]
		if r.Role = fleet.RolePrefill; i >= prefills {
			r.Role = fleet.RoleDecode
		}
		r.Connector, r.Wire = 1, Wire{Bandwidth: 35e9, Latency: 10 * time.Millisecond, KVBytes: 131_072}
		r.Leaves = fleet.Link{Latency: 0.01, PerToken: 131_072 / 50e9}
		r.Step = perf.Step{Base: 14e-3, PerSeq: 50e-6, PerKV: 57e-9, PerPrompt: 60e-6, PerPair: 3e-9}
	}
	return c
}

func TestSplitRequestsEnd(t *testing.T) {
	one := func() *Result { return mustRun(t, pd(t, 2, 2), shared(1000, 6, 60*time.Second)) }
	r := one()
	if r.Done != r.Arrived || r.Splits < r.Arrived*8/10 || r.MovedTokens < int64(r.Splits)*1000 {
		t.Errorf("%d of %d done, %d split, %d tokens moved", r.Done, r.Arrived, r.Splits, r.MovedTokens)
	}
	if !reflect.DeepEqual(r, one()) {
		t.Error("two runs of one seed differ")
	}
	// Long answers decode undisturbed: no step has a long prompt in it.
	whole := mustRun(t, qwen(t, 4, "predictive"), shared(1000, 6, 60*time.Second))
	if r.TPOT.Quantile(0.95) > whole.TPOT.Quantile(0.95) {
		t.Errorf("TPOT p95 %v split, %v whole", time.Duration(r.TPOT.Quantile(0.95)), time.Duration(whole.TPOT.Quantile(0.95)))
	}
}

// TestSplitsSurviveWhoeverDies has each replica die and return while requests are
// in all stages. Only answers that had begun may be lost, and nothing stays held.
func TestSplitsSurviveWhoeverDies(t *testing.T) {
	c := pd(t, 2, 2)
	c.Timeout = 20 * time.Second
	for i := range 16 {
		at := time.Duration(3+3*i) * time.Second
		c.Faults = append(c.Faults, Fault{At: at, Replica: i % 4, Kind: Crash}, Fault{At: at + time.Second, Replica: i % 4, Kind: Restart})
	}
	leaked, unbegun := 0, 0
	c.Ended = func(o Outcome) {
		if !o.Done && o.First == 0 {
			unbegun++
		}
	}
	r := &run{c: c}
	if err := r.openGateways(); err != nil {
		t.Fatal(err)
	}
	res, err := r.all(shared(1000, 6, 60*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for _, en := range r.engines {
		if en.Engine != nil {
			leaked += en.Stats().Kept
		}
	}
	if res.Arrived != res.Done+res.Failed+res.Refused || leaked != 0 {
		t.Errorf("%d arrived, %d done, %d failed, %d refused; %d prompts are still held", res.Arrived, res.Done, res.Failed, res.Refused, leaked)
	}
	if unbegun > 0 || res.Splits < res.Arrived/3 {
		t.Errorf("%d answers failed that had not begun; %d of %d requests were split", unbegun, res.Splits, res.Arrived)
	}
}
