package app

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
)

// beforeEngines starts engines and a gateway; another, started by the function
// returned, begins with what peer says.
func beforeEngines(t *testing.T, o server.Options, replicas int) (*App, func(peer string) *App, *Simulated) {
	t.Helper()
	o.Seed, o.Speedup = 1, 20
	sim, err := Simulate(o, Fleet{Replicas: replicas})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	run := func(peer string) *App {
		p := sim.Pool
		p.KV.Peer = peer
		c := config.Default()
		c.Pools = []config.Pool{p}
		a, err := Start(Options{Config: c, Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = a.Close() })
		return a
	}
	return run(""), run, sim
}

// askCached has one prompt answered and returns how many of its tokens were cached.
func askCached(t *testing.T, a *App, prompt string) int {
	t.Helper()
	body := fmt.Sprintf(`{"model":"Qwen/Qwen3-32B","prompt":%q,"max_tokens":4,"ignore_eos":true}`, prompt)
	resp, err := http.Post(a.URL()+"/v1/completions", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Usage struct {
			Details struct {
				Cached int `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
		} `json:"usage"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v", resp.Status, err)
	}
	return answer.Usage.Details.Cached
}

// caches returns what a gateway knows of caches.
func caches(t *testing.T, a *App) []admin.KVEndpoint {
	t.Helper()
	resp, err := http.Get(a.AdminURL() + "/api/kv")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var s admin.KVStatus
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s.Pools[0].Endpoints
}

// waitFor waits until all endpoints' caches are known whole and hold so many
// tokens in all, and returns how long that took.
func waitFor(t *testing.T, a *App, tokens int) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		sum, whole := 0, true
		all := caches(t, a)
		for _, e := range all {
			sum += e.GPU
			whole = whole && e.Whole
		}
		if whole && sum == tokens {
			return time.Since(began)
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%d tokens known (whole: %v), want %d: %+v", sum, whole, tokens, all)
		}
	}
}

func known(t *testing.T, a *App) int {
	sum := 0
	for _, e := range caches(t, a) {
		sum += e.GPU
	}
	return sum
}

// held returns how many tokens the engines hold in truth.
func held(t *testing.T, sim *Simulated) int {
	t.Helper()
	sum := 0
	for _, e := range sim.Pool.Endpoints {
		resp, err := http.Get(e.URL + "/sim/kv")
		if err != nil {
			t.Fatal(err)
		}
		var truth struct {
			Block  int            `json:"block_tokens"`
			Blocks map[string]int `json:"blocks"`
		}
		err = json.NewDecoder(resp.Body).Decode(&truth)
		_ = resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		sum += truth.Blocks["gpu"] * truth.Block
	}
	return sum
}

func TestEventsTellAGatewayWhatIsCached(t *testing.T) {
	a, _, _ := beforeEngines(t, server.Options{}, 2)
	prompt := strings.Repeat("the gate and pipe that feed a turbine. ", 100)
	if got := askCached(t, a, prompt); got != 0 {
		t.Fatalf("%d tokens cached of a new prompt", got)
	}
	if got := askCached(t, a, prompt); got < 900 {
		t.Errorf("%d tokens cached of a prompt sent twice: it went elsewhere", got)
	}
	for _, e := range caches(t, a) {
		if e.Feed == nil || e.Feed.State != "live" || e.Accuracy.Over != 0 || e.Accuracy.Under > 16 {
			t.Errorf("%s: %+v, feed %+v", e.Name, e, e.Feed)
		}
	}
}

// The engines remember three batches: events alone tell a new gateway next to
// nothing, and another gateway everything, at once.
func TestANewGatewayBeginsWithWhatAnotherKnows(t *testing.T) {
	a, run, sim := beforeEngines(t, server.Options{KVBufferSteps: 3}, 3)
	waitFor(t, a, 0)
	for i := range 30 {
		askCached(t, a, strings.Repeat(fmt.Sprint("prompt number ", i, " of many. "), 60))
	}
	all := held(t, sim)
	if all < 10_000 {
		t.Fatalf("the engines hold %d tokens", all)
	}
	waitFor(t, a, all)
	t.Logf("a new gateway knows what another does %v after its start", waitFor(t, run(a.AdminURL()), all))
	// The same from a file.
	resp, err := http.Get(a.AdminURL() + "/api/kv/state?pool=sim")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	state, err := io.ReadAll(resp.Body)
	path := filepath.Join(t.TempDir(), "state")
	if err != nil || os.WriteFile(path, state, 0o600) != nil {
		t.Fatal(err)
	}
	waitFor(t, run(path), all)
	// Without either, most of it stays unknown.
	alone := run("")
	for range 100 {
		if known(t, alone) >= all {
			t.Fatal("three batches tell everything: the test proves nothing")
		}
	}
}
