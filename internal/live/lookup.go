package live

import "penstock.dev/penstock/internal/fleet"

// Endpoint returns an endpoint of the pool, while the pool is open.
func (p *Pool) Endpoint(id fleet.EndpointID) (Endpoint, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.endpoints[id]
	return e, ok && !p.closed
}

// Encodes reports whether there are endpoints that encode images for others.
func (p *Pool) Encodes() bool { return p.encoders.Load() > 0 }

// countEncoders counts them, under the lock.
func (p *Pool) countEncoders() {
	n := int32(0)
	for _, e := range p.endpoints {
		if e.Role == fleet.RoleEncode {
			n++
		}
	}
	p.encoders.Store(n)
}

// Server returns one of the endpoints that answer requests: the n-th, counted
// around. It says false when there is none.
func (p *Pool) Server(n uint64) (Endpoint, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	servers := uint64(0)
	for _, e := range p.endpoints {
		if e.Role.Decodes() {
			servers++
		}
	}
	if servers == 0 || p.closed {
		return Endpoint{}, false
	}
	n %= servers
	for id := fleet.EndpointID(1); id <= p.lastID; id++ {
		if e, ok := p.endpoints[id]; ok && e.Role.Decodes() {
			if n == 0 {
				return e, true
			}
			n--
		}
	}
	return Endpoint{}, false
}
