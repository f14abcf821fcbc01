package pool

import (
	"fmt"
	"testing"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/stat"
)

// leaver is a policy that notes which slots it is told to forget.
type leaver struct{ left []int }

func (p *leaver) Leave(slot int) { p.left = append(p.left, slot) }

func (p *leaver) Pick(_ *route.View, q *route.Query, _ *stat.Rand, out *route.Plan) {
	for _, c := range q.Candidates {
		out.Score[c] = 0
	}
	out.Chosen = q.Candidates[0]
}

func TestPoliciesHearWhoLeft(t *testing.T) {
	d, err := Assemble(Default())
	if err != nil {
		t.Fatal(err)
	}
	policy, shadow := &leaver{}, &leaver{}
	d.Policy, d.Shadow = policy, shadow
	b := New(Default(), d, 1)
	for _, c := range []struct {
		name string
		ev   Endpoint
		want string
	}{
		{"one comes", Endpoint{Endpoint: 7, Gen: 1, Change: EndpointUp}, "[]"},
		{"another comes", Endpoint{Endpoint: 8, Gen: 1, Change: EndpointUp}, "[]"},
		{"told again", Endpoint{Endpoint: 8, Gen: 1, Change: EndpointUp}, "[]"},
		{"drains", Endpoint{Endpoint: 8, Gen: 1, Change: EndpointDrain}, "[]"},
		{"a new process", Endpoint{Endpoint: 8, Gen: 2, Change: EndpointUp}, "[1]"},
		{"leaves", Endpoint{Endpoint: 7, Gen: 1, Change: EndpointGone}, "[1 0]"},
		{"left long ago", Endpoint{Endpoint: 7, Gen: 1, Change: EndpointGone}, "[1 0]"},
		{"a third takes the slot", Endpoint{Endpoint: 9, Gen: 1, Change: EndpointUp}, "[1 0]"},
	} {
		b.Step(fleet.Time(0), &c.ev, nil)
		if got := fmt.Sprint(policy.left); got != c.want || fmt.Sprint(shadow.left) != got {
			t.Errorf("%s: policy told %v, shadow %v, want %s", c.name, policy.left, shadow.left, c.want)
		}
	}
}
