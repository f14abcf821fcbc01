// Command contestkv measures in virtual time what it is worth to know what
// engines have cached: nothing, what was sent to them, what they tell themselves,
// with and without memory below the GPU's. It exits with 1 when knowing more
// serves worse.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"penstock.dev/penstock/internal/lab"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/workload"
)

type options struct {
	shared string
	seeds  int
	quick  bool
	only   []string
}

func main() {
	o := options{}
	flag.StringVar(&o.shared, "shared", "../shared", "directory with traces/")
	flag.IntVar(&o.seeds, "seeds", 4, "runs of each way in each scene, at least 2")
	flag.BoolVar(&o.quick, "quick", false, "fewer scenes, shorter loads, three seeds")
	only := flag.String("only", "", "the scenes to run, by parts of their names, separated by commas; default all")
	flag.Parse()
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	if o.quick {
		o.seeds = 3
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	began := time.Now()
	missed, goals, err := contest(ctx, o, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "contestkv:", err)
		os.Exit(2)
	}
	took := time.Since(began).Round(time.Second)
	if len(missed) > 0 {
		fmt.Printf("contestkv: %d of %d goals missed in %v: %s\n", len(missed), goals, took, strings.Join(missed, "; "))
		os.Exit(1)
	}
	fmt.Printf("contestkv: all %d goals met in %v\n", goals, took)
}

// wants reports whether a scene's name has all parts of one of the filters,
// which are separated by a plus.
func (o options) wants(name string) bool {
	return o.only == nil || slices.ContainsFunc(o.only, func(p string) bool {
		for part := range strings.SplitSeq(p, "+") {
			if !strings.Contains(name, part) {
				return false
			}
		}
		return true
	})
}

// contest runs all scenes and returns the goals that were missed, and how many
// there were.
func contest(ctx context.Context, o options, w io.Writer) (missed []string, goals int, err error) {
	if o.seeds < 2 {
		return nil, 0, errors.New("--seeds: with fewer than 2 there is no telling what is chance")
	}
	all, err := scenes(o)
	if err != nil {
		return nil, 0, err
	}
	var t tally
	for _, s := range all {
		if !o.wants(s.name) {
			continue
		}
		rows, err := s.play(ctx, o)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", s.name, err)
		}
		s.print(w, rows)
		t.judge(w, s, rows)
	}
	t.sumUp(w)
	return t.missed, t.goals, nil
}

// row is what came of one way in one scene, by seed.
type row struct {
	way     way
	results []*sim.Result
	ceiling []float64 // share that an endless cache would have held
}

// play runs all ways in a scene.
func (s *scene) play(ctx context.Context, o options) ([]*row, error) {
	ceiling, err := s.ceilings(o.seeds)
	if err != nil {
		return nil, err
	}
	type job struct {
		scene *lab.Scene
		cell  lab.Cell
		into  **sim.Result
	}
	var rows []*row
	var jobs []job
	for _, w := range ways() {
		if !w.always && (s.fault != noFault || s.gateways > 1 && o.quick) || w.only != "" && w.only != s.kind {
			continue
		}
		scene, err := s.lab(&w)
		if err != nil {
			return nil, err
		}
		if err := scene.Validate(); err != nil {
			return nil, err
		}
		r := &row{way: w, results: make([]*sim.Result, o.seeds), ceiling: ceiling}
		for seed := range o.seeds {
			jobs = append(jobs, job{scene, lab.Cell{Policy: w.policy, Load: s.load, Seed: uint64(seed + 1)}, &r.results[seed]})
		}
		rows = append(rows, r)
	}
	errs := make([]error, len(jobs))
	next := make(chan int)
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Go(func() {
			for i := range next {
				*jobs[i].into, errs[i] = jobs[i].scene.Run(ctx, jobs[i].cell)
			}
		})
	}
	for i := range jobs {
		next <- i
	}
	close(next)
	wg.Wait()
	return rows, errors.Join(errs...)
}

// ceilings are the shares of prompt tokens that an endless cache would have held,
// by seed.
func (s *scene) ceilings(seeds int) ([]float64, error) {
	var list []float64
	for seed := range seeds {
		src, err := s.source(s.load, uint64(seed+1))
		if err != nil {
			return nil, err
		}
		var u workload.Reuse
		for q := range workload.All(src) {
			u.Add(q.Prompt)
		}
		list = append(list, u.TokenShare())
	}
	return list, nil
}
