package app

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/admin"
)

// page reads a page of the admin port.
func page(t *testing.T, a *App, path string) []byte {
	t.Helper()
	resp, err := http.Get(a.AdminURL() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %s, %v", path, resp.Status, raw, err)
	}
	return raw
}

// What was moved is told by pair, in the API and in metrics, with what was
// predicted beside what was measured.
func TestTransfersAreTold(t *testing.T) {
	a, _ := startExchange(t, 2, 1, nil)
	bad := told("prefill-0", "a", "prefill")
	bad.Cache.BlockTokens = 24
	register(t, a, bad)
	register(t, a, told("decode-2", "d", "decode"))
	const requests = 4
	for i := range requests {
		complete(t, a, fmt.Sprint("q", i), fmt.Sprint(i, strings.Repeat(" a prompt of some length", 60)), true)
	}
	var s admin.TransferStatus
	if err := json.Unmarshal(page(t, a, "/api/transfers"), &s); err != nil {
		t.Fatal(err)
	}
	if len(s.Pairs) != 1 || len(s.Pools) != 1 || len(s.Tickets) != requests || s.URL == "" {
		t.Fatalf("%+v", s)
	}
	p := s.Pairs[0]
	if p.Source != "@sim/prefill-1" || p.Consumer != "decode-2" || p.Planned != requests || p.Done != requests || p.InFlight != 0 || p.Tokens < 400 || p.Bytes < 1e6 {
		t.Errorf("%+v", p)
	}
	if p.Took.Count == 0 || p.Took.MeanMs <= 0 || p.Took.P95Ms < p.Took.P50Ms || p.Expected.MeanMs <= 0 || p.Link == nil || p.Link.Samples == 0 {
		t.Errorf("%+v, link %+v", p, p.Link)
	}
	q := s.Pools[0]
	if q.Split != requests || q.Whole != 0 || len(q.Barred) != 1 || q.Barred[0].Prefill != "prefill-0" || !strings.Contains(q.Barred[0].Why, "cache.blockTokens") {
		t.Errorf("%+v", q)
	}
	registered := 0
	for _, i := range s.Instances {
		if i.Registered {
			registered++
		}
		if len(i.Endpoints) != 1 || !strings.HasPrefix(i.Endpoints[0], "sim/") {
			t.Errorf("%+v", i)
		}
	}
	if registered != 2 || len(s.Instances) != 3 {
		t.Errorf("%+v", s.Instances)
	}
	metrics := string(page(t, a, "/metrics"))
	for _, want := range []string{
		`penstock_transfers_total{outcome="done",source="@sim/prefill-1"} 4`, `penstock_pool_attempts_total{plan="split",pool="sim"} 4`,
		`penstock_pool_barred_pairs{pool="sim"} 1`, `penstock_transfer_instances{role="prefill"} 2`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no metric %s", want)
		}
	}
	var st admin.Status
	if err := json.Unmarshal(page(t, a, "/api/status"), &st); err != nil {
		t.Fatal(err)
	}
	for _, e := range st.Pools[0].Endpoints {
		if e.Role == "" || e.Wire == nil || e.Wire.PerTokenUs <= 0 || (e.Wire.Barred == 1) != (e.Name == "decode-2") {
			t.Errorf("%s: role %q, %+v", e.Name, e.Role, e.Wire)
		}
	}
}

// An operator gives a transfer up over the admin port.
func TestTransfersAreGivenUpOverTheAdminPort(t *testing.T) {
	a, _ := startExchange(t, 1, 1, nil)
	for path, want := range map[string]int{"/api/transfers/none.1/abort": 404, "/api/transfers/": 404} {
		resp, err := http.Post(a.AdminURL()+path, "application/json", strings.NewReader(`{"reason":"enough"}`))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}
