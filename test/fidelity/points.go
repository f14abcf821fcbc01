package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
)

// Groups with fewer points or shapes than these tell a step's parameters badly,
// and bind no goal.
const (
	fewPoints = 12
	fewShapes = 3
	fewAlone  = 3 // points at concurrency 1, to judge times to first token
)

// point is one operating point of a closed loop.
type point struct {
	input, output float64 // tokens
	concurrency   float64
	ttft, tpot    float64 // s
}

// shape is what points of one kind of request have in common.
type shape struct{ input, output float64 }

func (p point) shape() shape { return shape{p.input, p.output} }

// group is all points of one way to serve.
type group struct {
	name    string
	serving catalog.Serving
	points  []point
	listed  bool // in perf_fits.csv, whose groups the goals are about
}

func (g *group) moe() bool { return g.serving.Shape.Experts > 0 }

// points compares perf's prior and fits with perf_points.csv.
func points(w io.Writer, shared string) []goal {
	groups, err := readGroups(w, filepath.Join(shared, "data", "perf"))
	if err != nil {
		fmt.Fprintln(w, " ", err)
		return []goal{failed("reading the measured points")}
	}
	var prior, ttft []float64
	var fit, unseen, rate [2][]float64 // of dense models, of mixtures of experts
	var anyFit, anyUnseen [2][]float64
	for _, g := range groups {
		belief := perf.Prior(g.serving)
		if len(g.points) >= 5 {
			prior = append(prior, meanError(belief.Step, g, all))
		}
		if e, ok := firstTokenError(g, belief); ok {
			ttft = append(ttft, e)
			fmt.Fprintf(w, "  %-66s TTFT alone, unseen shapes %4.1f %%\n", g.name, 100*e)
		}
		if len(g.points) < fewPoints || len(g.shapes()) < fewShapes {
			continue
		}
		k := 0
		if g.moe() {
			k = 1
		}
		in, out, rates := g.judge(belief)
		anyFit[k], anyUnseen[k] = append(anyFit[k], in), append(anyUnseen[k], out)
		fmt.Fprintf(w, "  %-66s %3d points, TPOT %4.1f %% fitted, %4.1f %% unseen shapes\n", g.name, len(g.points), 100*in, 100*out)
		if g.listed {
			fit[k], unseen[k] = append(fit[k], in), append(unseen[k], out)
		}
		rate[k] = append(rate[k], rates...)
	}
	for k, kind := range []string{"dense", "experts"} {
		fmt.Fprintf(w, "  %s: %d groups, and %d with those not in perf_fits.csv: TPOT %.1f %% fitted, %.1f %% unseen; capacity on unseen shapes %.0f %% in the median of %d points\n",
			kind, len(fit[k]), len(anyFit[k]), 100*median(anyFit[k]), 100*median(anyUnseen[k]), 100*median(rate[k]), len(rate[k]))
	}
	fmt.Fprintf(w, "  prior alone: %d groups, %.1f %% in the median; first tokens: %d groups\n", len(prior), 100*median(prior), len(ttft))
	return []goal{
		atMost("TPOT of the prior alone, % in the median", 100*median(prior), 30),
		atMost("TPOT fitted, dense, % in the median", 100*median(fit[0]), 3.2),
		atMost("TPOT fitted, experts, % in the median", 100*median(fit[1]), 3.5),
		atMost("TPOT of unseen shapes, dense, % in the median", 100*median(unseen[0]), 9),
		atMost("TPOT of unseen shapes, experts, % in the median", 100*median(unseen[1]), 12),
		atMost("TTFT at concurrency 1, unseen shapes, % in the median", 100*median(ttft), 10),
	}
}

// readGroups reads the points that are not marked as suspect and whose KV fits
// the engine: the others queued for memory, so that fewer than their concurrency
// were served at once.
func readGroups(w io.Writer, dir string) ([]*group, error) {
	rows, err := table(filepath.Join(dir, "perf_points.csv"))
	if err != nil {
		return nil, err
	}
	fits, err := table(filepath.Join(dir, "perf_fits.csv"))
	if err != nil {
		return nil, err
	}
	listed := map[string]bool{}
	for _, r := range fits {
		listed[r.key()] = true
	}
	var groups []*group
	byKey := map[string]*group{}
	suspect, misfit, full := 0, 0, 0
	for _, r := range rows {
		if r["flag"] != "" {
			suspect++
			continue
		}
		g := byKey[r.key()]
		if g == nil {
			s, err := r.serving()
			if err != nil {
				return nil, err
			}
			g = &group{name: r.key(), serving: s, listed: listed[r.key()]}
			byKey[r.key()] = g
			if s.Validate() == nil {
				groups = append(groups, g)
			}
		}
		p, err := r.point()
		if err != nil {
			return nil, err
		}
		room := float64(g.serving.KVTokens())
		switch {
		case g.serving.Validate() != nil:
			misfit++
		case p.concurrency*(p.input+p.output) > room:
			full++
		default:
			g.points = append(g.points, p)
		}
	}
	fmt.Fprintf(w, "  %d rows: %d marked as suspect, %d of ways to serve that cannot be as they are stated, %d beyond the KV cache\n",
		len(rows), suspect, misfit, full)
	if len(groups) == 0 {
		return nil, errors.New("perf_points.csv: no row is of use")
	}
	return groups, nil
}

// row is a line of a table by column.
type row map[string]string

// table reads a CSV file with a header.
func table(path string) ([]row, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(lines) < 2 {
		return nil, fmt.Errorf("%s: no rows", path)
	}
	out := make([]row, 0, len(lines)-1)
	for _, line := range lines[1:] {
		r := row{}
		for i, name := range lines[0] {
			r[name] = line[i]
		}
		out = append(out, r)
	}
	return out, nil
}

// key names the group that a row belongs to, alike in both tables.
func (r row) key() string {
	return strings.Join([]string{r["model"], r["gpu"], r["engine"], r["precision"], "tp" + r["tp"], "dp" + r["attn_dp"], "ep" + r["moe_ep"]}, " ")
}

// number returns a column's number, 0 when it is empty.
func (r row) number(column string) (float64, error) {
	if r[column] == "" {
		return 0, nil
	}
	v, err := strconv.ParseFloat(r[column], 64)
	if err != nil {
		return 0, fmt.Errorf("perf_points.csv: column %s: %w", column, err)
	}
	return v, nil
}

// serving returns how a row's model was served. The table leaves out the
// precision of the KV cache: TensorRT-LLM with quantised weights, and all engines
// with quantised weights on Blackwell, are taken to keep it in 8 bits, which
// their time per token of context agrees with.
func (r row) serving() (catalog.Serving, error) {
	m, err := catalog.FindModel(r["model"])
	if err != nil {
		return catalog.Serving{}, err
	}
	a, err := catalog.FindAccelerator(r["gpu"])
	if err != nil {
		return catalog.Serving{}, err
	}
	weights, err := catalog.ParsePrecision(r["precision"])
	if err != nil {
		return catalog.Serving{}, err
	}
	s := catalog.Serving{Shape: m, Accelerator: a, Weights: weights, Engine: r["engine"]}
	for column, into := range map[string]*int{"tp": &s.TP, "attn_dp": &s.DP, "moe_ep": &s.EP} {
		v, err := r.number(column)
		if err != nil {
			return catalog.Serving{}, err
		}
		*into = int(v)
	}
	if s.Normal().Weights != catalog.BF16 && (s.Engine == "trtllm" || a.FLOPs4 > 0) {
		s.KV = catalog.FP8
	}
	return s, nil
}

// point returns a row's operating point.
func (r row) point() (point, error) {
	var p point
	for column, into := range map[string]*float64{
		"isl": &p.input, "osl": &p.output, "concurrency": &p.concurrency, "ttft_ms": &p.ttft, "tpot_ms": &p.tpot,
	} {
		v, err := r.number(column)
		if err != nil {
			return point{}, err
		}
		*into = v
	}
	p.ttft, p.tpot = p.ttft/1e3, p.tpot/1e3
	if p.tpot <= 0 || p.concurrency <= 0 || p.output < 2 {
		return point{}, fmt.Errorf("perf_points.csv: no operating point: %v", r)
	}
	return p, nil
}

func (g *group) shapes() map[shape]bool {
	set := map[shape]bool{}
	for _, p := range g.points {
		set[p.shape()] = true
	}
	return set
}

// perToken is what a point tells of the steps: while one of n requests gets its
// output tokens, each of the others begins once, and brings its prompt. Dense
// models compute prompts beside the decoding sequences; mixtures of experts took
// as long as if each chunk of a prompt had a step of its own.
func (g *group) perToken(p point) perf.Observation {
	n := max(p.concurrency, 1)
	begin := (n - 1) / p.output // prompts per token
	chunks := begin * math.Ceil(p.input/float64(perf.DefaultBudget))
	o := perf.Observation{
		Work:    perf.Work{Seqs: n, KV: n * (p.input + p.output/2), Prompt: begin * p.input, Pairs: begin * p.input * p.input / 2},
		Seconds: p.tpot,
	}
	if g.moe() {
		o.Apart = chunks
	} else {
		o.Mixed = min(chunks, 1)
	}
	return o
}

// firstToken is what the time to first token of a lone request tells.
func firstToken(p point) perf.Observation {
	chunks := math.Ceil(p.input / float64(perf.DefaultBudget))
	return perf.Observation{
		Work:  perf.Work{Prompt: p.input / chunks, Pairs: p.input * p.input / 2 / chunks},
		Mixed: 1, Requests: 1 / chunks, Seconds: p.ttft / chunks,
	}
}

// alone reports whether a point's requests met no others.
func (p point) alone() bool { return p.concurrency <= 1.2 && p.ttft > 0 }

func all(point) bool { return true }

// off is the relative error of a step's prediction of an observation.
func off(s perf.Step, o perf.Observation) float64 {
	predicted := 0.0
	row := s.Row(o)
	for i, v := range s.Vector() {
		predicted += v * row[i]
	}
	return math.Abs(predicted/o.Seconds - 1)
}

// meanError is the mean error of TPOT over the group's points that keep chooses.
func meanError(s perf.Step, g *group, keep func(point) bool) float64 {
	sum, n := 0.0, 0.0
	for _, p := range g.points {
		if keep(p) {
			sum += off(s, g.perToken(p))
			n++
		}
	}
	return sum / n
}

// fit fits the points that keep chooses, with times to first token where first
// is set.
func (g *group) fit(belief perf.Belief, first bool, keep func(point) bool) (perf.Step, error) {
	var obs []perf.Observation
	for _, p := range g.points {
		if !keep(p) {
			continue
		}
		obs = append(obs, g.perToken(p))
		if first && p.alone() {
			obs = append(obs, firstToken(p))
		}
	}
	f, err := perf.Fit(belief, 0, obs)
	return f.Step, err
}

// judge returns the group's error with all points fitted, that on each shape
// when the others are fitted, and for the latter the errors of the rates.
func (g *group) judge(belief perf.Belief) (fitted, unseen float64, rates []float64) {
	s, err := g.fit(belief, false, all)
	if err != nil {
		return math.NaN(), math.NaN(), nil
	}
	fitted = meanError(s, g, all)
	for shape := range g.shapes() {
		is := func(p point) bool { return p.shape() == shape }
		s, err := g.fit(belief, false, func(p point) bool { return !is(p) })
		if err != nil {
			return fitted, math.NaN(), nil
		}
		for _, p := range g.points {
			if !is(p) {
				continue
			}
			unseen += off(s, g.perToken(p)) / float64(len(g.points))
			if e, ok := rateError(s, p); ok {
				rates = append(rates, e)
			}
		}
	}
	slices.Sort(rates)
	return fitted, unseen, rates
}

// rateError compares the rate at which a point's requests were served with the
// capacity at that point's TPOT. Near the base every rate has about the same
// TPOT, and the question makes no sense.
func rateError(s perf.Step, p point) (float64, bool) {
	if p.tpot < 1.6*s.Time(perf.Work{Seqs: 1}) || p.ttft <= 0 {
		return 0, false
	}
	measured := p.concurrency / (p.ttft + p.tpot*(p.output-1))
	slo := fleet.SLO{TPOT: time.Duration(p.tpot * float64(time.Second))}
	rate, _, _ := perf.Capacity(s, perf.Mix{Input: p.input, Output: p.output}, fleet.Limits{}, slo, 0.5)
	return math.Abs(rate/measured - 1), true
}

// firstTokenError returns the mean error of times to first token at concurrency
// 1, each shape predicted from the others.
func firstTokenError(g *group, belief perf.Belief) (float64, bool) {
	sum, n := 0.0, 0.0
	for _, p := range g.points {
		if !p.alone() {
			continue
		}
		s, err := g.fit(belief, true, func(q point) bool { return q.shape() != p.shape() })
		if err != nil {
			return 0, false
		}
		sum += off(s, firstToken(p))
		n++
	}
	return sum / n, n >= fewAlone
}

// median returns the middle of list, not a number when it is empty.
func median(list []float64) float64 {
	if len(list) == 0 {
		return math.NaN()
	}
	list = slices.Sorted(slices.Values(list))
	return (list[(len(list)-1)/2] + list[len(list)/2]) / 2
}
