package health

import (
	"fmt"
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// CanaryConfig says when a change has made things worse.
type CanaryConfig struct {
	Window      time.Duration `json:"window"`      // how long after a change it is judged
	ErrorRise   float64       `json:"errorRise"`   // rise of the share of failed requests that condemns it, in (0, 1]
	MinRequests int           `json:"minRequests"` // requests after the change before it is judged
}

// DefaultCanary condemns a change after which ten in a hundred requests more
// fail than before, within half a minute.
func DefaultCanary() CanaryConfig {
	return CanaryConfig{Window: 30 * time.Second, ErrorRise: 0.1, MinRequests: 20}
}

// Validate returns what is wrong with c, field by field.
func (c CanaryConfig) Validate() []error {
	var errs []error
	if c.Window < 0 {
		errs = append(errs, fmt.Errorf("window: must not be negative (0 never judges), is %v", c.Window))
	}
	if !(c.ErrorRise > 0 && c.ErrorRise <= 1) {
		errs = append(errs, fmt.Errorf("errorRise: must be in (0, 1], is %v", c.ErrorRise))
	}
	if c.MinRequests < 1 {
		errs = append(errs, fmt.Errorf("minRequests: must be at least 1, is %d", c.MinRequests))
	}
	return errs
}

// Canary compares the share of failed requests after a change with that before
// it. Only failures that began after the change count against it: a request
// that arrived before may have failed for the old reasons.
type Canary struct {
	good, bad stat.Rate // the past, forgetting
	judging   bool
	since     fleet.Time
	before    float64 // share of failures before the change
	all, errs int     // since the change
}

// canaryHalfLife is the memory of what was normal before a change, in seconds.
const canaryHalfLife = 60

// NewCanary returns a canary that has seen nothing.
func NewCanary() *Canary {
	return &Canary{good: stat.Rate{HalfLife: canaryHalfLife}, bad: stat.Rate{HalfLife: canaryHalfLife}}
}

// Changed begins to judge a change made at now.
func (c *Canary) Changed(now fleet.Time) {
	c.judging, c.since, c.all, c.errs = true, now, 0, 0
	good, bad := c.good.PerSecond(now.Seconds()), c.bad.PerSecond(now.Seconds())
	c.before = 0
	if good+bad > 0 {
		c.before = bad / (good + bad)
	}
}

// Settle ends the judging, whatever it has seen.
func (c *Canary) Settle() { c.judging = false }

// Observe records the end, at now, of a request that arrived at arrived, and
// reports whether it condemns the change: true at most once.
func (c *Canary) Observe(config CanaryConfig, now, arrived fleet.Time, failed bool) bool {
	if failed {
		c.bad.Add(now.Seconds(), 1)
	} else {
		c.good.Add(now.Seconds(), 1)
	}
	if !c.judging || arrived < c.since {
		return false
	}
	if arrived.Sub(c.since) > config.Window {
		c.judging = false
		return false
	}
	c.all++
	if failed {
		c.errs++
	}
	if c.all < config.MinRequests {
		return false
	}
	// The share less its standard error: few requests prove little.
	n, share := float64(c.all), float64(c.errs)/float64(c.all)
	if share-math.Sqrt(share*(1-share)/n) <= c.before+config.ErrorRise {
		return false
	}
	c.judging = false
	return true
}
