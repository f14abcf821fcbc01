package gateway

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
)

// send posts a body with headers.
func (r *rig) send(method, path, body string, header map[string]string) answer {
	r.t.Helper()
	req, err := http.NewRequest(method, r.front.URL+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := r.front.Client().Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(raw), err}
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

func TestTermsComeFromTrustedHops(t *testing.T) {
	e, got := recorder(t, anyJSON, wholeReply)
	objectives := map[string]Objective{"fast": {Priority: 7, SLO: fleet.SLO{TTFT: time.Second, TPOT: 50 * time.Millisecond}}}
	for _, c := range []struct {
		name    string
		trusted []netip.Prefix
		header  map[string]string
		want    fleet.Terms
		tenant  string
	}{
		{"nothing", loopback, nil, fleet.Terms{}, ""},
		{"SLO", loopback, map[string]string{"x-llm-d-slo-ttft-ms": "250", "X-LLM-D-SLO-TPOT-MS": "12.5"}, fleet.Terms{SLO: fleet.SLO{TTFT: 250 * time.Millisecond, TPOT: 12500 * time.Microsecond}}, ""},
		{"older names", loopback, map[string]string{"x-slo-ttft-ms": "250", "x-slo-tpot-ms": "1e1", "x-gateway-inference-objective": "fast"}, fleet.Terms{Priority: 7, SLO: fleet.SLO{TTFT: 250 * time.Millisecond, TPOT: 10 * time.Millisecond}}, ""},
		{"objective", loopback, map[string]string{"x-llm-d-inference-objective": "fast"}, fleet.Terms{Priority: 7, SLO: fleet.SLO{TTFT: time.Second, TPOT: 50 * time.Millisecond}}, ""},
		{"an objective nobody knows", loopback, map[string]string{"x-llm-d-inference-objective": "other"}, fleet.Terms{}, ""},
		{"tenant", loopback, map[string]string{"x-llm-d-inference-fairness-id": "team-a"}, fleet.Terms{Tenant: 1}, "team-a"},
		{"older tenant", loopback, map[string]string{"x-gateway-inference-fairness-id": "team-a"}, fleet.Terms{Tenant: 1}, "team-a"},
		{"a stranger", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, map[string]string{"x-llm-d-slo-ttft-ms": "nonsense", "x-llm-d-inference-objective": "fast", "x-llm-d-inference-fairness-id": "team-a"}, fleet.Terms{}, ""},
	} {
		r := newRig(t, setup{policy: Policy{Trusted: c.trusted, Objectives: objectives}}, e)
		if a := r.send("POST", chatPath, chatBody, c.header); a.status != 200 {
			t.Errorf("%s: %+v", c.name, a)
		}
		q, x := <-got, r.access()
		terms := x.Decisions[0].Terms
		if terms.Tenant != 0 {
			terms.Tenant = 1
		}
		if terms != c.want || x.Tenant != c.tenant {
			t.Errorf("%s: %+v of %q, want %+v", c.name, x.Decisions[0].Terms, x.Tenant, c.want)
		}
		for k := range c.header {
			if q.header.Get(k) != "" {
				t.Errorf("%s: the engine sees %s", c.name, k)
			}
		}
	}
}

func TestNonsenseInControlHeadersIsNamed(t *testing.T) {
	e := newEngine(t, func(http.ResponseWriter, *http.Request) { t.Error("an engine was asked") })
	r := newRig(t, setup{policy: Policy{Trusted: loopback}}, e)
	for _, c := range [][2]string{
		{"X-Llm-D-Slo-Ttft-Ms", "fast"},
		{"X-Llm-D-Slo-Ttft-Ms", "0"},
		{"X-Slo-Ttft-Ms", "-5"},
		{"X-Llm-D-Slo-Tpot-Ms", "NaN"},
		{"X-Slo-Tpot-Ms", "1e300"},
		{"X-Llm-D-Slo-Tpot-Ms", "50ms"},
		{"X-Llm-D-Inference-Objective", "two words"},
		{"X-Gateway-Inference-Fairness-Id", strings.Repeat("x", 129)},
	} {
		a := r.send("POST", chatPath, chatBody, map[string]string{c[0]: c[1]})
		wantProblem(t, a, 400, "invalid_header")
		if !strings.Contains(a.body, `"param":"`+c[0]+`"`) {
			t.Errorf("%s: %s", c[0], a.body)
		}
	}
}

func TestTransferParamsOfClientsAreTakenOut(t *testing.T) {
	e, got := recorder(t, anyJSON, wholeReply)
	r := newRig(t, setup{policy: Policy{Trusted: loopback}}, e)
	r.do("POST", chatPath, `{ "model":"m" , "kv_transfer_params" : {"remote_host":"evil"} , "messages":[] }`)
	if q := <-got; q.body != `{ "model":"m" , "messages":[] }` {
		t.Errorf("the engine was asked %s", q.body)
	}
	r.do("POST", "/api/generate", `{"bootstrap_host":"evil","model":"m"}`)
	if q := <-got; q.body != `{"model":"m"}` {
		t.Errorf("the engine was asked %s", q.body)
	}
}

// TestClientsDoNotSteer: no way in lets a client say where an engine fetches from,
// neither in a body nor by a header.
func TestClientsDoNotSteer(t *testing.T) {
	e, got := recorder(t, anyJSON, wholeReply)
	r := newRig(t, setup{policy: Policy{Trusted: loopback}}, e)
	told := newRig(t, setup{policy: Policy{Trusted: loopback}, silent: engine.APIMessages}, e)
	const above = `"kv_transfer_params":{"remote_kv_source":{"remote_host":"evil"}},"ec_transfer_params":{"h":{"peer_host":"evil"}},` +
		`"bootstrap_host":"evil","bootstrap_port":1,"bootstrap_room":2,"remote_host":"evil",`
	// Within what has no counterpart in a chat, these keep a message from being told.
	const steer = above + `"vllm_xargs":{"kv_transfer_params":"evil"},"sampling_params":{"extra_args":{"kv_transfer_params":{"remote_host":"evil"}}},`
	headers := map[string]string{
		engine.PrefillerHeader: "evil:1", engine.SourceHeader: "evil:1", engine.EncodersHeader: "evil:1", engine.RankHeader: "7",
	}
	for _, c := range []struct {
		path, steer, prompt string
		r                   *rig
	}{
		{chatPath, steer, `"messages":[]`, r},
		{"/v1/completions", steer, `"prompt":"x"`, r},
		{"/v1/responses", steer, `"input":"x"`, r},
		{"/v1/messages", steer, `"max_tokens":4,"messages":[{"role":"user","content":"x"}]`, r},
		{"/v1/messages", above, `"max_tokens":4,"messages":[{"role":"user","content":"x"}]`, told},
		{"/inference/v1/generate", steer, `"token_ids":[1]`, r},
		{"/generate", steer, `"text":"x"`, r},
		{"/v1/embeddings", steer, `"input":"x"`, r},
	} {
		a := c.r.send("POST", c.path, `{`+c.steer+`"model":"m",`+c.prompt+`}`, headers)
		if len(got) == 0 {
			t.Errorf("%s: no engine was asked, and the client was answered %d %s", c.path, a.status, a.body)
			continue
		}
		q := <-got
		if strings.Contains(q.body, "evil") {
			t.Errorf("%s: the engine was asked %s", c.path, q.body)
		}
		for name := range headers {
			if v := q.header.Get(name); v != "" {
				t.Errorf("%s: the engine was told %s: %s", c.path, name, v)
			}
		}
	}
}

// TestSaltPerTenant: equal prompts of two tenants share no cache, neither at the
// engine nor in what is believed of it, and nobody can name another's salt.
func TestSaltPerTenant(t *testing.T) {
	e, got := recorder(t, anyJSON, wholeReply)
	r := newRig(t, setup{policy: Policy{Trusted: loopback, SaltPerTenant: true}}, e)
	long := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("word ", 200) + `"}]}`
	salts := map[string]string{}
	ask := func(tenant, body string) (salt string, matched fleet.Tokens) {
		r.send("POST", chatPath, body, map[string]string{"x-llm-d-inference-fairness-id": tenant})
		q := <-got
		_, rest, ok := strings.Cut(q.body, `"cache_salt":"`)
		if !ok {
			t.Fatalf("no salt: %.80s", q.body)
		}
		x := r.access()
		return rest[:32], x.Decisions[0].Candidates[0].Matched
	}
	for _, tenant := range []string{"a", "b", ""} {
		first, none := ask(tenant, long)
		again, some := ask(tenant, long)
		if first != again || none != 0 || some == 0 {
			t.Errorf("tenant %q: salts %s and %s, matched %d and %d", tenant, first, again, none, some)
		}
		if other, taken := salts[first]; taken {
			t.Errorf("tenants %q and %q share a salt", tenant, other)
		}
		salts[first] = tenant
	}
	for salt, tenant := range salts {
		stolen, matched := ask("thief", strings.Replace(long, "{", `{"cache_salt":"`+salt+`",`, 1))
		if stolen == salt || matched != 0 {
			t.Errorf("the salt of %q can be named", tenant)
		}
	}
	r.do("POST", "/v1/embeddings", `{"model":"m","input":"x"}`)
	if q := <-got; q.body != `{"model":"m","input":"x"}` {
		t.Errorf("an API without salts got one: %s", q.body)
	}
}

// TestAliasesAreExact: the engine sees the name it serves, the client the one it
// asked for, and nothing else changes.
func TestAliasesAreExact(t *testing.T) {
	const asked = `gpt "4"`
	served := func(text string) string { return strings.ReplaceAll(text, `"gpt \"4\""`, `"m"`) }
	body := ` {"messages":[{"role":"user","content":"which \"model\": \"m\"?"}],` + "\n" + `"model" : "gpt \"4\"" } `
	reply := `{"id":"c","model":"gpt \"4\"","choices":[{"index":0,"message":{"content":"\"model\":\"m\""},"finish_reason":"stop"}],"x":{"model":"m"}}`
	e, got := recorder(t, anyJSON, served(reply))
	models := []Model{{ID: "m"}, {ID: asked, Root: "m"}}
	r := newRig(t, setup{models: models}, e)
	if a := r.do("POST", chatPath, body); a.body != reply {
		t.Errorf("%s\nwant %s", a.body, reply)
	}
	if q := <-got; q.body != served(body) {
		t.Errorf("the engine was asked %s", q.body)
	}
	if x := r.access(); x.Model != asked {
		t.Errorf("account %+v", x)
	}

	chunk := `data: {"id":"c","object":"x","model":"gpt \"4\"","choices":[{"index":0,"delta":{"content":" \"model\":\"m\""}}]}` + "\n\n"
	stream := ": ping\n\n" + chunk + chunk + "data: {\"model\":\"another\",\"choices\":[]}\n\n" + finish + done
	raw := served(stream)
	for _, size := range []int{1, 7, len(raw)} {
		var parts []string
		for at := 0; at < len(raw); at += size {
			parts = append(parts, raw[at:min(at+size, len(raw))])
		}
		r := newRig(t, setup{models: models}, newEngine(t, func(w http.ResponseWriter, _ *http.Request) { pieces(w, parts...) }))
		a := r.do("POST", chatPath, `{"model":"gpt \"4\"","stream":true,"messages":[]}`)
		if a.body != stream || a.err != nil {
			t.Errorf("in pieces of %d: %s\nwant %s", size, a.body, stream)
		}
	}
}

func TestCORS(t *testing.T) {
	e, _ := recorder(t, anyJSON, wholeReply)
	r := newRig(t, setup{policy: Policy{Origins: []string{"https://a.example", "http://localhost:3000"}}}, e)
	preflight := map[string]string{"Origin": "https://a.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
	a := r.send("OPTIONS", chatPath, "", preflight)
	if h := a.header; a.status != 204 || h.Get("Access-Control-Allow-Origin") != "https://a.example" || h.Get("Access-Control-Allow-Headers") != "authorization,content-type" ||
		!strings.Contains(h.Get("Access-Control-Allow-Methods"), "POST") || !strings.Contains(strings.Join(h["Vary"], ","), "Origin") {
		t.Errorf("preflight: %+v", a)
	}
	if a := r.send("POST", chatPath, chatBody, map[string]string{"Origin": "https://a.example"}); a.status != 200 || a.header.Get("Access-Control-Allow-Origin") != "https://a.example" || a.body != wholeReply {
		t.Errorf("%+v", a)
	}
	preflight["Origin"] = "https://b.example"
	if a := r.send("OPTIONS", chatPath, "", preflight); a.status != 405 || a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("another origin: %+v", a)
	}
	r.gw.SetPolicy(Policy{Origins: []string{"*"}})
	if a := r.send("OPTIONS", chatPath, "", preflight); a.status != 204 || a.header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("any origin: %+v", a)
	}
	r.gw.SetPolicy(Policy{})
	if a := r.send("OPTIONS", chatPath, "", preflight); a.status != 405 || a.header.Get("Vary") != "" {
		t.Errorf("switched off: %+v", a)
	}
}

// TestEnginesDoNotSpeakForTheGateway: their answers to questions of origin are
// theirs.
func TestEnginesDoNotSpeakForTheGateway(t *testing.T) {
	e := newEngine(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Vary", "Origin")
		fmt.Fprint(w, wholeReply)
	})
	r := newRig(t, setup{}, e)
	if a := r.do("POST", chatPath, chatBody); a.status != 200 || a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("%+v", a)
	}
}

func TestModelsAreMerged(t *testing.T) {
	made := time.Unix(1_790_000_000, 0)
	r := newRig(t, setup{models: []Model{
		{ID: "base", Created: made, MaxModelLen: 4096},
		{ID: "lora", Created: made, Parent: "base"},
		{ID: "alias", Created: made, Root: "base"},
		{ID: "base", Created: made, MaxModelLen: 1},
	}})
	want := `{"object":"list","data":[{"id":"alias","object":"model","created":1790000000,"owned_by":"penstock","root":"base"},` +
		`{"id":"base","object":"model","created":1790000000,"owned_by":"penstock","max_model_len":4096},` +
		`{"id":"lora","object":"model","created":1790000000,"owned_by":"penstock","parent":"base"}]}`
	if a := r.do("GET", "/v1/models", ""); strings.TrimSpace(a.body) != want {
		t.Errorf("%s", a.body)
	}
}
