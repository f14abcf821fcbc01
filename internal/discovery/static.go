// Package discovery finds endpoints. Here they come from a list of URLs; which
// models they serve is asked of the servers themselves.
package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"penstock.dev/penstock/internal/engine"
)

// Found is a server and what it serves.
type Found struct {
	Name   string // host and port
	URL    string
	Models []engine.Model
}

// Lister asks a server for its models; engine.Client does.
type Lister interface {
	Models(ctx context.Context, base string) ([]engine.Model, error)
}

// ParseList reads a comma-separated list of base URLs and returns every
// problem at once.
func ParseList(list string) ([]Found, error) {
	var all []Found
	var errs []error
	seen := map[string]bool{}
	for raw := range strings.SplitSeq(list, ",") {
		raw = strings.TrimSpace(raw)
		if raw == "" {
			continue
		}
		base, err := engine.CheckURL(raw)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if seen[base] {
			errs = append(errs, fmt.Errorf("%q is listed twice", base))
			continue
		}
		seen[base] = true
		u, err := url.Parse(base)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, Found{Name: u.Host, URL: base})
	}
	if len(all) == 0 && len(errs) == 0 {
		errs = append(errs, errors.New("the list of endpoints is empty: give base URLs such as http://a:8000,http://b:8000"))
	}
	return all, errors.Join(errs...)
}

// The pauses between two questions to a server that does not answer.
const (
	firstPause = 500 * time.Millisecond
	maxPause   = 10 * time.Second
)

// Static asks each server in the list for its models, again and again until it
// answers, and calls found once for each, from one goroutine at a time. It
// returns when all have answered or ctx ends.
func Static(ctx context.Context, list []Found, lister Lister, log *slog.Logger, found func(Found)) {
	var wg sync.WaitGroup
	var one sync.Mutex
	for _, f := range list {
		wg.Go(func() {
			for pause := firstPause; ; pause = min(pause*2, maxPause) {
				models, err := lister.Models(ctx, f.URL)
				if err == nil {
					f.Models = models
					one.Lock()
					defer one.Unlock()
					found(f)
					return
				}
				log.Warn("endpoint does not tell its models yet; asking again", "endpoint", f.Name, "in", pause, "err", err)
				select {
				case <-time.After(pause):
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wg.Wait()
}
