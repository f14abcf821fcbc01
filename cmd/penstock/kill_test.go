package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/bench"
)

// TestKillingOneEngineOfFour kills one of four engine processes under 50
// requests a second, and starts it again. No client may see an error unless its
// first byte had been sent; the engine must be out, and later back.
func TestKillingOneEngineOfFour(t *testing.T) {
	addrs := freePorts(t, 4)
	start := func(addr string) *os.Process {
		return child(t, "engine", "--listen", addr, "--speedup", "10").Process
	}
	var victim *os.Process
	var urls []string
	for _, a := range addrs {
		victim = start(a)
		urls = append(urls, "http://"+a)
	}
	url, adminURL := up(t, "--endpoints", strings.Join(urls, ","), "--no-access-log", "--policy", "least-request")
	health := func() map[string]string {
		code, out, errs := penstock(t, "status", "--json", "--admin", adminURL)
		var s admin.Status
		if err := json.Unmarshal([]byte(out), &s); code != 0 || err != nil {
			t.Fatalf("status: %d %v %s", code, err, errs)
		}
		m := map[string]string{}
		for _, p := range s.Pools {
			for _, e := range p.Endpoints {
				m[e.Name] = e.Health
			}
		}
		return m
	}
	eventually(t, 30*time.Second, "all four found", func() bool { return len(health()) == 4 })

	o := bench.DefaultOptions()
	o.URL, o.Rate, o.Duration, o.InputLen, o.OutputLen = url, 50, 7*time.Second, 200, 100
	o.PerRequest = t.TempDir() + "/requests.jsonl"
	report := make(chan *bench.Report, 1)
	go func() {
		r, err := bench.Run(t.Context(), o, bench.Streams{Out: io.Discard})
		if err != nil {
			t.Error(err)
		}
		report <- r
	}()
	// Let the load reach the victim before it dies.
	dead := addrs[3]
	eventually(t, 10*time.Second, "the victim is busy", func() bool {
		_, out, _ := penstock(t, "status", "--json", "--admin", adminURL)
		var s admin.Status
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return false
		}
		for _, e := range s.Pools[0].Endpoints {
			if e.Name == dead {
				return e.Attempts > 10 && e.InFlight > 0
			}
		}
		return false
	})
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	out := eventually(t, 5*time.Second, "the victim is ejected", func() bool { return health()[dead] == "ejected" })
	start(dead)
	back := eventually(t, 10*time.Second, "the victim is back", func() bool { return health()[dead] == "healthy" })
	r := <-report
	t.Logf("ejected after %v, back after %v; %d sent, %d completed, %d failed", out, back, r.Requests.Sent, r.Requests.Completed, r.Requests.Failed)
	for _, e := range failedBeforeFirstByte(t, o.PerRequest) {
		t.Errorf("a client saw an error before its first byte: %s", e)
	}
	if r.Requests.Completed < r.Requests.Sent*9/10 {
		t.Errorf("only %d of %d completed", r.Requests.Completed, r.Requests.Sent)
	}
}

// failedBeforeFirstByte returns the failed requests that had no first token.
func failedBeforeFirstByte(t *testing.T, file string) (lines []string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var r map[string]any
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		if r["error"] != nil && r["error"] != "" && r["ttft_ms"] == 0.0 {
			lines = append(lines, fmt.Sprint(r))
		}
	}
	return lines
}
