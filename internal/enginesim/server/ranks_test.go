package server

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

func startRanks(t *testing.T, shared bool, o Options) *Group {
	t.Helper()
	o.Model, o.TP, o.Speedup, o.KVEvents, o.KVReplay = "penstock/tiny", 1, 500, "127.0.0.1:0", "127.0.0.1:0"
	g, err := ListenRanks("127.0.0.1:0", 3, shared, Config{Options: o})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		<-g.Done()
	})
	return g
}

func portOf(t *testing.T, address string) int {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	n, errPort := strconv.Atoi(port)
	if err != nil || errPort != nil {
		t.Fatal(address, err, errPort)
	}
	return n
}

// sendTo posts a prompt for a rank, "" for any, and returns the answer.
func sendTo(t *testing.T, url, rank, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if rank != "" {
		req.Header.Set("X-data-parallel-rank", rank)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

const rankPrompt = `{"model":"penstock/tiny","prompt":"one two three four five six seven eight","max_tokens":1}`

func TestRanksAtPortsInARow(t *testing.T) {
	g := startRanks(t, false, Options{})
	events, replay := g.Nodes[0].KVAddresses()
	for i, n := range g.Nodes {
		e, r := n.KVAddresses()
		url := strings.TrimPrefix(g.URL(i), "http://")
		if portOf(t, url) != portOf(t, strings.TrimPrefix(g.URL(0), "http://"))+i || portOf(t, e) != portOf(t, events)+i || portOf(t, r) != portOf(t, replay)+i {
			t.Errorf("rank %d: %s, events %s, replays %s", i, url, e, r)
		}
		for range i + 1 {
			if code, body := sendTo(t, g.URL(i), "", "/v1/completions", rankPrompt); code != http.StatusOK {
				t.Fatal(code, body)
			}
		}
		if s := n.Server.Stats(); s.Finished[1]+s.Finished[2] != uint64(i+1) {
			t.Errorf("rank %d has answered %v", i, s.Finished)
		}
	}
}

func TestRanksBehindOnePort(t *testing.T) {
	g := startRanks(t, true, Options{LoadLoRA: true})
	for _, rank := range []string{"0", "1", "1", "2", "2", "2"} {
		if code, body := sendTo(t, g.URL(0), rank, "/v1/completions", rankPrompt); code != http.StatusOK {
			t.Fatal(code, body)
		}
	}
	for i, n := range g.Nodes {
		if s := n.Server.Stats(); s.Finished[1]+s.Finished[2] != uint64(i+1) {
			t.Errorf("rank %d has answered %v", i, s.Finished)
		}
	}
	for _, rank := range []string{"3", "-1", "x"} {
		if code, body := sendTo(t, g.URL(0), rank, "/v1/completions", rankPrompt); code != http.StatusBadRequest || !strings.Contains(body, "out of range") {
			t.Errorf("rank %s: %d %s", rank, code, body)
		}
	}
	for range 3 { // one each
		sendTo(t, g.URL(0), "", "/v1/completions", rankPrompt)
	}
	if code, body := sendTo(t, g.URL(0), "", "/v1/load_lora_adapter", `{"lora_name":"poet","lora_path":"/poet"}`); code != http.StatusOK {
		t.Fatal(code, body)
	}
	for i := range g.Nodes { // on every rank
		if code, body := sendTo(t, g.URL(0), strconv.Itoa(i), "/v1/completions", strings.Replace(rankPrompt, "penstock/tiny", "poet", 1)); code != http.StatusOK {
			t.Errorf("rank %d: %d %s", i, code, body)
		}
	}
	resp, err := http.Get(g.URL(0) + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for i := range g.Nodes {
		want := fmt.Sprintf("vllm:request_success_total{model_name=\"penstock/tiny\",engine=\"%d\",finished_reason=\"length\"} %d.0\n", i, i+3)
		if !strings.Contains(string(page), want) {
			t.Errorf("the metrics page does not have %s", want)
		}
	}
	if n := bytes.Count(page, []byte("# TYPE vllm:num_requests_running gauge\n")); n != 1 {
		t.Errorf("the type of a family is told %d times", n)
	}
}

func TestRanksThatCannotBe(t *testing.T) {
	if _, err := ListenRanks("127.0.0.1:0", 0, false, Config{}); err == nil {
		t.Error("no ranks at all")
	}
	if _, err := ListenRanks("127.0.0.1:65535", 2, false, Config{Options: Options{Model: "penstock/tiny", TP: 1}}); err == nil {
		t.Error("no port for the second rank")
	}
}
