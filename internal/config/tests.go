package config

import (
	"fmt"
	"os"

	"penstock.dev/penstock/internal/scenario"
)

// LoadTests reads a file of policy tests, or returns every problem found.
func LoadTests(path string) (scenario.File, []error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return scenario.File{}, []error{fmt.Errorf("read policy tests: %w", err)}
	}
	return ParseTests(raw)
}

// ParseTests reads the content of a file of policy tests; see LoadTests.
func ParseTests(raw []byte) (scenario.File, []error) {
	var f scenario.File
	if errs := decodeYAML(raw, &f); len(errs) > 0 {
		return f, errs
	}
	var errs problems
	if len(f.Tests) == 0 {
		errs.add("tests", "is empty")
	}
	for i, t := range f.Tests {
		for _, err := range t.Validate() {
			errs = append(errs, fmt.Errorf("tests[%d].%w", i, err))
		}
	}
	return f, errs
}

// RunTest runs one policy test with the configuration of its pool.
func (f Fleet) RunTest(t scenario.Test) error {
	var found *Pool
	for i := range f.Pools {
		if p := &f.Pools[i]; p.Name == t.Pool || t.Pool == "" && len(f.Pools) == 1 {
			found = p
		}
	}
	switch {
	case found == nil && t.Pool == "":
		return fmt.Errorf("pool: must be named, since there are %d", len(f.Pools))
	case found == nil:
		return fmt.Errorf("pool: the Fleet file has no pool %q", t.Pool)
	}
	return t.Run(found.Config)
}
