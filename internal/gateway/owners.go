package gateway

import (
	"sync"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
)

// owners remembers which endpoint holds a stored response. It forgets the oldest
// when it is full, and all after a while.
type owners struct {
	mu    sync.Mutex
	byID  map[string]owner
	order []string // ring of ids, in the order they were learnt
	next  int
}

// owner is the endpoint that holds a response.
type owner struct {
	pool     *live.Pool
	endpoint fleet.EndpointID
	gen      fleet.Gen
	tenant   string // whose it is
	asked    string // the model as the client named it
	model    string // its name at the engine
	until    time.Time
}

// The bounds of what is remembered: about 20 MB.
const (
	maxOwners  = 1 << 16
	ownerLife  = 24 * time.Hour
	maxOwnedID = 128
)

// learn notes who holds the response of an id.
func (o *owners) learn(id string, w owner) {
	if len(id) > maxOwnedID {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.byID == nil {
		o.byID = map[string]owner{}
	}
	if _, known := o.byID[id]; !known {
		if len(o.order) < maxOwners {
			o.order = append(o.order, id)
		} else {
			delete(o.byID, o.order[o.next])
			o.order[o.next] = id
			o.next = (o.next + 1) % maxOwners
		}
	}
	o.byID[id] = w
}

// find returns who holds a tenant's response of an id, if it is still there.
func (o *owners) find(id, tenant string, now time.Time) (owner, live.Endpoint, bool) {
	o.mu.Lock()
	w, ok := o.byID[id]
	o.mu.Unlock()
	if !ok || w.tenant != tenant || now.After(w.until) {
		return owner{}, live.Endpoint{}, false
	}
	e, ok := w.pool.Endpoint(w.endpoint)
	return w, e, ok && e.Gen == w.gen
}

// others reports whether the response of an id is another tenant's.
func (o *owners) others(id, tenant string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	w, ok := o.byID[id]
	return ok && w.tenant != tenant
}

// owned notes that the answer under way is a stored response.
func (x *exchange) owned(id string) {
	if id == "" || id == x.ownedID || x.route.kind != api.Responses {
		return
	}
	x.ownedID = id
	x.g.owners.learn(id, owner{
		pool: x.service.Pool, endpoint: x.at.ID, gen: x.at.Gen, tenant: x.access.Tenant, asked: x.access.Model, model: x.service.Model, until: time.Now().Add(ownerLife),
	})
}
