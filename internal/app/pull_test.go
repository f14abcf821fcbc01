package app

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/obs"
)

// startPulling runs a gateway before engines that fetch from each other.
func startPulling(t *testing.T) (*App, *Simulated) {
	t.Helper()
	sim, err := Simulate(server.Options{Seed: 1, Speedup: 4}, Fleet{Replicas: 2, Connector: "offload"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	c := config.Default()
	c.Pools = []config.Pool{sim.Pool}
	a, err := Start(Options{
		Config: c, Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Transfer: TransferPort{Listen: "127.0.0.1:0", Token: token}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a, sim
}

// long is a prompt that is sooner fetched than computed.
func long(about string) string {
	return strings.Repeat("what is known of "+about+", at some length. ", 600)
}

// hold has one endpoint compute prompts, each its own, and drains it: they are
// served elsewhere from now on.
func hold(t *testing.T, a *App, prompts ...string) live.Endpoint {
	t.Helper()
	p := a.fleet.all()[0]
	all := p.Endpoints()
	other, holder := all[0], all[1]
	p.Drain(other)
	for i, text := range prompts {
		id := fmt.Sprint("held", i)
		if complete(t, a, id, text, true); explained(t, a, id).Attempts[0].Chosen != holder.Name {
			t.Fatal("it is not where it should be")
		}
	}
	p.Add(other.Target)
	p.Drain(holder)
	return holder
}

// pullOf returns what the record of a request served at once says of fetching.
func pullOf(t *testing.T, r *obs.Record) obs.Plan {
	t.Helper()
	if len(r.Attempts) != 1 || r.Outcome.Status != http.StatusOK {
		t.Fatalf("%+v", r)
	}
	at := &r.Attempts[0]
	i := slices.IndexFunc(at.Plans, func(p obs.Plan) bool { return p.Taken })
	if i < 0 || at.Plans[i].Kind != "pull" {
		return obs.Plan{}
	}
	if at.Plans[i].Source != at.Source || at.Source == at.Chosen || at.Pulled < 8000 {
		t.Errorf("%+v", at)
	}
	return at.Plans[i]
}

func scraped(t *testing.T, a *App) string {
	t.Helper()
	resp, err := http.Get(a.AdminURL() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// A prompt that is cached where it cannot be served is fetched from there: the
// engine's own report, the record, the ticket and the metrics say so.
func TestPromptsAreFetchedFromWhoHasThem(t *testing.T) {
	a, _ := startPulling(t)
	prompts := []string{long("sluices"), long("penstocks")}
	holder := hold(t, a, prompts...)
	moved := 0
	for i, text := range prompts {
		id := fmt.Sprint("again", i)
		_, cached := complete(t, a, id, text, i == 0)
		r := explained(t, a, id)
		if p := pullOf(t, &r); p.Source != holder.Name || p.MoveMs <= 0 {
			t.Errorf("plan %+v of %+v", p, r.Attempts[0])
		}
		if m := r.Outcome.Moved; m == nil || m.Tokens != r.Attempts[0].Pulled || cached != m.Tokens || m.ExpectedMs <= 0 {
			t.Errorf("%d tokens cached, moved %+v", cached, m)
		} else {
			moved += m.Tokens
		}
	}
	var list tickets
	call(t, a, http.MethodGet, "/tickets", nil, &list)
	if len(list.Tickets) != len(prompts) || list.Tally.Done != uint64(len(prompts)) {
		t.Errorf("%+v", list)
	}
	for _, k := range list.Tickets {
		if k.Stage != "done" || k.Source != "@sim/"+holder.Name || k.Moved <= 0 || k.Tokens < 8000 {
			t.Errorf("%+v", k)
		}
	}
	page := scraped(t, a)
	source := `source="@sim/` + holder.Name + `"`
	for _, line := range []string{
		fmt.Sprintf(`penstock_transfer_tokens_total{%s} %d`, source, moved),
		fmt.Sprintf(`penstock_transfers_total{outcome="done",%s} %d`, source, len(prompts)),
	} {
		if !strings.Contains(page, line+"\n") {
			t.Errorf("no %q in the metrics", line)
		}
	}
	if _, cached := complete(t, a, "there", prompts[0], true); cached < 8000 || explained(t, a, "there").Attempts[0].Source != "" {
		t.Errorf("it is fetched again: %d tokens cached", cached)
	}
}

// A source that gives nothing costs no client anything, and is not asked for long.
func TestSourcesThatFail(t *testing.T) {
	const asked = 3 // times in a row, before it rests
	var prompts []string
	for i := range asked + 2 {
		prompts = append(prompts, long(fmt.Sprint("weir ", i)))
	}
	t.Run("it serves nobody", func(t *testing.T) {
		a, sim := startPulling(t)
		holder := hold(t, a, prompts...)
		for i := range sim.Pool.Endpoints {
			if sim.Pool.Endpoints[i].Name == holder.Name {
				if err := sim.nodes[i].Server.SetFault(server.Fault{Kind: "pd-side-gone"}); err != nil {
					t.Fatal(err)
				}
			}
		}
		for i, text := range prompts {
			id := fmt.Sprint("again", i)
			got, cached := complete(t, a, id, text, i%2 == 0)
			r := explained(t, a, id)
			if got == "" || cached != 0 || r.Outcome.Moved != nil {
				t.Errorf("%q, %d tokens cached, %+v", got, cached, r.Outcome)
			}
			if p := pullOf(t, &r); (p.Source == holder.Name) != (i < asked) {
				t.Errorf("request %d: %+v", i, p)
			}
		}
		var list tickets
		call(t, a, http.MethodGet, "/tickets", nil, &list)
		if list.Tally.Aborted != asked || list.Tally.Done != 0 || list.Tally.Open != 0 || list.Tally.Bytes != 0 {
			t.Errorf("%+v", list.Tally)
		}
	})
	t.Run("it is killed", func(t *testing.T) {
		a, sim := startPulling(t)
		holder := hold(t, a, prompts[:2]...)
		for i := range sim.Pool.Endpoints {
			if sim.Pool.Endpoints[i].Name == holder.Name {
				if err := sim.nodes[i].Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		for i, text := range prompts[:2] {
			id := fmt.Sprint("again", i)
			got, cached := complete(t, a, id, text, i%2 == 0)
			r := explained(t, a, id)
			if pullOf(t, &r); got == "" || cached != 0 || r.Outcome.Moved != nil {
				t.Errorf("%q, %d tokens cached, %+v", got, cached, r.Outcome)
			}
		}
	})
}
