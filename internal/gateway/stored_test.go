package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
)

// storing is an engine that keeps responses under ids that begin with its name.
func storing(t testing.TB, name string) string {
	t.Helper()
	n := 0
	return newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		id := fmt.Sprintf("resp_%s%d", name, n)
		switch {
		case r.Method != "POST" || strings.HasSuffix(r.URL.Path, "/cancel"):
			if !strings.Contains(r.URL.Path, "resp_"+name) {
				http.Error(w, `{"error":{"message":"not mine"}}`, 404)
				return
			}
			if strings.Contains(r.URL.RawQuery, "stream=true") {
				pieces(w, "data: {\"type\":\"response.created\",\"response\":{\"model\":\"m\"}}\n\n", "data: {\"type\":\"response.completed\",\"response\":{\"model\":\"m\"}}\n\n")
				return
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"from":%q,"method":%q,"uri":%q,"model":"m"}`, name, r.Method, r.URL.RequestURI())
		case strings.Contains(string(body), `"stream":true`):
			n++
			pieces(w, fmt.Sprintf("event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":%q,\"model\":\"m\"}}\n\n", id),
				fmt.Sprintf("event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":%q,\"model\":\"m\",\"status\":\"completed\"}}\n\n", id))
		default:
			n++
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"id":%q,"model":"m","status":"completed","output":[],"asked":%q}`, id, body)
		}
	})
}

func TestResponsesByIDGoToTheirOwner(t *testing.T) {
	r := newRig(t, setup{models: []Model{{ID: "m"}, {ID: "alias", Root: "m"}}}, storing(t, "a"), storing(t, "b"))
	for i, body := range []string{`{"model":"m","input":"x"}`, `{"model":"m","input":"x"}`, `{"model":"m","stream":true,"input":"x"}`, `{"model":"m","stream":true,"input":"x"}`} {
		a := r.do("POST", "/v1/responses", body)
		owner := "ab"[strings.Index("ab", a.body[strings.Index(a.body, "resp_")+5:][:1])]
		id := fmt.Sprintf("resp_%c%d", owner, i/2)
		for _, q := range []struct{ method, path string }{
			{"GET", "/v1/responses/" + id},
			{"GET", "/v1/responses/" + id + "?include[]=a%20b"},
			{"DELETE", "/v1/responses/" + id},
			{"POST", "/v1/responses/" + id + "/cancel"},
			{"GET", "/v1/responses/" + id + "/input_items?limit=2"},
		} {
			want := fmt.Sprintf(`{"from":"%c","method":%q,"uri":%q,"model":"m"}`, owner, q.method, q.path)
			if got := r.do(q.method, q.path, ""); got.status != 200 || got.body != want {
				t.Errorf("%s %s: %+v, want %s", q.method, q.path, got, want)
			}
		}
		// What continues it goes where it is, whatever the policy says.
		for range 3 {
			next := r.do("POST", "/v1/responses", fmt.Sprintf(`{"model":"m","previous_response_id":%q,"input":"y"}`, id))
			if !strings.Contains(next.body, fmt.Sprintf(`"id":"resp_%c`, owner)) {
				t.Errorf("%s is continued by %s", id, next.body)
			}
		}
	}
	wantProblem(t, r.do("GET", "/v1/responses/resp_none", ""), 404, "response_not_found")
	wantProblem(t, r.do("PUT", "/v1/responses/resp_none", ""), 405, "method_not_allowed")
	wantProblem(t, r.do("POST", "/v1/responses/resp_none", "{}"), 404, "unknown_url")
	wantProblem(t, r.do("GET", "/v1/responses/resp_none/cancel", ""), 405, "method_not_allowed")
	if a := r.do("POST", "/v1/responses", `{"model":"m","previous_response_id":"resp_none","input":"y"}`); a.status != 200 {
		t.Errorf("what only the engines may know is not asked of them: %+v", a)
	}
}

func TestStoredResponsesKeepTheAlias(t *testing.T) {
	r := newRig(t, setup{models: []Model{{ID: "m"}, {ID: "alias", Root: "m"}}}, storing(t, "a"))
	if a := r.do("POST", "/v1/responses", `{"model":"alias","input":"x"}`); !strings.Contains(a.body, `"model":"alias"`) || !strings.Contains(a.body, `"asked":"{\"model\":\"m\"`) {
		t.Errorf("%+v", a)
	}
	if a := r.do("GET", "/v1/responses/resp_a0", ""); !strings.HasSuffix(a.body, `"model":"alias"}`) {
		t.Errorf("%+v", a)
	}
	a := r.do("GET", "/v1/responses/resp_a0?stream=true", "")
	if strings.Count(a.body, `"model":"alias"`) != 2 || strings.Contains(a.body, `"model":"m"`) || a.err != nil {
		t.Errorf("%+v", a)
	}
}

func TestStoredResponsesGoWithTheirEndpoint(t *testing.T) {
	dead := closedPort(t)
	r := newRig(t, setup{}, storing(t, "a"), storing(t, "b"))
	ids := map[string]live.Endpoint{}
	for range 2 {
		a := r.do("POST", "/v1/responses", `{"model":"m","input":"x"}`)
		id := a.body[strings.Index(a.body, "resp_"):][:len("resp_a0")]
		x := r.access()
		e, _ := r.pool.Endpoint(x.Outcome.Endpoint)
		ids[id] = e
	}
	r.pool.Remove(ids["resp_a0"])
	wantProblem(t, r.do("GET", "/v1/responses/resp_a0", ""), 404, "response_not_found")
	b := ids["resp_b0"].Target
	b.URL = dead
	r.pool.Add(b) // another process under the same name
	wantProblem(t, r.do("GET", "/v1/responses/resp_b0", ""), 404, "response_not_found")
	r.gw.owners.learn("resp_dead", owner{pool: r.pool, endpoint: ids["resp_b0"].ID, gen: ids["resp_b0"].Gen + 1, asked: "m", model: "m", until: time.Now().Add(time.Hour)})
	wantProblem(t, r.do("GET", "/v1/responses/resp_dead", ""), 502, "engine")
	if x := lastAccess(r); x.Status != 502 || x.Err == nil || x.Model != "m" {
		t.Errorf("account %+v", x)
	}
}

func lastAccess(r *rig) Access {
	a := r.access()
	for len(r.seen) > 0 {
		a = <-r.seen
	}
	return a
}

// TestStoredResponsesAreTheirTenants: an id is no secret.
func TestStoredResponsesAreTheirTenants(t *testing.T) {
	r := newRig(t, setup{policy: Policy{Trusted: loopback}}, storing(t, "a"))
	mine, theirs := map[string]string{"x-llm-d-inference-fairness-id": "me"}, map[string]string{"x-llm-d-inference-fairness-id": "them"}
	if a := r.send("POST", "/v1/responses", `{"model":"m","input":"x"}`, mine); a.status != 200 {
		t.Fatalf("%+v", a)
	}
	if a := r.send("GET", "/v1/responses/resp_a0", "", mine); a.status != 200 {
		t.Errorf("%+v", a)
	}
	for _, header := range []map[string]string{theirs, nil} {
		for _, method := range []string{"GET", "DELETE"} {
			wantProblem(t, r.send(method, "/v1/responses/resp_a0", "", header), 404, "response_not_found")
		}
		wantProblem(t, r.send("POST", "/v1/responses", `{"model":"m","previous_response_id":"resp_a0","input":"x"}`, header), 404, "response_not_found")
	}
}

func TestOwnersAreBounded(t *testing.T) {
	p, err := live.NewPool(live.Options{Name: "p", Config: pool.Default()})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	e := p.Add(live.Target{Name: "e", URL: "http://e"})
	var o owners
	now := time.Now()
	w := owner{pool: p, endpoint: e.ID, gen: e.Gen, until: now.Add(time.Hour)}
	for i := range maxOwners + 10 {
		o.learn(fmt.Sprint(i), w)
		o.learn(fmt.Sprint(i), w)
	}
	if len(o.byID) != maxOwners || len(o.order) != maxOwners {
		t.Errorf("%d owners", len(o.byID))
	}
	for id, want := range map[string]bool{"9": false, "10": true, fmt.Sprint(maxOwners + 9): true} {
		if _, _, ok := o.find(id, "", now); ok != want {
			t.Errorf("%s is known: %v", id, ok)
		}
	}
	if _, _, ok := o.find("10", "", now.Add(2*time.Hour)); ok {
		t.Error("nothing is forgotten")
	}
	o.learn(strings.Repeat("x", maxOwnedID+1), w)
	if len(o.byID) != maxOwners {
		t.Error("an id of any length is kept")
	}
}
