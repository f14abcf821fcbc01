// Command kvtruth holds what a gateway says is cached to what simulated engines
// have, while batches of events are lost, swapped, doubled and damaged, engines
// restart and replays are short, slow or refused: ten minutes of virtual time and
// two on the wall clock. It exits with 1 when a goal is missed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"
)

// What an index may get wrong while it does not say that it does not know.
const (
	mostFalse   = 0.001 // of the blocks it says are cached
	mostMissing = 0.01  // of the blocks that are
)

// How soon it must know again.
const (
	healGap     = time.Second              // after a gap that can be replayed
	healRestart = time.Second              // after an engine is back
	healSlow    = 5 * time.Second          // where replays are slow, or refused for a while
	never       = time.Duration(1<<63 - 1) // where history is lost for good: until the cache has turned over
)

func main() {
	quick := flag.Bool("quick", false, "a tenth of the time")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	virtual, wall := 10*time.Minute, 2*time.Minute
	if *quick {
		virtual, wall = virtual/10, wall/10
	}
	began := time.Now()
	var j judge
	if err := simulated(virtual, &j); err != nil {
		fatal(err)
	}
	if err := live(ctx, wall, &j); err != nil {
		fatal(err)
	}
	took := time.Since(began).Round(time.Second)
	if len(j.missed) > 0 {
		fmt.Printf("kvtruth: %d of %d goals missed in %v: %s\n", len(j.missed), j.goals, took, strings.Join(j.missed, "; "))
		os.Exit(1)
	}
	fmt.Printf("kvtruth: all %d goals met in %v\n", j.goals, took)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "kvtruth:", err)
	os.Exit(2)
}

// judge collects goals.
type judge struct {
	goals  int
	missed []string
}

func (j *judge) atMost(name string, got, most float64, format string) {
	j.goals++
	if !(got <= most) {
		j.missed = append(j.missed, fmt.Sprintf("%s: "+format+" > "+format, name, got, most))
	}
}

// index judges how wrong an index was.
func (j *judge) index(name string, wrong, missing float64, audits int) {
	j.goals++
	if audits == 0 {
		j.missed = append(j.missed, name+": it never said that it knew")
	}
	j.atMost(name+", false", wrong, mostFalse, "%.5f")
	j.atMost(name+", missing", missing, mostMissing, "%.5f")
}

func (j *judge) heal(name string, took, most time.Duration) {
	if most != never {
		j.atMost(name+", s to heal", took.Seconds(), most.Seconds(), "%.2f")
	}
}
