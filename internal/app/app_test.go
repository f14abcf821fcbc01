package app

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
)

// start runs an app before one simulated engine that streams about 70 tokens a
// second.
func start(t *testing.T, o Options) *App {
	t.Helper()
	sim, err := Simulate(server.Options{Seed: 1}, Fleet{Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() }) // a test may have cut its streams
	o.Config = config.Default()
	o.Config.Pools = []config.Pool{sim.Pool}
	o.Listen, o.AdminListen, o.Version, o.Log = "127.0.0.1:0", "127.0.0.1:0", "test", slog.New(slog.DiscardHandler)
	a, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// stream begins an answer of so many tokens and returns once its first event
// is there.
func stream(t *testing.T, a *App, tokens int) (*bufio.Reader, io.Closer) {
	t.Helper()
	body := fmt.Sprintf(`{"model":"Qwen/Qwen3-32B","prompt":"x","max_tokens":%d,"ignore_eos":true,"stream":true}`, tokens)
	resp, err := http.Post(a.URL()+"/v1/completions", "application/json", strings.NewReader(body))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v %v", resp, err)
	}
	r := bufio.NewReader(resp.Body)
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return r, resp.Body
}

func status(t *testing.T, url string) int {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func TestDrainFinishesOpenStreams(t *testing.T) {
	a := start(t, Options{DrainDelay: 300 * time.Millisecond, DrainTimeout: 20 * time.Second})
	if got := status(t, a.URL()+"/readyz"); got != http.StatusOK {
		t.Fatalf("ready: %d", got)
	}
	r, body := stream(t, a, 60)
	defer body.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Wait(ctx) }()
	cancel()
	// During the delay the port is open, serving, and not ready.
	deadline := time.Now().Add(5 * time.Second)
	for status(t, a.URL()+"/readyz") != http.StatusServiceUnavailable {
		if time.Now().After(deadline) {
			t.Fatal("never said not ready")
		}
	}
	rest, err := io.ReadAll(r)
	if err != nil || !strings.HasSuffix(string(rest), "data: [DONE]\n\n") || strings.Count(string(rest), "data: ") < 60 {
		t.Errorf("the open stream was not finished: %v, %d events", err, strings.Count(string(rest), "data: "))
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := status(t, a.URL()+"/readyz"); got != 0 {
		t.Errorf("the port answers %d after the end", got)
	}
}

func TestDrainTimeoutCutsWithAWord(t *testing.T) {
	a := start(t, Options{DrainTimeout: 100 * time.Millisecond})
	r, body := stream(t, a, 100_000)
	defer body.Close()
	done := make(chan error, 1)
	go func() { done <- a.Close() }()
	rest, err := io.ReadAll(r)
	if err != nil || !strings.Contains(string(rest), `"code":"stream_broken"`) {
		t.Errorf("the cut stream ended without a word: %v, %.200s", err, rest[max(len(rest)-200, 0):])
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestStartRefusesWhatCannotBe(t *testing.T) {
	a := start(t, Options{DrainTimeout: time.Second})
	defer func() { _ = a.Close() }()
	o := Options{
		Config: config.Default(), AdminListen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler), DrainTimeout: time.Second,
		Listen: strings.TrimPrefix(a.URL(), "http://"),
	}
	if _, err := Start(o); err == nil || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("a port in use: %v", err)
	}
	o.Listen, o.AdminListen = "127.0.0.1:0", "0.0.0.0:0"
	if _, err := Start(o); err == nil || !strings.Contains(err.Error(), "--admin-token") {
		t.Errorf("an open admin port: %v", err)
	}
	o.AdminListen, o.Journal = "127.0.0.1:0", t.TempDir()+"/no/such/dir"
	o.Config.Pools = a.o.Config.Pools
	if _, err := Start(o); err == nil || !strings.Contains(err.Error(), "journal") {
		t.Errorf("a journal that cannot be written: %v", err)
	}
}
