package health

import (
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Slots 0 and 1 compute prompts, 2 and 3 answer.
func TestALenderIsOutWhenItsKVReachesNobody(t *testing.T) {
	for _, c := range []struct {
		name   string
		takers []int // where it is missed, one after another
		others int   // a taker that others' KV reaches after each failure; 0 for none
		own    int   // a taker that its KV reaches after each failure
		want   int   // failures until it is out; 0 for never
	}{
		{"two takers miss it", []int{2, 3}, 0, 0, 3},
		{"one misses it, and gets others'", []int{2}, 2, 0, 3},
		{"one misses it, and another gets others'", []int{2}, 3, 0, 6},
		{"one misses it, and nobody else is there", []int{2}, 0, 0, 6},
		{"another gets it", []int{2}, 0, 3, 0},
	} {
		b := book(4)
		out := 0
		for n := 1; n <= 20 && out == 0; n++ {
			now := fleet.Time(n) * ms
			if b.Missed(now, 0, c.takers[n%len(c.takers)], true) {
				out = n
			}
			if c.others != 0 {
				b.Came(now, 1, c.others)
			}
			if c.own != 0 {
				b.Came(now, 0, c.own)
			}
		}
		if out != c.want || (b.Lends(0) == Ejected) != (out > 0) || b.Lends(1) != Healthy || b.State(0) != Healthy {
			t.Errorf("%s: out after %d failures, want %d", c.name, out, c.want)
		}
	}
}

func TestALenderReturnsByATrial(t *testing.T) {
	b := book(4)
	for i := range 3 {
		b.Missed(0, 0, 2+i%2, true)
	}
	// What ends well where it is, and what is late, says nothing.
	b.Success(0, 0)
	if b.Missed(0, 0, 2, true) || b.Lends(0) != Ejected || b.NextOfAll() != 500*ms || b.Due(500*ms, 0) {
		t.Fatalf("lends %v, next %v", b.Lends(0), b.NextOfAll())
	}
	if b.Retry(499*ms, 0) || !b.Retry(500*ms, 0) || b.Lends(0) != Trial || b.NextOfAll() != fleet.Never {
		t.Fatal("no trial when it is due")
	}
	if b.Success(510*ms, 0); b.Lends(0) != Trial {
		t.Error("computing a prompt ends the trial")
	}
	if !b.Missed(600*ms, 0, 2, false) || b.NextTrial(0) != 1350*ms {
		t.Fatalf("after a failed trial the next is at %v", time.Duration(b.NextTrial(0)))
	}
	b.Retry(1350*ms, 0)
	if !b.Came(1400*ms, 0, 2) || b.Lends(0) != Healthy {
		t.Fatal("KV that came does not end the trial")
	}
	if b.Missed(1500*ms, 0, 2, true) {
		t.Error("out at the first failure after a trial")
	}
	b.Missed(1500*ms, 0, 3, true)
	b.Missed(1500*ms, 0, 3, true)
	if b.Add(0); b.Lends(0) != Healthy || b.NextOfAll() != fleet.Never {
		t.Error("a new process is out for what another did")
	}
}

// A lender that cannot be spared stays, and those that missed its KV are not blamed
// for that once it is out.
func TestTakersAreForgiven(t *testing.T) {
	b := book(4)
	for i := range 10 {
		if b.Missed(0, 0, 2+i%2, false) {
			t.Fatal("out, though nobody can do without it")
		}
	}
	b = book(4)
	b.Unclear(0, 2, 1, fleet.FailStatus)
	b.Unclear(0, 2, 0, fleet.FailStatus)
	b.Unclear(0, 2, 0, fleet.FailStatus)
	for i := range 3 {
		b.Missed(0, 0, 2+i%2, true)
	}
	for range 2 {
		if b.Failure(0, 2, fleet.FailStatus) {
			t.Error("blamed for KV that never came")
		}
	}
	if !b.Failure(0, 2, fleet.FailStatus) {
		t.Error("not blamed for its own")
	}
}
