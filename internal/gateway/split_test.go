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
	return splitRigWhen(t, pool.SplitAlways, k, prefill, decode)
}

func splitRigWhen(t *testing.T, when pool.Split, k engine.Connector, prefill, decode string) *rig {
	t.Helper()
	r := newRig(t, setup{pool: func(o *live.Options) { o.Config.Split = when }})
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

// TestPromptsAreRefused: where the engine that is asked for the prompt finds the
// request itself at fault, another is asked for the whole of it; where none is there for
// that, the client gets the verdict.
func TestPromptsAreRefused(t *testing.T) {
	const verdict = `{"error":{"message":"too long by far","type":"invalid_request_error","code":400}}`
	asked := func() (string, *atomic.Int32) {
		n := new(atomic.Int32)
		return newEngine(t, func(w http.ResponseWriter, _ *http.Request) {
			n.Add(1)
			w.Header().Set("Content-Type", anyJSON)
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, verdict)
		}), n
	}
	for _, c := range []struct {
		when   pool.Split
		status int
		body   string
	}{{pool.SplitAlways, http.StatusOK, wholeReply}, {pool.SplitOnly, http.StatusBadRequest, verdict}} {
		p, n := asked()
		d, atD := recorder(t, anyJSON, wholeReply)
		r := splitRigWhen(t, c.when, engine.ConnectorNIXL, p, d)
		a := r.do("POST", chatPath, chatBody)
		if a.status != c.status || a.body != c.body || n.Load() != 1 {
			t.Errorf("%v: %d %s, after %d prompts; want %d %s after one", c.when, a.status, a.body, n.Load(), c.status, c.body)
		}
		if whole := c.status == http.StatusOK; (len(atD) == 1) != whole {
			t.Errorf("%v: the other engine was asked %d times", c.when, len(atD))
		}
		if x := r.access(); x.Attempts != 1+len(atD) {
			t.Errorf("%v: %d attempts", c.when, x.Attempts)
		}
	}
}

// TestAnswersThatHaveBegunAreNotCut: a first leg that ends badly once the answer runs
// takes nothing from it.
func TestAnswersThatHaveBegunAreNotCut(t *testing.T) {
	seen, over := make(chan struct{}), make(chan struct{})
	p := newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-seen
		defer close(over)
		http.Error(w, "gone wrong", http.StatusInternalServerError)
	})
	d := newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		pieces(w, role, word)
		select {
		case <-over:
		case <-r.Context().Done():
			return
		}
		pieces(w, word, finish, usage, done)
	})
	r := splitRig(t, engine.ConnectorSGLang, p, d)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.front.URL+chatPath, strings.NewReader(streamBody))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.front.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	begun := make([]byte, len(role+word))
	if _, err := io.ReadFull(resp.Body, begun); err != nil {
		t.Fatal(err)
	}
	close(seen)
	rest, err := io.ReadAll(resp.Body)
	if got := string(begun) + string(rest); err != nil || got != whole {
		t.Errorf("%v\n%s", err, got)
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
