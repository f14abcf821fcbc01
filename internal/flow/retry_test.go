package flow

import "testing"

func TestBudgetIsSpentAndEarned(t *testing.T) {
	b := NewBudget(Retry{MaxAttempts: 3, Share: 0.5, Burst: 2})
	if b.Take(3) {
		t.Error("a fourth attempt of three")
	}
	if !b.Take(1) || !b.Take(2) || b.Take(1) {
		t.Error("a burst of two must allow exactly two retries")
	}
	b.Arrived()
	if b.Take(1) {
		t.Error("one arrival earns half a retry")
	}
	b.Arrived()
	if !b.Take(1) {
		t.Error("two arrivals earn one retry")
	}
	for range 100 {
		b.Arrived()
	}
	if !b.Take(1) || !b.Take(1) || b.Take(1) {
		t.Error("savings must stop at the burst")
	}
}

func TestRoom(t *testing.T) {
	r := Room{MaxInFlight: 2}
	if r.Full(1, 0) || !r.Full(2, 0) || r.Full(7, 8) || !r.Full(8, 8) {
		t.Error("room must follow the engine's limit, or MaxInFlight when unknown")
	}
}
