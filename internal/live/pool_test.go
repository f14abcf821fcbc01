package live

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/journal"
	"penstock.dev/penstock/internal/pool"
)

// newPool makes a pool that admits one request per endpoint and lets ten wait
// for ten seconds. It is closed with the test.
func newPool(t *testing.T, tune func(*Options)) *Pool {
	t.Helper()
	o := Options{Name: "p", Config: pool.Default()}
	o.Config.Policy.Name = "round-robin"
	o.Config.Room.MaxInFlight = 1
	o.Config.Queue.MaxRequests, o.Config.Queue.MaxWait = 10, 10*time.Second
	if tune != nil {
		tune(&o)
	}
	p, err := NewPool(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func open(p *Pool) *Ticket { return p.Open("id", &pool.Arrive{Prompt: 100}) }

// placed waits for a dispatch.
func placed(t *testing.T, k *Ticket) Order {
	t.Helper()
	o, err := k.Wait(t.Context())
	if err != nil || o.Refusal != fleet.RefuseNone {
		t.Fatalf("order %+v, %v; want a dispatch", o, err)
	}
	return o
}

// refused waits for a refusal.
func refused(t *testing.T, k *Ticket, want fleet.Refusal) {
	t.Helper()
	if o, err := k.Wait(t.Context()); err != nil || o.Refusal != want {
		t.Fatalf("order %+v, %v; want refusal %v", o, err, want)
	}
}

// empty checks that the ledger holds nothing and that every request is counted.
func empty(t *testing.T, p *Pool) {
	t.Helper()
	var s fleet.Snapshot
	p.View(&s)
	for _, e := range s.Endpoints {
		if e.InFlight != 0 || e.Backlog != 0 || e.Active != 0 {
			t.Errorf("endpoint %d still holds %d requests, backlog %d, active %d", e.ID, e.InFlight, e.Backlog, e.Active)
		}
	}
	c := p.Tally()
	if s.Queued != 0 || c.InFlight != 0 || c.Arrived != c.Done+c.Shed+c.Expired+c.Failed+c.Cancelled {
		t.Errorf("queued %d, tally %+v", s.Queued, c)
	}
	if n := len(p.tickets); n != 0 {
		t.Errorf("%d tickets are kept", n)
	}
}

func TestRequestWaitsForRoomAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, nil)
		e := p.Add(Target{Name: "a", URL: "http://a"})
		first, second := open(p), open(p)
		if o := placed(t, first); o.Endpoint != e || o.Attempt != 1 {
			t.Fatalf("order %+v, want attempt 1 at %+v", o, e)
		}
		got := make(chan Order)
		go func() {
			o, _ := second.Wait(t.Context())
			got <- o
		}()
		synctest.Wait()
		if n := p.Tally().Queued; n != 1 {
			t.Fatalf("%d queued, want 1", n)
		}
		first.Sent(func() { t.Error("an attempt that ended was cancelled") })
		first.FirstToken()
		first.Done(fleet.Usage{})
		first.Close()
		if o := <-got; o.Endpoint != e {
			t.Fatalf("order %+v, want %+v", o, e)
		}
		if d := second.Decisions(); len(d) != 1 || d[0].Chosen != e.ID || len(d[0].Candidates) != 1 {
			t.Errorf("decisions %+v", d)
		}
		second.Done(fleet.Usage{})
		second.Close()
		empty(t, p)
	})
}

func TestQueueExpiryIsTimely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, nil)
		p.Add(Target{Name: "a", URL: "http://a"})
		holder := open(p)
		placed(t, holder)
		start := time.Now()
		older := open(p)
		time.Sleep(3 * time.Second)
		younger := open(p)
		refused(t, older, fleet.RefuseExpired)
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("the older expired after %v, want 10 s", d)
		}
		refused(t, younger, fleet.RefuseExpired)
		if d := time.Since(start); d != 13*time.Second {
			t.Errorf("the younger expired after %v, want 13 s", d)
		}
		for _, k := range []*Ticket{older, younger, holder} {
			k.Close()
		}
		empty(t, p)
		if c := p.Tally(); c.Expired != 2 || c.Cancelled != 1 {
			t.Errorf("tally %+v", c)
		}
	})
}

func TestClientGoneWhileQueuedAndInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, nil)
		p.Add(Target{Name: "a", URL: "http://a"})
		flying, queued := open(p), open(p)
		placed(t, flying)
		cancelled := false
		flying.Sent(func() { cancelled = true })

		ctx, leave := context.WithCancelCause(t.Context())
		why := errors.New("client left")
		leave(why)
		if _, err := queued.Wait(ctx); !errors.Is(err, why) {
			t.Errorf("wait ended with %v, want the cause", err)
		}
		queued.Close()
		if c := p.Tally(); c.Queued != 0 || c.Cancelled != 1 {
			t.Errorf("after the queued one left: %+v", c)
		}
		flying.Close()
		if !cancelled {
			t.Error("the attempt under way was not cancelled")
		}
		flying.Close() // a second close is nothing
		empty(t, p)
		if c := p.Tally(); c.Cancelled != 2 {
			t.Errorf("tally %+v", c)
		}
	})
}

func TestRetryGoesToAnotherEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, nil)
		p.Add(Target{Name: "a", URL: "http://a"})
		p.Add(Target{Name: "b", URL: "http://b"})
		k := open(p)
		first := placed(t, k)
		if !k.Failed(fleet.FailConnect, false) {
			t.Fatal("no order follows a connect failure")
		}
		second := placed(t, k)
		if second.Endpoint.ID == first.Endpoint.ID || second.Attempt != 2 {
			t.Errorf("second order %+v after %+v", second, first)
		}
		if k.Failed(fleet.FailStream, true) {
			t.Error("an order follows although the client has seen part of the answer")
		}
		k.Close()
		empty(t, p)
		if c := p.Tally(); c.Failed != 1 || c.Retried != 1 || c.Cancelled != 0 {
			t.Errorf("tally %+v", c)
		}
	})
}

// TestEjectedEndpointIsProbedAndComesBack follows one endpoint out, through
// probes on the clock, and back.
func TestEjectedEndpointIsProbedAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		probes := make(chan Endpoint, 10)
		var states []health.State
		p := newPool(t, func(o *Options) {
			o.Config.Health.Consecutive, o.Config.Health.ProbeFirst, o.Config.Health.ProbeMax = 1, time.Second, 4*time.Second
			o.Probe = func(e Endpoint) { probes <- e }
			o.Fitness = func(_ Endpoint, s health.State, _ fleet.Failure) { states = append(states, s) }
		})
		e := p.Add(Target{Name: "a", URL: "http://a"})
		k := open(p)
		placed(t, k)
		k.Failed(fleet.FailConnect, false)
		refused(t, k, fleet.RefuseEngine)
		k.Close()

		none := open(p)
		refused(t, none, fleet.RefuseNoEndpoint)
		none.Close()

		out := time.Now()
		for i, at := range []time.Duration{time.Second, 2500 * time.Millisecond} {
			if got := <-probes; got != e || time.Since(out) != at {
				t.Fatalf("probe %d of %v after %v, want after %v", i, got.Name, time.Since(out), at)
			}
			p.Probed(e, i == 1)
		}
		if len(states) != 2 || states[0] != health.Ejected || states[1] != health.Trial {
			t.Fatalf("fitness went %v, want ejected, trial", states)
		}
		trial := open(p)
		placed(t, trial)
		trial.FirstToken()
		trial.Done(fleet.Usage{})
		trial.Close()
		if len(states) != 3 || states[2] != health.Healthy {
			t.Errorf("fitness went %v, want healthy last", states)
		}
		empty(t, p)
	})
}

// TestWithoutProberTheNextRequestIsTheProbe: an ejected endpoint must not stay
// out for ever because nobody looks.
func TestWithoutProberTheNextRequestIsTheProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, func(o *Options) { o.Config.Health.Consecutive = 1 })
		p.Add(Target{Name: "a", URL: "http://a"})
		k := open(p)
		placed(t, k)
		k.Failed(fleet.FailConnect, false)
		refused(t, k, fleet.RefuseEngine)
		k.Close()
		time.Sleep(p.options.Config.Health.ProbeFirst)
		synctest.Wait()
		k = open(p)
		placed(t, k)
		k.Done(fleet.Usage{})
		k.Close()
		empty(t, p)
	})
}

func TestCloseRefusesWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, nil)
		p.Add(Target{Name: "a", URL: "http://a"})
		flying, queued := open(p), open(p)
		placed(t, flying)
		got := make(chan Order)
		go func() {
			o, _ := queued.Wait(t.Context())
			got <- o
		}()
		synctest.Wait()
		p.Close()
		p.Close() // a second close is nothing
		if o := <-got; o.Refusal != fleet.RefuseDraining {
			t.Errorf("the waiting one got %+v, want a draining refusal", o)
		}
		if flying.Failed(fleet.FailConnect, false) {
			refused(t, flying, fleet.RefuseDraining)
		}
		late := open(p)
		refused(t, late, fleet.RefuseDraining)
		for _, k := range []*Ticket{flying, queued, late} {
			k.Close()
		}
	})
}

func TestEndpointsByName(t *testing.T) {
	p := newPool(t, nil)
	a := p.Add(Target{Name: "a", URL: "http://a"})
	if again := p.Add(Target{Name: "a", URL: "http://a"}); again.ID != a.ID || again.Gen != a.Gen {
		t.Errorf("the same target became %+v after %+v", again, a)
	}
	moved := p.Add(Target{Name: "a", URL: "http://a2"})
	if moved.ID != a.ID || moved.Gen <= a.Gen {
		t.Errorf("a target that moved became %+v after %+v, want a new generation", moved, a)
	}
	p.Remove(a) // speaks of the process that is gone
	if all := p.Endpoints(); len(all) != 1 || all[0] != moved {
		t.Fatalf("endpoints %+v after removing the old process, want %+v", all, moved)
	}
	k := open(p)
	if o := placed(t, k); o.Endpoint != moved {
		t.Errorf("placed at %+v, want %+v", o.Endpoint, moved)
	}
	p.Remove(moved)
	if name := p.EndpointName(moved.ID); name != "" || len(p.Endpoints()) != 0 {
		t.Errorf("removed, yet there is %q, %v", name, p.Endpoints())
	}
	k.Close()
	back := p.Add(Target{Name: "a", URL: "http://a"})
	if back.ID == moved.ID {
		t.Error("an endpoint id was used again")
	}
	p.Drain(back)
	k = open(p)
	refused(t, k, fleet.RefuseNoEndpoint)
	k.Close()
	p.Add(Target{Name: "a", URL: "http://a"})
	k = open(p)
	placed(t, k)
	k.Close()
	empty(t, p)
}

// failingWriter takes n writes and then none.
type failingWriter struct{ n int }

func (w *failingWriter) Write(b []byte) (int, error) {
	if w.n--; w.n < 0 {
		return 0, errors.New("disk full")
	}
	return len(b), nil
}

func TestServingGoesOnWithoutAJournal(t *testing.T) {
	rec, err := pool.NewRecorder(journal.NewWriter(&failingWriter{n: 0}), pool.Default(), 1)
	if err != nil {
		t.Fatal(err)
	}
	p := newPool(t, func(o *Options) { o.Journal = rec })
	p.Add(Target{Name: "a", URL: "http://a"})
	for range 2000 { // enough to overflow the journal's buffer
		k := open(p)
		placed(t, k)
		k.Done(fleet.Usage{})
		k.Close()
	}
	if p.journaled {
		t.Error("the journal was never written to")
	}
	empty(t, p)
}

// TestJournalReplays holds that what a pool on the clock recorded, reconfigured
// and sampled on the way, gives the same actions again.
func TestJournalReplays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var raw bytes.Buffer
		jw := journal.NewWriter(&raw)
		p := newPool(t, func(o *Options) {
			o.Seed = 5
			rec, err := pool.NewRecorder(jw, o.Config, o.Seed)
			if err != nil {
				t.Fatal(err)
			}
			o.Journal = rec
		})
		a := p.Add(Target{Name: "a", URL: "http://a"})
		p.Add(Target{Name: "b", URL: "http://b"})
		p.Sampled(a, p.Now(), fleet.Gauges{Known: fleet.KnownRunning | fleet.KnownWaiting, Running: 3}, fleet.FailNone)
		c := p.options.Config
		c.Policy.Name = "p2c"
		p.Configure(c)
		for i := range 100 {
			k := open(p)
			placed(t, k)
			time.Sleep(time.Duration(i) * time.Millisecond)
			switch i % 3 {
			case 0:
				k.Done(fleet.Usage{})
			case 1:
				if k.Failed(fleet.FailOverload, false) {
					placed(t, k)
				}
			}
			k.Close()
		}
		if err := jw.Flush(); err != nil {
			t.Fatal(err)
		}
		jr, err := journal.NewReader(&raw)
		if err != nil {
			t.Fatal(err)
		}
		b, steps, err := pool.Replay(jr)
		if err != nil || steps < 200 || b.Tally() != p.Tally() {
			t.Errorf("after %d steps: %v; tally %+v, live %+v", steps, err, b.Tally(), p.Tally())
		}
	})
}
