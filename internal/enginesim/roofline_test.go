package enginesim

import (
	"encoding/csv"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// qwen is the variant that the catalogue's constants are fitted to.
func qwen(t testing.TB, tp int) Spec {
	t.Helper()
	m, err := FindModel("qwen3-32b")
	if err != nil {
		t.Fatal(err)
	}
	a, err := FindAccelerator("h100")
	if err != nil {
		t.Fatal(err)
	}
	return Spec{Model: m, Accelerator: a, TP: tp}
}

func within(t *testing.T, what string, got, want, share float64) {
	t.Helper()
	if math.Abs(got-want) > share*want {
		t.Errorf("%s = %.5g, want %.5g within %.0f %%", what, got, want, 100*share)
	}
}

func TestQwenOnTwoH100IsNearWhatWasMeasured(t *testing.T) {
	spec := qwen(t, 2)
	within(t, "KV capacity in tokens", float64(spec.KVTokens()), 298_000, 0.01)
	r := spec.Roofline()
	ms := func(b Batch) float64 { return float64(r.StepTime(b)) / 1e6 }
	within(t, "decode step of one short sequence, ms", ms(Batch{Decodes: 1}), 14, 0.02)
	within(t, "ms per KV token", (ms(Batch{Decodes: 64, Context: 200_000})-ms(Batch{Decodes: 64}))/200_000, 5.67e-5, 0.02)
	within(t, "ms per prompt token, attention apart", (ms(Batch{Prompt: 8192})-ms(Batch{Prompt: 4096}))/4096, 0.0496, 0.02)
	within(t, "peak prefill, tokens/s", peakPrefill(t, spec), 15_928, 0.03)
}

// peakPrefill is the prefill rate under a backlog of unique 7,200-token prompts.
func peakPrefill(t *testing.T, spec Spec) float64 {
	e := newEngine(t, Config{Physics: spec.Roofline(), KVTokens: spec.KVTokens()})
	const n, prompt = 100, 7200
	for id := range fleet.ReqID(n) {
		submit(t, e, 0, Request{ID: id, Prompt: prompt, Output: 1})
	}
	out := drain(t, e)
	return n * prompt / out[len(out)-1].At.Seconds()
}

// point is one measured operating point.
type point struct {
	tp, input, output, concurrency int
	tpot                           float64 // ms
}

// measured reads the points of Qwen3-32B under vLLM on H100. The data stands
// beside the repository; without it the test is skipped, except in CI.
func measured(t *testing.T) []point {
	t.Helper()
	dir, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if filepath.Dir(dir) == dir {
			t.Fatal("no go.mod above this package")
		}
		dir = filepath.Dir(dir)
	}
	f, err := os.Open(filepath.Join(dir, "..", "shared", "data", "perf", "perf_points.csv"))
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI needs the measured points: %v", err)
		}
		t.Skipf("no measured points here: %v", err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	column := map[string]int{}
	for i, name := range rows[0] {
		column[name] = i
	}
	var points []point
	for _, row := range rows[1:] {
		get := func(name string) string { return row[column[name]] }
		if get("model") != "Qwen/Qwen3-32B" || get("engine") != "vllm" || get("gpu") != "H100-SXM-80GB" || get("flag") != "" {
			continue
		}
		number := func(name string) int {
			v, err := strconv.ParseFloat(get(name), 64)
			if err != nil {
				t.Fatalf("column %s: %v", name, err)
			}
			return int(v)
		}
		tpot, err := strconv.ParseFloat(get("tpot_ms"), 64)
		if err != nil {
			t.Fatal(err)
		}
		points = append(points, point{number("tp"), number("isl"), number("osl"), number("concurrency"), tpot})
	}
	if len(points) == 0 {
		t.Fatal("the table has no row of Qwen3-32B under vLLM on H100")
	}
	return points
}

// closedLoop runs `concurrency` clients, each sending its next request when
// the last has ended, and returns the mean TPOT in ms. First answers are cut
// short at random so that the clients are out of step, as they are in a long
// measurement.
func closedLoop(t *testing.T, p point) float64 {
	spec := qwen(t, p.tp)
	e := newEngine(t, Config{Physics: spec.Roofline(), KVTokens: spec.KVTokens()})
	r := stat.NewRand(1, "closed loop")
	first := map[fleet.ReqID]fleet.Time{}
	id := fleet.ReqID(0)
	send := func(now fleet.Time, output int) {
		id++
		submit(t, e, now, Request{ID: id, Prompt: fleet.Tokens(p.input), Output: fleet.Tokens(output)})
	}
	for range p.concurrency {
		send(0, 1+r.IntN(p.output))
	}
	var out []Output
	next, sum, n := fleet.Time(0), 0.0, 0
	for n < 3*p.concurrency {
		out, next = e.Advance(next, out[:0])
		for _, o := range out {
			if o.First {
				first[o.Req] = o.At
			}
			if o.Finish == NotFinished {
				continue
			}
			if int(o.Req) > 2*p.concurrency {
				sum += float64(o.At.Sub(first[o.Req])) / 1e6 / float64(p.output-1)
				n++
			}
			delete(first, o.Req)
			send(o.At, p.output)
			next = o.At // the new request may start a step at once
		}
	}
	return sum / float64(n)
}

func TestRooflineAgainstMeasurements(t *testing.T) {
	points := measured(t)
	for _, tp := range []int{2, 4, 8} {
		var errs []float64
		for _, p := range points {
			if p.tp != tp {
				continue
			}
			got := closedLoop(t, p)
			errs = append(errs, math.Abs(got-p.tpot)/p.tpot)
			t.Logf("tp %d, %d in, %d out, concurrency %3d: %6.2f ms, measured %6.2f (%+.0f %%)",
				tp, p.input, p.output, p.concurrency, got, p.tpot, 100*(got-p.tpot)/p.tpot)
		}
		if len(errs) == 0 {
			t.Errorf("no points for tp %d", tp)
			continue
		}
		slices.Sort(errs)
		median := errs[len(errs)/2]
		t.Logf("tp %d: median TPOT error %.1f %% over %d points, worst %.0f %%", tp, 100*median, len(errs), 100*errs[len(errs)-1])
		if limit := map[int]float64{2: 0.06, 4: 0.08, 8: 0.10}[tp]; median > limit {
			t.Errorf("tp %d: median TPOT error %.1f %%, want at most %.0f %%", tp, 100*median, 100*limit)
		}
	}
}

func TestStepTimeRisesWithEveryKindOfWork(t *testing.T) {
	r := qwen(t, 2).Roofline()
	base := Batch{Decodes: 100, Context: 100_000, Prompt: 2000, Prefills: 1, Attention: 1e6}
	for name, more := range map[string]Batch{
		"decodes":   {Decodes: 120, Context: 100_000, Prompt: 2000, Prefills: 1, Attention: 1e6},
		"context":   {Decodes: 100, Context: 200_000, Prompt: 2000, Prefills: 1, Attention: 1e6},
		"prompt":    {Decodes: 100, Context: 100_000, Prompt: 3000, Prefills: 1, Attention: 1e6},
		"attention": {Decodes: 100, Context: 100_000, Prompt: 2000, Prefills: 1, Attention: 2e6},
	} {
		if r.StepTime(more) <= r.StepTime(base) {
			t.Errorf("more %s does not take longer", name)
		}
	}
}

func TestGraphsPadSmallBatches(t *testing.T) {
	for n, want := range map[int]int{0: 0, 1: 1, 2: 2, 3: 4, 5: 8, 8: 8, 9: 16, 250: 256, 257: 272, 512: 512, 513: 513} {
		if got := padded(n); got != want {
			t.Errorf("padded(%d) = %d, want %d", n, got, want)
		}
	}
}

func TestNoiseKeepsTheMeanAndRepeats(t *testing.T) {
	r := qwen(t, 2).Roofline()
	want := r.StepTime(Batch{Decodes: 8})
	r.Noise, r.Seed = 0.2, 7
	var sum time.Duration
	const n = 20_000
	for i := range uint64(n) {
		d := r.StepTime(Batch{Decodes: 8, Step: i})
		if d != r.StepTime(Batch{Decodes: 8, Step: i}) {
			t.Fatal("a step's time differs when asked twice")
		}
		sum += d
	}
	within(t, "mean step, ns", float64(sum)/n, float64(want), 0.01)
}

func TestFactorAndSpeedup(t *testing.T) {
	r := qwen(t, 2).Roofline()
	b := Batch{Decodes: 8}
	plain := float64(r.StepTime(b))
	within(t, "a tenth of the time", float64(Speedup{r, 10}.StepTime(b)), plain/10, 1e-3)
	r.Factor = 1.5
	within(t, "factor 1.5", float64(r.StepTime(b)), plain*1.5, 1e-3)
}

func TestSpecs(t *testing.T) {
	find := func(model, acc string, tp int) Spec {
		m, err := FindModel(model)
		if err != nil {
			t.Fatal(err)
		}
		a, err := FindAccelerator(acc)
		if err != nil {
			t.Fatal(err)
		}
		return Spec{m, a, tp}
	}
	if s := find("", "", 2); s.Model.Name != "Qwen/Qwen3-32B" || s.Accelerator.Name != "H100" {
		t.Errorf("default is %s on %s", s.Model.Name, s.Accelerator.Name)
	}
	for _, m := range ModelNames() {
		for _, a := range AcceleratorNames() {
			if err := find(m, a, 8).Validate(); err != nil {
				t.Errorf("%s on 8 x %s: %v", m, a, err)
			}
		}
	}
	for _, s := range []Spec{find("llama-3.1-70b", "h100", 1), find("", "l40s", 1), find("", "h100", 3)} {
		if err := s.Validate(); err == nil || !contains(err.Error(), "tp:") {
			t.Errorf("%s on %d x %s: %v, want an error about tp", s.Model.Name, s.TP, s.Accelerator.Name, err)
		}
	}
	if _, err := FindModel("gpt-7"); err == nil || !contains(err.Error(), "Qwen/Qwen3-32B") {
		t.Errorf("unknown model: %v", err)
	}
	if _, err := FindAccelerator("abacus"); err == nil || !contains(err.Error(), "H200") {
		t.Errorf("unknown accelerator: %v", err)
	}
}
