package config

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
)

// Front is what the public port lets clients say.
type Front struct {
	// TrustedHops are the networks, such as 10.0.0.0/8, from which the headers
	// for SLO, objective and tenant are believed; from elsewhere they are ignored.
	// A proxy that passes on what strangers send must not be in them.
	TrustedHops []string `json:"trustedHops"`
	// Objectives are priorities and SLOs that requests ask for by name.
	Objectives []Objective `json:"objectives"`
	// CacheSalt is shared, or perTenant: then each tenant has prefix caches of its
	// own, since shared ones tell by their speed what others have asked.
	CacheSalt string `json:"cacheSalt"`
	// CORS says which web pages may call the public port.
	CORS CORS `json:"cors"`
}

// CORS says which web pages may call the public port.
type CORS struct {
	// AllowedOrigins are their origins, such as https://chat.example.com; * is
	// all of them.
	AllowedOrigins []string `json:"allowedOrigins"`
}

// Objective is a priority and an SLO with a name.
type Objective struct {
	// Name is what the objective's header says.
	Name string `json:"name"`
	// Priority orders requests; higher goes first.
	Priority int `json:"priority"`
	// SLOTTFT is the time to the first token that is aimed at; 0 for none.
	SLOTTFT time.Duration `json:"sloTtft"`
	// SLOTPOT is the mean time per output token that is aimed at; 0 for none.
	SLOTPOT time.Duration `json:"sloTpot"`
}

// The values of cacheSalt.
const (
	saltShared    = "shared"
	saltPerTenant = "perTenant"
)

// defaultFront trusts this host and nobody else.
func defaultFront() Front {
	return Front{TrustedHops: []string{"127.0.0.0/8", "::1/128"}, CacheSalt: saltShared}
}

// Policy returns the valid front in the gateway's terms.
func (f Front) Policy() gateway.Policy {
	p := gateway.Policy{SaltPerTenant: f.CacheSalt == saltPerTenant, Origins: f.CORS.AllowedOrigins, Objectives: map[string]gateway.Objective{}}
	for _, hop := range f.TrustedHops {
		if n, err := netip.ParsePrefix(hop); err == nil {
			p.Trusted = append(p.Trusted, n)
		}
	}
	for _, o := range f.Objectives {
		p.Objectives[o.Name] = gateway.Objective{Priority: o.Priority, SLO: fleet.SLO{TTFT: o.SLOTTFT, TPOT: o.SLOTPOT}}
	}
	return p
}

func (f Front) validate(errs *problems) {
	for i, hop := range f.TrustedHops {
		if _, err := netip.ParsePrefix(hop); err != nil {
			errs.add(fmt.Sprintf("trustedHops[%d]", i), "must be a network such as 10.0.0.0/8, is %q", hop)
		}
	}
	names := map[string]int{}
	for i, o := range f.Objectives {
		at := fmt.Sprintf("objectives[%d]", i)
		if o.Name == "" || strings.ContainsAny(o.Name, " \t\r\n") {
			errs.add(at+".name", "must be a name without spaces, is %q", o.Name)
		}
		unique(errs, at+".name", o.Name, i, names, "objectives[%d]")
		if o.SLOTTFT < 0 || o.SLOTPOT < 0 {
			errs.add(at, "an SLO must not be negative")
		}
	}
	if f.CacheSalt != saltShared && f.CacheSalt != saltPerTenant {
		errs.add("cacheSalt", "must be %s or %s, is %q", saltShared, saltPerTenant, f.CacheSalt)
	}
	for i, o := range f.CORS.AllowedOrigins {
		u, err := url.Parse(o)
		if o != "*" && (err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != o) {
			errs.add(fmt.Sprintf("cors.allowedOrigins[%d]", i), "must be * or an origin such as https://chat.example.com, is %q", o)
		}
	}
}

// validateAliases checks the names that stand for others. All names of all pools
// are told apart.
func validateAliases(pools []Pool, errs *problems) {
	taken := map[string]string{}
	for i := range pools {
		taken[pools[i].Model] = fmt.Sprintf("the model of pools[%d]", i)
	}
	for i := range pools {
		for _, alias := range slices.Sorted(maps.Keys(pools[i].Aliases)) {
			at := fmt.Sprintf("pools[%d].aliases.%s", i, alias)
			switch {
			case alias == "" || pools[i].Aliases[alias] == "":
				errs.add(at, "must be a name and the model it stands for")
			case taken[alias] != "":
				errs.add(at, "is %s already", taken[alias])
			default:
				taken[alias] = fmt.Sprintf("an alias in pools[%d]", i)
			}
		}
	}
}
