package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// pair is two engines, of which one computes prompts for the other.
type pair struct {
	t    *testing.T
	p, d *Node
}

// newPair starts both; set changes the options of either.
func newPair(t *testing.T, connector string, set func(role string, o *Options)) *pair {
	t.Helper()
	one := func(role string) *Node {
		o := fast
		o.PD = PDOptions{Role: role, Connector: connector}
		if connector == Rooms {
			o.Engine = SGLang
		}
		if set != nil {
			set(role, &o)
		}
		return listen(t, o)
	}
	r := &pair{t: t, p: one(RolePrefill), d: one(RoleDecode)}
	t.Cleanup(func() { r.clean() })
	return r
}

// clean wants nothing to be held at the end, by any engine that is left.
func (r *pair) clean() {
	for _, n := range []*Node{r.p, r.d} {
		select {
		case <-n.Done():
			continue
		default:
		}
		if st := n.Server.Stats(); st.Running+st.Waiting > 0 {
			r.t.Errorf("%d run and %d wait at the end", st.Running, st.Waiting)
		}
		n.Server.mu.Lock()
		p := n.Server.pd
		if len(p.taken) > 0 || p.incoming != 0 || p.reserved != 0 || p.arriving != 0 {
			r.t.Errorf("at the end: %d blocks kept, %d incoming, %d blocks reserved for %d", len(p.taken), p.incoming, p.reserved, p.arriving)
		}
		if n.Server.engine.Stats().Kept != 0 {
			r.t.Errorf("the engine keeps %d at the end", n.Server.engine.Stats().Kept)
		}
		n.Server.mu.Unlock()
	}
}

// passage is a prompt of n tokens.
func passage(n int, seed uint32) []uint32 {
	list := make([]uint32, n)
	for i := range list {
		list[i] = 1000 + (uint32(i)*7+seed*13)%5000
	}
	return list
}

func request(prompt any, limit int, more ...any) map[string]any {
	q := map[string]any{"prompt": prompt, "max_tokens": limit, "ignore_eos": true}
	for i := 0; i+1 < len(more); i += 2 {
		q[more[i].(string)] = more[i+1]
	}
	return q
}

// first has the prompt's leg computed and returns what it says for the next one.
func (r *pair) first(prompt any) map[string]any {
	r.t.Helper()
	a := object(r.t, r.p.URL()+"/v1/completions", request(prompt, 1, "kv_transfer_params", map[string]any{
		"do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": nil, "remote_block_ids": nil, "remote_host": nil, "remote_port": nil,
	}), http.StatusOK)
	k, _ := a["kv_transfer_params"].(map[string]any)
	if k == nil {
		r.t.Fatalf("no kv_transfer_params: %v", a)
	}
	return k
}

// truth reads /sim/pd.
func truth(t testing.TB, n *Node) map[string]any {
	t.Helper()
	status, raw := get(t, n.URL()+"/sim/pd")
	var m map[string]any
	if err := json.Unmarshal([]byte(raw), &m); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s", status, raw)
	}
	return m
}

func counted(t testing.TB, n *Node, what string) float64 {
	t.Helper()
	v, _ := at(truth(t, n), "counts", what).(float64)
	return v
}

func TestPull(t *testing.T) {
	for name, form := range map[string]string{"numbers": BlockInts, "names": BlockStrings} {
		t.Run(name, func(t *testing.T) {
			r := newPair(t, NIXL, func(_ string, o *Options) { o.PD.BlockIDs = form })
			prompt := passage(1000, 1)
			whole := ask(t, r.p.URL()+"/v1/completions", request(prompt, 20))
			r.p.Server.dropCache(true)
			k := r.first(prompt)
			if k["do_remote_prefill"] != true || k["do_remote_decode"] != false || k["remote_num_tokens"] != 1000.0 || k["tp_size"] != 1.0 {
				t.Errorf("%v", k)
			}
			ids, _ := at(k, "remote_block_ids", 0).([]any)
			if _, text := ids[0].(string); len(ids) != 63 || text != (form == BlockStrings) {
				t.Errorf("%d blocks, the first is %v", len(ids), ids[0])
			}
			if r.p.Server.Stats().Kept != 1 {
				t.Error("nothing is kept")
			}
			got := ask(t, r.d.URL()+"/v1/completions", request(prompt, 20, "kv_transfer_params", k))
			if *got.Choices[0].Text != *whole.Choices[0].Text {
				t.Errorf("two legs say %q, one %q", *got.Choices[0].Text, *whole.Choices[0].Text)
			}
			if u := got.Usage; u.PromptTokens != 1000 || u.PromptTokensDetails.CachedTokens != 999 || u.CompletionTokens != 20 {
				t.Errorf("%+v", *u)
			}
			d := truth(t, r.d)
			rec, _ := at(d, "records", 0).(map[string]any)
			if want := at(d, "bytes_per_token").(float64) * 1000; rec["bytes"] != want || rec["state"] != "done" {
				t.Errorf("%v, want %v bytes", rec, want)
			}
			out, _ := at(truth(t, r.p), "records", 0).(map[string]any)
			if out["bytes"] != rec["bytes"] || out["side"] != "out" || out["state"] != "done" || out["peer"] != d["engine_id"] {
				t.Errorf("%v at the source", out)
			}
			// All of it is cached there now, so that nothing is moved; a prompt that goes
			// on is moved in part.
			ask(t, r.d.URL()+"/v1/completions", request(prompt, 20, "kv_transfer_params", r.first(prompt)))
			until(t, "the blocks to be freed", func() bool { return r.p.Server.Stats().Kept == 0 })
			longer := append(passage(1000, 1), passage(200, 9)...)
			ask(t, r.d.URL()+"/v1/completions", request(longer, 5, "kv_transfer_params", r.first(longer)))
			rec, _ = at(truth(t, r.d), "records", 2).(map[string]any)
			if rec["tokens"] != 208.0 || rec["blocks"] != 13.0 { // 62 blocks were full
				t.Errorf("%v", rec)
			}
			if n := counted(t, r.d, "pulled"); n != 2 {
				t.Errorf("%v pulled", n)
			}
		})
	}
}

// Faults of the matrix that end in an error, or in the prompt being computed
// again, and what is left behind then.
func TestPullFails(t *testing.T) {
	for name, c := range map[string]struct {
		break_ func(r *pair, k map[string]any)
		want   string
		wrong  bool
	}{
		"wrong block":  {func(r *pair, _ map[string]any) { setFault(r.t, r.p, `{"kind":"pd-wrong-block"}`) }, "other tokens", true},
		"incompatible": {func(r *pair, _ map[string]any) { setFault(r.t, r.p, `{"kind":"pd-incompatible"}`) }, "connector nixl 12 here, connector nixl 11 there", false},
		"side gone":    {func(r *pair, _ map[string]any) { setFault(r.t, r.p, `{"kind":"pd-side-gone"}`) }, "side channel", false},
		"restarted":    {func(r *pair, _ map[string]any) { setFault(r.t, r.p, `{"kind":"pd-restart"}`) }, "stale incarnation", false},
		"stale blocks": {func(r *pair, _ map[string]any) {
			setFault(r.t, r.p, `{"kind":"pd-restart"}`)
			setFault(r.t, r.p, `{"kind":"pd-stale"}`)
		}, "not what", true},
		"killed":        {func(r *pair, _ map[string]any) { setFault(r.t, r.p, `{"kind":"crash"}`); <-r.p.Done() }, "side channel", false},
		"lease is over": {func(r *pair, _ map[string]any) { r.expire() }, "its lease has ended", false},
		"dropped":       {func(r *pair, _ map[string]any) { r.p.Server.dropCache(true) }, "nothing is kept", false},
		"other prompt":  {func(_ *pair, k map[string]any) { k["remote_block_ids"] = []any{[]any{1, 2}} }, "2 remote blocks", true},
	} {
		for _, policy := range []string{LoadFail, LoadRecompute} {
			t.Run(name+", "+policy, func(t *testing.T) {
				r := newPair(t, NIXL, func(_ string, o *Options) { o.PD.LoadFailure = policy })
				prompt := passage(500, 2)
				k := r.first(prompt)
				c.break_(r, k)
				q := request(prompt, 5, "kv_transfer_params", k)
				status, raw := post(t, r.d.URL()+"/v1/completions", q)
				if policy == LoadRecompute && !c.wrong {
					if status != http.StatusOK || parse(t, raw).Usage.PromptTokensDetails.CachedTokens != 0 || counted(t, r.d, "recomputed") != 1 {
						t.Errorf("%d %s", status, raw)
					}
				} else if status != 500 || c.want != "not what" && !strings.Contains(string(raw), c.want) {
					t.Errorf("%d %s, want 500 and %q", status, raw, c.want)
				}
				if got := counted(t, r.d, "checks_failed"); (got == 1) != c.wrong {
					t.Errorf("%v checks failed", got)
				}
				if policy == LoadFail {
					q["stream"] = true
					status, raw := post(t, r.d.URL()+"/v1/completions", q)
					if status != 200 || !bytes.HasPrefix(raw, []byte(`data: {"error":`)) || !bytes.HasSuffix(raw, []byte("data: [DONE]\n\n")) {
						t.Errorf("a stream: %d %s", status, raw)
					}
				}
				r.expire()
			})
		}
	}
}

// expire ends all leases now.
func (r *pair) expire() {
	select {
	case <-r.p.Done():
		return
	default:
	}
	s := r.p.Server
	s.mu.Lock()
	for _, t := range s.pd.tickets {
		t.until = time.Now()
	}
	s.mu.Unlock()
	nudge(s.wake)
	until(r.t, "the leases to end", func() bool { return s.Stats().Kept == 0 })
}

func TestLeaseAndHeartbeat(t *testing.T) {
	r := newPair(t, NIXL, func(_ string, o *Options) { o.PD.Lease = 300 * time.Millisecond })
	// Nobody comes.
	r.first(passage(300, 3))
	until(t, "the lease to end", func() bool { return r.p.Server.Stats().Kept == 0 })
	if counted(t, r.p, "expired") != 1 {
		t.Error("not counted as expired")
	}
	// The link takes longer than the lease, and heartbeats extend it.
	slow := func() int {
		k := r.first(passage(300, 4))
		r.p.Server.mu.Lock()
		r.p.Server.pd.free = time.Now().Add(800 * time.Millisecond) // others are on the link
		r.p.Server.mu.Unlock()
		status, _ := post(t, r.d.URL()+"/v1/completions", request(passage(300, 4), 5, "kv_transfer_params", k))
		r.d.Server.dropCache(true)
		return status
	}
	if status := slow(); status != 200 || counted(t, r.p, "heartbeats") < 3 {
		t.Errorf("%d with %v heartbeats", status, counted(t, r.p, "heartbeats"))
	}
	setFault(t, r.d, `{"kind":"pd-no-heartbeat"}`)
	if status := slow(); status != 500 {
		t.Errorf("%d without heartbeats", status)
	}
}

func TestAbortedBeforeItsPull(t *testing.T) {
	r := newPair(t, NIXL, nil)
	k := r.first(passage(300, 5))
	setFault(t, r.p, `{"kind":"pd-hang"}`)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := send(ctx, r.d.URL()+"/v1/completions", request(passage(300, 5), 5, "kv_transfer_params", k)); err == nil {
		t.Error("a transfer that hangs has ended")
	}
	until(t, "an empty receive to free the blocks", func() bool { return r.p.Server.Stats().Kept == 0 })
	if counted(t, r.p, "freed") != 1 {
		t.Error("not counted as freed")
	}
	// Without a client that gives up, the engine does.
	r = newPair(t, NIXL, func(_ string, o *Options) { o.PD.Wait = 50 * time.Millisecond })
	setFault(t, r.p, `{"kind":"pd-hang"}`)
	status, raw := post(t, r.d.URL()+"/v1/completions", request(passage(300, 5), 5, "kv_transfer_params", r.first(passage(300, 5))))
	if status != 500 || !strings.Contains(string(raw), "no transfer within") {
		t.Errorf("%d %s", status, raw)
	}
	r.expire()
}

func TestEnginesThatDie(t *testing.T) {
	prompt := passage(300, 6)
	t.Run("before the answer of the prompt's leg", func(t *testing.T) {
		r := newPair(t, NIXL, nil)
		setFault(t, r.p, `{"kind":"pd-die-before"}`)
		if _, err := send(t.Context(), r.p.URL()+"/v1/completions", request(prompt, 1, "kv_transfer_params", map[string]any{"do_remote_decode": true})); err == nil {
			t.Error("it answered")
		}
		<-r.p.Done()
	})
	t.Run("after it", func(t *testing.T) {
		r := newPair(t, NIXL, nil)
		setFault(t, r.p, `{"kind":"pd-die-after"}`)
		k := r.first(prompt)
		<-r.p.Done()
		if status, raw := post(t, r.d.URL()+"/v1/completions", request(prompt, 5, "kv_transfer_params", k)); status != 500 {
			t.Errorf("%d %s", status, raw)
		}
	})
	for _, kind := range []string{"pd-die-before-pull", "pd-die-after-pull"} {
		t.Run(kind, func(t *testing.T) {
			r := newPair(t, NIXL, func(_ string, o *Options) { o.PD.Lease = 300 * time.Millisecond })
			setFault(t, r.d, fmt.Sprintf(`{"kind":%q}`, kind))
			if _, err := send(t.Context(), r.d.URL()+"/v1/completions", request(prompt, 5, "kv_transfer_params", r.first(prompt))); err == nil {
				t.Error("it answered")
			}
			<-r.d.Done()
			until(t, "the blocks to be freed", func() bool { return r.p.Server.Stats().Kept == 0 })
			what := map[string]string{"pd-die-before-pull": "expired", "pd-die-after-pull": "freed"}[kind]
			if counted(t, r.p, what) != 1 {
				t.Errorf("not counted as %s", what)
			}
		})
	}
}

func TestWholeRequestsStayWhole(t *testing.T) {
	r := newPair(t, NIXL, nil)
	for _, k := range []any{
		nil, map[string]any{}, map[string]any{"do_remote_prefill": true}, map[string]any{"do_remote_prefill": true, "remote_engine_id": nil, "remote_port": nil},
	} {
		for _, n := range []*Node{r.p, r.d} {
			if a := object(t, n.URL()+"/v1/completions", request(passage(300, 7), 3, "kv_transfer_params", k), 200); a["kv_transfer_params"] != nil {
				t.Errorf("%v: %v", k, a)
			}
		}
	}
	// An engine without a connector does not know what is meant.
	n := listen(t, fast)
	if a := object(t, n.URL()+"/v1/completions", request(passage(300, 7), 1, "kv_transfer_params", map[string]any{"do_remote_decode": true}), 200); a["kv_transfer_params"] != nil {
		t.Errorf("%v", a)
	}
	if status, _ := get(t, n.URL()+"/sim/pd"); status != 404 {
		t.Errorf("%d", status)
	}
	// What ends by itself is not kept, as vLLM has it.
	a := object(t, r.p.URL()+"/v1/completions", request(passage(300, 7), 50, "kv_transfer_params", map[string]any{"do_remote_decode": true}, "stop", []string{"a", "e"}), 200)
	if a["kv_transfer_params"] != nil || r.p.Server.Stats().Kept != 0 {
		t.Errorf("%v", a)
	}
}
