package pool

import (
	"errors"
	"fmt"

	"penstock.dev/penstock/internal/flow"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/route"
)

// Config is everything that tunes one pool, as plain data: each part belongs to
// the package that uses it. It is journaled with Configure.
type Config struct {
	Policy  route.Spec    `json:"policy"`  // how an endpoint is chosen
	Shadow  route.Spec    `json:"shadow"`  // a second policy that decides beside the first, on the same views, and moves nothing
	Signals route.Signals `json:"signals"` // how far gauges are trusted
	Queue   flow.Config   `json:"queue"`   // who may wait, and how long
	Room    flow.Room     `json:"room"`    // how much may stand at one endpoint
	Retry   flow.Retry    `json:"retry"`   // how often a request may be tried elsewhere
	Health  health.Config `json:"health"`  // when an endpoint is out, and when back
	Index   kv.Config     `json:"index"`   // what is believed of caches, and how much of it is kept
	Split   Split         `json:"split"`   // when one endpoint computes the prompt for another: auto, always, only or never
	Pull    Pull          `json:"pull"`    // when one endpoint fetches from the cache of another: auto or never
}

// Split says when a request is served by two endpoints.
type Split string

// When requests are split.
const (
	SplitAuto   Split = "auto"   // where the policy finds that it pays
	SplitAlways Split = "always" // wherever two endpoints can
	SplitOnly   Split = "only"   // as always, and what has the role decode answers nothing whole, since its engine cannot
	SplitNever  Split = "never"
)

// Pull says when an endpoint fetches the beginning of a prompt from another's cache.
type Pull string

// When KV is fetched.
const (
	PullAuto  Pull = "auto"  // where the policy finds that it pays
	PullNever Pull = "never" // what is not cached is computed
)

// Default returns the configuration of a pool that sets nothing.
func Default() Config {
	return Config{
		Policy:  route.Spec{Name: route.DefaultPolicy},
		Signals: route.DefaultSignals(),
		Queue:   flow.Default(),
		Room:    flow.DefaultRoom(),
		Retry:   flow.DefaultRetry(),
		Health:  health.Default(),
		Index:   kv.Default(),
		Split:   SplitAuto,
		Pull:    PullAuto,
	}
}

// Validate returns every problem of c, each with the path of its field.
func (c Config) Validate() []error {
	var errs []error
	under := func(path string, list []error) {
		for _, e := range list {
			errs = append(errs, fmt.Errorf("%s.%w", path, e))
		}
	}
	if _, err := route.New(c.Policy); err != nil {
		errs = append(errs, fmt.Errorf("policy.%w", err))
	}
	if c.Shadow.Name != "" {
		if _, err := route.New(c.Shadow); err != nil {
			errs = append(errs, fmt.Errorf("shadow.%w", err))
		}
	} else if len(c.Shadow.Weights) > 0 {
		errs = append(errs, errors.New("shadow.name: is empty, but weights are given"))
	}
	under("signals", c.Signals.Validate())
	under("queue", c.Queue.Validate())
	under("room", c.Room.Validate())
	under("retry", c.Retry.Validate())
	under("health", c.Health.Validate())
	under("index", c.Index.Validate())
	switch c.Split {
	case SplitAuto, SplitAlways, SplitOnly, SplitNever:
	default:
		errs = append(errs, fmt.Errorf("split: must be %s, %s, %s or %s, is %q", SplitAuto, SplitAlways, SplitOnly, SplitNever, c.Split))
	}
	if c.Pull != PullAuto && c.Pull != PullNever {
		errs = append(errs, fmt.Errorf("pull: must be %s or %s, is %q", PullAuto, PullNever, c.Pull))
	}
	return errs
}

// Deps are the deciders a brain composes, made from its configuration.
type Deps struct {
	Policy  route.Policy
	Shadow  route.Policy // nil for none
	Queue   *flow.Queue
	Retries *flow.Budget
	KV      *kv.Book
	Health  *health.Book
	Perf    *perf.Book
	Wires   *perf.Wires
}

// Assemble makes the deciders that c describes.
func Assemble(c Config) (Deps, error) {
	p, err := route.New(c.Policy)
	if err != nil {
		return Deps{}, fmt.Errorf("policy.%w", err)
	}
	var shadow route.Policy
	if c.Shadow.Name != "" {
		if shadow, err = route.New(c.Shadow); err != nil {
			return Deps{}, fmt.Errorf("shadow.%w", err)
		}
	}
	return Deps{
		Policy:  p,
		Shadow:  shadow,
		Queue:   flow.New(c.Queue),
		Retries: flow.NewBudget(c.Retry),
		KV:      kv.NewBook(c.Index),
		Health:  health.New(c.Health),
		Perf:    perf.NewBook(),
		Wires:   &perf.Wires{},
	}, nil
}
