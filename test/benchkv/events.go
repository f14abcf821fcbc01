//go:build linux

package main

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/stat"
)

const blockTokens = 16

// payload is a batch as an engine publishes it.
type payload struct {
	endpoint int
	bytes    []byte
}

// payloads are changes in batches of so many events, each of one endpoint.
func payloads(changes []change, events int) []payload {
	var out []payload
	var waiting [][]kv.Event // by endpoint
	flush := func(endpoint int) {
		out = append(out, payload{endpoint, kv.VLLMMap.AppendBatch(nil, float64(len(out)), -1, waiting[endpoint])})
		waiting[endpoint] = waiting[endpoint][:0]
	}
	for i := range changes {
		c := &changes[i]
		for len(waiting) <= c.endpoint {
			waiting = append(waiting, nil)
		}
		if waiting[c.endpoint] = append(waiting[c.endpoint], c.event()); len(waiting[c.endpoint]) == events {
			flush(c.endpoint)
		}
	}
	for endpoint := range waiting {
		flush(endpoint)
	}
	return out
}

// event returns c as engines tell of it. Different keys have different tokens.
func (c *change) event() kv.Event {
	e := kv.Event{Kind: kv.Removed}
	for _, k := range c.keys {
		e.Blocks = append(e.Blocks, kv.EngineKey(k))
	}
	if c.remove {
		return e
	}
	e.Kind, e.BlockSize = kv.Stored, blockTokens
	e.HasParent, e.Parent = c.parent != 0, kv.EngineKey(c.parent)
	for _, k := range c.keys {
		for i := range uint64(blockTokens) {
			e.Tokens = append(e.Tokens, uint32(stat.Mix64(uint64(k)+i)%128_000))
		}
	}
	return e
}

// applier turns decoded batches into calls of the index.
type applier struct {
	x       *kv.Blocks
	keys    []kv.Key
	names   []*kv.Names // by endpoint
	changes []kv.Change
}

// engineKeys takes the engine's keys for those of the index, which is right
// where all engines hash alike.
func (a *applier) engineKeys(holder int, batch *kv.Batch) {
	for i := range batch.Events {
		a.engineKeysOf(holder, &batch.Events[i])
	}
}

func (a *applier) engineKeysOf(holder int, e *kv.Event) {
	a.keys = a.keys[:0]
	for _, k := range e.Blocks {
		a.keys = append(a.keys, kv.Key(k))
	}
	if e.Kind == kv.Removed {
		a.x.Remove(holder, e.Tier, a.keys)
	} else {
		a.x.Store(holder, e.Tier, kv.Key(e.Parent), a.keys)
	}
}

// ownKeys names blocks by their tokens.
func (a *applier) ownKeys(holder int, batch *kv.Batch) {
	for len(a.names) <= holder {
		a.names = append(a.names, kv.NewNames(kv.KeySpace{}, 1<<20))
	}
	a.changes = a.names[holder].Apply(batch, a.changes[:0])
	for _, c := range a.changes {
		if c.Kind == kv.ChangeRemove {
			a.x.Remove(holder, c.Tier, c.Keys)
		} else {
			a.x.Store(holder, c.Tier, c.Parent, c.Keys)
		}
	}
}

// decode reads payloads and does with them what there is to do.
func (b *bench) decode() {
	changes := b.changes(partBlocks, storeBlocks, b.w.endpoints)
	raw := payloads(changes, 8)
	batch := &kv.Batch{}
	for _, way := range []struct {
		name  string
		apply func(holder int, batch *kv.Batch)
	}{
		{"blocks decoded, per second", func(int, *kv.Batch) {}},
		{"blocks decoded and applied, per second", b.applier.engineKeys},
		{"blocks decoded, named by tokens and applied, per second", b.applier.ownKeys},
	} {
		before := b.x.Stats().Blocks
		b.cool()
		cost := costOf(func() {
			for _, p := range raw {
				mustDecode(batch, p.bytes)
				way.apply(p.endpoint, batch)
			}
		})
		if now := b.x.Stats().Blocks; now != before {
			panic(fmt.Sprintf("benchkv: %s: %d blocks before, %d after", way.name, before, now))
		}
		b.row(way.name, "million", float64(len(changes)*storeBlocks)/cost.Seconds()/1e6)
	}
}

// mustDecode reads what the encoder of the same package made.
func mustDecode(batch *kv.Batch, payload []byte) {
	if err := batch.Decode(payload); err != nil {
		panic("benchkv: own payload: " + err.Error())
	}
}

// worst looks for the call that takes longest: with 1,024 keys, while the index
// grows by a tenth, and while it evicts as much as is stored.
func (b *bench) worst() {
	const n = 1024
	calls := b.x.Stats().Blocks / 10 / n
	keys, costs := make([]kv.Key, n), make([]float64, calls)
	for _, full := range []bool{false, true} {
		name := "longest Store of 1024 keys, growing"
		b.x.SetMax(1 << 27)
		if full {
			name = "longest Store of 1024 keys, evicting"
			b.x.SetMax(b.x.Stats().Blocks)
		}
		for i := range calls {
			for k := range keys {
				keys[k] = kv.Key(b.random.Uint64() | 1)
			}
			costs[i] = micros(costOf(func() { b.x.Store(i%b.w.endpoints, kv.TierGPU, 0, keys) }), 1)
		}
		b.row(name+": median", "µs", quantile(costs, 0.5))
		b.row(name+": 99.9 %", "µs", quantile(costs, 0.999))
		b.row(name, "µs", quantile(costs, 1)).toBeAtMost(1000)
	}
}

// sliceBlocks is how many blocks are applied before matches have their turn.
const sliceBlocks = 512

// turns is a lock that whoever applies events offers to matches between two
// slices: sync.Mutex alone lets the one that runs take it again and again.
type turns struct {
	sync.Mutex
	asked atomic.Int32
}

func (t *turns) match(f func()) {
	t.asked.Add(1)
	t.Lock()
	t.asked.Add(-1)
	f()
	t.Unlock()
}

func (t *turns) apply(f func()) {
	for t.asked.Load() > 0 {
		runtime.Gosched()
	}
	t.Lock()
	f()
	t.Unlock()
}

// behind times matches while publishers' batches are applied, so many blocks
// per second, or as fast as it goes when rate is 0. The delay counts from the
// wish to match to its answer.
func (b *bench) behind(how string, rate float64) {
	const asks = 2000
	runtime.UnlockOSThread() // gateways do not lock theirs, and to wake one that is locked takes long
	defer runtime.LockOSThread()
	raw := payloads(b.changes(4*partBlocks, storeBlocks, min(b.publishers, b.w.endpoints)), sliceBlocks/storeBlocks)
	var lock turns
	var done atomic.Bool
	var wg sync.WaitGroup
	applied := 0
	begun := time.Now()
	wg.Go(func() {
		for i := 0; !done.Load(); i++ {
			applied += b.publish(&lock, raw[i%len(raw)])
			for rate > 0 && float64(applied) > rate*time.Since(begun).Seconds() && !done.Load() {
				time.Sleep(50 * time.Microsecond)
			}
		}
	})
	var delays []float64
	for i, asked := 0, time.Now(); len(delays) < asks; i++ {
		q := b.w.queries[i%len(b.w.queries)]
		if q.n != 512 {
			continue
		}
		for time.Since(asked) < time.Millisecond {
			runtime.Gosched()
		}
		asked = time.Now()
		lock.match(func() { b.x.Match(b.chain(q), nil, b.held) })
		delays = append(delays, micros(time.Since(asked), 1))
	}
	done.Store(true)
	wg.Wait()
	name := fmt.Sprintf("match of 512 behind %d publishers, %s", b.publishers, how)
	b.row(name+": applied per second", "million", float64(applied)/time.Since(begun).Seconds()/1e6)
	b.row(name+": median", "µs", quantile(delays, 0.5))
	// Without a pause both cores are busy, and what else the machine does counts too.
	if w := b.row(name+": 99 %", "µs", quantile(delays, 0.99)); rate > 0 {
		w.toBeAtMost(1000)
	}
	b.row(name+": longest", "µs", quantile(delays, 1))
}

// publish decodes a batch and applies it in slices; it returns its blocks.
func (b *bench) publish(lock *turns, p payload) (blocks int) {
	batch := &kv.Batch{}
	mustDecode(batch, p.bytes)
	for at := 0; at < len(batch.Events); {
		lock.apply(func() {
			for n := 0; at < len(batch.Events) && n < sliceBlocks; at++ {
				n += len(batch.Events[at].Blocks)
				blocks += len(batch.Events[at].Blocks)
				b.applier.engineKeysOf(p.endpoint, &batch.Events[at])
			}
		})
	}
	return blocks
}
