package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"penstock.dev/penstock/internal/lab"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/sim"
)

type simulateCmd struct {
	sceneFlags `embed:""`

	Policy []string  `default:"predictive,prefix-affinity,least-request,round-robin" help:"Policies to compare, or all: ${policies}, clairvoyant-greedy."`
	Load   []float64 `default:"1" placeholder:"X,..." help:"Multiples of the load: a workload's rates are multiplied, of a trace copies with text of their own are laid over each other."`
	Seeds  int       `default:"3" help:"Runs of each policy and load, each with its own noise and ties."`
	JSON   bool      `name:"json" help:"Print JSON."`
	HTML   string    `name:"html" type:"path" placeholder:"FILE" help:"Write a report with plots, one self-contained file."`

	CacheCurve bool    `name:"cache-curve" help:"Instead of simulating, print which share of prompts caches of several sizes would hold: a miss-ratio curve."`
	CurveRate  float64 `name:"curve-rate" default:"0.1" help:"Share of the blocks that --cache-curve looks at, above 0 and at most 1."`

	Cache string `placeholder:"DIR" help:"Where results of cells are kept, or off (default: the user's cache directory)."`
}

// Help shows examples.
func (simulateCmd) Help() string {
	return `Runs the code that serves live, in virtual time, against simulated engines, and
compares policies: means over seeds with 95 % confidence intervals.

Examples:
  penstock simulate --trace conversation.jsonl --duration 10m --goodput ttft:5000 --goodput tpot:100
  penstock simulate --trace conversation.jsonl --load 0.7,1,1.3 --replicas 12 --policy all --seeds 5 --html report.html
  penstock simulate --workload shared_prefix.yaml --accelerator H100:3,A100:3,L40S:2
  penstock simulate --workload shared_prefix.yaml --fleet simulate_fleet.yaml --json
  penstock simulate --trace conversation.jsonl --gateways 4 --kv-events --cpu-tier 1200000
  penstock simulate --trace conversation.jsonl --kv-events --kv-event-lag 50ms --kv-event-loss 0.01
  penstock simulate --trace conversation.jsonl --cpu-tier 1200000 --disk-tier 6000000
  penstock simulate --workload shared_prefix.yaml --replicas 8 --prefill 3
  penstock simulate --trace conversation.jsonl --cache-curve --replicas 12
  penstock simulate --journal decisions.journal --policy prefix-affinity,least-request

A fleet is described by flags, all replicas alike but for their accelerator, or by the
variants of a pool in a Fleet file. Beside the policies the catalogue has, a Fleet file's
own policy can be named with the weights it has there, and clairvoyant-greedy, which knows
what no gateway can: true step times, caches and lengths of answers.

--journal asks what other policies would have done with the load that a gateway
recorded (penstock gateway --journal FILE). The first row is what was measured, the row
of the policy that was in charge tells how far simulation is from it. It knows the
requests as the gateway saw them: when they came, how long they and their answers
were, which prefixes they shared, what was asked of them. How fast the engines are is
learnt from the recorded answers, or comes from the catalogue with --fleet. It cannot know
that a client would have sent its next question earlier had it been answered earlier;
what was cached before the recording; answers to requests that failed or were open at
its end (they get the typical length); what else the engines were doing. Endpoints that
came or went are there from beginning to end.

--faults names a YAML list of what happens to replicas, numbered from 0, or to all of
a variant; kinds are crash, restart, slow, mute, unmute, add and remove:

  - {at: 60s, replica: 3, kind: crash}
  - {at: 70s, replica: 3, kind: restart, delay: 90s}
  - {at: 2m, variant: A100, kind: slow, factor: 1.5}
  - {at: 3m, variant: H100, kind: add, delay: 2m}

The policy clairvoyant-greedy is a reference that no gateway can have: predictive, told
the truth of every engine and the length of every answer.

--kv-events has engines publish what they cache, as bytes on a line that may be late or
lose some, and gateways follow it as they do live, replays included. Without it a gateway
remembers what it sent itself. --cpu-tier and --disk-tier give every engine memory below
its GPUs': what has been computed is kept there, and loading it takes the time of a
PCIe 4 link of 20 GB/s or a drive of 5 GB/s, of which gateways believe the data sheet until
they have measured. "cached" counts tokens of all tiers. --cache-curve says beforehand what
more room would hold: it simulates no engine, but caches of several sizes that prompts
stay with or are dealt to in turn.

--prefill N has the first N replicas compute prompts for the others, which decode; KV
moves at what 70 % of --nic and 10 ms a request allow. In a Fleet file endpoints have
their roles and the pool its connector and when to split. penstock size finds the best
numbers of each.

Not simulated: KV in a store that engines share; engines that refuse each other's KV;
writing to slower tiers, which costs no time; tokenizing prompts and naming blocks, which gateways do at once and without error;
outputs whose length depends on who answers. A cell (policy, load, seed) that has been run before by the same
binary with the same settings is taken from the cache.`
}

// Run simulates every cell and prints the comparison.
func (c *simulateCmd) Run(ctx context.Context, s streams) error {
	policies, err := c.check()
	if err != nil {
		return err
	}
	e, err := c.experiment()
	if err != nil {
		return err
	}
	if c.CacheCurve {
		return c.curve(ctx, s, e)
	}
	if e.scene.Cache, err = c.cache(); err != nil {
		return err
	}
	if err := e.scene.Validate(); err != nil {
		return err
	}
	if err := checkPolicies(policies, e.scene.Pool.Policy); err != nil {
		return err
	}
	cells := lab.Grid(policies, c.Load, c.Seeds)
	p := newProgress(s.Err, len(cells), e.scene.Cache)
	results, err := e.scene.RunAll(ctx, cells, runtime.NumCPU(), p.show)
	p.end()
	if err != nil {
		return err
	}
	x, err := e.scene.Compare(cells, results)
	if err != nil {
		return err
	}
	if e.recorded != nil {
		row, err := e.recorded.Row(&e.scene)
		if err != nil {
			return err
		}
		x.Insert(row)
	}
	x.Command, x.Notes = commandLine(os.Args[1:]), e.notes
	x.Settings = append(slices.Clone(e.settings), e.scene.Describe()...)
	if c.HTML != "" {
		if err := writeReport(c.HTML, x); err != nil {
			return err
		}
	}
	if c.JSON {
		enc := json.NewEncoder(s.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(x)
	}
	printComparison(s.Out, x)
	if hits := e.scene.Cache.Hits(); hits > 0 {
		fmt.Fprintf(s.Out, "%d of %d cells came from the cache (--cache off runs them again)\n", hits, len(cells))
	}
	return nil
}

// check refuses flags that make no sense and returns the policies to run.
func (c *simulateCmd) check() ([]string, error) {
	var errs []error
	if c.Seeds < 1 || c.Seeds > 1000 {
		errs = append(errs, fmt.Errorf("--seeds must be between 1 and 1000, is %d", c.Seeds))
	}
	seen := map[float64]bool{}
	for _, x := range c.Load {
		if !(x > 0 && x <= 1000) {
			errs = append(errs, fmt.Errorf("--load must be above 0 and at most 1000, is %v", x))
		}
		if seen[x] {
			errs = append(errs, fmt.Errorf("--load: %v is there twice", x))
		}
		seen[x] = true
	}
	var policies []string
	for _, p := range c.Policy {
		switch {
		case p == "all":
			for _, name := range append(route.Names(), sim.Clairvoyant) {
				_, err := route.New(route.Spec{Name: name})
				if (err == nil || name == sim.Clairvoyant) && !slices.Contains(policies, name) {
					policies = append(policies, name)
				}
			}
		case slices.Contains(policies, p):
			errs = append(errs, fmt.Errorf("--policy: %s is there twice", p))
		default:
			policies = append(policies, p)
		}
	}
	return policies, errors.Join(errs...)
}

// checkPolicies refuses policies that cannot be made; own is that of the pool,
// which has weights.
func checkPolicies(policies []string, own route.Spec) error {
	var errs []error
	for _, p := range policies {
		if p == own.Name || p == sim.Clairvoyant {
			continue
		}
		if _, err := route.New(route.Spec{Name: p}); err != nil {
			errs = append(errs, fmt.Errorf("--policy: %w", err))
		}
	}
	return errors.Join(errs...)
}

// cache opens the cache that the flag names.
func (c *simulateCmd) cache() (*lab.Cache, error) {
	dir := c.Cache
	switch dir {
	case "off":
		return nil, nil
	case "":
		var err error
		if dir, err = lab.DefaultCacheDir(); err != nil {
			return nil, nil // nowhere to keep anything
		}
	}
	return lab.OpenCache(dir)
}

// writeReport writes the HTML report.
func writeReport(path string, x *lab.Comparison) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("--html: %w", err)
	}
	err = x.WriteHTML(f)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("--html: %w", err)
	}
	return nil
}

// commandLine is the present command, as it can be typed again.
func commandLine(args []string) string {
	words := []string{"penstock"}
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$`*?[]{}()<>|&;#!~") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

// progress shows on a terminal how many cells are done and when all will be.
type progress struct {
	w     io.Writer // nil where nobody looks
	total int
	cache *lab.Cache
	start time.Time
}

func newProgress(w io.Writer, total int, cache *lab.Cache) *progress {
	p := &progress{total: total, cache: cache, start: time.Now()}
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		p.w = w
	}
	return p
}

func (p *progress) show(done int) {
	if p.w == nil {
		return
	}
	left := ""
	if ran := done - p.cache.Hits(); ran > 0 && done < p.total {
		each := time.Since(p.start) / time.Duration(ran)
		left = fmt.Sprintf(", about %v left", (each * time.Duration(p.total-done)).Round(time.Second))
	}
	fmt.Fprintf(p.w, "\r\033[K%d of %d runs%s", done, p.total, left)
}

func (p *progress) end() {
	if p.w != nil {
		fmt.Fprint(p.w, "\r\033[K")
	}
}
