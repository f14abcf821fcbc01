package discovery

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"time"

	"sigs.k8s.io/yaml"
)

// File reads endpoints from a YAML file and reads it again when it changes:
//
//	endpoints:
//	  - url: http://10.0.0.1:8000
//	    name: first
//
// It looks at the content, not at change notices, so that files replaced by
// rename and links that change their target work alike.
type File struct {
	Path  string
	Every time.Duration // between two looks
}

// Name implements Source.
func (f File) Name() string { return "file " + f.Path }

// Run implements Source.
func (f File) Run(ctx context.Context, emit func([]Endpoint, error)) {
	tick := time.NewTicker(f.Every)
	defer tick.Stop()
	var last [sha256.Size]byte
	failing := false
	for {
		raw, err := os.ReadFile(f.Path)
		if sum := sha256.Sum256(raw); err == nil && (sum != last || failing) {
			last = sum
			list, perr := ParseFile(raw)
			failing = false
			emit(list, perr)
		} else if err != nil && !failing {
			failing = true
			emit(nil, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// ParseFile reads the content of an endpoints file and returns every problem at
// once.
func ParseFile(raw []byte) ([]Endpoint, error) {
	var content struct {
		Endpoints []Endpoint `json:"endpoints"`
	}
	if err := yaml.UnmarshalStrict(raw, &content); err != nil {
		return nil, fmt.Errorf("not a list of endpoints: %w", err)
	}
	return complete(content.Endpoints)
}
