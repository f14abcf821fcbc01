package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"

	"penstock.dev/penstock/internal/lab"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
)

// Two ways meet the same requests, the same engines and the same noise with the
// same seed, so that seeds are compared in pairs: of the differences the mean, and
// by Student's t the 95 % confidence interval. A way is worse when that interval
// lies wholly on the wrong side, and the mean is worse than what nobody would
// notice.
const (
	fewGood = 0.005 // share of all requests
	fewTime = 0.02  // of the mean time to first token
)

// pair is a comparison that must not be lost anywhere and, where it wins, must be
// won over all scenes of each load. An aside is only told.
type pair struct {
	better, worse string
	wins, aside   bool
}

// pairs are the goals: who knows or has more must not serve worse.
var pairs = []pair{
	{"events", "approx", false, false},
	{"affinity-events", "affinity-approx", false, false},
	{"events+cpu", "approx+cpu", true, false},
	{"approx", "none", false, true},
	{"events", "none", true, false},
	{"approx+cpu", "approx", true, false},
	{"events+cpu", "events", true, false},
	{"events+cpu+disk", "events+cpu", true, false},
}

// gain is by how much one way is better than another.
type gain struct {
	good lab.Interval // share of all requests
	hit  lab.Interval // share of prompt tokens
	ttft lab.Interval // logarithm of the ratio of mean times to first token; below 0 is better
}

// tally is what came of all comparisons.
type tally struct {
	missed []string
	goals  int
	all    map[pair]map[string][]gain // by kind of load
	kinds  []string
}

func good(r *sim.Result) float64 { return float64(r.Good) / float64(r.Arrived) }
func ttft(r *sim.Result) float64 { return r.TTFT.Mean() * 1e-9 }

// over is the mean of a figure over the seeds of a row.
func (r *row) over(f func(*sim.Result) float64) lab.Interval {
	var xs []float64
	for _, x := range r.results {
		xs = append(xs, f(x))
	}
	return interval(xs)
}

func interval(xs []float64) lab.Interval {
	m, h := stat.MeanCI(xs)
	return lab.Interval{Mean: m, Half: h}
}

// compare pairs the seeds of two rows.
func compare(a, b *row) gain {
	var goods, hits, times []float64
	for i := range a.results {
		x, y := a.results[i], b.results[i]
		goods = append(goods, good(x)-good(y))
		hits = append(hits, x.CachedShare()-y.CachedShare())
		times = append(times, math.Log(ttft(x)/ttft(y)))
	}
	return gain{interval(goods), interval(hits), interval(times)}
}

// judge holds a scene's rows against the goals.
func (t *tally) judge(w io.Writer, s *scene, rows []*row) {
	if t.all == nil {
		t.all = map[pair]map[string][]gain{}
	}
	byName := map[string]*row{}
	for _, r := range rows {
		byName[r.way.name] = r
	}
	for _, p := range pairs {
		a, b := byName[p.better], byName[p.worse]
		if a == nil || b == nil {
			continue
		}
		g := compare(a, b)
		t.note(p, s.kind, g)
		verdict := ""
		if !p.aside {
			t.goals += 2
		}
		if g.good.Mean < -fewGood && g.good.Mean+g.good.Half < 0 {
			verdict = "  <-- worse"
			t.miss(p, fmt.Sprintf("%s: %s has %s good beside %s", s.name, p.better, g.good.Text(100, "%+.1f", " points"), p.worse))
		}
		if g.ttft.Mean > fewTime && g.ttft.Mean-g.ttft.Half > 0 {
			verdict = "  <-- worse"
			t.miss(p, fmt.Sprintf("%s: %s waits %s longer than %s", s.name, p.better, g.ttft.Text(100, "%+.0f", " %"), p.worse))
		}
		fmt.Fprintf(w, "  %s - %s: good %s, cached %s, TTFT mean %+.0f %%%s\n", p.better, p.worse,
			g.good.Text(100, "%+.1f", " points"), g.hit.Text(100, "%+.1f", " points"), 100*(math.Exp(g.ttft.Mean)-1), verdict)
	}
}

// miss notes that a goal is missed.
func (t *tally) miss(p pair, text string) {
	if !p.aside {
		t.missed = append(t.missed, text)
	}
}

func (t *tally) note(p pair, kind string, g gain) {
	if t.all[p] == nil {
		t.all[p] = map[string][]gain{}
	}
	t.all[p][kind] = append(t.all[p][kind], g)
	if !slices.Contains(t.kinds, kind) {
		t.kinds = append(t.kinds, kind)
	}
}

// sumUp prints the means over the scenes of each kind, and holds them against the
// last goals: over all scenes of a kind, more knowledge must not serve fewer, and
// more memory must be of use.
func (t *tally) sumUp(w io.Writer) {
	fmt.Fprintln(w, "\nmeans over the scenes of each load; worst and best are of single scenes")
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "load\tscenes\tcompared\tgood\tworst\tbest\tcached\tTTFT mean\tworst\tbest\t")
	for _, kind := range t.kinds {
		for _, p := range pairs {
			list := t.all[p][kind]
			if len(list) == 0 {
				continue
			}
			var goods, hits, times []float64
			low, high, slow, fast := math.Inf(1), math.Inf(-1), math.Inf(-1), math.Inf(1)
			for _, g := range list {
				goods, hits, times = append(goods, g.good.Mean), append(hits, g.hit.Mean), append(times, g.ttft.Mean)
				low, high = min(low, g.good.Mean), max(high, g.good.Mean)
				slow, fast = max(slow, g.ttft.Mean), min(fast, g.ttft.Mean)
			}
			percent := func(x float64) float64 { return 100 * (math.Exp(x) - 1) }
			fmt.Fprintf(out, "%s\t%d\t%s - %s\t%+.2f\t%+.1f\t%+.1f\t%+.2f\t%+.1f %%\t%+.0f %%\t%+.0f %%\t\n", kind, len(list), p.better, p.worse,
				100*interval(goods).Mean, 100*low, 100*high, 100*interval(hits).Mean, percent(interval(times).Mean), percent(slow), percent(fast))
			if !p.aside {
				t.goals++
			}
			if p.wins {
				t.goals++
			}
			if h, m := interval(hits).Mean, interval(times).Mean; p.wins && (h <= 0 || m >= 0) {
				t.miss(p, fmt.Sprintf("%s: %s does not win over %s: cached %+.2f points, TTFT mean %+.1f %%", kind, p.better, p.worse, 100*h, percent(m)))
			}
			if m := interval(goods).Mean; m < -fewGood {
				t.miss(p, fmt.Sprintf("%s: %s has %.2f points fewer good than %s over all scenes", kind, p.better, -100*m, p.worse))
			}
		}
	}
	out.Flush()
}

// print prints the rows of a scene.
func (s *scene) print(w io.Writer, rows []*row) {
	fmt.Fprintf(w, "\n== %s: %d requests, an endless cache would hold %s\n", s.name, rows[0].results[0].Arrived, interval(rows[0].ceiling).Text(100, "%.1f", " %"))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "way\tgood\tcached\tof it CPU\tdisk\tTTFT mean\tp90\tTPOT mean\tTTFT error\tfailed\timbalance\t")
	for _, r := range rows {
		share := func(f func(*sim.Result) int64) string {
			return r.over(func(x *sim.Result) float64 { return float64(f(x)) / float64(max(x.PromptTokens, 1)) }).Text(100, "%.1f", " %")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", r.way.name, r.over(good).Text(100, "%.1f", " %"),
			r.over((*sim.Result).CachedShare).Text(100, "%.1f", " %"),
			share(func(x *sim.Result) int64 { return x.CachedCPU }), share(func(x *sim.Result) int64 { return x.CachedDisk }),
			r.over(ttft).Text(1, "%.3f", " s"), r.over(func(x *sim.Result) float64 { return x.TTFT.Quantile(0.9) * 1e-9 }).Text(1, "%.2f", " s"),
			r.over(func(x *sim.Result) float64 { return x.TPOT.Mean() * 1e-6 }).Text(1, "%.1f", " ms"),
			r.over(func(x *sim.Result) float64 { return x.TTFTError.Quantile(0.5) * 1e-6 }).Text(100, "%.0f", " %"),
			r.over(func(x *sim.Result) float64 { return float64(x.Failed + x.Refused) }).Text(1, "%.0f", ""),
			r.over((*sim.Result).Imbalance).Text(1, "%.2f", ""))
	}
	t.Flush()
}
