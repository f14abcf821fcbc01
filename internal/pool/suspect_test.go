package pool

import (
	"testing"

	"penstock.dev/penstock/internal/fleet"
)

// TestTakingOverMayHaveFailed: when the endpoint that answers fails after another has
// computed the prompt, either may be the cause: the next attempt is without both,
// and where nobody else is left, whole at the one that answers.
func TestTakingOverMayHaveFailed(t *testing.T) {
	for _, c := range []struct {
		name    string
		failure fleet.Failure
		spare   bool // another endpoint that computes prompts
		only    bool // who answers does nothing whole
		want    fleet.EndpointID
		prefill fleet.EndpointID
	}{
		{"nobody else", fleet.FailStatus, false, false, 2, 0},
		{"inside a stream", fleet.FailStream, false, false, 2, 0},
		{"nobody else answers", fleet.FailStatus, true, false, 2, 0},
		{"it is not there", fleet.FailConnect, true, false, 0, 0},
		{"it is full", fleet.FailOverload, true, false, 0, 0},
		{"not whole, and nobody else", fleet.FailStatus, false, true, 2, 1},
		{"not whole, and nobody else answers", fleet.FailStatus, true, true, 2, 0},
	} {
		config := Default()
		if config.Split = SplitAlways; c.only {
			config.Split = SplitOnly
		}
		b := newBrain(t, config)
		b.Step(0, &Endpoint{Endpoint: 1, Role: fleet.RolePrefill, Connector: 1}, nil)
		b.Step(0, &Endpoint{Endpoint: 2, Role: fleet.RoleDecode, Connector: 1}, nil)
		if c.spare {
			b.Step(0, &Endpoint{Endpoint: 3, Role: fleet.RolePrefill, Connector: 1}, nil)
		}
		out := b.Step(1, &Arrive{Req: 1, Prompt: 4000}, nil)
		if out[0].Prefill == fleet.NoEndpoint || out[0].Endpoint != 2 {
			t.Fatalf("%s: %+v", c.name, out)
		}
		first := out[0].Prefill
		out = b.Step(2, &Leg{Req: 1, Attempt: 1, Phase: fleet.PhaseFailed, Failure: c.failure}, nil)
		var at, pre fleet.EndpointID
		for _, a := range out {
			if a.Kind == Dispatch {
				at, pre = a.Endpoint, a.Prefill
			}
		}
		if c.only && c.spare {
			c.prefill = 4 - first
		}
		if at != c.want || pre != c.prefill {
			t.Errorf("%s: answered at %d, prompt at %d", c.name, at, pre)
		}
	}
}

// TestAnotherPairIsTried: where another pair is there, it is tried first.
func TestAnotherPairIsTried(t *testing.T) {
	config := Default()
	config.Split = SplitAlways
	b := newBrain(t, config)
	for id := range fleet.EndpointID(4) {
		role := fleet.RolePrefill
		if id >= 2 {
			role = fleet.RoleDecode
		}
		b.Step(0, &Endpoint{Endpoint: id + 1, Role: role, Connector: 1}, nil)
	}
	first := b.Step(1, &Arrive{Req: 1, Prompt: 4000}, nil)[0]
	out := b.Step(2, &Leg{Req: 1, Attempt: 1, Phase: fleet.PhaseFailed, Failure: fleet.FailStatus}, nil)
	if len(out) != 1 || out[0].Endpoint != 7-first.Endpoint || out[0].Prefill != 3-first.Prefill {
		t.Errorf("first %+v, then %+v", first, out)
	}
}
