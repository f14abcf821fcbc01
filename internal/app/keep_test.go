package app

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
)

// managed is a gateway before simulated engines, and what asks its ports.
type managed struct {
	*App
	t testing.TB
}

func manage(t *testing.T, o server.Options, f Fleet, tune func(*config.Pool)) *managed {
	t.Helper()
	o.Seed, o.Speedup = 1, 50
	sim, err := Simulate(o, f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	if tune != nil {
		tune(&sim.Pool)
	}
	c := config.Default()
	c.Pools = []config.Pool{sim.Pool}
	a, err := Start(Options{Config: c, Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Version: "test", Log: slog.New(slog.DiscardHandler), DrainTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return &managed{a, t}
}

// call asks a port and reads the answer into out; it returns the status and the
// answer's text.
func (m *managed) call(method, url string, in, out any) (int, string) {
	m.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		m.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(m.t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		m.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	if out != nil && resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal(raw, out); err != nil {
			m.t.Fatal(err)
		}
	}
	return resp.StatusCode, string(raw)
}

func (m *managed) admin(method, path string, in, out any) {
	m.t.Helper()
	if status, text := m.call(method, m.AdminURL()+path, in, out); status != http.StatusOK {
		m.t.Fatalf("%s %s: %d %s", method, path, status, text)
	}
}

// prompt is about 1,000 tokens of a topic.
func prompt(topic string) string { return strings.Repeat("on "+topic+" there is much to say; ", 150) }

func request(topic, more string, fields map[string]any) map[string]any {
	r := map[string]any{"model": "Qwen/Qwen3-32B", "prompt": prompt(topic) + more, "max_tokens": 2}
	maps.Copy(r, fields)
	return r
}

func (m *managed) ask(r map[string]any) {
	m.t.Helper()
	if status, text := m.call("POST", m.URL()+"/v1/completions", r, nil); status != http.StatusOK {
		m.t.Fatalf("%d %s", status, text)
	}
}

// holders returns who has nearly all of a prompt, and how that is known.
func (m *managed) holders(t admin.KVTarget) (names, by string) {
	m.t.Helper()
	var v admin.KVWhere
	m.admin("POST", "/api/kv/where", t, &v)
	for _, e := range v.Endpoints {
		if 10*e.Tokens >= 9*v.Tokens {
			names, by = names+e.Endpoint+" ", e.Source
		}
	}
	return strings.TrimSpace(names), by
}

func TestCachesAreSeenFilledAndCleared(t *testing.T) {
	m := manage(t, server.Options{DevMode: true}, Fleet{Replicas: 2}, nil)
	m.ask(request("rivers", "", map[string]any{"prompt_cache_key": "s-1"}))
	session := admin.KVTarget{Session: "s-1"}
	until(t, "the events of the first prompt", func() bool {
		names, by := m.holders(session)
		return (names == "sim-0" || names == "sim-1") && by == "confirmed"
	})
	var sent admin.KVResults
	m.admin("POST", "/api/kv/prefetch", admin.KVPrefetch{KVTarget: session, Copies: 2}, &sent)
	if len(sent.Results) != 1 || !sent.Results[0].Done || *sent.Results[0].Cached != 0 {
		t.Fatalf("prefetch: %+v", sent)
	}
	until(t, "the events of the second", func() bool {
		names, by := m.holders(session)
		return len(names) == len("sim-0 sim-1") && by == "confirmed"
	})
	// A pin would come back; what a client declared would too.
	m.admin("PUT", "/api/kv/quotas", admin.KVQuotas{Default: 0}, nil)
	var cleared admin.KVResults
	m.admin("POST", "/api/kv/clear", admin.KVClear{Endpoints: []string{"all"}}, &cleared)
	for _, r := range cleared.Results {
		if !r.Done || !*r.Confirmed || *r.After != 0 || *r.Before < 900 {
			t.Errorf("clear: %+v", r)
		}
	}
	if names, _ := m.holders(session); names != "" || len(cleared.Results) != 2 {
		t.Errorf("after clearing %d, %s have it", len(cleared.Results), names)
	}
}

func TestWithoutEventsAClearedCacheIsForgotten(t *testing.T) {
	m := manage(t, server.Options{DevMode: true}, Fleet{Replicas: 1, NoEvents: true}, nil)
	m.ask(request("rivers", "", nil))
	of := admin.KVTarget{Prompt: prompt("rivers")}
	if names, by := m.holders(of); names != "sim-0" || by != "history" {
		t.Fatalf("%s by %s", names, by)
	}
	var cleared admin.KVResults
	m.admin("POST", "/api/kv/clear", admin.KVClear{Endpoints: []string{"sim-0"}}, &cleared)
	if names, _ := m.holders(of); names != "" || !strings.Contains(cleared.Results[0].Reason, "forgotten") {
		t.Errorf("%s has it after %+v", names, cleared)
	}
}

func TestWhatCannotBeDoneSaysWhy(t *testing.T) {
	m := manage(t, server.Options{}, Fleet{Replicas: 1}, nil)
	m.ask(request("rivers", "", nil))
	m.admin("PUT", "/api/kv/quotas", admin.KVQuotas{Default: 5000, Tenants: map[string]int{"small": 10}}, nil)
	for _, c := range []struct {
		method, path string
		in           any
		status       int
		text         string
	}{
		{"POST", "/api/kv/clear", admin.KVClear{Endpoints: []string{"sim-0"}}, 200, "VLLM_SERVER_DEV_MODE=1"},
		{"POST", "/api/kv/clear", admin.KVClear{}, 400, "say whose cache"},
		{"POST", "/api/kv/clear", admin.KVClear{Endpoints: []string{"sim-9"}}, 404, `no endpoint`},
		{"POST", "/api/kv/where", admin.KVTarget{}, 400, "name one prompt"},
		{"POST", "/api/kv/where", admin.KVTarget{Session: "none"}, 404, "prompt_cache_key"},
		{"POST", "/api/kv/where", admin.KVTarget{Pool: "none", Prompt: "x"}, 404, "there are sim"},
		{"POST", "/api/kv/where", admin.KVTarget{Body: json.RawMessage(`{"model":"none","messages":[]}`)}, 404, ""},
		{"POST", "/api/kv/where", map[string]any{"promt": "x"}, 400, "unknown field"},
		{"POST", "/api/kv/pins", admin.KVPin{KVPrefetch: admin.KVPrefetch{KVTarget: admin.KVTarget{Prompt: prompt("x"), Tenant: "small"}}}, 400, "over quota"},
		{"POST", "/api/kv/pins", admin.KVPin{KVPrefetch: admin.KVPrefetch{KVTarget: admin.KVTarget{Prompt: "x"}}}, 400, "too short"},
		{"POST", "/api/kv/pins", admin.KVPin{KVPrefetch: admin.KVPrefetch{KVTarget: admin.KVTarget{Prompt: "x"}}, For: "soon"}, 400, "duration"},
		{"DELETE", "/api/kv/pins/7", nil, 404, "pin 7"},
		{"DELETE", "/api/kv/pins/x", nil, 400, "not the id"},
		{"PUT", "/api/kv/quotas", admin.KVQuotas{Default: -1}, 400, "negative"},
	} {
		status, text := m.call(c.method, m.AdminURL()+c.path, c.in, nil)
		if c.status == 404 && status == 400 && c.text == "" {
			continue // the gateway's own words
		}
		if status != c.status || !strings.Contains(text, c.text) {
			t.Errorf("%s %s %+v: %d %s", c.method, c.path, c.in, status, text)
		}
	}
}

func TestAPinComesBackAfterEviction(t *testing.T) {
	m := manage(t, server.Options{KVTokens: 8192}, Fleet{Replicas: 1}, nil)
	var pin admin.KVKept
	of := admin.KVTarget{Prompt: prompt("rivers")}
	m.admin("POST", "/api/kv/pins", admin.KVPin{KVPrefetch: admin.KVPrefetch{KVTarget: of}}, &pin)
	has := func() bool { names, _ := m.holders(of); return names == "sim-0" }
	until(t, "the pin", has)
	n := 0
	until(t, "its eviction", func() bool {
		n++
		m.ask(request(fmt.Sprint("topic ", n), "", nil))
		return !has()
	})
	until(t, "its return", has)
	m.admin("DELETE", fmt.Sprint("/api/kv/pins/", pin.ID), nil, nil)
	var kept admin.KVKeptList
	m.admin("GET", "/api/kv/pins", nil, &kept)
	for _, k := range kept.Kept {
		if k.Source == "pinned" {
			t.Errorf("still pinned: %+v", k)
		}
	}
	if n := kept.Pools[0].Orders["refresh"]; n < 2 {
		t.Errorf("%d refreshes", n)
	}
}

func TestHotPrefixesGoToEndpointsThatCome(t *testing.T) {
	m := manage(t, server.Options{}, Fleet{Replicas: 1}, func(p *config.Pool) { p.API = true })
	for i := range 8 {
		m.ask(request("rivers", fmt.Sprint("; but what of number ", i), nil))
	}
	var kept admin.KVKeptList
	until(t, "the first look around", func() bool {
		m.admin("GET", "/api/kv/pins", nil, &kept)
		return len(kept.Kept) > 0 && m.fleet.byName("sim").keep.Status().Endpoints == 1
	})
	if kept.Kept[0].Source != "hot" {
		t.Fatalf("kept %+v", kept.Kept)
	}
	fresh, err := server.Listen("127.0.0.1:0", server.Config{Options: server.Options{Seed: 1, Replica: 7, Speedup: 50}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fresh.Shutdown(t.Context()) })
	m.admin("POST", "/api/endpoints", map[string]string{"pool": "sim", "name": "fresh", "url": fresh.URL()}, nil)
	until(t, "the hot prefix at the new endpoint", func() bool {
		names, _ := m.holders(admin.KVTarget{Prompt: prompt("rivers")})
		return strings.Contains(names, "fresh")
	})
	until(t, "the word of the engine itself", func() bool { return fresh.Server.Stats().CachedBlocks > 0 })
}
