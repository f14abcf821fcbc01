// Command pd holds to goals, in virtual time, what is decided of splitting requests
// and of moving KV: a published fleet, an adaptive policy beside the best fixed
// roles, and fetching beside computing. It exits with 1 when a goal is missed.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/lab"
	"penstock.dev/penstock/internal/sim"
)

func main() {
	o := options{}
	flag.BoolVar(&o.quick, "quick", false, "fewer points of the grid, less time at each")
	only := flag.String("only", "", "the parts to run, separated by commas: published, adaptive, pulls; default all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	began := time.Now()
	g := goals{w: os.Stdout}
	for _, part := range []struct {
		name string
		run  func(context.Context, options, *goals) error
	}{{"published", published}, {"adaptive", adaptive}, {"pulls", pulls}} {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), part.name) {
			continue
		}
		fmt.Printf("\n== %s\n", part.name)
		if err := part.run(ctx, o, &g); err != nil {
			fmt.Fprintf(os.Stderr, "pd: %s: %v\n", part.name, err)
			os.Exit(2)
		}
	}
	took := time.Since(began).Round(time.Second)
	if len(g.missed) > 0 {
		fmt.Printf("\npd: %d of %d goals missed in %v: %s\n", len(g.missed), g.set, took, strings.Join(g.missed, "; "))
		os.Exit(1)
	}
	fmt.Printf("\npd: all %d goals met in %v\n", g.set, took)
}

type options struct{ quick bool }

// goals counts what was to be reached, and keeps what was not.
type goals struct {
	w      io.Writer
	set    int
	missed []string
}

// hold notes whether a goal was met.
func (g *goals) hold(met bool, format string, args ...any) {
	g.set++
	if !met {
		g.missed = append(g.missed, fmt.Sprintf(format, args...))
	}
}

func (g *goals) printf(format string, args ...any) { fmt.Fprintf(g.w, format, args...) }

// play runs one policy on a scene with a few seeds, and returns the results by seed.
func play(ctx context.Context, s *lab.Scene, policy string, seeds int) ([]*sim.Result, error) {
	return s.RunAll(ctx, lab.Grid([]string{policy}, []float64{1}, seeds), runtime.NumCPU(), func(int) {})
}

// mean is the mean of a figure over results.
func mean(results []*sim.Result, of func(*sim.Result) float64) float64 {
	sum := 0.0
	for _, r := range results {
		sum += of(r)
	}
	return sum / float64(len(results))
}

func ttft(r *sim.Result) float64 { return r.TTFT.Mean() * 1e-9 }
func e2e(r *sim.Result) float64  { return r.E2E.Mean() * 1e-9 }

// serving is how a model of the catalogue is served on an accelerator.
func serving(model, accelerator string, tp int) (catalog.Serving, error) {
	m, err := catalog.FindModel(model)
	if err != nil {
		return catalog.Serving{}, err
	}
	a, err := catalog.FindAccelerator(accelerator)
	if err != nil {
		return catalog.Serving{}, err
	}
	return catalog.Serving{Shape: m, Accelerator: a, TP: tp, Engine: "vllm"}.Normal(), nil
}
