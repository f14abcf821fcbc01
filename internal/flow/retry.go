package flow

import "fmt"

// Retry bounds second tries: per request by count, and over all requests by a
// budget, so that a pool in trouble is not buried under retries.
type Retry struct {
	MaxAttempts int     `json:"maxAttempts"` // attempts of one request, the first included; at least 1
	Share       float64 `json:"share"`       // retries allowed per arriving request, in the long run; 0..1
	Burst       float64 `json:"burst"`       // retries that may be saved up
}

// DefaultRetry allows two more attempts and one retry for every five requests.
func DefaultRetry() Retry { return Retry{MaxAttempts: 3, Share: 0.2, Burst: 50} }

// Validate returns what is wrong with r, field by field.
func (r Retry) Validate() []error {
	var errs []error
	if r.MaxAttempts < 1 {
		errs = append(errs, fmt.Errorf("maxAttempts: must be at least 1, is %d", r.MaxAttempts))
	}
	if !(r.Share >= 0 && r.Share <= 1) {
		errs = append(errs, fmt.Errorf("share: must be in [0, 1], is %v", r.Share))
	}
	if !(r.Burst >= 0) {
		errs = append(errs, fmt.Errorf("burst: must not be negative, is %v", r.Burst))
	}
	return errs
}

// Budget counts what may still be retried. It starts full.
type Budget struct {
	config Retry
	left   float64
}

// NewBudget returns a full budget.
func NewBudget(r Retry) *Budget { return &Budget{config: r, left: r.Burst} }

// SetConfig replaces the bounds and keeps what is left within them.
func (b *Budget) SetConfig(r Retry) { b.config, b.left = r, min(b.left, r.Burst) }

// Arrived earns one request's share.
func (b *Budget) Arrived() { b.left = min(b.left+b.config.Share, b.config.Burst) }

// Take spends one retry after the given number of attempts, and reports whether
// it may be made.
func (b *Budget) Take(attempts int) bool {
	if attempts >= b.config.MaxAttempts || b.left < 1 {
		return false
	}
	b.left--
	return true
}

// Room bounds what may stand at one endpoint.
type Room struct {
	// MaxInFlight is how many requests may be in flight at an endpoint that does
	// not tell how many sequences it runs. An endpoint that tells is given that
	// many.
	MaxInFlight int `json:"maxInFlight"`
}

// DefaultRoom allows as many requests as vLLM runs sequences by default.
func DefaultRoom() Room { return Room{MaxInFlight: 256} }

// Validate returns what is wrong with r, field by field.
func (r Room) Validate() []error {
	if r.MaxInFlight < 1 {
		return []error{fmt.Errorf("maxInFlight: must be at least 1, is %d", r.MaxInFlight)}
	}
	return nil
}

// Full reports whether an endpoint with inFlight requests and (when known)
// maxSeqs sequences has no room for another.
func (r Room) Full(inFlight, maxSeqs int) bool {
	if maxSeqs <= 0 {
		maxSeqs = r.MaxInFlight
	}
	return inFlight >= maxSeqs
}
