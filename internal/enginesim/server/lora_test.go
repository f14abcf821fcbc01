package server

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// adapters is an engine like fast, with adapters.
func adapters(names ...string) Options {
	o := fast
	o.LoRAs = names
	return o
}

func TestModelsListAdaptersWithTheirParent(t *testing.T) {
	n := listen(t, adapters("poet", "clerk=/models/clerk"))
	_, raw := get(t, n.URL()+"/v1/models")
	var list struct {
		Data []struct {
			ID, Object, Root string
			Parent           *string
			OwnedBy          string `json:"owned_by"`
			MaxModelLen      int    `json:"max_model_len"`
		}
	}
	if err := json.Unmarshal([]byte(raw), &list); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range list.Data {
		parent := "none"
		if m.Parent != nil {
			parent = *m.Parent
		}
		got = append(got, strings.Join([]string{m.ID, m.Root, parent, m.OwnedBy}, " "))
		if m.MaxModelLen != 4096 {
			t.Errorf("max_model_len of %s: %d", m.ID, m.MaxModelLen)
		}
	}
	want := []string{
		"penstock/tiny penstock/tiny none vllm",
		"poet /adapters/poet penstock/tiny vllm",
		"clerk /models/clerk penstock/tiny vllm",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestAdaptersAnswerForThemselvesWithCachesOfTheirOwn(t *testing.T) {
	n := listen(t, adapters("poet", "clerk"))
	url := n.URL() + "/v1/completions"
	texts := map[string]bool{}
	for _, model := range []string{"penstock/tiny", "poet", "clerk"} {
		request := map[string]any{"model": model, "prompt": strings.Repeat(question, 5), "max_tokens": 10, "ignore_eos": true}
		first, second := ask(t, url, request), ask(t, url, request)
		if first.Model != model || second.Model != model {
			t.Errorf("%s: the answer is from %s", model, first.Model)
		}
		if c := first.Usage.PromptTokensDetails.CachedTokens; c != 0 {
			t.Errorf("%s found %d tokens of another model", model, c)
		}
		if second.Usage.PromptTokensDetails.CachedTokens == 0 {
			t.Errorf("%s found nothing of its own", model)
		}
		texts[*first.Choices[0].Text] = true
	}
	if len(texts) != 3 {
		t.Errorf("three models say %d different things", len(texts))
	}
	status, raw := post(t, url, map[string]any{"model": "baker", "prompt": "x"})
	if b := parse(t, raw); status != 404 || b.Error.Type != "NotFoundError" {
		t.Errorf("an adapter that is not there: %d %s", status, raw)
	}
}

func TestAdaptersAreLoadedAndUnloaded(t *testing.T) {
	o := adapters("poet")
	o.LoadLoRA = true
	n := listen(t, o)
	load, unload := n.URL()+"/v1/load_lora_adapter", n.URL()+"/v1/unload_lora_adapter"
	clerk := map[string]any{"lora_name": "clerk", "lora_path": "/models/clerk"}
	inPlace := maps.Clone(clerk)
	inPlace["load_inplace"] = true
	for _, step := range []struct {
		what, url string
		body      any
		status    int
		says      string
	}{
		{"not yet there", n.URL() + "/v1/completions", map[string]any{"model": "clerk", "prompt": "x"}, 404, "does not exist"},
		{"load", load, clerk, 200, "Success: LoRA adapter 'clerk' added successfully."},
		{"load again", load, clerk, 400, "already been loaded"},
		{"load in place", load, inPlace, 200, "added successfully"},
		{"use", n.URL() + "/v1/completions", map[string]any{"model": "clerk", "prompt": "x"}, 200, `"model":"clerk"`},
		{"unload", unload, clerk, 200, "Success: LoRA adapter 'clerk' removed successfully."},
		{"unload again", unload, clerk, 404, "cannot be found"},
		{"use after that", n.URL() + "/v1/completions", map[string]any{"model": "clerk", "prompt": "x"}, 404, "does not exist"},
		{"no path", load, map[string]any{"lora_name": "x"}, 400, "must be provided"},
		{"no name", unload, map[string]any{}, 400, "must be provided"},
		{"the base model's name", load, map[string]any{"lora_name": "penstock/tiny", "lora_path": "/x"}, 400, "base model"},
	} {
		status, raw := post(t, step.url, step.body)
		if status != step.status || !strings.Contains(string(raw), step.says) {
			t.Errorf("%s: %d %s", step.what, status, raw)
		}
	}
	if status, _ := post(t, listen(t, adapters("poet")).URL()+"/v1/load_lora_adapter", clerk); status != 404 {
		t.Errorf("loading where it is not allowed: %d", status)
	}
}

func TestAdaptersWaitForASlotAndMetricsSayWhich(t *testing.T) {
	o := adapters("poet", "clerk")
	o.Speedup = 1
	n := listen(t, o)
	var all sync.WaitGroup
	run := func(model string, tokens int) {
		all.Go(func() {
			resp, err := send(t.Context(), n.URL()+"/v1/completions", map[string]any{"model": model, "prompt": question, "max_tokens": tokens, "ignore_eos": true})
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
		})
	}
	run("poet", 60)
	until(t, "the poet to run", func() bool { return n.Server.Stats().Running == 1 })
	run("clerk", 2)
	until(t, "the clerk to wait", func() bool { return n.Server.Stats().Waiting == 1 })
	_, page := get(t, n.URL()+"/metrics")
	got := series(t, page)
	id := `vllm:lora_requests_info{max_lora="1",running_lora_adapters="poet",waiting_lora_adapters="clerk"}`
	if v := got[id]; v < float64(time.Now().Add(-time.Minute).Unix()) {
		t.Errorf("%s = %v; there is %v", id, v, slices.Sorted(maps.Keys(got)))
	}
	all.Wait()
	// A series stays; the newest one is true.
	_, page = get(t, n.URL()+"/metrics")
	got = series(t, page)
	idle := `vllm:lora_requests_info{max_lora="1",running_lora_adapters="",waiting_lora_adapters=""}`
	if got[idle] <= got[id] || got[id] == 0 {
		t.Errorf("idle since %v, busy until %v", got[idle], got[id])
	}
}
