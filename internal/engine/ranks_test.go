package engine

import (
	"context"
	"errors"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/fleet"
)

func TestRankURL(t *testing.T) {
	for _, c := range []struct {
		base string
		rank int
		want string
	}{
		{"http://h:8000", 0, "http://h:8000"},
		{"http://h:8000", 3, "http://h:8003"},
		{"http://[::1]:8000/a", 1, "http://[::1]:8001/a"},
		{"https://h", 1, "https://h:444"},
		{"http://h", 2, "http://h:82"},
		{"http://h:65535", 1, ""},
	} {
		if got, err := RankURL(c.base, c.rank); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s, rank %d: %q (%v), want %q", c.base, c.rank, got, err, c.want)
		}
	}
}

func TestCheckRanks(t *testing.T) {
	for _, c := range []struct {
		ranks int
		mode  string
		want  string // empty: fine
	}{
		{0, "", ""},
		{0, RanksAuto, ""},
		{1, "", ""},
		{8, RanksByPort, ""},
		{1024, RanksByHeader, ""},
		{0, RanksByPort, "without ranks"},
		{-1, "", "between 1 and 1024"},
		{1025, RanksByHeader, "between 1 and 1024"},
		{8, "host", "must be auto, port or header"},
		{500, "", "no port for rank 499"},
	} {
		err := CheckRanks("http://h:65100", c.ranks, c.mode)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d ranks by %q: %v, want %q", c.ranks, c.mode, err, c.want)
		}
	}
}

const rankedPage = `vllm:num_requests_running{engine="0",model_name="m"} 3
vllm:num_requests_running{engine="1",model_name="m"} 5
vllm:num_requests_waiting{engine="1",model_name="m"} 2
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="100"} 1
`

func TestAReadingOfOneRankIsOnlyIts(t *testing.T) {
	d := mustDialect("vllm")
	if all, ok := d.Read([]byte(rankedPage)); !ok || all.Running != 8 {
		t.Errorf("all ranks: %+v", all)
	}
	one, ok := d.ReadRank([]byte(rankedPage), 1)
	if !ok || one.Running != 5 || one.Waiting != 2 || one.KVBlocks != 100 || one.Missing != fleet.KnownKVUsage {
		t.Errorf("rank 1: %+v", one)
	}
	if two, ok := d.ReadRank([]byte(rankedPage), 2); ok || two.Known != 0 {
		t.Errorf("a rank that the page does not tell of: %+v", two)
	}
	unlabelled := []byte("vllm:num_requests_running{model_name=\"m\"} 8\n")
	if sum, ok := d.ReadRank(unlabelled, 0); ok || sum.Known != 0 {
		t.Errorf("what all ranks say together is taken for one's: %+v", sum)
	}
}

// TestScrapeOfARankThatIsNotTold: the page is there, so the engine is fit, and no
// gauge of the rank is known.
func TestScrapeOfARankThatIsNotTold(t *testing.T) {
	c := newClient(t)
	sum := pages(t, map[string]string{"/metrics": "vllm:num_requests_running{model_name=\"m\"} 8\n"})
	if r, failure, _, err := c.ScrapeRank(t.Context(), mustDialect("vllm"), sum, 0, nil); err != nil || failure != fleet.FailNone || r.Known != 0 || r.Missing != fleet.AllGauges {
		t.Errorf("%+v, %v, %v", r, failure, err)
	}
	if _, failure, _, err := c.ScrapeRank(t.Context(), mustDialect("vllm"), closedPort(t), 0, nil); failure != fleet.FailConnect || err == nil {
		t.Errorf("nobody there: %v, %v", failure, err)
	}
	damaged := pages(t, map[string]string{"/metrics": "nothing\n"})
	if _, failure, _, err := c.ScrapeRank(t.Context(), mustDialect("vllm"), damaged, 0, nil); failure != fleet.FailGarbage || !errors.Is(err, ErrNoGauges) {
		t.Errorf("a page of nothing: %v, %v", failure, err)
	}
}

func simulatedRanks(t *testing.T, shared bool) string {
	t.Helper()
	g, err := server.ListenRanks("127.0.0.1:0", 2, shared, server.Config{Options: server.Options{Model: "penstock/tiny", TP: 1, Speedup: 100}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g.URL(0)
}

func TestFindRankMode(t *testing.T) {
	c := newClient(t)
	if m, err := c.FindRankMode(t.Context(), simulatedRanks(t, false)); err != nil || m.Mode != RanksByPort || !m.Sure {
		t.Errorf("a port for each: %+v, %v", m, err)
	}
	if m, err := c.FindRankMode(t.Context(), simulatedRanks(t, true)); err != nil || m.Mode != RanksByHeader || !m.Sure {
		t.Errorf("one port for all: %+v, %v", m, err)
	}
	if m, err := c.FindRankMode(t.Context(), closedPort(t)); err == nil {
		t.Errorf("nobody there: %+v", m)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if m, err := c.FindRankMode(gone, closedPort(t)); err == nil {
		t.Errorf("nobody waits: %+v", m)
	}
}
