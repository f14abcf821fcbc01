// Package scenario checks what a pool's configuration decides: given this state
// of the fleet, this request goes there. It leads a real brain into the state by
// events, as traffic would, and asks it.
package scenario

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/stat"
)

// File is a list of tests.
type File struct {
	// Tests are run in order.
	Tests []Test `json:"tests"`
}

// Test is one assertion.
type Test struct {
	// Name says what is asserted.
	Name string `json:"name"`
	// Pool is the pool of the Fleet file whose configuration decides; it may be
	// left out when there is one.
	Pool string `json:"pool"`
	// Endpoints are the fleet's state.
	Endpoints []Endpoint `json:"endpoints"`
	// Request is what arrives.
	Request Request `json:"request"`
	// Expect is what must happen, whichever way ties fall.
	Expect Expect `json:"expect"`
}

// Endpoint is the state of one endpoint.
type Endpoint struct {
	// Name is what expectations call it.
	Name string `json:"name"`
	// State is up, ejected or draining.
	State string `json:"state"`
	// InFlight is how many requests it has.
	InFlight int `json:"inFlight"`
	// TokensEach is the prompt length of each of them.
	TokensEach fleet.Tokens `json:"tokensEach"`
	// Decoding says that they have had their first token: they hold context, but
	// no prompt is waiting to be computed.
	Decoding bool `json:"decoding"`
	// Cached are the prefixes that went through it, by name, in tokens.
	Cached map[string]fleet.Tokens `json:"cached"`
	// KVTokens is its KV cache; 0 is unknown.
	KVTokens fleet.Tokens `json:"kvTokens"`
	// MaxSeqs is how many sequences it runs; 0 is unknown.
	MaxSeqs int `json:"maxSeqs"`
	// Gauges are what it last said of itself; without them it was never scraped.
	Gauges *Gauges `json:"gauges"`
}

// Gauges are what an endpoint said of itself.
type Gauges struct {
	// Running is the number of running requests.
	Running int `json:"running"`
	// Waiting is the number of waiting requests.
	Waiting int `json:"waiting"`
	// KVUsage is the share of its KV cache in use.
	KVUsage float64 `json:"kvUsage"`
	// Age is how long ago that was.
	Age time.Duration `json:"age"`
}

// Request is what arrives.
type Request struct {
	// Tokens is the length of the prompt.
	Tokens fleet.Tokens `json:"tokens"`
	// Prefix names the text the prompt begins with; endpoints that cached a prefix
	// of that name share it, as far as both go.
	Prefix string `json:"prefix"`
	// MaxTokens is the output limit.
	MaxTokens fleet.Tokens `json:"maxTokens"`
}

// Expect is what must happen; exactly one field is set.
type Expect struct {
	// Endpoint is where the request must go.
	Endpoint string `json:"endpoint"`
	// OneOf are the endpoints it may go to.
	OneOf []string `json:"oneOf"`
	// Not are the endpoints it must not go to.
	Not []string `json:"not"`
	// Queued says that it must wait.
	Queued bool `json:"queued"`
	// Refused is the reason for which it must be refused: queue-full or
	// no-endpoint.
	Refused string `json:"refused"`
}

// The states of an endpoint.
const (
	stateUp       = "up"
	stateEjected  = "ejected"
	stateDraining = "draining"
)

// Validate returns every problem of t, with paths below the test.
func (t Test) Validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if t.Name == "" {
		bad("name: is required: say what is asserted")
	}
	if t.Request.Tokens < 1 {
		bad("request.tokens: must be at least 1, is %d", t.Request.Tokens)
	}
	if len(t.Endpoints) == 0 && t.Expect.Refused == "" {
		bad("endpoints: is empty")
	}
	names := map[string]bool{}
	for i, e := range t.Endpoints {
		at := fmt.Sprintf("endpoints[%d]", i)
		switch {
		case e.Name == "":
			bad("%s.name: is required", at)
		case names[e.Name]:
			bad("%s.name: %q is listed twice", at, e.Name)
		}
		names[e.Name] = true
		if !slices.Contains([]string{"", stateUp, stateEjected, stateDraining}, e.State) {
			bad("%s.state: must be up, ejected or draining, is %q", at, e.State)
		}
		if e.InFlight < 0 || e.InFlight > maxInFlight || e.TokensEach < 0 {
			bad("%s: inFlight must be between 0 and %d, tokensEach not negative", at, maxInFlight)
		}
	}
	set := 0
	for _, is := range []bool{t.Expect.Endpoint != "", len(t.Expect.OneOf) > 0, len(t.Expect.Not) > 0, t.Expect.Queued, t.Expect.Refused != ""} {
		if is {
			set++
		}
	}
	if set != 1 {
		bad("expect: must have exactly one of endpoint, oneOf, not, queued, refused")
	}
	for _, n := range slices.Concat(t.Expect.OneOf, t.Expect.Not, []string{t.Expect.Endpoint}) {
		if n != "" && !names[n] {
			bad("expect: %q is none of the endpoints", n)
		}
	}
	return errs
}

// maxInFlight bounds the requests of one endpoint in a test.
const maxInFlight = 10_000

// runs is how often a test is run, each time with ties falling differently.
const runs = 20

// Run returns nil when t holds under c, or what happened instead.
func (t Test) Run(c pool.Config) error {
	for seed := range uint64(runs) {
		w, err := newWorld(c, t.Endpoints, seed)
		if err != nil {
			return err
		}
		if err := t.Expect.check(w.ask(t.Request)); err != nil {
			return err
		}
	}
	return nil
}

// outcome is what the brain did with a request.
type outcome struct {
	chosen   string
	refusal  fleet.Refusal
	decision *fleet.Decision
	names    map[fleet.EndpointID]string
}

func (e Expect) check(o outcome) error {
	switch {
	case e.Refused != "" && o.refusal.String() == e.Refused,
		e.Queued && o.chosen == "" && o.refusal == fleet.RefuseNone,
		e.Endpoint != "" && o.chosen == e.Endpoint,
		len(e.OneOf) > 0 && slices.Contains(e.OneOf, o.chosen),
		len(e.Not) > 0 && o.chosen != "" && !slices.Contains(e.Not, o.chosen):
		return nil
	}
	return errors.New(o.String())
}

// String tells what happened, with the scores.
func (o outcome) String() string {
	switch {
	case o.refusal != fleet.RefuseNone:
		return "it was refused: " + o.refusal.String()
	case o.chosen == "":
		return "it was queued"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "it went to %s", o.chosen)
	for _, c := range o.decision.Candidates {
		fmt.Fprintf(&b, "\n    %s: %s, score %.6g, matched %d, backlog %d, in flight %d", o.names[c.Endpoint], c.Verdict, c.Score, c.Matched, c.Backlog, c.InFlight)
	}
	return b.String()
}

// world is a brain led into a state.
type world struct {
	brain *pool.Brain
	index kv.Config
	now   fleet.Time
	req   fleet.ReqID
	names map[fleet.EndpointID]string
	all   []Endpoint
}

// start is late enough for gauges to have any age.
const start = fleet.Time(24 * time.Hour)

func newWorld(c pool.Config, endpoints []Endpoint, seed uint64) (*world, error) {
	d, err := pool.Assemble(c)
	if err != nil {
		return nil, err
	}
	w := &world{brain: pool.New(c, d, seed), index: c.Index, now: start, names: map[fleet.EndpointID]string{}, all: endpoints}
	for i, e := range endpoints {
		w.names[id(i)] = e.Name
		w.tell(i, pool.EndpointDrain)
	}
	for i := range endpoints {
		w.load(i)
	}
	// All together: only now may requests choose.
	for i := range endpoints {
		w.settle(i)
	}
	return w, nil
}

func id(i int) fleet.EndpointID { return fleet.EndpointID(i + 1) }

func (w *world) tell(i int, change pool.Change) {
	e := w.all[i]
	w.step(&pool.Endpoint{
		Endpoint: id(i), Gen: 1, Change: change, Limits: fleet.Limits{KVTokens: e.KVTokens, MaxSeqs: max(e.MaxSeqs, 0)},
	})
}

func (w *world) step(ev pool.Event) []pool.Action { return w.brain.Step(w.now, ev, nil) }

// load brings endpoint i, the only one up meanwhile, into its state.
func (w *world) load(i int) {
	e := w.all[i]
	w.tell(i, pool.EndpointUp)
	for _, name := range slices.Sorted(maps.Keys(e.Cached)) {
		req := w.send(e.Cached[name], 0, chain(name, e.Cached[name], w.index))
		w.step(&pool.Leg{Req: req, Attempt: 1, Phase: fleet.PhaseDone})
	}
	for range e.InFlight {
		req := w.send(max(e.TokensEach, 1), 0, nil)
		if e.Decoding {
			w.step(&pool.Leg{Req: req, Attempt: 1, Phase: fleet.PhaseFirstToken})
		}
	}
	w.tell(i, pool.EndpointDrain)
}

// settle gives endpoint i its gauges and final state.
func (w *world) settle(i int) {
	e := w.all[i]
	if e.State != stateDraining {
		w.tell(i, pool.EndpointUp)
	}
	if g := e.Gauges; g != nil {
		w.step(&pool.Sample{Endpoint: id(i), Gen: 1, Taken: w.now - fleet.Time(g.Age), Gauges: fleet.Gauges{
			Known: fleet.KnownRunning | fleet.KnownWaiting | fleet.KnownKVUsage, Running: g.Running, Waiting: g.Waiting, KVUsage: g.KVUsage,
		}})
	}
	for range maxFailures {
		if e.State != stateEjected {
			break
		}
		w.step(&pool.Sample{Endpoint: id(i), Gen: 1, Failure: fleet.FailConnect})
	}
}

// maxFailures is more than any configuration waits for before it ejects.
const maxFailures = 1000

func (w *world) send(prompt, maxOut fleet.Tokens, chain []kv.Key) fleet.ReqID {
	w.req++
	w.step(&pool.Arrive{Req: w.req, Prompt: prompt, MaxOut: maxOut, Chain: chain, KeyTokens: float64(w.index.KeyTokens)})
	return w.req
}

// ask brings the request before the brain.
func (w *world) ask(r Request) outcome {
	w.req++
	o := outcome{names: w.names}
	for _, a := range w.step(&pool.Arrive{
		Req: w.req, Prompt: r.Tokens, MaxOut: r.MaxTokens, Chain: chain(r.Prefix, r.Tokens, w.index), KeyTokens: float64(w.index.KeyTokens),
	}) {
		switch {
		case a.Req != w.req:
		case a.Kind == pool.Dispatch:
			o.chosen, o.decision = w.names[a.Endpoint], a.Decision
		case a.Kind == pool.Refuse:
			o.refusal = a.Refusal
		}
	}
	return o
}

// chain makes the keys of a text that begins as name says; texts of one name
// agree as far as the shorter goes.
func chain(name string, tokens fleet.Tokens, c kv.Config) []kv.Key {
	if name == "" {
		return nil
	}
	prev := uint64(kv.Seed([]byte(name)))
	keys := make([]kv.Key, tokens/c.KeyTokens)
	for i := range keys {
		prev = stat.Mix64(prev)
		keys[i] = kv.Key(prev)
	}
	return keys
}
