package lab

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"penstock.dev/penstock/internal/catalog"
)

// ParseMix reads a fleet of one model on several accelerators, such as
// "H100:3,A100:3,L40S:2"; a name without a number means replicas of it. Every
// replica is served as base says, but for its accelerator.
func ParseMix(text string, replicas int, base catalog.Serving) ([]Variant, error) {
	var list []Variant
	var errs []error
	seen := map[string]bool{}
	for part := range strings.SplitSeq(text, ",") {
		name, number, counted := strings.Cut(strings.TrimSpace(part), ":")
		v := Variant{Serving: base, Replicas: replicas}
		a, err := catalog.FindAccelerator(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if name == "" && text != "" {
			errs = append(errs, fmt.Errorf("accelerator: %q names nothing before %q", text, ":"+number))
			continue
		}
		v.Name, v.Serving.Accelerator = a.Name, a
		if counted {
			v.Replicas, err = strconv.Atoi(number)
			if err != nil || v.Replicas < 1 || v.Replicas > maxReplicas {
				errs = append(errs, fmt.Errorf("accelerator: %q: want NAME:REPLICAS, for example %s:3", part, a.Name))
				continue
			}
		} else if strings.Contains(text, ",") {
			errs = append(errs, fmt.Errorf("accelerator: %q: in a mix each needs its number, for example %s:3", part, a.Name))
			continue
		}
		if seen[a.Name] {
			errs = append(errs, fmt.Errorf("accelerator: %s is there twice", a.Name))
			continue
		}
		seen[a.Name] = true
		if err := v.Serving.Validate(); err != nil {
			errs = append(errs, err)
			continue
		}
		v.Belief = Belief(v.Serving)
		list = append(list, v)
	}
	return list, errors.Join(errs...)
}
