package sim

import (
	"reflect"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
)

// pulling is a fleet whose replicas fetch from each other's caches.
func pulling(t testing.TB, n int) Config {
	t.Helper()
	c := pd(t, 0, n)
	for i := range c.Replicas {
		c.Replicas[i].Role, c.Replicas[i].Pulls = fleet.RoleBoth, true
	}
	c.Pool.Split = pool.SplitNever
	return c
}

// scaledOut adds half of the replicas halfway.
func scaledOut(c Config) Config {
	for i := len(c.Replicas) / 2; i < len(c.Replicas); i++ {
		c.Faults = append(c.Faults, Fault{At: 30 * time.Second, Replica: i, Kind: Add})
	}
	return c
}

func TestPullsWhenReplicasAreAdded(t *testing.T) {
	load := func() Config { return scaledOut(pulling(t, 4)) }
	r := mustRun(t, load(), shared(20, 9, 60*time.Second))
	if r.Done != r.Arrived || r.Pulls == 0 || r.MovedTokens < int64(r.Pulls)*64 {
		t.Errorf("%d of %d done, %d pulls of %d tokens", r.Done, r.Arrived, r.Pulls, r.MovedTokens)
	}
	if !reflect.DeepEqual(r, mustRun(t, load(), shared(20, 9, 60*time.Second))) {
		t.Error("two runs of one seed differ")
	}
	c := load()
	c.Pool.Pull = pool.PullNever
	without := mustRun(t, c, shared(20, 9, 60*time.Second))
	if without.Pulls != 0 || r.CachedTokens <= without.CachedTokens {
		t.Errorf("%d prompt tokens found with pulls, %d without, %d pulls then", r.CachedTokens, without.CachedTokens, without.Pulls)
	}
}

// TestPullsSurviveWhoeverDies has each replica die and return under pulls. Only
// answers that had begun may be lost.
func TestPullsSurviveWhoeverDies(t *testing.T) {
	c := pulling(t, 4)
	c.Timeout = 20 * time.Second
	for i := range 16 {
		at := time.Duration(3+3*i) * time.Second
		c.Faults = append(c.Faults, Fault{At: at, Replica: i % 4, Kind: Crash}, Fault{At: at + time.Second, Replica: i % 4, Kind: Restart})
	}
	unbegun := 0
	c.Ended = func(o Outcome) {
		if !o.Done && o.First == 0 {
			unbegun++
		}
	}
	r := mustRun(t, c, shared(20, 9, 60*time.Second))
	if r.Arrived != r.Done+r.Failed+r.Refused || unbegun > 0 || r.Pulls == 0 {
		t.Errorf("%d arrived, %d done, %d failed, %d refused, %d of them unbegun; %d pulls", r.Arrived, r.Done, r.Failed, r.Refused, unbegun, r.Pulls)
	}
}
