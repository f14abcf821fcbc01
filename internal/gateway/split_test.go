package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
)

// splitRig is a rig with an engine that computes prompts and one that answers.
func splitRig(t *testing.T, k engine.Connector, prefill, decode string) *rig {
	t.Helper()
	r := newRig(t, setup{pool: func(o *live.Options) { o.Config.Split = pool.SplitAlways }})
	for name, e := range map[string]live.Target{"p": {URL: prefill, Role: fleet.RolePrefill}, "d": {URL: decode, Role: fleet.RoleDecode}} {
		e.Name, e.Transfer = name, live.Transfer{Connector: string(k), Pulls: k.CanPull()}
		r.endpoints = append(r.endpoints, r.pool.Add(e))
	}
	return r
}

// TestSidecarsAreTold: where sidecars split requests, one engine is asked, and told
// by a header who computes the prompt.
func TestSidecarsAreTold(t *testing.T) {
	p, atP := recorder(t, anyJSON, wholeReply)
	d, atD := recorder(t, anyJSON, wholeReply)
	r := splitRig(t, engine.ConnectorLLMD, p, d)
	if a := r.do("POST", chatPath, chatBody); a.status != http.StatusOK {
		t.Fatal(a)
	}
	if q := <-atD; q.header.Get(engine.PrefillerHeader) != strings.TrimPrefix(p, "http://") || q.body != chatBody {
		t.Errorf("%v %s", q.header, q.body)
	}
	if len(atP) != 0 {
		t.Errorf("the other engine was asked %s", (<-atP).body)
	}
}

// holding answers when its client leaves, which it tells.
func holding(left chan<- string, name string) http.HandlerFunc {
	return func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		left <- name
	}
}

// TestOneLegFails: of two legs that run at once the other one is cancelled when one
// fails, and both when the client leaves.
func TestOneLegFails(t *testing.T) {
	refusing := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) }
	for _, refuses := range []string{"p", "d"} {
		t.Run(refuses, func(t *testing.T) {
			left := make(chan string, 16)
			urls := map[string]string{}
			for _, name := range []string{"p", "d"} {
				if name == refuses {
					urls[name] = newEngine(t, refusing)
				} else {
					urls[name] = newEngine(t, holding(left, name))
				}
			}
			r := splitRig(t, engine.ConnectorMoRIIOWrite, urls["p"], urls["d"])
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = r.try(ctx, "POST", chatPath, chatBody)
			}()
			if name := <-left; name == refuses {
				t.Errorf("%s was cancelled", name)
			}
			cancel()
			<-done
		})
	}
	t.Run("client leaves", func(t *testing.T) {
		left := make(chan string, 16)
		arrived := make(chan struct{}, 16)
		hold := func(name string) http.HandlerFunc {
			h := holding(left, name)
			return func(w http.ResponseWriter, r *http.Request) { arrived <- struct{}{}; h(w, r) }
		}
		r := splitRig(t, engine.ConnectorSGLang, newEngine(t, hold("p")), newEngine(t, hold("d")))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = r.try(ctx, "POST", chatPath, chatBody)
		}()
		<-arrived
		<-arrived
		cancel()
		if got := fmt.Sprint(len(<-left) + len(<-left)); got != "2" {
			t.Error(got)
		}
		<-done
	})
}

// TestHitThreshold: an engine that has enough of a prompt answers at once; when it
// has not, the prompt is computed elsewhere, and nobody is asked about hits again.
func TestHitThreshold(t *testing.T) {
	const missed = `{"choices":[{"finish_reason":"cache_threshold","message":{"content":""}}]}`
	const missedStream = `data: {"choices":[{"delta":{"role":"assistant","content":""}}]}` + "\n\n" + `data: {"choices":[{"delta":{},"finish_reason":"cache_threshold"}]}` + "\n\ndata: [DONE]\n\n"
	const said = `data: {"choices":[{"delta":{"role":"assistant","content":""}}]}` + "\n\n" + `data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}` + "\n\ndata: [DONE]\n\n"
	for _, c := range []struct {
		name, body, first, then string
		prefills                int
	}{
		{"enough", `{"cache_hit_threshold":0.5,"model":"m","messages":[]}`, wholeReply, "", 0},
		{"too little", `{"cache_hit_threshold":0.5,"model":"m","messages":[]}`, missed, wholeReply, 1},
		{"enough, streamed", `{"cache_hit_threshold":0.5,"stream":true,"model":"m","messages":[]}`, said, "", 0},
		{"too little, streamed", `{"cache_hit_threshold":0.5,"stream":true,"model":"m","messages":[]}`, missedStream, said, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, atP := recorder(t, anyJSON, wholeReply)
			answers := make(chan string, 2)
			answers <- c.first
			answers <- c.then
			d := newEngine(t, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				a := <-answers
				if a == c.then && !strings.Contains(string(body), `"cache_hit_threshold":0,`) {
					t.Errorf("asked again %s", body)
				}
				if strings.HasPrefix(a, "data:") {
					w.Header().Set("Content-Type", "text/event-stream")
				} else {
					w.Header().Set("Content-Type", anyJSON)
				}
				_, _ = io.WriteString(w, a)
			})
			r := splitRig(t, engine.ConnectorShared, p, d)
			want := c.first
			if c.prefills > 0 {
				want = c.then
			}
			if a := r.do("POST", chatPath, c.body); a.status != http.StatusOK || a.body != want || len(atP) != c.prefills {
				t.Errorf("%+v, %d prompts computed", a, len(atP))
			}
		})
	}
}
