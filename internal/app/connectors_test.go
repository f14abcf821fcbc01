package app

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/pool"
)

// spoken are the connectors of simulated engines.
var spoken = []string{server.NIXL, server.NIXLPush, server.Mooncake, server.Rooms, server.Shared, server.Offload}

// wantNothingHeld waits until no engine keeps blocks for another.
func wantNothingHeld(t *testing.T, sim *Simulated) {
	t.Helper()
	for i, n := range sim.nodes {
		// An engine frees what it kept when the other has told it, after the answer.
		for began := time.Now(); n.Server.Stats().Kept != 0; {
			if time.Since(began) > 5*time.Second {
				t.Fatalf("engine %d still holds %d prompts", i, n.Server.Stats().Kept)
			}
		}
	}
}

// In every dialect a split request has the answer that it has whole, counts as
// cached what was so where its prompt was computed, and leaves nothing held.
func TestConnectorsAnswerAlike(t *testing.T) {
	whole, _ := startSplit(t, 1, 1, pool.SplitNever, "predictive")
	for _, connector := range spoken {
		t.Run(connector, func(t *testing.T) {
			t.Parallel()
			split, sim := startSplitBy(t, connector, 2, 2, pool.SplitAlways, "predictive")
			for i := range 8 {
				prompt := strings.Repeat(fmt.Sprint("prompt ", i/4, " of some length. "), 100)
				id := fmt.Sprint(connector, i)
				want, _ := complete(t, whole, id, prompt, true)
				got, cached := complete(t, split, id, prompt, i%2 == 0)
				if got != want || got == "" {
					t.Errorf("answered %q split, %q whole", got, want)
				}
				r := explained(t, split, id)
				if len(r.Attempts) != 1 || !strings.HasPrefix(r.Attempts[0].Prefill, "prefill-") || !strings.HasPrefix(r.Attempts[0].Chosen, "decode-") {
					t.Fatalf("%+v", r.Attempts)
				}
				if first := i%4 == 0; first != (cached == 0) || !first && cached < 400 {
					t.Errorf("request %d: %d tokens cached", i, cached)
				}
			}
			wantNothingHeld(t, sim)
		})
	}
}

// No client hears of what befalls the legs of its request, in the dialects in which
// both engines are asked at once or know each other by more than an answer.
func TestConnectorsSurvive(t *testing.T) {
	for _, connector := range []string{server.NIXLPush, server.Mooncake, server.Rooms, server.Offload} {
		for _, x := range faultMatrix {
			t.Run(connector+"/"+x.name, func(t *testing.T) {
				t.Parallel()
				a, sim := startSplitBy(t, connector, 2, 2, pool.SplitAlways, "round-robin")
				prompt := strings.Repeat("the gate and pipe that feed a turbine, "+x.kind+". ", 60)
				want, _ := complete(t, a, "before", prompt, true)
				last := explained(t, a, "before").Attempts[0]
				at := last.Chosen
				if x.atPrefill {
					at = last.Prefill
				}
				for i := range sim.Pool.Endpoints {
					if sim.Pool.Endpoints[i].Name == at {
						if err := sim.nodes[i].Server.SetFault(server.Fault{Kind: x.kind, Count: 1}); err != nil {
							t.Fatal(err)
						}
					}
				}
				for i := range 8 {
					if got, _ := complete(t, a, fmt.Sprint("q", i), fmt.Sprint(i, prompt), i%2 == 0); got == "" {
						t.Errorf("request %d has no answer", i)
					}
				}
				if got, _ := complete(t, a, "again", prompt, true); got != want {
					t.Errorf("answered %q, before the fault %q", got, want)
				}
			})
		}
	}
}
