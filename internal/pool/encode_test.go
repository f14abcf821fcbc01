package pool

import (
	"slices"
	"testing"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// epd is a brain with an endpoint that answers, 1, and two that encode, 2 and 3.
func epd(t *testing.T) *Brain {
	t.Helper()
	b := newBrain(t, Default())
	b.Step(0, &Endpoint{Endpoint: 1}, nil)
	b.Step(0, &Endpoint{Endpoint: 2, Role: fleet.RoleEncode}, nil)
	b.Step(0, &Endpoint{Endpoint: 3, Role: fleet.RoleEncode}, nil)
	return b
}

func encodersOf(t *testing.T, out []Action) []fleet.EndpointID {
	t.Helper()
	if len(out) != 1 || out[0].Kind != Dispatch || out[0].Endpoint != 1 {
		t.Fatalf("%+v", out)
	}
	return slices.Clone(out[0].Decision.Encoders)
}

// TestImagesAreSpread: images go to who has least to do, and one that comes again
// to who has it.
func TestImagesAreSpread(t *testing.T) {
	b := epd(t)
	at := encodersOf(t, b.Step(1, &Arrive{Req: 1, Prompt: 9, Images: []kv.Key{7, 8}}, nil))
	if len(at) != 2 || at[0] == at[1] || at[0] < 2 || at[1] < 2 {
		t.Fatalf("encoded at %v", at)
	}
	for i := range at {
		if out := b.Step(2, &Encoded{Req: 1, Attempt: 1, Image: i}, nil); len(out) != 0 {
			t.Errorf("%+v", out)
		}
	}
	b.Step(3, &Leg{Req: 1, Attempt: 1, Phase: fleet.PhaseDone}, nil)
	again := encodersOf(t, b.Step(4, &Arrive{Req: 2, Prompt: 9, Images: []kv.Key{8, 7}}, nil))
	if again[0] != at[1] || again[1] != at[0] {
		t.Errorf("encoded at %v, then at %v", at, again)
	}
}

// TestImagesThatFail: an image goes to one encoder after the other, and then to
// nobody; what is wrong with the image itself to nobody at once.
func TestImagesThatFail(t *testing.T) {
	b := epd(t)
	first := encodersOf(t, b.Step(1, &Arrive{Req: 1, Prompt: 9, Images: []kv.Key{7}}, nil))[0]
	out := b.Step(2, &Encoded{Req: 1, Attempt: 1, Failure: fleet.FailStatus}, nil)
	if len(out) != 1 || out[0].Kind != Encode || out[0].Endpoint != 5-first {
		t.Fatalf("%+v", out)
	}
	out = b.Step(3, &Encoded{Req: 1, Attempt: 1, Failure: fleet.FailStatus}, nil)
	if len(out) != 1 || out[0].Kind != Encode || out[0].Endpoint != fleet.NoEndpoint {
		t.Fatalf("%+v", out)
	}
	if out := b.Step(4, &Encoded{Req: 1, Attempt: 1, Failure: fleet.FailStatus}, nil); len(out) != 0 {
		t.Errorf("it was told twice: %+v", out)
	}
	encodersOf(t, b.Step(5, &Arrive{Req: 2, Prompt: 9, Images: []kv.Key{7}}, nil))
	out = b.Step(6, &Encoded{Req: 2, Attempt: 1, Failure: fleet.FailClient}, nil)
	if len(out) != 1 || out[0].Endpoint != fleet.NoEndpoint {
		t.Errorf("%+v", out)
	}
}

// TestRetriesEncodeNothing: what has failed with encoded images is tried without.
func TestRetriesEncodeNothing(t *testing.T) {
	b := epd(t)
	b.Step(0, &Endpoint{Endpoint: 4}, nil)
	out := b.Step(1, &Arrive{Req: 1, Prompt: 9, Images: []kv.Key{7}}, nil)
	if len(out[0].Decision.Encoders) != 1 {
		t.Fatalf("%+v", out[0].Decision)
	}
	out = b.Step(2, &Leg{Req: 1, Attempt: 1, Phase: fleet.PhaseFailed, Failure: fleet.FailStatus}, nil)
	if len(out) != 1 || out[0].Kind != Dispatch || len(out[0].Decision.Encoders) != 0 {
		t.Errorf("%+v", out)
	}
}
