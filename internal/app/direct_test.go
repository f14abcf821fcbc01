package app

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/kv"
)

// directly starts an engine that hashes with a seed, and a gateway with a
// configuration of how blocks are known.
func directly(t *testing.T, engineSeed, config, index string) (*server.Node, *changing) {
	t.Helper()
	n, err := server.Listen("127.0.0.1:0", server.Config{Options: server.Options{
		Model: tinyModel, TP: 1, Speedup: 200, MaxModelLen: 8192, KVEvents: "127.0.0.1:0", KVReplay: "127.0.0.1:0",
		KVHash: server.HashCBOR, KVHashSeed: engineSeed, LoRAs: []string{"poet"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	events, replay := n.KVAddresses()
	c := follow(t, head+fmt.Sprintf(
		"- {name: p, model: %q, kv: {%s, tokens: {budget: 5s}}, %s endpoints: [{url: %q, name: e, events: \"tcp://%s\", replay: \"tcp://%s\"}]}\n",
		tinyModel, config, index, n.URL(), events, replay,
	), Options{})
	until(t, "a feed", func() bool {
		k := c.kv()
		return len(k.Endpoints) == 1 && k.Endpoints[0].Feed != nil && k.Endpoints[0].Feed.State == "live"
	})
	return n, c
}

// known waits until what the gateway knows by events is what the engine has.
func (c *changing) known(n *server.Node) {
	c.t.Helper()
	until(c.t, "events of all blocks", func() bool {
		held := n.Server.Stats().CachedBlocks * 16
		return held > 0 && c.kv().Endpoints[0].GPU == held
	})
}

// TestDirectKeys: requests are named as the engine names their blocks, with no map
// between, and what is believed cached is what the engine reports.
func TestDirectKeys(t *testing.T) {
	n, c := directly(t, "42", `keys: direct, hashSeed: "42"`, "")
	until(t, "the adapter", func() bool { return strings.Contains(c.models(), "poet") })
	prompts := map[string]string{
		"plain":   "",
		"salted":  `,"cache_salt":"pepper"`,
		"adapter": `,"model":"poet"`,
		"both":    `,"model":"poet","cache_salt":"pepper"`,
	}
	long := strings.Repeat("to be or not to be, that is the question. ", 20)
	for name, more := range prompts {
		if got := c.complete(long+name, more); got != 0 && got > len(long)/2 {
			t.Errorf("%s: %d tokens cached of a new prompt", name, got)
		}
	}
	c.known(n)
	reported := 0
	for name, more := range prompts {
		got := c.complete(long+name, more)
		if got == 0 {
			t.Errorf("%s: nothing cached of a prompt sent again", name)
		}
		reported += got
	}
	e := c.kv().Endpoints[0]
	if e.Accuracy.Over != 0 || e.Accuracy.Under != 0 || e.Accuracy.Reported < reported || e.Source != "confirmed" {
		t.Errorf("believed is not reported: %+v, source %s", e.Accuracy, e.Source)
	}
	if f := e.Feed; !f.DirectKeys || f.KeysEqual == 0 || f.KeysUnequal != 0 || f.Refused != "" || f.EngineBlock != 16 || !e.Whole {
		t.Errorf("%+v", f)
	}
	checkKeys(t, n, c, long+"plain")
}

// checkKeys holds the index to the digests of what is cached.
func checkKeys(t *testing.T, n *server.Node, c *changing, prompt string) {
	t.Helper()
	var asked struct{ Tokens []uint32 }
	c.post(n.URL()+"/tokenize", fmt.Sprintf(`{"model":%q,"prompt":%q}`, tinyModel, prompt), &asked)
	var keys []kv.Key
	for _, d := range kv.NewHasher(kv.VLLMRoot("42"), 16).Chain(nil, asked.Tokens, nil) {
		keys = append(keys, d.Low())
	}
	p := c.fleet.byName("p").pool
	known, _, whole := p.Holds(p.Endpoints()[0], kv.TierGPU, keys)
	if known != len(keys) || known == 0 || !whole {
		t.Errorf("%d of %d blocks are known by the engine's own keys", known, len(keys))
	}
}

// TestDirectKeysOfAnotherSeed: the engine is found out, its events are not believed,
// and routing goes on by what was sent.
func TestDirectKeysOfAnotherSeed(t *testing.T) {
	for name, k := range map[string]struct{ config, index, refused string }{
		"seed":  {`keys: direct, hashSeed: "0"`, "", "keys differ: the engine does not hash as configured"},
		"block": {`keys: direct, hashSeed: "42"`, "index: {blockTokens: 32},", "blocks differ: the engine's are not as large as configured"},
	} {
		t.Run(name, func(t *testing.T) {
			_, c := directly(t, "42", k.config, k.index)
			long := strings.Repeat("to be or not to be, that is the question. ", 20)
			c.complete(long, "")
			until(t, "the refusal", func() bool { return c.kv().Endpoints[0].Feed.State == "misfit" })
			got := c.complete(long, "")
			e := c.kv().Endpoints[0]
			if f := e.Feed; f.Refused != k.refused || f.EngineBlock != 16 || e.Whole || e.Source != "history" || e.GPU != 0 || f.Dropped["misfit"] == 0 {
				t.Errorf("%+v, feed %+v", e, f)
			}
			if name == "seed" && (e.Feed.KeysUnequal == 0 || e.Feed.DirectKeys) {
				t.Errorf("%+v", e.Feed)
			}
			if got == 0 || e.Accuracy.Claimed == 0 {
				t.Errorf("%d tokens cached, %+v: history does not say so", got, e.Accuracy)
			}
			want := []string{`penstock_kv_feed_state{endpoint="e",pool="p",state="misfit"} 1`, `penstock_kv_feed_batches_total{endpoint="e",pool="p",what="applied"} `, `penstock_tokens_found_total{how="engine",pool="p"} `}
			page := c.page("/metrics")
			if i := slices.IndexFunc(want, func(s string) bool { return !strings.Contains(page, s) }); i >= 0 {
				t.Errorf("the metrics do not say %s", want[i])
			}
		})
	}
}

// TestDirectKeysArePossible: with mapped keys it is told whether direct ones would
// do, for the seed that is configured.
func TestDirectKeysArePossible(t *testing.T) {
	for name, c := range map[string]struct {
		engine, config string
		want           bool
	}{
		"no seed":      {"", "keys: mapped", true},
		"the seed":     {"7", `keys: mapped, hashSeed: "7"`, true},
		"another seed": {"7", "keys: mapped", false},
	} {
		t.Run(name, func(t *testing.T) {
			n, gw := directly(t, c.engine, c.config, "")
			gw.complete(strings.Repeat("to be or not to be, that is the question. ", 20), "")
			gw.known(n)
			if f := gw.kv().Endpoints[0].Feed; f.DirectKeys != c.want || f.KeysEqual+f.KeysUnequal == 0 || f.State != "live" || f.Refused != "" {
				t.Errorf("%+v", f)
			}
		})
	}
}

func (c *changing) post(url, body string, into any) {
	c.t.Helper()
	resp, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		c.t.Fatal(err)
	}
}

func (c *changing) page(path string) string {
	c.t.Helper()
	resp, err := http.Get(c.AdminURL() + path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(raw)
}

func (c *changing) models() string {
	c.t.Helper()
	resp, err := http.Get(c.URL() + "/v1/models")
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(raw)
}
