package server

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"penstock.dev/penstock/internal/enginesim"
)

// inBubble runs test with two engines in a bubble of its own, in which time
// passes only while all wait. They speak over pipes.
func inBubble(t *testing.T, o Options, test func(t *testing.T, p, d *Server)) {
	synctest.Test(t, func(t *testing.T) {
		o.Model, o.TP, o.MaxModelLen = "penstock/tiny", 1, 8192
		o.PD.Connector = NIXL
		ctx, stop := context.WithCancel(t.Context())
		var all sync.WaitGroup
		two := [2]*Server{}
		for i := range two {
			s, err := New(Config{Options: o})
			if err != nil {
				t.Fatal(err)
			}
			s.pd.port = 5600
			two[i] = s
			all.Go(func() { s.Run(ctx) })
		}
		two[1].pd.dial = func(context.Context, string) (net.Conn, error) {
			near, far := net.Pipe()
			all.Go(func() { _ = two[0].ServeTransfers(far) })
			return near, nil
		}
		test(t, two[0], two[1])
		synctest.Wait()
		for _, s := range two {
			if st := s.Stats(); st.Kept != 0 || st.UsedBlocks != 0 || st.Waiting != 0 {
				t.Errorf("at the end: %+v", st)
			}
		}
		stop()
		all.Wait()
	})
}

// do sends one completion and waits for its end.
func do(t *testing.T, ctx context.Context, s *Server, q map[string]any) (int, map[string]any) { //nolint:revive // context-as-argument: the test is first everywhere
	t.Helper()
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/completions", strings.NewReader(string(appendJSON(nil, q))))
	w := httptest.NewRecorder()
	func() {
		defer func() { _ = recover() }() // an answer that is broken off
		s.Handler().ServeHTTP(w, r)
	}()
	var m map[string]any
	_ = json.Unmarshal(w.Body.Bytes(), &m)
	return w.Code, m
}

func keepFor(t *testing.T, p *Server, prompt []uint32) map[string]any {
	t.Helper()
	_, m := do(t, t.Context(), p, request(prompt, 1, "kv_transfer_params", map[string]any{"do_remote_decode": true}))
	k, _ := m["kv_transfer_params"].(map[string]any)
	if k == nil {
		t.Fatalf("%v", m)
	}
	return k
}

func TestLeaseEndsOnTime(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, p, d *Server) {
		k := keepFor(t, p, passage(320, 1))
		kept := time.Now()
		if left := k["remote_blocks_expiry_time"].(float64) - p.pd.clock(kept); left < 29.9 || left > 30 {
			t.Errorf("a lease of %v s", left)
		}
		time.Sleep(29 * time.Second)
		if synctest.Wait(); p.Stats().UsedBlocks != 20 {
			t.Errorf("%d blocks are held during the lease, want 20", p.Stats().UsedBlocks)
		}
		time.Sleep(2 * time.Second)
		if synctest.Wait(); p.Stats().UsedBlocks != 0 || p.pd.counts.Expired != 1 {
			t.Errorf("%d blocks are held after it", p.Stats().UsedBlocks)
		}
		if status, _ := do(t, t.Context(), d, request(passage(320, 1), 2, "kv_transfer_params", k)); status != 500 {
			t.Errorf("%d", status)
		}
	})
}

func TestHeartbeatsHoldALease(t *testing.T) {
	// The other engine has no room for two minutes.
	inBubble(t, Options{KVTokens: 8192 + 64}, func(t *testing.T, p, d *Server) {
		k := keepFor(t, p, passage(320, 1))
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		d.setSlow(1e6)
		all.Go(func() { do(t, ctx, d, request(passage(8000, 2), 100)) })
		synctest.Wait()
		all.Go(func() {
			if status, m := do(t, t.Context(), d, request(passage(320, 1), 2, "kv_transfer_params", k)); status != 200 {
				t.Errorf("%d %v", status, m)
			}
		})
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if d.Stats().Waiting != 1 || p.Stats().Kept != 1 || p.pd.counts.Heartbeats != 23 && p.pd.counts.Heartbeats != 24 {
			t.Errorf("%d wait, %d kept after %d heartbeats, want one every 5 s", d.Stats().Waiting, p.Stats().Kept, p.pd.counts.Heartbeats)
		}
		cancel()
		d.setSlow(1)
		all.Wait()
	})
}

func TestTransfersShareALink(t *testing.T) {
	const tokens = 4096
	o := Options{KVTokens: 64 * 1024, PD: PDOptions{LinkLatency: time.Millisecond}}
	o.Model = "penstock/tiny"
	v, err := o.Serving()
	if err != nil {
		t.Fatal(err)
	}
	each := 2 * time.Second
	o.PD.Link = v.Shape.KVBytes(2) * tokens / each.Seconds()
	for _, speedup := range []float64{1, 10} {
		o.Speedup = speedup
		inBubble(t, o, func(t *testing.T, p, d *Server) {
			var all sync.WaitGroup
			began := time.Now()
			for i := range uint32(3) {
				k := keepFor(t, p, passage(tokens, i))
				if i == 0 {
					began = time.Now()
				}
				all.Go(func() { do(t, t.Context(), d, request(passage(tokens, i), 1, "kv_transfer_params", k)) })
			}
			all.Wait()
			want := time.Duration(3 * float64(each) / speedup)
			if took := time.Since(began); took < want || took > want*11/10 {
				t.Errorf("three transfers of %v each took %v at a speedup of %v", each, took, speedup)
			}
			if got := p.pd.counts.BytesOut; got != 3*tokens*v.Shape.KVBytes(2) {
				t.Errorf("%v bytes", got)
			}
		})
	}
}

func TestChecksTellWhatIsWrong(t *testing.T) {
	keys := []uint64{7, 8}
	good := appendBlock(appendBlock(nil, 7, 5, 0), 8, 5, 1)
	if len(good) != 2*blockBytes {
		t.Fatalf("%d bytes", len(good))
	}
	for want, b := range map[string][]byte{
		"":                   good,
		"other tokens":       appendBlock(appendBlock(nil, 7, 5, 0), 9, 5, 1),
		"another process":    appendBlock(appendBlock(nil, 7, 5, 0), 8, 6, 1),
		"another one of the": appendBlock(appendBlock(nil, 7, 5, 0), 8, 5, 2),
		"damaged":            append(good[:len(good)-1:len(good)-1], good[len(good)-1]+1),
		"EOF":                good[:100],
	} {
		err := readBlocks(strings.NewReader(string(b)), keys, 5, 0)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if enginesim.BlockTokens != 16 {
		t.Error("pages of another size")
	}
}

func TestRemoteBlocks(t *testing.T) {
	for text, want := range map[string]string{
		`[[1,2,3]]`: "[1 2 3]", `["b1","b22"]`: "[1 22]", `[["4","5"]]`: "[4 5]", `[]`: "[]", `null`: "[]", `[[]]`: "[]",
		`[[1],[2]]`: "error", `[["x"]]`: "error", `{}`: "error", `[[null]]`: "error",
	} {
		ids, err := blockNumbers(json.RawMessage(text))
		got := strings.ReplaceAll(string(appendJSON(nil, ids)), ",", " ")
		if ids == nil {
			got = "[]"
		}
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

// A prompt whose client leaves just as it has been computed is kept for nobody.
func TestLeavingAtTheEndKeepsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{Model: "penstock/tiny", TP: 1, MaxModelLen: 8192}
		o.PD.Connector = NIXL
		s, err := New(Config{Options: o}) // not run: what has happened is found out when its client has left
		if err != nil {
			t.Fatal(err)
		}
		tokens := passage(320, 1)
		chain, _ := enginesim.Chain(nil, startOf("", ""), tokens)
		c, err := s.submit("left", []choice{{
			prompt: len(tokens), max: 1, tokens: tokens, move: &move{keep: true},
			answer: answer{chain: chain, ends: []int{1}, finish: enginesim.FinishLength},
		}})
		if err != nil {
			t.Fatal(err)
		}
		s.advance() // its step begins
		time.Sleep(time.Minute)
		s.drop(c)
		s.advance()
		if st := s.Stats(); st.Kept != 0 || st.UsedBlocks != 0 || st.Steps == 0 {
			t.Errorf("%+v", st)
		}
	})
}
