package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Registry holds the endpoints that were put in over the API: by an operator,
// to stay until deleted, or by an engine itself, with a lease it must renew.
type Registry struct {
	mu      sync.Mutex
	entries map[string]registered
	changed chan struct{}
}

type registered struct {
	Endpoint
	expires time.Time // zero for never
}

// MaxLease bounds the lease of a self-registration.
const MaxLease = 10 * time.Minute

// ErrUnknownEndpoint says that the registry has no endpoint of a name.
var ErrUnknownEndpoint = errors.New("no endpoint of that name was put in over the API")

// NewRegistry returns an empty registry.
func NewRegistry() *Registry {
	return &Registry{entries: map[string]registered{}, changed: make(chan struct{}, 1)}
}

// Put takes an endpoint on, or renews its lease; lease 0 is for ever.
func (r *Registry) Put(e Endpoint, lease time.Duration) (Endpoint, error) {
	if lease < 0 || lease > MaxLease {
		return e, fmt.Errorf("lease: must be between 0 (for ever) and %v, is %v", MaxLease, lease)
	}
	list, err := complete([]Endpoint{e})
	if err != nil {
		return e, err
	}
	e = list[0]
	entry := registered{Endpoint: e}
	if lease > 0 {
		entry.expires = time.Now().Add(lease)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, other := range r.entries {
		if other.URL == e.URL && name != e.Name {
			return e, fmt.Errorf("url: %s is that of endpoint %q already", e.URL, name)
		}
	}
	known, had := r.entries[e.Name]
	r.entries[e.Name] = entry
	if !had || known.Endpoint != e || (lease > 0 && known.expires.IsZero()) {
		r.notify()
	}
	return e, nil
}

// Delete takes an endpoint out.
func (r *Registry) Delete(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.entries[name]; !ok {
		return fmt.Errorf("%q: %w", name, ErrUnknownEndpoint)
	}
	delete(r.entries, name)
	r.notify()
	return nil
}

func (r *Registry) notify() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// List returns the endpoints whose lease has not run out, by name.
func (r *Registry) List() []Endpoint {
	list, _ := r.sweep(time.Now())
	return list
}

// Name implements Source.
func (r *Registry) Name() string { return "API" }

// Run implements Source: it emits the list when it changes and takes out
// endpoints whose lease has run out.
func (r *Registry) Run(ctx context.Context, emit func([]Endpoint, error)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last []Endpoint
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.changed:
		case <-timer.C:
		}
		list, next := r.sweep(time.Now())
		if !slices.Equal(list, last) {
			last = list
			emit(list, nil)
		}
		timer.Reset(next)
	}
}

// sweep drops what has expired and returns the rest, and when to look again.
func (r *Registry) sweep(now time.Time) ([]Endpoint, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := time.Hour
	var list []Endpoint
	for name, e := range r.entries {
		if !e.expires.IsZero() {
			if !e.expires.After(now) {
				delete(r.entries, name)
				continue
			}
			next = min(next, e.expires.Sub(now))
		}
		list = append(list, e.Endpoint)
	}
	slices.SortFunc(list, func(a, b Endpoint) int { return cmp.Compare(a.Name, b.Name) })
	return list, next
}
