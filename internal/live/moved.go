package live

import (
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
)

// Moved tells that the KV of a prompt has come from the endpoint that computed it,
// or has its beginning, to the one that answers.
type Moved struct {
	Tokens   fleet.Tokens  // 0 when nothing has come of what was to be fetched
	Expected time.Duration // how long it was predicted to take
	Took     time.Duration // if all else went as predicted; 0 when nothing tells
}

// OnMoved has tell told, by whoever reports what leads to it, when the KV of the
// present attempt has moved; nil tells nobody.
func (t *Ticket) OnMoved(tell func(Moved)) {
	t.pool.mu.Lock()
	t.moved = tell
	t.pool.mu.Unlock()
}

// Bar says which endpoints' KV an endpoint cannot use, though their connectors are
// the same, in place of what was said before.
func (p *Pool) Bar(e Endpoint, sources []fleet.EndpointID) {
	p.step(&pool.Barred{Endpoint: e.ID, Gen: e.Gen, Sources: sources})
}
