package sim

import (
	"cmp"
	"reflect"
	"slices"
	"testing"
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// eventful makes a fleet publish its events.
func eventful(c Config, e Events) Config {
	c.Events = &e
	return c
}

func TestEventsTellWhatIsCached(t *testing.T) {
	for encoding := range kv.Encodings {
		c := eventful(qwen(t, 4, "prefix-affinity"), Events{Encoding: encoding, Lag: time.Millisecond, Ring: 1000, Mapped: true, Audit: time.Second})
		c.Replicas[0].Limits.KVTokens = 60_000 // it has to evict
		r := mustRun(t, c, shared(60, 10, 30*time.Second))
		a := &r.Index
		if a.Audits < 100 || a.Held < 50_000 || a.FalseShare() > 0.001 || a.MissingShare() > 0.001 {
			t.Errorf("%v: false %.5f, missing %.5f of %d blocks in %d audits: %+v", encoding, a.FalseShare(), a.MissingShare(), a.Held, a.Audits, *a)
		}
	}
}

func TestEventsOfTiers(t *testing.T) {
	c := eventful(qwen(t, 2, "predictive"), Events{Encoding: kv.VLLMMap, Lag: time.Millisecond, Ring: 1000, Audit: time.Second})
	for i := range c.Replicas {
		c.Replicas[i].Limits.KVTokens = 40_000
		c.Replicas[i].Offload = offload(200_000, 400_000)
	}
	r := mustRun(t, c, shared(60, 6, 60*time.Second))
	a := &r.Index
	if a.FalseShare() > 0.001 || a.MissingShare() > 0.001 || r.CachedCPU == 0 {
		t.Errorf("false %.5f, missing %.5f of %d blocks; %d tokens from CPU, %d from disk", a.FalseShare(), a.MissingShare(), a.Held, r.CachedCPU, r.CachedDisk)
	}
	without := c
	without.Events = nil
	if w := mustRun(t, without, shared(60, 6, 60*time.Second)); float64(r.CachedTokens) < 0.97*float64(w.CachedTokens) {
		t.Errorf("%d tokens were cached with events, %d without", r.CachedTokens, w.CachedTokens)
	}
}

// TestIndexSurvivesWhatBefallsEvents holds the index to what engines have while
// batches are lost, doubled, swapped and damaged and engines restart.
func TestIndexSurvivesWhatBefallsEvents(t *testing.T) {
	for _, x := range []struct {
		name  string
		tune  func(e *Events)
		heal  time.Duration
		clear bool
	}{
		{"ring", func(e *Events) { e.Ring = 10_000 }, 100 * time.Millisecond, false},
		{"short ring", func(e *Events) { e.Ring = 3 }, 0, false},
		{"no replay", func(*Events) {}, 0, false},
		{"ring, clearing first", func(e *Events) { e.Ring, e.ClearFirst = 10_000, true }, 100 * time.Millisecond, true},
	} {
		t.Run(x.name, func(t *testing.T) {
			e := Events{Encoding: kv.VLLMMap, Lag: time.Millisecond, Mapped: true, Audit: 500 * time.Millisecond, Lose: 0.002, Double: 0.002, Swap: 0.002, Corrupt: 0.002}
			x.tune(&e)
			c := eventful(qwen(t, 8, "prefix-affinity"), e)
			for i := range c.Replicas {
				c.Replicas[i].Limits.KVTokens = 60_000
				c.Faults = append(c.Faults,
					Fault{At: time.Duration(10+5*i) * time.Second, Replica: i, Kind: Crash},
					Fault{At: time.Duration(11+5*i) * time.Second, Replica: i, Kind: Restart})
			}
			c.Faults = sortedFaults(c.Faults)
			r := mustRun(t, c, shared(100, 20, 60*time.Second))
			a := &r.Index
			t.Logf("audits %d, unknown %d, false %.6f, missing %.6f, losses %d, healed in at most %v: %+v %+v",
				a.Audits, a.Unknown, a.FalseShare(), a.MissingShare(), a.Losses, a.Heal, a.Feed, a.Names)
			if a.FalseShare() > 0.001 || a.MissingShare() > 0.01 {
				t.Errorf("false %.5f, missing %.5f of %d blocks", a.FalseShare(), a.MissingShare(), a.Held)
			}
			if x.heal > 0 && a.Heal > x.heal+2*time.Second { // an engine is down for a second
				t.Errorf("it took up to %v to know again", a.Heal)
			}
		})
	}
}

func TestRunsWithEventsRepeat(t *testing.T) {
	one := func() *Result {
		c := eventful(qwen(t, 3, "predictive"), Events{Lag: time.Millisecond, Ring: 100, Lose: 0.01, Swap: 0.01, Corrupt: 0.01, Double: 0.01, Audit: time.Second})
		c.Gateways = 2
		return mustRun(t, c, shared(30, 8, 20*time.Second))
	}
	if !reflect.DeepEqual(one(), one()) {
		t.Error("two runs of one seed differ")
	}
}

func offload(cpu, disk fleet.Tokens) enginesim.Offload {
	return enginesim.Offload{
		CPU: enginesim.Store{Tokens: cpu, Bandwidth: 25e9, Latency: time.Millisecond}, Disk: enginesim.Store{Tokens: disk, Bandwidth: 6e9, Latency: 5 * time.Millisecond},
		KVBytes: 131_072,
	}
}

func sortedFaults(f []Fault) []Fault {
	slices.SortStableFunc(f, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
	return f
}
