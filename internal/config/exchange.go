package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"penstock.dev/penstock/internal/exchange"
)

// Exchange says how what engines must know of each other before KV moves between
// them is kept; see docs/transfer.md. Where it listens, and its token, are flags.
type Exchange struct {
	// Enabled lets engines register, judges their pairs and gives every transfer a
	// ticket. Without it all engines of a pool that name one connector are taken to be
	// able to exchange KV.
	Enabled bool `json:"enabled"`
	// Hosts are what engines may name as their own besides the hosts of the pools'
	// endpoints: names, addresses and networks such as 10.1.0.0/16. Nobody is sent
	// anywhere else.
	Hosts []string `json:"hosts"`
	// TrustFleet lets the hosts of the fleet in without a token, where they speak
	// Mooncake's or SGLang's words, which have none. Use it where the network is trusted.
	TrustFleet bool `json:"trustFleet"`
	// Lease is that of a registration that asks for none.
	Lease time.Duration `json:"lease"`
	// BlockLease is how long an engine that does not say keeps blocks for a pull.
	BlockLease time.Duration `json:"blockLease"`
	// PlanFor is how long a transfer waits for its prompt to be computed.
	PlanFor time.Duration `json:"planFor"`
	// State is a file in which what engines say only once outlives the gateway; empty
	// for none.
	State string `json:"state"`

	Tier
}

func defaultExchange() Exchange {
	d := exchange.DefaultConfig()
	const giga = 1e9
	return Exchange{
		Enabled: true, Lease: d.Lease, BlockLease: d.BlockLease, PlanFor: d.PlanFor,
		Tier: Tier{GBps: d.Prior.BytesPerSecond / giga, Latency: d.Prior.Latency},
	}
}

// Config returns e as the exchange takes it.
func (e *Exchange) Config() exchange.Config {
	c := exchange.DefaultConfig()
	c.Lease, c.BlockLease, c.PlanFor = e.Lease, e.BlockLease, e.PlanFor
	const giga = 1e9
	c.Prior = exchange.Prior{Latency: e.Latency, BytesPerSecond: e.GBps * giga}
	return c
}

// Restarts reports whether o cannot take e's place while serving.
func (e *Exchange) Restarts(o *Exchange) bool {
	return e.Enabled != o.Enabled || e.TrustFleet != o.TrustFleet || e.State != o.State || e.Config() != o.Config()
}

func (e *Exchange) validate(path string, errs *problems) {
	for _, err := range e.Config().Validate() {
		switch what := err.Error(); {
		case strings.HasPrefix(what, "prior.latency"):
			errs.add(path+".latency", "must be above 0 and at most a minute, is %v", e.Latency)
		case strings.HasPrefix(what, "prior."):
			errs.add(path+".GBps", "must be between 0.001 and 1000000, is %v", e.GBps)
		default:
			*errs = append(*errs, fmt.Errorf("%s.%w", path, err))
		}
	}
	for i, h := range e.Hosts {
		if _, err := netip.ParsePrefix(h); err == nil {
			continue
		}
		if h == "" || strings.ContainsFunc(h, func(r rune) bool { return r <= ' ' || strings.ContainsRune("/@?#[]", r) }) {
			errs.add(fmt.Sprintf("%s.hosts[%d]", path, i), "must be a name, an address or a network such as 10.1.0.0/16, is %q", h)
		}
	}
}

// Networks returns the networks among the hosts, and the others.
func (e *Exchange) Networks() (networks []netip.Prefix, hosts []string) {
	hosts = slices.Clone(e.Hosts)
	hosts = slices.DeleteFunc(hosts, func(h string) bool {
		p, err := netip.ParsePrefix(h)
		if err == nil {
			networks = append(networks, p)
		}
		return err == nil
	})
	return networks, hosts
}
