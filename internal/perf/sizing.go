package perf

import "math"

// Stream is a load as sizing sees it: means.
type Stream struct {
	Rate     float64 // requests per second
	Prompt   float64 // tokens
	Uncached float64 // tokens of the prompt to compute
	Output   float64 // tokens

	// What a prompt takes of an endpoint's time, in seconds, where that was measured;
	// 0: by its step. Work is what it adds to steps that also decode, Alone what its
	// own steps take where nothing else is done.
	Work, Alone float64

	// Share is how many prompts fit in a step; 0 counts as 1.
	Share float64
}

// Served is how a load is predicted to be served on average, in seconds; all +Inf
// where it cannot be.
type Served struct {
	TTFT, TPOT, E2E float64
	// Spilt is the share of prompts that cannot be computed where they are to be: they
	// are computed where they are answered.
	Spilt float64
}

var unserved = Served{TTFT: math.Inf(1), TPOT: math.Inf(1), E2E: math.Inf(1)}

const (
	// sizingRounds is in how many rounds the number of decoding sequences and the time
	// of their steps, which determine each other, are found.
	sizingRounds = 24

	// sizingBusy is the share of its time that an endpoint may be busy with prompts:
	// beyond it queues have no mean.
	sizingBusy = 0.97

	// sizingCrowded is the share from which on prompts that wait are taken together.
	sizingCrowded = 0.9
)

// prompt is what computing the mix's mean prompt takes, in seconds.
func (s *Step) prompt(m *Stream) float64 {
	if m.Work > 0 {
		return m.Work
	}
	cached := m.Prompt - m.Uncached
	return s.PerPrompt*m.Uncached + s.PerPair*m.Uncached*(cached+m.Uncached/2)
}

// alone is what computing the mix's mean prompt takes at an endpoint that decodes
// nothing: there each of its steps reads the weights for it alone.
func (s *Step) alone(m *Stream) float64 {
	if m.Alone > 0 {
		return m.Alone
	}
	return s.prompt(m) + s.Base + s.Experts*s.touched(m.Uncached)
}

// crowded is what a prompt that takes work alone takes where others wait: as many as
// fit are computed in one step, and the weights are read once for all.
func (s *Step) crowded(m *Stream, work float64) float64 {
	read := min(s.Base+s.Experts*s.touched(m.Uncached), work/2)
	return work - read*(1-1/max(m.Share, 1))
}

// decoding returns the time of a step and the number of sequences in it where so
// many answers per second are decoded, while prompts take a share of the time;
// false where the cache cannot hold them.
func (s *Step) decoding(m *Stream, rate, share, kvTokens float64) (step, seqs float64, ok bool) {
	context := m.Prompt + m.Output/2
	for range sizingRounds {
		step = s.time(&Work{Seqs: seqs, KV: seqs * context})
		seqs = rate * m.Output * step / (1 - share)
		if kvTokens > 0 && seqs*context > kvTokens {
			return 0, 0, false
		}
	}
	return step, seqs, true
}

// wait is the mean time that requests wait for one of so many servers, each busy
// for a share of its time and for as long with each request, s. Whoever comes goes
// to the one that is free first, at times of his own (M/D/c, by Sakasegawa's
// approximation, An approximation formula Lq = αρ^β/(1-ρ), 1977).
func wait(servers, busy, work float64) float64 {
	return work / 2 * math.Pow(busy, math.Sqrt(2*(servers+1))-1) / (servers * (1 - busy))
}

// Whole predicts how a mix is served by endpoints of which each computes the
// prompts that it answers; kvTokens is the KV cache of each, 0 unknown. Prompts
// come as they like (M/D/1).
func (s *Step) Whole(m Stream, endpoints, kvTokens float64) Served {
	rate, work := m.Rate/endpoints, s.prompt(&m)
	busy := rate * work
	if busy > sizingBusy {
		return unserved
	}
	step, _, ok := s.decoding(&m, rate, busy, kvTokens)
	if !ok {
		return unserved
	}
	out := Served{TTFT: s.PerRequest + step/2 + work + wait(endpoints, busy, work), TPOT: step / (1 - busy)}
	// A prompt is computed in steps that also decode.
	out.TTFT += step
	out.E2E = out.TTFT + m.Output*out.TPOT
	return out
}

// Split predicts how a mix is served where some endpoints compute prompts and
// others, whose step is by, answer; moving the KV takes move seconds. Prompts that
// the first have no time for are computed where they are answered.
func (s *Step) Split(m Stream, prefills, decodes float64, by *Step, move, kvTokens float64) Served {
	work := s.alone(&m)
	busy := m.Rate / prefills * work
	if most := m.Rate / prefills * s.crowded(&m, work); busy > sizingCrowded {
		busy = max(min(busy, sizingCrowded), most)
	}
	split := min(1, sizingBusy/busy)
	busy *= split
	whole := m.Rate * (1 - split) * by.prompt(&m) / decodes // share of the others' time
	if whole > sizingBusy {
		return unserved
	}
	step, _, ok := by.decoding(&m, m.Rate/decodes, whole, kvTokens)
	if !ok {
		return unserved
	}
	step /= 1 - whole
	out := Served{TTFT: s.PerRequest + by.PerRequest + work + wait(prefills, busy, work) + move + 1.5*step, TPOT: step, Spilt: 1 - split}
	out.E2E = out.TTFT + m.Output*out.TPOT
	return out
}
