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

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/obs"
	"penstock.dev/penstock/internal/pool"
)

// startSplit runs a gateway before engines that compute prompts and engines that
// answer.
func startSplit(t *testing.T, prefills, decodes int, when pool.Split) (*App, *Simulated) {
	t.Helper()
	sim, err := Simulate(server.Options{Seed: 1, Speedup: 20}, Fleet{Prefill: prefills, Decode: decodes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	c := config.Default()
	c.Pools = []config.Pool{sim.Pool}
	c.Pools[0].Split = when
	a, err := Start(Options{Config: c, Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a, sim
}

// complete has a prompt completed and returns the text and how much of the prompt
// was cached.
func complete(t *testing.T, a *App, id, prompt string, stream bool) (text string, cached int) {
	t.Helper()
	body := fmt.Sprintf(`{"model":"Qwen/Qwen3-32B","prompt":%q,"max_tokens":24,"ignore_eos":true,"stream":%v,"stream_options":{"include_usage":true}}`, prompt, stream)
	if !stream {
		body = strings.Replace(body, `,"stream_options":{"include_usage":true}`, "", 1)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.URL()+"/v1/completions", strings.NewReader(body))
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
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", resp.Status, raw, err)
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
	whole, _ := startSplit(t, 1, 1, pool.SplitNever)
	split, sim := startSplit(t, 2, 2, pool.SplitAlways)
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
	for i, n := range sim.nodes {
		// An engine frees what it kept when the other has told it, after the answer.
		for began := time.Now(); n.Server.Stats().Kept != 0; {
			if time.Since(began) > 5*time.Second {
				t.Fatalf("engine %d still holds %d prompts", i, n.Server.Stats().Kept)
			}
		}
	}
}

// When the engines that compute prompts die, the others do so themselves: no
// client hears of it.
func TestPromptsAreComputedWithoutPrefillEngines(t *testing.T) {
	a, sim := startSplit(t, 1, 2, pool.SplitAlways)
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
	var s admin.Status
	resp, err := http.Get(a.AdminURL() + "/api/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	if y := s.Pools[0].Tally; y.Done != 6 || y.Failed != 0 || y.InFlight != 0 {
		t.Errorf("%+v", y)
	}
}
