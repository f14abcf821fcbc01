package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Resolver is what DNS asks of the net package's resolver.
type Resolver interface {
	LookupHost(ctx context.Context, host string) ([]string, error)
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

// DNS finds endpoints by resolving a name again and again: each address, or
// with SRV each target and port, is one. Go's resolver does not tell how long an
// answer is valid, so the interval is the bound on how late a change is seen.
type DNS struct {
	Host     string
	Port     int    // of the servers; taken from the record with SRV
	Scheme   string // http or https
	SRV      bool
	Every    time.Duration
	Resolver Resolver // net.DefaultResolver when nil
}

// Name implements Source.
func (d DNS) Name() string { return "DNS " + d.Host }

// Run implements Source.
func (d DNS) Run(ctx context.Context, emit func([]Endpoint, error)) {
	if d.Resolver == nil {
		d.Resolver = net.DefaultResolver
	}
	tick := time.NewTicker(d.Every)
	defer tick.Stop()
	var last []Endpoint
	known, failing := false, false
	for {
		list, err := d.resolve(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failing:
			failing = true
			emit(nil, err)
		case err == nil && (!known || !slices.Equal(list, last)):
			last, known, failing = list, true, false
			emit(list, nil)
		case err == nil:
			failing = false
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (d DNS) resolve(ctx context.Context) ([]Endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, d.Every)
	defer cancel()
	var hosts []string
	if d.SRV {
		_, records, err := d.Resolver.LookupSRV(ctx, "", "", d.Host)
		if err != nil {
			return nil, fmt.Errorf("resolve SRV %s: %w", d.Host, err)
		}
		for _, r := range records {
			hosts = append(hosts, net.JoinHostPort(strings.TrimSuffix(r.Target, "."), strconv.Itoa(int(r.Port))))
		}
	} else {
		addrs, err := d.Resolver.LookupHost(ctx, d.Host)
		if err != nil {
			// A name without addresses is a pool scaled to nothing, not a failure to
			// know.
			if e, ok := errors.AsType[*net.DNSError](err); ok && e.IsNotFound {
				return []Endpoint{}, nil
			}
			return nil, fmt.Errorf("resolve %s: %w", d.Host, err)
		}
		for _, a := range addrs {
			hosts = append(hosts, net.JoinHostPort(a, strconv.Itoa(d.Port)))
		}
	}
	slices.Sort(hosts)
	hosts = slices.Compact(hosts)
	list := make([]Endpoint, 0, len(hosts))
	for _, h := range hosts {
		list = append(list, Endpoint{Name: h, URL: d.Scheme + "://" + h})
	}
	return complete(list)
}
