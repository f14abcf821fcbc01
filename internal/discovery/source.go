package discovery

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"penstock.dev/penstock/internal/engine"
)

// Endpoint is a server as a source names it.
type Endpoint struct {
	Name string `json:"name"` // host and port of the URL when not given
	URL  string `json:"url"`
	// Variant names one of its pool's variants; by default the only one there is.
	Variant string `json:"variant,omitempty"`
	// Events is tcp://host:port where it publishes its KV events, and Replay where
	// past ones can be asked for, where the pool's configuration does not tell.
	Events string `json:"events,omitempty"`
	Replay string `json:"replay,omitempty"`
	// Store says that it is no server but a store of KV that the servers share.
	Store bool `json:"-"`
}

// Source delivers the endpoints of one pool. Run calls emit with the whole list
// each time it changes, from one goroutine, and with an error when the list
// could not be read, in which case the last one stands. It returns when ctx
// ends.
type Source interface {
	// Name says where the endpoints come from, for logs.
	Name() string
	Run(ctx context.Context, emit func(list []Endpoint, err error))
}

// complete checks a list and fills in names; it returns every problem at once.
func complete(list []Endpoint) ([]Endpoint, error) {
	var errs []error
	names, urls := map[string]bool{}, map[string]bool{}
	out := make([]Endpoint, 0, len(list))
	for i, e := range list {
		base, err := engine.CheckURL(e.URL)
		if err != nil {
			errs = append(errs, fmt.Errorf("endpoints[%d].url: %w", i, err))
			continue
		}
		e.URL = base
		if e.Name == "" {
			u, err := url.Parse(base)
			if err != nil {
				errs = append(errs, fmt.Errorf("endpoints[%d].url: %w", i, err))
				continue
			}
			e.Name = u.Host
		}
		if names[e.Name] || urls[e.URL] {
			errs = append(errs, fmt.Errorf("endpoints[%d]: %q (%s) is listed twice", i, e.Name, e.URL))
			continue
		}
		names[e.Name], urls[e.URL] = true, true
		out = append(out, e)
	}
	return out, errors.Join(errs...)
}
