package server

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// developed is an engine at the speed of life, in developer mode.
func developed() Options {
	o := fast
	o.Speedup, o.DevMode = 1, true
	return o
}

// began starts a stream and returns once its first bytes are there.
func began(t *testing.T, n *Node, tokens int) *http.Response {
	t.Helper()
	resp, err := send(t.Context(), n.URL()+"/v1/completions", map[string]any{
		"prompt": strings.Repeat(question, 5), "max_tokens": tokens, "ignore_eos": true, "stream": true,
	}, "X-Request-Id", "long")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// readRest reads what is left of a stream.
func readRest(t *testing.T, resp *http.Response) string {
	t.Helper()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestSleepAndWake(t *testing.T) {
	n := listen(t, developed())
	state := func(want string) {
		t.Helper()
		_, page := get(t, n.URL()+"/metrics")
		got := series(t, page)
		for _, s := range []string{"awake", "weights_offloaded", "discard_all"} {
			if on := got[`vllm:engine_sleep_state{model_name="penstock/tiny",engine="0",sleep_state="`+s+`"}`] == 1; on != (s == want) {
				t.Errorf("%s is %v, want %s", s, on, want)
			}
		}
		if _, body := get(t, n.URL()+"/is_sleeping"); body != fmt.Sprintf(`{"is_sleeping":%v}`, want != "awake") {
			t.Errorf("is_sleeping: %s", body)
		}
	}
	state("awake")
	resp := began(t, n, 3900)
	if status, body := post(t, n.URL()+"/sleep?level=1", ""); status != 200 || len(body) != 0 {
		t.Errorf("sleep: %d %q", status, body)
	}
	if text := readRest(t, resp); !strings.Contains(text, `"finish_reason":"abort"`) || !strings.HasSuffix(text, "data: [DONE]\n\n") {
		t.Errorf("the stream ended with %s", text[max(0, len(text)-300):])
	}
	if s := n.Server.Stats(); s.CachedBlocks+s.UsedBlocks+s.Running != 0 {
		t.Errorf("asleep: %+v", s)
	}
	state("weights_offloaded")
	post(t, n.URL()+"/wake_up?tags=weights", "")
	state("weights_offloaded")

	answered := make(chan int)
	go func() {
		resp, err := send(t.Context(), n.URL()+"/v1/completions", map[string]any{"prompt": "x", "max_tokens": 1})
		if err != nil {
			answered <- 0
			return
		}
		resp.Body.Close()
		answered <- resp.StatusCode
	}()
	until(t, "the request to be held", func() bool { _, b := get(t, n.URL()+"/load"); return b == `{"server_load":1}` })
	if s := n.Server.Stats(); s.Running+s.Waiting != 0 {
		t.Errorf("a sleeping engine works: %+v", s)
	}
	post(t, n.URL()+"/wake_up?tags=kv_cache", "")
	if status := <-answered; status != 200 {
		t.Errorf("after waking up: %d", status)
	}
	state("awake")
	post(t, n.URL()+"/sleep?level=2", "")
	state("discard_all")
	post(t, n.URL()+"/wake_up", "")
	state("awake")
	for _, path := range []string{"/sleep?level=9", "/sleep?mode=snore", "/pause?mode=snore"} {
		object(t, n.URL()+path, "", 400)
	}
}

func TestASleepingEngineCanRefuse(t *testing.T) {
	o := developed()
	o.RefuseAsleep = true
	n := listen(t, o)
	post(t, n.URL()+"/sleep", "")
	if got := object(t, n.URL()+"/v1/completions", map[string]any{"prompt": "x"}, 503); at(got, "error", "type") != "ServiceUnavailableError" {
		t.Errorf("asleep: %v", got)
	}
	if status, _ := get(t, n.URL()+"/health"); status != 200 {
		t.Errorf("health: %d", status)
	}
	post(t, n.URL()+"/wake_up", "")
	object(t, n.URL()+"/v1/completions", map[string]any{"prompt": "x", "max_tokens": 1}, 200)
}

func TestPauseModes(t *testing.T) {
	n := listen(t, developed())
	paused := func(want bool) {
		t.Helper()
		if _, body := get(t, n.URL()+"/is_paused"); body != fmt.Sprintf(`{"is_paused":%v}`, want) {
			t.Errorf("is_paused: %s", body)
		}
	}
	t.Run("keep", func(t *testing.T) {
		resp := began(t, n, 40)
		object(t, n.URL()+"/pause?mode=keep", "", 200)
		before := n.Server.Stats()
		paused(true)
		if s := n.Server.Stats(); s.Running != 1 || s.Steps != before.Steps {
			t.Errorf("frozen: %+v, then %+v", before, s)
		}
		object(t, n.URL()+"/resume", "", 200)
		if text := readRest(t, resp); !strings.Contains(text, `"finish_reason":"length"`) {
			t.Errorf("after the pause: %s", text[max(0, len(text)-300):])
		}
	})
	t.Run("keep and sleep", func(t *testing.T) {
		resp := began(t, n, 40)
		post(t, n.URL()+"/sleep?mode=keep", "")
		if s := n.Server.Stats(); s.Waiting != 1 || s.UsedBlocks != 0 {
			t.Errorf("asleep: %+v", s)
		}
		post(t, n.URL()+"/wake_up", "")
		if text := readRest(t, resp); !strings.Contains(text, `"finish_reason":"length"`) {
			t.Errorf("after the sleep: %s", text[max(0, len(text)-300):])
		}
	})
	t.Run("wait", func(t *testing.T) {
		resp := began(t, n, 40)
		object(t, n.URL()+"/pause?mode=wait", "", 200)
		if s := n.Server.Stats(); s.Running+s.Waiting+s.CachedBlocks != 0 {
			t.Errorf("paused: %+v", s)
		}
		if text := readRest(t, resp); !strings.Contains(text, `"finish_reason":"length"`) {
			t.Errorf("what was waited for: %s", text[max(0, len(text)-300):])
		}
		object(t, n.URL()+"/resume", "", 200)
	})
	t.Run("abort", func(t *testing.T) {
		resp := began(t, n, 3900)
		object(t, n.URL()+"/pause?clear_cache=false", "", 200)
		if text := readRest(t, resp); !strings.Contains(text, `"finish_reason":"abort"`) || n.Server.Stats().CachedBlocks == 0 {
			t.Errorf("what was aborted: %s", text[max(0, len(text)-300):])
		}
		object(t, n.URL()+"/resume", "", 200)
	})
	paused(false)
}

func TestDevRoutes(t *testing.T) {
	n := listen(t, developed())
	for _, ids := range []map[string]any{{"request_ids": []string{"cmpl-long"}}, {"request_ids": []string{"long"}}, {}} {
		resp := began(t, n, 3900)
		object(t, n.URL()+"/abort_requests", map[string]any{"request_ids": []string{"other"}}, 200)
		object(t, n.URL()+"/abort_requests", ids, 200)
		if text := readRest(t, resp); !strings.Contains(text, `"finish_reason":"abort"`) {
			t.Errorf("%v: %s", ids, text[max(0, len(text)-300):])
		}
	}
	if n.Server.Stats().CachedBlocks == 0 {
		t.Fatal("nothing is cached")
	}
	post(t, n.URL()+"/reset_prefix_cache", "")
	if s := n.Server.Stats(); s.CachedBlocks != 0 {
		t.Errorf("after the reset: %+v", s)
	}
	_, info := get(t, n.URL()+"/server_info")
	if !strings.Contains(info, `"max_num_seqs":256`) {
		t.Errorf("server_info: %s", info)
	}
	plain := listen(t, fast)
	for _, path := range []string{"/is_sleeping", "/is_paused", "/server_info"} {
		if status, _ := get(t, plain.URL()+path); status != 404 {
			t.Errorf("%s without developer mode: %d", path, status)
		}
	}
	if status, body := get(t, plain.URL()+"/load"); status != 200 || body != `{"server_load":0}` {
		t.Errorf("load: %d %s", status, body)
	}
	if status, _ := get(t, plain.URL()+"/ping"); status != 200 {
		t.Errorf("ping: %d", status)
	}
}
