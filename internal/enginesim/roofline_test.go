package enginesim

import (
	"math"
	"slices"
	"testing"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// serving is one way to serve a model of the catalogue.
func serving(t testing.TB, model, accelerator string, tp int) catalog.Serving {
	t.Helper()
	m, err := catalog.FindModel(model)
	if err != nil {
		t.Fatal(err)
	}
	a, err := catalog.FindAccelerator(accelerator)
	if err != nil {
		t.Fatal(err)
	}
	return catalog.Serving{Shape: m, Accelerator: a, TP: tp}
}

// qwen is the variant of which most is measured.
func qwen(t testing.TB, tp int) catalog.Serving { return serving(t, "qwen3-32b", "h100", tp) }

// capacity is the KV tokens of s in whole blocks.
func capacity(s catalog.Serving) fleet.Tokens {
	return fleet.Tokens(s.KVTokens()) / BlockTokens * BlockTokens
}

func within(t *testing.T, what string, got, want, share float64) {
	t.Helper()
	if math.Abs(got-want) > share*want {
		t.Errorf("%s = %.5g, want %.5g within %.0f %%", what, got, want, 100*share)
	}
}

func TestQwenOnTwoH100IsNearWhatWasMeasured(t *testing.T) {
	spec := qwen(t, 2)
	within(t, "KV capacity in tokens", float64(capacity(spec)), 298_000, 0.01)
	r := NewRoofline(spec)
	ms := func(b Batch) float64 { return float64(r.StepTime(b)) / 1e6 }
	within(t, "decode step of one short sequence, ms", ms(Batch{Decodes: 1}), 14, 0.06)
	within(t, "ms per KV token", (ms(Batch{Decodes: 64, Context: 200_000})-ms(Batch{Decodes: 64}))/200_000, 5.67e-5, 0.20)
	within(t, "ms per prompt token, attention apart", (ms(Batch{Prompt: 8192})-ms(Batch{Prompt: 4096}))/4096, 0.0496, 0.13)
	within(t, "peak prefill, tokens/s", peakPrefill(t, spec), 15_928, 0.05)
}

// peakPrefill is the prefill rate under a backlog of unique 7,200-token prompts.
func peakPrefill(t *testing.T, spec catalog.Serving) float64 {
	e := newEngine(t, Config{Physics: NewRoofline(spec), KVTokens: capacity(spec)})
	const n, prompt = 100, 7200
	for id := range fleet.ReqID(n) {
		submit(t, e, 0, Request{ID: id, Prompt: prompt, Output: 1})
	}
	out := drain(t, e)
	return n * prompt / out[len(out)-1].At.Seconds()
}

// closedLoop runs `concurrency` clients, each sending its next request when
// the last has ended, and returns the mean TPOT in ms. First answers are cut
// short at random so that the clients are out of step, as they are in a long
// measurement.
func closedLoop(t *testing.T, p point) float64 {
	e := newEngine(t, Config{Physics: NewRoofline(p.serving), KVTokens: capacity(p.serving)})
	r := stat.NewRand(1, "closed loop")
	first := map[fleet.ReqID]fleet.Time{}
	clients := int(p.concurrency)
	id := fleet.ReqID(0)
	send := func(now fleet.Time, output int) {
		id++
		submit(t, e, now, Request{ID: id, Prompt: fleet.Tokens(p.input), Output: fleet.Tokens(output)})
	}
	for range clients {
		send(0, 1+r.IntN(p.output))
	}
	var out []Output
	next, sum, n := fleet.Time(0), 0.0, 0
	for n < 3*clients {
		out, next = e.Advance(next, out[:0])
		for _, o := range out {
			if o.First {
				first[o.Req] = o.At
			}
			if o.Finish == NotFinished {
				continue
			}
			if int(o.Req) > 2*clients {
				sum += float64(o.At.Sub(first[o.Req])) / 1e6 / float64(p.output-1)
				n++
			}
			delete(first, o.Req)
			send(o.At, p.output)
			next = o.At // the new request may start a step at once
		}
	}
	return sum / float64(n)
}

func TestRooflineAgainstMeasurements(t *testing.T) {
	points, _ := measured(t)
	for _, tp := range []int{2, 4, 8} {
		var errs []float64
		for _, p := range points {
			if s := p.serving; s.TP != tp || s.Shape.Name != "Qwen/Qwen3-32B" || s.Accelerator.Name != "H100" || s.Engine != "vllm" {
				continue
			}
			got := closedLoop(t, p)
			errs = append(errs, math.Abs(got-p.tpot)/p.tpot)
			t.Logf("tp %d, %d in, %d out, concurrency %3.0f: %6.2f ms, measured %6.2f (%+.0f %%)",
				tp, p.input, p.output, p.concurrency, got, p.tpot, 100*(got-p.tpot)/p.tpot)
		}
		if len(errs) == 0 {
			t.Errorf("no points for tp %d", tp)
			continue
		}
		slices.Sort(errs)
		median := errs[len(errs)/2]
		t.Logf("tp %d: median TPOT error %.1f %% over %d points, worst %.0f %%", tp, 100*median, len(errs), 100*errs[len(errs)-1])
		if limit := map[int]float64{2: 0.06, 4: 0.08, 8: 0.10}[tp]; median > limit {
			t.Errorf("tp %d: median TPOT error %.1f %%, want at most %.0f %%", tp, 100*median, 100*limit)
		}
	}
}

func TestStepTimeRisesWithEveryKindOfWork(t *testing.T) {
	r := NewRoofline(qwen(t, 2))
	base := Batch{Decodes: 100, Context: 100_000, Prompt: 2000, Prefills: 1, Attention: 1e6}
	for name, more := range map[string]Batch{
		"decodes":   {Decodes: 120, Context: 100_000, Prompt: 2000, Prefills: 1, Attention: 1e6},
		"context":   {Decodes: 100, Context: 200_000, Prompt: 2000, Prefills: 1, Attention: 1e6},
		"prompt":    {Decodes: 100, Context: 100_000, Prompt: 3000, Prefills: 1, Attention: 1e6},
		"attention": {Decodes: 100, Context: 100_000, Prompt: 2000, Prefills: 1, Attention: 2e6},
	} {
		if r.StepTime(more) <= r.StepTime(base) {
			t.Errorf("more %s does not take longer", name)
		}
	}
}

func TestGraphsPadSmallBatches(t *testing.T) {
	for n, want := range map[int]int{0: 0, 1: 1, 2: 2, 3: 4, 5: 8, 8: 8, 9: 16, 250: 256, 257: 272, 512: 512, 513: 513} {
		if got := padded(n); got != want {
			t.Errorf("padded(%d) = %d, want %d", n, got, want)
		}
	}
}

func TestNoiseKeepsTheMeanAndRepeats(t *testing.T) {
	r := NewRoofline(qwen(t, 2))
	want := r.StepTime(Batch{Decodes: 8})
	r.Noise, r.Seed = 0.2, 7
	var sum time.Duration
	const n = 20_000
	for i := range uint64(n) {
		d := r.StepTime(Batch{Decodes: 8, Step: i})
		if d != r.StepTime(Batch{Decodes: 8, Step: i}) {
			t.Fatal("a step's time differs when asked twice")
		}
		sum += d
	}
	within(t, "mean step, ns", float64(sum)/n, float64(want), 0.01)
}

func TestFactorAndSpeedup(t *testing.T) {
	r := NewRoofline(qwen(t, 2))
	b := Batch{Decodes: 8}
	plain := float64(r.StepTime(b))
	within(t, "a tenth of the time", float64(Speedup{r, 10}.StepTime(b)), plain/10, 1e-3)
	r.Factor = 1.5
	within(t, "factor 1.5", float64(r.StepTime(b)), plain*1.5, 1e-3)
}
