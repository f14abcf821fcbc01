package flow

import (
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
