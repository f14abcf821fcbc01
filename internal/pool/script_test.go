package pool

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/stat"
)

// TestScripts drives a brain by the commands in testdata/scripts and prints every
// action, so that a scenario reads as a conversation. Run with -rewrite to
// accept new output.
//
//	pool [policy=P] [queue=N] [wait=D] [inflight=N] [attempts=N]   a new brain
//	up|drain|gone id=N [gen=N] [kv=N] [seqs=N]                     an endpoint
//	sample id=N [running=N] [waiting=N] [usage=F] [fail=connect]   gauges
//	arrive r=N [prompt=N] [chain=letters] [owner=N]                a request
//	sent|first|progress|done|fail r=N [a=N] [out=N] [kind=K] [committed]
//	gone-client r=N
//	probed id=N ok=true
//	tick
//	wake, tally, view, shadow                                              questions
//
// Every command takes t=D, the time since the start; time stands still without.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		s := &script{}
		datadriven.RunTest(t, path, func(t *testing.T, td *datadriven.TestData) string {
			return s.run(t, td)
		})
	})
}

type script struct {
	b   *Brain
	now fleet.Time
}

func (s *script) run(t *testing.T, td *datadriven.TestData) string {
	if d := arg(td, "t", ""); d != "" {
		s.now = fleet.Time(duration(t, d))
	}
	switch td.Cmd {
	case "pool":
		s.b = s.brain(t, td)
		return ""
	case "wake":
		if w := s.b.Wake(); w != fleet.Never {
			return time.Duration(w).String() + "\n"
		}
		return "never\n"
	case "tally":
		return fmt.Sprintf("%+v\n", s.b.Tally())
	case "view":
		return s.view()
	case "shadow":
		y, _ := s.b.Shadow()
		return fmt.Sprintf("%+v\n", y)
	}
	return s.print(s.b.Step(s.now, s.event(t, td), nil))
}

func (s *script) brain(t *testing.T, td *datadriven.TestData) *Brain {
	c := Default()
	c.Policy = route.Spec{Name: arg(td, "policy", "least-request")}
	c.Shadow.Name = arg(td, "shadow", "")
	c.Queue.MaxRequests = number(t, td, "queue", 10)
	c.Queue.MaxWait = duration(t, arg(td, "wait", "10s"))
	c.Room.MaxInFlight = number(t, td, "inflight", 100)
	c.Retry.MaxAttempts = number(t, td, "attempts", 3)
	if errs := c.Validate(); errs != nil {
		t.Fatal(errs)
	}
	d, err := Assemble(c)
	if err != nil {
		t.Fatal(err)
	}
	return New(c, d, 1)
}

func (s *script) event(t *testing.T, td *datadriven.TestData) Event {
	id, gen := fleet.EndpointID(number(t, td, "id", 0)), fleet.Gen(number(t, td, "gen", 1))
	req := fleet.ReqID(number(t, td, "r", 0))
	switch td.Cmd {
	case "up", "drain", "gone":
		change := map[string]Change{"up": EndpointUp, "drain": EndpointDrain, "gone": EndpointGone}[td.Cmd]
		return &Endpoint{
			Endpoint: id, Gen: gen, Change: change,
			Limits: fleet.Limits{KVTokens: fleet.Tokens(number(t, td, "kv", 0)), MaxSeqs: number(t, td, "seqs", 0)},
			Step:   perf.Step{Base: 0.01, PerPrompt: 50e-6},
		}
	case "sample":
		if td.HasArg("fail") {
			return &Sample{Endpoint: id, Gen: gen, Taken: s.now, Failure: fleet.FailConnect}
		}
		return &Sample{Endpoint: id, Gen: gen, Taken: s.now, Adapters: loras(t, td), Gauges: fleet.Gauges{
			Known: fleet.KnownRunning | fleet.KnownWaiting, Running: number(t, td, "running", 0), Waiting: number(t, td, "waiting", 0),
		}}
	case "arrive":
		letters := arg(td, "chain", "")
		return &Arrive{
			Req: req, Prompt: fleet.Tokens(number(t, td, "prompt", 1000)), Chain: letterChain(letters),
			KeyTokens: float64(number(t, td, "prompt", 1000)) / float64(max(len(letters), 1)),
			Owner:     fleet.EndpointID(number(t, td, "owner", 0)),
			Adapter:   loraOf(arg(td, "lora", "")),
		}
	case "serves":
		set := loras(t, td)
		return &Serves{Endpoint: id, Gen: gen, Adapters: set.List[:set.Count]}
	case "first", "progress", "done", "fail":
		phase := map[string]fleet.Phase{
			"first": fleet.PhaseFirstToken, "progress": fleet.PhaseProgress, "done": fleet.PhaseDone, "fail": fleet.PhaseFailed,
		}[td.Cmd]
		kind := map[string]fleet.Failure{
			"connect": fleet.FailConnect, "timeout": fleet.FailTimeout, "status": fleet.FailStatus, "overload": fleet.FailOverload,
			"stream": fleet.FailStream, "client": fleet.FailClient, "": fleet.FailNone,
		}[arg(td, "kind", "")]
		return &Leg{
			Req: req, Attempt: number(t, td, "a", 1), Phase: phase, Failure: kind, Committed: td.HasArg("committed"),
			Output: fleet.Tokens(number(t, td, "out", 0)),
		}
	case "gone-client":
		return &Gone{Req: req}
	case "probed":
		return &Probed{Endpoint: id, Gen: gen, OK: arg(td, "ok", "") == "true"}
	case "tick":
		return &Tick{}
	}
	t.Fatalf("%s: unknown command %q", td.Pos, td.Cmd)
	return nil
}

func (s *script) print(actions []Action) string {
	var b strings.Builder
	for _, a := range actions {
		switch a.Kind {
		case Dispatch:
			fmt.Fprintf(&b, "dispatch r%d attempt %d to %d", a.Req, a.Attempt, a.Endpoint)
			d := a.Decision
			fmt.Fprintf(&b, " (queued %v, runner-up %d by %.4g)", d.Queued, d.RunnerUp, d.Margin)
			if d.Shadow != fleet.NoEndpoint {
				fmt.Fprintf(&b, " shadow %d", d.Shadow)
			}
			for _, c := range d.Candidates {
				fmt.Fprintf(&b, "\n  %d %v matched %d backlog %d in flight %d score %.4g ttft %v", c.Endpoint, c.Verdict, c.Matched, c.Backlog, c.InFlight, c.Score, c.TTFT.Round(time.Millisecond))
				if c.Adapter != fleet.AdapterNone {
					fmt.Fprintf(&b, " adapter %v", c.Adapter)
				}
			}
		case Cancel:
			fmt.Fprintf(&b, "cancel r%d attempt %d at %d", a.Req, a.Attempt, a.Endpoint)
		case Refuse:
			fmt.Fprintf(&b, "refuse r%d: %v, retry after %v", a.Req, a.Refusal, a.RetryAfter)
		case Probe:
			fmt.Fprintf(&b, "probe %d", a.Endpoint)
		case Fitness:
			fmt.Fprintf(&b, "endpoint %d is %v (cause %v)", a.Endpoint, a.Health, a.Cause)
		}
		b.WriteByte('\n')
	}
	if b.Len() == 0 {
		return "nothing\n"
	}
	return b.String()
}

func (s *script) view() string {
	var snap fleet.Snapshot
	s.b.View(&snap)
	var b strings.Builder
	fmt.Fprintf(&b, "queued %d\n", snap.Queued)
	for _, e := range snap.Endpoints {
		fmt.Fprintf(&b, "%d gen %d %s draining %v: in flight %d (+%d), backlog %d, active %d, cached %d, age %v, %d requests, %d failures\n",
			e.ID, e.Gen, e.Health, e.Draining, e.InFlight, e.External, e.Backlog, e.Active, e.Cached, e.SampleAge, e.Requests, e.Failures)
	}
	return b.String()
}

// loraOf names an adapter; "" is none.
func loraOf(name string) fleet.Adapter {
	if name == "" {
		return fleet.NoAdapter
	}
	return fleet.AdapterOf(name)
}

// loras reads loras=(a,b) and slots=n.
func loras(t *testing.T, td *datadriven.TestData) fleet.Adapters {
	set := fleet.Adapters{Max: number(t, td, "slots", 0)}
	for _, a := range td.CmdArgs {
		if a.Key == "loras" {
			for _, v := range a.Vals {
				set.Add(loraOf(v))
			}
		}
	}
	return set
}

// letterChain makes chains that share keys as far as their letters agree.
func letterChain(letters string) []kv.Key {
	var c []kv.Key
	prev := uint64(1)
	for i := range len(letters) {
		prev = stat.Mix64(prev*31 + uint64(letters[i]))
		c = append(c, kv.Key(prev))
	}
	return c
}

func arg(td *datadriven.TestData, name, otherwise string) string {
	for _, a := range td.CmdArgs {
		if a.Key == name && len(a.Vals) > 0 {
			return a.Vals[0]
		}
	}
	return otherwise
}

func number(t *testing.T, td *datadriven.TestData, name string, otherwise int) int {
	v := arg(td, name, "")
	if v == "" {
		return otherwise
	}
	var n int
	if _, err := fmt.Sscan(v, &n); err != nil {
		t.Fatalf("%s: %s=%q is no number", td.Pos, name, v)
	}
	return n
}

func duration(t *testing.T, v string) time.Duration {
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
