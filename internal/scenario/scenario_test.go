package scenario

import (
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
)

func TestScenariosHoldOrSayWhatHappened(t *testing.T) {
	affinity := pool.Default()
	affinity.Policy.Name = "prefix-affinity"
	fewest := pool.Default()
	fewest.Policy.Name = "least-request"
	fewest.Room.MaxInFlight = 3
	fewest.Queue.MaxRequests = 0
	for _, c := range []struct {
		test   Test
		config pool.Config
		want   string // part of what happened instead; "" when it must hold
	}{
		{Test{
			Name: "a session goes to its cache", Request: Request{Tokens: 9000, Prefix: "s"},
			Endpoints: []Endpoint{{Name: "a", Cached: map[string]fleet.Tokens{"s": 8000}}, {Name: "b"}}, Expect: Expect{Endpoint: "a"},
		}, affinity, ""},
		{Test{
			Name: "not behind a long backlog", Request: Request{Tokens: 9000, Prefix: "s"},
			Endpoints: []Endpoint{{Name: "a", Cached: map[string]fleet.Tokens{"s": 8000}, InFlight: 3, TokensEach: 20_000}, {Name: "b"}}, Expect: Expect{Not: []string{"a"}},
		}, affinity, ""},
		{Test{
			Name: "decoding is no backlog", Request: Request{Tokens: 9000, Prefix: "s"},
			Endpoints: []Endpoint{{Name: "a", Cached: map[string]fleet.Tokens{"s": 8000}, InFlight: 3, TokensEach: 20_000, Decoding: true}, {Name: "b"}}, Expect: Expect{Endpoint: "a"},
		}, affinity, ""},
		{Test{
			Name: "ties fall either way", Request: Request{Tokens: 10}, Endpoints: []Endpoint{{Name: "a"}, {Name: "b"}}, Expect: Expect{Endpoint: "a"},
		}, affinity, "it went to b"},
		{Test{
			Name: "the ejected and the draining are out", Request: Request{Tokens: 10},
			Endpoints: []Endpoint{{Name: "a", State: "ejected"}, {Name: "b", State: "draining"}, {Name: "c", InFlight: 2}}, Expect: Expect{OneOf: []string{"c"}},
		}, fewest, ""},
		{Test{
			Name: "others' load counts", Request: Request{Tokens: 10},
			Endpoints: []Endpoint{{Name: "a", Gauges: &Gauges{Running: 2}}, {Name: "b", InFlight: 1}}, Expect: Expect{Endpoint: "b"},
		}, fewest, ""},
		{Test{
			Name: "but not when it is an hour old", Request: Request{Tokens: 10},
			Endpoints: []Endpoint{{Name: "a", Gauges: &Gauges{Running: 2, Age: time.Hour}}, {Name: "b", InFlight: 1}}, Expect: Expect{Endpoint: "a"},
		}, fewest, ""},
		{Test{
			Name: "full is refused without a queue", Request: Request{Tokens: 10},
			Endpoints: []Endpoint{{Name: "a", InFlight: 3}}, Expect: Expect{Refused: "queue-full"},
		}, fewest, ""},
		{Test{
			Name: "full waits in the queue", Request: Request{Tokens: 10},
			Endpoints: []Endpoint{{Name: "a", MaxSeqs: 1, InFlight: 1}}, Expect: Expect{Queued: true},
		}, affinity, ""},
		{Test{
			Name: "nobody is left", Request: Request{Tokens: 10},
			Endpoints: []Endpoint{{Name: "a", State: "ejected"}}, Expect: Expect{Endpoint: "a"},
		}, affinity, "refused: no-endpoint"},
	} {
		if errs := c.test.Validate(); len(errs) > 0 {
			t.Fatalf("%s: %v", c.test.Name, errs)
		}
		err := c.test.Run(c.config)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.test.Name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.test.Name, err, c.want)
		}
	}
}

func TestValidateNamesEveryProblem(t *testing.T) {
	bad := Test{Endpoints: []Endpoint{{}, {Name: "a", State: "asleep", InFlight: -1}, {Name: "a"}}, Expect: Expect{Endpoint: "z", Queued: true}}
	if errs := bad.Validate(); len(errs) != 8 {
		t.Errorf("%d problems, want 8: %v", len(errs), errs)
	}
}
