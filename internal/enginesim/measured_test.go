package enginesim

import (
	"encoding/csv"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/catalog"
)

// point is one measured operating point of an engine.
type point struct {
	group, family, engine, precision, gpu string
	serving                               catalog.Serving
	input, output                         int
	concurrency                           float64
	ttft, tpot                            float64 // ms; ttft is 0 where it was not measured soundly
	waves                                 bool    // all clients start at once, and prompts go before decodes: they stay in step
	alone                                 bool    // few enough at once for TTFT to be that of a prompt
}

// shared opens a file of the data that stands beside the repository; without it
// the test is skipped, except in CI.
func shared(t *testing.T, elements ...string) *os.File {
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
	f, err := os.Open(filepath.Join(append([]string{dir, "..", "shared", "data"}, elements...)...))
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI needs the measured points: %v", err)
		}
		t.Skipf("no measured points here: %v", err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// measured reads the measured points. Rows that cannot be of what they are
// labelled with are left out and counted by their reason.
func measured(t *testing.T) (points []point, left map[string]int) {
	t.Helper()
	rows, err := csv.NewReader(shared(t, "perf", "perf_points.csv")).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	column := map[string]int{}
	for i, name := range rows[0] {
		column[name] = i
	}
	left = map[string]int{}
	for _, row := range rows[1:] {
		p := parsePoint(t, func(name string) string { return row[column[name]] })
		if flag := row[column["flag"]]; strings.Contains(flag, "suspect") || strings.Contains(flag, "overload") {
			left["flag "+flag]++
		} else if why := p.impossible(); why != "" {
			left[why]++
		} else {
			points = append(points, p)
		}
	}
	if len(points) == 0 {
		t.Fatal("the table has no usable row")
	}
	return points, left
}

func parsePoint(t *testing.T, get func(string) string) point {
	t.Helper()
	number := func(name string) float64 {
		v, err := strconv.ParseFloat(get(name), 64)
		if err != nil && get(name) != "" {
			t.Fatalf("column %s: %v", name, err)
		}
		return v
	}
	m, errModel := catalog.FindModel(get("model"))
	a, errAccelerator := catalog.FindAccelerator(get("gpu"))
	weights, errPrecision := catalog.ParsePrecision(get("precision"))
	if errModel != nil || errAccelerator != nil || errPrecision != nil {
		t.Fatal(errModel, errAccelerator, errPrecision)
	}
	s := catalog.Serving{
		Shape: m, Accelerator: a, TP: int(number("tp")), DP: int(number("attn_dp")), EP: int(number("moe_ep")), Weights: weights, Engine: get("engine"),
	}
	if m.Native == catalog.FP4 { // published in 4 bits only; the column says in what is computed
		s.Weights, s.Compute = m.Native, weights
	}
	if s.Engine == "trtllm" && weights.Bytes() < 2 && weights != catalog.Unstated {
		s.KV = catalog.FP8 // as the publisher's quantised checkpoints ask for
	}
	p := point{
		family: m.Name[strings.IndexByte(m.Name, '/')+1:], engine: s.Engine, precision: s.Normal().Weights.String(), gpu: a.Name, serving: s.Normal(),
		input: int(number("isl")), output: int(number("osl")), concurrency: number("concurrency"), ttft: number("ttft_ms"), tpot: number("tpot_ms"),
		waves: s.Engine == "sglang" && get("origin") == "aic-gap-analysis",
	}
	if strings.HasPrefix(p.family, "DeepSeek") {
		p.family = "DeepSeek-V3/R1"
	}
	if strings.Contains(get("flag"), "ttft_invalid") {
		p.ttft = 0
	}
	// InferenceX clients start together, and even few of them wait for each other.
	p.alone = p.ttft > 0 && p.concurrency <= 4 && get("origin") != "InferenceX-db" && !p.waves
	split := "tp" + get("tp") + " dp" + get("attn_dp") + " ep" + get("moe_ep")
	p.group = strings.Join([]string{get("model"), get("gpu"), get("precision"), get("engine"), split}, " ")
	return p
}

// impossible says why a row cannot be of one replica of what it is labelled
// with; empty when it can.
func (p *point) impossible() string {
	s := p.serving
	a, devices := s.Accelerator, float64(s.Devices())
	perToken := 2*(s.Shape.AttentionParams()+s.Shape.MLPParams())/a.Peak(s.Compute) + 2*s.Shape.ExpertParams()*s.Shape.Touch()/a.Peak(s.Compute)
	rate := 1e3 * p.concurrency / (p.ttft + float64(p.output)*p.tpot) * float64(p.input+p.output)
	capacity := float64(s.KVTokens())
	switch {
	case p.concurrency == 0 || p.tpot == 0 || p.output < 2:
		return "no TPOT at a concurrency"
	case capacity == 0:
		return "weights do not fit"
	case a.Domain > 8:
		return "rack: how it was split is not stated"
	case rate*perToken/devices > 0.75:
		return "more than 75 % of the peak, everything included"
	case s.OtherBytes()/float64(s.TP)/a.Bandwidth > p.tpot/1e3:
		return "faster than weights can be read"
	case p.concurrency*float64(p.input) > 1.2*capacity && p.ttft < p.tpot*float64(p.output)/4:
		return "more KV than memory, and nobody waits"
	}
	return ""
}
