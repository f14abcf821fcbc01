package transfer

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
)

// engine fixtures: a prefill and a decode instance that fit.
func instanceOf(id, role, host string) exchange.Instance {
	return exchange.Instance{
		ID: id, Incarnation: id + "-1", Role: role, Engine: "vllm", EngineVersion: "0.21.0",
		Weights:   exchange.Weights{Model: "Qwen/Qwen3-32B", Revision: "9216db5", DType: "bfloat16"},
		Cache:     exchange.Cache{DType: "bfloat16", Layers: 64, KVHeads: 8, HeadSize: 128, BlockTokens: 16, Layout: "HND"},
		Parallel:  exchange.Parallel{TP: 2},
		Connector: exchange.Connector{Name: "NixlConnector", Version: "12"},
		Ranks:     []exchange.Rank{{Host: host, Port: 5600}},
		Domain:    "rack-1",
	}
}

// fleet10 admits 10.0.0.0/24 and names that end in .fleet.
func fleet10(host string) error {
	if strings.HasPrefix(host, "10.0.0.") || strings.HasSuffix(host, ".fleet") {
		return nil
	}
	return errors.New("it is no member")
}

func newServer(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Admit == nil {
		o.Admit = fleet10
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ask sends one request from loopback and returns the status and the body.
func ask(t testing.TB, h http.Handler, method, target string, body any) (int, string) {
	t.Helper()
	data, raw := body.(string)
	if body != nil && !raw {
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		data = string(b)
	}
	r := httptest.NewRequest(method, target, strings.NewReader(data))
	r.RemoteAddr, r.Host = "127.0.0.1:40000", "localhost:8998"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// want asks and fails the test when the answer is another than expected: a
// status, and text that the body holds.
func want(t testing.TB, h http.Handler, method, target string, body any, status int, holds string) string {
	t.Helper()
	code, got := ask(t, h, method, target, body)
	if code != status || !strings.Contains(got, holds) {
		t.Fatalf("%s %s: %d %s, want %d with %q", method, target, code, got, status, holds)
	}
	return got
}

func pair(t testing.TB, s *Server) {
	t.Helper()
	want(t, s, "POST", prefix+"/instances", instanceOf("p", "prefill", "10.0.0.1"), 200, `"heartbeatMs":10000`)
	want(t, s, "POST", prefix+"/instances", instanceOf("d", "decode", "10.0.0.2"), 200, `"incarnation":"d-1"`)
}

func TestTransferOverHTTP(t *testing.T) {
	s := newServer(t, Options{})
	pair(t, s)
	want(t, s, "GET", prefix+"/verdict?prefill=p&decode=d&bytes=1000000000", nil, 200, `"ok":true`)
	want(t, s, "POST", prefix+"/tickets", `{"id":"x","source":"p","consumer":"d","bytes":1000}`, 201, `"stage":"planned"`)
	want(t, s, "POST", prefix+"/tickets/x/pulling", `{"incarnation":"d-1"}`, 409, "x\\\" is planned")
	want(t, s, "POST", prefix+"/tickets/x/ready", `{"incarnation":"p-0"}`, 409, "not for")
	want(t, s, "POST", prefix+"/tickets/x/ready", `{"incarnation":"p-1","bytes":2000000,"leaseMs":30000}`, 200, `"stage":"ready"`)
	want(t, s, "POST", prefix+"/tickets/x/pulling", `{"incarnation":"d-1"}`, 200, `"stage":"pulling"`)
	want(t, s, "POST", prefix+"/tickets/x/done", `{"incarnation":"d-1","tookMs":2.5}`, 200, `"moved":2000000`)
	want(t, s, "POST", prefix+"/tickets/x/abort", `{"reason":"late"}`, 409, "done already")
	want(t, s, "GET", prefix+"/links", nil, 200, `"from":"rack-1","to":"rack-1"`)
	want(t, s, "GET", prefix+"/tickets?instance=d&stage=done", nil, 200, `"tookMs":2.5`)
	want(t, s, "GET", prefix+"/tickets/x", nil, 200, `"stage":"done"`)
	got := want(t, s, "POST", prefix+"/tickets", `{"source":"p","consumer":"d"}`, 201, `"stage":"planned"`)
	var made ticket
	if err := json.Unmarshal([]byte(got), &made); err != nil || len(made.ID) < 20 {
		t.Errorf("an id that can be guessed: %q %v", made.ID, err)
	}
	st := s.Status()
	if st.Instances["prefill"] != 1 || st.Stages["planned"] != 1 || st.Tickets.Done != 1 || st.Refused["stale"] != 1 || st.Refused["state"] != 2 || len(st.Links) != 1 {
		t.Errorf("%+v", st)
	}
}

func TestIncompatiblePairsAreRefusedWithReasons(t *testing.T) {
	s := newServer(t, Options{})
	pair(t, s)
	d := instanceOf("q", "decode", "10.0.0.3")
	d.Cache.DType, d.Connector.Version = "fp8_e4m3", "13"
	want(t, s, "POST", prefix+"/instances", d, 200, "")
	for _, holds := range []string{`"ok":false`, `"field":"connector.version","prefill":"12","decode":"13"`, `"field":"cache.dtype","prefill":"bfloat16","decode":"fp8_e4m3"`, `--kv-cache-dtype`} {
		want(t, s, "GET", prefix+"/verdict?prefill=p&decode=q", nil, 200, holds)
		want(t, s, "POST", prefix+"/tickets", `{"source":"p","consumer":"q"}`, 409, holds)
	}
	want(t, s, "GET", prefix+"/verdict?prefill=p&decode=nobody", nil, 404, "nobody")
}

func TestRestartOfAnEngineFences(t *testing.T) {
	s := newServer(t, Options{})
	pair(t, s)
	want(t, s, "PUT", prefix+"/blobs/p?incarnation=p-1&name=tp0", "old bytes", 204, "")
	want(t, s, "POST", prefix+"/tickets", `{"id":"x","source":"p","consumer":"d"}`, 201, "")
	want(t, s, "POST", prefix+"/tickets/x/ready", `{"incarnation":"p-1"}`, 200, "")
	p := instanceOf("p", "prefill", "10.0.0.1")
	p.Incarnation = "p-2"
	want(t, s, "POST", prefix+"/instances", p, 200, "p-2")
	want(t, s, "GET", prefix+"/tickets/x", nil, 200, `"stage":"aborted"`)
	want(t, s, "POST", prefix+"/tickets/x/pulling", `{"incarnation":"d-1"}`, 409, "has restarted")
	want(t, s, "GET", prefix+"/blobs/p?name=tp0", nil, 404, "left no blob")
	want(t, s, "PUT", prefix+"/blobs/p?incarnation=p-1&name=tp0", "old bytes", 409, "now incarnation")
	want(t, s, "POST", prefix+"/instances/p/heartbeat", `{"incarnation":"p-1"}`, 409, "p-2")
	want(t, s, "POST", prefix+"/instances", instanceOf("p", "prefill", "10.0.0.1"), 409, "replaced")
	want(t, s, "DELETE", prefix+"/instances/p?incarnation=p-1", nil, 409, "")
	want(t, s, "DELETE", prefix+"/instances/p?incarnation=p-2", nil, 204, "")
	want(t, s, "POST", prefix+"/instances/p/heartbeat", `{"incarnation":"p-2"}`, 404, "lease")
}

func TestWhoIsLetIn(t *testing.T) {
	verified := &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{}}}}
	for _, c := range []struct {
		name               string
		token              string
		trust              bool
		peer, host, bearer string
		state              *tls.ConnectionState
		path               string
		status             int
	}{
		{name: "loopback without a token", peer: "127.0.0.1:1", host: "localhost:1", path: prefix + "/links", status: 200},
		{name: "v6", peer: "[::1]:1", host: "[::1]:1", path: prefix + "/links", status: 200},
		{name: "others without a token", peer: "10.0.0.1:1", host: "gateway", path: prefix + "/links", status: 403},
		{name: "a page in a browser", peer: "127.0.0.1:1", host: "evil.example", path: prefix + "/links", status: 403},
		{name: "the token", token: "t", peer: "10.9.9.9:1", host: "gateway", bearer: "Bearer t", path: prefix + "/links", status: 200},
		{name: "another token", token: "t", peer: "127.0.0.1:1", host: "localhost", bearer: "Bearer u", path: prefix + "/links", status: 401},
		{name: "no token where one is wanted", token: "t", peer: "127.0.0.1:1", host: "localhost", path: prefix + "/links", status: 401},
		{name: "a certificate", token: "t", peer: "10.9.9.9:1", host: "gateway", state: verified, path: prefix + "/links", status: 200},
		{name: "a certificate nobody verified", token: "t", peer: "10.9.9.9:1", host: "gateway", state: &tls.ConnectionState{}, path: prefix + "/links", status: 401},
		{name: "an engine in its own words", token: "t", trust: true, peer: "10.0.0.7:1", host: "gateway", path: "/query", status: 200},
		{name: "an engine in ours", token: "t", trust: true, peer: "10.0.0.7:1", host: "gateway", path: prefix + "/links", status: 401},
		{name: "a stranger in an engine's words", token: "t", trust: true, peer: "10.9.9.9:1", host: "gateway", path: "/query", status: 401},
		{name: "an engine that is not trusted", token: "t", peer: "10.0.0.7:1", host: "gateway", path: "/query", status: 401},
		{name: "health is for all", token: "t", peer: "10.9.9.9:1", host: "gateway", path: "/health", status: 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, Options{Token: c.token, TrustFleet: c.trust})
			r := httptest.NewRequest("GET", c.path, nil)
			r.RemoteAddr, r.Host, r.TLS = c.peer, c.host, c.state
			if c.bearer != "" {
				r.Header.Set("Authorization", c.bearer)
			}
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if w.Code != c.status {
				t.Errorf("%d, want %d: %s", w.Code, c.status, w.Body)
			}
		})
	}
}

func TestAddressesAreOfTheFleet(t *testing.T) {
	s := newServer(t, Options{})
	for _, host := range []string{"169.254.169.254", "evil.example", "127.0.0.1", "10.0.0.1@evil.example", "10.0.0.1/x", "", "10.0.0.1\r\n"} {
		i := instanceOf("p", "prefill", host)
		if code, got := ask(t, s, "POST", prefix+"/instances", i); code != 403 && code != 400 {
			t.Errorf("ranks at %q: %d %s", host, code, got)
		}
	}
	want(t, s, "POST", prefix+"/instances", instanceOf("p", "prefill", "169.254.169.254"), 403, `ranks[0].host: \"169.254.169.254\" is not an address of the fleet: it is no member`)
	want(t, s, "POST", "/register", `{"engine_id":"e","dp_rank":0,"tp_rank":0,"pp_rank":0,"addr":"tcp://169.254.169.254:80"}`, 403, "not an address of the fleet")
	want(t, s, "POST", "/register", `{"engine_id":"e","dp_rank":0,"tp_rank":0,"pp_rank":0,"addr":"http://10.0.0.1:80/x"}`, 400, "tcp://host:port")
	want(t, s, "PUT", "/metadata?key=mooncake/rpc_meta/10.0.0.1:5", `{"ip_or_host_name":"169.254.169.254","rpc_port":1}`, 403, "ip_or_host_name")
	want(t, s, "PUT", "/metadata?key=mooncake/ram/evil.example:5", `{"name":"x"}`, 403, "key")
	want(t, s, "PUT", "/route", strings.Replace(sglangPut(0, 1), "10.0.0.1", "192.168.1.1", 1), 403, "rank_ip")
	if n := s.Status().Refused["address"]; n < 5 {
		t.Errorf("%d refusals of addresses are counted", n)
	}
}

func TestBodiesAndLimits(t *testing.T) {
	c := exchange.DefaultConfig()
	c.MaxInstances, c.MaxTickets = 2, 1
	s := newServer(t, Options{Book: c})
	pair(t, s)
	want(t, s, "POST", prefix+"/instances", instanceOf("q", "decode", "10.0.0.3"), 503, "no room")
	want(t, s, "POST", prefix+"/instances", `{"id":"p","nonsense":1}`, 400, "nonsense")
	want(t, s, "POST", prefix+"/instances", `{} {}`, 400, "more than one")
	want(t, s, "POST", prefix+"/instances", `{}`, 400, "weights.model: is missing")
	want(t, s, "POST", prefix+"/instances", `{"lease":"-1s"}`, 400, "positive duration")
	want(t, s, "POST", prefix+"/instances", `{"id":"`+strings.Repeat("x", maxBody)+`"}`, 413, "too large")
	want(t, s, "POST", prefix+"/tickets", `{"id":"x","source":"p","consumer":"d"}`, 201, "")
	want(t, s, "POST", prefix+"/tickets", `{"id":"y","source":"p","consumer":"d"}`, 503, "no room")
	want(t, s, "POST", prefix+"/tickets/x/done", `{"tookMs":-1}`, 400, "tookMs")
	want(t, s, "POST", prefix+"/tickets/x/abort", `{"reason":"a\u0000b"}`, 400, "reason")
	want(t, s, "POST", prefix+"/tickets/nothing/abort", `{}`, 404, "no such ticket")
	want(t, s, "GET", prefix+"/instances?watch=true&index=abc", nil, 400, "index")
	want(t, s, "GET", prefix+"/instances?watch=true&wait=1h", nil, 400, "wait")
	want(t, s, "PUT", prefix+"/blobs/p", "x", 400, "incarnation")
	want(t, s, "PUT", prefix+"/blobs/p?incarnation=p-1", strings.Repeat("x", maxBlob+1), 413, "too large")
	big := strings.Repeat("x", maxBlob)
	for n := range instanceBlobBytes / maxBlob {
		want(t, s, "PUT", fmt.Sprint(prefix+"/blobs/p?incarnation=p-1&name=", n), big, 204, "")
	}
	want(t, s, "PUT", prefix+"/blobs/p?incarnation=p-1&name=more", "x", 503, "no room")
	want(t, s, "PUT", prefix+"/blobs/p?incarnation=p-1&name=0", "less", 204, "")
	want(t, s, "GET", prefix+"/blobs/p?name=0", nil, 200, "less")
	want(t, s, "DELETE", prefix+"/instances/p?incarnation=p-1", nil, 204, "")
	if b := s.Status().Blobs; b != 0 {
		t.Errorf("%d bytes of blobs are left", b)
	}
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		pair(t, s)
		var list instanceList
		look := func(query string) time.Duration {
			t.Helper()
			began := time.Now()
			if err := json.Unmarshal([]byte(want(t, s, "GET", prefix+"/instances?"+query, nil, 200, "")), &list); err != nil {
				t.Fatal(err)
			}
			return time.Since(began)
		}
		look("role=decode")
		if len(list.Instances) != 1 || list.Instances[0].ID != "d" {
			t.Fatalf("%+v", list)
		}
		again := fmt.Sprint("watch=true&wait=20s&index=", list.Index)
		if d := look(again); d != 20*time.Second || len(list.Instances) != 2 {
			t.Errorf("nothing changes: answered after %v: %+v", d, list)
		}
		go func() {
			time.Sleep(3 * time.Second)
			s.Do(func(now fleet.Time, b *exchange.Book) { _ = b.Leave(now, "d", "d-1") })
		}()
		if d := look(again); d != 3*time.Second || len(list.Instances) != 1 {
			t.Errorf("one leaves: answered after %v: %+v", d, list)
		}
		if d := look(fmt.Sprint("watch=true&index=", list.Index)); d != 7*time.Second || len(list.Instances) != 0 {
			t.Errorf("a lease ends: answered after %v: %+v", d, list)
		}
	})
}

// wire carries requests to whichever server stands behind the address now.
type wire struct{ to atomic.Pointer[Server] }

func wireTo(s *Server) *wire {
	w := &wire{}
	w.to.Store(s)
	return w
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	to := w.to.Load()
	if to == nil {
		return nil, errors.New("connection refused")
	}
	var body bytes.Buffer
	if r.Body != nil {
		_, _ = body.ReadFrom(r.Body)
	}
	in := httptest.NewRequest(r.Method, r.URL.String(), &body).WithContext(r.Context())
	in.Header = r.Header
	rec := httptest.NewRecorder()
	to.ServeHTTP(rec, in)
	return rec.Result(), nil
}

// TestRestartOfTheGateway begins a new exchange in place of the old: within one
// heartbeat it knows everybody, and what they left for peers.
func TestRestartOfTheGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := wireTo(newServer(t, Options{Token: "t"}))
		ended := make(chan error, 2)
		for _, i := range []exchange.Instance{instanceOf("p", "prefill", "10.0.0.1"), instanceOf("d", "decode", "10.0.0.2")} {
			c := &Client{URL: "http://gateway:8998/", Token: "t", Instance: i, Lease: 30 * time.Second, Blobs: map[string][]byte{"agent": []byte("of " + i.ID)}, HTTP: &http.Client{Transport: w}}
			go func() { ended <- c.Run(t.Context()) }()
		}
		time.Sleep(14 * time.Second)
		w.to.Store(nil) // it dies,
		time.Sleep(time.Minute)
		w.to.Store(newServer(t, Options{Token: "t"})) // and another comes
		time.Sleep(10 * time.Second)
		if st := w.to.Load().Status(); st.Instances["prefill"] != 1 || st.Instances["decode"] != 1 || st.Blobs != 8 {
			t.Errorf("after one heartbeat: %+v", st)
		}
		w.to.Store(newServer(t, Options{Token: "t"})) // this time at once
		time.Sleep(10*time.Second + time.Millisecond)
		if st := w.to.Load().Status(); st.Instances["prefill"] != 1 || st.Instances["decode"] != 1 || st.Blobs != 8 {
			t.Errorf("after one heartbeat: %+v", st)
		}
		p := instanceOf("p", "prefill", "10.0.0.1")
		p.Incarnation = "p-2"
		w.to.Load().Do(func(now fleet.Time, b *exchange.Book) { _, _ = b.Register(now, p, 0) })
		if err := <-ended; !errors.Is(err, ErrReplaced) {
			t.Errorf("replaced, the client ends with %v", err)
		}
	})
}

func TestClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := wireTo(newServer(t, Options{Token: "t"}))
		c := &Client{URL: "http://gateway:8998", Token: "wrong", Instance: instanceOf("p", "prefill", "10.0.0.1"), HTTP: &http.Client{Transport: w}}
		if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "401") {
			t.Errorf("a wrong token: %v", err)
		}
		c.Token = "t"
		ctx, cancel := contextOf(t)
		ended := make(chan error)
		go func() { ended <- c.Run(ctx) }()
		time.Sleep(time.Second)
		if n := w.to.Load().Status().Instances["prefill"]; n != 1 {
			t.Errorf("%d instances", n)
		}
		cancel()
		if err := <-ended; err != nil || w.to.Load().Status().Instances["prefill"] != 0 {
			t.Errorf("left with %v, there is still %v", err, w.to.Load().Status().Instances)
		}
	})
}

func TestDocumentIsOfTheRoutes(t *testing.T) {
	s := newServer(t, Options{})
	var doc struct {
		OpenAPI string                               `json:"openapi"`
		Paths   map[string]map[string]map[string]any `json:"paths"`
		Parts   struct {
			Schemas map[string]struct {
				Properties map[string]map[string]any `json:"properties"`
			} `json:"schemas"`
		} `json:"components"`
	}
	got := want(t, s, "GET", prefix+"/openapi.json", nil, 200, "")
	if err := json.Unmarshal([]byte(got), &doc); err != nil || doc.OpenAPI != "3.1.0" {
		t.Fatalf("%v, %q", err, doc.OpenAPI)
	}
	n := 0
	for path, methods := range doc.Paths {
		for method, op := range methods {
			n++
			r := httptest.NewRequest(strings.ToUpper(method), variable.ReplaceAllString(path, "some"), nil)
			if _, pattern := s.mux.Handler(r); pattern != strings.ToUpper(method)+" "+path {
				t.Errorf("%s %s is documented, and served by %q", method, path, pattern)
			}
			if op["summary"] == "" || op["responses"] == nil {
				t.Errorf("%s %s: %v", method, path, op)
			}
		}
	}
	if routes := len(s.own()) + 2*len(s.adapters()); n != routes {
		t.Errorf("%d operations are documented, there are %d", n, routes)
	}
	for _, part := range strings.Split(got, `"$ref": "#/components/`)[1:] {
		ref, _, _ := strings.Cut(part, `"`)
		if kind, name, _ := strings.Cut(ref, "/"); kind == "schemas" && doc.Parts.Schemas[name].Properties == nil {
			t.Errorf("%s is referred to and has no properties", ref)
		}
	}
	told := map[string]bool{}
	for _, sc := range doc.Parts.Schemas {
		for name := range sc.Properties {
			told[name] = true
		}
	}
	for name := range meanings {
		if !told[name] {
			t.Errorf("%q has a meaning and is in no schema", name)
		}
	}
	for _, name := range []string{"Registration", "InstanceEntry", "Ticket", "Judged", "Reason", "Progress", "Order"} {
		if _, ok := doc.Parts.Schemas[name]; !ok {
			t.Errorf("no schema %s", name)
		}
	}
	if sc := doc.Parts.Schemas["Registration"]; sc.Properties["weights"] == nil || sc.Properties["lease"] == nil {
		t.Errorf("a registration is %v", sc)
	}
}

func FuzzBodies(f *testing.F) {
	s := newServer(f, Options{})
	good, err := json.Marshal(instanceOf("p", "prefill", "10.0.0.1"))
	if err != nil {
		f.Fatal(err)
	}
	targets := []string{"/instances", "/instances/p/heartbeat", "/tickets", "/tickets/x/ready", "/tickets/x/pulling", "/tickets/x/done", "/tickets/x/abort"}
	for i, body := range []string{string(good), `{"incarnation":"p-1"}`, `{"id":"x","source":"p","consumer":"d","bytes":9}`, `{"incarnation":"p-1","bytes":1}`, `{"leaseMs":5}`, `{"tookMs":1e99}`, `{"reason":"r"}`} {
		f.Add(i, body)
	}
	f.Fuzz(func(t *testing.T, which int, body string) {
		target := targets[uint(which)%uint(len(targets))] //nolint:gosec // any target will do
		if code, got := ask(t, s, "POST", prefix+target, body); code >= 500 && code != 503 || !json.Valid([]byte(got)) {
			t.Errorf("%d %s", code, got)
		}
		s.Do(func(_ fleet.Time, b *exchange.Book) {
			tally := b.Tally()
			if tally.Opened != tally.Done+tally.Aborted+tally.Expired+uint64(tally.Open) {
				t.Errorf("%+v", tally)
			}
		})
	})
}

func FuzzAdapters(f *testing.F) {
	s := newServer(f, Options{})
	methods := []string{"PUT /metadata?key=", "GET /metadata?key=", "POST /register?", "PUT /route?", "GET /route?", "POST /register_dp_rank?", "POST /query_dp_ranks?"}
	f.Add(0, "mooncake/rpc_meta/10.0.0.1:5", `{"ip_or_host_name":"10.0.0.1","rpc_port":1}`)
	f.Add(0, "mooncake/ram/[fe80::1]:5", `{"name":"x"}`)
	f.Add(2, "", `{"engine_id":"e","dp_rank":0,"tp_rank":0,"pp_rank":0,"addr":"tcp://10.0.0.1:5"}`)
	f.Add(3, "", sglangPut(0, 1))
	f.Add(4, "prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1", "")
	f.Add(5, "", `{"bootstrap_room":9223372036854775807,"dp_rank":1}`)
	f.Add(6, "", `{"bootstrap_rooms":[1,2]}`)
	f.Fuzz(func(t *testing.T, which int, query, body string) {
		method, target, _ := strings.Cut(methods[uint(which)%uint(len(methods))], " ") //nolint:gosec // any target will do
		if strings.HasSuffix(target, "=") {
			query = url.QueryEscape(query)
		}
		if _, err := url.ParseRequestURI(target + query); err != nil || strings.ContainsAny(query, " \t\r\n#") {
			t.Skip()
		}
		if code, got := ask(t, s, method, target+query, body); code >= 500 && code != 503 {
			t.Errorf("%d %s", code, got)
		}
		for name, k := range s.keys.at {
			if fleet10(k.host) != nil || !json.Valid(k.data) {
				t.Errorf("%q holds %q at %q", name, k.data, k.host)
			}
		}
		for _, b := range s.mooncake {
			for _, e := range b.engines {
				if fleet10(e.host) != nil {
					t.Errorf("%+v", e)
				}
			}
		}
	})
}

// TestManyAtOnce is for the race detector: every handler beside every other.
func TestManyAtOnce(t *testing.T) {
	s := newServer(t, Options{})
	pair(t, s)
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for i := range 30 {
				id := fmt.Sprint(n, "-", i)
				ask(t, s, "POST", prefix+"/instances", instanceOf("p", "prefill", "10.0.0.1"))
				ask(t, s, "POST", prefix+"/tickets", order{ID: id, Source: "p", Consumer: "d", Bytes: 1e6})
				ask(t, s, "POST", prefix+"/tickets/"+id+"/ready", progress{Incarnation: "p-1"})
				ask(t, s, "POST", prefix+"/tickets/"+id+"/done", progress{Incarnation: "d-1", TookMs: 1})
				ask(t, s, "GET", prefix+"/tickets?watch=true&index=1", nil)
				ask(t, s, "PUT", prefix+"/blobs/p?incarnation=p-1", "x")
				ask(t, s, "PUT", "/metadata?key=mooncake/ram/10.0.0.1:1", `{}`)
				ask(t, s, "POST", "/register", worked("e", n%2, fmt.Sprint("tcp://10.0.0.1:600", n%2)))
				ask(t, s, "GET", "/query", nil)
				ask(t, s, "PUT", "/route", sglangPut(n%2, 2))
				ask(t, s, "GET", wholeTopology, nil)
				s.Status()
				if _, err := s.Keep(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if tally := s.Status().Tickets; tally.Done != 8*30 || tally.Open != 0 {
		t.Errorf("%+v", tally)
	}
}
