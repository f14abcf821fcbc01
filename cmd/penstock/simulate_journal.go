package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/lab"
	"penstock.dev/penstock/internal/sim"
)

// journal makes what a gateway recorded the load, and without a Fleet file also
// the fleet.
func (f *sceneFlags) journal(e *experiment) error {
	if f.Model != "" || f.Accelerator != "" || f.TP != nil || f.Replicas != nil {
		return errors.New("--journal tells the fleet: leave --model, --accelerator, --tp and --replicas away, or describe another with --fleet")
	}
	raw, err := os.ReadFile(f.Journal)
	if err != nil {
		return err
	}
	rec, err := lab.ReadRecording(bytes.NewReader(raw), f.Duration)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Journal, err)
	}
	e.recorded = rec
	e.settings = append(e.settings, lab.Setting{Name: "load", Value: fmt.Sprintf("journal %s%s", f.Journal, f.slice())})
	if f.Fleet == "" {
		capacity := 0
		if f.KVTokens != nil {
			if capacity = *f.KVTokens; capacity < 1 {
				return fmt.Errorf("--kv-tokens must be at least 1, is %d", capacity)
			}
		}
		e.scene.Pool = rec.Config
		if e.scene.Variants, e.scene.Hop, err = rec.Fleet(fleet.Tokens(capacity)); err != nil {
			return fmt.Errorf("%s: %w", f.Journal, err)
		}
		if f.Scrape == nil {
			e.scene.Scrape = rec.Scrape()
		}
	}
	e.scene.Pool.Index.KeyTokens = rec.KeyTokens()
	e.scene.Load, e.scene.LoadID = rec.Load(), loadID("journal", raw, f.Duration)
	slo, same := rec.SLO()
	if len(f.Goodput) == 0 && same {
		e.scene.Targets = sim.Targets{TTFT: slo.TTFT, TPOT: slo.TPOT}
	}
	note := func(n int, format string) {
		if n > 0 {
			e.notes = append(e.notes, fmt.Sprintf(format, n))
		}
	}
	note(rec.Cut, "%d recorded requests did not end well or tell their length; simulated, they get the typical answer")
	note(rec.Unseen, "%d endpoints gave too few answers to tell how fast they are; simulated, they are as fast as was believed")
	note(rec.Moves, "endpoints came, went or restarted %d times while it was recorded; simulated, all are there from beginning to end")
	note(rec.Changes, "the configuration was changed %d times while it was recorded; simulated is the first")
	if !same {
		e.notes = append(e.notes, "requests asked for different SLOs; simulated, all ask for --goodput's")
	}
	return nil
}
