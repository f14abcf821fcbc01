// Command contest runs every routing policy against every other in virtual time,
// on fleets and loads on which they are known to differ, and exits with 1 when
// the predictive policy does not win as it should.
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
)

// What predictive must reach against the best baseline, in good requests.
const (
	nearSaturation = 1.15 // times it, on a mixed fleet beyond the load that the baselines manage
	nowhereBelow   = 0.98 // times it, anywhere
	ofClairvoyant  = 0.85 // times the policy that knows the truth
)

func main() {
	o := options{}
	flag.StringVar(&o.shared, "shared", "../shared", "directory with traces/")
	flag.IntVar(&o.seeds, "seeds", 3, "runs of each cell")
	flag.BoolVar(&o.quick, "quick", false, "one seed, a third of the time, no fleet of 64")
	only := flag.String("only", "", "the scenes to run, by the beginnings of their names, separated by commas; default all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	if o.quick {
		o.seeds = 1
	}
	began := time.Now()
	missed, bouts, err := contest(ctx, o, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "contest:", err)
		os.Exit(2)
	}
	took := time.Since(began).Round(time.Second)
	if len(missed) > 0 {
		fmt.Printf("contest: %d of %d goals missed in %v: %s\n", len(missed), bouts, took, strings.Join(missed, "; "))
		os.Exit(1)
	}
	fmt.Printf("contest: all %d goals met in %v\n", bouts, took)
}

type options struct {
	shared string
	seeds  int
	quick  bool
	only   []string
}

func (o options) wants(name string) bool {
	return o.only == nil || slices.ContainsFunc(o.only, func(p string) bool { return strings.HasPrefix(name, p) })
}

// The policies: ours, those it is compared with, and the one that knows the
// truth.
const (
	ours        = "predictive"
	clairvoyant = "clairvoyant-greedy"
)

func baselines() []string {
	return []string{
		"prefix-affinity", "llm-d", "llm-d-optimized", "llm-d-latency", "dynamo", "sglang", "sglang-gateway", "aibrix",
		"aibrix-least-latency", "least-request", "p2c", "round-robin", "random",
	}
}

// contest runs all scenes and returns the goals that were missed, and how many
// there were.
func contest(ctx context.Context, o options, w io.Writer) (missed []string, goals int, err error) {
	scenes, err := scenes(o)
	if err != nil {
		return nil, 0, err
	}
	best := 0.0 // of ours over the best baseline, on mixed fleets
	where, mixed := "", false
	for _, s := range scenes {
		if !o.wants(s.name) {
			continue
		}
		bouts, err := s.play(ctx, o, w)
		if err != nil {
			return nil, goals, fmt.Errorf("%s: %w", s.name, err)
		}
		for _, b := range bouts {
			goals += 2
			if b.ratio < nowhereBelow {
				missed = append(missed, fmt.Sprintf("%s x %.1f: %.3f of %s < %v", s.name, b.load, b.ratio, b.rival, nowhereBelow))
			}
			if b.known < ofClairvoyant {
				missed = append(missed, fmt.Sprintf("%s x %.1f: %.3f of %s < %v", s.name, b.load, b.known, clairvoyant, ofClairvoyant))
			}
			if s.mixed && s.judged {
				mixed = true
				if b.ratio > best {
					best, where = b.ratio, fmt.Sprintf("%s x %.1f", s.name, b.load)
				}
			}
		}
	}
	if mixed {
		goals++
		fmt.Fprintf(w, "\non mixed fleets, at most %.2f times the best baseline (%s)\n", best, where)
		if best < nearSaturation {
			missed = append(missed, fmt.Sprintf("mixed fleets near saturation: %.3f of the best baseline < %v", best, nearSaturation))
		}
	}
	return missed, goals, nil
}

// workers is how many cells run at once.
func workers() int { return runtime.NumCPU() }
