package lab

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"penstock.dev/penstock/internal/sim"
)

// ParseFaults reads what is to happen to a fleet, a YAML list such as
//
//   - {at: 60s, replica: 3, kind: crash}
//   - {at: 70s, replica: 3, kind: restart, delay: 90s}
//   - {at: 2m, variant: A100, kind: slow, factor: 1.5}
//   - {at: 3m, variant: H100, kind: add, delay: 2m}
//
// Replicas are numbered from 0 through the variants. A variant stands for all its
// replicas; with add, for one more of it each time, which is counted in the
// variant's Later and has a number behind all others. The faults come in order of
// time. Errors name the fault and its field.
func ParseFaults(text []byte, variants []Variant) ([]sim.Fault, error) {
	js, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return nil, fmt.Errorf("read faults: %w", err)
	}
	var list []map[string]json.RawMessage
	if err := json.NewDecoder(bytes.NewReader(js)).Decode(&list); err != nil {
		return nil, errors.New("read faults: want a list of mappings, such as - {at: 60s, replica: 3, kind: crash}")
	}
	p := faultParser{variants: variants}
	for i, fields := range list {
		p.path = fmt.Sprintf("faults[%d]", i)
		p.fault(fields)
	}
	if len(p.errs) > 0 {
		return nil, errors.Join(p.errs...)
	}
	// The added replicas stand behind all others, variant by variant.
	next := 0
	for i := range variants {
		next += variants[i].Replicas
	}
	first := make([]int, len(variants))
	for i := range variants {
		first[i] = next
		next += p.added[i]
		variants[i].Later = p.added[i]
	}
	for i := range p.faults {
		if f := &p.faults[i]; f.adds >= 0 {
			f.Replica = first[f.adds] + f.Replica
		}
	}
	slices.SortStableFunc(p.faults, func(a, b parsedFault) int { return cmp.Compare(a.At, b.At) })
	out := make([]sim.Fault, len(p.faults))
	for i := range p.faults {
		out[i] = p.faults[i].Fault
	}
	return out, nil
}

// parsedFault is a fault; where adds is not negative, its replica is the so many
// added to that variant.
type parsedFault struct {
	sim.Fault
	adds int
}

type faultParser struct {
	variants []Variant
	path     string
	errs     []error
	faults   []parsedFault
	added    map[int]int
}

func (p *faultParser) bad(field, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf("%s.%s: %s", p.path, field, fmt.Sprintf(format, args...)))
}

// fault reads one fault.
func (p *faultParser) fault(fields map[string]json.RawMessage) {
	known := []string{"at", "delay", "factor", "kind", "replica", "variant"}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(known, name) {
			p.bad(name, "unknown field; known: %s", strings.Join(known, ", "))
		}
	}
	before := len(p.errs)
	f := sim.Fault{At: p.duration(fields, "at"), Delay: p.duration(fields, "delay")}
	if fields["at"] == nil {
		p.bad("at", "missing; want a time from the beginning, such as 60s")
	}
	kind := ""
	if raw := fields["kind"]; raw == nil || json.Unmarshal(raw, &kind) != nil {
		p.bad("kind", "missing; want one of %s", strings.Join(sim.FaultKinds(), ", "))
	} else {
		var ok bool
		if f.Kind, ok = sim.ParseFaultKind(kind); !ok {
			p.bad("kind", "no kind %q; known: %s", kind, strings.Join(sim.FaultKinds(), ", "))
		}
	}
	if raw := fields["factor"]; raw != nil && json.Unmarshal(raw, &f.Factor) != nil {
		p.bad("factor", "want a number, got %s", raw)
	}
	if len(p.errs) > before {
		return
	}
	if f.Kind != sim.Slow && fields["factor"] != nil {
		p.bad("factor", "goes with slow only")
	} else if f.Kind == sim.Slow && !(f.Factor >= 1.0/sim.MaxSlow && f.Factor <= sim.MaxSlow) {
		p.bad("factor", "must be between 1/%d and %d, is %v; 1 is as fast as before", sim.MaxSlow, sim.MaxSlow, f.Factor)
	}
	if fields["delay"] != nil && f.Kind != sim.Restart && f.Kind != sim.Add {
		p.bad("delay", "goes with restart and add only")
	}
	p.place(f, fields)
}

// place puts a fault where its fields say it happens.
func (p *faultParser) place(f sim.Fault, fields map[string]json.RawMessage) {
	rawReplica, rawVariant := fields["replica"], fields["variant"]
	replicas := 0
	for i := range p.variants {
		replicas += p.variants[i].Replicas
	}
	switch {
	case (rawReplica == nil) == (rawVariant == nil):
		p.bad("replica", "give either a replica's number or a variant's name")
	case rawReplica != nil:
		if json.Unmarshal(rawReplica, &f.Replica) != nil || f.Replica < 0 || f.Replica >= replicas {
			p.bad("replica", "want a number from 0 to %d, got %s", replicas-1, rawReplica)
		}
		p.faults = append(p.faults, parsedFault{f, -1})
	default:
		name := ""
		at, from := -1, 0
		if json.Unmarshal(rawVariant, &name) == nil {
			at = slices.IndexFunc(p.variants, func(v Variant) bool { return strings.EqualFold(v.Name, name) })
		}
		if at < 0 {
			var names []string
			for i := range p.variants {
				names = append(names, p.variants[i].Name)
			}
			p.bad("variant", "no variant %s; there are %s", rawVariant, strings.Join(names, ", "))
			return
		}
		if f.Kind == sim.Add {
			if p.added == nil {
				p.added = map[int]int{}
			}
			f.Replica = p.added[at]
			p.added[at]++
			p.faults = append(p.faults, parsedFault{f, at})
			return
		}
		for i := range at {
			from += p.variants[i].Replicas
		}
		for k := range p.variants[at].Replicas {
			f.Replica = from + k
			p.faults = append(p.faults, parsedFault{f, -1})
		}
	}
}

// duration reads a time such as 90s; 0 where it is not given.
func (p *faultParser) duration(fields map[string]json.RawMessage, name string) time.Duration {
	raw := fields[name]
	if raw == nil {
		return 0
	}
	text := ""
	if json.Unmarshal(raw, &text) != nil {
		p.bad(name, "want a time with its unit, such as 90s, got %s", raw)
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		p.bad(name, "want a time of at least 0 with its unit, such as 90s, got %q", text)
	}
	return max(d, 0)
}

// faultText tells a fault in one line.
func faultText(f *sim.Fault) string {
	text := fmt.Sprintf("%v: %v replica %d", f.At, f.Kind, f.Replica)
	if f.Kind == sim.Slow {
		text += fmt.Sprintf(" to %v times as long steps", f.Factor)
	}
	if f.Delay > 0 {
		text += fmt.Sprintf(", which takes %v", f.Delay)
	}
	return text
}
