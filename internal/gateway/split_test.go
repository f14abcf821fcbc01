package gateway

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
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

// refusesAfter answers 500 once another engine has been asked, and as it should from
// then on.
func refusesAfter(t *testing.T, other *watched) string {
	t.Helper()
	var asked atomic.Bool
	return newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		if asked.Swap(true) {
			_, _ = io.WriteString(w, wholeReply)
			return
		}
		select {
		case <-other.began:
		case <-r.Context().Done():
		}
		http.Error(w, "no", http.StatusInternalServerError)
	})
}

// TestOneLegFails: of two legs that run at once the other one is cancelled when one
// fails. Neither costs the client anything while the engine that answers is well by
// itself.
func TestOneLegFails(t *testing.T) {
	t.Run("the prompt", func(t *testing.T) {
		d := &watched{began: make(chan struct{}, 1), gone: make(chan struct{}, 1)}
		again := make(chan struct{})
		d.url = newEngine(t, func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-again:
				_, _ = io.WriteString(w, wholeReply)
			default:
				close(again)
				d.began <- struct{}{}
				<-r.Context().Done()
				d.gone <- struct{}{}
			}
		})
		r := splitRig(t, engine.ConnectorMoRIIOWrite, refusesAfter(t, d), d.url)
		if a := r.do("POST", chatPath, chatBody); a.status != http.StatusOK || a.body != wholeReply {
			t.Errorf("%d %s", a.status, a.body)
		}
		wait(t, "the leg that would have answered to be cancelled", d.gone)
	})
	t.Run("the answer", func(t *testing.T) {
		p := newWatched(t, nil)
		r := splitRig(t, engine.ConnectorMoRIIOWrite, p.url, refusesAfter(t, p))
		if a := r.do("POST", chatPath, chatBody); a.status != http.StatusOK || a.body != wholeReply {
			t.Errorf("%d %s", a.status, a.body)
		}
		wait(t, "the leg that computes the prompt to be cancelled", p.gone)
	})
	t.Run("the client", func(t *testing.T) {
		p, d := newWatched(t, nil), newWatched(t, nil)
		r := splitRig(t, engine.ConnectorSGLang, p.url, d.url)
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = r.try(ctx, "POST", chatPath, chatBody)
		}()
		wait(t, "the leg that computes the prompt", p.began)
		wait(t, "the leg that answers", d.began)
		leave()
		wait(t, "the leg that computes the prompt to be cancelled", p.gone)
		wait(t, "the leg that answers to be cancelled", d.gone)
		wait(t, "the client", done)
	})
}

// TestPromptsFailInsideStreams: where both engines are sent the same, the one that
// computes the prompt may say in a stream that has begun well that it has failed. The
// other one waits for nothing then.
func TestPromptsFailInsideStreams(t *testing.T) {
	there := make(chan struct{}) // closed once the other leg is
	p := newEngine(t, func(w http.ResponseWriter, _ *http.Request) {
		<-there
		pieces(w, `data: {"error":{"message":"KVTransferError","code":500}}`+"\n\n", done)
	})
	var asked atomic.Bool
	d := newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		if !asked.Swap(true) {
			close(there)
			_, _ = io.Copy(io.Discard, r.Body) // who has not read it is not told that the client left
			<-r.Context().Done()
			return
		}
		pieces(w, whole)
	})
	r := splitRig(t, engine.ConnectorSGLang, p, d)
	if a := r.do("POST", chatPath, streamBody); a.status != http.StatusOK || a.body != whole {
		t.Errorf("%d %s", a.status, a.body)
	}
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
			close(answers)
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
