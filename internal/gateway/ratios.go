package gateway

import (
	"sync"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// ratios learns how many bytes of a request body make a token, per model.
type ratios struct {
	mu      sync.Mutex
	byModel map[string]*stat.EWMA
}

// The ratio before anything is learnt, the span in which a learnt one is
// believed, and how fast old answers are forgotten.
const (
	bytesPerToken    = 4.0
	minBytesPerToken = 0.5
	maxBytesPerToken = 16
	ratioHalfLife    = 600 // s
	minRatioTokens   = 64  // shorter prompts are mostly chat template
)

func (r *ratios) get(model string) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.byModel[model]; e != nil {
		return e.Value(bytesPerToken)
	}
	return bytesPerToken
}

func (r *ratios) learn(model string, now fleet.Time, textBytes int, prompt fleet.Tokens) {
	if prompt < minRatioTokens || textBytes == 0 {
		return
	}
	ratio := float64(textBytes) / float64(prompt)
	if ratio < minBytesPerToken || ratio > maxBytesPerToken {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byModel == nil {
		r.byModel = map[string]*stat.EWMA{}
	}
	e := r.byModel[model]
	if e == nil {
		e = &stat.EWMA{HalfLife: ratioHalfLife}
		r.byModel[model] = e
	}
	e.Observe(now.Seconds(), ratio)
}
