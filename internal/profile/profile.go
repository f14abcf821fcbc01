// Package profile finds out how fast a live server is: it asks what it can hold,
// sends the probes that package perf chooses, and reports what follows. It reads
// streams itself and shares nothing with the load generator, whose figures it may
// be compared with.
package profile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
)

// Options say what to profile and how far to go.
type Options struct {
	URL string // the server's base, without /v1
	// Serving is the way of serving as the catalogue has it; nil when the model or
	// the accelerator is not known, and then there is no prior.
	Serving *catalog.Serving
	// StandIn says that the accelerator of Serving is not that of the server: what
	// follows is a guess, and nothing follows for its memory.
	StandIn bool
	// Assumed says of Serving what was taken from where; it goes into the report.
	Assumed []Assumption
	Stated  fleet.Limits // limits that the user states; they win over the server's
	Goal    perf.Goal
	Force   bool // probe a server that is or may be loaded
	// Known is a belief from an earlier profile of the same combination: one probe
	// checks it and nothing is fitted.
	Known *perf.Belief
	// KnownError is the relative standard error of predictions that the profile
	// states, 0.05 for 5 %; its parameters' own spreads say more than that, since
	// they err together.
	KnownError float64
	Seed       uint64       // of the prompts; another one each time
	Say        func(string) // takes one line of progress; must not be nil
}

// ErrLoaded says that the server has other things to do.
var ErrLoaded = errors.New("the server is not idle")

// errTime is the cause of breaking a probe off when time is up.
var errTime = errors.New("time is up")

// Bounds of what is done beside probing.
const (
	settle    = time.Second           // for gauges to show that nothing runs any more
	settleGap = 50 * time.Millisecond // between two looks at them
	alike     = 1.5                   // ratio up to which two latencies of an idle server may differ
	refusals  = 3                     // probes that a server may refuse before it is given up
	checkOff  = 0.15                  // relative error beyond which a check fails
)

// Run profiles a server that was described. When it is interrupted or the server
// fails, the report tells what was learnt until then, together with the error; it
// is nil when nothing was.
func Run(ctx context.Context, client *engine.Client, d engine.Description, o Options) (*Report, error) {
	begun := time.Now()
	budget := time.Duration(o.Goal.Seconds * float64(time.Second))
	ctx, cancel := context.WithTimeoutCause(ctx, budget, errTime)
	defer cancel()
	r := &run{
		client: client, d: d, o: o, begun: begun,
		asker: asker{client: client, base: o.URL, model: d.Model.ID, dialect: d.Dialect, rand: newRand(o.Seed)},
	}
	r.limits = r.merge()
	r.survey = perf.Survey{Limits: r.limits, Goal: o.Goal}
	switch {
	case o.Known != nil:
		r.survey.Prior = *o.Known
	case o.Serving != nil:
		r.survey.Prior = perf.Prior(*o.Serving)
		if o.StandIn {
			r.survey.Prior = r.survey.Prior.Doubted()
		}
	}
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	err := r.probe(ctx)
	if errors.Is(err, errTime) {
		r.stopped, err = perf.StopTime, nil
	}
	if err != nil && len(r.survey.Done) == 0 {
		return nil, err
	}
	switch {
	case errors.Is(err, context.Canceled):
		r.stopped = "interrupted"
	case err != nil:
		r.stopped = perf.Stop(err.Error())
	}
	return r.report(time.Since(begun)), err
}

// newRand is what prompts are made with: they are new, not secret.
func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// run is one profiling under way.
type run struct {
	client  *engine.Client
	d       engine.Description
	o       Options
	begun   time.Time
	asker   asker
	limits  fleet.Limits
	survey  perf.Survey
	stopped perf.Stop
	notes   []string
}

// note adds what the reader of the report should know.
func (r *run) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// merge returns the limits: what is stated, what the server says, and for its KV
// cache what the data sheet leaves room for.
func (r *run) merge() fleet.Limits {
	l := r.o.Stated.Merge(r.d.Limits())
	if l.KVTokens == 0 && r.o.Serving != nil && !r.o.StandIn {
		l.KVTokens = fleet.Tokens(r.o.Serving.KVTokens())
	}
	return l
}

// prepare makes sure that the server is idle and finds out how to speak to it.
func (r *run) prepare(ctx context.Context) error {
	wait := settle
	if r.o.Force {
		wait = 0 // it is only to be told
	}
	told, err := r.idle(ctx, wait)
	if err != nil && !(r.o.Force && errors.Is(err, ErrLoaded)) {
		return err
	}
	if err != nil {
		r.note("probed although %v: figures are those of a server with other work", err)
	}
	const prompt, output = 128, 16
	a := &r.asker
	first, err := a.introduce(ctx, prompt, output)
	if err != nil {
		return fmt.Errorf("first request to %s: %w", r.o.URL, err)
	}
	if a.chat {
		r.note("the server has no completions: probed by chat, its template's tokens are part of the prompts")
	}
	if a.plain {
		r.note("the server refuses ignore_eos and min_tokens: answers may end early")
	}
	if first.prompt == 0 {
		r.note("the server does not count tokens: lengths are estimates")
	}
	if first.perEvent() > alike {
		r.note("%.1f tokens per event: times are per token, not per step", first.perEvent())
	}
	if told || r.o.Force {
		return nil
	}
	// Without gauges its own latency tells: that of an idle server is steady.
	var pace [2]float64
	for i := range pace {
		m, err := a.probe(ctx, perf.Probe{Streams: 1, Prompt: prompt, Output: 2 * output, Rounds: 1})
		if err != nil {
			return err
		}
		pace[i] = m.Step
	}
	if lo, hi := min(pace[0], pace[1]), max(pace[0], pace[1]); hi > alike*lo {
		return fmt.Errorf("%w: it tells no gauges, and a token takes now %.1f, now %.1f ms; --force probes it all the same", ErrLoaded, pace[0]*1e3, pace[1]*1e3)
	}
	r.note("the server tells no gauges: that it is idle follows from two equal latencies")
	return nil
}

// idle waits so long for the gauges to show that nothing runs: they lag behind.
// It reports whether the server has gauges at all.
func (r *run) idle(ctx context.Context, wait time.Duration) (told bool, err error) {
	for since := time.Now(); ; {
		g, _, _, err := r.client.Scrape(ctx, r.d.Dialect, r.o.URL, nil)
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		if err != nil || !g.Known.Has(fleet.KnownRunning) {
			return false, nil // it does not tell
		}
		if g.Running+g.Waiting == 0 {
			return true, nil
		}
		if time.Since(since) >= wait {
			return true, fmt.Errorf("%w: %d requests run and %d wait; --force probes it all the same", ErrLoaded, g.Running, g.Waiting)
		}
		select {
		case <-time.After(settleGap):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// probe sends the chosen probes until there is a reason to stop.
func (r *run) probe(ctx context.Context) error {
	if r.o.Known != nil {
		c := r.survey.Check()
		r.o.Say(fmt.Sprintf("check: %s, about %s", describe(c.Probe), seconds(c.Cost)))
		m, err := r.asker.probe(ctx, c.Probe)
		if err == nil {
			r.survey.Done, r.stopped = append(r.survey.Done, m), "a profile of the same combination is known: one check probe"
		}
		return err
	}
	for {
		at := r.survey.Outlook()
		c, stop := r.survey.Next(time.Since(r.begun).Seconds())
		if stop != "" {
			r.stopped = stop
			r.o.Say(fmt.Sprintf("%d probes in %s, predicted error %s: %s", len(r.survey.Done), seconds(time.Since(r.begun).Seconds()), percent(at.Error()), stop))
			return nil
		}
		r.o.Say(fmt.Sprintf("probe %d: %s, about %s; predicted error %s, then %s", len(r.survey.Done)+1, describe(c.Probe), seconds(c.Cost), percent(at.Error()), percent(c.Error)))
		if !r.o.Force {
			if _, err := r.idle(ctx, settle); err != nil {
				return fmt.Errorf("others have begun to use it: %w", err)
			}
		}
		m, err := r.asker.probe(ctx, c.Probe)
		if no, ok := errors.AsType[*refusal](err); ok && tooMuch(no.status) && len(r.survey.Refused) < refusals {
			r.note("%s: refused with %v", describe(c.Probe), no)
			r.survey.Refused = append(r.survey.Refused, c.Probe)
			continue
		}
		if err != nil {
			return err
		}
		if m.Step == 0 && c.Probe.Streams > 1 {
			r.note("%s: never all at once", describe(c.Probe))
			r.survey.Refused = append(r.survey.Refused, c.Probe)
		}
		r.survey.Done = append(r.survey.Done, m)
	}
}

// tooMuch reports whether a status says that a request asked for too much.
func tooMuch(status int) bool {
	return status == http.StatusBadRequest || status == http.StatusRequestEntityTooLarge ||
		status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable
}

// describe is a probe in words.
func describe(p perf.Probe) string {
	s := fmt.Sprintf("%d x %d tokens, %d out", p.Streams, p.Prompt, p.Output)
	if p.Rounds > 1 {
		s += fmt.Sprintf(", %d times", p.Rounds)
	}
	return s
}
