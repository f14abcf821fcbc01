// Package control runs the loops around a pool: it reads the gauges of its
// endpoints and probes those that health has taken out. It decides nothing; it
// brings news.
package control

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
)

// Engines is what the loops ask of the engine client.
type Engines interface {
	// Scrape reads an endpoint's gauges; buf is scratch memory, returned for
	// reuse. A reading without any gauge says that the endpoint tells none and
	// seems fit.
	Scrape(ctx context.Context, d engine.Dialect, base string, buf []byte) (engine.Reading, fleet.Failure, []byte, error)
	// ScrapeRank is Scrape of one data-parallel rank among several behind base.
	ScrapeRank(ctx context.Context, d engine.Dialect, base string, rank int, buf []byte) (engine.Reading, fleet.Failure, []byte, error)
	// Healthy returns nil when the endpoint can serve.
	Healthy(ctx context.Context, d engine.Dialect, base string) error
}

// Loops are the control loops of one pool. The zero value is not usable; set
// every field.
type Loops struct {
	Pool     *live.Pool
	Engines  Engines
	Dialect  engine.Dialect
	Interval time.Duration // between two readings of an endpoint that is busy or failing
	Idle     time.Duration // the longest time between two readings of one that is neither
	Timeout  time.Duration // of one reading or probe
	Log      *slog.Logger

	// Lister, when set, is asked from time to time what an endpoint serves, and
	// Listed is told; of an endpoint that is no longer watched it is told nil.
	Lister Lister
	Listed func(e live.Endpoint, models []engine.Model)

	running sync.WaitGroup
}

// Watch reads an endpoint's gauges until ctx ends. The readings of many
// endpoints are spread over the interval.
func (l *Loops) Watch(ctx context.Context, e live.Endpoint) {
	l.running.Go(func() { l.watch(ctx, e) })
}

// Wait returns when every loop and probe has ended.
func (l *Loops) Wait() { l.running.Wait() }

func (l *Loops) watch(ctx context.Context, e live.Endpoint) {
	// The first reading comes early, but not everyone's at once.
	timer := time.NewTimer(rand.N(l.Interval/4 + 1))
	defer timer.Stop()
	var buf []byte
	failing := false
	pause := l.Interval
	if l.Lister != nil {
		defer l.Listed(e, nil)
	}
	var listed time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		var err error
		buf, err = l.read(ctx, e, buf)
		if ctx.Err() != nil {
			return
		}
		if (err != nil) != failing {
			failing = err != nil
			l.report(e, err)
		}
		if l.Lister != nil && !failing && time.Since(listed) >= listEvery && l.list(ctx, e) {
			listed = time.Now()
		}
		if failing || l.Pool.Busy(e) {
			pause = l.Interval
		} else {
			// What nobody uses changes slowly; the ledger knows at once when that
			// ends.
			pause = min(pause*3/2, max(l.Idle, l.Interval))
		}
		// A tenth of jitter keeps gateways that started together from scraping
		// together.
		timer.Reset(pause*9/10 + rand.N(pause/5+1))
	}
}

// read takes one reading and tells the pool.
func (l *Loops) read(ctx context.Context, e live.Endpoint, buf []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, l.Timeout)
	defer cancel()
	r, failure, buf, err := l.scrape(ctx, e, buf)
	if r.Known != 0 || failure != fleet.FailNone {
		l.Pool.SampledWith(e, l.Pool.Now(), r.Gauges, r.Adapters, failure)
	}
	return buf, err
}

// scrape asks for what is an endpoint's own: the gauges of ranks that share a port
// are not those of any one of them.
func (l *Loops) scrape(ctx context.Context, e live.Endpoint, buf []byte) (engine.Reading, fleet.Failure, []byte, error) {
	if e.Rank.Shared {
		return l.Engines.ScrapeRank(ctx, l.Dialect, e.URL, e.Rank.Index, buf)
	}
	return l.Engines.Scrape(ctx, l.Dialect, e.URL, buf)
}

func (l *Loops) report(e live.Endpoint, err error) {
	if err != nil {
		l.Log.Warn("endpoint's gauges cannot be read; routing goes on by the ledger", "pool", l.Pool.Name(), "endpoint", e.Name, "err", err)
		return
	}
	l.Log.Info("endpoint's gauges are read again", "pool", l.Pool.Name(), "endpoint", e.Name)
}

// Probe finds out in the background whether an endpoint is fit and tells the
// pool.
func (l *Loops) Probe(ctx context.Context, e live.Endpoint) {
	l.running.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, l.Timeout)
		defer cancel()
		err := l.Engines.Healthy(ctx, l.Dialect, e.URL)
		if err != nil {
			l.Log.Debug("probe failed", "pool", l.Pool.Name(), "endpoint", e.Name, "err", err)
		}
		l.Pool.Probed(e, err == nil)
	})
}
