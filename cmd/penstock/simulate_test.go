package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// write puts a file into a directory of the test's own.
func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const smallLoad = `load: {type: poisson, stages: [{rate: 4, duration: 10}]}
data: {type: shared_prefix, shared_prefix: {num_groups: 10, num_prompts_per_group: 5, system_prompt_len: 2000, question_len: 200, output_len: 50}}
`

// TestSimulateRefusesBadInput gives what makes no sense and finds the flag or
// field named.
func TestSimulateRefusesBadInput(t *testing.T) {
	small := write(t, "small.yaml", smallLoad)
	fleet := func(pool string) string {
		return write(t, "fleet.yaml", "apiVersion: penstock.dev/v1alpha1\nkind: Fleet\npools:\n  - model: Qwen/Qwen3-32B\n"+pool)
	}
	spec := func(load, data string) string { return write(t, "w.yaml", "load: "+load+"\ndata: "+data+"\n") }
	trace := func(lines ...string) string { return write(t, "t.jsonl", strings.Join(lines, "\n")) }
	const random, one = "{type: random, input_distribution: {mean: 100}, output_distribution: {mean: 10}}", "{type: constant, stages: [{rate: 1, duration: 5}]}"
	for _, c := range []struct {
		want string
		args []string
	}{
		{"give --trace FILE or --workload FILE", nil},
		{"one of them", []string{"--workload", small, "--trace", small}},
		{"fleet.yaml: ", []string{"--workload", "../../examples/fleet.yaml"}},
		{`--policy: name: no policy "best"; known:`, []string{"--workload", small, "--policy", "best"}},
		{"--policy: weights", []string{"--workload", small, "--policy", "weighted"}},
		{"--policy: p2c is there twice", []string{"--workload", small, "--policy", "p2c,p2c"}},
		{"--seeds must be between 1 and 1000, is 0", []string{"--workload", small, "--seeds", "0"}},
		{"--load must be above 0 and at most 1000, is 0", []string{"--workload", small, "--load", "1,0"}},
		{"--load must be above 0 and at most 1000, is -1", []string{"--workload", small, "--load=-1"}},
		{"--load must be above 0 and at most 1000, is NaN", []string{"--workload", small, "--load", "NaN"}},
		{"--replicas must be at least 1, is 0", []string{"--workload", small, "--replicas", "0"}},
		{"--tp must be at least 1, is 0", []string{"--workload", small, "--tp", "0"}},
		{"--kv-tokens must be at least 1, is -5", []string{"--workload", small, "--kv-tokens=-5"}},
		{"--duration must not be negative", []string{"--workload", small, "--duration=-1s"}},
		{"noise: must be between 0 and 1", []string{"--workload", small, "--noise", "2"}},
		{"spread: must be between 0 and 0.9", []string{"--workload", small, "--spread", "1"}},
		{"scrape and hop: must not be negative", []string{"--workload", small, "--scrape=-1s"}},
		{"scrape and hop: must not be negative", []string{"--workload", small, "--hop=-1s"}},
		{`--goodput "ttft:0"`, []string{"--workload", small, "--goodput", "ttft:0"}},
		{`--goodput "tpot:-5"`, []string{"--workload", small, "--goodput", "tpot:-5"}},
		{`--accelerator: "abacus" is not known`, []string{"--workload", small, "--accelerator", "abacus"}},
		{`--accelerator: "A100:0"`, []string{"--workload", small, "--accelerator", "H100:1,A100:0"}},
		{"--replicas: --accelerator tells", []string{"--workload", small, "--accelerator", "H100:1", "--replicas", "2"}},
		{`--model: "gpt-7" is not known`, []string{"--workload", small, "--model", "gpt-7"}},
		{"leave --model", []string{"--workload", small, "--fleet", "../../examples/simulate_fleet.yaml", "--tp", "2"}},
		{`--pool "x"`, []string{"--workload", small, "--fleet", "../../examples/simulate_fleet.yaml", "--pool", "x"}},
		{"pools[0].variants: is empty", []string{"--workload", small, "--fleet", fleet("    endpoints: [{url: http://h:1}]\n")}},
		{"pools[0].variants[0].tp: must be between", []string{"--workload", small, "--fleet", fleet("    variants: [{name: a, accelerator: H100, tp: -2}]\n")}},
		{"pools[0].variants[0].accelerator: \"abacus\"", []string{"--workload", small, "--fleet", fleet("    variants: [{name: a, accelerator: abacus}]\n")}},
		{"pools[0].variants[0].shape: \"none.json\"", []string{"--workload", small, "--fleet", fleet("    variants: [{name: a, accelerator: H100, shape: none.json}]\n")}},
		{"load.stages[0].rate", []string{"--workload", spec("{type: poisson, stages: [{rate: -1, duration: 5}]}", random)}},
		{"load.stages: missing", []string{"--workload", spec("{type: poisson}", random)}},
		{"load.type: concurrent", []string{"--workload", spec("{type: concurrent, stages: [{concurrency_level: 2, num_requests: 5}]}", random)}},
		{"report.goodput.constraints.ttft: must be above 0", []string{"--workload", spec(one, random+"\nreport: {goodput: {constraints: {ttft: 0}}}")}},
		{"data.input_distribution", []string{"--workload", spec(one, "{type: random, input_distribution: {mean: -100}, output_distribution: {mean: 10}}")}},
		{"no requests in it", []string{"--trace", trace("")}},
		{"line 1 input_length", []string{"--trace", trace(`{"timestamp": 0, "input_length": -3, "output_length": 5, "hash_ids": []}`)}},
		{"line 2 timestamp", []string{"--trace", trace(`{"timestamp": 9000, "input_length": 3, "output_length": 5, "hash_ids": [1]}`, `{"timestamp": 0, "input_length": 3, "output_length": 5, "hash_ids": [1]}`)}},
		{"--kv-event-lag must not be negative, is -1s", []string{"--workload", small, "--kv-events", "--kv-event-lag=-1s"}},
		{"--kv-event-loss must be between 0 and 1, is 1.5", []string{"--workload", small, "--kv-events", "--kv-event-loss", "1.5"}},
		{"--kv-event-loss must be between 0 and 1, is NaN", []string{"--workload", small, "--kv-events", "--kv-event-loss", "NaN"}},
		{"--kv-event-loss: there are no events without --kv-events", []string{"--workload", small, "--kv-event-loss", "0.1"}},
		{"--kv-event-lag: there are no events without --kv-events", []string{"--workload", small, "--kv-event-lag", "1s"}},
		{"--cpu-tier must not be negative, is -1", []string{"--workload", small, "--cpu-tier=-1"}},
		{"--disk-tier must not be negative, is -1", []string{"--workload", small, "--cpu-tier", "100000", "--disk-tier=-1"}},
		{"--disk-tier: what goes to disk passes through host memory", []string{"--workload", small, "--disk-tier", "100000"}},
		{"--load: a curve is of one load", []string{"--workload", small, "--cache-curve", "--load", "1,2"}},
		{"--curve-rate must be above 0 and at most 1, is 0", []string{"--workload", small, "--cache-curve", "--curve-rate", "0"}},
		{"--curve-rate must be above 0 and at most 1, is 2", []string{"--workload", small, "--cache-curve", "--curve-rate", "2"}},
		{"journal is damaged", []string{"--journal", small}},
		{"--journal tells the fleet", []string{"--journal", small, "--tp", "2"}},
		{"--html: ", []string{"--workload", small, "--seeds", "1", "--policy", "p2c", "--html", filepath.Join(t.TempDir(), "none", "x.html")}},
	} {
		code, out, errs := penstock(t, append([]string{"simulate", "--cache", "off"}, c.args...)...)
		if code != 1 || !strings.Contains(errs, c.want) {
			t.Errorf("%v: exit %d, want 1 with %q:\n%s%s", c.args, code, c.want, out, errs)
		}
	}
}

// TestSimulateHelpShowsEveryFlagOfCaches looks for the flags in the text that
// explains them, with examples.
func TestSimulateHelpShowsEveryFlagOfCaches(t *testing.T) {
	help := simulateCmd{}.Help()
	examples, _, _ := strings.Cut(help, "A fleet is described")
	for _, flag := range []string{"--kv-events", "--kv-event-lag", "--kv-event-loss", "--cpu-tier", "--disk-tier", "--cache-curve"} {
		if !strings.Contains(examples, flag) {
			t.Errorf("no example has %s", flag)
		}
	}
}

// TestSimulateFollowsEventsAndTiers has prompts that one GPU cannot hold, dealt out
// by gateways that know little of each other: each further flag must have more of
// them found.
func TestSimulateFollowsEventsAndTiers(t *testing.T) {
	load := write(t, "prefixes.yaml", `load: {type: poisson, stages: [{rate: 6, duration: 60}]}
data: {type: shared_prefix, shared_prefix: {num_groups: 40, num_prompts_per_group: 20, system_prompt_len: 8000, question_len: 100, output_len: 50}}
`)
	before := -1.0
	for _, flags := range [][]string{nil, {"--kv-events"}, {"--kv-events", "--cpu-tier", "400000"}} {
		args := append([]string{"simulate", "--workload", load, "--replicas", "2", "--kv-tokens", "100000", "--gateways", "3", "--policy", "predictive", "--seeds", "1", "--cache", "off", "--json"}, flags...)
		code, out, errs := penstock(t, args...)
		var x struct {
			Rows []struct {
				Cached struct{ Mean float64 } `json:"cached_share"`
			}
		}
		if err := json.Unmarshal([]byte(out), &x); code != 0 || err != nil || len(x.Rows) != 1 {
			t.Fatalf("%v: exit %d, %v\n%s%s", flags, code, err, out, errs)
		}
		if got := x.Rows[0].Cached.Mean; got < before+0.05 {
			t.Errorf("%v: %.3f cached, and %.3f without the last", flags, got, before)
		} else {
			before = got
		}
	}
}

func TestSimulateComparesPoliciesOverLoads(t *testing.T) {
	small, dir := write(t, "small.yaml", smallLoad), t.TempDir()
	page := filepath.Join(dir, "report.html")
	args := []string{
		"simulate", "--workload", small, "--accelerator", "H100:2,L40S:1", "--policy", "predictive,p2c", "--load", "0.5,2", "--seeds", "2",
		"--goodput", "ttft:2000", "--cache", filepath.Join(dir, "cells"), "--html", page,
	}
	code, out, errs := penstock(t, args...)
	for _, want := range []string{"load 0.5: ", "load 2: ", "predictive", "p2c", "good req/s", "TTFT mean", "$/M out", "3 replicas, mean over 2 seeds"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("exit %d, no %q:\n%s%s", code, want, out, errs)
		}
	}
	if raw, err := os.ReadFile(page); err != nil || !strings.Contains(string(raw), "2 x H100: Qwen/Qwen3-32B in bf16 on 2 x H100") {
		t.Errorf("report: %v\n%.3000s", err, raw)
	}
	code, again, _ := penstock(t, args...)
	if kept, ok := strings.CutSuffix(again, "8 of 8 cells came from the cache (--cache off runs them again)\n"); code != 0 || !ok || kept != out {
		t.Errorf("from the cache: exit %d\n%s", code, again)
	}
	code, out, errs = penstock(t, append(args, "--json")...)
	var x struct {
		Schema string
		Rows   []struct {
			Policy string
			Load   float64
			TTFT   struct{ P99 struct{ Mean, CI95 float64 } } `json:"ttft_s"`
		}
	}
	if err := json.Unmarshal([]byte(out), &x); err != nil || code != 0 || x.Schema != "penstock.dev/simulate/v2" || len(x.Rows) != 4 {
		t.Fatalf("--json: exit %d, %v\n%s%s", code, err, out, errs)
	}
	if r := x.Rows[3]; r.Policy != "p2c" || r.Load != 2 || !(r.TTFT.P99.Mean > 0 && r.TTFT.P99.CI95 > 0) {
		t.Errorf("--json: last row %+v", r)
	}
}

// TestSimulateSplits: prompts are computed apart by flags and as a Fleet file says.
func TestSimulateSplits(t *testing.T) {
	load := write(t, "small.yaml", smallLoad)
	args := []string{"simulate", "--cache", "off", "--workload", load, "--policy", "predictive", "--seeds", "1", "--json"}
	whole, apart := []string{"--replicas", "3"}, []string{"--replicas", "3", "--prefill", "1"}
	file := []string{"--fleet", write(t, "fleet.yaml", `apiVersion: penstock.dev/v1alpha1
kind: Fleet
pools:
  - model: Qwen/Qwen3-32B
    split: always
    kv: {transfer: {connector: nixl}}
    variants: [{name: a, accelerator: H100, tp: 2}]
    endpoints:
      - {url: "http://127.0.0.1:1", variant: a, role: prefill}
      - {url: "http://127.0.0.1:2", variant: a, role: decode}
      - {url: "http://127.0.0.1:3", variant: a, role: decode}
`)}
	for _, c := range []struct {
		name  string
		fleet []string
		most  float64 // share of all legs that the first replica has
	}{{"whole", whole, 0.45}, {"apart", apart, 0.3}, {"all apart", file, 0.5}} {
		code, out, errs := penstock(t, append(args, c.fleet...)...)
		var x struct {
			Rows []struct{ Shares []float64 }
		}
		if err := json.Unmarshal([]byte(out), &x); code != 0 || err != nil {
			t.Fatalf("%s: exit %d, %v\n%s", c.name, code, err, errs)
		}
		// One leg of two where every request is split.
		if got := x.Rows[0].Shares[0]; got > c.most || c.most == 0.5 && got != 0.5 {
			t.Errorf("%s: the first replica has %v of the legs, want %v", c.name, got, c.most)
		}
	}
	for _, c := range []struct{ flag, value, want string }{{"--prefill", "3", "leave one of the 3"}, {"--nic", "0", "must be more than 0"}} {
		if code, _, errs := penstock(t, append(append(args, apart...), c.flag, c.value)...); code != 1 || !strings.Contains(errs, c.want) {
			t.Errorf("%s %s: exit %d, %q", c.flag, c.value, code, errs)
		}
	}
}

func TestSimulateTakesAFleetFile(t *testing.T) {
	code, out, errs := penstock(t, "simulate", "--cache", "off", "--workload", write(t, "small.yaml", smallLoad),
		"--fleet", "../../examples/simulate_fleet.yaml", "--policy", "all", "--seeds", "1")
	// 3 x 6.00 + 3 x 3.60 + 2 x 4.80, as the file states.
	for _, want := range []string{"llm-d-optimized", "aibrix", "clairvoyant-greedy", "38.40", "8 replicas, 1 seed, no confidence intervals"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("exit %d, no %q:\n%s%s", code, want, out, errs)
		}
	}
	weighted := write(t, "fleet.yaml", `apiVersion: penstock.dev/v1alpha1
kind: Fleet
pools:
  - model: Qwen/Qwen3-32B
    policy: {name: weighted, weights: {prefix: 3, queue: 1}}
    variants: [{name: a, accelerator: H100, tp: 2, replicas: 2}]
`)
	if code, out, errs := penstock(t, "simulate", "--cache", "off", "--workload", write(t, "small.yaml", smallLoad), "--fleet", weighted, "--policy", "weighted", "--seeds", "1"); code != 0 {
		t.Errorf("the file's own weights: exit %d\n%s%s", code, out, errs)
	}
}

func TestSimulateAsksWhatAnotherPolicyWouldHaveDone(t *testing.T) {
	journal := filepath.Join(t.TempDir(), "j")
	t.Run("serve", func(t *testing.T) {
		url, _ := up(t, "--speedup", "20", "--replicas", "2", "--journal", journal, "--no-access-log")
		if code, out, errs := penstock(t, "bench", "--url", url, "--requests", "60", "--rate", "60", "--input-len", "300", "--output-len", "20"); code != 0 {
			t.Fatalf("bench: %d\n%s%s", code, out, errs)
		}
	})
	code, out, errs := penstock(t, "simulate", "--cache", "off", "--journal", journal, "--policy", "prefix-affinity,round-robin", "--seeds", "2")
	for _, want := range []string{"as recorded (predictive)", "round-robin", "load 1: 60 requests a run", "2 replicas"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("exit %d, no %q:\n%s%s", code, want, out, errs)
		}
	}
}
