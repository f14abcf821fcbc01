package route

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Spec names a policy and its settings, as configuration does.
type Spec struct {
	// Name is that of a policy of the catalogue.
	Name string `json:"name"`
	// Weights are the scorers of the weighted policy; other policies take none.
	Weights map[string]float64 `json:"weights,omitempty"`
}

// Equal reports whether both name the same policy with the same settings.
func (s Spec) Equal(o Spec) bool { return s.Name == o.Name && maps.Equal(s.Weights, o.Weights) }

// DefaultPolicy is the policy of a pool that names none.
const DefaultPolicy = "predictive"

// catalogue is every policy by name.
var catalogue = map[string]func(Spec) (Policy, error){
	"round-robin":     plain(func() Policy { return &roundRobin{} }),
	"random":          plain(func() Policy { return random{} }),
	"least-request":   plain(func() Policy { return leastRequest{} }),
	"p2c":             plain(func() Policy { return p2c{} }),
	"prefix-affinity": plain(func() Policy { return prefixAffinity{} }),
	"predictive":      plain(func() Policy { return &predictive{} }),
	"weighted":        newWeighted,

	// Rivals: what others route by, for comparison (docs/decisions/0012-rivals.md).
	"llm-d":           plain(func() Policy { return newLLMD() }),
	"llm-d-optimized": plain(func() Policy { return newLLMDOptimized() }),
	"llm-d-latency":   plain(func() Policy { return newLLMDLatency() }),
	"dynamo":          plain(func() Policy { return newDynamo() }),
	"sglang":          plain(func() Policy { return newSGLang(false) }),
	"sglang-gateway":  plain(func() Policy { return newSGLang(true) }),
	"aibrix":          plain(func() Policy { return newAIBrix() }),

	"aibrix-least-latency": plain(func() Policy { return &aibrixLeastLatency{} }),
}

// Names returns the policies' names, sorted.
func Names() []string { return slices.Sorted(maps.Keys(catalogue)) }

// New makes the policy that s names.
func New(s Spec) (Policy, error) {
	mk, ok := catalogue[s.Name]
	if !ok {
		return nil, fmt.Errorf("name: no policy %q; known: %s", s.Name, strings.Join(Names(), ", "))
	}
	return mk(s)
}

func plain(mk func() Policy) func(Spec) (Policy, error) {
	return func(s Spec) (Policy, error) {
		if len(s.Weights) > 0 {
			return nil, fmt.Errorf("weights: policy %q takes none; did you mean \"weighted\"?", s.Name)
		}
		return mk(), nil
	}
}
