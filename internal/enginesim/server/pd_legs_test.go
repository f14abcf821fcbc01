package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// legs are the two requests of a dialect that sends both at once.
type legs struct {
	pair
	prefill, decode func(id int) map[string]any
}

// newLegs starts two engines and says how to speak with them.
func newLegs(t *testing.T, connector string, set func(role string, o *Options)) *legs {
	l := &legs{pair: *newPair(t, connector, set)}
	side, bootstrap := l.p.PDAddresses()
	host, port, _ := strings.Cut(side, ":")
	number, _ := strconv.Atoi(port)
	params := func(k map[string]any) func(id int) map[string]any {
		return func(id int) map[string]any {
			c := map[string]any{"transfer_id": fmt.Sprint("tx-", id)}
			maps.Copy(c, k)
			return map[string]any{"kv_transfer_params": c}
		}
	}
	switch connector {
	case NIXLPush:
		l.prefill = params(map[string]any{"do_remote_decode": true})
		l.decode = params(map[string]any{"do_remote_prefill": true, "remote_host": host, "remote_port": number})
	case Mooncake:
		var workers map[string]struct {
			EngineID string                       `json:"engine_id"`
			Address  map[string]map[string]string `json:"worker_addr"`
		}
		_, raw := get(t, "http://"+bootstrap+"/query")
		if err := json.Unmarshal([]byte(raw), &workers); err != nil || workers["0"].Address["0"]["0"] != "tcp://"+side {
			t.Fatalf("%v: %s", err, raw)
		}
		l.prefill = params(map[string]any{"do_remote_decode": true, "do_remote_prefill": false})
		l.decode = params(map[string]any{"do_remote_prefill": true, "remote_bootstrap_addr": "http://" + bootstrap, "remote_engine_id": workers["0"].EngineID})
	case Rooms:
		host, port, _ := strings.Cut(bootstrap, ":")
		number, _ := strconv.Atoi(port)
		both := func(id int) map[string]any {
			return map[string]any{"bootstrap_host": host, "bootstrap_port": number, "bootstrap_room": int64(1)<<62 + int64(id)}
		}
		l.prefill, l.decode = both, both
	}
	return l
}

// answer is what came of one leg.
type legAnswer struct {
	status int
	raw    []byte
	err    error
}

// start sends a leg.
func start(ctx context.Context, n *Node, limit int, prompt any, more map[string]any) <-chan legAnswer {
	q := request(prompt, limit)
	maps.Copy(q, more)
	c := make(chan legAnswer, 1)
	go func() {
		resp, err := send(ctx, n.URL()+"/v1/completions", q)
		if err != nil {
			c <- legAnswer{err: err}
			return
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		c <- legAnswer{resp.StatusCode, raw, err}
	}()
	return c
}

var concurrent = []string{NIXLPush, Mooncake, Rooms}

func TestBothLegsAtOnce(t *testing.T) {
	for _, connector := range concurrent {
		t.Run(connector, func(t *testing.T) {
			l := newLegs(t, connector, nil)
			limit := 1
			if connector == Rooms {
				limit = 20 // both legs are alike
			}
			for i, order := range [][]*Node{{l.p, l.d}, {l.d, l.p}} {
				prompt := passage(700, uint32(10+i))
				answers := map[*Node]<-chan legAnswer{}
				for _, n := range order {
					if n == l.p {
						answers[n] = start(t.Context(), n, limit, prompt, l.prefill(i))
					} else {
						answers[n] = start(t.Context(), n, 20, prompt, l.decode(i))
					}
					time.Sleep(10 * time.Millisecond)
				}
				p, d := <-answers[l.p], <-answers[l.d]
				if p.status != 200 || d.status != 200 {
					t.Fatalf("%d %s %v; %d %s %v", p.status, p.raw, p.err, d.status, d.raw, d.err)
				}
				if u := parse(t, d.raw).Usage; u.CompletionTokens != 20 || u.PromptTokensDetails.CachedTokens != 699 {
					t.Errorf("%+v", *u)
				}
				if u := parse(t, p.raw).Usage; u.CompletionTokens != 1 {
					t.Errorf("the prompt's leg: %+v", *u)
				}
				until(t, "the blocks to be freed", func() bool { return l.p.Server.Stats().Kept == 0 })
			}
			if counted(t, l.d, "pulled") != 2 || counted(t, l.d, "checks_failed") != 0 {
				t.Error(truth(t, l.d))
			}
		})
	}
}

func TestOneLegAlone(t *testing.T) {
	for _, connector := range concurrent {
		t.Run(connector, func(t *testing.T) {
			l := newLegs(t, connector, func(_ string, o *Options) { o.PD.Wait, o.PD.Lease = 100*time.Millisecond, 100*time.Millisecond })
			if a := <-start(t.Context(), l.d, 5, passage(300, 20), l.decode(1)); a.status != 500 {
				t.Errorf("without the prompt's leg: %d %s", a.status, a.raw)
			}
			want := http.StatusOK
			if connector == Rooms { // it answers when its KV has been fetched
				want = http.StatusInternalServerError
			}
			if a := <-start(t.Context(), l.p, 1, passage(300, 20), l.prefill(2)); a.status != want {
				t.Errorf("without the other leg: %d %s", a.status, a.raw)
			}
			until(t, "the lease to end", func() bool { return l.p.Server.Stats().Kept == 0 })
			// A wrong process, or none.
			if status, _, _ := wrongSource(l, connector); status != 500 {
				t.Errorf("of another process: %d", status)
			}
		})
	}
}

// wrongSource sends the second leg after the source has been restarted, or is
// gone.
func wrongSource(l *legs, connector string) (int, []byte, error) {
	more := l.decode(3)
	if connector == Mooncake {
		setFault(l.t, l.p, `{"kind":"pd-restart"}`)
	} else {
		l.p.Close()
	}
	a := <-start(l.t.Context(), l.d, 5, passage(300, 21), more)
	return a.status, a.raw, a.err
}

func TestALegThatIsAborted(t *testing.T) {
	for _, connector := range concurrent {
		t.Run(connector, func(t *testing.T) {
			l := newLegs(t, connector, nil)
			// The second one's client leaves while it waits: what the first one computes is
			// not wanted.
			ctx, cancel := context.WithCancel(t.Context())
			d := start(ctx, l.d, 5, passage(300, 30), l.decode(1))
			until(t, "it to wait", func() bool { return at(truth(t, l.p), "tickets", 0, "waiting") == 1.0 })
			cancel()
			<-d
			until(t, "the first one to be told", func() bool {
				l.p.Server.mu.Lock()
				defer l.p.Server.mu.Unlock()
				for _, k := range l.p.Server.pd.tickets {
					return k.unwanted
				}
				return false
			})
			if a := <-start(t.Context(), l.p, 1, passage(300, 30), l.prefill(1)); a.status != 200 {
				t.Errorf("%d %s", a.status, a.raw)
			}
			until(t, "the blocks to be freed", func() bool { return l.p.Server.Stats().Kept == 0 })

			// The first one's client leaves while it is computed: the second one learns of
			// it.
			setFault(t, l.p, `{"kind":"slow","factor":1e6}`)
			ctx, cancel = context.WithCancel(t.Context())
			p := start(ctx, l.p, 1, passage(300, 31), l.prefill(2))
			until(t, "it to run", func() bool { return l.p.Server.Stats().Running == 1 })
			d = start(t.Context(), l.d, 5, passage(300, 31), l.decode(2))
			until(t, "the second one to wait", func() bool { return at(truth(t, l.p), "tickets", 0, "waiting") == 1.0 })
			cancel()
			<-p
			if a := <-d; a.status != 500 || !strings.Contains(string(a.raw), "its request was aborted") {
				t.Errorf("%d %s %v", a.status, a.raw, a.err)
			}
		})
	}
}

func TestARoomIsForOneRequest(t *testing.T) {
	l := newLegs(t, Rooms, nil)
	first := start(t.Context(), l.p, 5, passage(300, 40), l.prefill(1))
	until(t, "it to be computed", func() bool { return l.p.Server.Stats().Kept == 1 })
	if a := <-start(t.Context(), l.p, 5, passage(300, 41), l.prefill(1)); a.status != 400 || !bytes.Contains(a.raw, []byte("under way")) {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if a := <-start(t.Context(), l.d, 5, passage(300, 40), l.decode(1)); a.status != 200 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if a := <-first; a.status != 200 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if a := <-start(t.Context(), l.p, 5, passage(300, 40), nil); a.status != 400 || !bytes.Contains(a.raw, []byte("without bootstrap room id")) {
		t.Errorf("%d %s", a.status, a.raw)
	}
	// SGLang's own route, and streams.
	native := func(id int) map[string]any {
		q := l.decode(id)
		q["text"], q["sampling_params"], q["stream"] = strings.Repeat("so it goes ", 60), map[string]any{"max_new_tokens": 5, "ignore_eos": true}, true
		return q
	}
	done := make(chan int, 1)
	go func() {
		resp, err := send(t.Context(), l.p.URL()+"/generate", native(7))
		if err != nil {
			done <- 0
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		done <- resp.StatusCode
	}()
	status, raw := post(t, l.d.URL()+"/generate", native(7))
	if p := <-done; p != 200 || status != 200 || bytes.Count(raw, []byte("data: {")) != 5 {
		t.Errorf("%d; %d %s", p, status, raw)
	}
	_, raw2 := get(t, l.p.URL()+"/server_info")
	if !strings.Contains(raw2, `"disaggregation_mode":"prefill"`) {
		t.Error(raw2)
	}
}

func TestBootstrapServers(t *testing.T) {
	l := newLegs(t, Rooms, func(_ string, o *Options) { o.PD.Wait = 200 * time.Millisecond })
	_, bootstrap := l.p.PDAddresses()
	base := "http://" + bootstrap
	for path, want := range map[string]string{
		"/health": "OK",
		"/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1": `"page_size":16`,
		"/route?prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=0&target_pp_rank=0":     `"rank_ip":"127.0.0.1"`,
	} {
		if status, raw := get(t, base+path); status != 200 || !strings.Contains(raw, want) {
			t.Errorf("%s: %d %s", path, status, raw)
		}
	}
	if status, _ := get(t, base+"/route?prefill_dp_rank=1"); status != 400 {
		t.Errorf("%d", status)
	}
	setFault(t, l.p, `{"kind":"pd-unregistered"}`)
	if a := <-start(t.Context(), l.d, 5, passage(300, 50), l.decode(1)); a.status != 500 || !bytes.Contains(a.raw, []byte("not fully registered")) {
		t.Errorf("%d %s", a.status, a.raw)
	}

	m := newLegs(t, Mooncake, nil)
	_, bootstrap = m.p.PDAddresses()
	if status, raw := post(t, "http://"+bootstrap+"/register", `{"engine_id":"other","dp_rank":1,"tp_rank":0,"pp_rank":0,"addr":"tcp://10.0.0.1:1"}`); status != 200 {
		t.Errorf("%d %s", status, raw)
	}
	if _, raw := get(t, "http://"+bootstrap+"/query"); !strings.Contains(raw, `"1":{"engine_id":"other","worker_addr":{"0":{"0":"tcp://10.0.0.1:1"}}}`) {
		t.Error(raw)
	}
}

func TestSharedStore(t *testing.T) {
	dir := t.TempDir()
	r := newPair(t, Shared, func(_ string, o *Options) { o.PD.SharedDir = dir })
	prompt := passage(500, 60)
	q := request(prompt, 5, "cache_hit_threshold", 0.8)
	a := ask(t, r.d.URL()+"/v1/completions", q)
	if *a.Choices[0].FinishReason != "cache_threshold" || a.Usage.CompletionTokens != 0 || a.Usage.PromptTokens != 500 {
		t.Errorf("%v %+v", *a.Choices[0].FinishReason, *a.Usage)
	}
	if evs := stream(t, r.d.URL()+"/v1/completions", request(prompt, 5, "cache_hit_threshold", 0.8)); len(evs) != 1 || *evs[0].Choices[0].FinishReason != "cache_threshold" {
		t.Errorf("%+v", evs)
	}
	ask(t, r.p.URL()+"/v1/completions", request(prompt, 1, "cache_hit_threshold", 0))
	if a = ask(t, r.d.URL()+"/v1/completions", q); *a.Choices[0].FinishReason != "length" || a.Usage.PromptTokensDetails.CachedTokens != 496 {
		t.Errorf("%v %+v", *a.Choices[0].FinishReason, *a.Usage)
	}
	// What is in the store is looked at.
	r.d.Server.dropCache(true)
	files, err := filepath.Glob(dir + "/*/*")
	if err != nil || len(files) != 31 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	bad := appendBlock(nil, 1, 2, 3)
	for _, f := range files {
		if err := os.WriteFile(f, bad, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if status, raw := post(t, r.d.URL()+"/v1/completions", q); status != 500 || counted(t, r.d, "checks_failed") != 1 {
		t.Errorf("%d %s", status, raw)
	}
}
