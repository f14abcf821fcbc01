package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"penstock.dev/penstock/internal/engine/kvfeed"
	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/kv"
)

// kvRig is an engine that publishes KV events, and one who listens.
type kvRig struct {
	t      *testing.T
	server *Server
	sub    *kvfeed.Conn

	seqs   []uint64
	raw    [][]byte
	batch  kv.Batch
	tiers  [3]map[string]bool // what the events say
	tokens map[string][]uint32
	faults [kv.Faults]int
}

// withKV runs test with an engine of tiny memory in a bubble of its own.
func withKV(t *testing.T, o Options, test func(r *kvRig)) {
	synctest.Test(t, func(t *testing.T) {
		o.Model, o.TP, o.KVEvents, o.KVTopic = "penstock/tiny", 1, "here:0", "kv@"
		fill(&o.KVTokens, 40*enginesim.BlockTokens)
		o.LoRAs, o.DevMode, o.KVRank = []string{"poet"}, true, 3
		s, err := New(Config{Options: o})
		if err != nil {
			t.Fatal(err)
		}
		r := &kvRig{t: t, server: s, tokens: map[string][]uint32{}}
		r.forget()
		r.listen()
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		test(r)
		stop()
		<-done
		r.sub.Close()
		synctest.Wait()
	})
}

func (r *kvRig) forget() {
	for i := range r.tiers {
		r.tiers[i] = map[string]bool{}
	}
}

// listen subscribes and follows what is published.
func (r *kvRig) listen() {
	near, far := net.Pipe()
	go func() { _ = r.server.ServeKVEvents(far) }()
	sub, err := kvfeed.NewConn(near, "SUB")
	if err == nil {
		err = sub.Subscribe("kv@")
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.sub = sub
	synctest.Wait()
	go func() {
		for {
			frames, err := sub.Receive()
			if err != nil {
				return
			}
			seq, payload, err := kvfeed.Part(frames)
			if err != nil || len(frames) != 3 {
				r.t.Errorf("%d frames: %v", len(frames), err)
				return
			}
			r.take(seq, payload)
		}
	}()
}

func hexKey(k kv.EngineKey) string { return strconv.FormatUint(uint64(k), 16) }

func (r *kvRig) take(seq uint64, payload []byte) {
	r.seqs, r.raw = append(r.seqs, seq), append(r.raw, slices.Clone(payload))
	if err := r.batch.Decode(payload); err != nil {
		r.faults[kv.FaultMalformed]++
		return
	}
	for f, n := range r.batch.Dropped {
		r.faults[f] += n
	}
	if r.batch.Rank != 3 {
		r.t.Errorf("rank %d", r.batch.Rank)
	}
	for i := range r.batch.Events {
		ev := &r.batch.Events[i]
		for b, k := range ev.Blocks {
			if ev.Kind == kv.Removed {
				delete(r.tiers[ev.Tier], hexKey(k))
				continue
			}
			r.tiers[ev.Tier][hexKey(k)] = true
			if len(ev.Tokens) > 0 {
				before := []uint32(nil)
				if b > 0 {
					before = r.tokens[hexKey(ev.Blocks[b-1])]
				} else if ev.HasParent {
					before = r.tokens[hexKey(ev.Parent)]
				}
				r.tokens[hexKey(k)] = append(slices.Clone(before), ev.Tokens[b*ev.BlockSize:(b+1)*ev.BlockSize]...)
			}
		}
		if ev.Kind == kv.Cleared {
			r.forget()
		}
	}
}

// call asks a route of the engine.
func (r *kvRig) call(method, path string, body any) (int, []byte) {
	r.t.Helper()
	text, ok := body.(string)
	if !ok {
		b, err := json.Marshal(body)
		if err != nil {
			r.t.Fatal(err)
		}
		text = string(b)
	}
	w := httptest.NewRecorder()
	r.server.Handler().ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(text)))
	synctest.Wait()
	return w.Code, w.Body.Bytes()
}

// fault sets a fault.
func (r *kvRig) fault(text string) {
	r.t.Helper()
	if status, raw := r.call("POST", "/sim/fault", text); status != http.StatusOK {
		r.t.Fatalf("%s: %d %s", text, status, raw)
	}
}

// ask has n tokens computed that depend on seed, and a few generated.
func (r *kvRig) ask(seed uint32, n int, more map[string]any) body {
	r.t.Helper()
	prompt := make([]uint32, n)
	for i := range prompt {
		prompt[i] = 'a' + seed<<8 + uint32(i)<<16
	}
	q := map[string]any{"prompt": prompt, "max_tokens": 20, "ignore_eos": true}
	maps.Copy(q, more)
	status, raw := r.call("POST", "/v1/completions", q)
	if status != http.StatusOK {
		r.t.Fatalf("%d %s", status, raw)
	}
	return parse(r.t, raw)
}

// kvTruth is what GET /sim/kv answers.
type kvTruth struct {
	NextSeq uint64              `json:"next_seq"`
	Blocks  map[string]int      `json:"blocks"`
	Hits    map[string]int      `json:"hit_tokens"`
	Keys    map[string][]string `json:"keys"`
}

func (r *kvRig) truth() (k kvTruth) {
	r.t.Helper()
	status, raw := r.call("GET", "/sim/kv?keys=true", "")
	if err := json.Unmarshal(raw, &k); status != http.StatusOK || err != nil {
		r.t.Fatalf("%d %s: %v", status, raw, err)
	}
	return k
}

// agree compares what the events say with the truth.
func (r *kvRig) agree() {
	r.t.Helper()
	k := r.truth()
	for i, name := range tierNames {
		want := slices.Clone(k.Keys[name])
		slices.Sort(want)
		got := []string{}
		for key := range r.tiers[i] {
			got = append(got, key)
		}
		slices.Sort(got)
		if d := cmp.Diff(want, got); d != "" || len(want) != k.Blocks[name] {
			r.t.Errorf("%s (-truth +events):\n%s", name, d)
		}
	}
	if n := uint64(len(r.seqs)); n == 0 || r.seqs[n-1]+1 != k.NextSeq {
		r.t.Errorf("batches %v, the next is %d", r.seqs, k.NextSeq)
	}
}

func TestEventsFollowTheCacheInEachEncoding(t *testing.T) {
	for c := range kv.Mooncake {
		t.Run(c.String(), func(t *testing.T) {
			o := Options{KVEncoding: c.String(), CPUTokens: 60 * enginesim.BlockTokens, DiskTokens: 400 * enginesim.BlockTokens}
			if c == kv.SGLangArray || c == kv.SGLangMap {
				o.Engine = SGLang
			}
			withKV(t, o, func(r *kvRig) {
				for i := range uint32(6) {
					r.ask(i, 200, nil)
				}
				if got := r.ask(0, 200, nil); got.Usage.PromptTokensDetails.CachedTokens != 192 {
					t.Errorf("%d tokens cached, want 192", got.Usage.PromptTokensDetails.CachedTokens)
				}
				r.agree()
				if k := r.truth(); k.Hits["cpu"]+k.Hits["disk"] != 192 || k.Blocks["disk"] == 0 {
					t.Errorf("%+v", k)
				}
				_, page := r.call("GET", "/metrics", "")
				if o.Engine != SGLang && (!strings.Contains(string(page), `external_prefix_cache_hits_total{model_name="penstock/tiny",engine="3"} 192`) ||
					!strings.Contains(string(page), `vllm:prefix_cache_hits_total{model_name="penstock/tiny",engine="3"} 0`)) {
					t.Errorf("hits below the GPU are not told from those in it:\n%s", page)
				}
				path := "/reset_prefix_cache"
				if o.Engine == SGLang {
					path = "/flush_cache"
				}
				r.call("POST", path, "")
				r.agree()
				if k := r.truth(); k.Blocks["gpu"]+k.Blocks["cpu"]+k.Blocks["disk"] != 0 {
					t.Errorf("after %s: %v", path, k.Blocks)
				}
			})
		})
	}
}

// The tokens of events, in order of the chain, make the keys that they are said
// to have.
func TestEventsHaveTheTokens(t *testing.T) {
	withKV(t, Options{}, func(r *kvRig) {
		r.ask(1, 100, nil)
		r.ask(1, 250, map[string]any{"n": 2})
		r.call("POST", "/v1/chat/completions", map[string]any{
			"messages": []any{map[string]any{"role": "user", "content": strings.Repeat("Tell me a story. ", 20)}}, "max_tokens": 50,
			"response_format": map[string]any{"type": "json_object"},
		})
		r.call("POST", "/v1/embeddings", map[string]any{"input": strings.Repeat("to be embedded ", 20)})
		r.agree()
		for key := range r.tiers[kv.TierGPU] {
			chain, _ := enginesim.Chain(nil, enginesim.NewContext(""), r.tokens[key])
			if len(chain) == 0 || strconv.FormatUint(chain[len(chain)-1], 16) != key {
				t.Errorf("%s is not the key of its %d tokens", key, len(r.tokens[key]))
			}
		}
	})
}

func TestEventsNameAdapterAndSalt(t *testing.T) {
	for engine, encoding := range map[string]kv.Encoding{VLLM: kv.VLLMMap, SGLang: kv.SGLangMap} {
		withKV(t, Options{Engine: engine}, func(r *kvRig) {
			r.ask(1, 40, map[string]any{"model": "poet", "cache_salt": "pepper"})
			var b kv.Batch
			for _, raw := range r.raw {
				if err := b.Decode(raw); err != nil {
					t.Fatal(err)
				}
				if len(b.Events) > 0 && b.Events[0].Kind == kv.Stored {
					break
				}
			}
			e := b.Events[0]
			var extras []string
			for _, x := range e.Extra {
				extras = append(extras, fmt.Sprint(x.Block, x.Kind, string(x.Value)))
			}
			if encoding == kv.SGLangMap {
				if string(e.Salt) != "pepper" {
					t.Errorf("salt %q", e.Salt)
				}
				return
			}
			want := []string{fmt.Sprint(0, kv.ExtraLoRA, "poet"), fmt.Sprint(0, kv.ExtraSalt, "pepper"), fmt.Sprint(1, kv.ExtraLoRA, "poet")}
			if d := cmp.Diff(want, extras); d != "" || string(e.LoRA) != "poet" || e.Spec != kv.SpecFull {
				t.Errorf("%s, %q, spec %v (-want +got):\n%s", engine, e.LoRA, e.Spec, d)
			}
			if _, raw := r.call("POST", "/sim/kv", map[string]any{"prompt": r.tokens[hexKey(e.Blocks[1])], "lora": "poet", "cache_salt": "pepper"}); string(raw) != `{"cpu":0,"disk":0,"gpu":32,"prompt":32}` {
				t.Errorf("%s", raw)
			}
		})
	}
}

func TestFaultsOfPublication(t *testing.T) {
	for fault, want := range map[string]struct {
		seqs   []uint64
		faults [kv.Faults]int
	}{
		``:                                       {seqs: []uint64{0, 1, 2, 3, 4, 5}},
		`{"kind":"kv-drop","count":1,"after":2}`: {seqs: []uint64{0, 1, 3, 4, 5}},
		`{"kind":"kv-swap","count":1}`:           {seqs: []uint64{1, 0, 2, 3, 4, 5}},
		`{"kind":"kv-duplicate","count":1,"after":1}`: {seqs: []uint64{0, 1, 1, 2, 3, 4, 5}},
		`{"kind":"kv-corrupt","count":1}`:             {[]uint64{0, 1, 2, 3, 4, 5}, [kv.Faults]int{kv.FaultMalformed: 1}},
		`{"kind":"kv-malformed","count":2}`:           {[]uint64{0, 1, 2, 3, 4, 5}, [kv.Faults]int{kv.FaultMalformed: 2}},
		`{"kind":"kv-unknown","count":1}`:             {[]uint64{0, 1, 2, 3, 4, 5}, [kv.Faults]int{kv.FaultType: 1}},
	} {
		withKV(t, Options{}, func(r *kvRig) {
			if fault != "" {
				r.fault(fault)
			}
			for i := range uint32(3) { // each a batch for its prompt and one for its answer
				r.ask(i, 40, nil)
			}
			if d := cmp.Diff(want.seqs, r.seqs); d != "" {
				t.Errorf("%s: batches (-want +got):\n%s", fault, d)
			}
			if d := cmp.Diff(want.faults, r.faults); d != "" {
				t.Errorf("%s: events dropped by the reader (-want +got):\n%s", fault, d)
			}
			if !strings.Contains(fault, "drop") && !strings.Contains(fault, "corrupt") {
				r.agree() // nothing was lost
			}
		})
	}
}

// replay asks for the batches from seq on and says which came, whether all came
// with the topic, and how long it took.
func (r *kvRig) replay(seq uint64) (seqs []uint64, frames int, took time.Duration) {
	r.t.Helper()
	near, far := net.Pipe()
	go func() { _ = r.server.ServeKVReplay(far) }()
	c, err := kvfeed.NewConn(near, "DEALER")
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	for _, frames := range [][][]byte{{nil, []byte("bad")}, {[]byte("alone")}} { // passed over
		if err := c.Send(frames...); err != nil {
			r.t.Fatal(err)
		}
	}
	begun := time.Now()
	if err := c.AskReplay(seq); err != nil {
		r.t.Fatal(err)
	}
	patience := time.AfterFunc(time.Hour, func() { c.Close() })
	defer patience.Stop()
	for {
		got, err := c.Receive()
		if err != nil {
			return seqs, -1, time.Since(begun)
		}
		n, payload, err := kvfeed.Part(got)
		if err != nil {
			r.t.Fatal(err)
		}
		if frames = len(got); n == kv.EndOfReplay {
			return seqs, frames, time.Since(begun)
		}
		if d := cmp.Diff(r.raw[n], payload); d != "" {
			r.t.Errorf("batch %d is not what was published:\n%s", n, d)
		}
		seqs = append(seqs, n)
	}
}

func TestReplay(t *testing.T) {
	for name, c := range map[string]struct {
		options Options
		fault   string
		from    uint64
		seqs    []uint64
		frames  int
		took    time.Duration
	}{
		"all":       {seqs: []uint64{0, 1, 2, 3, 4, 5}, frames: 4},
		"some":      {from: 4, seqs: []uint64{4, 5}, frames: 4},
		"none":      {from: 6, frames: 4},
		"topicless": {options: Options{KVReplayForm: ReplayTopicless}, from: 5, seqs: []uint64{5}, frames: 3},
		"older":     {options: Options{KVEncoding: "vllm-array"}, from: 5, seqs: []uint64{5}, frames: 3},
		"few kept":  {options: Options{KVBufferSteps: 3}, seqs: []uint64{3, 4, 5}, frames: 4},
		"too few":   {fault: `{"kind":"kv-ring-short","batches":2}`, seqs: []uint64{4, 5}, frames: 4},
		"slow":      {fault: `{"kind":"kv-replay-slow","delay_ms":700}`, from: 4, seqs: []uint64{4, 5}, frames: 4, took: 1400 * time.Millisecond},
		"off":       {fault: `{"kind":"kv-replay-off"}`, frames: -1, took: time.Hour},
		"never on":  {options: Options{KVReplayForm: ReplayOff}, frames: -1, took: time.Hour},
	} {
		withKV(t, c.options, func(r *kvRig) {
			for i := range uint32(3) {
				r.ask(i, 40, nil)
			}
			if c.fault != "" {
				r.fault(c.fault)
			}
			seqs, frames, took := r.replay(c.from)
			if d := cmp.Diff(c.seqs, seqs); d != "" || frames != c.frames || took != c.took {
				t.Errorf("%s: %d frames after %v, want %d after %v; batches (-want +got):\n%s", name, frames, took, c.frames, c.took, d)
			}
		})
	}
}

func TestRestart(t *testing.T) {
	for _, fence := range []bool{false, true} {
		withKV(t, Options{CPUTokens: 60 * enginesim.BlockTokens}, func(r *kvRig) {
			r.ask(1, 40, nil)
			r.ask(2, 40, nil)
			r.fault(fmt.Sprintf(`{"kind":"kv-restart","clear":%v}`, fence))
			if k := r.truth(); k.Blocks["gpu"]+k.Blocks["cpu"] != 0 {
				t.Errorf("after a restart: %v", k.Blocks)
			}
			if _, err := r.sub.Receive(); err == nil {
				t.Error("the connection has not broken")
			}
			r.seqs, r.raw = nil, nil
			r.listen()
			r.ask(1, 40, nil)
			want := []uint64{0, 1}
			if fence {
				want = []uint64{1, 2} // the first was sent when nobody listened
			}
			if d := cmp.Diff(want, r.seqs); d != "" {
				t.Errorf("clear %v: batches (-want +got):\n%s", fence, d)
			}
		})
	}
}

func TestKVOptionsAreChecked(t *testing.T) {
	for want, o := range map[string]Options{
		"kv-events-encoding": {KVEncoding: "morse"},
		"kv-replay-form":     {KVReplayForm: "loud"},
		"kv-events":          {KVEvents: "nowhere"},
		"kv-replay":          {KVReplay: ":1"},
		"kv-buffer-steps":    {KVBufferSteps: -1},
		"kv-rank":            {KVRank: -1},
		"kv-hash":            {Engine: SGLang, KVHash: HashCBOR},
		"kv-hash-seed":       {KVHashSeed: "0"},
		"kv-cpu-tokens":      {CPUTokens: -1},
		"kv-disk-tokens":     {DiskTokens: 100},
		"kv-cpu-bandwidth":   {CPUBandwidth: -1},
		"kv-disk-bandwidth":  {DiskBandwidth: -1},
	} {
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want+":") {
			t.Errorf("%+v: %v; want %s named", o, err, want)
		}
	}
	n := listen(t, fast)
	if status, raw := post(t, n.URL()+"/sim/fault", `{"kind":"kv-drop"}`); status != http.StatusBadRequest {
		t.Errorf("a fault of events that nobody publishes: %d %s", status, raw)
	}
}

// A node has its ports counted up by replica and rank, and speaks over them.
func TestNodePublishes(t *testing.T) {
	o := fast
	o.KVEvents, o.KVReplay = "tcp://127.0.0.1:0", "127.0.0.1:0"
	n := listen(t, o)
	events, replay := n.KVAddresses()
	sub, err := kvfeed.Dial(t.Context(), events, "SUB")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	ask(t, n.URL()+"/v1/completions", small)
	c, err := kvfeed.Dial(t.Context(), replay, "DEALER")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.AskReplay(0); err != nil {
		t.Fatal(err)
	}
	got := 0
	if err := c.ReadReplay(func(uint64, []byte) { got++ }); err != nil || got == 0 {
		t.Errorf("%d batches: %v", got, err)
	}
	for first, want := range map[string]string{"tcp://*:5557": ":5560", "10.0.0.1:5557": "10.0.0.1:5560", "[::1]:0": "[::1]:0"} {
		if got, err := kvAddress(first, 3); err != nil || got != want {
			t.Errorf("%s for the fourth: %s, %v; want %s", first, got, err, want)
		}
	}
}
