package admin

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/obs"
	"penstock.dev/penstock/internal/pool"
)

func handler(t *testing.T, token string) (http.Handler, *obs.Ring) {
	t.Helper()
	p, err := live.NewPool(live.Options{Name: "p", Config: pool.Default()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	e := p.Add(live.Target{Name: "e1", URL: "http://127.0.0.1:1"})
	p.Sampled(e, p.Now(), fleet.Gauges{Known: fleet.KnownRunning, Running: 2}, fleet.FailNone)
	ring := obs.NewRing(obs.RingBytes, func(string, fleet.EndpointID) string { return "e1" })
	return New(Options{
		Version: "test", Started: time.Unix(0, 0), Ring: ring, Token: token,
		Pools:   func() []PoolInfo { return []PoolInfo{{Pool: p, Models: []string{"m"}, Policy: "p2c"}} },
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "metrics") }),
		Ready:   func() bool { return false },
		Reload:  func() ReloadState { return ReloadState{Result: "started"} },
	}), ring
}

func get(h http.Handler, target, host, auth string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", target, nil)
	r.Host = host
	if auth != "" {
		r.Header.Set("Authorization", auth)
	}
	rr := httptest.NewRecorder()
	h.ServeHTTP(rr, r)
	return rr
}

func TestGuardLetsInOnlyWhoMayLook(t *testing.T) {
	open, _ := handler(t, "")
	for host, want := range map[string]int{
		"127.0.0.1:9090": 200, "localhost:9090": 200, "[::1]:9090": 200, "evil.example:9090": 403, "10.0.0.1": 403, "": 403,
	} {
		if got := get(open, "/healthz", host, "").Code; got != want {
			t.Errorf("host %q: %d, want %d", host, got, want)
		}
	}
	locked, _ := handler(t, "secret")
	for auth, want := range map[string]int{"Bearer secret": 200, "Bearer secre": 401, "": 401, "secret": 401} {
		if got := get(locked, "/healthz", "evil.example", auth).Code; got != want {
			t.Errorf("authorization %q: %d, want %d", auth, got, want)
		}
	}
}

func TestCheckListen(t *testing.T) {
	for addr, ok := range map[string]bool{"127.0.0.1:1": true, "localhost:1": true, "[::1]:1": true, ":9090": false, "0.0.0.0:1": false, "10.1.1.1:1": false, "nonsense": false} {
		if err := CheckListen(addr, ""); (err == nil) != ok {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if err := CheckListen(":9090", "t"); err != nil {
		t.Errorf("with a token: %v", err)
	}
}

func TestStatusAndDecisions(t *testing.T) {
	h, ring := handler(t, "")
	ring.Add(time.Unix(1, 0), &gateway.Access{ID: "a/b", Pool: "p", Outcome: fleet.Outcome{Status: 200}})
	var s Status
	if err := json.Unmarshal(get(h, "/api/status", "localhost", "").Body.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	e := s.Pools[0].Endpoints[0]
	if s.Version != "test" || s.Ready || s.Ring.Records != 1 || e.Name != "e1" || *e.Running != 2 || e.Waiting != nil || e.SampleAgeMs == nil {
		t.Errorf("status %+v, endpoint %+v", s, e)
	}
	for target, want := range map[string]struct {
		code int
		text string
	}{
		"/api/decisions":           {200, `"request": "a/b"`},
		"/api/decisions?pool=x":    {200, `"decisions": []`},
		"/api/decisions?limit=0":   {400, "limit must be a number from 1 to 1000"},
		"/api/decisions?limit=ten": {400, "limit must be a number"},
		"/api/decisions/a%2Fb":     {200, `"request": "a/b"`},
		"/api/decisions/zzz":       {404, `no record of request`},
		"/metrics":                 {200, "metrics"},
		"/readyz":                  {503, "not ready"},
		"/":                        {200, "/api/decisions/{id}"},
		"/debug/pprof/":            {200, "goroutine"},
		"/nothing":                 {404, ""},
	} {
		rr := get(h, target, "localhost", "")
		if rr.Code != want.code || !strings.Contains(rr.Body.String(), want.text) {
			t.Errorf("%s: %d %.120s", target, rr.Code, rr.Body.String())
		}
	}
}
