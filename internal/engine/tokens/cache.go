package tokens

import (
	"slices"
	"sort"
	"sync"

	"penstock.dev/penstock/internal/kv"
)

// cache keeps the keys of prompts. Every prompt leaves a place at each of its
// bounds, so that places form a tree of what prompts have in common; a place
// that is a whole prompt's end knows its keys, and one that prompts parted at
// knows the keys that they share. Those used longest ago go first.
type cache struct {
	mu     sync.Mutex
	limit  int64
	bytes  int64
	places map[digest]*place // by bound
	exact  map[digest]*place // by all bytes of a whole prompt
	oldest place             // ring: its newer is the oldest, its older the newest
	counts CacheCounts
}

// CacheCounts is what a cache has done and holds.
type CacheCounts struct {
	Bytes   int64 // held
	Prompts int   // places held: ends of prompts, and bounds that they share
	Hits    uint64
	Misses  uint64
	Evicted uint64 // places given up for room
	// Of prompts that went on from an earlier one in text, Grown did so in tokens,
	// too, and Parted did not: the earlier one's last keys are then no longer used
	// for others.
	Grown, Parted uint64
}

// place is a bound of prompts.
type place struct {
	at, all digest // all is that of the whole prompt's bytes; zero for none
	next    digest // bound that came next in the prompt that made it; zero for none
	run     *run
	keys    int  // of run, that every prompt with this beginning has, as far as seen
	tokens  int  // of the whole prompt that ends here; 0 when none does
	parted  bool // two prompts went on differently from here: keys is what they share

	older, newer *place
}

// run is a chain of keys, of which the first are another's: equal keys mean
// equal beginnings, so a conversation is kept once however many turns it has.
type run struct {
	parent *run
	shared int // keys of parent that come before keys
	keys   []kv.Key
	holds  int // places and runs that use it
}

// What places and runs take beside their keys, in bytes, with their share of the
// tables.
const (
	placeBytes = 240
	runBytes   = 64
)

// total returns how many keys r has.
func (r *run) total() int { return r.shared + len(r.keys) }

// key returns the i'th key.
func (r *run) key(i int) kv.Key {
	for i < r.shared {
		r = r.parent
	}
	return r.keys[i-r.shared]
}

// appendTo appends the first n keys to dst. Runs never change, so it needs no
// lock.
func (r *run) appendTo(dst []kv.Key, n int) []kv.Key {
	at := len(dst)
	dst = slices.Grow(dst, n)[:at+n]
	for ; n > 0; r = r.parent {
		if n > r.shared {
			copy(dst[at+r.shared:at+n], r.keys)
			n = r.shared
		}
	}
	return dst
}

// common returns how many of the first n keys of r are those of keys, too.
// Since a key implies all before it, one comparison tells of all of them.
func (r *run) common(keys []kv.Key, n int) int {
	n = min(n, len(keys))
	return sort.Search(n, func(i int) bool { return r.key(i) != keys[i] })
}

func (c *cache) init(limit int64) {
	c.limit = limit
	c.places, c.exact = map[digest]*place{}, map[digest]*place{}
	c.oldest.older, c.oldest.newer = &c.oldest, &c.oldest
}

// get appends the keys of a prompt known by all its bytes, and returns how many
// tokens it has.
func (c *cache) get(all digest, dst []kv.Key) ([]kv.Key, int, bool) {
	c.mu.Lock()
	p := c.exact[all]
	if p == nil {
		c.mu.Unlock()
		return dst, 0, false
	}
	return c.hitLocked(p, dst)
}

// alike is get for a prompt that may be written differently between messages.
func (c *cache) alike(all, whole digest, dst []kv.Key) ([]kv.Key, int, bool) {
	c.mu.Lock()
	p := c.places[whole]
	if p == nil || p.tokens == 0 {
		c.counts.Misses++
		c.mu.Unlock()
		return dst, 0, false
	}
	c.nameLocked(p, all)
	return c.hitLocked(p, dst)
}

// hitLocked answers with a whole prompt, and unlocks.
func (c *cache) hitLocked(p *place, dst []kv.Key) ([]kv.Key, int, bool) {
	c.touchLocked(p)
	c.counts.Hits++
	r, tokens := p.run, p.tokens
	c.mu.Unlock()
	return r.appendTo(dst, r.total()), tokens, true
}

// prefix appends the keys of the longest known beginning.
func (c *cache) prefix(bounds []digest, dst []kv.Key) ([]kv.Key, bool) {
	c.mu.Lock()
	for _, b := range slices.Backward(bounds) {
		if p := c.places[b]; p != nil && p.keys > 0 && (p.tokens > 0 || p.parted) {
			c.touchLocked(p)
			r, n := p.run, p.keys
			c.mu.Unlock()
			return r.appendTo(dst, n), true
		}
	}
	c.mu.Unlock()
	return dst, false
}

// put keeps the keys of a prompt, which it copies as far as they are new.
func (c *cache) put(all digest, bounds []digest, keys []kv.Key, tokens int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if int64(len(keys))*8 > c.limit/4 {
		return // it would push out too much that others use
	}
	best, shared := c.compareLocked(bounds, keys)
	r := &run{shared: shared, keys: slices.Clone(keys[shared:])}
	if shared > 0 {
		r.parent = best
		best.holds++
	}
	c.bytes += runBytes + 8*int64(len(r.keys))
	for i, b := range bounds {
		p := c.places[b]
		switch whole := i == len(bounds)-1; {
		case p == nil:
			p = &place{at: b, run: r, keys: len(keys)}
			r.holds++
			c.places[b] = p
			c.bytes += placeBytes
			if whole {
				p.tokens = tokens
			} else {
				p.next = bounds[i+1]
			}
		case whole:
			c.wholeLocked(p, r, tokens)
		}
		c.touchLocked(p)
	}
	c.nameLocked(c.places[bounds[len(bounds)-1]], all)
	for c.bytes > c.limit && c.oldest.newer != &c.oldest {
		c.evictLocked(c.oldest.newer)
	}
}

// wholeLocked makes p, which a longer prompt has left or an equal one, the end
// of a whole prompt.
func (c *cache) wholeLocked(p *place, r *run, tokens int) {
	r.holds++
	c.releaseLocked(p.run)
	p.run, p.keys, p.tokens, p.parted = r, r.total(), tokens, false
}

// compareLocked learns from a new prompt how far the earlier ones that it begins
// with have its keys. It returns the run that shares most, and how many.
func (c *cache) compareLocked(bounds []digest, keys []kv.Key) (best *run, shared int) {
	var outcome *uint64 // of the longest of the earlier ones
	for i, b := range bounds {
		p := c.places[b]
		if p == nil {
			continue
		}
		n := p.run.common(keys, p.run.total())
		if n >= shared {
			best, shared = p.run, n
		}
		switch last := i == len(bounds)-1; {
		case last:
		case p.tokens > 0 && n < p.keys:
			p.keys = n
			outcome = &c.counts.Parted
		case p.tokens > 0:
			outcome = &c.counts.Grown
		case p.next != bounds[i+1]:
			p.parted, p.keys = true, min(p.keys, n)
		}
	}
	if outcome != nil {
		*outcome++
	}
	return best, shared
}

// nameLocked lets p be found by all bytes of its prompt.
func (c *cache) nameLocked(p *place, all digest) {
	if p.all == all {
		return
	}
	delete(c.exact, p.all)
	p.all = all
	c.exact[all] = p
}

// touchLocked makes p the newest.
func (c *cache) touchLocked(p *place) {
	if p.older != nil {
		p.older.newer, p.newer.older = p.newer, p.older
	}
	p.older, p.newer = c.oldest.older, &c.oldest
	p.older.newer, c.oldest.older = p, p
}

func (c *cache) evictLocked(p *place) {
	p.older.newer, p.newer.older = p.newer, p.older
	delete(c.places, p.at)
	if p.all != (digest{}) {
		delete(c.exact, p.all)
	}
	c.bytes -= placeBytes
	c.counts.Evicted++
	c.releaseLocked(p.run)
}

// releaseLocked lets go of r, and of what only r held.
func (c *cache) releaseLocked(r *run) {
	for ; r != nil; r = r.parent {
		if r.holds--; r.holds > 0 {
			return
		}
		c.bytes -= runBytes + 8*int64(len(r.keys))
	}
}

// counted returns the counts.
func (c *cache) counted() CacheCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.counts
	out.Bytes, out.Prompts = c.bytes, len(c.places)
	return out
}
