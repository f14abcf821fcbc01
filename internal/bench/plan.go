package bench

import (
	"fmt"
	"maps"
	"net/url"
	"os"
	"strings"
	"time"

	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// plan is a load made ready: options resolved against the workload file and the
// defaults, and a source of requests.
type plan struct {
	Options // as resolved; what the report calls config

	target    *url.URL
	path      string // of the API endpoint
	chat      bool
	modelJSON []byte
	targets   Targets
	level     verifyLevel
	session   string // name of the header that carries the session; empty for none

	source workload.Source
	closed bool
	stages []workload.Stage // of a closed loop: concurrency by stage
	total  time.Duration    // how long an open loop sends; 0 when unknown
	notes  []string         // what the user should know beforehand
	what   string           // the load in a few words
}

// newPlan resolves the options. It reads the workload or trace, but speaks with
// no server.
func newPlan(o Options) (*plan, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	p := &plan{Options: o}
	spec, err := p.readSpec()
	if err != nil {
		return nil, err
	}
	if err := p.resolveTarget(spec); err != nil {
		return nil, err
	}
	if err := p.resolveGoodput(spec); err != nil {
		return nil, err
	}
	levels := map[string]verifyLevel{"strict": verifyStrict, "framing": verifyFraming, "off": verifyOff}
	level, ok := levels[p.Verify]
	if !ok {
		return nil, fmt.Errorf("--verify %q: want strict, framing or off", p.Verify)
	}
	p.level = level
	if p.Trace != "" {
		return p, p.planTrace()
	}
	p.planLoad(spec)
	return p, nil
}

// readSpec reads the workload file, or makes one up for the quick load.
func (p *plan) readSpec() (*workload.Spec, error) {
	if p.Spec != nil {
		return p.Spec, nil
	}
	if p.Workload == "" {
		s := &workload.Spec{API: workload.APISpec{Streaming: true}, Server: workload.ServerSpec{IgnoreEOS: true}}
		s.Load.Kind = workload.ArrivalPoisson
		s.Data.Random = &workload.Random{Input: workload.Fixed(p.InputLen), Output: workload.Fixed(p.OutputLen)}
		return s, nil
	}
	text, err := os.ReadFile(p.Workload)
	if err != nil {
		return nil, fmt.Errorf("read --workload: %w", err)
	}
	s, err := workload.ParseSpec(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.Workload, err)
	}
	if len(s.Ignored) > 0 {
		p.notes = append(p.notes, "fields of the workload file without meaning here: "+strings.Join(s.Ignored, ", "))
	}
	return s, nil
}

// resolveTarget settles where requests go and how they look.
func (p *plan) resolveTarget(s *workload.Spec) error {
	p.URL = firstOf(p.URL, s.Server.URL, defaultURL)
	u, err := parseTarget(p.URL, p.AllowRemote)
	if err != nil {
		return err
	}
	p.target, p.URL = u, u.String()
	p.Model = firstOf(p.Model, s.Server.Model)
	p.APIKey = firstOf(p.APIKey, s.Server.APIKey)
	if p.Endpoint == "" && s.API.Chat {
		p.Endpoint = "chat"
	}
	p.Endpoint = firstOf(p.Endpoint, "completions")
	switch p.Endpoint {
	case "chat":
		p.chat, p.path = true, "/v1/chat/completions"
	case "completions":
		p.path = "/v1/completions"
	default:
		return fmt.Errorf("--endpoint %q: want completions or chat", p.Endpoint)
	}
	p.Stream = p.Stream && s.API.Streaming
	p.IgnoreEOS = p.IgnoreEOS && s.Server.IgnoreEOS
	p.session = s.API.SessionHeader
	header := map[string]string{}
	maps.Copy(header, s.API.Headers)
	maps.Copy(header, p.Header)
	p.Header = header
	if s.Load.Timeout > 0 && p.Timeout == DefaultOptions().Timeout {
		p.Timeout = s.Load.Timeout
	}
	return nil
}

func (p *plan) resolveGoodput(s *workload.Spec) error {
	var err error
	if p.targets, err = ParseGoodput(p.Goodput); err != nil {
		return err
	}
	if len(p.Goodput) > 0 {
		return nil
	}
	for _, name := range []string{"ttft", "tpot", "e2e"} {
		d, ok := s.Goodput[name]
		if !ok {
			continue
		}
		if err := p.targets.set(name, d); err != nil {
			return err
		}
		p.Goodput = append(p.Goodput, fmt.Sprintf("%s:%v", name, d.Seconds()*1000))
	}
	return nil
}

// planTrace makes the source of a recorded load.
func (p *plan) planTrace() error {
	f, err := os.Open(p.Trace)
	if err != nil {
		return fmt.Errorf("open --trace: %w", err)
	}
	defer func() { _ = f.Close() }() // read only
	t, err := workload.ReadTrace(f, workload.Format(p.TraceFormat))
	if err != nil {
		return fmt.Errorf("%s: %w", p.Trace, err)
	}
	if p.Seed == 0 {
		p.Seed = defaultSeed
	}
	r := workload.ReplayOptions{Speed: p.TraceSpeed, Copies: p.TraceCopies, Seed: p.Seed}
	p.total = time.Duration(t.Span().Seconds() / p.TraceSpeed * float64(time.Second))
	if p.Concurrency > 0 {
		p.closed, p.stages = true, []workload.Stage{{Concurrency: p.Concurrency}}
	} else if p.Duration > 0 {
		r.Duration = p.Duration
		p.total = min(p.total, p.Duration)
	}
	src, err := t.Replay(r)
	if err != nil {
		return err
	}
	p.TraceFormat = string(t.Format)
	p.source = &workload.Limit{Source: src, Requests: p.Requests}
	p.what = fmt.Sprintf("%s trace at speed %v", t.Format, p.TraceSpeed)
	if p.TraceCopies > 1 {
		p.what += fmt.Sprintf(", %d copies", p.TraceCopies)
	}
	if t.Inferred > 0 {
		p.notes = append(p.notes, fmt.Sprintf("%d of the trace's %d requests go on from an earlier one by their blocks; each waits for that one's answer", t.Inferred, len(t.Rows)))
	}
	return nil
}

// planLoad makes the source of a generated load. Flags replace the file's load
// section as a whole.
func (p *plan) planLoad(s *workload.Spec) {
	load := s.Load
	if p.Seed == 0 {
		p.Seed = load.Seed
	}
	if p.Seed == 0 {
		p.Seed = defaultSeed
	}
	if p.Arrival != "" {
		load.Kind = workload.ArrivalKind(p.Arrival)
	}
	switch {
	case p.Concurrency > 0:
		load.Kind, load.Stages = workload.ArrivalClosed, []workload.Stage{{Concurrency: p.Concurrency, Requests: p.Requests}}
	case p.Rate > 0 || len(load.Stages) == 0:
		if load.Kind == workload.ArrivalClosed {
			load.Kind = workload.ArrivalPoisson
		}
		if p.Rate == 0 {
			p.Rate = defaultRate
		}
		load.Stages = []workload.Stage{{Rate: p.Rate}}
	}
	p.closed = load.Kind == workload.ArrivalClosed
	p.stages = load.Stages
	unbounded := load.Stages[len(load.Stages)-1].Duration == 0 && load.Stages[len(load.Stages)-1].Requests == 0
	if p.Duration == 0 && p.Requests == 0 && unbounded {
		p.Duration = defaultDuration
	}
	limit := &workload.Limit{Source: s.Source(load, p.Seed), Requests: p.Requests}
	if !p.closed {
		limit.Until = p.Duration
		for _, st := range load.Stages {
			p.total += st.Duration + load.Pause
		}
		p.total = max(p.total-load.Pause, 0)
		if p.Duration > 0 && (p.total == 0 || p.Duration < p.total) {
			p.total = p.Duration
		}
	}
	p.source = limit
	p.what = describe(s, load)
}

func describe(s *workload.Spec, load workload.LoadSpec) string {
	content := "random prompts"
	switch {
	case s.Data.SharedPrefix != nil:
		content = "shared prefixes"
	case s.Data.Conversations != nil:
		content = "conversations"
	}
	var steps []string
	for _, st := range load.Stages {
		if load.Kind == workload.ArrivalClosed {
			steps = append(steps, fmt.Sprint(st.Concurrency))
		} else {
			steps = append(steps, fmt.Sprint(st.Rate))
		}
	}
	if load.Kind == workload.ArrivalClosed {
		return content + ", concurrency " + strings.Join(steps, ", ")
	}
	return fmt.Sprintf("%s, %s at %s req/s", content, load.Kind, strings.Join(steps, ", "))
}

// firstOf returns the first text that is not empty.
func firstOf(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

// runID names this run's requests, so that a gateway can be asked about each.
func runID(now time.Time) string {
	return fmt.Sprintf("bench-%x", stat.Mix64(uint64(now.UnixNano()))>>32)
}
