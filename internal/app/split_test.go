package app

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/obs"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/route"
)

// startSplit runs a gateway before engines that compute prompts and engines that
// answer.
func startSplit(t *testing.T, prefills, decodes int, when pool.Split, policy string) (*App, *Simulated) {
	t.Helper()
	return startSplitBy(t, "", prefills, decodes, when, policy)
}

// startSplitBy is startSplit of engines with a connector.
func startSplitBy(t *testing.T, connector string, prefills, decodes int, when pool.Split, policy string) (*App, *Simulated) {
	t.Helper()
	sim, err := Simulate(server.Options{Seed: 1, Speedup: 20}, Fleet{Prefill: prefills, Decode: decodes, Connector: connector})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	c := config.Default()
	c.Pools = []config.Pool{sim.Pool}
	c.Pools[0].Split, c.Pools[0].Policy = when, route.Spec{Name: policy}
	a, err := Start(Options{Config: c, Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a, sim
}

// posted sends a request and returns what came.
func posted(t *testing.T, a *App, path, id, body string) (status int, raw []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Request-Id", id)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if raw, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, raw
}

// statusOf is what a gateway says of itself.
func statusOf(t *testing.T, a *App) (s admin.Status) {
	t.Helper()
	resp, err := http.Get(a.AdminURL() + "/api/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// complete has a prompt completed and returns the text and how much of the prompt
// was cached.
func complete(t *testing.T, a *App, id, prompt string, stream bool) (text string, cached int) {
	t.Helper()
	body := fmt.Sprintf(`{"model":"Qwen/Qwen3-32B","prompt":%q,"max_tokens":24,"ignore_eos":true,"stream":%v,"stream_options":{"include_usage":true}}`, prompt, stream)
	if !stream {
		body = strings.Replace(body, `,"stream_options":{"include_usage":true}`, "", 1)
	}
	status, raw := posted(t, a, "/v1/completions", id, body)
	if status != http.StatusOK {
		t.Fatalf("%d: %s", status, raw)
	}
	for line := range strings.Lines(string(raw)) {
		data, isData := strings.CutPrefix(strings.TrimSpace(line), "data: ")
		if data == "[DONE]" || stream != isData || data == "" {
			continue
		}
		var chunk struct {
			Choices []struct{ Text string } `json:"choices"`
			Usage   *struct {
				Details struct {
					Cached int `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			} `json:"usage"`
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		for _, c := range chunk.Choices {
			text += c.Text
		}
		if chunk.Usage != nil {
			cached = chunk.Usage.Details.Cached
		}
	}
	return text, cached
}

// explained returns what is recorded of a request.
func explained(t *testing.T, a *App, id string) obs.Record {
	t.Helper()
	resp, err := http.Get(a.AdminURL() + "/api/decisions/" + id)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var r obs.Record
	if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

// A split request has the answer that it has whole, counts as cached what was so
// where its prompt was computed, and leaves nothing held.
func TestSplitRequestsAreAnsweredAlike(t *testing.T) {
	whole, _ := startSplit(t, 1, 1, pool.SplitNever, "predictive")
	split, sim := startSplit(t, 2, 2, pool.SplitAlways, "predictive")
	for i := range 8 {
		stream := i%2 == 0
		prompt := strings.Repeat(fmt.Sprint("prompt ", i/4, " of some length. "), 100)
		id := fmt.Sprint("q", i)
		want, _ := complete(t, whole, id, prompt, stream)
		got, cached := complete(t, split, id, prompt, stream)
		if got != want || got == "" {
			t.Errorf("answered %q split, %q whole", got, want)
		}
		r := explained(t, split, id)
		if len(r.Attempts) != 1 || !strings.HasPrefix(r.Attempts[0].Prefill, "prefill-") || !strings.HasPrefix(r.Attempts[0].Chosen, "decode-") {
			t.Fatalf("%+v", r.Attempts)
		}
		if first := i%4 == 0; first != (cached == 0) || !first && cached < 400 {
			t.Errorf("request %d: %d tokens cached", i, cached)
		}
	}
	wantNothingHeld(t, sim)
}

// When the engines that compute prompts die, the others do so themselves: no
// client hears of it.
func TestPromptsAreComputedWithoutPrefillEngines(t *testing.T) {
	a, sim := startSplit(t, 1, 2, pool.SplitAlways, "predictive")
	complete(t, a, "before", "a prompt of no great length, to begin with", true)
	if err := sim.nodes[0].Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		id := fmt.Sprint("after", i)
		if text, _ := complete(t, a, id, strings.Repeat("what now? ", 100+i), i%2 == 0); text == "" {
			t.Error("no answer")
		}
	}
	r := explained(t, a, "after0")
	last := r.Attempts[len(r.Attempts)-1]
	if len(r.Attempts) < 2 || last.Prefill != "" || r.Outcome.Status != http.StatusOK {
		t.Errorf("%+v", r)
	}
	s := statusOf(t, a)
	if y := s.Pools[0].Tally; y.Done != 6 || y.Failed != 0 || y.InFlight != 0 {
		t.Errorf("%+v", y)
	}
}

// faultMatrix is what can befall a split request, and where.
var faultMatrix = []struct {
	name, kind string
	atPrefill  bool
	unseen     bool // it costs time and no attempt
}{
	{name: "prefill dies before its answer", kind: "pd-die-before", atPrefill: true},
	{name: "prefill dies after its answer", kind: "pd-die-after", atPrefill: true},
	{name: "decode dies before the pull", kind: "pd-die-before-pull"},
	{name: "decode dies after the pull", kind: "pd-die-after-pull"},
	{name: "prefill is another process by then", kind: "pd-restart", atPrefill: true, unseen: true},
	{name: "prefill is another process between the legs", kind: "pd-restart-after", atPrefill: true},
	{name: "the pair is incompatible", kind: "pd-incompatible", atPrefill: true},
	{name: "a wrong block", kind: "pd-wrong-block", atPrefill: true},
	{name: "the side channel is gone", kind: "pd-side-gone", atPrefill: true},
	{name: "the lease has ended", kind: "pd-expire", atPrefill: true},
	{name: "a slow link", kind: "pd-slow-link", atPrefill: true, unseen: true},
}

// No client hears of what befalls the legs of its request, and nothing stays held.
func TestSplitRequestsSurvive(t *testing.T) {
	for _, x := range faultMatrix {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			a, sim := startSplit(t, 2, 2, pool.SplitAlways, "round-robin")
			prompt := strings.Repeat("the gate and pipe that feed a turbine, "+x.kind+". ", 60)
			want, _ := complete(t, a, "before", prompt, true)
			last := explained(t, a, "before").Attempts[0]
			at := last.Chosen
			if x.atPrefill {
				at = last.Prefill
			}
			for i := range sim.Pool.Endpoints {
				if sim.Pool.Endpoints[i].Name == at {
					if err := sim.nodes[i].Server.SetFault(server.Fault{Kind: x.kind, Count: 1}); err != nil {
						t.Fatal(err)
					}
				}
			}
			const requests = 16 // dealt to two engines at random
			attempts := 0
			for i := range requests {
				id := fmt.Sprint("q", i)
				if got, _ := complete(t, a, id, fmt.Sprint(i, prompt), i%2 == 0); got == "" {
					t.Errorf("request %d has no answer", i)
				}
				attempts += len(explained(t, a, id).Attempts)
			}
			if retried := attempts > requests; retried == x.unseen {
				t.Errorf("%d attempts for %d requests: did it befall anybody?", attempts, requests)
			}
			if got, _ := complete(t, a, "again", prompt, true); got != want {
				t.Errorf("answered %q, before the fault %q", got, want)
			}
		})
	}
}

// TestASourceThatReachesNobodyIsTakenOut: an engine that computes prompts well and
// whose KV nobody can fetch, for good, costs no client its answer, and is named.
func TestASourceThatReachesNobodyIsTakenOut(t *testing.T) {
	a, sim := startSplit(t, 2, 2, pool.SplitAlways, "round-robin")
	bad := sim.Pool.Endpoints[0].Name
	if err := sim.nodes[0].Server.SetFault(server.Fault{Kind: "pd-side-gone", Count: 1_000_000}); err != nil {
		t.Fatal(err)
	}
	attempts := 0
	for i := range 40 {
		id := fmt.Sprint("q", i)
		if got, _ := complete(t, a, id, fmt.Sprint(i, strings.Repeat(" the gate and pipe", 100)), i%2 == 0); got == "" {
			t.Errorf("request %d has no answer", i)
		}
		attempts += len(explained(t, a, id).Attempts)
	}
	if attempts > 40+20 {
		t.Errorf("%d attempts for 40 requests", attempts)
	}
	s := statusOf(t, a)
	for _, e := range s.Pools[0].Endpoints {
		if out := e.Health != "healthy"; out != (e.Name == bad) {
			t.Errorf("%s is %s; only %s is broken", e.Name, e.Health, bad)
		}
	}
}

// An engine that is started again at its addresses takes part as before.
func TestSimulatedEnginesRestart(t *testing.T) {
	for _, connector := range []string{server.NIXL, server.Mooncake, server.Rooms} {
		t.Run(connector, func(t *testing.T) {
			t.Parallel()
			a, sim := startSplitBy(t, connector, 2, 2, pool.SplitAlways, "round-robin")
			prompt := strings.Repeat("the gate and pipe that feed a turbine. ", 60)
			want, _ := complete(t, a, "before", prompt, true)
			restarted := map[string]bool{}
			for i := 0; i < sim.Engines(); i += 2 { // the others serve meanwhile
				restarted[sim.Pool.Endpoints[i].Name] = false
				old := sim.Node(i)
				side, bootstrap := old.PDAddresses()
				events, replay := old.KVAddresses()
				if err := sim.Restart(i); err != nil {
					t.Fatal(err)
				}
				n := sim.Node(i)
				if s, b := n.PDAddresses(); n == old || n.URL() != old.URL() || s != side || b != bootstrap {
					t.Errorf("engine %d is at %s, %s, %s; was at %s, %s, %s", i, n.URL(), s, b, old.URL(), side, bootstrap)
				}
				if e, r := n.KVAddresses(); e != events || r != replay {
					t.Errorf("engine %d tells of its KV at %s, %s; did at %s, %s", i, e, r, events, replay)
				}
			}
			n := 0
			until(t, "they take part", func() bool {
				id := fmt.Sprint("after", n)
				n++
				if got, _ := complete(t, a, id, prompt, true); got != want {
					t.Fatalf("answered %q, before the restart %q", got, want)
				}
				if at := explained(t, a, id).Attempts; len(at) == 1 && at[0].Prefill != "" {
					restarted[at[0].Prefill], restarted[at[0].Chosen] = true, true
				}
				return restarted[sim.Pool.Endpoints[0].Name] && restarted[sim.Pool.Endpoints[2].Name]
			})
		})
	}
}

// An engine that only takes prompts over is never asked for a whole request: its
// refusal would be the client's answer.
func TestEnginesOfOneLegAreNotAskedForTheOther(t *testing.T) {
	a, sim := startSplitBy(t, server.Rooms, 1, 2, pool.SplitOnly, "predictive")
	complete(t, a, "before", "a prompt of no great length, to begin with", true)
	if err := sim.nodes[0].Close(); err != nil {
		t.Fatal(err)
	}
	ask := func(id string) int {
		t.Helper()
		status, _ := posted(t, a, "/v1/completions", id, `{"model":"Qwen/Qwen3-32B","prompt":"what now?","max_tokens":3}`)
		return status
	}
	for i := range 8 {
		if got := ask(fmt.Sprint("q", i)); got < http.StatusInternalServerError {
			t.Errorf("request %d: %d", i, got)
		}
	}
	if err := sim.Restart(0); err != nil {
		t.Fatal(err)
	}
	until(t, "requests are served again", func() bool { return ask("again") == http.StatusOK })
}
