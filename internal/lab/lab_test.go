package lab

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/journal"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// scene is a small fleet of two kinds under shared prefixes.
func scene(t testing.TB, seconds float64) *Scene {
	t.Helper()
	base := catalog.Serving{TP: 2}
	var err error
	if base.Shape, err = catalog.FindModel(""); err != nil {
		t.Fatal(err)
	}
	s := &Scene{Pool: pool.Default(), Noise: 0.05, Scrape: time.Second, Hop: time.Millisecond, Targets: sim.Targets{TTFT: 2 * time.Second}, LoadID: "shared"}
	if s.Variants, err = ParseMix("H100:2,A100:1", 0, base); err != nil {
		t.Fatal(err)
	}
	s.Load = func(load float64, seed uint64) (workload.Source, error) {
		stages := []workload.Stage{{Rate: 4 * load, Duration: time.Duration(seconds * float64(time.Second))}}
		return workload.SharedPrefix{
			Groups: 20, PromptsPerGroup: 10, System: workload.Fixed(4096), Question: workload.Fixed(400), Output: workload.Fixed(150),
		}.Source(workload.NewArrivals(workload.ArrivalPoisson, stages, 0, stat.NewRand(seed, "arrivals")), seed), nil
	}
	return s
}

func mustRunAll(t *testing.T, s *Scene, cells []Cell) []*sim.Result {
	t.Helper()
	results, err := s.RunAll(t.Context(), cells, 2, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func mustCompare(t *testing.T, s *Scene, cells []Cell, results []*sim.Result) *Comparison {
	t.Helper()
	c, err := s.Compare(cells, results)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRowsSayWhatTheRunsWere(t *testing.T) {
	s := scene(t, 60)
	cells := Grid([]string{"predictive", "round-robin"}, []float64{1, 4}, 2)
	results := mustRunAll(t, s, cells)
	x := mustCompare(t, s, cells, results)
	if len(x.Rows) != 4 || x.Rows[1].Policy != "round-robin" || x.Rows[2].Load != 4 || x.Replicas != 3 || x.Seeds != 2 {
		t.Fatalf("rows: %+v", x.Rows)
	}
	r := x.Rows[0]
	if want := float64(results[0].Done+results[1].Done) / 2 / 60; math.Abs(r.Rate.Mean-want) > 0.1*want {
		t.Errorf("%v requests per second, about %v were done", r.Rate, want)
	}
	if r.Bound.Mean < r.GoodShare.Mean || r.Bound.Mean > 1 {
		t.Errorf("good %v, bound %v", r.GoodShare, r.Bound)
	}
	// Of each prompt all but the question is shared; the first of a group is not.
	if r.Ceiling.Mean < 0.75 || r.Ceiling.Mean > 4096.0/4496 || r.Cached.Mean > r.Ceiling.Mean {
		t.Errorf("cached %v, ceiling %v", r.Cached, r.Ceiling)
	}
	// Two H100 replicas and one A100, two devices each, at list prices.
	if want := 2*2*3.0 + 2*1.8; math.Abs(r.Cost-want) > 1e-9 {
		t.Errorf("$%v per hour, want %v", r.Cost, want)
	}
	if want := r.Cost / (r.Output.Mean * 3600) * 1e6; math.Abs(r.CostPerTok.Mean-want) > 0.05*want {
		t.Errorf("$%v per million tokens at %v tok/s", r.CostPerTok, r.Output)
	}
	if r.TTFT.P50.Mean > r.TTFT.P90.Mean || r.TTFT.P90.Mean > r.TTFT.P99.Mean || r.TTFT.P99.Mean > r.E2E.P99.Mean {
		t.Errorf("quantiles fall: %+v, E2E %+v", r.TTFT, r.E2E)
	}
	if !(r.TTFTError.Mean > 0 && r.TTFTError.Mean < 0.6) {
		t.Errorf("median error of predicted TTFT: %v", r.TTFTError)
	}
}

func TestKeptCellsAreTheCellsThatRan(t *testing.T) {
	dir := t.TempDir()
	cells := Grid([]string{"p2c", "least-request"}, []float64{1}, 2)
	run := func(spoil func(s *Scene)) (string, int) {
		s := scene(t, 10)
		var err error
		if s.Cache, err = OpenCache(dir); err != nil {
			t.Fatal(err)
		}
		spoil(s)
		x := mustCompare(t, s, cells, mustRunAll(t, s, cells))
		var page bytes.Buffer
		if err := x.WriteHTML(&page); err != nil {
			t.Fatal(err)
		}
		return page.String(), s.Cache.Hits()
	}
	plain := func(*Scene) {}
	first, hits := run(plain)
	if hits != 0 {
		t.Fatalf("%d hits in an empty cache", hits)
	}
	if again, hits := run(plain); hits != len(cells) || again != first {
		t.Errorf("%d of %d cells found, report the same: %v", hits, len(cells), again == first)
	}
	for name, spoil := range map[string]func(*Scene){
		"noise":   func(s *Scene) { s.Noise = 0.1 },
		"load":    func(s *Scene) { s.LoadID = "other" },
		"fleet":   func(s *Scene) { s.Variants[0].Slower = 1.1 },
		"pool":    func(s *Scene) { s.Pool.Room.MaxInFlight++ },
		"binary":  func(s *Scene) { s.Cache.build = "other" },
		"no name": func(s *Scene) { s.LoadID = "" },
	} {
		if _, hits := run(spoil); hits != 0 {
			t.Errorf("another %s: %d cells were found", name, hits)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatal("nothing kept", err)
	}
	for i, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		raw[len(raw)-1-i] ^= 1
		if err := os.WriteFile(f, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if again, hits := run(plain); hits != 0 || again != first {
		t.Errorf("%d damaged cells were taken", hits)
	}
	if _, hits := run(plain); hits != len(cells) {
		t.Errorf("damaged cells were not written anew: %d found", hits)
	}
}

func TestCacheKeepsTheLatestAndNothingButItsOwn(t *testing.T) {
	dir := t.TempDir()
	own := func(i int) string { return filepath.Join(dir, strings.Repeat("0", 63)+string(rune('0'+i))) }
	for i := range 5 {
		if err := writeFile(own(i), make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(own(i), at, at); err != nil {
			t.Fatal(err)
		}
	}
	strange := filepath.Join(dir, "thesis.txt")
	if err := os.WriteFile(strange, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	prune(dir, 4, 350)
	for i := range 5 {
		if _, err := os.Stat(own(i)); (err == nil) != (i >= 2) {
			t.Errorf("entry %d: %v; the latest three have room", i, err)
		}
	}
	if _, err := os.Stat(strange); err != nil {
		t.Error("a file of somebody else's is gone")
	}
}

func TestCancelEndsARunSoon(t *testing.T) {
	s := scene(t, 1e6) // days of load
	ctx, cancel := context.WithCancel(t.Context())
	inner := s.Load
	s.Load = func(load float64, seed uint64) (workload.Source, error) {
		src, err := inner(load, seed)
		return &cancelling{src, cancel, 200}, err
	}
	if _, err := s.RunAll(ctx, Grid([]string{"p2c"}, []float64{1}, 3), 2, func(int) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// cancelling cancels after so many requests.
type cancelling struct {
	workload.Source
	cancel func()
	left   int
}

func (c *cancelling) Next() (workload.Request, bool) {
	if c.left--; c.left == 0 {
		c.cancel()
	}
	return c.Source.Next()
}

// record simulates a gateway and returns its journal.
func record(t testing.TB, s *Scene, c Cell) (raw []byte, truth *sim.Result) {
	t.Helper()
	cfg := s.config(c)
	var out bytes.Buffer
	w := journal.NewWriter(&out)
	var err error
	if cfg.Journal, err = pool.NewRecorder(w, cfg.Pool, cfg.Seed); err != nil {
		t.Fatal(err)
	}
	src, err := s.Load(c.Load, c.Seed)
	if err != nil {
		t.Fatal(err)
	}
	if truth, err = sim.Run(cfg, src); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return written(t, out.Bytes(), cfg), truth
}

// written adds to a journal what a live gateway tells beside: that a request has
// been written to its engine.
func written(t testing.TB, raw []byte, cfg sim.Config) []byte {
	t.Helper()
	r, err := journal.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	tape, err := pool.NewTape(r)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := journal.NewWriter(&out)
	rec, err := pool.NewRecorder(w, cfg.Pool, cfg.Seed)
	for err == nil {
		var s pool.Step
		if s, err = tape.Next(); err != nil {
			break
		}
		err = rec.Record(s.At, s.Event, s.Actions)
		for _, a := range s.Actions {
			if a.Kind == pool.Dispatch {
				err = errors.Join(err, rec.Record(s.At+1000, &pool.Leg{Req: a.Req, Attempt: a.Attempt, Phase: fleet.PhaseSent}, nil))
			}
		}
	}
	if !errors.Is(err, io.EOF) || w.Flush() != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestARecordingIsWhatHappened(t *testing.T) {
	raw, truth := record(t, scene(t, 60), Cell{Policy: "least-request", Load: 2, Seed: 5})
	rec, err := ReadRecording(bytes.NewReader(raw), 0)
	if err != nil {
		t.Fatal(err)
	}
	s := scene(t, 60)
	s.Load = rec.Load()
	row, err := rec.Row(s)
	if err != nil {
		t.Fatal(err)
	}
	want := newRow([]*sim.Result{truth}, row.Cost)
	if row.Policy != "as recorded (least-request)" || row.Requests != truth.Arrived {
		t.Errorf("%s, %d requests of %d", row.Policy, row.Requests, truth.Arrived)
	}
	for _, m := range []struct {
		name      string
		got, want Interval
	}{
		{"mean TTFT", row.TTFT.Mean, want.TTFT.Mean},
		{"p90 TPOT", row.TPOT.P90, want.TPOT.P90},
		{"p99 E2E", row.E2E.P99, want.E2E.P99},
		{"cached", row.Cached, want.Cached},
		{"imbalance", row.Imbalance, want.Imbalance},
		{"good", row.GoodShare, want.GoodShare},
		{"TTFT error", row.TTFTError, want.TTFTError},
		{"TPOT error", row.TPOTError, want.TPOTError},
	} {
		if math.Abs(m.got.Mean-m.want.Mean) > 0.02*m.want.Mean { // two buckets of a histogram
			t.Errorf("%s read as %v, was %v", m.name, m.got.Mean, m.want.Mean)
		}
	}
	if row.Preempted.Known() {
		t.Error("a journal cannot tell of preemptions")
	}
}

// TestWhatIfIsNearWhatWas records one policy and asks what it and another would
// have done; the other is then run on the true fleet, which the what-if has never
// seen.
func TestWhatIfIsNearWhatWas(t *testing.T) {
	for name, believed := range map[string]bool{"with a prior": true, "knowing nothing": false} {
		truth := scene(t, 180)
		truth.Spread = 0.2
		for i := range truth.Variants {
			if !believed {
				truth.Variants[i].Belief = perf.Step{}
			}
		}
		raw, _ := record(t, truth, Cell{Policy: "least-request", Load: 5, Seed: 5})
		rec, err := ReadRecording(bytes.NewReader(raw), 0)
		if err != nil {
			t.Fatal(err)
		}
		what := &Scene{Pool: rec.Config, Load: rec.Load(), Noise: 0.05, Scrape: rec.Scrape(), Targets: truth.Targets}
		if what.Variants, what.Hop, err = rec.Fleet(0); err != nil {
			t.Fatal(err)
		}
		if len(what.Variants) != 2 || what.Variants[0].Replicas != 2 || what.Variants[1].Replicas != 1 || what.Scrape != time.Second {
			t.Fatalf("the fleet is taken for %+v", what.Variants)
		}
		cells := Grid([]string{"least-request", "prefix-affinity"}, []float64{1}, 3)
		would := mustCompare(t, what, cells, mustRunAll(t, what, cells))
		measured, err := rec.Row(what)
		if err != nil {
			t.Fatal(err)
		}
		_, other := record(t, truth, Cell{Policy: "prefix-affinity", Load: 5, Seed: 5})
		near(t, name+": least-request, recorded", would.Rows[0], measured)
		near(t, name+": prefix-affinity, not recorded", would.Rows[1], newRow([]*sim.Result{other}, 0))
	}
}

// near holds a simulated row against a measured one.
func near(t *testing.T, name string, got, want Row) {
	t.Helper()
	for _, m := range []struct {
		name      string
		got, want float64
		within    float64
	}{
		{"requests per second", got.Rate.Mean, want.Rate.Mean, 0.03},
		{"cached share", got.Cached.Mean, want.Cached.Mean, 0.1},
		{"mean TTFT", got.TTFT.Mean.Mean, want.TTFT.Mean.Mean, 0.2},
		{"p90 TTFT", got.TTFT.P90.Mean, want.TTFT.P90.Mean, 0.3},
		{"mean TPOT", got.TPOT.Mean.Mean, want.TPOT.Mean.Mean, 0.08},
		{"mean E2E", got.E2E.Mean.Mean, want.E2E.Mean.Mean, 0.08},
	} {
		t.Logf("%s: %s %.4g, measured %.4g", name, m.name, m.got, m.want)
		if math.Abs(m.got/m.want-1) > m.within {
			t.Errorf("%s: %s is simulated as %.4g, measured as %.4g", name, m.name, m.got, m.want)
		}
	}
}

func TestRecordingsOverlay(t *testing.T) {
	raw, _ := record(t, scene(t, 20), Cell{Policy: "p2c", Load: 1, Seed: 1})
	rec, err := ReadRecording(bytes.NewReader(raw), 0)
	if err != nil {
		t.Fatal(err)
	}
	count := func(load float64) (n int, last time.Duration, reuse workload.Reuse) {
		src, err := rec.Load()(load, 1)
		if err != nil {
			t.Fatal(err)
		}
		for q := range workload.All(src) {
			if q.Index != n || q.At < last {
				t.Fatalf("request %d at %v after %v", q.Index, q.At, last)
			}
			n, last = n+1, q.At
			reuse.Add(q.Prompt)
		}
		return n, last, reuse
	}
	n1, last1, reuse1 := count(1)
	n3, last3, reuse3 := count(2.5)
	if n3 != 3*n1 || math.Abs(last3.Seconds()/last1.Seconds()-3/2.5) > 0.05 {
		t.Errorf("%d requests in %v at load 1, %d in %v at load 2.5", n1, last1, n3, last3)
	}
	if reuse3.TokenShare() > reuse1.TokenShare() {
		t.Errorf("copies share prefixes: %v at load 2.5, %v at load 1", reuse3.TokenShare(), reuse1.TokenShare())
	}
	src, err := rec.Load()(1, 1)
	if err != nil {
		t.Fatal(err)
	}
	q, _ := src.Next()
	if q.Input != 4496 || q.Output != 150 || len(q.Prompt) != 4496/64+1 {
		t.Errorf("%d prompt tokens in %d runs, %d output", q.Input, len(q.Prompt), q.Output)
	}
}

func TestRecordingsThatTellTooLittleAreRefused(t *testing.T) {
	short := scene(t, 2)
	raw, _ := record(t, short, Cell{Policy: "p2c", Load: 1, Seed: 1})
	rec, err := ReadRecording(bytes.NewReader(raw), 0)
	if err != nil {
		t.Fatal(err)
	}
	if v, _, err := rec.Fleet(0); err != nil || rec.Unseen != 3 || *v[0].Measured != short.Variants[0].Belief {
		t.Errorf("a handful of answers, but a belief: %+v, %v", v, err)
	}
	rec.endpoints[2].step = perf.Step{}
	if _, _, err := rec.Fleet(0); err == nil || !strings.Contains(err.Error(), "--fleet") {
		t.Errorf("a fleet from a handful of answers: %v", err)
	}
	raw, _ = record(t, scene(t, 30), Cell{Policy: "p2c", Load: 1, Seed: 1})
	if rec, err = ReadRecording(bytes.NewReader(raw), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if n := len(rec.requests); n < 20 || n > 60 {
		t.Errorf("%d requests in the first 10 s at 4 per second", n)
	}
	rec.endpoints[1].limits.KVTokens = 0
	if _, _, err := rec.Fleet(0); err == nil || !strings.Contains(err.Error(), "--kv-tokens") {
		t.Errorf("a fleet of unknown capacity: %v", err)
	}
	if v, _, err := rec.Fleet(5000); err != nil || rec.endpoints[1].limits.KVTokens != 5000 {
		t.Errorf("capacity was given, but %+v, %v", v, err)
	}
	for name, raw := range map[string][]byte{"nothing": nil, "no journal": []byte("timestamp,context\n"), "no requests": head(t)} {
		if _, err := ReadRecording(bytes.NewReader(raw), 0); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// head is a journal of a gateway that nobody asked anything.
func head(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	w := journal.NewWriter(&out)
	if _, err := pool.NewRecorder(w, pool.Default(), 1); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestParseMix(t *testing.T) {
	shape, err := catalog.FindModel("")
	if err != nil {
		t.Fatal(err)
	}
	base := catalog.Serving{Shape: shape, TP: 2}
	list, err := ParseMix("H100:3, a100:2", 8, base)
	if err != nil || len(list) != 2 || list[0].Replicas != 3 || list[1].Name != "A100" || list[1].Replicas != 2 || !list[1].Belief.Known() {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err = ParseMix("", 8, base); err != nil || len(list) != 1 || list[0].Replicas != 8 || list[0].Name != "H100" {
		t.Errorf("%+v, %v", list, err)
	}
	for text, want := range map[string]string{
		"abacus:3": "is not known", "H100:0": "want NAME:REPLICAS", "H100:-1": "want NAME:REPLICAS", "H100:x": "want NAME:REPLICAS",
		"H100:1,A100": "each needs its number", "H100:1,h100:2": "twice", ":3": "names nothing", "TPU v5e:1": "does not fit",
	} {
		if _, err := ParseMix(text, 8, base); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestBadScenesAreRefused(t *testing.T) {
	for want, spoil := range map[string]func(*Scene){
		"variants: must":         func(s *Scene) { s.Variants = nil },
		"variants[1] (A100)":     func(s *Scene) { s.Variants[1].Replicas = -1 },
		"replicas: must":         func(s *Scene) { s.Variants[0].Replicas, s.Variants[1].Replicas = 0, 0 },
		"noise: must":            func(s *Scene) { s.Noise = math.NaN() },
		"spread: must":           func(s *Scene) { s.Spread = 1 },
		"scrape and hop":         func(s *Scene) { s.Hop = -1 },
		"variants[0] (H100): tp": func(s *Scene) { s.Variants[0].Serving.TP = 3 },
	} {
		s := scene(t, 1)
		spoil(s)
		if _, err := s.RunAll(t.Context(), nil, 1, func(int) {}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// FuzzReadRecording reads journals whose second record is anything.
func FuzzReadRecording(f *testing.F) {
	raw, _ := record(f, scene(f, 5), Cell{Policy: "p2c", Load: 1, Seed: 1})
	r, err := journal.NewReader(bytes.NewReader(raw))
	if err != nil {
		f.Fatal(err)
	}
	head, err := r.Next()
	if err != nil {
		f.Fatal(err)
	}
	head = bytes.Clone(head)
	var bodies [][]byte
	for body, err := r.Next(); err == nil; body, err = r.Next() {
		bodies = append(bodies, bytes.Clone(body))
	}
	for _, b := range bodies[:40] {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var out bytes.Buffer
		w := journal.NewWriter(&out)
		for _, b := range append([][]byte{head, bodies[0], body}, bodies...) {
			if err := w.Append(b); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		rec, err := ReadRecording(&out, 0)
		if err != nil {
			return
		}
		src, err := rec.Load()(1.5, 1)
		if err != nil {
			t.Fatal(err)
		}
		for q := range workload.All(src) {
			if q.Input < 1 || q.Output < 1 {
				t.Fatalf("%+v", q)
			}
		}
		for _, v := range first(rec.Fleet(1000)) {
			if !v.Measured.Known() {
				t.Fatalf("a truth that takes no time: %+v", v)
			}
		}
	})
}

func first(list []Variant, _ time.Duration, _ error) []Variant { return list }
