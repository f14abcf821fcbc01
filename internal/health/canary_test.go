package health

import (
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

func sec(s float64) fleet.Time { return fleet.Time(s * 1e9) }

func TestCanaryCondemnsARiseOnlyOnce(t *testing.T) {
	c, cfg := NewCanary(), CanaryConfig{Window: 30 * time.Second, ErrorRise: 0.1, MinRequests: 10}
	for i := range 100 { // five in a hundred fail: the normal of before
		if c.Observe(cfg, sec(float64(i)/10), sec(float64(i)/10), i%20 == 0) {
			t.Fatal("condemned without a change")
		}
	}
	c.Changed(sec(10))
	condemned := 0
	for i := range 40 {
		at := sec(10.1 + float64(i)/10)
		if c.Observe(cfg, at, at, i%2 == 0) {
			condemned++
			if i+1 < cfg.MinRequests {
				t.Errorf("condemned after %d requests", i+1)
			}
		}
	}
	if condemned != 1 {
		t.Errorf("condemned %d times, want once", condemned)
	}
}

func TestCanaryForgivesWhatTheChangeDidNotDo(t *testing.T) {
	cfg := CanaryConfig{Window: 30 * time.Second, ErrorRise: 0.1, MinRequests: 5}
	for name, run := range map[string]func(c *Canary) bool{
		"failures of requests from before": func(c *Canary) (bad bool) {
			for range 50 {
				bad = c.Observe(cfg, sec(11), sec(9), true) || bad
			}
			return bad
		},
		"failures after the window": func(c *Canary) (bad bool) {
			for range 50 {
				bad = c.Observe(cfg, sec(50), sec(45), true) || bad
			}
			return bad
		},
		"as many failures as before": func(c *Canary) (bad bool) {
			for i := range 50 {
				bad = c.Observe(cfg, sec(11), sec(11), i%2 == 0) || bad
			}
			return bad
		},
		"after it was settled": func(c *Canary) (bad bool) {
			c.Settle()
			for range 50 {
				bad = c.Observe(cfg, sec(11), sec(11), true) || bad
			}
			return bad
		},
	} {
		c := NewCanary()
		for i := range 100 {
			c.Observe(cfg, sec(float64(i)/10), sec(float64(i)/10), i%2 == 0)
		}
		c.Changed(sec(10))
		if run(c) {
			t.Errorf("condemned for %s", name)
		}
	}
}
