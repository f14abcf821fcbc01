package health

import (
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

const ms = fleet.Time(time.Millisecond)

func book(n int) *Book {
	b := New(Default())
	for i := range n {
		b.Add(i)
	}
	return b
}

// Where KV does not come, the one that waits for it is to blame if it comes from
// nobody, and not if one that has died is found out late.
func TestUnclearFailuresBlameAfterTwoPartners(t *testing.T) {
	b := book(4)
	for range 10 {
		if b.Unclear(0, 2, 0, fleet.FailStatus) {
			t.Fatal("blamed for what one partner may have done")
		}
	}
	b.Alive(2)
	if b.Unclear(0, 2, 1, fleet.FailStatus) || b.State(2) != Healthy {
		t.Fatal("blamed for another partner's, with an answer between")
	}
	for i := range 3 {
		if got := b.Unclear(0, 2, i%2, fleet.FailStatus); got != (i == 2) {
			t.Errorf("failure %d of partners in turn: changed %v", i, got)
		}
	}
	if b.State(2) != Ejected {
		t.Error("an engine that nobody can hand KV to is not out")
	}
}

func TestThreeConnectFailuresEjectAndAProbeBringsBack(t *testing.T) {
	b := book(4)
	for i := range 2 {
		if b.Failure(fleet.Time(i)*ms, 0, fleet.FailConnect) {
			t.Fatalf("ejected after %d failures", i+1)
		}
	}
	if !b.Failure(2*ms, 0, fleet.FailConnect) || b.State(0) != Ejected {
		t.Fatal("three failures in a row did not eject")
	}
	if b.Due(400*ms, 0) {
		t.Error("probe due before ProbeFirst")
	}
	if !b.Due(503*ms, 0) || b.Due(504*ms, 0) {
		t.Error("probe must be due once, until it is answered")
	}
	b.Probed(510*ms, 0, false)
	if got := b.NextProbe(0); got != 510*ms+750*ms {
		t.Errorf("second probe at %v, want 750 ms later", time.Duration(got))
	}
	b.Due(1300*ms, 0)
	if !b.Probed(1300*ms, 0, true) || b.State(0) != Trial {
		t.Fatal("a good probe did not start a trial")
	}
	if !b.Success(1400*ms, 0) || b.State(0) != Healthy {
		t.Fatal("a success on trial did not end it")
	}
}

func TestProbeIntervalIsBounded(t *testing.T) {
	b := book(1)
	now := fleet.Time(0)
	for range 3 {
		b.Failure(now, 0, fleet.FailConnect)
	}
	for range 20 {
		now = b.NextProbe(0)
		if !b.Due(now, 0) {
			t.Fatal("not due when it said")
		}
		b.Probed(now, 0, false)
		if gap := b.NextProbe(0).Sub(now); gap > Default().ProbeMax {
			t.Fatalf("probe interval grew to %v", gap)
		}
	}
}

func TestTrialFailureEjectsAtOnce(t *testing.T) {
	b := book(2)
	for range 3 {
		b.Failure(0, 0, fleet.FailConnect)
	}
	b.Due(fleet.Time(time.Second), 0)
	b.Probed(fleet.Time(time.Second), 0, true)
	if !b.Failure(fleet.Time(2*time.Second), 0, fleet.FailStatus) || b.State(0) != Ejected {
		t.Error("a failure on trial did not eject")
	}
}

func TestErrorsEverywhereEjectAtMostHalf(t *testing.T) {
	b := book(4)
	for range 10 {
		for i := range 4 {
			b.Failure(0, i, fleet.FailStatus)
		}
	}
	out := 0
	for i := range 4 {
		if b.State(i) == Ejected {
			out++
		}
	}
	if out != 2 {
		t.Errorf("%d of 4 ejected for 5xx, want 2", out)
	}
	// A dead process is out whatever the others do.
	for i := range 4 {
		b.Failure(0, i, fleet.FailConnect)
		if b.State(i) != Ejected {
			t.Errorf("endpoint %d refuses connections and is %v", i, b.State(i))
		}
	}
}

func TestErrorShareEjectsWithoutARow(t *testing.T) {
	b := book(4)
	for i := range 40 {
		now := fleet.Time(i) * 10 * ms
		if i%3 == 0 {
			b.Success(now, 0)
		} else {
			b.Failure(now, 0, fleet.FailStatus)
		}
	}
	if b.State(0) != Ejected {
		t.Error("two failures in three attempts did not eject")
	}
}

func TestValidateNamesTheField(t *testing.T) {
	if errs := Default().Validate(); len(errs) != 0 {
		t.Fatalf("defaults are invalid: %v", errs)
	}
	if errs := (Config{}).Validate(); len(errs) != 4 {
		t.Errorf("zero config: %d errors, want one per bad field: %v", len(errs), errs)
	}
}
