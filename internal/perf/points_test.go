package perf

import (
	"encoding/csv"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"penstock.dev/penstock/internal/catalog"
)

// readPoints reads the operating points of a way to serve that are not suspect.
// The data stands beside the repository; without it the test is skipped, except
// in CI.
func readPoints(t *testing.T, where map[string]string) []map[string]float64 {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
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
	var points []map[string]float64
	for _, row := range rows[1:] {
		p, wanted := map[string]float64{}, true
		for i, name := range rows[0] {
			if want, ok := where[name]; ok && row[i] != want {
				wanted = false
			}
			if v, err := strconv.ParseFloat(row[i], 64); err == nil {
				p[name] = v
			}
		}
		if wanted {
			points = append(points, p)
		}
	}
	if len(points) < 12 {
		t.Fatalf("%d points of %v", len(points), where)
	}
	return points
}

// TestAgainstMeasurements holds prior and fit to what single engines were
// measured to do; test/fidelity does so for all of them.
func TestAgainstMeasurements(t *testing.T) {
	for _, c := range []struct {
		model, gpu string
		tp         int
		prior      float64 // largest mean errors of TPOT: of the prior,
		fitted     float64 // with all points fitted,
		unseen     float64 // of each shape with the others fitted
	}{
		{"Qwen/Qwen3-32B", "H100-SXM-80GB", 2, 0.10, 0.03, 0.05},
		{"openai/gpt-oss-120b", "H200-SXM-141GB", 4, 0.15, 0.03, 0.10},
	} {
		s := serving(t, c.model, c.gpu, c.tp)
		s.Engine = "vllm"
		points := readPoints(t, map[string]string{
			"model": c.model, "gpu": c.gpu, "tp": strconv.Itoa(c.tp), "engine": "vllm", "attn_dp": "1", "moe_ep": "1", "flag": "",
		})
		belief := Prior(s)
		type shape [2]float64
		byShape := map[shape][]Observation{}
		var all []Observation
		for _, p := range points {
			if o, ok := closedLoop(s, p); ok {
				key := shape{p["isl"], p["osl"]}
				byShape[key] = append(byShape[key], o)
				all = append(all, o)
			}
		}
		fit := func(obs []Observation) Step {
			f, err := Fit(belief, 0, obs)
			if err != nil {
				t.Fatal(err)
			}
			return f.Step
		}
		var unseen float64
		for held, obs := range byShape {
			var rest []Observation
			for key, more := range byShape {
				if key != held {
					rest = append(rest, more...)
				}
			}
			unseen += meanError(fit(rest), obs) * float64(len(obs)) / float64(len(all))
		}
		for _, e := range []struct {
			what       string
			got, limit float64
		}{{"prior", meanError(belief.Step, all), c.prior}, {"fitted", meanError(fit(all), all), c.fitted}, {"unseen shapes", unseen, c.unseen}} {
			t.Logf("%s, %s: TPOT error %.1f %% over %d points", c.model, e.what, 100*e.got, len(all))
			if !(e.got <= e.limit) {
				t.Errorf("%s, %s: TPOT error %.1f %%, want at most %.0f %%", c.model, e.what, 100*e.got, 100*e.limit)
			}
		}
	}
}

// closedLoop is what a point of n requests at all times tells of the steps.
// Points whose KV does not fit had fewer sequences than that.
func closedLoop(s catalog.Serving, p map[string]float64) (Observation, bool) {
	n, in, out := p["concurrency"], p["isl"], p["osl"]
	begin := (n - 1) / out
	o := Observation{
		Work:    Work{Seqs: n, KV: n * (in + out/2), Prompt: begin * in, Pairs: begin * in * in / 2},
		Seconds: p["tpot_ms"] / 1e3,
	}
	if steps := begin * math.Ceil(in/float64(DefaultBudget)); s.Shape.Experts > 0 {
		o.Apart = steps
	} else {
		o.Mixed = min(steps, 1)
	}
	return o, n*(in+out) <= float64(s.KVTokens())
}

func meanError(s Step, obs []Observation) float64 {
	sum := 0.0
	for _, o := range obs {
		sum += math.Abs(dot(s.Vector(), s.Row(o))/o.Seconds - 1)
	}
	return sum / float64(len(obs))
}
