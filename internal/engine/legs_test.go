package engine

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/fleet"
)

const (
	splitBody = `{"model":"m","stream":true,"max_tokens":300,"messages":[{"role":"user","content":"hi"}]}`
	prefillOf = `{"stream":false,"max_tokens":1,"ignore_eos":true,%s"model":"m","messages":[{"role":"user","content":"hi"}]}`
	decodeOf  = `{"kv_transfer_params":%s,"model":"m","stream":true,"max_tokens":300,"messages":[{"role":"user","content":"hi"}]}`
)

func askPrefill(params string) string {
	return fmt.Sprintf(prefillOf, `"kv_transfer_params":`+params+`,`)
}

func askDecode(params string) string { return fmt.Sprintf(decodeOf, params) }

// aSplit is a request between rank 1 of 2 of one engine and another one.
func aSplit() *Split {
	return &Split{
		Kind: api.Chat, Body: []byte(splitBody), ID: "r-1",
		Prefill: Party{URL: "http://p:8000", Rank: 1, Ranks: 2}, Decode: Party{URL: "http://[fd00::1]:8001"},
	}
}

// TestLegs holds each dialect to what its engines are sent, byte for byte.
func TestLegs(t *testing.T) {
	const asks = `"do_remote_decode":true,"do_remote_prefill":false`
	const nixl = asks + `,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null`
	const moriioAsks = asks + `,"remote_engine_id":null,"remote_block_ids":null,"remote_host":"fd00::1","remote_port":null,"transfer_id":"txr-1",` +
		`"remote_handshake_port":6301,"remote_notify_port":61005,"remote_dp_rank":0,"remote_dp_rank_override":true,"remote_dp_size":1`
	for _, x := range []struct {
		connector     Connector
		change        func(*Split)
		course        Course
		try           string
		first, second string
		header        string
		answer, next  string
	}{
		{
			connector: ConnectorNIXL, first: askPrefill(`{` + nixl + `}`),
			// As in the field: ids of any form, and numbers that no float holds.
			answer: `{"id":"x","kv_transfer_params": {"remote_block_ids":[[1,2,"a"]],"remote_blocks_expiry_time":12345678901234567.25} ,"usage":{}}`,
			next:   askDecode(`{"remote_block_ids":[[1,2,"a"]],"remote_blocks_expiry_time":12345678901234567.25}`),
		},
		{
			connector: ConnectorNIXLPush, first: askPrefill(`{` + nixl + `,"transfer_id":"r-1"}`),
			answer: `{"kv_transfer_params":{"remote_engine_id":"e"}}`,
			next:   askDecode(`{"transfer_id":"r-1","remote_engine_id":"e"}`),
		},
		{
			connector: ConnectorMoRIIO, first: askPrefill(`{` + moriioAsks + `}`),
			answer: `{"kv_transfer_params":{"do_remote_prefill":true,"remote_engine_id":"p:6301","remote_notify_port":7}}`,
			next: askDecode(`{"transfer_id":"txr-1","remote_handshake_port":6301,"remote_dp_rank":1,"remote_dp_rank_override":true,"remote_dp_size":2,` +
				`"do_remote_prefill":true,"remote_engine_id":"p:6301","remote_notify_port":7}`),
		},
		{
			connector: ConnectorMoRIIOWrite, course: Together, first: askPrefill(`{` + moriioAsks + `}`),
			second: askDecode(`{"do_remote_prefill":true,"do_remote_decode":false,"remote_engine_id":"p:6302","remote_block_ids":[],"remote_host":"p","remote_port":6302,` +
				`"transfer_id":"txr-1","remote_handshake_port":6301,"remote_notify_port":61005,"remote_dp_rank":1,"remote_dp_rank_override":true,"remote_dp_size":2}`),
		},
		{connector: ConnectorShared, first: fmt.Sprintf(prefillOf, ""), second: splitBody},
		{
			connector: ConnectorShared, change: func(s *Split) { s.HitThreshold = 0.75 },
			try:   `{"cache_hit_threshold":0.75,` + splitBody[1:],
			first: fmt.Sprintf(prefillOf, `"cache_hit_threshold":0,`), second: `{"cache_hit_threshold":0,` + splitBody[1:],
		},
		{
			connector: ConnectorShared, change: func(s *Split) { s.Body = []byte(`{"cache_hit_threshold":0.5,"max_tokens":9,"prompt":"x"}`) },
			try:   `{"cache_hit_threshold":0.5,"max_tokens":9,"prompt":"x"}`,
			first: `{"stream":false,"max_tokens":1,"ignore_eos":true,"cache_hit_threshold":0,"prompt":"x"}`, second: `{"cache_hit_threshold":0,"max_tokens":9,"prompt":"x"}`,
		},
		{
			connector: ConnectorOffload, first: askPrefill(`{"remote_decoder":{"kv_request_id":"r-1"}}`),
			second: askDecode(`{"remote_prefiller":{"kv_request_id":"r-1","remote_host":"p","remote_port":7778}}`),
		},
		{
			connector: ConnectorOffload, change: func(s *Split) { s.Source = &Party{URL: "https://s", Port: 5710} },
			first:  askPrefill(`{"remote_decoder":{"kv_request_id":"r-1"},"remote_kv_source":{"kv_request_id":"r-1","remote_host":"s","remote_port":5710}}`),
			second: askDecode(`{"remote_prefiller":{"kv_request_id":"r-1","remote_host":"p","remote_port":7778}}`),
		},
		{
			connector: ConnectorLLMD, course: Alone, second: splitBody, header: "map[X-Prefiller-Host-Port:[p:8000]]",
		},
		{
			connector: ConnectorLLMD, change: func(s *Split) { s.Source = &Party{URL: "https://s"} }, course: Alone, second: splitBody,
			header: "map[X-Kv-Cache-Source-Host-Port:[s:443] X-Prefiller-Host-Port:[p:8000]]",
		},
	} {
		t.Run(string(x.connector), func(t *testing.T) {
			s := aSplit()
			if x.change != nil {
				x.change(s)
			}
			c := NewClient(Options{})
			defer c.Close()
			l, _, err := c.Legs(t.Context(), x.connector, s)
			if err != nil || l.Course != x.course {
				t.Fatal(l.Course, err)
			}
			second := l.Second
			if x.answer != "" {
				if second, err = l.Next([]byte(x.answer)); err != nil {
					t.Fatal(err)
				}
				x.second = x.next
				for _, answer := range []string{`{}`, `{"kv_transfer_params":null}`, `[]`, ``} {
					if _, err := l.Next([]byte(answer)); err == nil {
						t.Errorf("an answer of %q is taken", answer)
					}
				}
			}
			try := ""
			if l.Try != nil {
				try = string(l.Try.Body)
			}
			header := ""
			if second.Header != nil {
				header = fmt.Sprint(second.Header)
			}
			for what, y := range map[string][2]string{"try": {try, x.try}, "first": {string(l.First.Body), x.first}, "second": {string(second.Body), x.second}, "header": {header, x.header}} {
				if y[0] != y[1] {
					t.Errorf("%s\n got %s\nwant %s", what, y[0], y[1])
				}
			}
		})
	}
}

// TestNIXLPushLearns: a process is met in turn, then asked at once, and met again
// when it turns out to be another.
func TestNIXLPushLearns(t *testing.T) {
	c := NewClient(Options{})
	defer c.Close()
	legs := func() Legs {
		l, _, err := c.Legs(t.Context(), ConnectorNIXLPush, aSplit())
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	answer := `{"kv_transfer_params":{"remote_engine_id":"e","remote_host":"10.0.0.1","remote_port":5600,"tp_size":2,"transfer_mode":"push","remote_block_ids":[[1]]}}`
	if _, err := legs().Next([]byte(answer)); err != nil {
		t.Fatal(err)
	}
	l := legs()
	want := askDecode(`{"remote_engine_id":"e","remote_host":"10.0.0.1","remote_port":5600,"transfer_mode":"push","tp_size":2,"do_remote_prefill":true,"do_remote_decode":false,"remote_request_id":"r-1","transfer_id":"r-1"}`)
	if l.Course != Together || string(l.Second.Body) != want {
		t.Errorf("%v %s", l.Course, l.Second.Body)
	}
	if err := l.Check([]byte(answer)); err != nil {
		t.Error(err)
	}
	if err := l.Check([]byte(strings.Replace(answer, `"e"`, `"f"`, 1))); err == nil {
		t.Error("another process is not noticed")
	}
	if l = legs(); !strings.Contains(string(l.Second.Body), `"remote_engine_id":"f"`) {
		t.Errorf("%s", l.Second.Body)
	}
	if l.Failed(); legs().Course != InTurn {
		t.Error("what has failed is believed still")
	}
}

func TestSGLangLegs(t *testing.T) {
	rooms := map[string]bool{}
	c := NewClient(Options{})
	defer c.Close()
	for range 100 {
		l, _, err := c.Legs(t.Context(), ConnectorSGLang, &Split{Kind: api.Completion, Body: []byte(`{"model":"m","prompt":"x"}`), Prefill: Party{URL: "http://[::1]:30000", Rank: 3}})
		if err != nil || l.Course != Together || string(l.First.Body) != string(l.Second.Body) {
			t.Fatal(err)
		}
		var got struct {
			Host string      `json:"bootstrap_host"`
			Port int         `json:"bootstrap_port"`
			Room json.Number `json:"bootstrap_room"`
		}
		if err := json.Unmarshal(l.First.Body, &got); err != nil || got.Host != "::1" || got.Port != DefaultBootstrapPort {
			t.Fatalf("%s, %v", l.First.Body, err)
		}
		if n, err := got.Room.Int64(); err != nil || n < 0 || rooms[got.Room.String()] {
			t.Fatalf("room %s, %v", got.Room, err)
		}
		rooms[got.Room.String()] = true
	}
	if _, err := ParseConnector("smoke"); err == nil || !strings.Contains(err.Error(), "nixl") {
		t.Errorf("an unknown connector gives %v", err)
	}
}

// TestMooncakeLegs: who asks at the same time asks once, what is known is not asked
// again, and what has failed is forgotten.
func TestMooncakeLegs(t *testing.T) {
	var asked atomic.Int32
	gate := make(chan struct{})
	boot := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-gate
		if asked.Add(1); r.URL.Path != "/query" {
			t.Errorf("asked for %s", r.URL)
		}
		fmt.Fprint(w, `{"0":{"engine_id":"e0"},"1":{"engine_id":"e1","worker_addr":{"0":{"0":"tcp://10.0.0.1:5701"}}}}`)
	}))
	defer boot.Close()
	at, err := url.Parse(boot.URL)
	if err != nil {
		t.Fatal(err)
	}
	s := aSplit()
	s.Prefill.Host = at.Hostname()
	s.Prefill.Port, _ = strconv.Atoi(at.Port())
	c := NewClient(Options{})
	defer c.Close()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if l, _, err := c.Legs(t.Context(), ConnectorMooncake, s); err != nil || l.Course != Together {
				t.Error(l.Course, err)
			}
		})
	}
	close(gate)
	all.Wait()
	l, _, err := c.Legs(t.Context(), ConnectorMooncake, s)
	if err != nil || asked.Load() != 1 {
		t.Fatalf("asked %d times, %v", asked.Load(), err)
	}
	if want := askPrefill(`{"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":"r-1"}`); string(l.First.Body) != want {
		t.Errorf("first\n got %s\nwant %s", l.First.Body, want)
	}
	if want := askDecode(`{"do_remote_decode":false,"do_remote_prefill":true,"remote_bootstrap_addr":"` + boot.URL + `","remote_engine_id":"e1","transfer_id":"r-1"}`); string(l.Second.Body) != want {
		t.Errorf("second\n got %s\nwant %s", l.Second.Body, want)
	}
	l.Failed()
	if _, _, err := c.Legs(t.Context(), ConnectorMooncake, s); err != nil || asked.Load() != 2 {
		t.Errorf("asked %d times, %v", asked.Load(), err)
	}
	s.Prefill.Rank = 5
	if _, _, err := c.Legs(t.Context(), ConnectorMooncake, s); err == nil {
		t.Error("a rank that nobody has told of is known")
	}
	boot.Close()
	l.Failed()
	s.Prefill.Rank = 1
	if _, f, err := c.Legs(t.Context(), ConnectorMooncake, s); f != fleet.FailConnect {
		t.Errorf("without a bootstrap server: %v, %v", f, err)
	}
}

func TestPull(t *testing.T) {
	source := Party{URL: "http://s:8000", Rank: 2}
	can := ""
	for _, name := range Connectors() {
		k := Connector(name)
		l, err := k.Pull([]byte(splitBody), "r-1", source)
		if (err == nil) != k.CanPull() {
			t.Errorf("%s: %v", k, err)
		}
		if err == nil {
			can += fmt.Sprintf("%s %s %v\n", k, l.Body, l.Header)
		}
	}
	want := "offload " + askDecode(`{"remote_kv_source":{"kv_request_id":"r-1","remote_host":"s","remote_port":7779}}`) + " map[]\n" +
		"llm-d " + splitBody + " map[X-Kv-Cache-Source-Host-Port:[s:8000]]\n"
	if can != want {
		t.Errorf("got\n%swant\n%s", can, want)
	}
}

func FuzzWorkers(f *testing.F) {
	f.Add([]byte(`{"0":{"engine_id":"e","worker_addr":{"0":{"0":"tcp://10.0.0.1:5701"}}}}`))
	f.Add([]byte(`{"-1":{"engine_id":"e"}}`))
	f.Add([]byte(`{"01":{"engine_id":""}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		ids, err := parseWorkers(body)
		for rank, id := range ids {
			if rank < 0 || rank >= MaxRanks || id == "" || len(id) > maxIdentifier {
				t.Errorf("%q gives rank %d the id %q", body, rank, id)
			}
		}
		if err == nil && !json.Valid(body) {
			t.Errorf("%q is taken", body)
		}
	})
}

func FuzzPushIdentity(f *testing.F) {
	f.Add([]byte(`{"kv_transfer_params":{"remote_engine_id":"e","remote_host":"h","remote_port":1,"tp_size":2,"transfer_mode":"push"}}`))
	f.Add([]byte(`{"kv_transfer_params":{"remote_engine_id":{},"remote_host":"h"}}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		who, ok := pushIdentity(answer)
		if !ok {
			return
		}
		if b := object(who.members()...); !json.Valid(b) {
			t.Errorf("%q gives %s", answer, b)
		}
	})
}
