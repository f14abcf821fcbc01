package live

import "penstock.dev/penstock/internal/fleet"

// Endpoint returns an endpoint of the pool, while the pool is open.
func (p *Pool) Endpoint(id fleet.EndpointID) (Endpoint, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.endpoints[id]
	return e, ok && !p.closed
}
