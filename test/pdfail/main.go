// Command pdfail has everything happen to split requests that can, many times over
// and under load, and counts what clients see of it: a gateway before simulated
// engines, over sockets, with a fault injected every second or two. It exits with 1
// when a goal is missed.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"time"

	"penstock.dev/penstock/internal/enginesim/server"
)

type options struct {
	times    int
	rate     float64
	verbose  bool
	parallel int
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == serveArgument {
		if err := serveOnly(os.Args[2], os.Args[3]); err != nil {
			fatal(err)
		}
		return
	}
	var o options
	quick := flag.Bool("quick", false, "5 injections of each fault, over three connectors")
	flag.IntVar(&o.times, "times", 0, "injections of each fault (default 100)")
	flag.Float64Var(&o.rate, "rate", 30, "requests per second, Poisson")
	flag.IntVar(&o.parallel, "parallel", 4, "rows at a time, each with a gateway and engines of its own")
	flag.BoolVar(&o.verbose, "v", false, "tell of every request that went wrong")
	only := flag.String("rows", "", "the rows to run, separated by commas: "+names()+"; default all")
	connectors := flag.String("connector", "", "how KV is handed over, separated by commas: nixl, nixl-push, mooncake, offload, sglang (default nixl; with --quick also sglang and mooncake)")
	flag.Parse()
	if o.times == 0 {
		o.times = 100
		if *quick {
			o.times = 5
		}
	}
	if *connectors == "" {
		*connectors = server.NIXL
		if *quick {
			*connectors = strings.Join([]string{server.NIXL, server.Rooms, server.Mooncake}, ",")
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	began := time.Now()
	all, err := runAll(ctx, o, strings.Split(*connectors, ","), *only)
	if err != nil {
		fatal(err)
	}
	report(all)
	goals, missed := judge(all)
	took := time.Since(began).Round(time.Second)
	if len(missed) > 0 {
		fmt.Printf("\npdfail: %d of %d goals missed in %v: %s\n", len(missed), goals, took, strings.Join(missed, "; "))
		os.Exit(1)
	}
	fmt.Printf("\npdfail: all %d goals met in %v\n", goals, took)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "pdfail:", err)
	os.Exit(2)
}

// runAll runs the rows, some at a time, and returns what became of them in order.
func runAll(ctx context.Context, o options, connectors []string, only string) ([]outcome, error) {
	var todo []outcome
	for _, c := range connectors {
		for _, x := range rows() {
			if only != "" && !slices.Contains(strings.Split(only, ","), x.key) || x.connectors != nil && !x.connectors[c] {
				continue
			}
			todo = append(todo, outcome{row: x, connector: c})
		}
	}
	if len(todo) == 0 {
		return nil, fmt.Errorf("no row of these names; there are %s", names())
	}
	turn := make(chan struct{}, max(o.parallel, 1))
	var running sync.WaitGroup
	for i := range todo {
		turn <- struct{}{}
		running.Go(func() {
			defer func() { <-turn }()
			began := time.Now()
			todo[i].failed = todo[i].run(ctx, o)
			fmt.Fprintf(os.Stderr, "%s, %s: %v\n", todo[i].connector, todo[i].row.key, time.Since(began).Round(time.Second))
		})
	}
	running.Wait()
	return todo, ctx.Err()
}

// median and most are of durations, 0 of none.
func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

func most(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return slices.MaxFunc(d, cmp.Compare)
}
