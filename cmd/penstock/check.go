package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/journal"
	"penstock.dev/penstock/internal/pool"
)

type checkCmd struct {
	File    string `arg:"" optional:"" type:"existingfile" help:"Fleet file to check."`
	Tests   string `type:"existingfile" placeholder:"FILE" help:"Policy tests to run with the Fleet file's configuration: given this state, this request goes there."`
	Journal string `type:"existingfile" placeholder:"FILE" help:"Replay a journal into a fresh brain and compare its actions byte by byte."`

	inspectFlags
}

// Help shows examples.
func (checkCmd) Help() string {
	return `Examples:
  penstock check fleet.yaml
  penstock check fleet.yaml --tests policy-tests.yaml
  penstock check --journal decisions.journal
  penstock check --engine http://localhost:8000`
}

// Run checks what it is given and reports every problem.
func (c *checkCmd) Run(ctx context.Context, s streams) error {
	if c.Engine != "" {
		if c.File != "" || c.Journal != "" || c.Tests != "" {
			return errors.New("--engine is a check of its own: leave the rest away")
		}
		return c.inspect(ctx, s.Out)
	}
	if c.Tests != "" && c.File == "" {
		return errors.New("--tests needs the Fleet file whose configuration they test")
	}
	if c.File == "" && c.Journal == "" {
		return errors.New("nothing to check: give a Fleet file, --journal FILE or --engine URL")
	}
	if c.File != "" {
		f, errs := config.Load(c.File)
		for _, e := range errs {
			fmt.Fprintln(s.Out, e)
		}
		if len(errs) > 0 {
			return fmt.Errorf("%s has %d problems", c.File, len(errs))
		}
		endpoints := 0
		for _, p := range f.Pools {
			endpoints += len(p.Endpoints)
		}
		fmt.Fprintf(s.Out, "%s is in order: %d pools, %d endpoints\n", c.File, len(f.Pools), endpoints)
		if c.Tests != "" {
			if err := c.runTests(s, f); err != nil {
				return err
			}
		}
	}
	if c.Journal != "" {
		return c.replay(s)
	}
	return nil
}

// runTests runs the policy tests and tells each one's result.
func (c *checkCmd) runTests(s streams, f config.Fleet) error {
	tests, errs := config.LoadTests(c.Tests)
	for _, e := range errs {
		fmt.Fprintln(s.Out, e)
	}
	if len(errs) > 0 {
		return fmt.Errorf("%s has %d problems", c.Tests, len(errs))
	}
	failed := 0
	for _, t := range tests.Tests {
		if err := f.RunTest(t); err != nil {
			failed++
			fmt.Fprintf(s.Out, "FAIL  %s\n  %v\n", t.Name, err)
			continue
		}
		fmt.Fprintf(s.Out, "ok    %s\n", t.Name)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d policy tests failed", failed, len(tests.Tests))
	}
	return nil
}

func (c *checkCmd) replay(s streams) error {
	file, err := os.Open(c.Journal)
	if err != nil {
		return err
	}
	defer file.Close()
	r, err := journal.NewReader(file)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Journal, err)
	}
	b, steps, err := pool.Replay(r)
	if err != nil {
		return fmt.Errorf("%s, after %d steps: %w", c.Journal, steps, err)
	}
	t := b.Tally()
	fmt.Fprintf(s.Out, "%s replays to the same actions: %d steps, %d requests (%d done, %d failed, %d cancelled, %d shed or expired, %d open at the end)\n",
		c.Journal, steps, t.Arrived, t.Done, t.Failed, t.Cancelled, t.Shed+t.Expired, t.Queued+t.InFlight)
	return nil
}
