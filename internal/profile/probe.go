package profile

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"penstock.dev/penstock/internal/perf"
)

// probe carries out one probe.
func (a *asker) probe(ctx context.Context, p perf.Probe) (perf.Measurement, error) {
	m := perf.Measurement{Probe: p}
	begun := time.Now()
	var first []float64
	var all tally
	for range max(p.Rounds, 1) {
		answers, err := a.together(ctx, p)
		if err != nil {
			return m, err
		}
		t := tallyOf(answers, float64(p.Prompt))
		first = append(first, t.first)
		all.add(&t)
	}
	slices.Sort(first)
	m.TTFT = first[len(first)/2]
	m.Prompt, m.Cached = all.prompt/all.answers, all.cached/all.answers
	if all.steps > 0 {
		m.Step, m.Steps, m.Context = all.seconds/all.steps, all.steps/float64(p.Streams), all.context/all.steps
	}
	m.Seconds = time.Since(begun).Seconds()
	return m, nil
}

// together sends as many requests at once as the probe has streams. When one
// fails the others are broken off.
func (a *asker) together(ctx context.Context, p perf.Probe) ([]*answer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answers, requests := make([]*answer, p.Streams), make([]request, p.Streams)
	for i := range requests {
		var err error
		if requests[i], err = a.request(int(p.Prompt), int(p.Output)); err != nil {
			return nil, err
		}
	}
	var work sync.WaitGroup
	for i := range answers {
		work.Go(func() {
			r, err := a.ask(ctx, requests[i].body)
			if err != nil {
				cancel(fmt.Errorf("probe of %d x %d tokens: %w", p.Streams, p.Prompt, err)) // the first counts
				return
			}
			answers[i] = r
		})
	}
	work.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	a.learn(answers[0], requests[0])
	return answers, nil
}

// tally adds up what answers given together tell.
type tally struct {
	answers        float64
	prompt, cached float64 // tokens, of all answers; prompt is what was computed
	first          float64 // s to first token, mean
	seconds        float64 // s, of all streams, while all decoded
	steps          float64 // tokens of all streams meanwhile
	context        float64 // tokens of context, times steps
}

func (t *tally) add(o *tally) {
	t.answers += o.answers
	t.prompt += o.prompt
	t.cached += o.cached
	t.seconds += o.seconds
	t.steps += o.steps
	t.context += o.context
}

// tallyOf adds up answers that were asked for at once, each with a
// prompt of about so many tokens: the mean time per step over the stretch in
// which all of them decode, from the last first token to the first last one. Each
// stream is timed from its own first to its own last token of the stretch, so that
// the edges fall between steps.
func tallyOf(answers []*answer, prompt float64) tally {
	t := tally{answers: float64(len(answers))}
	begun := answers[0].started
	for _, r := range answers {
		if r.started.Before(begun) {
			begun = r.started
		}
	}
	from, to := time.Duration(0), time.Duration(1<<62)
	for _, r := range answers {
		late := r.started.Sub(begun)
		from, to = max(from, late+r.tokens[0]), min(to, late+r.tokens[len(r.tokens)-1])
		t.first += r.tokens[0].Seconds() / t.answers
		n := prompt
		if r.prompt > 0 {
			n = float64(r.prompt)
		}
		t.prompt += n - float64(r.cached)
		t.cached += float64(r.cached)
	}
	for _, r := range answers {
		late := r.started.Sub(begun)
		a, _ := slices.BinarySearch(r.tokens, from-late)
		b, _ := slices.BinarySearch(r.tokens, to-late+1)
		b--
		if b <= a {
			continue
		}
		steps := float64(b-a) * r.perEvent()
		n := prompt
		if r.prompt > 0 {
			n = float64(r.prompt)
		}
		t.steps += steps
		t.seconds += (r.tokens[b] - r.tokens[a]).Seconds()
		t.context += steps * (n + float64(a+b)/2*r.perEvent() + 1)
	}
	return t
}
