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
	// Connector is how: nixl, nixl-push, mooncake, moriio, moriio-write, shared or
	// offload (vLLM), sglang, or llm-d (a sidecar does it); without one requests are
	// not split. See disaggregation.md.
	Connector string `json:"connector"`
	// BootstrapPort is where other engines find an engine's KV: the bootstrap server of
	// sglang and mooncake (8998), the handshake of moriio (6301), the side channel of
	// offload (7777). 0 is the connector's own; the others need none.
	BootstrapPort int `json:"bootstrapPort"`
	// NotifyPort is where moriio is notified; 0 is 61005.
	NotifyPort int `json:"notifyPort"`
	// HitThreshold is, with shared, the share of a prompt that must have KV where it
	// will be answered for the rest to be computed there as well; 0 does not ask.
	HitThreshold float64 `json:"hitThreshold"`

	Tier
}

func (t Transfer) validate(path string, errs *problems) {
	if _, err := engine.ParseConnector(t.Connector); err != nil {
		errs.add(path+".connector", "%w", err)
	}
	port(errs, path+".bootstrapPort", t.BootstrapPort)
	port(errs, path+".notifyPort", t.NotifyPort)
	if !(t.HitThreshold >= 0 && t.HitThreshold <= 1) {
		errs.add(path+".hitThreshold", "must be between 0 and 1, is %v", t.HitThreshold)
	} else if t.HitThreshold > 0 && t.Connector != string(engine.ConnectorShared) {
		errs.add(path+".hitThreshold", "says nothing without the connector %s", engine.ConnectorShared)
	}
	t.Tier.validate(path, errs)
}

// parseRole returns the role of a name; empty is both.
func parseRole(name string) (fleet.Role, bool) {
	for _, r := range []fleet.Role{fleet.RoleBoth, fleet.RolePrefill, fleet.RoleDecode, fleet.RoleEncode} {
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
			errs.add(fmt.Sprintf("%s.endpoints[%d].role", path, i), "must be both, prefill, decode or encode, is %q", e.Role)
		}
		switch k := p.KV.Transfer.Connector; {
		case r == fleet.RoleEncode && k == string(engine.ConnectorSGLang):
			errs.add(fmt.Sprintf("%s.endpoints[%d].role", path, i), "no engine of %s takes encoded images from a gateway", k)
		case (r.Prefills() || r.Decodes()) && r != fleet.RoleBoth && k == "":
			errs.add(fmt.Sprintf("%s.endpoints[%d].role", path, i), "%s needs a way to hand KV over: set kv.transfer.connector", e.Role)
		}
		port(errs, fmt.Sprintf("%s.endpoints[%d].kvPort", path, i), e.KVPort)
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
