package enginesim

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Lockstep is a set of data-parallel ranks that share their experts, and so one
// clock: a step begins on all ranks at once and lasts as long as the slowest
// rank's. Each rank has its own queue, KV and Physics; a rank with nothing to
// do computes a dummy token, for the others' tokens need its experts. What
// exchanging tokens costs is part of each rank's Physics, which is told of the
// other ranks' tokens in Batch.Others.
//
// Ranks are used as engines are. Advancing one advances all, so whoever
// advances one of them, or submits to it, should look at what the others have to
// report too: Advance of a rank returns what is its own.
type Lockstep struct {
	ranks []*Engine

	stepping      bool
	started, ends fleet.Time
	ready         fleet.Time // when the next step may begin, when not stepping
	steps         uint64
	plan          []fleet.Time // as Engine's
}

// NewLockstep returns a set of idle ranks, one for each configuration.
func NewLockstep(ranks []Config) (*Lockstep, error) {
	if len(ranks) == 0 {
		return nil, errors.New("enginesim: a lockstep set needs a rank")
	}
	l := &Lockstep{}
	for i, c := range ranks {
		if c.EveryToken != ranks[0].EveryToken {
			return nil, fmt.Errorf("enginesim: rank %d: EveryToken must be the same for all ranks", i)
		}
		e, err := New(c)
		if err != nil {
			return nil, fmt.Errorf("rank %d: %w", i, err)
		}
		e.set = l
		l.ranks = append(l.ranks, e)
	}
	return l, nil
}

// Rank returns rank i.
func (l *Lockstep) Rank(i int) *Engine { return l.ranks[i] }

// wake is told that work came to a rank; it comes before the rank has it.
func (l *Lockstep) wake(now fleet.Time) {
	if l.stepping {
		return
	}
	for _, e := range l.ranks {
		if e.waiting.n > 0 && !e.stuck {
			return // the step that it waits for begins at l.ready
		}
	}
	l.ready = max(l.ready, now)
}

// next is when something can happen to a rank, if nothing comes before.
func (l *Lockstep) next() fleet.Time {
	switch {
	case l.stepping && len(l.plan) > 0 && l.calm():
		return l.plan[len(l.plan)-1]
	case l.stepping:
		return l.ends
	}
	return l.due()
}

// due is when a step may begin, when none is in flight.
func (l *Lockstep) due() fleet.Time {
	t := fleet.Never
	for _, e := range l.ranks {
		if e.waiting.n > 0 {
			t = min(t, e.due(l.ready))
		}
	}
	return t
}

// advance runs all ranks up to and including time until. What happens is kept
// by each rank until it is asked.
func (l *Lockstep) advance(until fleet.Time) {
	for {
		if !l.stepping {
			if l.ready > until {
				return
			}
			if l.begin(); !l.stepping {
				due := l.due()
				if due > until {
					return
				}
				l.ready = due
				continue
			}
		}
		if l.glide(until); l.ends > until {
			return
		}
		l.finish()
	}
}

// begin puts a step in flight, unless no rank has anything to run.
func (l *Lockstep) begin() {
	busy := false
	for _, e := range l.ranks {
		e.ready = l.ready
		e.undelivered = e.form(e.undelivered)
		busy = busy || len(e.running) > 0
	}
	l.plan = l.plan[:0]
	if !busy {
		return
	}
	l.stepping, l.started = true, l.ready
	l.ends = l.started.Add(l.stepTime(0))
	for _, e := range l.ranks {
		e.stepping, e.started, e.ends = true, l.started, l.ends
	}
}

// stepTime is how long the step takes that comes so many steps after the one
// formed, if until then all ranks decode the same sequences.
func (l *Lockstep) stepTime(after int) time.Duration {
	tokens := fleet.Tokens(0)
	for _, e := range l.ranks {
		tokens += e.share(l.steps, after).Tokens()
	}
	longest := time.Duration(1)
	for _, e := range l.ranks {
		b := e.share(l.steps, after)
		b.Others = tokens - b.Tokens()
		longest = max(longest, e.config.Physics.StepTime(b))
	}
	return longest
}

// share is what a rank computes of a set's step: its batch, or a dummy token.
func (e *Engine) share(step uint64, after int) Batch {
	b := e.batch
	b.Step = step + uint64(after)
	if len(e.running) == 0 {
		b.Decodes = 1
		return b
	}
	b.Context += fleet.Tokens(b.Decodes * after)
	return b
}

// calm reports whether the step in flight will be followed by the same on all
// ranks.
func (l *Lockstep) calm() bool {
	return !slices.ContainsFunc(l.ranks, func(e *Engine) bool { return !e.calm() })
}

// glide skips over steps as Engine.glide does.
func (l *Lockstep) glide(until fleet.Time) {
	if !l.calm() {
		l.plan = l.plan[:0]
		return
	}
	if len(l.plan) == 0 {
		steps := maxPlan
		for _, e := range l.ranks {
			steps = min(steps, e.unchanged())
		}
		t, loaded := l.ends, fleet.Never
		for _, e := range l.ranks {
			loaded = min(loaded, e.loaded())
		}
		l.plan = append(l.plan, t)
		for i := 0; i < steps && t < loaded; i++ {
			t = t.Add(l.stepTime(i + 1))
			l.plan = append(l.plan, t)
		}
	}
	skip := sort.Search(len(l.plan)-1, func(i int) bool { return l.plan[i] > until })
	if skip == 0 {
		return
	}
	l.steps += uint64(skip)
	l.started, l.ends = l.plan[skip-1], l.plan[skip]
	for _, e := range l.ranks {
		e.skip(l.plan[:skip+1])
	}
	l.plan = slices.Delete(l.plan, 0, skip)
}

// finish ends the step in flight on all ranks.
func (l *Lockstep) finish() {
	for _, e := range l.ranks {
		e.undelivered = e.finish(e.undelivered)
	}
	l.steps++
	l.stepping, l.ready = false, l.ends
}
