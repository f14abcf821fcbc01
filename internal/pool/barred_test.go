package pool

import (
	"testing"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/route"
)

// A pair that cannot exchange KV is never planned, also where a split is wanted
// whatever it costs; the record counts such pairs, and slots that change hands
// take no bar along.
func TestBarredPairsAreNotPlanned(t *testing.T) {
	c := Default()
	c.Policy, c.Split = route.Spec{Name: "round-robin"}, SplitAlways
	b := newBrain(t, c)
	up := func(id fleet.EndpointID, role fleet.Role) {
		b.Step(0, &Endpoint{Endpoint: id, Role: role, Connector: 1, Wire: fleet.Link{PerToken: 1e-9}}, nil)
	}
	up(1, fleet.RolePrefill)
	up(2, fleet.RolePrefill)
	up(3, fleet.RoleDecode)
	up(4, fleet.RoleDecode)
	next := fleet.ReqID(0)
	ask := func() *fleet.Decision {
		next++
		for _, a := range b.Step(0, &Arrive{Req: next, Prompt: 4000}, nil) {
			if a.Kind == Dispatch {
				if a.Prefill != a.Decision.Prefill {
					t.Errorf("%+v", a)
				}
				return a.Decision
			}
		}
		t.Fatal("not dispatched")
		return nil
	}
	b.Step(0, &Barred{Endpoint: 3, Sources: []fleet.EndpointID{1}}, nil)
	for range 8 {
		d := ask()
		if d.Prefill == fleet.NoEndpoint || d.Prefill == 1 && d.Chosen == 3 {
			t.Errorf("prompt at %d, answer at %d", d.Prefill, d.Chosen)
		}
		if want := (fleet.Pair{Prefill: 1, Decode: 3}); d.Barred != 1 || d.BarredPair != want {
			t.Errorf("%d barred, first %+v", d.Barred, d.BarredPair)
		}
	}
	b.Step(0, &Barred{Endpoint: 3, Sources: []fleet.EndpointID{1, 2}}, nil)
	for range 8 {
		if d := ask(); d.Prefill == fleet.NoEndpoint || d.Chosen == 3 || d.Barred != 2 {
			t.Errorf("prompt at %d, answer at %d, %d barred", d.Prefill, d.Chosen, d.Barred)
		}
	}
	b.Step(0, &Barred{Endpoint: 4, Sources: []fleet.EndpointID{1, 2}}, nil)
	if d := ask(); d.Prefill != fleet.NoEndpoint || d.Barred != 4 {
		t.Errorf("prompt at %d, %d barred", d.Prefill, d.Barred)
	}
	// Another endpoint in the place of one that was barred.
	b.Step(0, &Endpoint{Endpoint: 1, Change: EndpointGone}, nil)
	up(5, fleet.RolePrefill)
	for range 4 {
		if d := ask(); d.Prefill != 5 || d.Barred != 2 {
			t.Errorf("prompt at %d, %d barred", d.Prefill, d.Barred)
		}
	}
	if y := b.Tally(); y.Whole != 1 || y.Split != 20 {
		t.Errorf("%+v", y)
	}
}

// The first token of an answer whose KV was moved tells how long that took; an
// answer that comes whole tells only that it was moved, and each is told once.
func TestMovesAreTold(t *testing.T) {
	c := Default()
	c.Policy, c.Split = route.Spec{Name: "round-robin"}, SplitAlways
	b := newBrain(t, c)
	for id, role := range map[fleet.EndpointID]fleet.Role{1: fleet.RolePrefill, 2: fleet.RoleDecode} {
		b.Step(0, &Endpoint{Endpoint: id, Role: role, Connector: 1, Wire: fleet.Link{PerToken: 1e-6}, Step: perf.Step{Base: 1e-3, PerPrompt: 1e-6}}, nil)
	}
	for i, silent := range []bool{false, true} {
		req, at := fleet.ReqID(i+1), fleet.Time(i)*10e9 // time never falls
		b.Step(at, &Arrive{Req: req, Prompt: 4000, Silent: silent}, nil)
		var told []Action
		out := b.Step(at+1e9, &Leg{Req: req, Attempt: 1, Prefill: true, Phase: fleet.PhaseDone}, nil)
		if !silent {
			out = append(out, b.Step(at+2e9, &Leg{Req: req, Attempt: 1, Phase: fleet.PhaseFirstToken}, nil)...)
		}
		out = append(out, b.Step(at+3e9, &Leg{Req: req, Attempt: 1, Phase: fleet.PhaseDone}, nil)...)
		for _, a := range out {
			if a.Kind == Moved {
				told = append(told, a)
			}
		}
		if len(told) != 1 || told[0].Prefill != 1 || told[0].Endpoint != 2 || told[0].Tokens != 4000 || silent != (told[0].Took == 0) {
			t.Errorf("request %d: %+v", req, told)
		}
	}
}
