package kv

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

const (
	// firstLag is the lag assumed between a first token and the events that confirm
	// its prompt, before any is measured: a step, a queue and a network.
	firstLag = 200 * time.Millisecond

	// lagMargin is how many times the usual lag a dispatch is expected to be
	// confirmed within.
	lagMargin = 4

	// leastPatience is how long is waited at least: feeds come in bursts.
	leastPatience = 500 * time.Millisecond

	// lagMemory is over how many confirmations the lag is averaged.
	lagMemory = 50

	// maxAwaited bounds the prompts that are waited for; those beyond it teach no
	// lag.
	maxAwaited = 1 << 16
)

// queue is the prompts sent to a slot and not answered with a first token, in
// order of dispatch.
type queue struct {
	waits []wait
	gone  uint64 // settled and taken from the front
}

type wait struct {
	sent    fleet.Time
	settled bool
}

// push adds a prompt and returns its number.
func (q *queue) push(now fleet.Time) uint64 {
	q.waits = append(q.waits, wait{sent: now})
	return q.gone + uint64(len(q.waits)) - 1
}

// forget drops all that wait; numbers go on.
func (q *queue) forget() { q.gone, q.waits = q.gone+uint64(len(q.waits)), q.waits[:0] }

// settle says that prompt n waits no more. One of before a restart is not there.
func (q *queue) settle(n uint64) {
	if n < q.gone || n-q.gone >= uint64(len(q.waits)) {
		return
	}
	q.waits[n-q.gone].settled = true
	front := 0
	for front < len(q.waits) && q.waits[front].settled {
		front++
	}
	if front == 0 {
		return
	}
	q.gone += uint64(front)
	q.waits = q.waits[:copy(q.waits, q.waits[front:])]
}

// expectedSince returns from when on dispatches to the slot may still be
// unconfirmed although the engine has, or will have, their blocks: since the
// oldest that waits for its first token, and for some lags after it.
func (s *cache) expectedSince(now fleet.Time) fleet.Time {
	since := now
	if len(s.pending.waits) > 0 {
		since = s.pending.waits[0].sent
	}
	return since - fleet.Time(max(lagMargin*s.lag, leastPatience))
}

// await begins to wait for the events that confirm t.
func (b *Book) await(t *Ticket) {
	if len(b.awaited) < maxAwaited {
		b.awaited[t.last] = awaited{slot: t.slot}
	}
}

// confirm takes the prompts whose blocks have come off those that are waited
// for.
func (b *Book) confirm(now fleet.Time, slot int, keys []Key) {
	if len(b.awaited) == 0 {
		return
	}
	for _, k := range keys {
		a, ok := b.awaited[k]
		if !ok || a.slot != slot {
			continue
		}
		delete(b.awaited, k)
		late := time.Duration(0) // many events are here before the first token is
		if a.since != 0 {
			late = now.Sub(a.since)
		}
		s := &b.slots[slot]
		s.lag += (late - s.lag) / lagMemory
	}
}

// learnLinks corrects the links by the seconds that it took to fetch c, NaN when
// not known.
func (s *cache) learnLinks(c *fleet.Cached, fetched float64) {
	const (
		fewTokens = 512  // whose fetching is lost in noise
		gain      = 0.05 // of one lesson
		most      = 2    // times that a lesson may say a link is faster or slower
	)
	predicted := c.Fetch.Seconds()
	if c.CPU+c.Disk+c.Shared < fewTokens || predicted <= 0 || math.IsNaN(fetched) {
		return
	}
	ratio := min(max(fetched/predicted, 1.0/most), most)
	for tier, tokens := range [...]fleet.Tokens{TierCPU: c.CPU, TierDisk: c.Disk, TierShared: c.Shared} {
		l := &s.links[tier]
		share := (l.Latency + l.PerToken*float64(tokens)) / predicted
		if tokens > 0 {
			l.PerToken *= 1 + gain*share*(ratio-1)
		}
	}
}
