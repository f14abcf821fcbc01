//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"time"
)

// plan is how long things are measured.
type plan struct {
	rounds     int           // that count; one more comes first as warm-up
	requests   int           // 2 KB, per slice
	large      int           // 100 KB, per slice
	longGap    time.Duration // between events of long requests; half of it where few are under way
	longEvents int
	window     time.Duration // of 200 streams
	delays     int           // events per stream when delays are measured
	idle       time.Duration // in the life of 100 idle endpoints
	benchTime  string        // of the decision
}

func fullPlan() plan {
	return plan{
		rounds: 10, requests: 1000, large: 200, longGap: 4 * time.Millisecond, longEvents: 1000, window: 1500 * time.Millisecond,
		delays: 100, idle: 15 * time.Second, benchTime: "0.4s",
	}
}

func quickPlan() plan {
	p := fullPlan()
	p.rounds, p.requests, p.large, p.longGap, p.window = 3, 300, 60, 2*time.Millisecond, 500*time.Millisecond
	p.delays, p.idle, p.benchTime = 40, 6*time.Second, "0.1s"
	return p
}

// The validity of a slice: beyond these shares the machine was measured, not
// the gateway.
const (
	maxDriver  = 0.70
	maxForeign = 0.25 // of the subjects' core, where delays are measured
	minOwn     = 0.80 // of a core, for what runs alone and never waits
	attempts   = 4    // for one slice
)

// bench is one run.
type bench struct {
	options  options
	plan     plan
	log      io.Writer
	dir      string
	fleet    *fleet
	subjects map[string]*process
	number   int // of the last request
	random   *rand.Rand
	driver   []float64 // busy shares of the driver's core, all slices that count
	voided   int       // slices that did not count
	retries  int       // left for the present part, so that a run on a busy machine ends
}

// samples holds, per measure and subject, one value per round.
type samples map[string]map[string][]float64

func (s samples) add(measure, subject string, v float64) {
	if s[measure] == nil {
		s[measure] = map[string][]float64{}
	}
	s[measure][subject] = append(s[measure][subject], v)
}

// slice measures one subject once.
type slice func(p *process) (map[string]float64, usage, error)

// interleave runs rounds, each with all subjects in random order, and drops the
// first. A round that has a slice which is void after several attempts is no
// round.
func (b *bench) interleave(ctx context.Context, title string, names []string, foreign bool, run slice) (samples, error) {
	if b.options.versus != "" {
		names = append(names, versus)
	}
	fmt.Fprintf(b.log, "%s:", title)
	defer fmt.Fprintln(b.log)
	out := samples{}
	b.retries = b.plan.rounds * len(names) / 2
	for round := range b.plan.rounds + 1 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b.random.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
		values := map[string]map[string]float64{}
		for _, name := range names {
			v, err := b.valid(b.subjects[name], foreign, run)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", title, name, err)
			}
			if v != nil {
				values[name] = v
			}
		}
		fmt.Fprint(b.log, " ", round)
		if round == 0 || len(values) < len(names) {
			continue
		}
		for name, v := range values {
			for measure, x := range v {
				out.add(measure, name, x)
			}
		}
	}
	if p := b.subjects[penstock]; b.options.profile != "" && p != nil {
		return out, b.record(ctx, title, p, run)
	}
	return out, nil
}

// record takes profiles of the gateway under one more slice's load, outside
// the rounds that count.
func (b *bench) record(ctx context.Context, title string, p *process, run slice) error {
	const span = 5 * time.Second
	got := make(chan error)
	for _, kind := range []string{"profile", "allocs"} {
		go func() {
			got <- p.profile(ctx, kind, filepath.Join(b.options.profile, strings.ReplaceAll(title, " ", "_")+"."+kind), span)
		}()
	}
	var failed error
	for until := time.Now().Add(span); time.Now().Before(until) && failed == nil; {
		_, _, failed = run(p)
	}
	return errors.Join(failed, <-got, <-got)
}

// valid repeats a slice until it counts; nil when it never does.
func (b *bench) valid(p *process, foreign bool, run slice) (map[string]float64, error) {
	for again := range attempts {
		if again > 0 {
			if b.retries--; b.retries < 0 {
				break
			}
		}
		v, u, err := run(p)
		if err != nil {
			return nil, err
		}
		if b.options.busy || u.driver <= maxDriver && (!foreign || u.foreign <= maxForeign) {
			b.driver = append(b.driver, u.driver)
			return v, nil
		}
		b.voided++
	}
	return nil, nil
}

// whole measures processor time and added latency of answers that are not
// streamed.
func (b *bench) whole(template body, rate float64, n int) slice {
	return func(p *process) (map[string]float64, usage, error) {
		seed := b.random.Uint64()
		if _, err := paced(p.addr, template, rate, n/5, &b.number, seed); err != nil {
			return nil, usage{}, err
		}
		w := openWindow(p)
		times, err := paced(p.addr, template, rate, n, &b.number, seed+1)
		u := w.close()
		return map[string]float64{
			"cpu": u.cpu / float64(n), "p50": quantile(times, 0.5), "p99": quantile(times, 0.99),
		}, u, err
	}
}

// long measures requests of 100k tokens that stream their answers, from the
// first byte to the last.
func (b *bench) long(template body, at int, gap time.Duration) slice {
	return func(p *process) (map[string]float64, usage, error) {
		w := openWindow(p)
		_, err := streaming(b.fleet, p.addr, template, at, order{events: b.plan.longEvents, gap: gap, phase: together}, &b.number, nil)
		u := w.close()
		return map[string]float64{"cpu": u.cpu / float64(at)}, u, err
	}
}

// streamGap is the time between two events of a stream.
const streamGap = 10 * time.Millisecond

// many measures streams that are under way: processor time per event, and what
// a Go process allocates for one.
func (b *bench) many(template body, n int) slice {
	const settle, tail = 300 * time.Millisecond, 200 * time.Millisecond
	return func(p *process) (map[string]float64, usage, error) {
		v := map[string]float64{}
		var u usage
		inWindow := func() {
			time.Sleep(settle)
			from := b.fleet.events.Load()
			w := openWindow(p)
			time.Sleep(b.plan.window)
			u = w.close()
			v["cpu"] = u.cpu / float64(b.fleet.events.Load()-from)
		}
		events := int((settle + b.plan.window + tail) / streamGap)
		_, err := streaming(b.fleet, p.addr, template, n, order{events: events, gap: streamGap, phase: together}, &b.number, inWindow)
		return v, u, err
	}
}

// delay measures the time from a mock's write to the client's read, with few
// streams that do not step together, so that no event waits for another's
// processor time.
func (b *bench) delay(template body, n int) slice {
	return func(p *process) (map[string]float64, usage, error) {
		addr := b.fleet.endpoints[0].listener.Addr().String()
		if p != nil {
			addr = p.addr
		}
		w := openWindow(p)
		receipts, err := streaming(b.fleet, addr, template, n, order{events: b.plan.delays, gap: streamGap, phase: spread}, &b.number, nil)
		u := w.close()
		var all []float64
		for _, r := range receipts {
			all = append(all, r.delays...)
		}
		return map[string]float64{"p50": quantile(all, 0.5), "p99": quantile(all, 0.99)}, u, err
	}
}
