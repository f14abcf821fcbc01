package exchange

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// A pair's row tells what has come of its transfers, each counted once.
func TestFlowsCountEveryTransfer(t *testing.T) {
	b := pairBook(t)
	plan := func(id string) {
		t.Helper()
		if _, _, err := b.Plan(at(1), Order{ID: id, Source: "p", Consumer: "d", Bytes: 1e9, Notify: true}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		id := fmt.Sprint("done-", i)
		plan(id)
		for _, err := range []error{
			second(b.Prefilling(at(1), id, "p-1")), second(b.Ready(at(2), id, "p-1", 0, 0)), second(b.Pulling(at(2), id, "d-1", 0)),
			second(b.Finish(at(3), id, "d-1", Outcome{Tokens: 100, Took: time.Duration(i+1) * time.Second, Expected: time.Second})),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	plan("untimed")
	if err := errors.Join(second(b.Ready(at(2), "untimed", "p-1", 0, 0)), second(b.Pulling(at(2), "untimed", "d-1", 0)), second(b.Finish(at(9), "untimed", "d-1", Outcome{Untimed: true}))); err != nil {
		t.Fatal(err)
	}
	plan("failed")
	plan("aborted")
	if err := errors.Join(second(b.Fail(at(2), "failed", fleet.FailStream, "")), second(b.Abort(at(2), "aborted", "enough"))); err != nil {
		t.Fatal(err)
	}
	plan("late")
	if err := second(b.Ready(at(3), "late", "p-1", 0, time.Second)); err != nil {
		t.Fatal(err)
	}
	b.Advance(at(10))
	f := b.Flows()
	if len(f) != 1 || f[0].Planned != 8 || f[0].Done != 4 || f[0].Aborted != 2 || f[0].Expired != 1 || f[0].Open != 1 || f[0].Failed[fleet.FailStream] != 1 {
		t.Fatalf("%+v", f)
	}
	if f[0].Bytes != 4e9 || f[0].Tokens != 300 || f[0].Took.Count != 3 || f[0].Took.Mean() != 2*time.Second || f[0].Took.P95 != 3*time.Second || f[0].Expected.Mean() != time.Second {
		t.Errorf("%+v", f[0])
	}
	var told []string
	for _, e := range b.Ended() {
		told = append(told, e.ID+" "+string(e.Stage))
	}
	if want := "[done-0 done done-1 done done-2 done untimed done failed aborted aborted aborted late expired]"; fmt.Sprint(told) != want {
		t.Errorf("told of %v", told)
	}
	if again := b.Ended(); again != nil {
		t.Errorf("told twice: %v", again)
	}
	if y := b.Tally(); y.Failed != 1 || y.Aborted != 2 {
		t.Errorf("%+v", y)
	}
}

func second[T any](_ T, err error) error { return err }

// Who has judged a pair by what it knows is not held to what little is registered.
func TestJudgedPairsAreNotJudgedAgain(t *testing.T) {
	b := pairBook(t)
	other := vllm("other", "decode")
	other.Weights.Model = "as it is called here"
	if _, err := b.Register(at(0), *other, 0); err != nil {
		t.Fatal(err)
	}
	o := Order{ID: "y", Source: "p", Consumer: "other"}
	if _, v, err := b.Plan(at(1), o); !errors.Is(err, ErrIncompatible) || v.OK {
		t.Errorf("%v, %v", v, err)
	}
	o.Judged = true
	if _, _, err := b.Plan(at(1), o); err != nil {
		t.Error(err)
	}
}

// Pairs that have rested longest make room.
func TestFlowsAreBounded(t *testing.T) {
	b := NewBook(DefaultConfig())
	for i := range maxFlows + 10 {
		b.flow(&Ticket{Order: Order{Source: "p", Consumer: fmt.Sprint(i)}, PlannedAt: fleet.Time(i)})
	}
	if _, first := b.pairs[couple{"p", "0"}]; first || len(b.pairs) != maxFlows {
		t.Errorf("%d pairs, the first %v", len(b.pairs), first)
	}
}
