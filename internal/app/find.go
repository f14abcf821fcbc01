package app

import (
	"cmp"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/gateway"
)

// Find implements gateway.Fleet.
func (t *table) Find(model string) (gateway.Service, bool) {
	s, ok := (*t.current.Load())[model]
	if !ok {
		return gateway.Service{}, false
	}
	return s.service(model)
}

// service returns how a model of the pool is served.
func (s *served) service(model string) (gateway.Service, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.models {
		if m.ID == model {
			return gateway.Service{
				Pool: s.pool, Model: cmp.Or(m.Root, m.ID), Speaks: speaks(s.config.Dialect), MaxModelLen: m.MaxModelLen,
			}, true
		}
	}
	return gateway.Service{}, false
}

// speaks returns what engines of a dialect can be asked.
func speaks(dialect string) engine.API {
	d, err := engine.DialectByName(dialect)
	if err != nil {
		return 0 // the configuration has been checked: it names one that exists
	}
	return d.Speaks
}
