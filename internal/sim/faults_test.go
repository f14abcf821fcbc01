package sim

import (
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/workload"
)

// quiet is a fleet whose steps take exactly what its physics says.
func quiet(t testing.TB, n int, policy string) Config {
	t.Helper()
	c := qwen(t, n, policy)
	for i := range c.Replicas {
		c.Replicas[i].Physics.(*enginesim.Roofline).Noise = 0
	}
	return c
}

func TestWhateverHappensEveryRequestEndsAndRunsRepeat(t *testing.T) {
	policies := []string{"predictive", "prefix-affinity", "least-request", "round-robin", Clairvoyant}
	outer := t
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 5).Draw(t, "replicas")
		policy := rapid.SampledFrom(policies).Draw(t, "policy")
		gateways := rapid.IntRange(0, 4).Draw(t, "gateways")
		sets, timeout := rapid.Bool().Draw(t, "sets"), rapid.IntRange(0, 8).Draw(t, "timeout")
		var faults []Fault
		at := time.Duration(0)
		for range rapid.IntRange(0, 8).Draw(t, "faults") {
			at += time.Duration(rapid.IntRange(0, 4000).Draw(t, "after")) * time.Millisecond
			f := Fault{At: at, Replica: rapid.IntRange(0, n-1).Draw(t, "replica"), Kind: FaultKind(rapid.IntRange(0, len(faultNames)-1).Draw(t, "kind"))}
			switch f.Kind {
			case Slow:
				f.Factor = rapid.SampledFrom([]float64{0.5, 1, 3}).Draw(t, "factor")
			case Restart, Add:
				f.Delay = time.Duration(rapid.IntRange(0, 3).Draw(t, "delay")) * time.Second
			}
			faults = append(faults, f)
		}
		run := func() (*Result, int) {
			c := qwen(outer, n, policy)
			c.Gateways, c.Faults, c.Timeout = gateways, faults, time.Duration(timeout)*time.Second
			c.Targets = Targets{TTFT: time.Second, TPOT: 50 * time.Millisecond}
			for i := range c.Replicas {
				if sets {
					c.Replicas[i].Set = 1 + i%2
				}
			}
			ended := 0
			c.Ended = func(Outcome) { ended++ }
			r, err := Run(c, shared(10, 6, 15*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			return r, ended
		}
		a, ended := run()
		b, _ := run()
		if !reflect.DeepEqual(a, b) {
			t.Error("two runs of one seed differ")
		}
		if a.Arrived != a.Done+a.Failed+a.Refused || a.Arrived != ended || a.Arrived < 40 {
			t.Errorf("%d arrived, %d done, %d failed, %d refused; %d were told to have ended", a.Arrived, a.Done, a.Failed, a.Refused, ended)
		}
	})
}

func TestGatewaysShareTheLoadAndSeeEachOtherInGauges(t *testing.T) {
	c := qwen(t, 4, "least-request")
	c.Gateways = 3
	r := &run{c: c}
	if err := r.openGateways(); err != nil {
		t.Fatal(err)
	}
	var share [3]int
	for i := range 3000 {
		share[r.gatewayOf(i)]++
	}
	for g, n := range share {
		if n < 900 || n > 1100 {
			t.Errorf("gateway %d gets %d of 3000 requests", g, n)
		}
	}
	others := func(gateways int, scrape time.Duration) (seen int, ttft float64) {
		c := qwen(t, 4, "least-request")
		c.Gateways, c.Scrape = gateways, scrape
		var r *run
		c.Ended = func(Outcome) {
			var s fleet.Snapshot
			r.gateways[0].brain.View(&s)
			for i := range s.Endpoints {
				seen += s.Endpoints[i].External
			}
		}
		r = &run{c: c}
		if err := r.openGateways(); err != nil {
			t.Fatal(err)
		}
		res, err := r.all(shared(20, 14, 60*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		return seen, res.TTFT.Mean()
	}
	seenAlone, alone := others(1, time.Second)
	seenBlind, blind := others(8, 0)
	if seen, _ := others(8, 200*time.Millisecond); seen < 1000 || seenAlone != 0 || seenBlind != 0 {
		t.Errorf("others' requests seen: %d alone, %d without gauges, %d with gauges", seenAlone, seenBlind, seen)
	}
	if blind < 1.05*alone {
		t.Errorf("mean TTFT %v with one gateway, %v with eight that do not see each other", time.Duration(alone), time.Duration(blind))
	}
}

// lone is one long answer.
func lone(output int) workload.Source {
	return &stages{left: []workload.Request{{
		After: workload.NoRequest, Prompt: []workload.Segment{{ID: 1, Tokens: 100}}, Input: 100, Output: output,
	}}}
}

func TestSlowingDownWorksWhileTheEngineRuns(t *testing.T) {
	took := func(sets bool, faults ...Fault) float64 {
		c := quiet(t, 2, "round-robin")
		for i := range c.Replicas {
			c.Replicas[i].Set = map[bool]int{true: 1}[sets]
		}
		for k := range c.Replicas { // wherever the request is
			for _, f := range faults {
				f.Replica = k
				c.Faults = append(c.Faults, f)
			}
		}
		if sets {
			c.Faults = faults
		}
		slices.SortStableFunc(c.Faults, func(a, b Fault) int { return int(a.At - b.At) })
		r := mustRun(t, c, lone(600))
		return time.Duration(r.E2E.Quantile(1)).Seconds()
	}
	for _, sets := range []bool{false, true} {
		whole := took(sets)
		if whole < 5 {
			t.Fatalf("the answer takes %v s; the test wants one of more than 5", whole)
		}
		// Three times as long from 1 s to 4 s: 3 s in which 1 s of work is done.
		got := took(sets, Fault{At: time.Second, Kind: Slow, Factor: 3}, Fault{At: 4 * time.Second, Kind: Slow, Factor: 1})
		if math.Abs(got-(whole+2)) > 0.05*whole {
			t.Errorf("sets %v: %v s, %v s when nothing is slow: want 2 s more", sets, got, whole)
		}
	}
}

func TestReplicasComeWhenTheyHaveStartedAndGoWhenTheyHaveAnswered(t *testing.T) {
	c := qwen(t, 4, "least-request")
	c.Faults = []Fault{
		{At: 10 * time.Second, Replica: 3, Kind: Add, Delay: 15 * time.Second},
		{At: 40 * time.Second, Replica: 0, Kind: Remove},
	}
	var first, last [4]fleet.Time
	c.Ended = func(o Outcome) {
		if first[o.Replica] == 0 {
			first[o.Replica] = o.First
		}
		last[o.Replica] = max(last[o.Replica], o.Start)
	}
	r := mustRun(t, c, shared(20, 8, 60*time.Second))
	if r.Failed != 0 || r.Refused != 0 || r.Retries != 0 {
		t.Errorf("%d failed, %d refused, %d retries: nobody may notice", r.Failed, r.Refused, r.Retries)
	}
	if at := fleet.Time(25 * time.Second); first[3] < at || first[3] > at.Add(3*time.Second) {
		t.Errorf("the added replica answered first at %v, can from %v", first[3], at)
	}
	if at := fleet.Time(40 * time.Second); last[0] > at || last[0] < at.Add(-3*time.Second) {
		t.Errorf("the removed replica was sent something at %v, may be until %v", last[0], at)
	}
	if last[1] < fleet.Time(55*time.Second) {
		t.Errorf("a replica that stays was last sent something at %v", last[1])
	}
}

func TestACrashEndsAStart(t *testing.T) {
	c := qwen(t, 2, "least-request")
	c.Faults = []Fault{
		{At: 5 * time.Second, Replica: 1, Kind: Crash},
		{At: 6 * time.Second, Replica: 1, Kind: Restart, Delay: 20 * time.Second},
		{At: 20 * time.Second, Replica: 1, Kind: Crash},
	}
	after := 0
	c.Ended = func(o Outcome) {
		if o.Replica == 1 && o.Done && o.Start > fleet.Time(6*time.Second) {
			after++
		}
	}
	mustRun(t, c, shared(20, 4, 60*time.Second))
	if after != 0 {
		t.Errorf("%d requests were answered by a process that crashed before it had started", after)
	}
	c.Faults = c.Faults[:2]
	if mustRun(t, c, shared(20, 4, 60*time.Second)); after < 20 {
		t.Errorf("%d requests were answered by a process that had started again", after)
	}
}

func TestBadFaultsAreRefusedByField(t *testing.T) {
	for want, f := range map[string]Fault{
		"faults[0].at":      {At: -1},
		"faults[0].replica": {Replica: 2},
		"faults[0].kind":    {Kind: 99},
		"faults[0].factor":  {Kind: Slow},
		"faults[0].delay":   {Kind: Crash, Delay: 1},
	} {
		c := qwen(t, 2, "random")
		c.Faults = []Fault{f}
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s named", f, err, want)
		}
	}
}

func TestMemoryFollowsWhatIsInFlight(t *testing.T) {
	c := qwen(t, 2, "least-request")
	var r *run
	most := 0
	c.Ended = func(Outcome) { most = max(most, len(r.requests.rows)+len(r.requests.spare)) }
	r = &run{c: c}
	if err := r.openGateways(); err != nil {
		t.Fatal(err)
	}
	res, err := r.all(shared(20, 4, 5*time.Minute))
	if err != nil || res.Arrived < 1000 {
		t.Fatalf("%d arrived, %v", res.Arrived, err)
	}
	if most > 150 {
		t.Errorf("%d requests were kept, of %d", most, res.Arrived)
	}
	if n := len(r.heap.slots); n > 600 {
		t.Errorf("%d events were kept", n)
	}
}
