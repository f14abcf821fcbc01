package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func setFault(t testing.TB, n *Node, fault string) {
	t.Helper()
	if status, raw := post(t, n.URL()+"/sim/fault", fault); status != http.StatusOK {
		t.Fatalf("fault %s: %d %s", fault, status, raw)
	}
}

func mend(t testing.TB, n *Node, kind string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "DELETE", n.URL()+"/sim/fault?kind="+kind, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Fatalf("mending %q: %d", kind, resp.StatusCode)
	}
}

var small = map[string]any{"prompt": question, "max_tokens": 10, "ignore_eos": true}

func streamed() map[string]any {
	return map[string]any{"prompt": question, "max_tokens": 10, "ignore_eos": true, "stream": true}
}

// try posts to completions and returns what came before it went wrong, if it did.
func try(t testing.TB, n *Node, request any) (status int, raw []byte, err error) {
	t.Helper()
	resp, err := send(t.Context(), n.URL()+"/v1/completions", request)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	raw, err = io.ReadAll(resp.Body)
	return resp.StatusCode, raw, err
}

func TestFaultRefuse(t *testing.T) {
	n := listen(t, fast)
	setFault(t, n, `{"kind":"refuse","status":429,"count":2}`)
	for i, want := range []int{429, 429, 200} {
		if status, raw, _ := try(t, n, small); status != want {
			t.Errorf("request %d: %d, want %d: %s", i, status, want, raw)
		}
	}
	setFault(t, n, `{"kind":"refuse"}`)
	if status, _ := get(t, n.URL()+"/health"); status != 200 {
		t.Errorf("health under a fault of requests: %d", status)
	}
	setFault(t, n, `{"kind":"refuse","all":true}`)
	if status, _ := get(t, n.URL()+"/health"); status != 503 {
		t.Errorf("health under a fault of everything: %d", status)
	}
	mend(t, n, "refuse")
	if status, _, _ := try(t, n, small); status != 200 {
		t.Errorf("after mending: %d", status)
	}
}

func TestFaultHang(t *testing.T) {
	n := listen(t, fast)
	setFault(t, n, `{"kind":"hang","count":1}`)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := send(ctx, n.URL()+"/v1/completions", small); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a hanging engine answered: %v", err)
	}
	if status, _, _ := try(t, n, small); status != 200 {
		t.Errorf("the next request: %d", status)
	}
}

func TestFaultCut(t *testing.T) {
	n := listen(t, fast)
	setFault(t, n, `{"kind":"cut","tokens":4}`)
	_, raw, err := try(t, n, streamed())
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the stream ended with %v", err)
	}
	if got := bytes.Count(raw, []byte("\n\n")); got != 4 || !bytes.HasSuffix(raw, []byte("\n\n")) {
		t.Errorf("%d events before the cut, want 4 whole ones:\n%s", got, raw)
	}
	if _, _, err := try(t, n, small); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an unstreamed answer ended with %v", err)
	}
	mend(t, n, "")
	setFault(t, n, `{"kind":"cut-event","tokens":4,"count":1}`)
	_, raw, err = try(t, n, streamed())
	if got := bytes.Count(raw, []byte("\n\n")); err == nil || got != 4 || bytes.HasSuffix(raw, []byte("\n")) {
		t.Errorf("%d events before the cut (%v), want 4 and a part:\n%s", got, err, raw)
	}
	if _, raw, err := try(t, n, streamed()); err != nil || len(events(t, raw)) != 11 {
		t.Errorf("after the count ran out: %v", err)
	}
	setFault(t, n, `{"kind":"cut","tokens":1000}`)
	if _, raw, err := try(t, n, streamed()); err == nil || bytes.Contains(raw, []byte("[DONE]")) || bytes.Count(raw, []byte("\n\n")) != 10 {
		t.Errorf("a cut after the end: %v\n%s", err, raw)
	}
	until(t, "cut requests to leave the engine", func() bool { return n.Server.Stats().UsedBlocks == 0 })
}

func TestFaultGarbage(t *testing.T) {
	n := listen(t, fast)
	setFault(t, n, `{"kind":"garbage","count":1}`)
	if _, _, err := try(t, n, small); err == nil || !strings.Contains(err.Error(), "malformed HTTP") {
		t.Errorf("garbage: %v", err)
	}
	setFault(t, n, `{"kind":"garbage-body","count":1,"bytes":100}`)
	if status, raw, err := try(t, n, small); status != 200 || len(raw) != 100 || err != nil {
		t.Errorf("garbage body: %d, %d bytes, %v", status, len(raw), err)
	}
}

func TestFaultDelay(t *testing.T) {
	n := listen(t, fast)
	setFault(t, n, `{"kind":"delay","delay_ms":80,"count":1}`)
	start := time.Now()
	if status, _, _ := try(t, n, small); status != 200 || time.Since(start) < 80*time.Millisecond {
		t.Errorf("%d after %v", status, time.Since(start))
	}
}

func TestFaultSlow(t *testing.T) {
	n := listen(t, fast)
	// Busy time per step is the engine's own, whatever the machine does.
	step := func() time.Duration {
		before := n.Server.Stats()
		if status, _, _ := try(t, n, map[string]any{"prompt": question, "max_tokens": 50, "ignore_eos": true}); status != 200 {
			t.Fatal(status)
		}
		after := n.Server.Stats()
		return (after.Busy - before.Busy) / time.Duration(after.Steps-before.Steps)
	}
	plain := step()
	setFault(t, n, `{"kind":"slow","factor":10}`)
	if slow := step(); slow < 9*plain || slow > 11*plain {
		t.Errorf("a step takes %v, slowed ten times %v", plain, slow)
	}
	mend(t, n, "slow")
	if again := step(); again > 11*plain/10 {
		t.Errorf("a step takes %v, after mending %v", plain, again)
	}
}

func TestFaultCrash(t *testing.T) {
	n := listen(t, Options{Model: "penstock/tiny", TP: 1, MaxModelLen: 4096})
	resp, err := send(t.Context(), n.URL()+"/v1/completions", map[string]any{"prompt": question, "max_tokens": 4000, "ignore_eos": true, "stream": true})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	setFault(t, n, `{"kind":"crash"}`)
	if raw, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the stream outlived the crash: ...%s", raw[max(0, len(raw)-100):])
	}
	<-n.Done()
	if _, err := http.Get(n.URL() + "/health"); err == nil {
		t.Error("the engine still answers")
	}
	called := make(chan struct{})
	own, err := Listen("127.0.0.1:0", Config{Options: fast, OnCrash: func() { close(called) }})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	setFault(t, own, `{"kind":"crash"}`)
	<-called
}

func TestFaultMetrics(t *testing.T) {
	n := listen(t, fast)
	page := func() (int, string) { return get(t, n.URL()+"/metrics") }
	generated := func(text string) float64 {
		v, ok := series(t, text)[`vllm:generation_tokens_total{model_name="penstock/tiny",engine="0"}`]
		if !ok {
			t.Fatalf("no generation_tokens_total in:\n%s", text)
		}
		return v
	}
	setFault(t, n, `{"kind":"metrics-stale"}`)
	if _, _, err := try(t, n, small); err != nil {
		t.Fatal(err)
	}
	if _, text := page(); generated(text) != 0 {
		t.Errorf("stale page shows %v tokens", generated(text))
	}
	mend(t, n, "metrics-stale")
	if _, text := page(); generated(text) != 10 {
		t.Errorf("fresh page shows %v tokens, want 10", generated(text))
	}
	setFault(t, n, `{"kind":"metrics-missing","count":1}`)
	if status, _ := page(); status != http.StatusNotFound {
		t.Errorf("missing page: %d", status)
	}
	setFault(t, n, `{"kind":"metrics-empty","count":1}`)
	if status, text := page(); status != 200 || strings.Contains(text, "vllm:") {
		t.Errorf("empty page: %d %s", status, text)
	}
	setFault(t, n, `{"kind":"metrics-huge","bytes":3000000,"count":1}`)
	if _, text := page(); len(text) < 3_000_000 || generated(text) != 10 {
		t.Errorf("huge page has %d bytes", len(text))
	}
	if _, text := page(); len(text) > 100_000 {
		t.Errorf("plain page has %d bytes", len(text))
	}
}

func TestFaultsAreCheckedAndShown(t *testing.T) {
	n := listen(t, fast)
	for _, bad := range []string{`{"kind":"earthquake"}`, `{"kind":"refuse","status":200}`, `{"kind":"cut","tokens":-1}`, `{`} {
		if status, raw := post(t, n.URL()+"/sim/fault", bad); status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", bad, status, raw)
		}
	}
	setFault(t, n, `{"kind":"cut","tokens":7,"count":3}`)
	if _, state := get(t, n.URL()+"/sim/state"); !strings.Contains(state, `"faults":[{"kind":"cut","count":3,"tokens":7}]`) {
		t.Errorf("state: %s", state)
	}
}
