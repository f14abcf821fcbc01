package app

import (
	"cmp"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/live"
)

// Find implements gateway.Fleet.
func (t *table) Find(model string) (gateway.Service, bool) {
	s, ok := (*t.current.Load())[model]
	if !ok {
		return gateway.Service{}, false
	}
	for _, m := range s.list() {
		if m.ID == model {
			found := gateway.Service{Pool: s.pool, Model: cmp.Or(m.Root, m.ID), MaxModelLen: m.MaxModelLen, Tokens: s.tokens, Keep: s.keep}
			if m.Parent != "" {
				found.Adapter = fleet.AdapterOf(found.Model)
				found.Load = s.loader(found.Model)
			}
			return found, true
		}
	}
	return gateway.Service{}, false // the pool has just stopped answering to it
}

// Speaks implements gateway.Fleet. Where each engine is asked what it is, one
// that has not answered yet does not count.
func (t *table) Speaks(p *live.Pool) engine.API {
	all := ^engine.API(0)
	for _, s := range t.pools() {
		if s.pool != p {
			continue
		}
		d := s.loops.Dialect
		if d.Name != engine.Auto {
			return d.Speaks
		}
		for _, e := range p.Endpoints() {
			if found, ok := s.client.Resolve(d, e.URL); ok {
				all &= found.Speaks
			}
		}
	}
	return all
}
