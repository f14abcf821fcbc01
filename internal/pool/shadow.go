package pool

import (
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/stat"
)

// shadow is a second policy at work: it picks from the same views as the first,
// with randomness of its own, and only its picks are counted. What is cached
// where follows the first policy's picks, so a shadow that would have built
// other caches is judged by caches it did not build.
type shadow struct {
	rand  *stat.Rand
	plan  route.Plan
	tally ShadowTally
}

// ShadowTally compares a shadow policy with the policy in charge.
type ShadowTally struct {
	Decisions     uint64       // placements both decided
	Disagreed     uint64       // of them, those sent elsewhere
	LiveMatched   fleet.Tokens // prompt tokens believed cached where requests went
	ShadowMatched fleet.Tokens // and where the shadow would have sent them
	Prompt        fleet.Tokens // prompt tokens of all of them
}

// Shadow returns the comparison so far, and false when there is no shadow
// policy.
func (b *Brain) Shadow() (ShadowTally, bool) { return b.shadow.tally, b.deps.Shadow != nil }

// consultShadow asks the shadow policy about the placement just decided.
func (b *Brain) consultShadow(chosen int) {
	if b.deps.Shadow == nil {
		return
	}
	s := &b.shadow
	b.deps.Shadow.Pick(&b.view, &b.query, s.rand, &s.plan)
	s.tally.Decisions++
	if s.plan.Chosen != chosen {
		s.tally.Disagreed++
	}
	s.tally.Prompt += b.query.Prompt
	s.tally.LiveMatched += b.view.Matched[chosen]
	s.tally.ShadowMatched += b.view.Matched[s.plan.Chosen]
	b.endpoints[s.plan.Chosen].shadowed++
}
