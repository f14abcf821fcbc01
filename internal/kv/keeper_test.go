package kv

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/fleet"
)

func keepConfig() KeepConfig {
	return KeepConfig{Declared: true, Hot: true, MaxBytes: 1 << 20, Share: 0.05, Quota: 10_000, MaxLife: time.Hour, WarmTokens: 8000}
}

// prefix returns a chain of n keys of a conversation.
func prefix(talk, n int) []Key {
	return Chain(nil, Seed(fmt.Append(nil, talk)), make([]byte, n*ChunkBytes))
}

// wanted is a prefix of n keys of 64 tokens.
func wanted(s KeepSource, n int, life time.Duration) Wanted {
	t := fleet.Tokens(n * 64)
	return Wanted{Source: s, Depth: n, Tokens: t, Whole: t, Bytes: n * ChunkBytes, Life: life}
}

// world is a fleet in which what is sent somewhere is there.
type world struct {
	t      testing.TB
	k      *Keeper
	now    fleet.Time
	places []Place
	has    map[fleet.EndpointID]map[Key]bool
}

func newWorld(t testing.TB, c KeepConfig, endpoints int) *world {
	w := &world{t: t, k: NewKeeper(c), now: 1, has: map[fleet.EndpointID]map[Key]bool{}}
	for range endpoints {
		w.join()
	}
	return w
}

func (w *world) join() fleet.EndpointID {
	id := fleet.EndpointID(len(w.places) + 1)
	w.places = append(w.places, Place{ID: id, Gen: 1, Fit: true, Idle: true, Capacity: 100_000, PerToken: 1e-4, Base: 0.01})
	w.has[id] = map[Key]bool{}
	return id
}

// round lets time pass and asks for orders.
func (w *world) round(d time.Duration) []Order {
	w.now = w.now.Add(d)
	kept := w.k.Kept(w.now)
	for i := range w.places {
		p := &w.places[i]
		p.Has = make([]fleet.Tokens, len(kept))
		for n, e := range kept {
			if w.has[p.ID][e.Key] {
				p.Has[n] = e.Tokens
			}
		}
	}
	return w.k.Decide(w.now, w.places, nil)
}

// obey carries orders out.
func (w *world) obey(orders []Order) {
	for _, o := range orders {
		if e, ok := w.k.Find(o.ID); ok {
			w.has[o.Endpoint][e.Key] = true
		}
		w.k.Ended(w.now, o, o.Seconds, true)
	}
}

func (w *world) want(v Wanted, chain []Key) KeepID {
	w.t.Helper()
	id, why := w.k.Want(w.now, v, chain)
	if why != KeepFine {
		w.t.Fatalf("not kept: %v", why)
	}
	return id
}

func TestKeeperPutsAPinWhereItIsMissing(t *testing.T) {
	w := newWorld(t, keepConfig(), 3)
	w.round(0)
	pin := wanted(KeepPinned, 20, 0)
	pin.Copies = 2
	id := w.want(pin, prefix(1, 20))
	orders := w.round(time.Second)
	if len(orders) == 0 || orders[0].ID != id || orders[0].Why != KeepRefresh || orders[0].Missing != 1280 {
		t.Fatalf("orders %+v", orders)
	}
	w.obey(orders)
	w.obey(w.round(time.Second))
	if more := w.round(time.Second); len(more) != 0 {
		t.Fatalf("with two copies: %+v", more)
	}
	// One of them is evicted.
	clear(w.has[orders[0].Endpoint])
	if again := w.round(time.Second); len(again) != 1 {
		t.Fatalf("after an eviction: %+v", again)
	}
}

// TestKeeperDoesNotInsist: some engines never cache a prompt, or are not
// believed to.
func TestKeeperDoesNotInsist(t *testing.T) {
	w := newWorld(t, keepConfig(), 1)
	w.round(0)
	w.want(wanted(KeepPinned, 20, 0), prefix(1, 20))
	orders := 0
	for range 60 {
		o := w.round(time.Second)
		w.obey(o)
		clear(w.has[1])
		orders += len(o)
	}
	if orders != 12 {
		t.Errorf("%d orders in a minute", orders)
	}
}

func TestKeeperTouchesWhatIsNextToGo(t *testing.T) {
	w := newWorld(t, keepConfig(), 1)
	w.round(0)
	w.want(wanted(KeepPinned, 20, 0), prefix(1, 20))
	w.obey(w.round(time.Second))
	if o := w.round(2 * touchEvery); len(o) != 0 {
		t.Fatalf("a cache that evicts nothing: %+v", o)
	}
	w.places[0].Held = 95_000
	o := w.round(touchEvery)
	if len(o) != 1 || o[0].Why != KeepTouch {
		t.Fatalf("a cache that is full: %+v", o)
	}
	w.obey(o)
	if o := w.round(time.Second); len(o) != 0 {
		t.Fatalf("just touched: %+v", o)
	}
}

func TestKeeperWarmsWhatIsNew(t *testing.T) {
	w := newWorld(t, keepConfig(), 2)
	w.round(0)
	hot := prefix(1, 40)
	depth := 0
	for range 10 {
		depth = max(depth, w.k.Asked(w.now, hot))
	}
	if depth != 32 {
		t.Fatalf("hot to %d keys, want 32", depth)
	}
	w.want(wanted(KeepHot, depth, hotLife), hot)
	if w.k.Asked(w.now, hot) != 0 {
		t.Error("the text is wanted twice")
	}
	if o := w.round(time.Second); len(o) != 0 {
		t.Fatalf("nothing is new: %+v", o)
	}
	id := w.join()
	o := w.round(time.Second)
	if len(o) != 1 || o[0].Endpoint != id || o[0].Why != KeepWarm {
		t.Fatalf("a new endpoint: %+v", o)
	}
	w.obey(o)
	if o := w.round(time.Second); len(o) != 0 {
		t.Fatalf("it has it: %+v", o)
	}
}

func TestKeeperQuota(t *testing.T) {
	w := newWorld(t, keepConfig(), 1)
	first := w.want(wanted(KeepDeclared, 60, time.Minute), prefix(1, 60))
	w.now++
	second := w.want(wanted(KeepDeclared, 60, time.Minute), prefix(2, 60))
	w.now++
	w.k.Asked(w.now, prefix(1, 60)) // so that the second is the least recent
	w.now++
	w.want(wanted(KeepDeclared, 60, time.Minute), prefix(3, 60))
	if _, ok := w.k.Find(first); !ok {
		t.Error("the more recent one was given up")
	}
	if _, ok := w.k.Find(second); ok || w.k.Counts().Dropped[KeepQuota] != 1 {
		t.Errorf("the least recent one stayed: %+v", w.k.Counts())
	}
	if gone := w.k.Gone(nil); len(gone) != 1 || gone[0] != second {
		t.Errorf("gone %v", gone)
	}
	pin := w.want(wanted(KeepPinned, 140, 0), prefix(4, 140))
	if _, why := w.k.Want(w.now, wanted(KeepPinned, 20, 0), prefix(5, 20)); why != KeepQuota {
		t.Errorf("a pin over quota: %v", why)
	}
	if _, why := w.k.Want(w.now, wanted(KeepDeclared, 20, time.Minute), prefix(5, 20)); why != KeepQuota {
		t.Errorf("a declaration over quota: %v", why)
	}
	if _, ok := w.k.Find(pin); !ok {
		t.Error("a pin was given up")
	}
}

func TestKeeperSessionsGrow(t *testing.T) {
	w := newWorld(t, keepConfig(), 1)
	for turn := 1; turn <= 5; turn++ {
		named, plain := wanted(KeepDeclared, 4*turn, time.Minute), wanted(KeepDeclared, 4*turn, time.Minute)
		named.Name = "s"
		w.want(named, prefix(1, 4*turn))
		w.want(plain, prefix(2, 4*turn))
	}
	if kept := w.k.Kept(w.now); len(kept) != 2 || w.k.Counts().Dropped[KeepReplaced] != 8 {
		t.Errorf("%d are kept: %+v", len(kept), w.k.Counts())
	}
	if e, ok := w.k.Named("", "s"); !ok || e.Depth != 20 {
		t.Errorf("session %+v", e)
	}
	if kept := w.k.Kept(w.now.Add(time.Minute)); len(kept) != 0 || w.k.Counts().Dropped[KeepExpired] != 2 {
		t.Errorf("after their lifetime: %d", len(kept))
	}
}

// TestKeeperKeepsItsBounds drives a keeper with random histories.
func TestKeeperKeepsItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := keepConfig()
		c.MaxBytes = 64 << 10
		c.Quotas = map[string]fleet.Tokens{"b": 3000}
		w := &world{t: fakeTB{}, k: NewKeeper(c), now: 1, has: map[fleet.EndpointID]map[Key]bool{}}
		for range rapid.IntRange(1, 4).Draw(t, "endpoints") {
			w.join()
		}
		w.round(0)
		pins := map[KeepID]Key{}
		begun := w.now
		spent, longest := map[fleet.EndpointID]float64{}, 0.0
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			talk, n := rapid.IntRange(1, 12).Draw(t, "talk"), rapid.IntRange(1, 64).Draw(t, "keys")
			switch rapid.SampledFrom([]string{"declare", "declare", "pin", "unpin", "ask", "round", "round", "evict", "busy", "join"}).Draw(t, "step") {
			case "declare", "pin":
				v := wanted(KeepDeclared, n, time.Duration(rapid.IntRange(1, 300).Draw(t, "life"))*time.Second)
				if rapid.Bool().Draw(t, "pinned") {
					v.Source, v.Life = KeepPinned, 0
				}
				v.Tenant = rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "tenant")
				if id, why := w.k.Want(w.now, v, prefix(talk, n)); why == KeepFine {
					if e, ok := w.k.Find(id); ok && e.Source == KeepPinned {
						pins[id] = e.Key
					}
				}
			case "unpin":
				for _, id := range slices.Sorted(maps.Keys(pins)) {
					if key := pins[id]; w.k.Unpin(id) {
						maps.DeleteFunc(pins, func(_ KeepID, k Key) bool { return k == key })
						break
					}
				}
			case "ask":
				if hot := w.k.Asked(w.now, prefix(talk, n)); hot > 0 {
					w.k.Want(w.now, wanted(KeepHot, hot, hotLife), prefix(talk, n))
				}
			case "evict":
				clear(w.has[w.places[talk%len(w.places)].ID])
			case "busy":
				w.places[talk%len(w.places)].Idle = rapid.Bool().Draw(t, "idle")
			case "join":
				if len(w.places) < 6 {
					w.join()
				}
			case "round":
				orders := w.round(time.Duration(rapid.IntRange(0, 20_000).Draw(t, "ms")) * time.Millisecond)
				for _, o := range orders {
					if p := w.places[o.Endpoint-1]; !p.Idle {
						t.Fatalf("an order to an endpoint that is busy")
					}
					if o.Why != KeepWarm {
						spent[o.Endpoint] += o.Seconds
						longest = max(longest, o.Seconds)
					}
				}
				w.obey(orders)
			}
			check(t, w, pins)
			allowed := c.Share*(w.now.Sub(begun).Seconds()+budgetFor.Seconds()) + longest
			for id, s := range spent {
				if s > allowed+1e-9 {
					t.Fatalf("endpoint %d was kept busy for %.2f s, allowed %.2f", id, s, allowed)
				}
			}
		}
	})
}

// check holds a keeper to its bounds, and to the pins it has taken.
func check(t *rapid.T, w *world, pins map[KeepID]Key) {
	tokens, bytes := map[string]fleet.Tokens{}, 0
	seen := map[Key]bool{}
	for _, e := range w.k.Kept(w.now) {
		bytes += e.Bytes
		if e.charged() {
			tokens[e.Tenant] += e.Tokens
		}
		if w.now >= e.Until() {
			t.Fatalf("%v is past its lifetime", e)
		}
		if seen[e.Key] {
			t.Fatalf("kept twice: %v", e)
		}
		seen[e.Key] = true
	}
	for tenant, n := range tokens {
		if q := w.k.c.QuotaOf(tenant); n > q || n != w.k.Spent()[tenant] {
			t.Fatalf("tenant %q has %d tokens kept, by the books %d, quota %d", tenant, n, w.k.Spent()[tenant], q)
		}
	}
	if bytes > w.k.c.MaxBytes || bytes != w.k.Bytes() {
		t.Fatalf("%d bytes, by the books %d, of %d", bytes, w.k.Bytes(), w.k.c.MaxBytes)
	}
	w.k.Gone(nil)
	for id, key := range pins {
		// A newer pin of the same prefix may have taken its place.
		if e := w.k.byKey[key]; e == nil || e.Source != KeepPinned {
			t.Fatalf("pin %d is gone", id)
		}
	}
	if n := len(w.k.hot.now); n > maxCounted+16 {
		t.Fatalf("%d prefixes are counted", n)
	}
}

// fakeTB stands for a test where a world needs none.
type fakeTB struct{ testing.TB }
