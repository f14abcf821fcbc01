package live

import (
	"runtime"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/pool"
)

// Feed is where an endpoint's KV events come from; the zero Feed is nowhere.
type Feed struct {
	Events string // where it publishes: tcp://host:port
	Replay string // where past events can be asked for; empty for nowhere
	Topic  string // what topics begin with; empty for any
	Rank   int    // data-parallel rank, which engines add to the ports of both
}

// Cached tells what an endpoint's feed of KV events has to say, in at most as many
// changes as a decision can wait for. It lets decisions that wait go first: a feed
// has much to say in a row.
func (p *Pool) Cached(e Endpoint, u kv.Update) {
	for p.asked.Load() > 0 {
		runtime.Gosched()
	}
	p.mu.Lock()
	later := p.stepLocked(&pool.KV{Endpoint: e.ID, Gen: e.Gen, Update: u})
	p.mu.Unlock()
	run(later)
}

// Cleared tells that the cache of an endpoint without a feed has been emptied.
func (p *Pool) Cleared(e Endpoint) {
	p.Cached(e, kv.Update{Ended: true, Changes: []kv.Change{{Kind: kv.ChangeClear}}})
}

// Look returns what each endpoint is believed to have of a prompt, by id.
func (p *Pool) Look(q *kv.Prompt) map[fleet.EndpointID]fleet.Cached {
	p.lock()
	defer p.mu.Unlock()
	out := map[fleet.EndpointID]fleet.Cached{}
	p.brain.Look(p.Now(), q, func(id fleet.EndpointID, c fleet.Cached) { out[id] = c })
	return out
}

// Blocks returns how many different blocks the pool's index has, and what they
// take.
func (p *Pool) Blocks() kv.BlocksStats {
	p.lock()
	defer p.mu.Unlock()
	return p.brain.Caches().Blocks().Stats()
}

// Holds returns how many of keys an endpoint is said to have at a tier by its
// events, and how many blocks in all; ok says that this is vouched for to be all
// there is.
func (p *Pool) Holds(e Endpoint, tier kv.Tier, keys []kv.Key) (known, all int, ok bool) {
	p.lock()
	defer p.mu.Unlock()
	slot, found := p.brain.Slot(e.ID)
	if !found {
		return 0, 0, false
	}
	c := p.brain.Caches()
	for _, k := range keys {
		if c.Blocks().Has(slot, tier, k) {
			known++
		}
	}
	return known, c.Blocks().Count(slot, tier), c.Whole(slot)
}

// lock takes the pool's lock for somebody who waits.
func (p *Pool) lock() {
	p.asked.Add(1)
	p.mu.Lock()
	p.asked.Add(-1)
}

// number is the same for endpoints that can exchange KV; 0 for those that cannot.
func (t Transfer) number() uint64 {
	if t.Connector == "" {
		return 0
	}
	return max(uint64(kv.Seed([]byte("connector"), []byte(t.Connector))), 1)
}
