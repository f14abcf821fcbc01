package config

import (
	"fmt"
	"slices"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
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
	p.validateSplit(path, errs)
}

// validateSplit checks that what is to be split can be, by the connector, the
// engines and the roles of the endpoints listed.
func (p *Pool) validateSplit(path string, errs *problems) {
	k := engine.Connector(p.KV.Transfer.Connector)
	if of := connectorEngine(k); of != "" && slices.Contains(namedEngines, p.Dialect) && p.Dialect != of {
		errs.add(path+".kv.transfer.connector", "%s is for engines of %s, and the pool's dialect is %s: %s", k, of, p.Dialect, mendConnector(p.Dialect, of))
	}
	insists := p.Split == pool.SplitAlways || p.Split == pool.SplitOnly
	if insists && k == engine.ConnectorNone {
		errs.add(path+".split", "%s needs a way to hand KV over: set kv.transfer.connector, or split to %s", p.Split, pool.SplitAuto)
		return
	}
	if p.Split != pool.SplitOnly || len(p.Endpoints) == 0 || p.any() {
		return // nothing is demanded, or who else comes is not known
	}
	has := map[fleet.Role]bool{}
	for _, e := range p.Endpoints {
		has[e.FleetRole()] = true
	}
	switch {
	case k == engine.ConnectorSGLang && !(has[fleet.RolePrefill] && has[fleet.RoleDecode]):
		errs.add(path+".endpoints", "engines of sglang do the one leg that they were started for: at least one must have the role prefill, and one decode, or leave kv.transfer.connector out")
	case !has[fleet.RolePrefill] && !has[fleet.RoleBoth]:
		errs.add(path+".endpoints", "none computes prompts, and split is %s: at least one must have the role prefill or both", p.Split)
	}
}

// namedEngines are the dialects that say which engine answers, and so which
// connectors it has.
var namedEngines = []string{engineVLLM, engineSGLang, "trtllm", "llamacpp", "ollama"}

// The engines that have connectors, as dialects name them.
const (
	engineVLLM   = "vllm"
	engineSGLang = "sglang"
)

// connectorEngine is the dialect of the engines that have a connector; empty for
// none and where a sidecar has it.
func connectorEngine(k engine.Connector) string {
	switch k {
	case engine.ConnectorNone, engine.ConnectorLLMD:
		return ""
	case engine.ConnectorSGLang:
		return engineSGLang
	}
	return engineVLLM
}

// mendConnector says what to do about a connector that engines of a dialect do
// not have, and those of another do.
func mendConnector(dialect, of string) string {
	switch dialect {
	case engineSGLang:
		return fmt.Sprintf("set it to %s, or the dialect to %s", engine.ConnectorSGLang, of)
	case engineVLLM:
		return fmt.Sprintf("set it to one of vllm's, like %s, or the dialect to %s", engine.ConnectorNIXL, of)
	}
	return fmt.Sprintf("leave it out, or set the dialect to %s", of)
}

// Wire returns how fast KV is believed to leave an endpoint served so; the zero
// Link where it cannot.
func (k *KV) Wire(s catalog.Serving) fleet.Link {
	if k.Transfer.Connector == "" {
		return fleet.Link{}
	}
	return k.link(k.Transfer.Tier, s)
}
