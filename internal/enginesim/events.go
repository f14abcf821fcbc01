package enginesim

import (
	"iter"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// nobody is the request behind blocks that no request has stored.
const nobody = ^fleet.ReqID(0)

// blockLog is what happened to blocks and has not been told yet. Its buffers
// are used again once it has been.
type blockLog struct {
	now      fleet.Time // of what happens next
	describe func(id fleet.ReqID, depth int, ev *kv.Event)

	events  []kv.Event
	keys    []kv.EngineKey // of all events
	batches []batchMark
}

// batchMark is the events of one time: those up to end, from the mark before.
type batchMark struct {
	at  fleet.Time
	end int
}

// add appends an event about keys and returns it.
func (l *blockLog) add(ev kv.Event, keys []uint64) *kv.Event {
	from := len(l.keys)
	for _, k := range keys {
		l.keys = append(l.keys, kv.EngineKey(k))
	}
	ev.Blocks = l.keys[from:len(l.keys):len(l.keys)]
	l.events = append(l.events, ev)
	if n := len(l.batches); n == 0 || l.batches[n-1].at != l.now {
		l.batches = append(l.batches, batchMark{at: l.now})
	}
	l.batches[len(l.batches)-1].end = len(l.events)
	return &l.events[len(l.events)-1]
}

// stored notes that the blocks of chain from depth on are now at a tier, by a
// request's doing.
func (l *blockLog) stored(tier kv.Tier, id fleet.ReqID, chain []uint64, depth int) {
	ev := kv.Event{Kind: kv.Stored, Tier: tier, BlockSize: blockTokens}
	if depth > 0 {
		ev.Parent, ev.HasParent = kv.EngineKey(chain[depth-1]), true
	}
	if e := l.add(ev, chain[depth:]); l.describe != nil && id != nobody {
		l.describe(id, depth, e)
	}
}

func (l *blockLog) removed(tier kv.Tier, keys []uint64) {
	l.add(kv.Event{Kind: kv.Removed, Tier: tier}, keys)
}

// TakeEvents hands over what happened to blocks since it was called last, one
// batch for each step and its time, and forgets it: a batch is good until the
// engine is called again. Blocks count as stored when the step that computes
// them begins, and so does every event of a step, in the order things happen:
// what is removed to make room comes before what takes it. The caller takes
// events after each call of Advance; without Config.Events there are none.
//
// Unless Config.EveryToken is set, Advance does not ask to be called for each
// step that fills a block: its events come with the next call, at their own
// times.
func (e *Engine) TakeEvents() iter.Seq2[fleet.Time, []kv.Event] {
	return func(yield func(fleet.Time, []kv.Event) bool) {
		l := e.log
		if l == nil {
			return
		}
		from := 0
		for _, b := range l.batches {
			if !yield(b.at, l.events[from:b.end:b.end]) {
				break
			}
			from = b.end
		}
		l.events, l.keys, l.batches = l.events[:0], l.keys[:0], l.batches[:0]
	}
}

// stamp makes t the time of what happens to blocks next.
func (e *Engine) stamp(t fleet.Time) {
	if e.log != nil {
		e.log.now = t
	}
}

// tier returns the blocks of a tier; nil when the engine does not have it.
func (e *Engine) tier(t kv.Tier) *blocks {
	if t == kv.TierGPU {
		return e.blocks
	}
	for _, s := range e.shelves {
		if s.blocks.tier == t {
			return s.blocks
		}
	}
	return nil
}

// Truth goes over the keys of all full blocks that are at a tier, in no
// particular order. The engine must not be called meanwhile.
func (e *Engine) Truth(t kv.Tier) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		b := e.tier(t)
		if b == nil {
			return
		}
		for _, r := range b.heads {
			for _, k := range r.keys {
				if !yield(k) {
					return
				}
			}
		}
	}
}

// Match returns how many leading blocks of chain are at a tier. A request finds
// as many as the tier with the most has.
func (e *Engine) Match(t kv.Tier, chain []uint64) int {
	b := e.tier(t)
	if b == nil {
		return 0
	}
	n, _ := b.match(chain)
	return n
}
