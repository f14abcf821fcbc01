package flow

import (
	"slices"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

func at(s float64) fleet.Time { return fleet.Time(s * 1e9) }

func TestFIFOWithReturnRemoveAndExpiry(t *testing.T) {
	q := New(Config{MaxRequests: 3, MaxWait: 10 * time.Second})
	for i := range 3 {
		if q.Offer(at(float64(i)), Item{Req: fleet.ReqID(i + 1), Enqueued: at(float64(i))}) != Queued {
			t.Fatal("refused with room")
		}
	}
	if q.Offer(at(3), Item{Req: 9, Enqueued: at(3)}) != Full {
		t.Fatal("took a fourth of three")
	}
	it, _ := q.Next(at(3))
	if it.Req != 1 {
		t.Fatalf("first out is %d", it.Req)
	}
	q.Return(it)
	if head, _ := q.Peek(); head.Req != 1 || q.Deadline() != at(10) {
		t.Errorf("returned request is not first with its old deadline: %+v", head)
	}
	if !q.Remove(2) || q.Remove(2) {
		t.Error("remove must work once")
	}
	if _, ok := q.Expired(at(9.9)); ok {
		t.Error("expired early")
	}
	if it, ok := q.Expired(at(10)); !ok || it.Req != 1 {
		t.Error("request 1 did not expire at its deadline")
	}
	if it, ok := q.Next(at(10)); !ok || it.Req != 3 || q.Len() != 0 {
		t.Errorf("request 3 should be last: %+v", it)
	}
	if _, ok := q.Next(at(10)); ok || q.Deadline() != fleet.Never {
		t.Error("an empty queue gave something")
	}
}

func TestReturnedItemsStandByArrival(t *testing.T) {
	q := New(Config{MaxRequests: 10, MaxWait: 10 * time.Second})
	for i := range 5 {
		q.Offer(at(float64(i)), Item{Req: fleet.ReqID(i + 1), Enqueued: at(float64(i))})
	}
	var out []Item
	for range 3 {
		it, _ := q.Next(at(5))
		out = append(out, it)
	}
	for _, i := range []int{1, 2, 0} {
		q.Return(out[i])
	}
	var order []fleet.ReqID
	for it, ok := q.Peek(); ok; it, ok = q.After(it.Req) {
		order = append(order, it.Req)
	}
	if !slices.Equal(order, []fleet.ReqID{1, 2, 3, 4, 5}) {
		t.Errorf("order %v", order)
	}
	if it, ok := q.Take(at(5), 3); !ok || it.Req != 3 {
		t.Errorf("took %+v", it)
	}
	if _, ok := q.Take(at(5), 3); ok {
		t.Error("taken twice")
	}
	if it, ok := q.Last(); !ok || it.Req != 5 || q.Len() != 4 {
		t.Errorf("last is %+v of %d", it, q.Len())
	}
	if _, ok := q.After(5); ok {
		t.Error("something is behind the last")
	}
}

func TestRetryAfterFollowsTheDrainRate(t *testing.T) {
	q := New(Config{MaxRequests: 1000, MaxWait: time.Minute})
	if got := q.RetryAfter(0); got != 30*time.Second {
		t.Errorf("nothing ever left: %v, want half of MaxWait", got)
	}
	id := fleet.ReqID(0)
	for s := range 60 {
		for range 10 {
			id++
			q.Offer(at(float64(s)), Item{Req: id})
			q.Next(at(float64(s)))
		}
	}
	for range 99 {
		id++
		q.Offer(at(60), Item{Req: id})
	}
	// 100 requests ahead (this one included) at 10 a second.
	if got := q.RetryAfter(at(60)).Seconds(); got < 8 || got > 12 {
		t.Errorf("RetryAfter = %.1f s, want about 10", got)
	}
}

func BenchmarkOfferNext(b *testing.B) {
	q := New(Default())
	id := fleet.ReqID(0)
	b.ReportAllocs()
	for b.Loop() {
		id++
		q.Offer(0, Item{Req: id})
		q.Next(0)
	}
}
