package pool

import (
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// lending is a world of endpoints 1 and 2, which compute prompts, and 3 and 4, which
// answer; some pairs fail when the KV is to be fetched.
type lending struct {
	t       *testing.T
	b       *Brain
	now     fleet.Time
	broken  func(pre, dec fleet.EndpointID) bool
	wide    int // requests that are open at once
	next    fleet.ReqID
	open    []Action
	rand    *stat.Rand
	planned map[fleet.EndpointID]int // of dispatches, those whose prompt it computes
	failed  int                      // requests refused
	fitness []Action
}

func newLending(t *testing.T, split Split, policy string, wide int, roles ...fleet.Role) *lending {
	c := Default()
	if c.Split = split; policy != "" {
		c.Policy.Name = policy
	}
	w := &lending{t: t, b: newBrain(t, c), wide: wide, rand: stat.NewRand(uint64(wide), "lending"), planned: map[fleet.EndpointID]int{}}
	w.broken = func(_, _ fleet.EndpointID) bool { return false }
	for i, role := range roles {
		w.step(&Endpoint{Endpoint: fleet.EndpointID(i + 1), Role: role, Connector: 1, Wire: fleet.Link{PerToken: 1e-9}})
	}
	return w
}

func (w *lending) step(ev Event) {
	for _, a := range w.b.Step(w.now, ev, nil) {
		switch a.Kind {
		case Dispatch:
			w.open = append(w.open, a)
			if a.Prefill != fleet.NoEndpoint {
				w.planned[a.Prefill]++
			}
		case Refuse:
			w.failed++
		case Probe:
			w.step(&Probed{Endpoint: a.Endpoint, Gen: a.Gen, OK: true})
		case Fitness:
			w.fitness = append(w.fitness, a)
		}
	}
}

// serve has n requests served, 10 ms apart.
func (w *lending) serve(n int) {
	for range n {
		w.now += fleet.Time(10 * time.Millisecond)
		if w.b.Wake() <= w.now {
			w.step(&Tick{})
		}
		w.next++
		w.step(&Arrive{Req: w.next, Prompt: 4000})
		for len(w.open) >= w.wide {
			w.end()
		}
	}
}

// end ends one of the open attempts.
func (w *lending) end() {
	i := w.rand.IntN(len(w.open))
	a := w.open[i]
	w.open = append(w.open[:i], w.open[i+1:]...)
	if a.Prefill != fleet.NoEndpoint {
		w.step(&Leg{Req: a.Req, Attempt: a.Attempt, Prefill: true, Phase: fleet.PhaseDone})
		if w.broken(a.Prefill, a.Endpoint) {
			w.step(&Leg{Req: a.Req, Attempt: a.Attempt, Phase: fleet.PhaseFailed, Failure: fleet.FailStatus})
			return
		}
	}
	w.step(&Leg{Req: a.Req, Attempt: a.Attempt, Phase: fleet.PhaseFirstToken})
	w.step(&Leg{Req: a.Req, Attempt: a.Attempt, Phase: fleet.PhaseDone})
}

func (w *lending) health(id fleet.EndpointID) string {
	var snap fleet.Snapshot
	w.b.View(&snap)
	return snap.Endpoints[id-1].Health
}

var twoAndTwo = []fleet.Role{fleet.RolePrefill, fleet.RolePrefill, fleet.RoleDecode, fleet.RoleDecode}

// An endpoint whose KV nobody can fetch is found out by a handful of failures, tried
// now and then, and back when its KV comes.
func TestALenderThatHandsNothingOverIsOut(t *testing.T) {
	for _, split := range []Split{SplitAlways, SplitOnly} {
		for _, policy := range []string{"", "round-robin", "least-request"} {
			for _, wide := range []int{1, 4, 8} {
				w := newLending(t, split, policy, wide, twoAndTwo...)
				w.broken = func(pre, _ fleet.EndpointID) bool { return pre == 1 }
				w.serve(40)
				if w.health(1) != "ejected" || len(w.fitness) == 0 || w.fitness[0].Endpoint != 1 || w.fitness[0].Cause != fleet.FailStatus {
					t.Fatalf("%s %q %d: %s, %+v", split, policy, wide, w.health(1), w.fitness)
				}
				planned, failed := w.planned[1], w.failed
				if w.serve(300); w.planned[1]-planned > 6 || w.failed > failed {
					t.Errorf("%s %q %d: within 3 s planned %d times, %d requests failed", split, policy, wide, w.planned[1]-planned, w.failed-failed)
				}
				for id := fleet.EndpointID(2); id <= 4; id++ {
					if w.health(id) != "healthy" {
						t.Errorf("%s %q %d: %d is %s", split, policy, wide, id, w.health(id))
					}
				}
				w.broken = func(_, _ fleet.EndpointID) bool { return false }
				planned = w.planned[1]
				if w.serve(600); w.health(1) != "healthy" || w.planned[1]-planned < 20 {
					t.Errorf("%s %q %d: it works again, is %s and planned %d times", split, policy, wide, w.health(1), w.planned[1]-planned)
				}
			}
		}
	}
}

// Where it is the one that answers, that one is out, and never both that compute
// prompts.
func TestATakerThatFetchesNothingIsOut(t *testing.T) {
	for _, policy := range []string{"", "round-robin", "least-request"} {
		for _, wide := range []int{1, 4, 8} {
			w := newLending(t, SplitAlways, policy, wide, twoAndTwo...)
			w.broken = func(_, dec fleet.EndpointID) bool { return dec == 3 }
			out := 0
			for n := range 600 {
				w.serve(1)
				if w.health(1) == "ejected" && w.health(2) == "ejected" {
					t.Fatalf("%q %d: nobody computes prompts after %d requests", policy, wide, n)
				}
				if w.health(3) == "ejected" {
					out++
				}
			}
			if w.health(1) != "healthy" || w.health(2) != "healthy" || w.health(4) != "healthy" || out < 300 {
				t.Errorf("%q %d: 1 is %s, 2 is %s, 3 was out for %d of 600 requests", policy, wide, w.health(1), w.health(2), out)
			}
		}
	}
}

// Where nobody else computes prompts, requests are served whole.
func TestWithoutALenderRequestsGoWhole(t *testing.T) {
	for _, roles := range [][]fleet.Role{
		{fleet.RolePrefill, fleet.RoleDecode, fleet.RoleDecode},
		{fleet.RolePrefill, fleet.RoleDecode},
	} {
		w := newLending(t, SplitAlways, "", 2, roles...)
		w.broken = func(_, _ fleet.EndpointID) bool { return true }
		w.serve(40)
		planned, failed := w.planned[1], w.failed
		if w.serve(300); w.health(1) == "healthy" || w.planned[1]-planned > 6 || w.failed > failed {
			t.Errorf("%d endpoints: it is %s, planned %d times, %d requests failed", len(roles), w.health(1), w.planned[1]-planned, w.failed-failed)
		}
	}
}

// One that answers requests besides goes on with that, and is shown to be used for
// nothing else.
func TestALenderThatAnswersToo(t *testing.T) {
	w := newLending(t, SplitAlways, "", 2, fleet.RoleBoth, fleet.RoleDecode, fleet.RoleDecode)
	w.broken = func(_, _ fleet.EndpointID) bool { return true }
	leans := 0
	for range 40 {
		w.serve(1)
		var snap fleet.Snapshot
		w.b.View(&snap)
		if e := snap.Endpoints[0]; e.Health != "healthy" {
			t.Fatalf("it is %s", e.Health)
		} else if e.Lean == fleet.RoleDecode {
			leans++
		}
	}
	if leans < 15 || len(w.fitness) != 0 {
		t.Errorf("used to answer only for %d of 40 requests, told %+v", leans, w.fitness)
	}
}
