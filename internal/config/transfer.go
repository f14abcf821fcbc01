package config

import (
	"fmt"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
)

// Transfer is how the engines of a pool hand the KV of a prompt over to each
// other, so that one computes it and another answers.
type Transfer struct {
	// Connector is nixl (vLLM) or sglang; without one requests are not split.
	Connector string `json:"connector"`
	// BootstrapPort is where engines that are asked together meet; 0 is the
	// connector's own (sglang: 8998).
	BootstrapPort int `json:"bootstrapPort"`

	Tier
}

func (t Transfer) validate(path string, errs *problems) {
	if _, err := engine.ParseConnector(t.Connector); err != nil {
		errs.add(path+".connector", "%w", err)
	}
	port(errs, path+".bootstrapPort", t.BootstrapPort)
	t.Tier.validate(path, errs)
}

// parseRole returns the role of a name; empty is both.
func parseRole(name string) (fleet.Role, bool) {
	for _, r := range []fleet.Role{fleet.RoleBoth, fleet.RolePrefill, fleet.RoleDecode} {
		if name == r.String() || name == "" && r == fleet.RoleBoth {
			return r, true
		}
	}
	return fleet.RoleBoth, false
}

// FleetRole returns the endpoint's role.
func (e Endpoint) FleetRole() fleet.Role {
	r, _ := parseRole(e.Role)
	return r
}

// validateRoles checks the endpoints' roles.
func (p *Pool) validateRoles(path string, errs *problems) {
	answers := len(p.Endpoints) == 0 || p.any()
	for i := range p.Endpoints {
		e := &p.Endpoints[i]
		r, ok := parseRole(e.Role)
		if !ok {
			errs.add(fmt.Sprintf("%s.endpoints[%d].role", path, i), "must be both, prefill or decode, is %q", e.Role)
		}
		if e.Role != "" && r != fleet.RoleBoth && p.KV.Transfer.Connector == "" {
			errs.add(fmt.Sprintf("%s.endpoints[%d].role", path, i), "%s needs a way to hand KV over: set kv.transfer.connector", e.Role)
		}
		answers = answers || r.Decodes()
	}
	if !answers {
		errs.add(path+".endpoints", "none answers requests: at least one must have the role decode or both")
	}
}

// Wire returns how fast KV is believed to leave an endpoint served so; the zero
// Link where it cannot.
func (k *KV) Wire(s catalog.Serving) fleet.Link {
	if k.Transfer.Connector == "" {
		return fleet.Link{}
	}
	return k.link(k.Transfer.Tier, s)
}
