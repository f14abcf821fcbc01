package pool

import (
	"testing"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/health"
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

// split is a pool whose requests are split, with so many endpoints of each role.
func split(t *testing.T, when Split, prefills, decodes int) *Brain {
	t.Helper()
	c := Default()
	c.Policy, c.Split = route.Spec{Name: "round-robin"}, when
	b := newBrain(t, c)
	for i := range prefills + decodes {
		role := fleet.RolePrefill
		if i >= prefills {
			role = fleet.RoleDecode
		}
		b.Step(0, &Endpoint{Endpoint: fleet.EndpointID(i + 1), Role: role, Connector: 1, Limits: fleet.Limits{MaxSeqs: 4}, Step: perf.Step{Base: 1e-3, PerPrompt: 1e-6}}, nil)
	}
	return b
}

// last returns the last action of a kind; nil if there is none.
func last(out []Action, k ActionKind) *Action {
	for i := len(out) - 1; i >= 0; i-- {
		if out[i].Kind == k {
			return &out[i]
		}
	}
	return nil
}

// A source that has died after its answer takes nobody with it: those that miss its
// KV stay, and their requests are served by others.
func TestLostKVBlamesNobodyYet(t *testing.T) {
	b := split(t, SplitAlways, 2, 2)
	for req := fleet.ReqID(1); req <= 12; req++ {
		d := last(b.Step(0, &Arrive{Req: req, Prompt: 4000}, nil), Dispatch)
		if d.Prefill == 1 {
			b.Step(1, &Leg{Req: req, Attempt: 1, Prefill: true, Phase: fleet.PhaseDone}, nil)
			out := b.Step(2, &Leg{Req: req, Attempt: 1, Phase: fleet.PhaseFailed, Failure: fleet.FailStatus}, nil)
			again := last(out, Dispatch)
			if again == nil || again.Endpoint == d.Endpoint || again.Prefill != 2 {
				t.Fatalf("request %d was at %d: %+v", req, d.Endpoint, out)
			}
		}
		b.Step(3, &Gone{Req: req}, nil)
	}
	for slot := range 4 {
		if s := b.deps.Health.State(slot); s != health.Healthy {
			t.Errorf("endpoint %d is %v", slot+1, s)
		}
	}
}

// Where nobody else is left, the one that missed the KV computes the prompt, or
// fetches it anew if it can do nothing else.
func TestLostKVIsComputedWhereItWasMissed(t *testing.T) {
	for when, prefill := range map[Split]fleet.EndpointID{SplitAlways: fleet.NoEndpoint, SplitOnly: 1} {
		b := split(t, when, 1, 1)
		b.Step(0, &Arrive{Req: 1, Prompt: 4000}, nil)
		b.Step(1, &Leg{Req: 1, Attempt: 1, Prefill: true, Phase: fleet.PhaseDone}, nil)
		out := b.Step(2, &Leg{Req: 1, Attempt: 1, Phase: fleet.PhaseFailed, Failure: fleet.FailStatus}, nil)
		if d := last(out, Dispatch); d == nil || d.Endpoint != 2 || d.Prefill != prefill || d.Attempt != 2 {
			t.Errorf("%s: %+v", when, out)
		}
	}
}

// With SplitOnly, requests wait while prefill slots are full, and are refused while
// there is none.
func TestNothingIsWholeWhereItMustBeSplit(t *testing.T) {
	b := split(t, SplitOnly, 1, 2)
	for req := fleet.ReqID(1); req <= 4; req++ {
		if d := last(b.Step(0, &Arrive{Req: req, Prompt: 4000}, nil), Dispatch); d == nil || d.Prefill != 1 {
			t.Fatalf("request %d: %+v", req, d)
		}
	}
	if out := b.Step(1, &Arrive{Req: 5, Prompt: 4000}, nil); len(out) != 0 {
		t.Fatalf("a fifth does not wait: %+v", out)
	}
	d := last(b.Step(2, &Leg{Req: 1, Attempt: 1, Prefill: true, Phase: fleet.PhaseDone}, nil), Dispatch)
	if d == nil || d.Req != 5 || d.Prefill != 1 {
		t.Fatalf("with room for it: %+v", d)
	}
	b.Step(3, &Endpoint{Endpoint: 1, Change: EndpointGone}, nil)
	if a := last(b.Step(4, &Arrive{Req: 6, Prompt: 4000}, nil), Refuse); a == nil || a.Refusal != fleet.RefuseNoEndpoint {
		t.Errorf("with nobody to compute prompts: %+v", a)
	}
}
