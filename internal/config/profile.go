package config

import (
	"cmp"
	"fmt"
	"math"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
)

// ProfileKind is the kind of a profile file.
const ProfileKind = "Profile"

// Profile is what profiling one server found, for all that are like it.
type Profile struct {
	// APIVersion must be penstock.dev/v1alpha1.
	APIVersion string `json:"apiVersion"`
	// Kind must be Profile.
	Kind string `json:"kind"`
	// Date is when it was measured, as RFC 3339 has it.
	Date string `json:"date"`
	// Key says of what it is; it holds for what has an equal one.
	Key ProfileKey `json:"key"`
	// Error is the relative standard error of predictions at the shape it was
	// measured for, 0.05 for 5 %.
	Error float64 `json:"error"`
	// StepMs is the fitted step time in milliseconds.
	StepMs StepMs `json:"stepMs"`
	// SigmaMs are the standard errors of its parameters, in milliseconds; touch and
	// shadow have none.
	SigmaMs StepMs `json:"sigmaMs"`
	// Limits are what the server said that it can hold; 0 is unknown.
	Limits ProfileLimits `json:"limits"`
}

// ProfileKey tells combinations apart whose step times differ.
type ProfileKey struct {
	// Model is the name that the server serves it under.
	Model string `json:"model"`
	// Engine is the kind of engine.
	Engine string `json:"engine"`
	// Version is the engine's; empty where it does not tell.
	Version string `json:"version"`
	// Arguments are those of the engine's start that matter and are known.
	Arguments ProfileArguments `json:"arguments"`
	// Accelerator is the catalogue's name of it; empty when it was not said.
	Accelerator string `json:"accelerator"`
	// TP is the number of devices that share each matrix.
	TP int `json:"tp"`
	// PP is the number of stages of layers.
	PP int `json:"pp"`
	// DP is the number of ranks with attention and KV of their own.
	DP int `json:"dp"`
	// EP is the number of groups that the experts are dealt to.
	EP int `json:"ep"`
	// Weights is their precision; empty when nothing of the model is known.
	Weights string `json:"weights"`
	// KV is the precision of the KV cache.
	KV string `json:"kv"`
}

// ProfileArguments are arguments of an engine's start; 0 is unknown.
type ProfileArguments struct {
	// MaxModelLen is the longest prompt plus output, in tokens.
	MaxModelLen int `json:"maxModelLen"`
	// BlockTokens is the tokens in a KV block.
	BlockTokens int `json:"blockTokens"`
	// MaxSeqs is how many sequences may run at once.
	MaxSeqs int `json:"maxSeqs"`
	// BudgetTokens is how many tokens a step may process.
	BudgetTokens int `json:"budgetTokens"`
}

// ProfileLimits are what a server can hold; 0 is unknown.
type ProfileLimits struct {
	// MaxModelLen is the longest prompt plus output, in tokens.
	MaxModelLen fleet.Tokens `json:"maxModelLen"`
	// KVTokens is the KV cache capacity in tokens.
	KVTokens fleet.Tokens `json:"kvTokens"`
	// BlockTokens is the tokens in a KV block.
	BlockTokens fleet.Tokens `json:"blockTokens"`
	// MaxSeqs is how many sequences run at once.
	MaxSeqs int `json:"maxSeqs"`
	// BudgetTokens is how many tokens a step may process.
	BudgetTokens fleet.Tokens `json:"budgetTokens"`
}

// NewProfile returns the profile of a fit.
func NewProfile(key ProfileKey, fit perf.Fitted, relative float64, l fleet.Limits, now time.Time) Profile {
	const ms = 1e3
	sigma := perf.Step{}.With(fit.Sigma) // shadow and touch have none
	return Profile{
		APIVersion: APIVersion, Kind: ProfileKind, Date: now.UTC().Format(time.RFC3339), Key: key, Error: relative,
		StepMs: StepMs(fit.Step.Scale(ms)), SigmaMs: StepMs(sigma.Scale(ms)),
		Limits: ProfileLimits{MaxModelLen: l.MaxModelLen, KVTokens: l.KVTokens, BlockTokens: l.BlockTokens, MaxSeqs: l.MaxSeqs, BudgetTokens: l.BudgetTokens},
	}
}

// Belief returns the step with its spreads.
func (p Profile) Belief() perf.Belief {
	b := perf.Belief{Step: p.StepMs.Step()}
	sigma := p.SigmaMs.Step().Vector()
	for j, v := range b.Step.Vector() {
		if v > 0 {
			b.Spread[j] = sigma[j] / v
		}
	}
	return b
}

// FleetLimits returns the limits in the fleet's terms.
func (l ProfileLimits) FleetLimits() fleet.Limits {
	return fleet.Limits{MaxModelLen: l.MaxModelLen, KVTokens: l.KVTokens, BlockTokens: l.BlockTokens, MaxSeqs: l.MaxSeqs, BudgetTokens: l.BudgetTokens}
}

// Marshal returns the file's content.
func (p Profile) Marshal() ([]byte, error) {
	body, err := yaml.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	return append([]byte("# Written by penstock profile; pools[].variants[].profile of a Fleet file reads it.\n"), body...), nil
}

// Differs names the first field in which two keys differ, with both values, k's
// first; "" when they are equal.
func (k ProfileKey) Differs(o ProfileKey) string {
	a, b := k.fields(), o.fields()
	for i := range a {
		if a[i].value != b[i].value {
			return fmt.Sprintf("%s is %s, not %s", a[i].name, a[i].value, b[i].value)
		}
	}
	return ""
}

// keyField is a field of a key for comparing and telling.
type keyField struct{ name, value string }

func (k ProfileKey) fields() []keyField {
	text := func(name, v string) keyField { return keyField{name, fmt.Sprintf("%q", v)} }
	number := func(name string, v int) keyField { return keyField{name, fmt.Sprint(v)} }
	return []keyField{
		text("model", k.Model), text("engine", k.Engine), text("version", k.Version),
		text("accelerator", k.Accelerator),
		number("tp", k.TP), number("pp", k.PP), number("dp", k.DP), number("ep", k.EP),
		text("weights", k.Weights), text("kv", k.KV),
		number("arguments.maxModelLen", k.Arguments.MaxModelLen), number("arguments.blockTokens", k.Arguments.BlockTokens),
		number("arguments.maxSeqs", k.Arguments.MaxSeqs), number("arguments.budgetTokens", k.Arguments.BudgetTokens),
	}
}

// LoadProfile reads a profile file, or returns every problem found.
func LoadProfile(path string) (Profile, []error) {
	raw, err := readSmall(path)
	if err != nil {
		return Profile{}, []error{err}
	}
	return ParseProfile(raw)
}

// ParseProfile reads the content of a profile file; see LoadProfile.
func ParseProfile(raw []byte) (Profile, []error) {
	var p Profile
	if errs := decodeYAML(raw, &p); len(errs) > 0 {
		return p, errs
	}
	var errs problems
	if p.APIVersion != APIVersion {
		errs.add("apiVersion", "must be %q, is %q", APIVersion, p.APIVersion)
	}
	if p.Kind != ProfileKind {
		errs.add("kind", "must be %q, is %q", ProfileKind, p.Kind)
	}
	if _, err := time.Parse(time.RFC3339, p.Date); err != nil {
		errs.add("date", "must be a time such as 2026-05-04T10:00:00Z, is %q", p.Date)
	}
	if p.Key.Model == "" {
		errs.add("key.model", "is required")
	}
	if p.Error < 0 || math.IsInf(p.Error, 0) {
		errs.add("error", "must not be negative, is %v", p.Error)
	}
	p.StepMs.validate("stepMs", &errs)
	p.SigmaMs.validate("sigmaMs", &errs)
	if s := p.StepMs.Step(); !s.Known() {
		errs.add("stepMs", "is empty: a profile states a step time")
	}
	l := p.Limits
	for _, v := range []int{int(l.MaxModelLen), int(l.KVTokens), int(l.BlockTokens), l.MaxSeqs, int(l.BudgetTokens)} {
		if v < 0 {
			errs.add("limits", "must not be negative, is %d", v)
		}
	}
	return p, errs
}

// matches says in which field a profile is of something else than a variant of a
// pool, whose serving is known.
func (p Profile) matches(v *Variant, model string, sheets []catalog.Accelerator) error {
	k, s := p.Key, v.serving.Normal()
	same := strings.EqualFold(k.Model, model)
	if shape, err := catalog.FindModel(k.Model); err == nil && !strings.HasSuffix(v.Shape, ".json") {
		same = shape.Name == s.Shape.Name
	}
	if !same {
		return fmt.Errorf("key.model: %q is not that of the variant, %s", k.Model, cmp.Or(model, s.Shape.Name))
	}
	if a, err := catalog.FindIn(sheets, k.Accelerator); k.Accelerator == "" || err != nil || a.Name != s.Accelerator.Name {
		return fmt.Errorf("key.accelerator: %q is not that of the variant, %s", k.Accelerator, s.Accelerator.Name)
	}
	for _, n := range []struct {
		name       string
		have, want int
	}{{"tp", k.TP, s.TP}, {"pp", k.PP, s.PP}, {"dp", k.DP, s.DP}, {"ep", k.EP, s.EP}} {
		if max(n.have, 1) != n.want {
			return fmt.Errorf("key.%s: %d is not that of the variant, %d", n.name, n.have, n.want)
		}
	}
	for _, n := range []struct {
		name, have string
		want       catalog.Precision
	}{{"weights", k.Weights, s.Weights}, {"kv", k.KV, s.KV}} {
		if have, err := catalog.ParsePrecision(n.have); err != nil || have != catalog.Unstated && have != n.want {
			return fmt.Errorf("key.%s: %q is not that of the variant, %s", n.name, n.have, n.want)
		}
	}
	if v.Kind != "" && !strings.EqualFold(k.Engine, v.Kind) {
		return fmt.Errorf("key.engine: %q is not that of the variant, %s", k.Engine, v.Kind)
	}
	return nil
}

// readProfile reads the profile that a variant names, relative to dir.
func (v *Variant) readProfile(path, model, dir string, sheets []catalog.Accelerator, errs *problems) {
	if v.Profile == "" {
		return
	}
	p, wrong := LoadProfile(within(dir, v.Profile))
	if len(wrong) == 0 {
		if err := p.matches(v, model, sheets); err != nil {
			wrong = []error{err}
		}
	}
	for _, err := range wrong {
		errs.add(path+".profile", "%q: %w", v.Profile, err)
	}
	if len(wrong) == 0 {
		v.profile = &p
	}
}
