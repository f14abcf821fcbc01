package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"

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
	// Ranks is how many data-parallel ranks it has, each of which is an endpoint to
	// the pool, and RankMode one of engine's ways to tell them apart, by default
	// found out. 0 is a server of one.
	Ranks    int    `json:"ranks,omitempty"`
	RankMode string `json:"rankMode,omitempty"`
	// Rank is which of the ranks it is, once Spread, and Shared that the URL leads
	// to all of them.
	Rank   int  `json:"-"`
	Shared bool `json:"-"`
	// Role is both, prefill, decode or encode; empty is both.
	Role string `json:"role,omitempty"`
	// KVPort is where others find its KV, where the pool's configuration does not
	// tell.
	KVPort int `json:"kvPort,omitempty"`
	// Store says that it is no server but a store of KV that the servers share.
	Store bool `json:"-"`
}

// RankName returns the name of one rank of an endpoint.
func RankName(endpoint string, rank int) string { return endpoint + "/" + strconv.Itoa(rank) }

// Spread returns the endpoints that the ranks of e are when told apart by mode.
func (e Endpoint) Spread(mode string) ([]Endpoint, error) {
	out := make([]Endpoint, e.Ranks)
	for i := range out {
		one := e
		one.Name, one.Rank, one.RankMode, one.Shared = RankName(e.Name, i), i, mode, mode == engine.RanksByHeader
		if !one.Shared {
			var err error
			if one.URL, err = engine.RankURL(e.URL, i); err != nil {
				return nil, err
			}
		}
		out[i] = one
	}
	return out, nil
}

// takes returns the names and the URLs that e takes up. Until it is known how its
// ranks are told apart, the next ports may be theirs.
func (e Endpoint) takes() (names, urls []string) {
	names, urls = []string{e.Name}, []string{e.URL}
	if e.Ranks == 0 {
		return names, urls
	}
	list, err := e.Spread(cmp.Or(e.RankMode, engine.RanksAuto))
	if err != nil {
		return names, urls // refused already
	}
	for _, one := range list {
		names = append(names, one.Name)
		if one.Rank > 0 && !one.Shared {
			urls = append(urls, one.URL)
		}
	}
	return names, urls
}

// taken is what no other endpoint may have.
type taken map[string]bool

// take takes all of list, unless one is taken already.
func (t taken) take(list []string) bool {
	for _, s := range list {
		if t[s] {
			return false
		}
	}
	for _, s := range list {
		t[s] = true
	}
	return true
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
	names, urls := taken{}, taken{}
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
		if err := engine.CheckRanks(e.URL, e.Ranks, e.RankMode); err != nil {
			errs = append(errs, fmt.Errorf("endpoints[%d]: %w", i, err))
			continue
		}
		takes, at := e.takes()
		if !names.take(takes) || !urls.take(at) {
			errs = append(errs, fmt.Errorf("endpoints[%d]: %q (%s) is listed twice", i, e.Name, e.URL))
			continue
		}
		out = append(out, e)
	}
	return out, errors.Join(errs...)
}
