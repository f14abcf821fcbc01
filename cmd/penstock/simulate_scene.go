package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"penstock.dev/penstock/internal/bench"
	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/lab"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/workload"
)

// sceneFlags say what is simulated under which load.
type sceneFlags struct {
	Trace    string        `group:"Load" type:"existingfile" placeholder:"FILE" help:"Recorded trace: Mooncake JSONL or Azure CSV."`
	Workload string        `group:"Load" type:"existingfile" placeholder:"FILE.yaml" help:"Workload in inference-perf's YAML shape, with its load."`
	Journal  string        `group:"Load" type:"existingfile" placeholder:"FILE" help:"Journal of a gateway: what would other policies have done?"`
	Duration time.Duration `group:"Load" placeholder:"D" help:"Only the first D of it."`
	Goodput  []string      `group:"Load" placeholder:"METRIC:MS" help:"Target a good request meets, in ms; repeat for more: --goodput ttft:5000 --goodput tpot:100."`

	Fleet       string         `group:"Fleet" type:"existingfile" placeholder:"FILE" help:"Fleet file; a pool's variants are simulated."`
	Pool        string         `group:"Fleet" placeholder:"NAME" help:"Which pool of it, if there are several."`
	Replicas    *int           `group:"Fleet" help:"Engines, without a Fleet file (default 8)."`
	Model       string         `group:"Fleet" help:"Their model (default Qwen/Qwen3-32B)."`
	Accelerator string         `group:"Fleet" placeholder:"NAME[:N],..." help:"Their accelerator, or how many of each: H100:3,A100:3 (default H100)."`
	TP          *int           `group:"Fleet" name:"tp" help:"Their tensor parallelism (default 2)."`
	KVTokens    *int           `group:"Fleet" name:"kv-tokens" placeholder:"N" help:"Their KV cache in tokens (default: what the accelerators hold)."`
	Prefill     int            `group:"Fleet" default:"0" help:"So many of them compute prompts for the others, which decode; without a Fleet file."`
	NIC         float64        `group:"Fleet" name:"nic" default:"50" placeholder:"GB/S" help:"With which each device sends KV to others, where engines hand it over: with --prefill, or where a Fleet file says so."`
	Faults      string         `group:"Fleet" type:"existingfile" placeholder:"FILE" help:"What happens to replicas, and when: see below."`
	Gateways    int            `group:"Fleet" default:"1" help:"Gateways that share the load, each with a view of its own."`
	KVEvents    bool           `group:"Fleet" name:"kv-events" help:"Engines publish what they cache, and gateways follow; without, gateways remember what they sent."`
	EventLag    time.Duration  `group:"Fleet" name:"kv-event-lag" default:"2ms" help:"What events take to a gateway, with --kv-events."`
	EventLoss   float64        `group:"Fleet" name:"kv-event-loss" default:"0" help:"Share of the batches of events that do not come and have to be asked for again, 0 to 1, with --kv-events."`
	CPUTier     int            `group:"Fleet" name:"cpu-tier" placeholder:"TOKENS" help:"KV that each engine keeps in host memory below its GPUs', in tokens."`
	DiskTier    int            `group:"Fleet" name:"disk-tier" placeholder:"TOKENS" help:"KV that each engine keeps on disk below that, in tokens; with --cpu-tier."`
	Noise       float64        `group:"Fleet" default:"0.05" help:"Spread of step times, 0 to 1."`
	Spread      float64        `group:"Fleet" default:"0" help:"Spread of speeds: replicas are up to so much faster or slower than their like, 0 to 0.9."`
	Scrape      *time.Duration `group:"Fleet" help:"Between two readings of an engine's gauges (default 1s, or the Fleet file's)."`
	Hop         time.Duration  `group:"Fleet" default:"500us" help:"One way between gateway and engine."`
}

// experiment is a scene and what to tell of it.
type experiment struct {
	scene    lab.Scene
	settings []lab.Setting
	notes    []string
	recorded *lab.Recording // with --journal
}

// experiment builds what the flags describe.
func (f *sceneFlags) experiment() (*experiment, error) {
	given := 0
	for _, s := range []string{f.Trace, f.Workload, f.Journal} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		return nil, errors.New("give --trace FILE or --workload FILE, or --journal FILE: one of them")
	}
	if f.Duration < 0 {
		return nil, fmt.Errorf("--duration must not be negative, is %v", f.Duration)
	}
	targets, err := bench.ParseGoodput(f.Goodput)
	if err != nil {
		return nil, err
	}
	e := &experiment{scene: lab.Scene{
		Pool: pool.Default(), Noise: f.Noise, Spread: f.Spread, Scrape: time.Second, Hop: f.Hop,
		Targets: sim.Targets{TTFT: targets.TTFT, TPOT: targets.TPOT, E2E: targets.E2E},
	}}
	if f.Fleet != "" {
		err = f.fromFile(e)
	} else if f.Journal == "" {
		err = f.fromFlags(e)
	}
	if err != nil {
		return nil, err
	}
	if f.Scrape != nil {
		e.scene.Scrape = *f.Scrape
	}
	switch {
	case f.Trace != "":
		err = f.trace(e)
	case f.Workload != "":
		err = f.workload(e)
	default:
		err = f.journal(e)
	}
	if err == nil {
		err = f.happenings(e)
	}
	return e, err
}

// happenings reads how many gateways there are and what befalls the replicas.
func (f *sceneFlags) happenings(e *experiment) error {
	if f.Gateways < 1 {
		return fmt.Errorf("--gateways must be at least 1, is %d", f.Gateways)
	}
	e.scene.Gateways = f.Gateways
	if err := f.caches(e); err != nil {
		return err
	}
	if f.Faults == "" {
		return nil
	}
	text, err := os.ReadFile(f.Faults)
	if err != nil {
		return err
	}
	if e.scene.Faults, err = lab.ParseFaults(text, e.scene.Variants); err != nil {
		return fmt.Errorf("%s:\n%w", f.Faults, err)
	}
	return nil
}

// eventLag is what events take to a gateway where no flag says otherwise: a step's
// end, a queue and a network.
const eventLag = 2 * time.Millisecond

// caches reads what engines tell of their caches, and what they have below their
// GPUs'.
func (f *sceneFlags) caches(e *experiment) error {
	var errs []error
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(f.EventLag < 0, "--kv-event-lag must not be negative, is %v", f.EventLag)
	bad(!(f.EventLoss >= 0 && f.EventLoss <= 1), "--kv-event-loss must be between 0 and 1, is %v", f.EventLoss)
	bad(!f.KVEvents && f.EventLag != eventLag, "--kv-event-lag: there are no events without --kv-events")
	bad(!f.KVEvents && f.EventLoss != 0, "--kv-event-loss: there are no events without --kv-events")
	bad(f.CPUTier < 0, "--cpu-tier must not be negative, is %d", f.CPUTier)
	bad(f.DiskTier < 0, "--disk-tier must not be negative, is %d", f.DiskTier)
	bad(f.DiskTier > 0 && f.CPUTier == 0, "--disk-tier: what goes to disk passes through host memory: give --cpu-tier, too")
	bad(f.CPUTier > 0 && f.Journal != "" && f.Fleet == "", "--cpu-tier: a journal does not tell how large KV is: describe the fleet with --fleet")
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if f.KVEvents {
		const ring = 10_000 // batches, as engines keep by default
		e.scene.Events = &sim.Events{Lag: f.EventLag, Lose: f.EventLoss, Ring: ring}
	}
	for i := range e.scene.Variants {
		e.scene.Variants[i].CPU, e.scene.Variants[i].Disk = fleet.Tokens(f.CPUTier), fleet.Tokens(f.DiskTier)
	}
	return nil
}

// fromFlags makes the fleet that the simple flags describe.
func (f *sceneFlags) fromFlags(e *experiment) error {
	model, err := catalog.FindModel(f.Model)
	if err != nil {
		return fmt.Errorf("--%w", err)
	}
	base := catalog.Serving{Shape: model, TP: 2}
	for _, n := range []struct {
		name string
		flag *int
		into *int
	}{{"tp", f.TP, &base.TP}, {"kv-tokens", f.KVTokens, new(int)}, {"replicas", f.Replicas, new(int)}} {
		if n.flag != nil && *n.flag < 1 {
			return fmt.Errorf("--%s must be at least 1, is %d", n.name, *n.flag)
		}
		if n.flag != nil {
			*n.into = *n.flag
		}
	}
	replicas := 8
	if f.Replicas != nil {
		if strings.Contains(f.Accelerator, ":") {
			return errors.New("--replicas: --accelerator tells the numbers already")
		}
		replicas = *f.Replicas
	}
	e.scene.Variants, err = lab.ParseMix(f.Accelerator, replicas, base)
	if err != nil {
		return fmt.Errorf("--%w", err)
	}
	if f.KVTokens != nil {
		for i := range e.scene.Variants {
			e.scene.Variants[i].Limits.KVTokens = fleet.Tokens(*f.KVTokens)
		}
	}
	return f.apart(e)
}

// apart has some replicas compute prompts for the others.
func (f *sceneFlags) apart(e *experiment) error {
	if f.Prefill == 0 {
		return nil
	}
	v := e.scene.Variants[0]
	switch {
	case len(e.scene.Variants) > 1:
		return errors.New("--prefill: of several accelerators it is not known which are to compute prompts: give endpoints their role in a Fleet file")
	case f.Prefill < 0 || f.Prefill >= v.Replicas:
		return fmt.Errorf("--prefill: must be at least 0 and leave one of the %d replicas to decode, is %d", v.Replicas, f.Prefill)
	case !(f.NIC > 0):
		return fmt.Errorf("--nic: must be more than 0 for engines to hand KV over, is %v", f.NIC)
	}
	v.NIC = f.NIC * 1e9
	pre, dec := v, v
	pre.Name, pre.Role, pre.Replicas = "prefill", fleet.RolePrefill, f.Prefill
	dec.Name, dec.Role, dec.Replicas = "decode", fleet.RoleDecode, v.Replicas-f.Prefill
	e.scene.Variants = []lab.Variant{pre, dec}
	return nil
}

// fromFile makes the fleet of a pool in a Fleet file.
func (f *sceneFlags) fromFile(e *experiment) error {
	if f.Model != "" || f.Accelerator != "" || f.TP != nil || f.Replicas != nil || f.KVTokens != nil || f.Prefill != 0 {
		return errors.New("--fleet tells what is served: leave --model, --accelerator, --tp, --replicas, --prefill and --kv-tokens away")
	}
	file, errs := config.LoadSimulated(f.Fleet)
	if len(errs) > 0 {
		return fmt.Errorf("%s:\n%w", f.Fleet, errors.Join(errs...))
	}
	at := -1
	var names []string
	for i := range file.Pools {
		names = append(names, file.Pools[i].Name)
		if file.Pools[i].Name == f.Pool || f.Pool == "" && len(file.Pools) == 1 {
			at = i
		}
	}
	if at < 0 {
		return fmt.Errorf("--pool %q: name one of %s's pools: %s", f.Pool, f.Fleet, strings.Join(names, ", "))
	}
	p := &file.Pools[at]
	if len(p.Variants) == 0 {
		return fmt.Errorf("%s: pools[%d].variants: is empty: what serves is not known", f.Fleet, at)
	}
	e.scene.Pool, e.scene.Scrape = p.Config, file.Scrape.Interval
	for i := range p.Variants {
		e.scene.Variants = append(e.scene.Variants, byRole(p, i, variantOf(p, i), f.NIC*1e9)...)
	}
	e.settings = append(e.settings, lab.Setting{Name: "Fleet file", Value: fmt.Sprintf("%s, pool %s", f.Fleet, p.Name)})
	return nil
}

// variantOf returns the i-th variant of a pool in the lab's terms. What the file
// says of step times is believed; without it, what the data sheets say.
func variantOf(p *config.Pool, i int) lab.Variant {
	v := &p.Variants[i]
	out := lab.Variant{Name: v.Name, Serving: v.Serving(), Replicas: p.Replicas(i), Limits: v.Limits().Merge(p.Engine.Limits()), Cost: v.Cost()}
	if out.Belief = v.Step(); !out.Belief.Known() {
		out.Belief = p.Engine.StepMs.Step()
	}
	if !out.Belief.Known() {
		out.Belief = lab.Belief(out.Serving)
	}
	return out
}

// byRole divides the i-th variant of a pool by what its endpoints are there for, where
// they can hand KV over.
func byRole(p *config.Pool, i int, v lab.Variant, nic float64) []lab.Variant {
	if p.KV.Transfer.Connector == "" {
		return []lab.Variant{v}
	}
	v.NIC = nic
	var all []lab.Variant
	if p.Variants[i].Replicas == 0 {
		for _, role := range []fleet.Role{fleet.RoleBoth, fleet.RolePrefill, fleet.RoleDecode} {
			part := v
			part.Role, part.Replicas = role, 0
			for _, e := range p.Endpoints {
				if at, ok := p.FindVariant(e.Variant); ok && at == i && e.FleetRole() == role {
					part.Replicas++
				}
			}
			if role != fleet.RoleBoth {
				part.Name += " (" + role.String() + ")"
			}
			if part.Replicas > 0 {
				all = append(all, part)
			}
		}
	}
	if len(all) == 0 {
		return []lab.Variant{v}
	}
	return all
}

// loadID stands for a load made of a file's content.
func loadID(kind string, content []byte, more ...any) string {
	h := sha256.Sum256(content)
	return fmt.Sprint(kind, " ", hex.EncodeToString(h[:]), " ", more)
}

// trace makes a recorded trace the load.
func (f *sceneFlags) trace(e *experiment) error {
	text, err := os.ReadFile(f.Trace)
	if err != nil {
		return err
	}
	trace, err := workload.ReadTrace(strings.NewReader(string(text)), workload.FormatAuto)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Trace, err)
	}
	e.scene.Load, e.scene.LoadID = lab.Replay(trace, f.Duration), loadID("trace", text, f.Duration)
	e.settings = append(e.settings, lab.Setting{Name: "load", Value: fmt.Sprintf("trace %s%s", f.Trace, f.slice())})
	return nil
}

// workload makes a described workload the load; its targets hold where no flag
// gives any.
func (f *sceneFlags) workload(e *experiment) error {
	text, err := os.ReadFile(f.Workload)
	if err != nil {
		return err
	}
	spec, err := workload.ParseSpec(text)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Workload, err)
	}
	if e.scene.Load, err = lab.Scaled(spec, f.Duration); err != nil {
		return fmt.Errorf("%s: %w", f.Workload, err)
	}
	e.scene.LoadID = loadID("workload", text, f.Duration)
	if len(f.Goodput) == 0 {
		e.scene.Targets = sim.Targets{TTFT: spec.Goodput["ttft"], TPOT: spec.Goodput["tpot"], E2E: spec.Goodput["e2e"]}
	}
	e.settings = append(e.settings, lab.Setting{Name: "load", Value: fmt.Sprintf("workload %s%s", f.Workload, f.slice())})
	return nil
}

// slice tells how much of a load is used.
func (f *sceneFlags) slice() string {
	if f.Duration == 0 {
		return ""
	}
	return fmt.Sprintf(", the first %v", f.Duration)
}
