package transfer

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithCancel(t.Context())
}

// sglangPut is what an SGLang prefill rank sends.
func sglangPut(tp, size int) string {
	return fmt.Sprintf(`{"attn_tp_size":%d,"attn_tp_rank":%d,"attn_cp_size":1,"attn_cp_rank":0,"attn_dp_size":1,"attn_dp_rank":0,"pp_size":1,"pp_rank":0,`+
		`"system_dp_size":1,"system_dp_rank":0,"rank_ip":"10.0.0.1","rank_port":%d,"page_size":64,"kv_cache_dtype":"auto","load_balance_method":"round_robin"}`, size, tp, 20000+tp)
}

// same compares JSON.
func same(t *testing.T, got, want string) {
	t.Helper()
	var g, w any
	if json.Unmarshal([]byte(got), &g) != nil || json.Unmarshal([]byte(want), &w) != nil {
		t.Fatalf("no JSON: %s", got)
	}
	if d := cmp.Diff(w, g); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

const wholeTopology = "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1"

func TestSGLang(t *testing.T) {
	s := newServer(t, Options{})
	want(t, s, "GET", "/health", nil, 200, "OK")
	want(t, s, "GET", wholeTopology, nil, 503, "not fully registered yet (0 workers")
	want(t, s, "PUT", "/route", sglangPut(0, 2), 200, "OK")
	want(t, s, "PUT", "/route", sglangPut(0, 2), 200, "OK") // a retry is no second rank
	want(t, s, "GET", wholeTopology, nil, 503, "not fully registered yet (1 workers")
	want(t, s, "PUT", "/route", sglangPut(1, 2), 200, "OK")
	same(t, want(t, s, "GET", wholeTopology, nil, 200, ""),
		`{"attn_tp_size":2,"attn_cp_size":1,"dp_size":1,"pp_size":1,"page_size":64,"kv_cache_dtype":"auto","follow_bootstrap_room":false}`)
	same(t, want(t, s, "GET", "/route?prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=1&target_pp_rank=0", nil, 200, ""), `{"rank_ip":"10.0.0.1","rank_port":20001}`)
	want(t, s, "GET", "/route?prefill_dp_rank=3&prefill_cp_rank=0&target_tp_rank=1&target_pp_rank=0", nil, 404, "not found for dp_rank=3")
	want(t, s, "GET", "/route?prefill_dp_rank=0", nil, 400, "Missing inputs")

	want(t, s, "POST", "/register_dp_rank", `{"bootstrap_room":9223372036854775807,"dp_rank":3}`, 200, "OK")
	same(t, want(t, s, "POST", "/query_dp_ranks", `{"bootstrap_rooms":[9223372036854775807,5]}`, 200, ""), `{"9223372036854775807":3}`)

	// A rank of a new process: nobody is given half of each.
	want(t, s, "PUT", "/route", strings.Replace(sglangPut(0, 2), "20000", "31000", 1), 200, "OK")
	want(t, s, "GET", wholeTopology, nil, 503, "(1 workers")
	want(t, s, "PUT", "/route", strings.Replace(sglangPut(1, 2), "20001", "31001", 1), 200, "OK")
	same(t, want(t, s, "GET", "/route?prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=0&target_pp_rank=0", nil, 200, ""), `{"rank_ip":"10.0.0.1","rank_port":31000}`)

	newer := strings.Replace(sglangPut(0, 1), `"page_size"`, `"enable_dsa_cache_layer_split":false,"prefill_http_port":30000,"page_size"`, 1)
	want(t, s, "PUT", "/at/p2/route", newer, 200, "OK")
	want(t, s, "GET", "/at/p2"+wholeTopology, nil, 200, `"prefill_http_port":30000`)
	want(t, s, "PUT", "/route", strings.Replace(sglangPut(0, 1), `"attn_tp_rank":0`, `"attn_tp_rank":1`, 1), 400, "attn_tp")
}

func TestSGLangByHostName(t *testing.T) {
	s := newServer(t, Options{Token: "t"})
	ask := func(method, target, host, body string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, target, strings.NewReader(body))
		r.Host = host
		r.Header.Set("Authorization", "Bearer t")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w
	}
	p, err := json.Marshal(instanceOf("p", "prefill", "10.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	ask("POST", prefix+"/instances", "gateway", string(p))
	ask("PUT", "/at/p/route", "gateway", sglangPut(0, 1))
	if w := ask("GET", wholeTopology, "p.transfer.example:8998", ""); w.Code != 200 {
		t.Errorf("by the instance's name: %d %s", w.Code, w.Body)
	}
	if w := ask("GET", wholeTopology, "gateway:8998", ""); w.Code != 503 {
		t.Errorf("by the gateway's: %d %s", w.Code, w.Body)
	}
}

func worked(engine string, tp int, addr string) string {
	return fmt.Sprintf(`{"engine_id":%q,"dp_rank":0,"tp_rank":%d,"pp_rank":0,"addr":%q,"tp_size":2}`, engine, tp, addr)
}

func TestMooncakeBootstrap(t *testing.T) {
	s := newServer(t, Options{})
	same(t, want(t, s, "GET", "/query", nil, 200, ""), `{}`)
	same(t, want(t, s, "POST", "/register", worked("e", 0, "tcp://10.0.0.1:6000"), 200, ""), `{"status":"ok"}`)
	want(t, s, "POST", "/register", worked("e", 1, "tcp://10.0.0.1:6001"), 200, "ok")
	want(t, s, "POST", "/register", worked("e", 1, "tcp://10.0.0.1:6001"), 200, "ok")
	want(t, s, "POST", "/register", worked("e", 1, "tcp://10.0.0.1:7777"), 400, `{"detail":`)
	same(t, want(t, s, "GET", "/query", nil, 200, ""), `{"0":{"engine_id":"e","worker_addr":{"0":{"0":"tcp://10.0.0.1:6000"},"1":{"0":"tcp://10.0.0.1:6001"}}}}`)

	want(t, s, "POST", "/register", worked("other", 0, "tcp://10.0.0.9:6000"), 400, "Engine ID mismatch for dp_rank=0: expected e, got other")
	want(t, s, "POST", "/at/p9/register", worked("other", 0, "tcp://10.0.0.9:6000"), 200, "ok")
	want(t, s, "GET", "/at/p9/query", nil, 200, `"engine_id":"other"`)

	// Started again at its host: the old process is not read any more, nor heard.
	want(t, s, "POST", "/register", worked("e2", 0, "tcp://10.0.0.1:6100"), 200, "ok")
	same(t, want(t, s, "GET", "/query", nil, 200, ""), `{"0":{"engine_id":"e2","worker_addr":{"0":{"0":"tcp://10.0.0.1:6100"}}}}`)
	want(t, s, "POST", "/register", worked("e", 1, "tcp://10.0.0.1:6001"), 400, "taken its place")
	want(t, s, "POST", "/register", `{"engine_id":"e"}`, 400, "rank")
}

func TestMooncakeMetadata(t *testing.T) {
	const key = "/metadata?key=mooncake%2Fram%2F10.0.0.1%3A12345"
	const segment = `{"name":"10.0.0.1:12345","protocol":"rdma","tcp_data_port":0,"devices":[{"name":"mlx5_0","lid":0,"gid":"fe80"}],"buffers":[{"name":"cuda:0","addr":139637976727552,"length":1073741824,"rkey":[1],"lkey":[1]}]}`
	s := newServer(t, Options{})
	want(t, s, "GET", key, nil, 404, "metadata not found")
	want(t, s, "PUT", key, segment, 200, "metadata updated")
	if got := want(t, s, "GET", key, nil, 200, ""); got != segment {
		t.Errorf("bytes have changed: %s", got)
	}
	want(t, s, "DELETE", key, nil, 200, "metadata deleted")
	want(t, s, "GET", key, nil, 404, "")
	want(t, s, "PUT", key, "not json", 400, "JSON")
	want(t, s, "PUT", "/metadata", segment, 400, "key")
	want(t, s, "PUT", "/metadata?key="+strings.Repeat("k", maxKey+1), segment, 400, "key")
	want(t, s, "PUT", key, strings.Repeat(" ", maxBody+1), 413, "too large")
	want(t, s, "PUT", "/metadata?key=mooncake/rpc_meta/10.0.0.1:1", `{"ip_or_host_name":"10.0.0.1","rpc_port":12345}`, 200, "")
	if n := s.Status().Keys; n != 1 {
		t.Errorf("%d keys", n)
	}
}

// TestAdaptersFollowTheirInstances: what engines leave in their own words, which
// know no lease, goes with the instance that registered.
func TestAdaptersFollowTheirInstances(t *testing.T) {
	const key = "/metadata?key=mooncake/ram/10.0.0.1:12345"
	leave := func(t *testing.T, s *Server) {
		t.Helper()
		want(t, s, "PUT", key, `{"name":"x"}`, 200, "")
		want(t, s, "POST", "/at/p/register", worked("e", 0, "tcp://10.0.0.1:6000"), 200, "")
		want(t, s, "PUT", "/at/p/route", sglangPut(0, 1), 200, "")
	}
	there := func(t *testing.T, s *Server, yes bool) {
		t.Helper()
		meta, route, query := 404, 503, "{}"
		if yes {
			meta, route, query = 200, 200, `"engine_id":"e"`
		}
		want(t, s, "GET", key, nil, meta, "")
		want(t, s, "GET", "/at/p"+wholeTopology, nil, route, "")
		want(t, s, "GET", "/at/p/query", nil, 200, query)
	}
	next := instanceOf("p", "prefill", "10.0.0.1")
	next.Incarnation = "p-2"
	for name, c := range map[string]struct {
		end  func(t *testing.T, s *Server)
		left bool
	}{
		"the lease lasts": {func(*testing.T, *Server) {}, true},
		"the lease ends":  {func(*testing.T, *Server) { time.Sleep(31 * time.Second) }, false},
		"it leaves": {func(t *testing.T, s *Server) {
			want(t, s, "DELETE", prefix+"/instances/p?incarnation=p-1", nil, 204, "")
		}, false},
		"it is started again": {func(t *testing.T, s *Server) { want(t, s, "POST", prefix+"/instances", next, 200, "") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, Options{})
				leave(t, s) // before it registers, as engines do
				pair(t, s)
				there(t, s, true)
				c.end(t, s)
				there(t, s, c.left)
			})
		})
	}
	t.Run("the next process is quicker than its registration", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newServer(t, Options{})
			pair(t, s)
			time.Sleep(5 * time.Second)
			leave(t, s) // p-2 already, whose registration comes last
			want(t, s, "POST", prefix+"/instances", next, 200, "")
			there(t, s, true)
		})
	})
	t.Run("the host leaves the fleet", func(t *testing.T) {
		member := true
		s := newServer(t, Options{Admit: func(host string) error {
			if !member {
				return fmt.Errorf("%s has left", host)
			}
			return nil
		}})
		leave(t, s)
		there(t, s, true)
		member = false
		there(t, s, false)
	})
}

// TestKeptOverARestart: engines say where they are once, so a new exchange is
// given what the old one was told, for as long as their processes are the same.
func TestKeptOverARestart(t *testing.T) {
	const key = "/metadata?key=mooncake/ram/10.0.0.1:12345"
	p, next := instanceOf("p", "prefill", "10.0.0.1"), instanceOf("p", "prefill", "10.0.0.1")
	next.Incarnation = "p-2"
	for name, c := range map[string]struct {
		after  func(t *testing.T, s *Server)
		status int
	}{
		"at once": {func(*testing.T, *Server) {}, 200},
		"others register": {func(t *testing.T, s *Server) {
			want(t, s, "POST", prefix+"/instances", instanceOf("d", "decode", "10.0.0.2"), 200, "")
		}, 200},
		"it registers": {func(t *testing.T, s *Server) {
			want(t, s, "POST", prefix+"/instances", p, 200, "")
			time.Sleep(29 * time.Second)
		}, 200},
		"its next process":     {func(t *testing.T, s *Server) { want(t, s, "POST", prefix+"/instances", next, 200, "") }, 404},
		"it does not register": {func(*testing.T, *Server) { time.Sleep(31 * time.Second) }, 404},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, Options{})
				pair(t, s)
				want(t, s, "PUT", key, `{"name":"x"}`, 200, "")
				want(t, s, "POST", "/register", worked("e", 0, "tcp://10.0.0.1:6000"), 200, "")
				want(t, s, "PUT", "/route", sglangPut(0, 1), 200, "")
				data, err := s.Keep()
				if err != nil {
					t.Fatal(err)
				}
				s = newServer(t, Options{})
				if err := s.Restore(data); err != nil {
					t.Fatal(err)
				}
				c.after(t, s)
				want(t, s, "GET", key, nil, c.status, "")
				if code, got := ask(t, s, "GET", "/query", nil); code != 200 || strings.Contains(got, "10.0.0.1:6000") != (c.status == 200) {
					t.Errorf("query: %d %s", code, got)
				}
				if code, got := ask(t, s, "GET", wholeTopology, nil); (code == 200) != (c.status == 200) {
					t.Errorf("route: %d %s", code, got)
				}
			})
		})
	}
	if err := newServer(t, Options{}).Restore([]byte("{")); err == nil {
		t.Error("half a file is restored")
	}
}

// TestThePageTellsTheTruth registers the page's example and looks for every path.
func TestThePageTellsTheTruth(t *testing.T) {
	page, err := os.ReadFile("../../docs/transfer.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```json\n")
	example, _, _ := strings.Cut(rest, "```")
	s := newServer(t, Options{})
	want(t, s, "POST", prefix+"/instances", example, 200, `"heartbeatMs":10000`)
	for _, r := range s.routes() {
		if !strings.Contains(string(page), r.path) {
			t.Errorf("%s %s is not on the page", r.method, r.path)
		}
	}
}
