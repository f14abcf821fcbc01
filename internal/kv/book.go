package kv

import (
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Book is what one pool believes of its endpoints' caches, on three rungs: what
// engines' events confirm, what has been sent so lately that its events are still
// to come, and the history of what was sent. Each answer says on which rung it
// stands, and is compared with what the engine reports in the end. Endpoints are
// known by slot, a small dense number. It is not safe for concurrent use.
type Book struct {
	config  Config
	history *Index
	blocks  *Blocks
	slots   []cache
	stores  []int // slots that are shared stores
	awaited map[Key]awaited
	claims  map[claimed]claims

	depth, fresh, ready []int32 // scratch of Look
	since               []fleet.Time
	held                []Held
	told                []int
}

// cache is what is believed of one slot, beside its blocks.
type cache struct {
	feed    FeedState
	fed     bool // it has a feed
	whole   bool
	told    bool // of its links
	room    int  // blocks of its GPU; 0 unknown
	links   [Tiers]fleet.Link
	lag     time.Duration
	cleared uint32 // how often its events took back everything
	life    uint64 // of the history: it ends when what was sent is in doubt
	audit   audit

	unconfirmed uint64
}

// awaited is a prompt whose blocks the events have not confirmed yet.
type awaited struct {
	slot  int
	since fleet.Time // of the first token; 0 before it
}

// Prompt is what is asked about.
type Prompt struct {
	Tokens    fleet.Tokens
	Chain     []Key // of the prompt's bytes
	KeyTokens float64
	Blocks    []Key // of its tokens; empty where they are not known
}

// Ticket is one attempt's entry in a Book: made by Sent, closed by Done or Drop.
// The zero Ticket is closed.
type Ticket struct {
	slot  int
	open  bool
	life  uint64 // of the slot's history
	chain []Key  // that the history waits for; its owner must not change it before the ticket is closed
	claim fleet.Cached
	feed  fleet.Tokens // what the events claimed; -1 where there are none
	proof Key          // of the last of these blocks; 0 for none
	taken uint32       // how often that had been taken back before
	last  Key          // of the blocks that confirm it; 0 for none
	first fleet.Time
}

// NewBook returns a book of no endpoints.
func NewBook(c Config) *Book {
	return &Book{config: c, history: NewIndex(c.Keys(0)), blocks: NewBlocks(c.MaxBlocks), awaited: map[Key]awaited{}, claims: map[claimed]claims{}}
}

// SetConfig changes the sizes. Capacities are told anew by the caller.
func (b *Book) SetConfig(c Config) {
	b.config = c
	b.blocks.SetMax(c.MaxBlocks)
}

// SetCapacity tells how many tokens a slot's GPU can hold; 0 is unknown.
func (b *Book) SetCapacity(slot int, tokens fleet.Tokens) {
	b.slot(slot).room = int(tokens / b.config.BlockTokens)
	b.history.SetCapacity(slot, b.config.Keys(tokens))
}

func (b *Book) slot(i int) *cache {
	for len(b.slots) <= i {
		b.slots = append(b.slots, newCache())
	}
	return &b.slots[i]
}

func newCache() cache { return cache{lag: firstLag} }

// SetLinks tells how fast KV comes to a slot's GPU from its slower tiers. What
// has been learnt of them since stays.
func (b *Book) SetLinks(slot int, l fleet.Links) {
	s := b.slot(slot)
	if s.told {
		return
	}
	s.told = l != fleet.Links{}
	s.links = [Tiers]fleet.Link{TierCPU: l.CPU, TierDisk: l.Disk, TierShared: l.Shared, TierOther: l.Disk}
}

// SetStore says whether a slot is a store that every endpoint reads.
func (b *Book) SetStore(slot int, is bool) {
	kept := b.stores[:0]
	for _, s := range b.stores {
		if s != slot {
			kept = append(kept, s)
		}
	}
	b.stores = kept
	if is {
		b.stores = append(b.stores, slot)
	}
}

// Renew forgets what a slot's process had: there is a new one.
func (b *Book) Renew(slot int) {
	b.Doubt(slot)
	b.blocks.Clear(slot)
	s := b.slot(slot)
	s.fed, s.whole = false, false
	s.audit = audit{}
}

// Doubt forgets the history of a slot that may be a new process. Its events, if
// it has any, tell themselves.
func (b *Book) Doubt(slot int) {
	b.history.Clear(slot)
	b.slot(slot).life++
}

// Remove forgets a slot altogether.
func (b *Book) Remove(slot int) {
	b.Renew(slot)
	b.SetStore(slot, false)
	life := b.slots[slot].life
	b.slots[slot] = newCache()
	b.slots[slot].life = life
}

// Update is what a slot's feed of events has to tell.
type Update struct {
	State   FeedState
	Whole   bool // all that is cached there has been told
	Ended   bool // there is no feed any more
	Changes []Change
}

// Apply takes in what a slot's feed tells.
func (b *Book) Apply(now fleet.Time, slot int, u *Update) {
	s := b.slot(slot)
	s.fed, s.feed, s.whole = !u.Ended, u.State, u.Whole
	if u.Ended {
		b.blocks.Clear(slot)
	}
	for i := range u.Changes {
		c := &u.Changes[i]
		switch c.Kind {
		case ChangeStore:
			b.blocks.Store(slot, c.Tier, c.Parent, c.Keys)
			b.confirm(now, slot, c.Keys)
		case ChangeRemove:
			b.blocks.Remove(slot, c.Tier, c.Keys)
			b.takeBack(slot, c.Keys)
		case ChangeClear:
			b.blocks.Clear(slot)
			s.cleared++
		}
	}
	b.blocks.Sweep(sweepRuns)
}

// sweepRuns is how many runs are tidied up with every update: a few microseconds.
const sweepRuns = 16

// vouched reports whether a slot's events may be believed.
func (s *cache) vouched() bool { return s.fed && s.feed == FeedLive }

// nearlyAll is the share of a GPU's blocks that, once known, are all there is to
// know: what was there before the feed's history was lost has left.
const nearlyAll = 0.99

// Whole reports whether all that a slot has on its GPU is known: it is live, and
// has told everything or so much that nothing else has room.
func (b *Book) Whole(slot int) bool {
	s := b.slot(slot)
	return s.vouched() && (s.whole || s.room > 0 && float64(b.blocks.Count(slot, TierGPU)) >= nearlyAll*float64(s.room))
}

// Look sets out[slot], for every slot below len(out), to what is believed there
// of a prompt.
func (b *Book) Look(now fleet.Time, p *Prompt, out []fleet.Cached) {
	b.slot(len(out) - 1)
	b.depth, b.fresh, b.held = sized(b.depth, len(out)), sized(b.fresh, len(out)), sized(b.held, len(out))
	b.since, b.ready = sized(b.since, len(out)), sized(b.ready, len(out))
	for i := range out {
		// Where events tell of all there is, what came long ago they have told of.
		if b.since[i] = longAgo + 1; b.Whole(i) {
			b.since[i] = b.slots[i].expectedSince(now)
		}
	}
	b.history.MatchAwaited(p.Chain, b.since, b.depth, b.fresh, b.ready)
	if len(p.Blocks) > 0 {
		b.blocks.Match(p.Blocks, b.telling(), b.held)
	}
	for i := range out {
		s := &b.slots[i]
		out[i] = fleet.Cached{Tokens: Covered(b.depth[i], p.KeyTokens, p.Tokens), Ready: Covered(b.ready[i], p.KeyTokens, p.Tokens)}
		if s.vouched() && len(p.Blocks) > 0 && !s.audit.demoted {
			b.believe(i, p, &out[i])
		}
	}
}

// telling returns the stores whose events may be believed.
func (b *Book) telling() []int {
	b.told = b.told[:0]
	for _, s := range b.stores {
		if b.slot(s).vouched() {
			b.told = append(b.told, s)
		}
	}
	return b.told
}

// believe sets out to what the feed of slot i and the latest dispatches say of
// p, which stands at what the history says.
func (b *Book) believe(i int, p *Prompt, out *fleet.Cached) {
	s := &b.slots[i]
	guess, ready := out.Tokens, out.Ready
	*out = b.confirmed(i, p)
	out.Ready = max(out.Tokens, ready)
	whole := b.Whole(i)
	if whole {
		guess = min(guess, Covered(b.fresh[i], p.KeyTokens, p.Tokens))
	}
	if guess > out.Tokens {
		out.Tokens, out.Source = guess, fleet.CacheExpected
		if !whole {
			out.Source = fleet.CacheHistory
		}
	}
	out.Fetch = s.fetch(out)
}

// confirmed is what the events of slot i say of p.
func (b *Book) confirmed(i int, p *Prompt) fleet.Cached {
	h := &b.held[i]
	size := b.config.BlockTokens
	return fleet.Cached{
		Tokens: Covered(h.Blocks, float64(size), p.Tokens),
		CPU:    fleet.Tokens(h.At[TierCPU]) * size,
		Disk:   fleet.Tokens(h.At[TierDisk]+h.At[TierOther]) * size,
		Shared: fleet.Tokens(h.At[TierShared]) * size,
		Source: fleet.CacheConfirmed,
	}
}

// fetch is the time to bring to the GPU what is at slower tiers.
func (s *cache) fetch(c *fleet.Cached) time.Duration {
	sec := 0.0
	for tier, tokens := range [...]fleet.Tokens{TierCPU: c.CPU, TierDisk: c.Disk, TierShared: c.Shared} {
		if tokens > 0 {
			sec += s.links[tier].Latency + s.links[tier].PerToken*float64(tokens)
		}
	}
	return time.Duration(sec * float64(time.Second))
}

// Sent notes that p goes to a slot, of which Look has just said claim.
func (b *Book) Sent(_ fleet.Time, slot int, p *Prompt, claim fleet.Cached, t *Ticket) {
	s := b.slot(slot)
	*t = Ticket{slot: slot, open: true, life: s.life, chain: p.Chain, claim: claim, feed: -1}
	if s.vouched() && len(p.Blocks) > 0 {
		b.claim(t, p)
		t.last = p.Blocks[len(p.Blocks)-1]
		if b.blocks.Has(slot, TierGPU, t.last) {
			t.last = 0
		} else {
			b.await(t)
		}
	}
	b.history.Insert(slot, p.Chain)
	b.history.Await(slot, p.Chain)
}

// First tells that the first token has come: the prompt is in the cache now.
// Fetched is how many seconds it took to fetch what was not on the GPU, NaN when
// not known.
func (b *Book) First(now fleet.Time, t *Ticket, fetched float64) {
	if !t.open || t.first != 0 {
		return
	}
	t.first = max(now, 1)
	s := &b.slots[t.slot]
	b.arrived(t, now)
	s.learnLinks(&t.claim, fetched)
	if a, ok := b.awaited[t.last]; ok && t.last != 0 && a.slot == t.slot && a.since == 0 {
		b.awaited[t.last] = awaited{slot: t.slot, since: t.first}
	}
}

// Done closes t, whose answer has ended; what the engine has kept of it is p and
// an answer of so many tokens of request.
func (b *Book) Done(now fleet.Time, t *Ticket, p *Prompt, request uint64, u fleet.Usage) {
	if !t.open {
		return
	}
	if u.Known && u.Cached >= 0 {
		b.slots[t.slot].audit.add(t, u, b.config, b.takenBack(t))
	}
	// An engine keeps what it has answered, and has held all of it until now.
	b.arrived(t, now)
	p.Chain = Answer(p.Chain, request, b.config.Cover(u.Output))
	b.history.Insert(t.slot, p.Chain)
	b.Drop(t)
}

// Drop closes t without learning from it.
func (b *Book) Drop(t *Ticket) {
	if !t.open {
		return
	}
	s := &b.slots[t.slot]
	b.arrived(t, longAgo)
	if a, ok := b.awaited[t.last]; ok && t.last != 0 && a.slot == t.slot {
		delete(b.awaited, t.last)
		if t.first != 0 {
			s.unconfirmed++
		}
	}
	b.endClaim(t)
	*t = Ticket{}
}

// Held returns how many tokens a slot is believed to have on its GPU.
func (b *Book) Held(slot int) fleet.Tokens {
	if b.Whole(slot) && !b.slots[slot].audit.demoted {
		return fleet.Tokens(b.blocks.Count(slot, TierGPU)) * b.config.BlockTokens
	}
	return fleet.Tokens(b.history.Held(slot)) * b.config.KeyTokens
}

// Standing returns what is known of a slot's cache.
func (b *Book) Standing(slot int) fleet.CacheState {
	s := b.slot(slot)
	at := func(t Tier) fleet.Tokens { return fleet.Tokens(b.blocks.Count(slot, t)) * b.config.BlockTokens }
	c := fleet.CacheState{
		Whole: b.Whole(slot), Demoted: s.audit.demoted, GPU: at(TierGPU), CPU: at(TierCPU), Disk: at(TierDisk) + at(TierOther), Shared: at(TierShared),
		Lag: s.lag, Unconfirmed: s.unconfirmed,
		Audits: s.audit.answers, Claimed: s.audit.claimed, Reported: s.audit.reported, Over: s.audit.over, Under: s.audit.under,
		OverShare: s.audit.share(),
	}
	if s.fed {
		c.Feed = s.feed.String()
	}
	if s.vouched() && !s.audit.demoted {
		c.Source = fleet.CacheConfirmed
	}
	return c
}

// Blocks returns the index of events, for those who copy it.
func (b *Book) Blocks() *Blocks { return b.blocks }

func sized[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n, n+n/2)
	}
	return s[:n]
}
