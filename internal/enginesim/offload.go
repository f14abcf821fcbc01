package enginesim

import (
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// Offload is the memory below the GPU's, as vLLM's connector for offloading has
// it. The zero value is none.
//
// A block is written to CPU memory when it is computed. What CPU memory has no
// room for, the chain used longest ago from its end, is written to disk together
// with all before it: a chain at a tier never lacks its beginning. A prompt whose
// chain goes on below the GPU waits until that part has been loaded, in GPU
// blocks of its own and outside of the batch; then it goes on like one that was
// cached. Writing costs no time: it has the other direction of the link, and
// nothing waits for it.
type Offload struct {
	CPU, Disk Store   // a disk needs CPU memory above it
	KVBytes   float64 // of one token
}

// Store is one tier below the GPU.
type Store struct {
	Tokens    fleet.Tokens  // capacity, rounded down to whole blocks; 0: there is none
	Bandwidth float64       // bytes per second towards the GPU; loads queue for it
	Latency   time.Duration // of a load beside; does not keep others waiting
}

// TierStats are the gauges and counters of one tier below the GPU.
type TierStats struct {
	TotalBlocks, CachedBlocks int

	Hits          uint64 // prompt tokens found here and loaded, by first admission
	Loads         uint64 // begun
	LoadedBytes   uint64 // that loads were begun for
	StoredBlocks  uint64
	EvictedBlocks uint64
}

// shelf is one tier below the GPU. Its blocks are all idle but those that are
// being read.
type shelf struct {
	Store
	blocks *blocks
	free   fleet.Time // when the link has moved all that it was asked for
	stats  TierStats
}

// load is KV on its way up to the GPU.
type load struct {
	s     *sequence
	ends  fleet.Time
	reads [2]sequence // holds what is read at each shelf, lest it be evicted
}

// newShelves makes the tiers of a configuration, fastest first.
func newShelves(o Offload, log *blockLog) []*shelf {
	var shelves []*shelf
	for i, c := range []Store{o.CPU, o.Disk} {
		if c.Tokens < BlockTokens {
			break
		}
		s := &shelf{Store: c, blocks: newBlocks(int(c.Tokens / BlockTokens))}
		s.blocks.tier, s.blocks.log = kv.TierCPU+kv.Tier(i), log
		if i > 0 {
			shelves[i-1].blocks.below = s.blocks
		}
		shelves = append(shelves, s)
	}
	return shelves
}

// keep puts chain, a whole one from its start, into b as far as there is room
// and makes it the last to be evicted.
func (b *blocks) keep(id fleet.ReqID, serial uint64, chain []uint64) {
	s := &b.keeper
	*s = sequence{id: id, serial: serial, chain: chain}
	hit, _ := b.match(chain)
	b.acquire(s, hit)
	n := min(len(chain), hit+b.room())
	b.grow(s, n)
	b.publish(s, n)
	b.release(s)
	s.chain = nil
}

// writeThrough copies the first n blocks of s, which the GPU has, to the tier
// below.
func (e *Engine) writeThrough(s *sequence, n int) {
	if len(e.shelves) > 0 && n > 0 {
		e.shelves[0].blocks.keep(s.id, s.serial, s.chain[:n])
	}
}

// below returns how many leading blocks of chain some tier has, when the GPU has
// n.
func (e *Engine) below(chain []uint64, n int) int {
	for _, t := range e.shelves {
		m, _ := t.blocks.match(chain)
		n = max(n, m)
	}
	return n
}

// startLoad has the blocks up to depth of chain, which is that of s, loaded, of
// which the GPU has hit. The caller has checked that there is room.
func (e *Engine) startLoad(s *sequence, chain []uint64, hit, depth int) {
	e.serial++
	s.serial = e.serial
	e.blocks.acquire(s, hit)
	e.blocks.grow(s, depth)
	l := &load{s: s}
	for i, t := range e.shelves {
		n, _ := t.blocks.match(chain)
		if n <= hit {
			continue
		}
		l.reads[i].chain = chain
		t.blocks.acquire(&l.reads[i], n)
		l.ends = max(l.ends, t.request(e.ready, n-hit, e.config.Offload.KVBytes))
		if !s.seen {
			s.from[i] += n - hit
		}
		hit = n
	}
	s.load = l
	e.loads = append(e.loads, l)
}

// request queues for the link to load n blocks, and returns when they are there.
func (t *shelf) request(now fleet.Time, n int, tokenBytes float64) fleet.Time {
	size := float64(n*blockTokens) * tokenBytes
	t.stats.Loads++
	t.stats.LoadedBytes += uint64(size)
	t.free = max(t.free, now).Add(time.Duration(size / t.Bandwidth * 1e9))
	return t.free.Add(max(1, t.Latency))
}

// finishLoads makes cached blocks of what has been loaded by e.ready. Their
// requests find them when they are admitted, unless others need the room more.
func (e *Engine) finishLoads() {
	for i := 0; i < len(e.loads); {
		l := e.loads[i]
		if l.ends > e.ready {
			i++
			continue
		}
		e.blocks.publish(l.s, l.s.held)
		e.endLoad(l)
	}
}

// endLoad takes l out, done or not. The link stays booked for what it was to
// move.
func (e *Engine) endLoad(l *load) {
	e.blocks.release(l.s)
	for i, t := range e.shelves {
		t.blocks.release(&l.reads[i])
	}
	l.s.load = nil
	i := slices.Index(e.loads, l)
	e.loads = slices.Delete(e.loads, i, i+1)
	e.stuck = false
}

// loaded is when the next load ends; Never without one.
func (e *Engine) loaded() fleet.Time {
	t := fleet.Never
	for _, l := range e.loads {
		t = min(t, l.ends)
	}
	return t
}

// due is when a step may begin, if one waits to and the engine is ready for it:
// loads may have to end first.
func (e *Engine) due(ready fleet.Time) fleet.Time {
	if e.stuck {
		return max(ready, e.loaded())
	}
	return ready
}

// countHits notes where the cached blocks of s came from, at its first
// admission.
func (e *Engine) countHits(s *sequence, hit int) {
	for i := len(e.shelves) - 1; i >= 0; i-- {
		s.from[i] = min(s.from[i], hit)
		hit -= s.from[i]
		e.shelves[i].stats.Hits += uint64(s.from[i] * blockTokens)
	}
}

// unread is how many blocks are counted as held in common, only because
// sequences hold them that wait for a load and do not read them.
func (e *Engine) unread() int {
	n := 0
	for _, l := range e.loads {
		for r := l.s.tail; r != nil; r = r.parent {
			if r.refs > 1 {
				n += len(r.keys)
			}
		}
	}
	return n
}

// tierStats returns the figures of shelf i as of now.
func (e *Engine) tierStats(i int) TierStats {
	if i >= len(e.shelves) {
		return TierStats{}
	}
	t := e.shelves[i]
	s := t.stats
	s.TotalBlocks = t.blocks.total
	s.CachedBlocks = t.blocks.used + t.blocks.idle
	s.StoredBlocks, s.EvictedBlocks = t.blocks.stored, t.blocks.evicted
	return s
}
