package obs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
)

func access(id string, candidates int) *gateway.Access {
	d := fleet.Decision{Attempt: 1, Policy: "p2c", Chosen: 1, RunnerUp: 2, Margin: 3}
	d.Counts[fleet.Eligible] = candidates
	for i := range candidates {
		d.Candidates = append(d.Candidates, fleet.Candidate{Endpoint: fleet.EndpointID(i + 1), Score: float64(-i), SampleAge: -1, TTFT: 20 * time.Millisecond})
	}
	if candidates > 2 {
		d.Candidates[2].Score = math.NaN()
	}
	return &gateway.Access{
		ID: id, Pool: "p", Model: "m", Path: "/v1/completions", Method: "POST", Stream: true, Prompt: 10, Endpoint: "e1",
		Decisions: []fleet.Decision{d},
		Outcome: fleet.Outcome{
			Status: 200, Attempts: 1, TTFT: 25 * time.Millisecond, ITL: 5 * time.Millisecond, Total: time.Second,
			Usage: fleet.Usage{Known: true, Prompt: 12, Cached: 8, Output: 3},
		},
	}
}

func names(_ string, id fleet.EndpointID) string {
	if id > 2 {
		return ""
	}
	return fmt.Sprintf("e%d", id)
}

func TestRingTellsARequest(t *testing.T) {
	r := NewRing(RingBytes, names)
	r.Add(time.Unix(1, 0), access("a", 3))
	rec, ok := r.Find("a")
	if !ok || rec.Attempts[0].Chosen != "e1" || rec.Attempts[0].RunnerUp != "e2" || *rec.Outcome.CachedTokens != 8 || rec.Outcome.TTFTMs != 25 {
		t.Fatalf("%v %+v", ok, rec)
	}
	c := rec.Attempts[0].Candidates
	if c[2].Score != nil || c[2].Endpoint != "(gone)" || c[0].SampleAgeMs != nil || *c[0].TTFTMs != 20 {
		t.Errorf("unknowns must be null: %+v", c)
	}
	if _, err := json.Marshal(rec); err != nil {
		t.Errorf("a record must be JSON: %v", err)
	}
	if _, ok := r.Find("b"); ok {
		t.Error("found what was never added")
	}
}

func TestRingTellsTheTerms(t *testing.T) {
	r := NewRing(100<<10, names)
	a := access("a", 1)
	r.Add(time.Unix(1, 0), a)
	b := access("b", 1)
	b.Tenant, b.Objective = "team", "fast"
	b.Decisions[0].Terms = fleet.Terms{Tenant: 1, Priority: 7, SLO: fleet.SLO{TTFT: time.Second, TPOT: 50 * time.Millisecond}}
	r.Add(time.Unix(2, 0), b)
	if rec, _ := r.Find("a"); rec.Terms != nil {
		t.Errorf("terms out of nothing: %+v", rec.Terms)
	}
	want := Terms{Tenant: "team", Objective: "fast", Priority: 7, TTFTMs: 1000, TPOTMs: 50}
	if rec, _ := r.Find("b"); rec.Terms == nil || *rec.Terms != want {
		t.Errorf("%+v, want %+v", rec.Terms, want)
	}
}

func TestRingIsBounded(t *testing.T) {
	const limit = 100 << 10
	r := NewRing(limit, names)
	for i := range 1000 {
		r.Add(time.Unix(int64(i), 0), access(fmt.Sprint("req-", i), 32))
		if _, bytes, _ := r.Size(); bytes > limit {
			t.Fatalf("%d bytes of at most %d", bytes, limit)
		}
	}
	n, _, total := r.Size()
	if total != 1000 || n < 10 || n > 100 || len(r.byID) != n {
		t.Errorf("%d records, %d ids, %d in all", n, len(r.byID), total)
	}
	latest := r.Latest(5, "p")
	if len(latest) != 5 || latest[0].Request != "req-999" || latest[4].Request != "req-995" {
		t.Errorf("latest: %d, first %s", len(latest), latest[0].Request)
	}
	if len(r.Latest(5, "other")) != 0 {
		t.Error("another pool's requests")
	}
	if _, ok := r.Find("req-0"); ok {
		t.Error("an evicted record is found")
	}
	// An id used twice: the latest counts, and evicting the first keeps it.
	r.Add(time.Unix(2000, 0), access("twice", 1))
	r.Add(time.Unix(2001, 0), access("twice", 2))
	if rec, _ := r.Find("twice"); len(rec.Attempts[0].Candidates) != 2 {
		t.Error("the older of two was found")
	}
}

func TestMetricsPage(t *testing.T) {
	p, err := live.NewPool(live.Options{Name: "p", Config: pool.Default()})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Add(live.Target{Name: "e1", URL: "http://127.0.0.1:1"})
	m := NewMetrics("test", func() []*live.Pool { return []*live.Pool{p} }, nil)
	m.Observe(access("a", 2))
	refused := access("b", 0)
	refused.Pool, refused.Status, refused.Decisions = "", 404, nil
	m.Observe(refused)
	m.Ejected("p", "e1", health.Ejected, fleet.FailConnect)
	m.Ejected("p", "e1", health.Trial, fleet.FailNone)
	rr := httptest.NewRecorder()
	m.Handler().ServeHTTP(rr, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`penstock_requests_total{model="m",pool="p",status="200"} 1`, `penstock_requests_total{model="none",pool="none",status="404"} 1`,
		`penstock_tokens_total{kind="cached",model="m",pool="p"} 8`, `penstock_ttft_seconds_count{pool="p"} 1`,
		`penstock_ttft_prediction_ratio_bucket{pool="p",le="0.8"} 1`, `penstock_endpoint_ejections_total{cause="connect",endpoint="e1",pool="p"} 1`,
		`penstock_endpoint_fit{endpoint="e1",pool="p"} 1`, `penstock_pool_requests_total{pool="p",state="arrived"} 0`, `penstock_build_info{version="test"} 1`,
	} {
		if !strings.Contains(rr.Body.String(), want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(rr.Body.String(), "penstock_endpoint_sample_age_seconds{") {
		t.Error("a never-read endpoint has an age")
	}
}

func TestAccessLineIsOneLineWithoutText(t *testing.T) {
	var buf bytes.Buffer
	log, err := NewLogger(&buf, "json", "info")
	if err != nil {
		t.Fatal(err)
	}
	a := access("a", 2)
	a.Remote, a.Tenant, a.Objective, a.TraceID = "192.0.2.77:4711", "team", "chat", "0af7"
	a.Failure, a.Err = fleet.FailStream, errors.New("broken\npipe")
	AccessLine(log, a, true)
	if strings.Count(buf.String(), "\n") != 1 {
		t.Errorf("not one line: %q", buf.String())
	}
	var line map[string]any
	if err := json.Unmarshal(buf.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]any{"request": "a", "status": 200.0, "ttft_ms": 25.0, "cached_tokens": 8.0, "failure": "stream", "endpoint": "e1", "remote": "192.0.2.0/24", "tenant": "team", "objective": "chat", "trace": "0af7", "candidates": 2.0} {
		if line[k] != want {
			t.Errorf("%s = %v, want %v", k, line[k], want)
		}
	}
	for _, bad := range [][2]string{{"xml", "info"}, {"text", "loud"}} {
		if _, err := NewLogger(&buf, bad[0], bad[1]); err == nil {
			t.Errorf("took %v", bad)
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	m := NewMetrics("bench", func() []*live.Pool { return nil }, nil)
	o := Observer{Metrics: m, Ring: NewRing(RingBytes, names)}
	a := access("a", 8)
	b.ReportAllocs()
	for b.Loop() {
		o.Observe(a)
	}
}

func TestNetwork(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.77:4711": "192.0.2.0/24", "[2001:db8:1:2::3]:80": "2001:db8:1::/48", "[::ffff:192.0.2.77]:1": "192.0.2.0/24",
		"127.0.0.1:5": "127.0.0.1", "[fe80::1%eth0]:5": "fe80::/48", "": "unknown", "@": "unknown",
	} {
		if got := network(remote); got != want {
			t.Errorf("%q: %q, want %q", remote, got, want)
		}
	}
}

func TestModelsFromClientsAreNoLabels(t *testing.T) {
	m := NewMetrics("test", func() []*live.Pool { return nil }, nil)
	a := access("a", 0)
	for i := range 3 * maxLabels {
		a.Model, a.Pool = fmt.Sprint("invented-", i), ""
		m.Observe(a)
	}
	a.Pool = "p"
	for i := range 3 * maxLabels {
		a.Model = fmt.Sprint("real-", i)
		m.Observe(a)
	}
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if n := len(f.GetMetric()); f.GetName() == "penstock_requests_total" && n != maxLabels+2 {
			t.Errorf("%d series, want %d models, other and none", n, maxLabels)
		}
	}
}
