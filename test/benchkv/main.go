//go:build linux

// Command benchkv measures the index of the blocks that engines say they hold:
// what a match, a stored and a removed block cost in processor time when ten
// million blocks are there, what they take in memory, and how long a match
// waits behind events. It exits with 1 and names the goal when one is missed.
// docs/kv-index.md says how to read it.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
)

// options are the command line.
type options struct {
	quick           bool
	blocks, rounds  int // 0 for the plan's
	endpoints       string
	read, write     string
	seed            uint64
	publishers      int
	blocksPerSecond float64 // of all publishers
}

func main() {
	var o options
	flag.BoolVar(&o.quick, "quick", false, "a tenth of the blocks, three rounds: to see that it works, not for figures")
	flag.IntVar(&o.blocks, "blocks", 0, "distinct blocks, instead of 10,000,000 (1,000,000 with --quick)")
	flag.IntVar(&o.rounds, "rounds", 0, "rounds, instead of 9 (3 with --quick)")
	flag.StringVar(&o.endpoints, "endpoints", "8,1000,64", "numbers of endpoints, separated by commas; goals are for 64")
	flag.StringVar(&o.write, "write-workload", "", "write the workload for 64 endpoints to this file, and nothing else")
	flag.StringVar(&o.read, "read-workload", "", "measure the workload in this file")
	flag.Uint64Var(&o.seed, "seed", 1, "seed of the workload")
	flag.IntVar(&o.publishers, "publishers", 40, "engines that publish while matches are timed")
	flag.Float64Var(&o.blocksPerSecond, "rate", 1e6, "blocks per second that they publish together")
	flag.Parse()
	ok, err := run(&o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-kv:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func run(o *options) (bool, error) {
	if o.blocks == 0 {
		o.blocks = 10_000_000
		if o.quick {
			o.blocks = 1_000_000
		}
	}
	if o.rounds == 0 {
		o.rounds = 9
		if o.quick {
			o.rounds = 3
		}
	}
	if o.write != "" {
		return true, generate(o.blocks, goalEndpoints, o.seed).writeFile(o.write)
	}
	runtime.LockOSThread() // processor time is that of a thread
	r := &report{}
	if o.read != "" {
		w, err := readFile(o.read)
		if err != nil {
			return false, err
		}
		if err := measure(o, w, r); err != nil {
			return false, err
		}
	} else {
		for field := range strings.SplitSeq(o.endpoints, ",") {
			var n int
			if _, err := fmt.Sscan(field, &n); err != nil || n < 1 {
				return false, fmt.Errorf("--endpoints: %q is no number of endpoints", field)
			}
			if err := measure(o, generate(o.blocks, n, o.seed), r); err != nil {
				return false, err
			}
		}
	}
	r.write(os.Stdout)
	return !slices.ContainsFunc(r.rows, func(w row) bool { return w.missed() }), nil
}
