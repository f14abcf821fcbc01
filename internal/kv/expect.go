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

// expectedSince returns from when on a first token tells of blocks that may still
// be unconfirmed although the engine has them: some lags ago.
func (s *cache) expectedSince(now fleet.Time) fleet.Time {
	return now - fleet.Time(max(lagMargin*s.lag, leastPatience))
}

// arrived ends the wait of t, whose prompt the engine has, or never will when the
// time is longAgo.
func (b *Book) arrived(t *Ticket, now fleet.Time) {
	chain := t.chain
	t.chain = nil
	switch {
	case len(chain) == 0 || t.life != b.slots[t.slot].life: // the process it was sent to is gone
	case now == longAgo:
		b.history.Lost(t.slot, chain)
	default:
		b.history.Come(t.slot, chain, now)
	}
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
