package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
)

func TestModelRoutes(t *testing.T) {
	made := time.Unix(1_790_000_000, 0)
	r := newRig(t, setup{models: []Model{{ID: "org/b", Created: made, MaxModelLen: 4096}, {ID: "a", Created: made}}})
	list := r.do("GET", "/v1/models", "")
	want := `{"object":"list","data":[{"id":"a","object":"model","created":1790000000,"owned_by":"penstock"},` +
		`{"id":"org/b","object":"model","created":1790000000,"owned_by":"penstock","max_model_len":4096}]}`
	if list.status != 200 || strings.TrimSpace(list.body) != want {
		t.Errorf("status %d, %s\nwant %s", list.status, list.body, want)
	}
	for _, path := range []string{"/v1/models/org/b", "/v1/models/org%2Fb"} {
		one := r.do("GET", path, "")
		var m struct{ ID string }
		if err := json.Unmarshal([]byte(one.body), &m); err != nil || one.status != 200 || m.ID != "org/b" {
			t.Errorf("%s: status %d, %s", path, one.status, one.body)
		}
	}
	for _, id := range []string{"none", "", strings.Repeat("x", 2000)} {
		wantProblem(t, r.do("GET", "/v1/models/"+id, ""), 404, "model_not_found")
	}
	if head := r.do("HEAD", "/v1/models", ""); head.status != 200 || head.body != "" {
		t.Errorf("HEAD: %+v", head)
	}
}

func TestNoModelsIsAnEmptyList(t *testing.T) {
	r := newRig(t, setup{})
	if a := r.do("GET", "/v1/models", ""); strings.TrimSpace(a.body) != `{"object":"list","data":[]}` {
		t.Errorf("%s", a.body)
	}
}

func TestWrongPathsAndMethods(t *testing.T) {
	r := newRig(t, setup{})
	for _, path := range []string{"/", "/v1", "/v1/nothing", "/v1/chat", "/v1/models2", "/metrics"} {
		wantProblem(t, r.do("POST", path, "{}"), 404, "unknown_url")
	}
	for path, method := range map[string]string{
		chatPath: "GET", textPath: "PUT", "/v1/models": "POST", "/v1/models/m": "DELETE", "/healthz": "POST", "/readyz": "PATCH",
	} {
		a := r.do(method, path, "")
		wantProblem(t, a, 405, "method_not_allowed")
		if allow := a.header.Get("Allow"); allow == "" || allow == method {
			t.Errorf("%s %s: Allow %q", method, path, allow)
		}
	}
}

func TestReadinessFollowsDrain(t *testing.T) {
	e := newEngine(t, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(wholeReply)) })
	r := newRig(t, setup{}, e)
	fresh := New(Options{Fleet: oneFleet{pool: r.pool}, Client: r.engines})
	if fresh.Ready() {
		t.Error("ready before SetReady")
	}
	if a := r.do("GET", "/readyz", ""); a.status != 200 || a.body != "ok\n" {
		t.Errorf("ready: %+v", a)
	}
	r.gw.Drain()
	drained := r.do("GET", "/readyz", "")
	wantProblem(t, drained, 503, fleet.RefuseDraining.String())
	if drained.header.Get("Retry-After") == "" {
		t.Error("no Retry-After while draining")
	}
	if a := r.do("GET", "/healthz", ""); a.status != 200 {
		t.Errorf("alive while draining: %+v", a)
	}
	if a := r.do("POST", chatPath, chatBody); a.status != 200 || a.body != wholeReply {
		t.Errorf("requests are not served while draining: %+v", a)
	}
}

func TestRequestIDs(t *testing.T) {
	ids := make(chan string, 1)
	e := newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		ids <- r.Header.Get("X-Request-Id")
		w.Header().Set("X-Request-Id", "engine's own")
		w.Write([]byte(wholeReply))
	})
	r := newRig(t, setup{}, e)
	for _, c := range []struct {
		sent string
		kept bool
	}{
		{"abc-123", true}, {"", false}, {"with space", false}, {`with"quote`, false}, {strings.Repeat("x", 129), false}, {strings.Repeat("x", 128), true},
	} {
		req, err := http.NewRequest("POST", r.front.URL+chatPath, strings.NewReader(chatBody))
		if err != nil {
			t.Fatal(err)
		}
		if c.sent != "" {
			req.Header.Set("X-Request-Id", c.sent)
		}
		resp, err := r.front.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		got, atEngine, a := resp.Header["X-Request-Id"], <-ids, r.access()
		if len(got) != 1 || got[0] != atEngine || a.ID != atEngine || atEngine == "" {
			t.Errorf("%q: client sees %q, engine %q, log %q", c.sent, got, atEngine, a.ID)
		}
		if (atEngine == c.sent) != c.kept {
			t.Errorf("%q became %q, kept: want %v", c.sent, atEngine, c.kept)
		}
	}
}

// TestCredentialsAndControlHeadersStop: what a client says to the gateway is
// not for the engine.
func TestCredentialsAndControlHeadersStop(t *testing.T) {
	got := make(chan http.Header, 1)
	e := newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header
		w.Header().Set("Server", "secret/1.0")
		w.Header().Set("X-Engine", "e")
		w.Write([]byte(wholeReply))
	})
	r := newRig(t, setup{}, e)
	req, err := http.NewRequest("POST", r.front.URL+chatPath, strings.NewReader(chatBody))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"Authorization": "Bearer x", "Cookie": "a=b", "X-Prefiller-Host-Port": "h:1", "Traceparent": "00-1", "Accept": "a/b", "Accept-Encoding": "gzip",
		"X-data-parallel-rank": "1",
	} {
		req.Header.Set(k, v)
	}
	resp, err := r.front.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	h := <-got
	for _, k := range []string{"Authorization", "Cookie", "X-Prefiller-Host-Port", "Accept-Encoding", "X-Data-Parallel-Rank"} {
		if h.Get(k) != "" {
			t.Errorf("the engine sees %s: %s", k, h.Get(k))
		}
	}
	if h.Get("Traceparent") != "00-1" || h.Get("Accept") != "a/b" || h.Get("Content-Type") != "application/json" {
		t.Errorf("the engine sees %v", h)
	}
	if resp.Header.Get("Server") != "" || resp.Header.Get("X-Engine") != "e" {
		t.Errorf("the client sees %v", resp.Header)
	}
}

// TestSharedRanksAreNamed: where ranks are behind one port, the engine is told
// whose a request is, whatever the client says.
func TestSharedRanksAreNamed(t *testing.T) {
	got := make(chan []string, 1)
	e := newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header.Values("X-data-parallel-rank")
		w.Write([]byte(wholeReply))
	})
	r := newRig(t, setup{})
	for i := range 3 {
		r.pool.Add(live.Target{Name: fmt.Sprintf("e/%d", i), URL: e, Rank: live.Rank{Of: 3, Index: i, Shared: true}})
	}
	seen := map[string]bool{}
	for range 3 {
		req, err := http.NewRequest("POST", r.front.URL+chatPath, strings.NewReader(chatBody))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-data-parallel-rank", "7")
		resp, err := r.front.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		rank, a := <-got, r.access()
		if len(rank) != 1 || a.Endpoint != "e/"+rank[0] {
			t.Errorf("the request to %s was for rank %v", a.Endpoint, rank)
			continue
		}
		seen[rank[0]] = true
	}
	if len(seen) != 3 {
		t.Errorf("ranks %v had requests, want three", seen)
	}
}
