package gateway

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/perf"
)

// barringTransfers knows pairs that cannot exchange KV: all.
type barringTransfers struct{}

func (barringTransfers) Begin(Move, func(error)) (Moving, error) {
	return nil, fmt.Errorf("%w: they differ", ErrPair)
}

// TestPullsAreTold: an engine is told, in its connector's words, from whose cache to
// fetch what it lacks of a prompt; not where the two cannot exchange KV.
func TestPullsAreTold(t *testing.T) {
	long := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("word ", 20_000) + `"}]}`
	for _, k := range []engine.Connector{engine.ConnectorOffload, engine.ConnectorLLMD, engine.ConnectorNIXL} {
		for _, barred := range []bool{false, true} {
			t.Run(fmt.Sprint(k, ", barred ", barred), func(t *testing.T) {
				r := newRig(t, setup{pool: func(o *live.Options) { o.Config.Policy.Name = "predictive" }})
				if barred {
					r.gw.o.Transfers = barringTransfers{}
				}
				var asked []<-chan asked
				add := func(name string) live.Endpoint {
					url, got := recorder(t, anyJSON, wholeReply)
					asked = append(asked, got)
					e := r.pool.Add(live.Target{
						Name: name, URL: url, Step: perf.Step{Base: 1e-2, PerPrompt: 1e-4}, Wire: fleet.Link{PerToken: 1e-9},
						Transfer: live.Transfer{Connector: string(k), Pulls: k.CanPull(), Port: 7777},
					})
					r.endpoints = append(r.endpoints, e)
					return e
				}
				holder := add("holder")
				if a := r.do("POST", chatPath, long); a.status != http.StatusOK {
					t.Fatal(a)
				}
				<-asked[0]
				r.access()
				add("other")
				r.pool.Drain(holder)
				if a := r.do("POST", chatPath, long); a.status != http.StatusOK || a.body != wholeReply {
					t.Fatal(a)
				}
				q := <-asked[1]
				said := q.header.Get(engine.SourceHeader)
				if strings.Contains(q.body, `"kv_transfer_params":{"remote_kv_source":{"kv_request_id":"`) && strings.Contains(q.body, `"remote_host":"127.0.0.1","remote_port":7777}}`) {
					said = "body"
				}
				want := map[engine.Connector]string{engine.ConnectorOffload: "body", engine.ConnectorLLMD: strings.TrimPrefix(holder.URL, "http://")}[k]
				if barred {
					want = ""
				}
				if said != want {
					t.Errorf("told %q, want %q: %v %.300s", said, want, q.header, q.body)
				}
				if want != "body" && q.body != long {
					t.Error("the body is another one")
				}
				if d := r.access().Decisions[0]; (d.Source == holder.ID) != k.CanPull() {
					t.Errorf("%+v", d)
				}
			})
		}
	}
}
