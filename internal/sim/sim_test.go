package sim

import (
	"errors"
	"math"
	"reflect"
	"testing"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// qwen is a fleet of n replicas of the default engine.
func qwen(t testing.TB, n int, policy string) Config {
	t.Helper()
	model, errModel := catalog.FindModel("")
	accelerator, errAccelerator := catalog.FindAccelerator("")
	if err := errors.Join(errModel, errAccelerator); err != nil {
		t.Fatal(err)
	}
	c := Config{Pool: pool.Default(), Seed: 1, Scrape: time.Second, Hop: time.Millisecond}
	c.Pool.Policy = route.Spec{Name: policy}
	for i := range n {
		physics := enginesim.NewRoofline(catalog.Serving{Shape: model, Accelerator: accelerator, TP: 2})
		physics.Factor, physics.Noise, physics.Seed = 1, 0.05, uint64(i)
		c.Replicas = append(c.Replicas, Replica{Physics: physics, Limits: fleet.Limits{KVTokens: 298_000, MaxSeqs: 256, BudgetTokens: 8192}})
	}
	return c
}

// shared is a load with shared prefixes.
func shared(groups int, rate float64, d time.Duration) workload.Source {
	a := workload.NewArrivals(workload.ArrivalPoisson, []workload.Stage{{Rate: rate, Duration: d}}, 0, stat.NewRand(1, "arrivals"))
	return workload.SharedPrefix{
		Groups: groups, PromptsPerGroup: 10, System: workload.Fixed(4000), Question: workload.Fixed(400), Output: workload.Fixed(100),
	}.Source(a, 1)
}

func mustRun(t testing.TB, c Config, load workload.Source) *Result {
	t.Helper()
	r, err := Run(c, load)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestOneRequestTakesWhatItsPhysicsSays(t *testing.T) {
	c := qwen(t, 1, "random")
	c.Replicas[0].Physics.(*enginesim.Roofline).Noise = 0
	physics := c.Replicas[0].Physics
	a := workload.NewArrivals(workload.ArrivalConstant, []workload.Stage{{Rate: 1, Duration: time.Second}}, 0, stat.NewRand(1, "a"))
	r := mustRun(t, c, workload.Random{Input: workload.Fixed(1000), Output: workload.Fixed(1)}.Source(a, 1))
	step := physics.StepTime(enginesim.Batch{Step: 1, Prefills: 1, Prompt: 1000, Attention: 1000 * 1000 / 2})
	want := float64(step + 2*c.Hop)
	if r.Done != 1 || math.Abs(r.TTFT.Quantile(1)-want) > 0.01*want {
		t.Errorf("%d done, TTFT %v, want one step and two hops: %v", r.Done, time.Duration(r.TTFT.Quantile(1)), time.Duration(want))
	}
}

func TestEveryRequestEndsAndRunsRepeat(t *testing.T) {
	for _, policy := range route.Names() {
		if policy == "weighted" {
			continue
		}
		one := func() *Result { return mustRun(t, qwen(t, 4, policy), shared(20, 8, 60*time.Second)) }
		a, b := one(), one()
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%s: two runs of one seed differ", policy)
		}
		if a.Arrived != a.Done+a.Failed+a.Refused || a.Done < 400 {
			t.Errorf("%s: %d arrived, %d done, %d failed, %d refused", policy, a.Arrived, a.Done, a.Failed, a.Refused)
		}
	}
}

func TestAffinityFindsWhatRoundRobinMisses(t *testing.T) {
	// 150 prefixes of 4,000 tokens do not fit one cache, but fit four together.
	rr := mustRun(t, qwen(t, 4, "round-robin"), shared(150, 12, 120*time.Second))
	pa := mustRun(t, qwen(t, 4, "prefix-affinity"), shared(150, 12, 120*time.Second))
	if pa.CachedShare() < 1.3*rr.CachedShare() || pa.TTFT.Mean() > rr.TTFT.Mean() {
		t.Errorf("cached %.3f against %.3f, TTFT %v against %v", pa.CachedShare(), rr.CachedShare(),
			time.Duration(pa.TTFT.Mean()), time.Duration(rr.TTFT.Mean()))
	}
}

func TestACrashIsSurvivedAndHealed(t *testing.T) {
	c := qwen(t, 4, "least-request")
	c.Faults = []Fault{
		{At: 20 * time.Second, Replica: 1, Kind: Crash},
		{At: 25 * time.Second, Replica: 2, Kind: Mute},
		{At: 40 * time.Second, Replica: 1, Kind: Restart},
		{At: 45 * time.Second, Replica: 2, Kind: Unmute},
	}
	r := mustRun(t, c, shared(20, 8, 60*time.Second))
	calm := mustRun(t, qwen(t, 4, "least-request"), shared(20, 8, 60*time.Second))
	if r.Refused != 0 || r.Failed == 0 || r.Failed > 30 {
		t.Errorf("%d refused, %d failed, %d retries: only answers that had begun on the crashed replica may fail", r.Refused, r.Failed, r.Retries)
	}
	if got, want := float64(r.PerReplica[1]), float64(calm.PerReplica[1]); got > 0.85*want || got < 0.4*want {
		t.Errorf("replica 1 got %v requests, %v without the crash: out for a third of the time, then back", got, want)
	}
}

func TestRanksOfALockstepSetAreEndpoints(t *testing.T) {
	alone, set := qwen(t, 4, "round-robin"), qwen(t, 4, "round-robin")
	for i := range set.Replicas {
		set.Replicas[i].Set = 1
	}
	a, b := mustRun(t, alone, shared(20, 8, 60*time.Second)), mustRun(t, set, shared(20, 8, 60*time.Second))
	if b.Done != b.Arrived || b.Done != a.Done {
		t.Errorf("%d of %d done in the set, %d alone", b.Done, b.Arrived, a.Done)
	}
	// Every rank waits for the slowest: for the prompts of all of them, too.
	if b.TPOT.Mean() < 1.1*a.TPOT.Mean() {
		t.Errorf("TPOT %v in lockstep, %v alone", time.Duration(b.TPOT.Mean()), time.Duration(a.TPOT.Mean()))
	}
	set.Faults = []Fault{{At: 20 * time.Second, Replica: 2, Kind: Crash}, {At: 21 * time.Second, Replica: 0, Kind: Restart}}
	c := mustRun(t, set, shared(20, 8, 60*time.Second))
	if c.Arrived != c.Done+c.Failed+c.Refused || c.Failed < 10 || c.Done < 300 {
		t.Errorf("%d arrived, %d done, %d failed, %d refused: all ranks die and start with one", c.Arrived, c.Done, c.Failed, c.Refused)
	}
}

// stages is a load of stages whose times count from the beginning of each.
type stages struct{ left []workload.Request }

func (s *stages) Next() (workload.Request, bool) {
	if len(s.left) == 0 {
		return workload.Request{}, false
	}
	r := s.left[0]
	s.left = s.left[1:]
	return r, true
}

func TestStagesWaitForTheOneBeforeAndAPause(t *testing.T) {
	c := qwen(t, 2, "round-robin")
	c.Pause = 30 * time.Second
	var load stages
	for i := range 12 {
		load.left = append(load.left, workload.Request{
			Index: i, Stage: i / 4, At: time.Duration(i%4) * time.Second, After: workload.NoRequest,
			Prompt: []workload.Segment{{ID: uint64(i), Tokens: 1000}}, Input: 1000, Output: 200,
		})
	}
	var first, last [3]fleet.Time
	c.Ended = func(o Outcome) {
		if first[o.Stage] == 0 || o.Start < first[o.Stage] {
			first[o.Stage] = o.Start
		}
		last[o.Stage] = max(last[o.Stage], o.End)
	}
	if r := mustRun(t, c, &load); r.Done != 12 {
		t.Fatalf("%d of 12 done", r.Done)
	}
	for i := 1; i < 3; i++ {
		if got := first[i].Sub(last[i-1]); got != c.Pause {
			t.Errorf("stage %d begins %v after the last answer of the one before, want %v", i, got, c.Pause)
		}
	}
}

func TestClientsGiveUp(t *testing.T) {
	c := qwen(t, 1, "round-robin")
	c.Timeout = 4 * time.Second
	given := 0
	c.Ended = func(o Outcome) {
		if took := o.End.Sub(o.Start); took > c.Timeout+2*c.Hop {
			t.Errorf("a request took %v", took)
		}
		if !o.Done {
			given++
		}
	}
	r := mustRun(t, c, shared(20, 8, 60*time.Second)) // far more than one replica can do
	if r.Failed != given || given < 30 || r.Done < 300 || r.Done+r.Failed != r.Arrived {
		t.Errorf("%d arrived, %d done, %d failed, %d told to have failed", r.Arrived, r.Done, r.Failed, given)
	}
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	good := qwen(t, 2, "random")
	for name, spoil := range map[string]func(*Config){
		"no replicas":     func(c *Config) { c.Replicas = nil },
		"no capacity":     func(c *Config) { c.Replicas[1].Limits.KVTokens = 0 },
		"no such replica": func(c *Config) { c.Faults = []Fault{{Replica: 7}} },
		"unsorted faults": func(c *Config) { c.Faults = []Fault{{At: 2}, {At: 1}} },
		"no such policy":  func(c *Config) { c.Pool.Policy.Name = "best" },
		"negative hop":    func(c *Config) { c.Hop = -1 },
	} {
		c := good
		c.Replicas = append([]Replica(nil), good.Replicas...)
		spoil(&c)
		if _, err := Run(c, shared(1, 1, time.Second)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestHeapOrdersByTimeKindAndForesight(t *testing.T) {
	var h heap
	r := stat.NewRand(1, "heap")
	for range 1000 {
		h.push(event{at: fleet.Time(r.IntN(50)), kind: uint8(r.IntN(3))})
	}
	var last event
	for n := 0; ; n++ {
		e, ok := h.pop()
		if !ok {
			if n != 1000 {
				t.Errorf("%d of 1000 events came out", n)
			}
			return
		}
		if n > 0 && e.before(&last) {
			t.Fatalf("%+v after %+v", e, last)
		}
		last = e
	}
}
