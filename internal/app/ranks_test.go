package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/discovery"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
)

const tinyModel = "penstock/tiny"

// ranksOf starts an engine of two ranks that publish KV events, and a gateway that
// is told so and finds out the rest.
func ranksOf(t *testing.T, shared bool) (*server.Group, *changing) {
	t.Helper()
	g, err := server.ListenRanks("127.0.0.1:0", 2, shared, server.Config{Options: server.Options{
		Model: tinyModel, TP: 1, Speedup: 200, MaxModelLen: 8192, KVEvents: "127.0.0.1:0", KVReplay: "127.0.0.1:0",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	events, replay := g.Nodes[0].KVAddresses()
	return g, follow(t, head+fmt.Sprintf(
		"- {name: p, model: %q, policy: {name: round-robin}, kv: {tokens: {budget: 5s}}, endpoints: [{url: %q, name: e, ranks: 2, events: \"tcp://%s\", replay: \"tcp://%s\"}]}\n",
		tinyModel, g.URL(0), events, replay,
	), Options{})
}

// get reads what the admin port says.
func (c *changing) get(path string, into any) {
	c.t.Helper()
	resp, err := http.Get(c.AdminURL() + path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		c.t.Fatal(err)
	}
}

func (c *changing) status() admin.PoolStatus {
	var s admin.Status
	c.get("/api/status", &s)
	return s.Pools[0]
}

func (c *changing) kv() admin.KVPool {
	var s admin.KVStatus
	c.get("/api/kv", &s)
	return s.Pools[0]
}

// complete sends a prompt, with more fields in the form of ,"field":value, and
// returns how many of its tokens were cached.
func (c *changing) complete(prompt, more string) (cached int) {
	c.t.Helper()
	if !strings.Contains(more, `"model"`) {
		more += fmt.Sprintf(`,"model":%q`, tinyModel)
	}
	req, err := http.NewRequest(http.MethodPost, c.URL()+"/v1/completions", strings.NewReader(fmt.Sprintf(`{"prompt":%q,"max_tokens":2%s}`, prompt, more)))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("X-data-parallel-rank", "7") // the gateway's to say, and no rank there is
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	var answer struct {
		Usage struct {
			Details struct {
				Cached int `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
		} `json:"usage"`
	}
	if err != nil || resp.StatusCode != http.StatusOK || json.Unmarshal(body, &answer) != nil {
		c.t.Fatalf("%s: %s, %v", resp.Status, body, err)
	}
	return answer.Usage.Details.Cached
}

// TestRanksAreEndpoints: each rank of an engine has its own ledger, gauges and KV
// events, whether it has a port or a number, and nobody had to say which.
func TestRanksAreEndpoints(t *testing.T) {
	for mode, shared := range map[string]bool{"port": false, "header": true} {
		t.Run(mode, func(t *testing.T) {
			g, c := ranksOf(t, shared)
			until(t, "two ranks", func() bool { return len(c.status().Endpoints) == 2 })
			until(t, "live feeds", func() bool {
				k := c.kv().Endpoints
				return k[0].Feed != nil && k[0].Feed.State == "live" && k[1].Feed != nil && k[1].Feed.State == "live"
			})
			for i, e := range c.status().Endpoints {
				if e.Name != fmt.Sprintf("e/%d", i) || e.URL != g.URL(i) || e.Rank == nil || *e.Rank != (admin.RankStatus{Rank: i, Of: 2, Mode: mode}) {
					t.Errorf("endpoint %d: %+v, rank %+v", i, e, e.Rank)
				}
			}
			long := strings.Repeat("the quick brown fox jumps over the lazy dog ", 12)
			for i := range 6 { // three each, in turn
				c.complete(fmt.Sprint(i%3, long), "")
			}
			for i, n := range g.Nodes {
				if s := n.Server.Stats(); s.Finished[1]+s.Finished[2] != 3 {
					t.Errorf("rank %d has answered %v, want three", i, s.Finished)
				}
			}
			until(t, "what each rank has cached", func() bool {
				for i, e := range c.kv().Endpoints {
					held := g.Nodes[i].Server.Stats().CachedBlocks * 16
					if held == 0 || e.GPU != held || e.Feed.Rank == nil || *e.Feed.Rank != int32(i) {
						return false
					}
				}
				return true
			})
			until(t, "gauges of each", func() bool {
				s := c.status().Endpoints
				return s[0].KVUsage != nil && s[1].KVUsage != nil
			})
		})
	}
}

// TestRanksOverTheAPI: one that registers says how many it is, and is held as one.
func TestRanksOverTheAPI(t *testing.T) {
	g, err := server.ListenRanks("127.0.0.1:0", 2, false, server.Config{Options: server.Options{Model: tinyModel, TP: 1, Speedup: 200}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	c := follow(t, head+fmt.Sprintf("- {name: p, model: %q, api: true}\n", tinyModel), Options{})
	if code, body := c.adminCall("POST", "/api/endpoints", "", fmt.Sprintf(`{"pool":"p","url":%q,"name":"e","ranks":2000}`, g.URL(0))); code != http.StatusBadRequest || !strings.Contains(body, "between 1 and 1024") {
		t.Errorf("too many ranks: %d %s", code, body)
	}
	if code, body := c.adminCall("POST", "/api/endpoints", "", fmt.Sprintf(`{"pool":"p","url":%q,"name":"e","ranks":2}`, g.URL(0))); code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	draining := func() (n int) {
		for _, e := range c.status().Endpoints {
			if e.Draining {
				n++
			}
		}
		return n
	}
	until(t, "two ranks", func() bool { return len(c.status().Endpoints) == 2 })
	c.adminCall("POST", "/api/endpoints/p/e/drain", "", "")
	if draining() != 2 {
		t.Errorf("%d ranks drain, want both", draining())
	}
	c.adminCall("DELETE", "/api/endpoints/p/e%2F1/drain", "", "")
	if draining() != 1 {
		t.Errorf("%d ranks drain, want one", draining())
	}
	c.adminCall("DELETE", "/api/endpoints/p/e", "", "")
	until(t, "no ranks", func() bool { return len(c.status().Endpoints) == 0 })
}

// answers is a rankFinder that answers in turn, and the last for ever.
type answers []engine.RankMode

func (a *answers) FindRankMode(context.Context, string) (engine.RankMode, error) {
	m := (*a)[0]
	if len(*a) > 1 {
		*a = (*a)[1:]
	}
	if m.Mode == "" {
		return m, errors.New("connection refused")
	}
	return m, nil
}

// TestRanksAreAskedForUntilTheyAreThere: nothing at the next port may be a rank
// that is still starting.
func TestRanksAreAskedForUntilTheyAreThere(t *testing.T) {
	empty := engine.RankMode{Mode: engine.RanksByHeader, Why: "nothing answers at http://e:2"}
	for name, c := range map[string]struct {
		answers answers
		after   time.Duration // that it is decided
		url     string        // of the last rank
	}{
		"sure at once":       {answers{{Mode: engine.RanksByPort, Sure: true}}, 0, "http://e:3"},
		"not there yet":      {answers{{}, {}, {Mode: engine.RanksByHeader, Sure: true}}, 2 * rankEvery, "http://e:1"},
		"the next one late":  {answers{{}, empty, empty, {Mode: engine.RanksByPort, Sure: true}}, 3 * rankEvery, "http://e:3"},
		"nothing, for long":  {answers{empty}, 2 * rankEvery, "http://e:1"},
		"gone and back":      {answers{empty, empty, {}, empty}, 5 * rankEvery, "http://e:1"},
		"the port is others": {answers{{Mode: engine.RanksByHeader, Why: "another model", Sure: true}}, 0, "http://e:1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, err := live.NewPool(live.Options{Name: "p", Config: pool.Default()})
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				ctx, cancel := context.WithCancel(t.Context())
				m := newMembers(ctx, p, &c.answers, slog.New(slog.DiscardHandler), func(context.Context, live.Endpoint) {})
				defer func() { cancel(); m.leaving.Wait() }()
				m.configure(func(e discovery.Endpoint) live.Target {
					return live.Target{Name: e.Name, URL: e.URL, Rank: live.Rank{Of: e.Ranks, Index: e.Rank, Shared: e.Shared}}
				}, time.Minute)
				m.set("here", []discovery.Endpoint{{Name: "e", URL: "http://e:1", Ranks: 3}})
				for at := time.Duration(0); ; at += rankEvery {
					synctest.Wait()
					list := p.Endpoints()
					if at < c.after {
						if u := m.undecided(); len(list) != 0 || len(u) != 1 || u[0].Why == "" {
							t.Fatalf("after %v: %v, undecided %v", at, list, u)
						}
						time.Sleep(rankEvery)
						continue
					}
					if len(list) != 3 || len(m.undecided()) != 0 {
						t.Fatalf("after %v: %v, undecided %v", at, list, m.undecided())
					}
					for _, e := range list {
						if e.Name == "e/2" && (e.URL != c.url || e.Rank.Shared != (c.url == "http://e:1")) {
							t.Errorf("%+v, want %s", e, c.url)
						}
					}
					return
				}
			})
		})
	}
}
