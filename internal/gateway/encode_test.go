package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
)

// Two images, and requests with both in every API.
const (
	imageA, imageB = `{"type":"image_url","image_url":{"url":"data:image/png;base64,AAA="}}`, `{"type":"image_url","image_url":{"url":"https://x/y"}}`
	imageChat      = `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"see"},` + imageA + `,` + imageB + `]}]}`
	imageResponses = `{"model":"m","input":[{"role":"user","content":[{"type":"input_image","image_url":"data:image/png;base64,AAA="},{"type":"input_image","image_url":"https://x/y"}]}]}`
	imageMessages  = `{"model":"m","max_tokens":4,"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAA="}},{"type":"image","source":{"type":"url","url":"https://x/y"}}]}]}`
)

// encoderOf encodes images: A has the hash a, B the hash b.
func encoderOf(t *testing.T, asked chan<- string) string {
	t.Helper()
	return newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		hash := "a"
		if strings.Contains(string(body), imageB) {
			hash = "b"
		}
		asked <- r.URL.Path + " " + string(body)
		w.Header().Set("Content-Type", anyJSON)
		fmt.Fprintf(w, `{"choices":[],"ec_transfer_params":{"%s":{"peer_host":"h","peer_port":1,"size_bytes":9,"nixl_agent_metadata_b64":"eA=="}}}`, hash)
	})
}

// add adds an endpoint of a role.
func (r *rig) add(name, url string, role fleet.Role, k engine.Connector) {
	r.endpoints = append(r.endpoints, r.pool.Add(live.Target{Name: name, URL: url, Role: role, Transfer: live.Transfer{Connector: string(k)}}))
}

// whereOf returns the ec_transfer_params that an engine was sent.
func whereOf(body string) string {
	_, rest, ok := strings.Cut(body, `"ec_transfer_params":`)
	if !ok {
		return ""
	}
	for n := range rest {
		if part := rest[:n+1]; strings.Count(part, "{") == strings.Count(part, "}") && n > 0 {
			return part
		}
	}
	return rest
}

// TestImagesAreEncodedElsewhere: each image of a request is a request to an encoder,
// in every API that has images, and the engine that computes the prompt is told
// where they are.
func TestImagesAreEncodedElsewhere(t *testing.T) {
	for _, c := range []struct{ path, body string }{{chatPath, imageChat}, {"/v1/responses", imageResponses}, {"/v1/messages", imageMessages}} {
		t.Run(c.path, func(t *testing.T) {
			asked := make(chan string, 8)
			e, got := recorder(t, anyJSON, `{"id":"x","status":"completed","output":[],"type":"message","content":[]}`)
			r := newRig(t, setup{}, e)
			r.add("enc-0", encoderOf(t, asked), fleet.RoleEncode, "")
			r.add("enc-1", encoderOf(t, asked), fleet.RoleEncode, "")
			if a := r.do("POST", c.path, c.body); a.status != http.StatusOK {
				t.Fatal(a)
			}
			for range 2 {
				want := chatPath + ` {"model":"m","messages":[{"role":"user","content":[%s]}],"max_tokens":1,"stream":false}`
				if q := <-asked; q != fmt.Sprintf(want, imageA) && q != fmt.Sprintf(want, imageB) {
					t.Errorf("an encoder was asked %s", q)
				}
			}
			const one = `{"peer_host":"h","peer_port":1,"size_bytes":9,"nixl_agent_metadata_b64":"eA=="}`
			q := <-got
			if where := whereOf(q.body); where != `{"a":`+one+`,"b":`+one+`}` {
				t.Errorf("the engine was told %s", where)
			}
			if rest := strings.Replace(q.body, `"ec_transfer_params":`+whereOf(q.body)+`,`, "", 1); rest != c.body {
				t.Errorf("the engine was asked %s", rest)
			}
			d := r.access().Decisions[0]
			if len(d.Encoders) != 2 || d.Encoders[0] == d.Encoders[1] {
				t.Errorf("%+v", d)
			}
		})
	}
}

// TestImagesOfSplitRequests: who computes the prompt is told of the images, who
// answers is not.
func TestImagesOfSplitRequests(t *testing.T) {
	asked := make(chan string, 8)
	p, atP := recorder(t, anyJSON, `{"choices":[],"kv_transfer_params":{"remote_engine_id":"e"}}`)
	d, atD := recorder(t, anyJSON, wholeReply)
	r := splitRig(t, engine.ConnectorNIXL, p, d)
	r.add("enc", encoderOf(t, asked), fleet.RoleEncode, "")
	if a := r.do("POST", chatPath, imageChat); a.status != http.StatusOK {
		t.Fatal(a)
	}
	if q := <-atP; !strings.HasPrefix(whereOf(q.body), `{"a":`) || !strings.Contains(q.body, `"do_remote_decode":true`) {
		t.Errorf("who computes the prompt was asked %s", q.body)
	}
	if q := <-atD; whereOf(q.body) != "" || !strings.Contains(q.body, `"remote_engine_id":"e"`) {
		t.Errorf("who answers was asked %s", q.body)
	}
}

// TestSidecarsAreToldOfEncoders: where sidecars have images encoded, they are told by
// a header by whom, and nobody else is asked.
func TestSidecarsAreToldOfEncoders(t *testing.T) {
	for _, split := range []bool{false, true} {
		asked := make(chan string, 8)
		e, got := recorder(t, anyJSON, wholeReply)
		one, two := encoderOf(t, asked), encoderOf(t, asked)
		r := newRig(t, setup{pool: func(o *live.Options) {
			if split {
				o.Config.Split = pool.SplitAlways
			}
		}})
		r.add("d", e, fleet.RoleDecode, engine.ConnectorLLMD)
		r.add("p", closedPort(t), fleet.RolePrefill, engine.ConnectorLLMD)
		r.add("enc-0", one, fleet.RoleEncode, "")
		r.add("enc-1", two, fleet.RoleEncode, "")
		if a := r.do("POST", chatPath, imageChat); a.status != http.StatusOK {
			t.Fatal(a)
		}
		q := <-got
		list := strings.Split(q.header.Get(engine.EncodersHeader), ",")
		host := func(url string) string { return strings.TrimPrefix(url, "http://") }
		if len(list) != 2 || list[0] == list[1] || !strings.Contains(q.header.Get(engine.EncodersHeader), host(one)) || !strings.Contains(q.header.Get(engine.EncodersHeader), host(two)) {
			t.Errorf("told %q", list)
		}
		if q.body != imageChat || len(asked) != 0 || (q.header.Get(engine.PrefillerHeader) != "") != split {
			t.Errorf("%v %s, %d encoders asked", q.header, q.body, len(asked))
		}
	}
}

// TestEncodersThatFail: an image that one encoder cannot encode another does, and
// what none does the engine does itself; no client hears of it.
func TestEncodersThatFail(t *testing.T) {
	say := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for _, c := range []struct {
		name  string
		bad   http.HandlerFunc // nil: it is not there
		spare bool             // another one is well
		want  bool             // the image is encoded
	}{
		{"dead", nil, false, false},
		{"dead, another is not", nil, true, true},
		{"5xx", say(500, "no"), true, true},
		{"full", say(503, "no"), true, true},
		{"no EC producer", say(200, wholeReply), true, true},
		{"no JSON", say(200, "<html>"), false, false},
		{"too much", say(200, strings.Repeat(" ", maxEncodeAnswer+1)), false, false},
		{"the image is none", say(400, "no"), true, false},
		{"hangs", hang, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked := make(chan string, 8)
			e, got := recorder(t, anyJSON, wholeReply)
			r := newRig(t, setup{limits: Limits{Encode: 200 * time.Millisecond}}, e)
			bad := closedPort(t)
			if c.bad != nil {
				bad = newEngine(t, c.bad)
			}
			r.add("bad", bad, fleet.RoleEncode, "")
			if c.spare {
				r.add("spare", encoderOf(t, asked), fleet.RoleEncode, "")
			}
			for i := range 64 {
				body := fmt.Sprintf(`{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"%d"}}]}]}`, i)
				if a := r.do("POST", chatPath, body); a.status != http.StatusOK || a.body != wholeReply {
					t.Fatal(a)
				}
				q, d := <-got, r.access().Decisions
				if d[0].Encoders[0] != r.endpoints[1].ID {
					continue // it went to the other one
				}
				if encoded := whereOf(q.body) != ""; encoded != c.want || len(d) != 1 {
					t.Errorf("asked %s, in %d attempts", q.body, len(d))
				}
				return
			}
			t.Error("no image went there")
		})
	}
}
