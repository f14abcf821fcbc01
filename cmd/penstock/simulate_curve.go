package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/lab"
)

// curve prints the miss-ratio curve of a scene's load instead of simulating it.
func (c *simulateCmd) curve(ctx context.Context, s streams, e *experiment) error {
	if !(c.CurveRate > 0 && c.CurveRate <= 1) {
		return fmt.Errorf("--curve-rate must be above 0 and at most 1, is %v", c.CurveRate)
	}
	replicas, engine := 0, fleet.Tokens(0)
	for i := range e.scene.Variants {
		v := &e.scene.Variants[i]
		replicas += v.Replicas + v.Later
		kvTokens := v.Limits.KVTokens
		if kvTokens == 0 {
			kvTokens = fleet.Tokens(v.Serving.KVTokens())
		}
		engine = max(engine, kvTokens)
	}
	load := 1.0
	if len(c.Load) > 0 {
		load = c.Load[0]
	}
	if len(c.Load) > 1 {
		return fmt.Errorf("--load: a curve is of one load, %v are given", c.Load)
	}
	source, err := e.scene.Load(load, 1)
	if err != nil {
		return err
	}
	numbers := []int{1, max(replicas/2, 1), replicas, 2 * replicas}
	slices.Sort(numbers)
	x, err := lab.CacheCurve(ctx, source, lab.CurveOptions{
		Replicas: slices.Compact(numbers), Sizes: lab.CurveSizes(engine), Rate: c.CurveRate,
	})
	if err != nil {
		return err
	}
	if c.JSON {
		enc := json.NewEncoder(s.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(x)
	}
	return printCurve(s.Out, x, engine)
}

func printCurve(out io.Writer, x *lab.Curve, engine fleet.Tokens) error {
	fmt.Fprintf(out, "%d requests ask for %d blocks of 16 tokens; a cache without end would have %.1f %% of them\n", x.Requests, x.Blocks, 100*x.Ceiling)
	fmt.Fprintf(out, "share found in cache, by the size of each replica's (1x: the KV cache of one engine, %d tokens); %.0f %% of blocks sampled\n\n", engine, 100*x.Sampled)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "replicas\trequests\t")
	for _, size := range x.Sizes {
		fmt.Fprintf(w, "%.4gx\t", float64(size)/float64(engine))
	}
	fmt.Fprintln(w)
	for _, r := range x.Rows {
		for _, way := range []struct {
			name   string
			shares []float64
		}{{"stay with their prefix", r.Kept}, {"go in turn", r.Spread}} {
			fmt.Fprintf(w, "%d\t%s\t", r.Replicas, way.name)
			for _, share := range way.shares {
				fmt.Fprintf(w, "%.1f %%\t", 100*share)
			}
			fmt.Fprintln(w)
			if r.Replicas == 1 {
				break // both are the same
			}
		}
	}
	return w.Flush()
}
