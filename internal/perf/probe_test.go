package perf

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// probed carries out a probe on an engine that takes as long as a step says.
func probed(truth Step, p Probe, l fleet.Limits, noise float64, r *stat.Rand) Measurement {
	m := Measurement{Probe: p, Prompt: float64(p.Prompt), Steps: float64(p.Output-1) * float64(p.Rounds), Context: float64(p.Prompt) + float64(p.Output)/2}
	m.TTFT, m.Step = truth.Expect(m, l)
	m.TTFT *= 1 + noise*(2*r.Float64()-1)
	m.Step *= 1 + noise*(2*r.Float64()-1)
	m.Seconds = float64(p.Rounds) * (m.TTFT + m.Step*float64(p.Output))
	return m
}

// run probes until there is no more to ask, and returns why.
func (s *Survey) run(truth Step, noise float64) (spent float64, why Stop) {
	r := stat.NewRand(1, "probes")
	for {
		c, stop := s.Next(spent)
		if stop != "" {
			return spent, stop
		}
		m := probed(truth, c.Probe, s.Limits, noise, r)
		spent += m.Seconds
		s.Done = append(s.Done, m)
	}
}

func believed(t *testing.T) Belief {
	t.Helper()
	m, _ := catalog.FindModel("Qwen/Qwen3-32B")
	a, _ := catalog.FindAccelerator("H100")
	s := catalog.Serving{Shape: m, Accelerator: a, TP: 2}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return Prior(s)
}

func survey(prior Belief) Survey {
	return Survey{
		Prior:  prior,
		Limits: fleet.Limits{MaxModelLen: 32_768, KVTokens: 300_000, MaxSeqs: 256, BudgetTokens: 8192},
		Goal:   Goal{Input: 2000, Output: 300, SLO: fleet.SLO{TPOT: 50 * time.Millisecond}, Error: 0.05, Seconds: 60},
	}
}

// TestSurveyFindsTheTruth probes engines that differ from the prior in each
// parameter, and by a factor that no data sheet explains.
func TestSurveyFindsTheTruth(t *testing.T) {
	prior := believed(t)
	for name, truth := range map[string]Step{
		"as believed": prior.Step,
		"otherwise":   prior.Step.With(Vector{1.3 * prior.Step.Base, 3 * prior.Step.PerSeq, 0.6 * prior.Step.PerKV, 1.6 * prior.Step.PerPrompt, 2 * prior.Step.PerPair, 0, 2e-3}),
		"20x as fast": prior.Step.Scale(0.05),
		"5x as slow":  prior.Step.Scale(5),
	} {
		s := survey(prior)
		if name == "5x as slow" {
			s.Goal.SLO.TPOT, s.Goal.Seconds = 250*time.Millisecond, 120
		}
		spent, why := s.run(truth, 0.03)
		at := s.Outlook()
		if why != StopTight || spent > s.Goal.Seconds {
			t.Errorf("%s: stopped after %.1f s and %d probes with an error of %.3f: %s", name, spent, len(s.Done), at.Error(), why)
		}
		if slow := truth.Base / prior.Step.Base; (at.Pace != 1) != (slow < 0.5 || slow > 2) {
			t.Errorf("%s: pace %.3f of an engine %.2f times as slow", name, at.Pace, slow)
		}
		n, _ := Concurrency(truth, s.Goal.mix(), s.Limits, s.Goal.SLO)
		for _, n := range []int{1, n / 2, n} {
			got, _ := at.At(n)
			if want := truth.Time(at.work(n)); math.Abs(got/want-1) > 0.1 {
				t.Errorf("%s: T(%d) = %.4f s after %d probes, want %.4f", name, n, got, len(s.Done), want)
			}
		}
		lone := Measurement{Probe: Probe{Streams: 1}, Prompt: s.Goal.Input}
		got, _ := at.Fit.Step.Expect(lone, s.Limits)
		if want, _ := truth.Expect(lone, s.Limits); math.Abs(got/want-1) > 0.1 {
			t.Errorf("%s: TTFT %.4f s, want %.4f", name, got, want)
		}
	}
}

func TestSurveyWithoutPriorFindsTheTruth(t *testing.T) {
	truth := believed(t).Step
	truth.Shadow = 0 // nothing of the model is known, so this is not either
	s := survey(Belief{})
	s.run(truth, 0.02)
	at := s.Outlook()
	for _, n := range []int{1, 64} {
		got, sigma := at.At(n)
		if want := truth.Time(at.work(n)); math.Abs(got/want-1) > 0.1 || sigma <= 0 {
			t.Errorf("T(%d) = %.4f ± %.4f s, want %.4f", n, got, sigma, want)
		}
	}
}

// TestSurveyNamesWhatItCannotTell probes where prompts may only be short: the
// pairs of their tokens are too few to be seen.
func TestSurveyNamesWhatItCannotTell(t *testing.T) {
	s := survey(believed(t))
	s.Limits.MaxModelLen, s.Goal.Input, s.Goal.Output, s.Goal.Error = 600, 200, 50, 0
	if _, why := s.run(s.Prior.Step, 0.02); why != StopFlat && why != StopSpent {
		t.Fatal(why)
	}
	at := s.Outlook()
	if got := at.Fit.Untold(); !slices.Contains(got, "perPair") || slices.Contains(got, "base") {
		t.Errorf("kept from the prior: %v", got)
	}
	if at.Fit.Step.PerPair != s.Prior.Step.PerPair {
		t.Errorf("perPair moved from %g to %g", s.Prior.Step.PerPair, at.Fit.Step.PerPair)
	}
}

// TestSurveyStopsEarly: one probe confirms a belief that is sure; less time makes
// fewer probes; a goal that is never reached ends when all has been asked.
func TestSurveyStopsEarly(t *testing.T) {
	sure := believed(t)
	for j := range sure.Spread {
		sure.Spread[j] *= 0.02
	}
	s := survey(sure)
	if _, why := s.run(sure.Step, 0.02); why != StopTight || len(s.Done) != 1 {
		t.Errorf("a sure belief took %d probes: %s", len(s.Done), why)
	}
	hurried := survey(believed(t))
	hurried.Goal.Seconds, hurried.Goal.Error = 3, 0
	if spent, why := hurried.run(hurried.Prior.Step, 0.02); why != StopTime || spent > 3.1 {
		t.Errorf("3 s became %.2f: %s", spent, why)
	}
	endless := survey(believed(t))
	endless.Goal.Error, endless.Goal.Seconds = 0, 1e6
	if _, why := endless.run(endless.Prior.Step, 0.02); why != StopSpent && why != StopFlat || len(endless.Done) <= len(hurried.Done) {
		t.Errorf("%d probes: %s", len(endless.Done), why)
	}
}

func TestSurveyKeepsToTheLimits(t *testing.T) {
	prior := believed(t)
	rapid.Check(t, func(t *rapid.T) {
		s := survey(prior)
		s.Limits = fleet.Limits{
			MaxModelLen:  fleet.Tokens(rapid.SampledFrom([]int{0, 64, 512, 4096, 40_960}).Draw(t, "length")),
			KVTokens:     fleet.Tokens(rapid.SampledFrom([]int{0, 512, 20_000, 300_000}).Draw(t, "kv")),
			MaxSeqs:      rapid.SampledFrom([]int{0, 1, 7, 256}).Draw(t, "seats"),
			BudgetTokens: fleet.Tokens(rapid.SampledFrom([]int{0, 512, 8192}).Draw(t, "budget")),
		}
		s.Goal.Streams = rapid.SampledFrom([]int{0, 3, 100}).Draw(t, "streams")
		s.Goal.Error = 0
		if _, why := s.run(prior.Step, 0.02); len(s.Done) == 0 {
			t.Fatalf("nothing asked: %s", why)
		}
		for _, m := range s.Done {
			p := m.Probe
			n, length := p.Streams, p.Prompt+p.Output
			if s.Limits.MaxSeqs > 0 && n > s.Limits.MaxSeqs || s.Goal.Streams > 0 && n > s.Goal.Streams || s.Limits.MaxSeqs == 0 && n > cautiousSeqs {
				t.Errorf("%d streams of %+v", n, s.Limits)
			}
			if most := s.Limits.MaxModelLen; most > 0 && length > most || most == 0 && length > cautiousLength {
				t.Errorf("%d tokens of %+v", length, s.Limits)
			}
			if kv := s.Limits.KVTokens; kv > 0 && fleet.Tokens(n)*length > kv || kv == 0 && fleet.Tokens(n)*length > cautiousKV {
				t.Errorf("%d x %d tokens of %+v", n, length, s.Limits)
			}
		}
	})
}

func TestSurveyIsDeterministicAndMindsRefusals(t *testing.T) {
	a, b := survey(believed(t)), survey(believed(t))
	a.run(a.Prior.Step, 0.02)
	b.run(b.Prior.Step, 0.02)
	if !slices.Equal(a.Done, b.Done) {
		t.Error("equal surveys chose other probes")
	}
	c := survey(believed(t))
	c.Goal.Error = 0
	c.Refused = []Probe{{Streams: 8, Prompt: 1}}
	c.run(c.Prior.Step, 0.02)
	for _, m := range c.Done {
		if m.Probe.Streams >= 8 {
			t.Errorf("%d streams after 8 were refused", m.Probe.Streams)
		}
	}
	if p := c.Check().Probe; p.Streams != 1 || p.Prompt != 1024 {
		t.Errorf("checks by %+v", p)
	}
}

func TestConcurrencyAndWhatBindsIt(t *testing.T) {
	s := Step{Base: 10e-3, PerSeq: 0.1e-3, PerKV: 1e-7}
	m := Mix{Input: 900, Output: 200} // 1,000 tokens each: T(n) = 10 + 0.2 n ms
	for _, c := range []struct {
		limits fleet.Limits
		tpot   time.Duration
		want   string
	}{
		{fleet.Limits{}, 0, "0 linear"},
		{fleet.Limits{MaxSeqs: 50}, 0, "50 seat-bound"},
		{fleet.Limits{MaxSeqs: 50, KVTokens: 40_000}, 0, "36 kv-bound"},
		{fleet.Limits{MaxSeqs: 50, KVTokens: 40_000}, 14100 * time.Microsecond, "20 latency-bound"},
		{fleet.Limits{MaxSeqs: 50, KVTokens: 40_000}, 40 * time.Millisecond, "36 kv-bound"},
		{fleet.Limits{}, 9 * time.Millisecond, "0 latency-bound"},
	} {
		n, r := Concurrency(s, m, c.limits, fleet.SLO{TPOT: c.tpot})
		if got := fmt.Sprint(n, " ", r); !strings.EqualFold(got, c.want) {
			t.Errorf("%+v within %v: %s, want %s", c.limits, c.tpot, got, c.want)
		}
	}
}

// TestSurveyTellsTheShadow probes a mixture of experts that computes prompts four
// times as slowly as believed: far fewer tokens hide behind its weights.
func TestSurveyTellsTheShadow(t *testing.T) {
	m, _ := catalog.FindModel("Qwen/Qwen3-30B-A3B")
	a, _ := catalog.FindAccelerator("H200")
	prior := Prior(catalog.Serving{Shape: m, Accelerator: a})
	truth := prior.Step
	truth.PerPrompt *= 4
	truth.Shadow /= 4
	s := survey(prior)
	s.run(truth, 0.02)
	at := s.Outlook()
	if at.Prior.Shadow != truth.Shadow {
		t.Errorf("shadow of %.0f tokens, want %.0f", at.Prior.Shadow, truth.Shadow)
	}
	lone := Measurement{Probe: Probe{Streams: 1}, Prompt: s.Goal.Input}
	got, _ := at.Fit.Step.Expect(lone, s.Limits)
	if want, _ := truth.Expect(lone, s.Limits); math.Abs(got/want-1) > 0.1 {
		t.Errorf("TTFT %.4f s, want %.4f", got, want)
	}
	if short, one := truth.prefill(&Load{}, 64, 0), truth.Time(Work{Prompt: 64}); short < truth.Experts/2 || short > one {
		t.Errorf("64 prompt tokens take %.4f s, as if they touched no experts", short)
	}
}
