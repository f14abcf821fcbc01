// Package perf believes how long things take. A Step holds the few physical
// parameters of one variant's step time; from it follow predictions of time to
// first token and time per output token. It is belief: engines, real or
// simulated, are the truth it is compared with.
package perf

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Step is the linear form of an engine step's duration in seconds:
//
//	T = Base + PerSeq·n + PerKV·K + PerPrompt·p
//
// for n decoding sequences with K tokens of context in all and p prompt tokens
// computed in the step. On measured vLLM and SGLang points of dense models the
// form fits TPOT to about 3 % (see docs/decisions/0004-step-form.md). The zero
// Step is "unknown": it predicts nothing.
type Step struct {
	Base      float64 // s per step: weights read once, launch overhead
	PerSeq    float64 // s per decoding sequence
	PerKV     float64 // s per token of context read
	PerPrompt float64 // s per prompt token computed
}

// Known reports whether the step has parameters at all.
func (s Step) Known() bool { return s != Step{} }

// Scale returns the step of hardware that is factor times as slow.
func (s Step) Scale(factor float64) Step {
	return Step{s.Base * factor, s.PerSeq * factor, s.PerKV * factor, s.PerPrompt * factor}
}

// Time returns the duration in seconds of a step with n decoding sequences, kv
// tokens of context and prompt tokens to compute.
func (s Step) Time(n, kv, prompt float64) float64 {
	return s.Base + s.PerSeq*n + s.PerKV*kv + s.PerPrompt*prompt
}

// Load is what a request would meet at an endpoint.
type Load struct {
	Decoding int          // sequences past their first token
	Active   fleet.Tokens // tokens of context those sequences hold
	Backlog  fleet.Tokens // prompt tokens ahead of the request, not yet computed
	Budget   fleet.Tokens // tokens per step; 0 means DefaultBudget
}

// DefaultBudget is the token budget per step assumed when the engine does not
// tell: vLLM's default for GPUs with 80 GB.
const DefaultBudget fleet.Tokens = 8192

// TTFT predicts the time from dispatch to first token of a request with
// uncached prompt tokens still to compute: all prompt tokens ahead of it and its
// own pass through steps that also decode. It returns 0 when the step is
// unknown.
func (s Step) TTFT(l Load, uncached fleet.Tokens) time.Duration {
	if !s.Known() {
		return 0
	}
	budget := l.Budget
	if budget <= 0 {
		budget = DefaultBudget
	}
	room := max(float64(budget)-float64(l.Decoding), 1)
	prompt := float64(max(l.Backlog, 0) + max(uncached, 1))
	steps := math.Ceil(prompt / room)
	sec := steps*s.Time(float64(l.Decoding), float64(l.Active), 0) + s.PerPrompt*prompt
	// On average half a step is under way when the request arrives.
	if l.Decoding > 0 {
		sec += s.Time(float64(l.Decoding), float64(l.Active), 0) / 2
	}
	return seconds(sec)
}

// TPOT predicts the time per output token of a request with context tokens of
// its own beside the load, 0 when the step is unknown.
func (s Step) TPOT(l Load, context fleet.Tokens) time.Duration {
	if !s.Known() {
		return 0
	}
	return seconds(s.Time(float64(l.Decoding+1), float64(l.Active+context), 0))
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
