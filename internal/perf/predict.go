package perf

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Load is what a request would meet at an endpoint, as far as the gateway can
// tell.
type Load struct {
	Decoding   int           // sequences past their first token
	Active     fleet.Tokens  // tokens of context those sequences hold
	Ahead      int           // requests that wait for their first token
	Backlog    fleet.Tokens  // their prompt tokens, not yet computed
	Pairs      float64       // attention pairs of those tokens
	Elapsed    time.Duration // how long the first of them has been computed on
	Boundary   time.Duration // since a step was last seen to end; 0 when none was
	Prefill    float64       // share of the endpoint's time that prompts take, lately; may exceed 1
	Arrivals   float64       // prompts per second that come to be computed, lately
	Output     float64       // output tokens a sequence there is expected to have; 0 unknown
	Budget     fleet.Tokens  // tokens per step; 0 means DefaultBudget
	MaxSeqs    int           // sequences per step; 0 unknown
	KVTokens   fleet.Tokens  // KV capacity; 0 unknown
	TTFTSpread float64       // standard deviation of the logarithm of measured over predicted times to first token
	TPOTSpread float64       // the same of times per output token
	Held       fleet.Tokens  // of it, what sequences hold; a prefix that several share counts once
	Fetch      time.Duration // to bring to the GPU what is cached elsewhere; others are served meanwhile
	Promised   int           // sequences that come to decode when their prompt has been computed elsewhere
	Coming     fleet.Tokens  // tokens of context they bring
}

// DefaultBudget is the token budget per step assumed when the engine does not
// tell: vLLM's default for GPUs with 80 GB.
const DefaultBudget fleet.Tokens = 8192

// UsageUnknown is the share of the KV cache in use of an endpoint that does not
// tell.
const UsageUnknown = -1.0

// maxPrefillShare bounds the share of an engine's time that prefill is believed
// to take from decoding: beyond it the engine is overloaded and the prediction
// is a lower bound.
const maxPrefillShare = 0.9

// Pairs returns the attention pairs of computing so many tokens of a prompt
// after those that are cached.
func Pairs(cached, uncached fleet.Tokens) float64 {
	u := float64(uncached)
	return u*float64(cached) + u*(u-1)/2
}

// TTFT predicts the time from dispatch to first token of a request whose prompt
// has cached tokens in the endpoint's cache and uncached ones still to compute:
// the wait for a place, then all prompt tokens ahead of it and its own, in steps
// that also decode. It returns 0 when the step is unknown.
func (s Step) TTFT(l Load, cached, uncached fleet.Tokens) time.Duration {
	return seconds(s.FirstToken(&l, cached, uncached))
}

// TPOT predicts the time per output token of a request with context tokens of
// its own beside the load and output to come, 0 when the step is unknown.
func (s Step) TPOT(l Load, context, output fleet.Tokens) time.Duration {
	return seconds(s.PerToken(&l, context, float64(output)))
}

// FirstToken is TTFT in seconds.
func (s *Step) FirstToken(l *Load, cached, uncached fleet.Tokens) float64 {
	if !s.Known() {
		return 0
	}
	uncached = max(uncached, 1)
	ahead := 0.0
	if l.Ahead > 0 {
		ahead = s.prefill(l, float64(l.Backlog), l.Pairs)
		// The first of them is part done; those behind it have not begun.
		ahead -= min(l.Elapsed.Seconds(), ahead/float64(l.Ahead))
	} else if l.Decoding > 0 {
		step := s.time(&Work{Seqs: float64(l.Decoding), KV: float64(l.Active)})
		under, _ := s.under(l, step)
		ahead = under * step
	}
	wait := s.Admission(l, uncached) + ahead
	if l.Fetch > 0 {
		wait = max(wait, l.Fetch.Seconds())
	}
	return s.PerRequest + wait + s.prefill(l, float64(uncached), Pairs(cached, uncached))
}

// rhythm is how many steps after one was seen to end the next ends can still be
// foretold: by then the errors of as many step times have added up.
const rhythm = 12

// under returns how much of the step under way, of so many seconds, is left when
// a request sent now arrives, as a share of it, and the variance of that. Engines
// step in a rhythm: where a token was just seen, the next boundary is known, else
// half a step is left on average.
func (s *Step) under(l *Load, step float64) (left, variance float64) {
	const uniform = 1.0 / 12
	if l.Boundary <= 0 || step <= 0 {
		return 0.5, uniform
	}
	// What the token took to come and the request takes to go is PerRequest.
	since := l.Boundary.Seconds() / step
	sure := max(1-since/rhythm, 0)
	_, part := math.Modf(since)
	return 0.5 + sure*(0.5-part), uniform * (1 - sure*sure)
}

// prefill returns the seconds that computing prompt tokens takes beside the
// decoding sequences.
func (s *Step) prefill(l *Load, prompt, pairs float64) float64 {
	if prompt <= 0 {
		return 0
	}
	budget := l.Budget
	if budget <= 0 {
		budget = DefaultBudget
	}
	room := max(float64(budget)-float64(l.Decoding), 1)
	steps := math.Ceil(prompt / room)
	each, seqs := prompt/steps, float64(l.Decoding)
	// Prompt tokens in the shadow touch experts like others.
	dark := each - s.lit(each, seqs)
	return steps * (s.time(&Work{Seqs: seqs, KV: float64(l.Active), Prompt: each, Pairs: pairs / steps}) - s.PerPrompt*dark)
}

// lit returns how many of a step's prompt tokens add to its time beside so many
// decoding sequences, whose tokens take of the shadow first.
func (s *Step) lit(prompt, seqs float64) float64 { return lit(prompt, seqs, s.Shadow) }

func lit(prompt, seqs, shadow float64) float64 { return max(prompt-max(shadow-seqs, 0), 0) }

// Admission returns the seconds until the engine has a seat and KV cache for one
// more request of so many tokens to compute: as long as the sequences there take
// to end and free what is missing.
func (s *Step) Admission(l *Load, prompt fleet.Tokens) float64 {
	if l.Decoding == 0 {
		return 0
	}
	short := 0.0 // of what all decoding sequences hold, the share that must be freed
	if l.MaxSeqs > 0 {
		short = float64(l.Decoding+l.Promised+l.Ahead+1-l.MaxSeqs) / float64(l.Decoding)
	}
	if l.KVTokens > 0 && l.Held > 0 {
		short = max(short, float64(l.Held+l.Coming+l.Backlog+prompt-l.KVTokens)/float64(l.Held))
	}
	if short <= 0 {
		return 0
	}
	life := max(l.Output, 1) * s.time(&Work{Seqs: float64(l.Decoding), KV: float64(l.Active)})
	// Sequences of one length that began at different times end evenly over a life.
	return min(short, 1) * life
}

// PerToken is TPOT in seconds, of an answer that is expected to have output
// tokens: what a step takes in the middle of it, and what prompts that come
// meanwhile add. Short answers mostly end before one comes, and the prediction
// is what is typical, not the mean over those few that a long prompt hits.
func (s *Step) PerToken(l *Load, context fleet.Tokens, output float64) float64 {
	if !s.Known() {
		return 0
	}
	t := s.time(&Work{Seqs: float64(l.Decoding + l.Promised + 1), KV: float64(l.Active+l.Coming+context) + output/2})
	share := prefillShare(l.Prefill)
	if share == 0 {
		return t
	}
	// Expm1 would be as exact for rates that are nothing, and takes three times as long.
	meets := 1 - math.Exp(-l.Arrivals*output*t)
	return t / (1 - share*meets)
}

// prefillShare bounds a share of time that prompts take.
func prefillShare(share float64) float64 { return min(max(share, 0), maxPrefillShare) }

// Prompt returns the seconds that computing so many prompt tokens adds to the
// steps they are computed in.
func (s Step) Prompt(tokens fleet.Tokens, pairs float64) float64 {
	return s.PerPrompt*float64(tokens) + s.PerPair*pairs
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// Followers returns how many requests are expected to wait behind one more
// prompt at an endpoint: an engine whose prompts keep it busy for the share ρ of
// its time has ρ/(1−ρ) of them in line (M/M/1).
func Followers(l *Load) float64 {
	rho := prefillShare(l.Prefill)
	return rho / (1 - rho)
}

// Guess stands for an engine of which nothing is known: the order of magnitude of
// an 8B model on a data-centre accelerator.
func Guess() Step { return weakPrior }
