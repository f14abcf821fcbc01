//go:build linux

package main

import (
	"context"
	"fmt"
	"time"
)

// Units of the table.
const (
	micro = 1e6
	milli = 1e3
	mega  = 1.0 / (1 << 20)
)

// part is a piece of the run that can be had alone.
type part struct {
	name string
	run  func(context.Context, *bench, *report) error
}

func parts() []part {
	return []part{
		{"small", small}, {"large", large}, {"long", long}, {"streams", many}, {"delay", delays}, {"idle", idle}, {"memory", memory}, {"decision", decision},
	}
}

func partNames() []string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

// small is requests of 2 KB that are not streamed, and the bench's check of
// itself.
func small(ctx context.Context, b *bench, r *report) error {
	const rate = 1000
	s, err := b.interleave(ctx, "2 KB, whole", []string{penstock, haproxy, floor, burnt}, false, b.whole(makeBody(2<<10, false, 1), rate, b.plan.requests))
	if err != nil {
		return err
	}
	cpu := s["cpu"]
	r.add("2 KB, not streamed: CPU per request", "µs", micro, cpu)
	r.add("2 KB, not streamed: latency p50", "ms", milli, s["p50"])
	r.add("2 KB, not streamed: latency p99", "ms", milli, s["p99"])
	r.promise("2 KB, not streamed: CPU against HAProxy's", "x", 0, 5, pairwise(cpu[penstock], cpu[haproxy], ratio))
	r.promise("self-check: 200 µs injected into each request", "µs", 150, 250, scaled(pairwise(cpu[burnt], cpu[floor], minus), micro))
	return nil
}

// large is requests of 100 KB that are not streamed.
func large(ctx context.Context, b *bench, r *report) error {
	const rate = 200
	s, err := b.interleave(ctx, "100 KB, whole", []string{penstock, haproxy, floor}, false, b.whole(makeBody(100<<10, false, 2), rate, b.plan.large))
	if err != nil {
		return err
	}
	r.add("100 KB, not streamed: CPU per request", "µs", micro, s["cpu"])
	r.promise("100 KB, not streamed: CPU", "ms", 0, 0.5, scaled(s["cpu"][penstock], milli))
	return nil
}

// long is requests of 100k tokens and 1,000 events: many at once, as a gateway
// that serves such prompts has them, which is what the goal is for, and few, when
// nearly every event has to wake the process.
func long(ctx context.Context, b *bench, r *report) error {
	template := makeBody(400<<10, true, 3)
	for _, at := range []struct {
		once int
		gap  time.Duration
		goal bool
	}{{40, b.plan.longGap, true}, {4, b.plan.longGap / 2, false}} {
		name := fmt.Sprintf("400 KB, 1,000 events, %d at once: CPU per request", at.once)
		s, err := b.interleave(ctx, fmt.Sprintf("400 KB, %d at once", at.once), []string{penstock, haproxy, floor}, false, b.long(template, at.once, at.gap))
		if err != nil {
			return err
		}
		r.add(name, "ms", milli, s["cpu"])
		if at.goal {
			r.promise(name, "ms", 0, 25, scaled(s["cpu"][penstock], milli))
		}
	}
	return nil
}

// many is 200 streams with 10 ms between events. That what came in went out, to
// the byte, is checked for every stream; a difference ends the run.
func many(ctx context.Context, b *bench, r *report) error {
	const streams = 200
	template := makeBody(2<<10, true, 4)
	s, err := b.interleave(ctx, "200 streams", []string{penstock, haproxy, floor}, false, b.many(template, streams))
	if err != nil {
		return err
	}
	cpu := s["cpu"]
	r.add("200 streams: CPU per event", "µs", micro, cpu)
	r.promise("200 streams: CPU per event against HAProxy's", "x", 0, 2.5, pairwise(cpu[penstock], cpu[haproxy], ratio))
	per, err := b.allocations(ctx, template, streams)
	if err != nil {
		return err
	}
	// Reports of progress, four a second for each stream, are not per event.
	const noise = 0.05
	r.add("200 streams: allocations per event", "", 1, map[string][]float64{penstock: per})
	r.single("200 streams: allocations per event", "", noise, per...)
	return nil
}

// delays is how long an event stays, on cores that have time.
func delays(ctx context.Context, b *bench, r *report) error {
	const streams = 10
	b.subjects[direct] = nil
	defer delete(b.subjects, direct)
	s, err := b.interleave(ctx, "delay of events", []string{penstock, haproxy, floor, direct}, true, b.delay(makeBody(2<<10, true, 5), streams))
	if err != nil {
		return err
	}
	r.add("delay of an event, p50", "ms", milli, s["p50"])
	r.add("delay of an event, p99", "ms", milli, s["p99"])
	r.promise("delay of an event, p99", "ms", 0, 1, scaled(s["p99"][penstock], milli))
	return nil
}

// idle is the reading of gauges with nothing else to do.
func idle(_ context.Context, b *bench, r *report) error {
	const n = 100
	cores, err := b.idleEndpoints(n)
	if err != nil {
		return err
	}
	r.add("100 endpoints with 35 KB of metrics, idle", "cores", 1, map[string][]float64{penstock: {cores}})
	r.single("100 endpoints, idle", "cores", 0.1, cores)
	return nil
}

// memory is what open streams hold.
func memory(_ context.Context, b *bench, r *report) error {
	const streams = 1000
	rss, err := b.openStreams(makeBody(2<<10, true, 6), streams)
	if err != nil {
		return err
	}
	by := map[string][]float64{}
	for name, v := range rss {
		by[name] = []float64{v}
	}
	r.add("1,000 open streams: resident memory", "MB", mega, by)
	r.single("1,000 open streams: resident memory", "MB", 150, rss[penstock]*mega)
	return nil
}

// decision is the brain's part of a request.
func decision(ctx context.Context, b *bench, r *report) error {
	times, err := b.decisions(ctx)
	if err != nil {
		return err
	}
	for _, want := range []struct {
		endpoints string
		limit     float64
	}{{"8", 20}, {"512", 60}} {
		v := times[want.endpoints]
		r.add("decision at "+want.endpoints+" endpoints", "µs", micro, map[string][]float64{penstock: v})
		r.promise("decision at "+want.endpoints+" endpoints", "µs", 0, want.limit, scaled(v, micro))
	}
	return nil
}
