//go:build linux

// Command benchgateway measures what the gateway costs beside HAProxy and a
// bare httputil.ReverseProxy, in one run: processor time per request and per
// event, delay, memory. It exits with 1 and names the goal when one is missed.
// docs/performance.md says how to read it.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options are the command line.
type options struct {
	penstock, haproxy string
	versus            string // another build of the gateway, measured beside it; "" for none
	quick, json       bool
	busy              bool   // count slices on a busy machine too
	rounds            int    // 0 for the plan's
	only              string // names of parts, separated by commas; "" for all
	profile           string // directory for profiles; "" for none
	seed              uint64
	floor, backends   string // run as the floor
	burn              time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.penstock, "penstock", "dist/penstock", "the gateway's binary")
	flag.StringVar(&o.haproxy, "haproxy", "haproxy", "HAProxy's binary")
	flag.StringVar(&o.versus, "versus", "", "another build of the gateway to measure beside it, for before and after")
	flag.BoolVar(&o.quick, "quick", false, "three short rounds, two minutes: to see that it works, not for figures")
	flag.BoolVar(&o.busy, "busy", false, "count slices that are void because the machine is busy: to compare builds, not for figures")
	flag.IntVar(&o.rounds, "rounds", 0, "rounds, instead of 10 (3 with --quick)")
	flag.BoolVar(&o.json, "json", false, "print the report as JSON")
	flag.StringVar(&o.only, "only", "", "measure only these parts, separated by commas: "+strings.Join(partNames(), ", "))
	flag.StringVar(&o.profile, "profile", "", "after each part, write a profile of the gateway to this directory")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "seed of the order of the slices and of the arrivals")
	flag.StringVar(&o.floor, "serve-floor", "", "run as the floor, listening here (used by the bench itself)")
	flag.StringVar(&o.backends, "backends", "", "with --serve-floor: base URLs, separated by commas")
	flag.DurationVar(&o.burn, "burn", 0, "with --serve-floor: processor time to waste on each request")
	flag.Parse()
	code, err := run(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-gateway:", err)
	}
	os.Exit(code)
}

// pinned marks the run that stays on the driver's core.
const pinned = "BENCH_GATEWAY_PINNED"

func run(o options) (int, error) {
	if o.floor != "" {
		return 2, serveFloor(o.floor, o.backends, o.burn)
	}
	if os.Getenv(pinned) == "" {
		return 2, repin()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	begun := time.Now()
	r, err := measure(ctx, o)
	if err != nil {
		return 2, err
	}
	r.Seconds = time.Since(begun).Seconds()
	last := io.Writer(os.Stdout)
	if o.json {
		err, last = r.json(os.Stdout), os.Stderr
	} else {
		err = r.write(os.Stdout)
	}
	fmt.Fprintln(last, "\n"+r.summary())
	if err != nil || len(r.missed()) > 0 {
		return 1, err
	}
	return 0, nil
}

// repin starts this program again on the driver's core, in the same process.
func repin() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	taskset, err := exec.LookPath("taskset")
	if err != nil {
		return fmt.Errorf("taskset, of util-linux, is needed to pin processes to cores: %w", err)
	}
	args := append([]string{taskset, "-c", strconv.Itoa(driverCore), self}, os.Args[1:]...)
	return syscall.Exec(taskset, args, append(os.Environ(), "GOMAXPROCS=1", pinned+"=1"))
}

// endpoints is how many mocks the subjects balance.
const endpoints = 8

// measure runs everything.
func measure(ctx context.Context, o options) (*report, error) {
	dir, err := os.MkdirTemp("", "bench-gateway")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	b := &bench{options: o, plan: fullPlan(), log: os.Stderr, dir: dir, random: rand.New(rand.NewPCG(o.seed, 3))}
	if o.quick {
		b.plan = quickPlan()
	}
	if o.rounds > 0 {
		b.plan.rounds = o.rounds
	}
	// One slice in five may fall to the machine's other work.
	r := &report{Machine: machine(o), Quick: o.quick, Busy: o.busy, Load: loadAverage(), least: b.plan.rounds * 4 / 5, versus: o.versus != ""}
	if b.fleet, err = newFleet(endpoints); err != nil {
		return nil, err
	}
	defer b.fleet.close()
	if b.subjects, err = startAll(o, dir, b.fleet.urls()); err != nil {
		return nil, err
	}
	defer func() { stopAll(b.subjects) }()
	time.Sleep(2 * time.Second) // every endpoint's gauges are read once
	for _, p := range parts() {
		if o.only != "" && !slices.Contains(strings.Split(o.only, ","), p.name) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := p.run(ctx, b, r); err != nil {
			return nil, err
		}
	}
	r.Driver, r.Voided = quantile(b.driver, 0.5), b.voided
	return r, nil
}
