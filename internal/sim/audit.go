package sim

import (
	"time"

	"penstock.dev/penstock/internal/kv"
)

// IndexAudit compares what gateways say is cached with what is, block by block.
type IndexAudit struct {
	Audits  int // pairs of gateway and engine compared
	Unknown int // pairs not compared, since the gateway says that it does not know
	// In all compared: blocks that the engine has, that the gateway says it has and
	// it has not, and that it has without the gateway knowing.
	Held, False, Missing int64
	Losses               int           // times that a gateway said it does not know
	Heal                 time.Duration // the longest until it knew again
	HealTotal            time.Duration
	Feed                 kv.FeedCounts // of all lines
	Names                kv.NameCounts
}

// FalseShare is the share of what gateways say is cached that is not.
func (a *IndexAudit) FalseShare() float64 {
	return float64(a.False) / float64(max(a.Held-a.Missing+a.False, 1))
}

// MissingShare is the share of what is cached that gateways do not know of.
func (a *IndexAudit) MissingShare() float64 { return float64(a.Missing) / float64(max(a.Held, 1)) }

// healed keeps count of how long a line is not to be believed.
func (r *run) healed(what int, l *line) {
	g, k := r.unpair(what)
	slot, ok := r.gateways[g].brain.Slot(endpointID(k))
	sure := ok && r.gateways[g].brain.Caches().Whole(slot)
	a := &r.res.Index
	switch {
	case !sure && !l.lost:
		l.lost, l.lostAt = true, r.now
		a.Losses++
	case sure && l.lost:
		l.lost = false
		took := r.now.Sub(l.lostAt)
		a.HealTotal += took
		a.Heal = max(a.Heal, took)
	}
}

// audit compares all indexes with all caches, and foresees the next time.
func (r *run) audit() {
	for k := range r.engines {
		if r.engines[k].Engine != nil {
			r.collect(k, r.now)
		}
	}
	for what := range r.lines {
		g, k := r.unpair(what)
		r.auditPair(g, k)
	}
	if r.requests.open() > 0 || !r.drained {
		r.push(r.now.Add(r.c.Events.Audit), kindAudit, 0)
	}
}

func (r *run) auditPair(g, k int) {
	a, blocks := &r.res.Index, r.gateways[g].brain.Caches().Blocks()
	slot, ok := r.gateways[g].brain.Slot(endpointID(k))
	if !ok {
		return
	}
	if r.engines[k].Engine == nil || !r.gateways[g].brain.Caches().Whole(slot) {
		a.Unknown++
		return
	}
	a.Audits++
	for _, tier := range [...]kv.Tier{kv.TierGPU, kv.TierCPU, kv.TierDisk} {
		held, known := 0, 0
		for key := range r.engines[k].Truth(tier) {
			held++
			if blocks.Has(slot, tier, r.ownKey(key)) {
				known++
			}
		}
		a.Held += int64(held)
		a.Missing += int64(held - known)
		a.False += int64(blocks.Count(slot, tier) - known)
	}
}

// ownKey returns the key by which gateways know an engine's block.
func (r *run) ownKey(k uint64) kv.Key {
	if r.own == nil {
		return kv.Key(k)
	}
	return r.own[k]
}

// finishAudit adds up what the lines counted.
func (r *run) finishAudit() {
	for _, l := range r.lines {
		s := l.follower.Status()
		r.res.Index.Feed.Add(s.Feed)
		r.res.Index.Names.Add(s.Names)
	}
}
