package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/obs"
)

// What is shown of a gateway: its endpoints, in which roles, what they do and how
// fast, and the KV that goes between them.
func TestTopShows(t *testing.T) {
	three, used, link := 3, 0.42, &admin.TransferLink{LatencyMs: 10, BytesPerSecond: 8.75e9}
	v := topView{
		Status: admin.Status{Version: "v", Started: time.Unix(0, 0), Pools: []admin.PoolStatus{{
			Name: "p", Policy: "predictive", Endpoints: []admin.EndpointStatus{
				{Name: "a", Role: "both", Lean: "prefill", Health: "healthy", InFlight: 2, Waiting: &three, KVUsage: &used, Wire: &admin.WireStatus{LatencyMs: 10, PerTokenUs: 2.6}},
				{Name: "b", Role: "decode", Health: "healthy", Draining: true, Turning: &admin.Turning{To: "prefill"}},
			},
		}}},
		Transfers: &admin.TransferStatus{
			Pairs: []admin.TransferPair{{
				Source: "@p/a", Consumer: "b-instance", Planned: 9, Done: 5, Failed: map[string]uint64{"stream": 2}, Aborted: 1, InFlight: 1, Tokens: 5000, Bytes: 1_310_720_000,
				Took: admin.TransferTimes{Count: 5, MeanMs: 31, P95Ms: 44}, Expected: admin.TransferTimes{MeanMs: 28}, Link: link,
			}, {Source: "@p/a", Consumer: "@p/b", Planned: 1, InFlight: 1}},
			Pools: []admin.TransferPool{{Pool: "p", Barred: []admin.BarredPair{{Prefill: "a", Decode: "c", Why: "cache.dtype: no"}}}},
		},
		Latest: []obs.Record{
			{Pool: "p", Outcome: obs.Outcome{Endpoint: "a", TTFTMs: 110, QueueMs: 10, TotalMs: 1110, OutputTokens: 101}},
			{Pool: "other", Outcome: obs.Outcome{Endpoint: "a", TTFTMs: 9000}},
		},
	}
	v.Status.Pools[0].Tally.Split = 7
	var b bytes.Buffer
	printTop(&b, &v, time.Unix(60, 0))
	var rows []string
	for line := range strings.Lines(b.String()) {
		rows = append(rows, strings.Join(strings.Fields(line), " "))
	}
	all := strings.Join(rows, "\n")
	for _, want := range []string{
		"attempts 0 whole, 7 split",
		"a both, prefill healthy 2 0 3 0 42 % 100 ms 10 ms 10 ms + 2.6 us/token",
		"b decode > prefill healthy, draining 0 0 ? 0 ? - - -",
		"@p/a b-instance 1 5 2 1 0 5000 1.3 GB 31, 44 ms 28 ms 10 ms + 8.8 GB/s",
		"@p/a @p/b 1 0 0 0 0 0 0 B - - -",
		"pool p: a cannot hand KV over to c: cache.dtype: no",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing says %q in\n%s", want, all)
		}
	}
}

// What nobody has measured is told as that, in words for people.
func TestExplainLeavesOutWhatIsNotKnown(t *testing.T) {
	r := obs.Record{Attempts: []obs.Attempt{{Chosen: "a", Counts: map[string]int{"role": 2, "eligible": 2}}}, Outcome: obs.Outcome{Status: 200, Endpoint: "a", TotalMs: 13.4}}
	var b bytes.Buffer
	explain(&b, &r)
	for _, want := range []string{"of 4 endpoints: 2 eligible, 2 role\n", "outcome: status 200 from a; queued 0.0 ms, 13.4 ms in all\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("nothing says %q in\n%s", want, b.String())
		}
	}
	r.Outcome.TTFTMs, r.Outcome.ITLMs = 8, 1.5
	b.Reset()
	explain(&b, &r)
	if want := "queued 0.0 ms, first token after 8.0 ms, then one per 1.5 ms (median), 13.4 ms in all\n"; !strings.Contains(b.String(), want) {
		t.Errorf("nothing says %q in\n%s", want, b.String())
	}
}

// The commands about roles and transfers speak with a gateway that runs.
func TestTopTransfersAndRolesOfAGateway(t *testing.T) {
	_, at := up(t, "--prefill", "1", "--decode", "2", "--speedup", "20", "--transfer-listen", "127.0.0.1:0")
	code, out, errs := penstock(t, "top", "--once", "--admin", at)
	if code != 0 || !strings.Contains(out, "prefill-0") || !strings.Contains(out, "decode-2") || strings.Contains(out, "\x1b") {
		t.Errorf("%d: %s%s", code, out, errs)
	}
	code, out, errs = penstock(t, "top", "--once", "--json", "--admin", at)
	var v topView
	if err := json.Unmarshal([]byte(out), &v); code != 0 || err != nil || v.Transfers == nil || v.Transfers.URL == "" || len(v.Status.Pools[0].Endpoints) != 3 {
		t.Errorf("%d, %v: %s%s", code, err, out, errs)
	}
	if code, out, errs = penstock(t, "transfers", "--admin", at); code != 0 || !strings.Contains(out, "engines register at http://127.0.0.1:") {
		t.Errorf("%d: %s%s", code, out, errs)
	}
	if code, _, errs = penstock(t, "transfers", "abort", "none.1", "--admin", at); code != 1 || !strings.Contains(errs, "no open transfer") {
		t.Errorf("%d: %s", code, errs)
	}
	if code, _, errs = penstock(t, "role", "decode-1", "prefill", "--admin", at); code != 0 || !strings.Contains(errs, "decode-1 has the role prefill") {
		t.Errorf("%d: %s", code, errs)
	}
	if code, _, errs = penstock(t, "role", "decode-2", "prefill", "--admin", at); code != 1 || !strings.Contains(errs, "nobody would answer") {
		t.Errorf("%d: %s", code, errs)
	}
	if code, _, errs = penstock(t, "role", "decode-1", "reset", "--admin", at); code != 0 || !strings.Contains(errs, "decode-1 has the role decode") {
		t.Errorf("%d: %s", code, errs)
	}
	// Without --once it goes on until it is stopped.
	ctx, stop := context.WithCancel(t.Context())
	looks := &counting{enough: 2, then: stop}
	if code := run(ctx, []string{"top", "--every", "100ms", "--admin", at}, streams{Out: looks, Err: looks}); code != 0 || looks.n < 2 {
		t.Errorf("%d after %d looks", code, looks.n)
	}
}

// counting calls then when it has been written to often enough.
type counting struct {
	n, enough int
	then      func()
}

func (c *counting) Write(b []byte) (int, error) {
	if c.n++; c.n == c.enough {
		c.then()
	}
	return len(b), nil
}
