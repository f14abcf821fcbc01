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

// add takes in the answer to t.
func (a *audit) add(t *Ticket, u fleet.Usage, c Config) {
	a.answers++
	a.claimed += t.claim.Tokens
	a.reported += u.Cached
	// Engines count whole blocks, and never the last token.
	slack := c.BlockTokens
	a.over += max(t.claim.Tokens-u.Cached-slack, 0)
	a.under += max(u.Cached-t.claim.Tokens-slack, 0)
	if t.feed < 0 {
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
