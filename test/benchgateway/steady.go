//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// idleEndpoints measures a gateway that does nothing but read the gauges of n
// endpoints, in cores. It is a mean: readings come in waves.
func (b *bench) idleEndpoints(n int) (float64, error) {
	fmt.Fprintf(b.log, "%d idle endpoints:", n)
	defer fmt.Fprintln(b.log)
	f, err := newFleet(n)
	if err != nil {
		return 0, err
	}
	defer f.close()
	p, err := startPenstock("penstock-idle", b.dir, b.options.penstock, f.urls())
	if err != nil {
		return 0, err
	}
	defer p.stop()
	time.Sleep(5 * time.Second)
	if f.scrapes.Load() < int64(n) {
		return 0, fmt.Errorf("only %d pages of %d endpoints have been read", f.scrapes.Load(), n)
	}
	w := openWindow(p)
	time.Sleep(b.plan.idle)
	u := w.close()
	fmt.Fprintf(b.log, " %d pages read", f.scrapes.Load())
	return u.cpu / u.wall, nil
}

// openStreams measures the memory of a fresh gateway, and of the others, while
// n streams are open, in bytes by subject.
func (b *bench) openStreams(template body, n int) (map[string]float64, error) {
	fmt.Fprintf(b.log, "%d open streams:", n)
	defer fmt.Fprintln(b.log)
	const gap, hold = 250 * time.Millisecond, 6 * time.Second
	subjects, err := startAll(b.options, b.dir, b.fleet.urls())
	if err != nil {
		return nil, err
	}
	defer stopAll(subjects)
	out := map[string]float64{}
	for _, name := range []string{penstock, haproxy, floor, versus} {
		p := subjects[name]
		if p == nil {
			continue
		}
		var failed error
		inWindow := func() {
			// The largest of several readings: a collector gives memory back when it
			// pleases.
			for until := time.Now().Add(hold); time.Now().Before(until); time.Sleep(gap) {
				r, err := p.rss()
				failed = errors.Join(failed, err)
				out[name] = max(out[name], r)
			}
		}
		o := order{events: int((hold + 2*time.Second) / gap), gap: gap, phase: spread}
		if _, err := streaming(b.fleet, p.addr, template, n, o, &b.number, inWindow); err != nil {
			return nil, errors.Join(err, failed)
		}
		fmt.Fprint(b.log, " ", name)
	}
	return out, nil
}

// allocations measures how many objects the gateway allocates for each event of
// a stream, over and above what it allocates idle. Nothing is returned when the
// machine was busy: streams that do not keep their pace leave the background's
// allocations to fewer events.
func (b *bench) allocations(ctx context.Context, template body, n int) ([]float64, error) {
	fmt.Fprint(b.log, "allocations per event:")
	defer fmt.Fprintln(b.log)
	for range attempts {
		per, u, err := b.allocationsOnce(ctx, template, n)
		if err != nil {
			return nil, err
		}
		if b.options.busy || u.driver <= maxDriver {
			fmt.Fprintf(b.log, " %.4f", per)
			return []float64{per}, nil
		}
		b.voided++
	}
	return nil, nil
}

func (b *bench) allocationsOnce(ctx context.Context, template body, n int) (float64, usage, error) {
	const span = 3 * time.Second
	p := b.subjects[penstock]
	var failed error
	over := func() (objects, events float64) {
		from, err := p.mallocs(ctx)
		begun := b.fleet.events.Load()
		time.Sleep(span)
		events = float64(b.fleet.events.Load() - begun)
		to, err2 := p.mallocs(ctx)
		failed = errors.Join(failed, err, err2)
		return to - from, events
	}
	idle, _ := over()
	var per float64
	var u usage
	inWindow := func() {
		time.Sleep(300 * time.Millisecond)
		w := openWindow(p)
		objects, events := over()
		u = w.close()
		per = max(objects-idle, 0) / events
	}
	o := order{events: int((span + time.Second) / streamGap), gap: streamGap, phase: together}
	_, err := streaming(b.fleet, p.addr, template, n, o, &b.number, inWindow)
	return per, u, errors.Join(err, failed)
}

var benchLine = regexp.MustCompile(`(?m)^BenchmarkDecision/endpoints=(\d+)\S*\s+\d+\s+([0-9.]+) ns/op`)

// decisions runs the brain's own benchmark of one request, from its arrival to
// its end, on the subjects' core. It returns seconds by number of endpoints.
func (b *bench) decisions(ctx context.Context) (map[string][]float64, error) {
	fmt.Fprint(b.log, "decision:")
	defer fmt.Fprintln(b.log)
	binary := filepath.Join(b.dir, "pool.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, "./internal/pool")
	build.Env = append(os.Environ(), "GOMAXPROCS=2")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the decision benchmark: %w: %s", err, out)
	}
	times := map[string][]float64{}
	b.retries = b.plan.rounds
	for round := 0; round <= b.plan.rounds; round++ {
		begun := time.Now()
		run := exec.CommandContext(ctx, "taskset", "-c", strconv.Itoa(subjectCore), binary,
			"-test.run", "^$", "-test.bench", "^BenchmarkDecision$/^endpoints=(8|512)$", "-test.benchtime", b.plan.benchTime)
		run.Dir = filepath.Join("internal", "pool")
		run.Env = append(os.Environ(), "GOMAXPROCS=1")
		out, err := run.CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("decision benchmark: %w: %s", err, out)
		}
		found := benchLine.FindAllStringSubmatch(string(out), -1)
		if len(found) == 0 {
			return nil, fmt.Errorf("decision benchmark said nothing of use: %s", out)
		}
		fmt.Fprint(b.log, " ", round)
		if round == 0 {
			continue
		}
		own := run.ProcessState.UserTime() + run.ProcessState.SystemTime()
		if !b.options.busy && own.Seconds() < minOwn*time.Since(begun).Seconds() {
			if b.voided++; b.retries > 0 { // the benchmark measures by the clock
				b.retries--
				round--
			}
			continue
		}
		for _, m := range found {
			ns, err := strconv.ParseFloat(m[2], 64)
			if err != nil {
				return nil, err
			}
			times[m[1]] = append(times[m[1]], ns/1e9)
		}
	}
	return times, nil
}
