package obs

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/route"
)

var update = flag.Bool("update", false, "write docs/metrics.md")

const referenceFile = "../../docs/metrics.md"

// TestReferenceIsCurrent holds docs/metrics.md to the metrics there are.
func TestReferenceIsCurrent(t *testing.T) {
	c := pool.Default()
	c.Shadow = route.Spec{Name: "random"}
	p, err := live.NewPool(live.Options{Name: "p", Config: c})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	step := perf.Step{Base: 1e-3, PerPrompt: 1e-6}
	e := p.Add(live.Target{Name: "e1", URL: "http://127.0.0.1:1", Variant: 1, Step: step})
	p.Add(live.Target{Name: "e2", URL: "http://127.0.0.1:2", Variant: 1, Step: step})
	ticket := p.Open("a", &pool.Arrive{Prompt: 100})
	if _, err := ticket.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	ticket.FirstToken()
	ticket.Done(fleet.Usage{Known: true, Prompt: 100, Output: 100})
	p.Sampled(e, p.Now(), fleet.Gauges{}, fleet.FailNone)
	transfers := func() Transfers {
		f := exchange.Flow{Source: "e1", Consumer: "e2", Failed: map[fleet.Failure]uint64{fleet.FailStream: 1}}
		one := map[string]int{"x": 1}
		return Transfers{Flows: []exchange.Flow{f}, Links: []exchange.State{{}}, Instances: one, Barred: one, Refused: map[string]uint64{"x": 1}}
	}
	counted := func(string) Counted {
		by, one := map[string]map[string]uint64{"e1": {"x": 1}}, map[string]uint64{"x": 1}
		return Counted{Batches: by, Dropped: by, Found: one, Missing: one}
	}
	m := NewMetrics("test", func() []*live.Pool { return []*live.Pool{p} }, counted)
	m.CollectTransfers(transfers)
	a := access("a", 2)
	a.Decisions = ticket.Decisions()
	a.TTFT, a.Total, a.Usage.Output = time.Millisecond, time.Second, 100
	a.Attempts, a.Failure = 2, fleet.FailStream
	m.Observe(a)
	a.Attempts = 1
	m.Observe(a)
	m.Reloaded("applied")
	m.Ejected("p", "e1", health.Ejected, fleet.FailConnect)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("# Metrics\n\nGenerated; do not edit. On the admin port under `/metrics`, beside Go's and the process's own.\nLabels come from configuration and closed sets, never from clients; where values can grow in number, the first\n1,000 are kept apart and the rest count as `other`. `--metrics-listen` serves the same on a port of its own.\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "penstock_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), f.GetHelp())
	}
	if *update {
		if err := os.WriteFile(referenceFile, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != b.String() {
		t.Error("docs/metrics.md is out of date: go test ./internal/obs -run Reference -update")
	}
}
