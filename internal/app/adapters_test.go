package app

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/fleet"
)

// TestAdaptersGoWhereTheyAre serves a pool of which each engine has other
// adapters: they are listed with their parent, and each is found.
func TestAdaptersGoWhereTheyAre(t *testing.T) {
	p := config.DefaultPool()
	p.Name, p.Model = "p", tiny
	for i, loras := range [][]string{{"red", "blue"}, {"green"}, nil} {
		n, err := server.Listen("127.0.0.1:0", server.Config{Options: server.Options{Model: tiny, LoRAs: loras, MaxLoRAs: 2, Replica: i, Speedup: 50}})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Shutdown(t.Context())
		p.Endpoints = append(p.Endpoints, config.Endpoint{Name: fmt.Sprint("e", i), URL: n.URL()})
	}
	c := config.Default()
	c.Scrape.Interval = 100 * time.Millisecond
	c.Pools = []config.Pool{p}
	a, err := Start(Options{Config: c, Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	waitForModels(t, a, map[string]string{tiny: "", "red": tiny, "blue": tiny, "green": tiny})
	for range 5 {
		for model, want := range map[string]string{"red": "e0", "blue": "e0", "green": "e1"} {
			id := ask(t, a, model)
			rec, ok := a.ring.Find(id)
			if !ok || rec.Outcome.Endpoint != want || rec.Outcome.Status != http.StatusOK || rec.Attempts[0].Counts["adapter"] != 2 {
				t.Errorf("%s went to %s with %d: %+v", model, rec.Outcome.Endpoint, rec.Outcome.Status, rec.Attempts)
			}
		}
	}
	rec, _ := a.ring.Find(ask(t, a, "red"))
	if got := rec.Attempts[0].Candidates[0].Adapter; got != "loaded" {
		t.Errorf("after five requests the adapter is %q", got)
	}
}

// tiny is the smallest model that simulated engines know.
const tiny = "penstock/tiny"

func waitForModels(t *testing.T, a *App, want map[string]string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		resp, err := http.Get(a.URL() + "/v1/models")
		if err != nil {
			t.Fatal(err)
		}
		var list struct {
			Data []struct{ ID, Parent string }
		}
		err = json.NewDecoder(resp.Body).Decode(&list)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		same := len(list.Data) == len(want)
		for _, m := range list.Data {
			parent, ok := want[m.ID]
			same = same && ok && parent == m.Parent
		}
		if same {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("models %+v, want %v", list.Data, want)
		}
	}
}

// ask sends a request and returns its id.
func ask(t *testing.T, a *App, model string) string {
	t.Helper()
	resp, err := http.Post(a.URL()+"/v1/completions", "application/json", strings.NewReader(fmt.Sprintf(`{"model":%q,"prompt":"x","max_tokens":2}`, model)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %v", model, resp.StatusCode, err)
	}
	return resp.Header.Get("X-Request-Id")
}

// TestAdaptersAreLoadedOnDemand serves adapters that no engine has yet, from a
// pool of which one engine refuses to load any.
func TestAdaptersAreLoadedOnDemand(t *testing.T) {
	p := config.DefaultPool()
	p.Name, p.Model, p.Adapters = "p", tiny, map[string]string{"sql": "/adapters/sql", "law": "/adapters/law"}
	for i := range 3 {
		n, err := server.Listen("127.0.0.1:0", server.Config{Options: server.Options{
			Model: tiny, LoadLoRA: i > 0, MaxLoRAs: 4, Replica: i, Speedup: 50,
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Shutdown(t.Context())
		p.Endpoints = append(p.Endpoints, config.Endpoint{Name: fmt.Sprint("e", i), URL: n.URL()})
	}
	c := config.Default()
	c.Pools = []config.Pool{p}
	a, err := Start(Options{Config: c, Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	waitForModels(t, a, map[string]string{tiny: "", "sql": tiny, "law": tiny})
	where := map[string]string{}
	for range 8 {
		for _, model := range []string{"sql", "law"} {
			rec, ok := a.ring.Find(ask(t, a, model))
			if !ok || rec.Outcome.Endpoint == "e0" {
				t.Fatalf("%s was served by %s, which cannot load it", model, rec.Outcome.Endpoint)
			}
			if before := where[model]; before != "" && before != rec.Outcome.Endpoint {
				t.Errorf("%s moved from %s to %s without need", model, before, rec.Outcome.Endpoint)
			}
			where[model] = rec.Outcome.Endpoint
		}
	}
	var s fleet.Snapshot
	a.fleet.pools()[0].pool.View(&s)
	for _, e := range s.Endpoints {
		if e.Health != "healthy" {
			t.Errorf("endpoint %d is %s: refusing to load is no sickness", e.ID, e.Health)
		}
	}
}
