package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/profile"
)

type profileCmd struct {
	Target      string `required:"" placeholder:"URL" help:"Base URL of the server to profile, without /v1."`
	Model       string `placeholder:"NAME" help:"The model to ask for (default: the first it lists)."`
	KeyEnv      string `placeholder:"NAME" help:"Environment variable with the server's key."`
	AllowRemote bool   `help:"Let --target be another machine than this one."`

	Accelerator string `placeholder:"NAME" help:"What it runs on, as the catalogue calls it; without it the prior is a guess."`
	TP          int    `name:"tp" placeholder:"N" help:"Devices that share each matrix (default: what the server says, else 1)."`
	PP          int    `name:"pp" placeholder:"N" help:"Stages of layers (default: what the server says, else 1)."`
	DP          int    `name:"dp" placeholder:"N" help:"Ranks with attention and KV of their own (default: what the server says, else 1)."`
	EP          int    `name:"ep" default:"1" help:"Groups that experts are dealt to."`
	Weights     string `placeholder:"FORMAT" help:"Of weights: bf16, fp8, int8, fp4 or int4 (default: as published)."`
	KV          string `name:"kv" placeholder:"FORMAT" help:"Of the KV cache (default: bf16)."`
	ConfigJSON  string `name:"config-json" type:"existingfile" placeholder:"FILE" help:"The model's config.json, for models that the catalogue lacks."`

	MaxSeqs      int `placeholder:"N" help:"Sequences that it runs at once, where it does not say."`
	BudgetTokens int `placeholder:"N" help:"Tokens per step, where it does not say."`
	KVTokens     int `name:"kv-tokens" placeholder:"N" help:"KV cache in tokens, where it does not say."`
	MaxModelLen  int `placeholder:"N" help:"Longest prompt plus answer, where it does not say."`

	Input   float64       `default:"1000" help:"Prompt tokens of the requests of interest."`
	Output  float64       `default:"200" help:"Answer tokens of the requests of interest."`
	SLOTTFT time.Duration `name:"slo-ttft" placeholder:"TIME" help:"Target for their time to first token."`
	SLOTPOT time.Duration `name:"slo-tpot" placeholder:"TIME" help:"Target for their time per output token."`

	Error      float64       `default:"0.05" help:"Stop when the predicted relative error for such requests is below this."`
	Budget     time.Duration `default:"60s" help:"Time for all of it."`
	MaxStreams int           `default:"256" help:"Most requests at once."`
	Force      bool          `help:"Probe even a server that is not idle."`

	Out     string `xor:"file" placeholder:"FILE" help:"Write a profile file, or, where it is there and matches, check it with one probe."`
	Profile string `xor:"file" type:"existingfile" placeholder:"FILE" help:"Check this profile file with one probe; it must match."`
	Refresh bool   `help:"Probe in full and replace --out, whatever it holds."`
	JSON    bool   `name:"json" help:"Write the report as JSON."`
}

// Help shows examples.
func (profileCmd) Help() string {
	return `Asks a live server what it can hold, sends it the few requests that tell most of
its speed, and reports step times with error bars, the largest KV cache and
concurrency, and what bounds them. It refuses a server that is not idle.

Examples:
  penstock profile --target http://localhost:8000 --accelerator H100 --tp 2
  penstock profile --target http://localhost:8000 --accelerator H100 --tp 2 \
      --input 3000 --output 300 --slo-ttft 1s --slo-tpot 30ms --out qwen-h100.yaml
  penstock profile --target http://localhost:8001 --accelerator H100 --tp 2 \
      --profile qwen-h100.yaml          a sibling: one probe checks that it is alike
  penstock profile --target http://localhost:8000 --config-json config.json --json

A Fleet file takes what was measured as pools[].variants[].profile.`
}

// Run profiles the server, or checks a profile that is there already.
func (c *profileCmd) Run(ctx context.Context, s streams) error {
	base, err := engine.CheckURL(c.Target)
	if err != nil {
		return fmt.Errorf("--target: %w", err)
	}
	if !c.AllowRemote && !onThisMachine(base) {
		return fmt.Errorf("%s is another machine: its owner should know of the load; --allow-remote sends it", base)
	}
	if err := c.validate(); err != nil {
		return err
	}
	access, err := engine.NewAccess(engine.Credentials{Env: c.KeyEnv}, engine.TLS{})
	if err != nil {
		return err
	}
	client := engine.NewClient(engine.Options{Access: access})
	defer client.Close()
	d, err := client.Describe(ctx, base, c.Model)
	if err != nil {
		return err
	}
	o := profile.Options{
		URL: base, Force: c.Force, Seed: uint64(time.Now().UnixNano()),
		Stated: fleet.Limits{MaxModelLen: kvTokens(c.MaxModelLen), KVTokens: kvTokens(c.KVTokens), MaxSeqs: c.MaxSeqs, BudgetTokens: kvTokens(c.BudgetTokens)},
		Goal: perf.Goal{
			Input: c.Input, Output: c.Output, SLO: fleet.SLO{TTFT: c.SLOTTFT, TPOT: c.SLOTPOT},
			Streams: c.MaxStreams, Error: c.Error, Seconds: c.Budget.Seconds(),
		},
		Say: func(line string) { fmt.Fprintln(s.Err, line) },
	}
	key, err := c.assume(&d, &o)
	if err != nil {
		return err
	}
	known, err := c.known(key)
	if err != nil {
		return err
	}
	if known != nil {
		b := known.Belief()
		o.Known, o.KnownError = &b, known.Error
	}
	r, err := profile.Run(ctx, client, d, o)
	if r == nil {
		return err
	}
	return errors.Join(c.write(s, r), c.finish(s, r, key, err))
}

// validate refuses what makes no sense, naming the flag.
func (c *profileCmd) validate() error {
	for _, f := range []struct {
		name string
		ok   bool
	}{
		{"--input must be at least 1", c.Input >= 1},
		{"--output must be at least 1", c.Output >= 1},
		{"--slo-ttft must not be negative", c.SLOTTFT >= 0},
		{"--slo-tpot must not be negative", c.SLOTPOT >= 0},
		{"--error must be above 0", c.Error > 0},
		{"--budget must be at least 1s", c.Budget >= time.Second},
		{"--max-streams must be at least 1", c.MaxStreams >= 1},
		{"--max-seqs, --budget-tokens, --kv-tokens and --max-model-len must not be negative", min(c.MaxSeqs, c.BudgetTokens, c.KVTokens, c.MaxModelLen) >= 0},
	} {
		if !f.ok {
			return errors.New(f.name)
		}
	}
	return nil
}

// assume settles the combination: what the catalogue, the flags and the server
// know of it, each told with its source.
func (c *profileCmd) assume(d *engine.Description, o *profile.Options) (config.ProfileKey, error) {
	say := func(what, value, source string) {
		o.Assumed = append(o.Assumed, profile.Assumption{What: what, Value: value, Source: source})
	}
	key := config.ProfileKey{Model: d.Model.ID, Engine: d.Dialect.Name, Version: d.Version, EP: max(c.EP, 1), Weights: c.Weights, KV: c.KV}
	shape, source, err := c.shape(d)
	if err != nil {
		return key, err
	}
	say("model shape", cmp.Or(shape.Name, "unknown"), source)
	var a catalog.Accelerator
	if c.Accelerator == "" {
		o.StandIn = true
		if a, err = catalog.FindAccelerator(""); err != nil {
			return key, err
		}
		say("accelerator", "unknown", "--accelerator is not given: "+a.Name+" stands in, as a guess")
	} else if a, err = catalog.FindAccelerator(c.Accelerator); err != nil {
		return key, fmt.Errorf("--%w", err)
	} else {
		say("accelerator", a.Name, "--accelerator")
		key.Accelerator = a.Name
	}
	for _, p := range []struct {
		name   string
		stated int
		told   engine.Fact
		field  *int
	}{{"tp", c.TP, d.TP, &key.TP}, {"pp", c.PP, d.PP, &key.PP}, {"dp", c.DP, d.DP, &key.DP}} {
		if p.stated > 0 && p.told.Value > 0 && p.stated != p.told.Value {
			return key, fmt.Errorf("--%s %d: the server says %d (%s)", p.name, p.stated, p.told.Value, p.told.Source)
		}
		from := "default"
		switch {
		case p.stated > 0:
			from = "--" + p.name
		case p.told.Value > 0:
			from = p.told.Source
		}
		*p.field = cmp.Or(p.stated, p.told.Value, 1)
		say(p.name, fmt.Sprint(*p.field), from)
	}
	say("ep", fmt.Sprint(key.EP), "--ep")
	l := o.Stated.Merge(d.Limits())
	key.Arguments = config.ProfileArguments{MaxModelLen: int(l.MaxModelLen), BlockTokens: int(l.BlockTokens), MaxSeqs: l.MaxSeqs, BudgetTokens: int(l.BudgetTokens)}
	return key, c.serving(&key, shape, a, o, say)
}

// serving makes the way of serving that the prior is of, where model and
// accelerator are both known.
func (c *profileCmd) serving(key *config.ProfileKey, shape catalog.Shape, a catalog.Accelerator, o *profile.Options, say func(what, value, source string)) error {
	s := catalog.Serving{Shape: shape, Accelerator: a, TP: key.TP, PP: key.PP, DP: key.DP, EP: key.EP}
	if e := key.Engine; e == "sglang" || e == "trtllm" {
		s.Engine = e
	}
	var err error
	if s.Weights, err = catalog.ParsePrecision(c.Weights); err != nil {
		return fmt.Errorf("--weights: %w", err)
	}
	if s.KV, err = catalog.ParsePrecision(c.KV); err != nil {
		return fmt.Errorf("--kv: %w", err)
	}
	if shape.Layers == 0 {
		return nil
	}
	if err := s.Validate(); err != nil {
		if o.StandIn {
			return nil // the real one is larger
		}
		return err
	}
	s = s.Normal()
	key.Weights, key.KV = s.Weights.String(), s.KV.String()
	source := func(flag, stated, otherwise string) string {
		if stated == "" {
			return otherwise
		}
		return flag
	}
	say("weights", key.Weights, source("--weights", c.Weights, "as published"))
	say("KV", key.KV, source("--kv", c.KV, "default"))
	o.Serving = &s
	return nil
}

// shape is the model's, and where it is from; zero when it is not known.
func (c *profileCmd) shape(d *engine.Description) (catalog.Shape, string, error) {
	if c.ConfigJSON != "" {
		text, err := os.ReadFile(c.ConfigJSON)
		if err != nil {
			return catalog.Shape{}, "", fmt.Errorf("--config-json: %w", err)
		}
		s, err := catalog.ParseConfig(text)
		if err != nil {
			return s, "", fmt.Errorf("--config-json: %w", err)
		}
		s.Name = d.Model.ID
		return s, c.ConfigJSON, nil
	}
	for _, name := range []string{d.Model.ID, d.Model.Root} {
		if name == "" {
			continue
		}
		if s, err := catalog.FindModel(name); err == nil {
			return s, "the catalogue", nil
		}
	}
	return catalog.Shape{}, "neither in the catalogue nor given by --config-json: there is no prior", nil
}

// known is the profile file of the same combination; nil where there is none.
func (c *profileCmd) known(key config.ProfileKey) (*config.Profile, error) {
	file := cmp.Or(c.Profile, c.Out)
	if file == "" || c.Refresh {
		return nil, nil
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) && c.Out != "" {
		return nil, nil
	}
	p, errs := config.LoadProfile(file)
	if len(errs) > 0 {
		return nil, fmt.Errorf("%s: %w", file, errors.Join(errs...))
	}
	if field := p.Key.Differs(key); field != "" {
		hint := ""
		if c.Out != "" {
			hint = "; --refresh replaces it"
		}
		return nil, fmt.Errorf("%s is the profile of another combination: %s%s", file, field, hint)
	}
	return &p, nil
}

// write prints the report.
func (c *profileCmd) write(s streams, r *profile.Report) error {
	if !c.JSON {
		return r.Print(s.Out)
	}
	e := json.NewEncoder(s.Out)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// finish writes the profile file, unless it was only checked or the run broke
// off, and returns what went wrong.
func (c *profileCmd) finish(s streams, r *profile.Report, key config.ProfileKey, err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return exitError(1) // the report says it
	case err != nil:
		return err
	case r.Check != nil && !r.Check.Holds:
		return fmt.Errorf("%s does not hold for %s", cmp.Or(c.Profile, c.Out), c.Target)
	case r.Check != nil || c.Out == "":
		return nil
	case !slices.ContainsFunc(r.Points, func(p profile.Point) bool { return p.TPOT > 0 }):
		return errors.New("nothing was measured: no profile is written")
	}
	raw, err := config.NewProfile(key, r.Fit, r.Error, r.Limits, time.Now()).Marshal()
	if err != nil {
		return err
	}
	// Beside it first, so that who reads the old one never sees half of the new.
	part := filepath.Join(filepath.Dir(c.Out), "."+filepath.Base(c.Out)+".part")
	if err := os.WriteFile(part, raw, 0o644); err != nil { //nolint:gosec // it holds no secret, and siblings read it
		return fmt.Errorf("--out: %w", err)
	}
	if err := os.Rename(part, c.Out); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	fmt.Fprintf(s.Err, "written to %s\n", c.Out)
	return nil
}
