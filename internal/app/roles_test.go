package app

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/discovery"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/route"
)

// roleRig is a pool whose members change their roles, without servers.
type roleRig struct {
	t *testing.T
	p *live.Pool
	m *members
	c config.Pool
}

func newRoleRig(t *testing.T, roles ...string) *roleRig {
	t.Helper()
	c := config.DefaultPool()
	c.Policy, c.Split, c.KV.Transfer.Connector, c.DrainTimeout = route.Spec{Name: "least-request"}, pool.SplitNever, "nixl", time.Minute
	p, err := live.NewPool(live.Options{Name: "p", Config: c.Config})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	r := &roleRig{t: t, p: p, c: c, m: newMembers(ctx, p, nil, slog.New(slog.DiscardHandler), func(context.Context, live.Endpoint) {})}
	t.Cleanup(func() { stop(); r.m.leaving.Wait(); p.Close() })
	r.m.configure(targetOf(c), c.DrainTimeout)
	r.list(roles...)
	return r
}

// list is what the source lists: endpoints a, b, … in these roles.
func (r *roleRig) list(roles ...string) {
	var list []discovery.Endpoint
	for i, role := range roles {
		name := string(rune('a' + i))
		list = append(list, discovery.Endpoint{Name: name, URL: "http://" + name + ":1", Role: role})
	}
	r.m.set("test", list)
}

// open brings a request and returns where it goes.
func (r *roleRig) open() (*live.Ticket, string) {
	r.t.Helper()
	k := r.p.Open("q", &pool.Arrive{Prompt: 100})
	o, err := k.Wait(r.t.Context())
	if err != nil || o.Refusal != fleet.RefuseNone {
		r.t.Fatalf("%v, refused: %v", err, o.Refusal)
	}
	return k, o.Endpoint.Name
}

func (r *roleRig) role(name string) string {
	for _, e := range r.p.Endpoints() {
		if e.Name == name {
			return e.Role.String()
		}
	}
	return "gone"
}

// An endpoint takes another role when what it has in the old one has ended, and
// takes nothing new before.
func TestRolesChangeThroughDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoleRig(t, "decode", "decode")
		k, at := r.open()
		other := map[string]string{"a": "b", "b": "a"}[at]
		if err := r.m.setRole(at, fleet.RolePrefill, 0); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			time.Sleep(time.Second)
			if now := r.m.turnings()[at]; now.Open != 1 || !now.Draining || now.From != "decode" || now.To != "prefill" || r.role(at) != "decode" {
				t.Errorf("%+v, role %s", now, r.role(at))
			}
			next, to := r.open()
			if next.Done(fleet.Usage{}); to != other {
				t.Errorf("a new request went to %s", to)
			}
			next.Close()
		}
		k.Done(fleet.Usage{})
		k.Close()
		time.Sleep(time.Second)
		if r.role(at) != "prefill" || len(r.m.turnings()) != 0 {
			t.Errorf("role %s, turning %v", r.role(at), r.m.turnings())
		}
		// It stays so whatever the source lists, until it is the source's to say again.
		r.list("decode", "both")
		if r.list("decode", "decode"); r.role(at) != "prefill" {
			t.Errorf("role %s", r.role(at))
		}
		if err := r.m.setRole(other, fleet.RolePrefill, 0); !errors.Is(err, errRole) {
			t.Errorf("the last that answers: %v", err)
		}
		if err := r.m.clearRole(at); err != nil {
			t.Fatal(err)
		}
		if time.Sleep(time.Second); r.role(at) != "decode" {
			t.Errorf("role %s", r.role(at))
		}
	})
}

// What does not end in time goes on beside the new role, and a change that is
// taken back in time was none.
func TestRolesDoNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoleRig(t, "decode", "decode")
		k, at := r.open()
		defer k.Close()
		if err := r.m.setRole(at, fleet.RolePrefill, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if time.Sleep(4 * time.Second); r.role(at) != "decode" {
			t.Errorf("role %s", r.role(at))
		}
		if err := r.m.clearRole(at); err != nil {
			t.Fatal(err)
		}
		if time.Sleep(4 * time.Second); r.role(at) != "decode" || len(r.m.turnings()) != 0 {
			t.Errorf("role %s, %v", r.role(at), r.m.turnings())
		}
		if err := r.m.setRole(at, fleet.RolePrefill, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if time.Sleep(6 * time.Second); r.role(at) != "prefill" {
			t.Errorf("role %s", r.role(at))
		}
	})
}

// A reload that swaps roles leaves nobody without an answer: who is to stop
// answering waits for who is to begin.
func TestReloadedRolesChangeInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoleRig(t, "prefill", "decode")
		k, at := r.open()
		if at != "b" {
			t.Fatal(at)
		}
		r.list("decode", "prefill")
		next, to := r.open()
		if to != "a" && to != "b" {
			t.Error(to)
		}
		next.Done(fleet.Usage{})
		next.Close()
		time.Sleep(time.Second)
		if r.role("a") != "decode" || r.role("b") != "decode" || !r.m.turnings()["b"].Draining {
			t.Errorf("a %s, b %s, %+v", r.role("a"), r.role("b"), r.m.turnings())
		}
		k.Done(fleet.Usage{})
		k.Close()
		if time.Sleep(time.Second); r.role("b") != "prefill" {
			t.Errorf("b %s", r.role("b"))
		}
		// An endpoint that leaves while it turns is gone.
		if err := r.m.setRole("b", fleet.RoleBoth, 0); err != nil {
			t.Fatal(err)
		}
		r.list("decode")
		if time.Sleep(time.Second); r.role("b") != "gone" {
			t.Errorf("b %s", r.role("b"))
		}
	})
}

// Roles that cannot be are refused.
func TestRolesThatCannotBeGiven(t *testing.T) {
	r := newRoleRig(t, "decode", "both")
	if err := r.m.setRole("c", fleet.RoleBoth, 0); err == nil {
		t.Error("an endpoint that is not there has a role")
	}
	r.c.KV.Transfer.Connector = ""
	r.m.configure(targetOf(r.c), time.Minute)
	if err := r.m.setRole("b", fleet.RolePrefill, 0); !errors.Is(err, errRole) {
		t.Errorf("no connector: %v", err)
	}
}
