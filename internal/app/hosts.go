package app

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"penstock.dev/penstock/internal/live"
)

// hostTable is which hosts are the fleet's: what engines may name as their own.
// It is read under locks and never written.
type hostTable struct {
	names    map[string]bool
	networks []netip.Prefix
	loopback bool // some endpoint is on this machine
}

// admit says why a host is none of the fleet's; nil for one that is. It asks
// nobody: a name that is not known is refused, wherever it may lead.
func (t *hostTable) admit(host string) error {
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if t.names[host] || t.loopback && host == "localhost" {
		return nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		ip = ip.Unmap()
		if t.names[ip.String()] || t.loopback && ip.IsLoopback() || slices.ContainsFunc(t.networks, func(n netip.Prefix) bool { return n.Contains(ip) }) {
			return nil
		}
	}
	return fmt.Errorf("no endpoint of the pools is there, and transfer.hosts does not name it")
}

// hostOf is the host of an endpoint's URL.
func hostOf(e live.Endpoint) string {
	u, err := url.Parse(e.URL)
	if err != nil {
		return ""
	}
	return strings.ToLower(u.Hostname())
}

// lookup resolves a name; net.DefaultResolver.LookupNetIP does.
type lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

// resolver remembers what names of the fleet lead to, so that a name server that
// is away for a while takes nobody out.
type resolver struct {
	lookup lookup

	mu    sync.Mutex
	known map[string]resolved
}

type resolved struct {
	addrs []netip.Addr
	at    time.Time
}

// How long an answer stands, and how long a question may take.
const (
	resolveEvery   = 30 * time.Second
	resolveTimeout = 2 * time.Second
	resolveAtOnce  = 8
)

// table makes the table of the fleet's hosts. With ask, names whose answer is old
// are asked for.
func (r *resolver) table(ctx context.Context, hosts []string, networks []netip.Prefix, ask bool) *hostTable {
	t := &hostTable{names: map[string]bool{}, networks: networks}
	names := map[string]bool{}
	for _, h := range hosts {
		if ip, err := netip.ParseAddr(h); err == nil {
			t.add(ip)
		} else if h != "" {
			t.names[h], names[h] = true, true
		}
	}
	if ask {
		r.ask(ctx, names)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.known, func(name string, _ resolved) bool { return !names[name] })
	for _, k := range r.known {
		for _, ip := range k.addrs {
			t.add(ip)
		}
	}
	return t
}

func (t *hostTable) add(ip netip.Addr) {
	ip = ip.Unmap()
	t.names[ip.String()] = true
	t.loopback = t.loopback || ip.IsLoopback()
}

// ask looks up the names whose answer is old.
func (r *resolver) ask(ctx context.Context, names map[string]bool) {
	var group sync.WaitGroup
	places := make(chan struct{}, resolveAtOnce)
	for name := range names {
		r.mu.Lock()
		fresh := time.Since(r.known[name].at) < resolveEvery
		r.mu.Unlock()
		if fresh {
			continue
		}
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
			defer cancel()
			addrs, err := r.lookup(ctx, "ip", name)
			r.mu.Lock()
			defer r.mu.Unlock()
			if err != nil {
				addrs = r.known[name].addrs // as far as is known
			}
			r.known[name] = resolved{addrs, time.Now()}
		})
	}
	group.Wait()
}
