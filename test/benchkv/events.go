//go:build linux

package main

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"penstock.dev/penstock/internal/kv"
)

const (
	blockTokens = 16
	batchEvents = 8
)

// payloads are changes as an engine publishes them, eight in a batch.
func payloads(changes []change) [][]byte {
	tokens := make([]uint32, storeBlocks*blockTokens)
	for i := range tokens {
		tokens[i] = uint32(i*7919) % 128_000
	}
	var out [][]byte
	var events []kv.Event
	for i, c := range changes {
		e := kv.Event{Kind: kv.Stored, BlockSize: blockTokens, Tokens: tokens[:len(c.keys)*blockTokens]}
		if c.remove {
			e = kv.Event{Kind: kv.Removed}
		} else if c.parent != 0 {
			e.HasParent, e.Parent = true, kv.EngineKey(c.parent)
		}
		for _, k := range c.keys {
			e.Blocks = append(e.Blocks, kv.EngineKey(k))
		}
		if events = append(events, e); len(events) == batchEvents || i == len(changes)-1 {
			out = append(out, kv.VLLMMap.AppendBatch(nil, float64(i), -1, events))
			events = events[:0]
		}
	}
	return out
}

// applier turns decoded events into calls of the index.
type applier struct {
	x    *kv.Blocks
	keys []kv.Key
}

// engineKeys takes the engine's keys for those of the index, which is right
// where all engines hash alike.
func (a *applier) engineKeys(holder int, e *kv.Event) {
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

// decode reads payloads and does with their events what there is to do. Another
// way to name blocks is another row here.
func (b *bench) decode() {
	changes := b.changes(partBlocks, storeBlocks)
	raw := payloads(changes)
	a, batch := &applier{x: b.x}, &kv.Batch{}
	for _, way := range []struct {
		name  string
		apply func(holder int, e *kv.Event)
	}{
		{"blocks decoded, per second", func(int, *kv.Event) {}},
		{"blocks decoded and applied, per second", a.engineKeys},
	} {
		b.cool()
		cost := costOf(func() {
			for i, p := range raw {
				mustDecode(batch, p)
				for k := range batch.Events {
					way.apply(i%b.w.endpoints, &batch.Events[k])
				}
			}
		})
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
	raw := payloads(b.changes(4*partBlocks, storeBlocks))
	var lock turns
	var done atomic.Bool
	var wg sync.WaitGroup
	applied := 0
	begun := time.Now()
	wg.Go(func() {
		for i := 0; !done.Load(); i++ {
			applied += b.publish(&lock, raw[i%len(raw)], i%b.publishers)
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
	b.row(name+": 99 %", "µs", quantile(delays, 0.99)).toBeAtMost(1000)
	b.row(name+": longest", "µs", quantile(delays, 1))
}

// publish decodes a batch and applies it in slices; it returns its blocks.
func (b *bench) publish(lock *turns, payload []byte, publisher int) (blocks int) {
	batch, a := &kv.Batch{}, &applier{x: b.x}
	mustDecode(batch, payload)
	for at := 0; at < len(batch.Events); {
		lock.apply(func() {
			for n := 0; at < len(batch.Events) && n < sliceBlocks; at++ {
				n += len(batch.Events[at].Blocks)
				blocks += len(batch.Events[at].Blocks)
				a.engineKeys(publisher, &batch.Events[at])
			}
		})
	}
	return blocks
}
