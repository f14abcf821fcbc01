package control

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
)

// fakeEngines answers from fields, in virtual time.
type fakeEngines struct {
	scrapes, probes atomic.Int64
	down            atomic.Bool
}

func (f *fakeEngines) Scrape(_ context.Context, _ engine.Dialect, _ string, buf []byte) (engine.Reading, fleet.Failure, []byte, error) {
	f.scrapes.Add(1)
	if f.down.Load() {
		return engine.Reading{}, fleet.FailConnect, buf, errors.New("refused")
	}
	return engine.Reading{Gauges: fleet.Gauges{Known: fleet.KnownRunning | fleet.KnownWaiting, Running: 2}}, fleet.FailNone, buf, nil
}

func (f *fakeEngines) ScrapeRank(ctx context.Context, d engine.Dialect, base string, _ int, buf []byte) (engine.Reading, fleet.Failure, []byte, error) {
	return f.Scrape(ctx, d, base, buf)
}

func (f *fakeEngines) Healthy(context.Context, engine.Dialect, string) error {
	f.probes.Add(1)
	if f.down.Load() {
		return errors.New("refused")
	}
	return nil
}

func TestLoopsReadEjectProbeAndStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		fake := &fakeEngines{}
		loops := &Loops{Engines: fake, Interval: time.Second, Timeout: time.Second, Log: slog.New(slog.DiscardHandler)}
		loops.Dialect, _ = engine.DialectByName("vllm")
		var states []health.State
		p, err := live.NewPool(live.Options{
			Name: "p", Config: pool.Default(),
			Probe:   func(e live.Endpoint) { loops.Probe(ctx, e) },
			Fitness: func(_ live.Endpoint, s health.State, _ fleet.Failure) { states = append(states, s) },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		loops.Pool = p
		e := p.Add(live.Target{Name: "a", URL: "http://a"})
		loops.Watch(ctx, e)

		time.Sleep(10 * time.Second) // virtual
		synctest.Wait()
		if n := fake.scrapes.Load(); n < 9 || n > 12 {
			t.Errorf("%d readings in ten intervals", n)
		}
		var snap fleet.Snapshot
		p.View(&snap)
		if s := snap.Endpoints[0]; s.External != 2 || s.SampleAge > 2*time.Second {
			t.Errorf("gauges did not arrive: %+v", s)
		}

		fake.down.Store(true)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if p.View(&snap); snap.Endpoints[0].Health != "ejected" || fake.probes.Load() == 0 {
			t.Errorf("a dead endpoint is %s after 5 s, %d probes", snap.Endpoints[0].Health, fake.probes.Load())
		}
		fake.down.Store(false)
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if p.View(&snap); snap.Endpoints[0].Health != "trial" {
			t.Errorf("a returned endpoint is %s", snap.Endpoints[0].Health)
		}
		if len(states) != 2 {
			t.Errorf("health changed %v, want ejected and trial", states)
		}
		stop()
		loops.Wait()
	})
}
