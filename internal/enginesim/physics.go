package enginesim

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// Batch is the work of one engine step, in the quantities that decide how long
// it takes.
type Batch struct {
	Step     uint64       // how many steps the engine ran before this one
	Decodes  int          // sequences that compute one token each (n)
	Prefills int          // sequences that compute a chunk of prompt
	Context  fleet.Tokens // tokens whose KV the step reads: what decodes (K) and chunks have before them
	Prompt   fleet.Tokens // prompt tokens computed, over all chunks (p)
	// Attention is the attention work of the chunks (A): the sum over prompt
	// tokens of the tokens before each, in token pairs.
	Attention float64
	// Again is the part of Context that another sequence of the step reads too:
	// of n readers of one token it counts n-1.
	Again fleet.Tokens
	// Others is the tokens that other ranks of a lockstep set compute in the same
	// step: they go through the same experts.
	Others fleet.Tokens
}

// Tokens returns the number of tokens the step computes.
func (b Batch) Tokens() fleet.Tokens { return fleet.Tokens(b.Decodes) + b.Prompt }

// addChunk counts a chunk of c prompt tokens that has x tokens before it.
func (b *Batch) addChunk(c, x int) {
	b.Prefills++
	b.Prompt += fleet.Tokens(c)
	b.Context += fleet.Tokens(x)
	b.Attention += float64(c)*float64(x) + float64(c)*float64(c-1)/2
}

// Physics is the truth about an engine's speed.
type Physics interface {
	// StepTime returns how long the step takes; at least one nanosecond. It is a
	// function of the batch alone: engines look ahead and may ask twice. Noise
	// is drawn from Batch.Step, not from a stream.
	StepTime(Batch) time.Duration
}

// Speedup divides every time of another Physics, so that a fleet on a wall
// clock lives through more than one second per second.
type Speedup struct {
	Physics Physics
	By      float64 // above 0; 10 makes a 14 ms step last 1.4 ms
}

// StepTime returns the inner step's time divided by By.
func (s Speedup) StepTime(b Batch) time.Duration {
	return max(1, time.Duration(float64(s.Physics.StepTime(b))/s.By))
}

// padded is the number of tokens a captured graph computes for a batch of n:
// graphs exist for 1, 2, 4, then every multiple of 8 up to 256, then every
// multiple of 16 up to 512; larger batches run at their own size.
func padded(n int) int {
	switch {
	case n <= 2:
		return n
	case n <= 4:
		return 4
	case n <= 256:
		return (n + 7) &^ 7
	case n <= 512:
		return (n + 15) &^ 15
	}
	return n
}

// normal returns the i-th standard normal variate of a seed, by the transform
// of Box and Muller (1958) over two hashed uniforms.
func normal(seed, i uint64) float64 {
	h := stat.Mix64(seed ^ stat.Mix64(i))
	u := (float64(h>>11) + 0.5) / (1 << 53)
	v := float64(stat.Mix64(h)>>11) / (1 << 53)
	return math.Sqrt(-2*math.Log(u)) * math.Cos(2*math.Pi*v)
}
