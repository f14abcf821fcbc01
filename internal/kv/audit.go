package kv

import "penstock.dev/penstock/internal/fleet"

// audit compares what was believed cached with what engines report to have
// found.
type audit struct {
	answers           uint64
	claimed, reported fleet.Tokens
	over, under       fleet.Tokens

	// Of what the feed claims, lately: tokens, and those that were not there.
	feedClaimed, feedOver float64
	demoted               bool
}

const (
	// auditFade is what a claim keeps of its weight with every further answer.
	auditFade = 1 - 1.0/32

	// auditEnough is the weight of claims, in tokens, that a verdict takes: a few
	// prompts worth.
	auditEnough = 20_000

	// pardonShare is the part of the share at which a feed is demoted below which it
	// is believed again.
	pardonShare = 0.5
)

// claimed is the last block that a slot's events claim of a prompt on its way,
// and claims how many prompts rest on it and how often it has been taken back. An
// engine evicts a chain from its end, so that the last block goes first.
type claimed struct {
	slot int
	key  Key
}

type claims struct {
	open  int
	taken uint32
}

// claim notes what the events say of p, which has just been looked up.
func (b *Book) claim(t *Ticket, p *Prompt) {
	t.feed = b.confirmed(t.slot, p).Tokens
	t.taken = b.slots[t.slot].cleared
	n := int(b.held[t.slot].Blocks)
	if n == 0 {
		return
	}
	t.proof = p.Blocks[n-1]
	k := claimed{t.slot, t.proof}
	c := b.claims[k]
	c.open++
	b.claims[k] = c
	t.taken += c.taken
}

// takeBack notes that the events of a slot have taken keys back.
func (b *Book) takeBack(slot int, keys []Key) {
	if len(b.claims) == 0 {
		return
	}
	for _, k := range keys {
		if c, ok := b.claims[claimed{slot, k}]; ok {
			c.taken++
			b.claims[claimed{slot, k}] = c
		}
	}
}

// takenBack reports whether the events have themselves taken back since what they
// claimed of t: it was true, and ended while t waited.
func (b *Book) takenBack(t *Ticket) bool {
	now := b.slots[t.slot].cleared
	if t.proof != 0 {
		now += b.claims[claimed{t.slot, t.proof}].taken
	}
	return now != t.taken
}

// endClaim forgets what was claimed of t.
func (b *Book) endClaim(t *Ticket) {
	if t.proof == 0 {
		return
	}
	k := claimed{t.slot, t.proof}
	c := b.claims[k]
	if c.open--; c.open <= 0 {
		delete(b.claims, k)
		return
	}
	b.claims[k] = c
}

// add takes in the answer to t. What its events have taken back themselves before
// it came proves nothing against them.
func (a *audit) add(t *Ticket, u fleet.Usage, c Config, takenBack bool) {
	a.answers++
	a.claimed += t.claim.Tokens
	a.reported += u.Cached
	// Engines count whole blocks, and never the last token.
	slack := c.BlockTokens
	a.over += max(t.claim.Tokens-u.Cached-slack, 0)
	a.under += max(u.Cached-t.claim.Tokens-slack, 0)
	if t.feed < 0 || takenBack {
		return
	}
	a.feedClaimed = a.feedClaimed*auditFade + float64(t.feed)
	a.feedOver = a.feedOver*auditFade + float64(max(t.feed-u.Cached-slack, 0))
	switch share := a.share(); {
	case a.feedClaimed < auditEnough:
	case share > c.DemoteOver:
		a.demoted = true
	case share < c.DemoteOver*pardonShare:
		a.demoted = false
	}
}

// share is the share of what the feed claims lately that was not there.
func (a *audit) share() float64 { return a.feedOver / max(a.feedClaimed, 1) }
