package bench

import (
	"fmt"
	"strings"
)

// Table renders the report for people.
func (r *Report) Table() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-14s"+format+"\n", append([]any{name}, args...)...)
	}
	fmt.Fprintf(&b, "%s\n", r.Load)
	line("target", "%s, %s, model %s", r.Config.URL, r.Config.Endpoint, r.Config.Model)
	line("requests", "%s", r.requestLine())
	line("rates", "%s req/s, %s input + %s output tokens/s over %.1f s", rate(r.Throughput.Requests),
		rate(r.Throughput.Input), rate(r.Throughput.Output), r.Seconds)
	if r.Cache.Known {
		line("cached", "%.1f %% of prompt tokens (an endless shared cache: %.1f %%)", 100*r.Cache.CachedShare, 100*r.Cache.CeilingTokens)
	} else {
		line("cached", "not reported (an endless shared cache: %.1f %%)", 100*r.Cache.CeilingTokens)
	}
	if g := r.Goodput; g != nil {
		line("goodput", "%.1f %% of requests, %s req/s within %s", 100*g.Share, rate(g.Rate), g.targets())
	}
	line("slice", "%s requests, fingerprint %s, seed %d", whole(r.Slice.Requests), r.Slice.Fingerprint, r.Slice.Seed)
	fmt.Fprintf(&b, "\n%-10s %11s %11s %11s %11s %11s\n", "ms", "mean", "p50", "p90", "p99", "max")
	for _, row := range []struct {
		name string
		s    Summary
	}{{"TTFT", r.Latency.TTFT}, {"ITL", r.Latency.ITL}, {"TPOT", r.Latency.TPOT}, {"E2E", r.Latency.E2E}, {"send lag", r.Latency.SendLag}} {
		if row.s.Count == 0 {
			fmt.Fprintf(&b, "%-10s %11s\n", row.name, "-")
			continue
		}
		fmt.Fprintf(&b, "%-10s %11s %11s %11s %11s %11s\n", row.name,
			millis(row.s.Mean), millis(row.s.P50), millis(row.s.P90), millis(row.s.P99), millis(row.s.Max))
	}
	b.WriteString("Latency counts from the intended send time; TPOT = (E2E - TTFT) / (output tokens - 1).\n")
	for _, e := range r.Errors {
		fmt.Fprintf(&b, "\nerror %-14s %s times, first in %s: %s\n", e.Kind, whole(e.Count), e.Request, e.Example)
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "\nnote: %s\n", w)
	}
	return b.String()
}

func (r *Report) requestLine() string {
	q := r.Requests
	parts := []string{whole(q.Sent) + " sent", whole(q.Completed) + " completed", whole(q.Failed) + " failed", whole(q.Corrupted) + " corrupted"}
	add := func(n int, what string) {
		if n > 0 {
			parts = append(parts, whole(n)+" "+what)
		}
	}
	add(q.Warmup, "in warm-up")
	add(q.Unfinished, "unfinished")
	add(q.Waited, "waited for an earlier turn")
	s := strings.Join(parts, ", ")
	if r.Interrupted {
		s += " (interrupted)"
	}
	return s
}

func (g *Goodput) targets() string {
	var parts []string
	for _, t := range []struct {
		name string
		v    float64
	}{{"TTFT", g.TTFT}, {"TPOT", g.TPOT}, {"E2E", g.E2E}} {
		if t.v > 0 {
			parts = append(parts, fmt.Sprintf("%s %v ms", t.name, t.v))
		}
	}
	return strings.Join(parts, ", ")
}

// whole writes a count with thousands apart.
func whole(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// rate writes a rate with three digits or all whole ones.
func rate(v float64) string {
	switch {
	case v >= 100:
		return whole(int(v + 0.5))
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// millis writes milliseconds with two decimals below ten, one below a thousand.
func millis(v float64) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 1000:
		return fmt.Sprintf("%.1f", v)
	default:
		return whole(int(v + 0.5))
	}
}
