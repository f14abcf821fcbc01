package kv

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Keeper decides which prefixes stay cached, where, and until when: those that an
// operator has pinned, those whose lifetime clients have declared, and those that
// are asked for so often that a new endpoint should not have to learn them from
// traffic. It knows keys and lengths; whoever carries its orders out has the text,
// and sends it again with an answer of one token.
//
// Keeping costs an endpoint at most a share of its time, and only time in which it
// is idle. It is not safe for concurrent use.
type Keeper struct {
	c      KeepConfig
	last   KeepID
	byID   map[KeepID]*Kept
	byKey  map[Key]*Kept
	byName map[keepName]*Kept
	depths []uint16 // prefixes that end at a depth: where a chain is worth a look
	bytes  int
	spent  map[string]fleet.Tokens // of quotas, by tenant
	hot    hotCounts
	sated  fleet.Time // until when nothing more is taken for hot
	homes  map[fleet.EndpointID]*allowance
	began  bool // there has been a round: endpoints that come now are new
	review []*Kept
	gone   []KeepID
	counts KeepCounts
}

// KeepConfig bounds what is kept, and what it may cost.
type KeepConfig struct {
	Declared bool // keep what clients declare
	Hot      bool // place what is asked for often on endpoints that are new
	MaxBytes int  // of text
	// Share is how much of an endpoint's time keeping may take, 0 to 1.
	Share float64
	// Quota is how many tokens a tenant may have kept, Quotas that of some.
	Quota  fleet.Tokens
	Quotas map[string]fleet.Tokens
	// MaxLife bounds the lifetimes that clients declare.
	MaxLife time.Duration
	// WarmTokens is how many prompt tokens a new endpoint is given beforehand.
	WarmTokens fleet.Tokens
}

// QuotaOf returns how many tokens a tenant may have kept.
func (c *KeepConfig) QuotaOf(tenant string) fleet.Tokens {
	if q, ok := c.Quotas[tenant]; ok {
		return q
	}
	return c.Quota
}

// KeepID names a kept prefix.
type KeepID uint64

// KeepSource says who wants a prefix kept.
type KeepSource uint8

// The sources, the strongest last.
const (
	KeepHot      KeepSource = iota // it is asked for often
	KeepDeclared                   // a client has declared its lifetime
	KeepPinned                     // an operator has pinned it
)

var keepSourceNames = [...]string{"hot", "declared", "pinned"}

func (s KeepSource) String() string { return keepSourceNames[s] }

// KeepReason says why a prefix is not kept, or no longer.
type KeepReason uint8

// The reasons. KeepFine is that of what is kept.
const (
	KeepFine     KeepReason = iota
	KeepShort               // too short to have a key
	KeepOff                 // what clients declare is not kept here
	KeepQuota               // the tenant's quota is used up
	KeepMemory              // there is no room for its text
	KeepExpired             // its lifetime is over
	KeepReplaced            // a longer prompt of the same session took its place
	KeepUnpinned            // the operator let go of it
	KeepFailed              // engines would not take it
	keepReasons
)

// KeepReasons is how many reasons there are.
const KeepReasons = int(keepReasons)

var keepReasonNames = [KeepReasons]string{"", "too short", "off", "quota", "memory", "expired", "replaced", "unpinned", "failed"}

func (r KeepReason) String() string { return keepReasonNames[r] }

// Wanted is a prefix that somebody wants kept.
type Wanted struct {
	Source KeepSource
	Tenant string
	Name   string        // of a session or a pin: a new prompt of the name takes the old one's place; "" for none
	Depth  int           // keys of its chain
	Tokens fleet.Tokens  // of the prefix
	Whole  fleet.Tokens  // of the prompt that is sent to have it cached
	Bytes  int           // of its text
	Life   time.Duration // since it was last asked for; 0 is for ever
	Copies int           // endpoints that shall have it; at least 1
	// On are those that shall have it instead of any; nil for any.
	On []fleet.EndpointID
}

// Kept is a prefix that is kept.
type Kept struct {
	Wanted
	ID   KeepID
	Key  Key
	Used fleet.Time // when it was last asked for, or refreshed

	gone     bool
	pending  int // orders under way
	failures int
	touched  map[fleet.EndpointID]fleet.Time // sent there for the sake of keeping
	there    map[fleet.EndpointID]bool       // and seen to be there since
}

// Until returns when e is given up unless it is asked for again; Never for what
// stays.
func (e *Kept) Until() fleet.Time {
	if e.Life == 0 {
		return fleet.Never
	}
	return e.Used.Add(e.Life)
}

// keepName is the name of a session of a tenant.
type keepName struct{ tenant, name string }

// KeepCounts count what has been done, and what has not.
type KeepCounts struct {
	Orders  [keepWhys]uint64
	Failed  uint64
	Seconds float64                // of engines' time, in all
	Refused [KeepReasons]uint64    // never kept, by why
	Dropped [KeepReasons]uint64    // no longer kept, by why
	Tokens  [keepWhys]fleet.Tokens // that were missing when an order was given
}

// The bounds, and the times of keeping.
const (
	maxKept   = 1024
	maxHot    = 32
	hotLife   = 10 * time.Minute // after which nobody asks for what was hot
	satedFor  = 10 * time.Second // between two tries to remember more of what is hot
	warmSpan  = 10 * time.Minute // in which an endpoint counts as new
	budgetFor = time.Minute      // of an endpoint's share, saved up at most
	// touchEvery is the time between two refreshes of what an endpoint has and is
	// about to evict.
	touchEvery = time.Minute
	// refreshGap is the least time between two orders for the same prefix at an
	// endpoint that has not been seen to have it: some never cache it.
	refreshGap = 5 * time.Second
	retryAfter = 30 * time.Second
	maxFailed  = 3
	// mostOf is the share of a prefix that makes it count as there: an engine never
	// caches a prompt's last block, and lengths may be estimates.
	mostOf    = 0.9
	lastBlock = 64 // tokens of the largest blocks in use
	// full is the share of a cache that, once in use, makes an engine evict.
	full = 0.85
	// keepRoom is the share of an endpoint's cache that may be full of what is kept:
	// the rest is for what is being asked.
	keepRoom = 0.5
)

// NewKeeper returns a keeper of nothing.
func NewKeeper(c KeepConfig) *Keeper {
	k := &Keeper{
		byID: map[KeepID]*Kept{}, byKey: map[Key]*Kept{}, byName: map[keepName]*Kept{},
		spent: map[string]fleet.Tokens{}, homes: map[fleet.EndpointID]*allowance{},
	}
	k.SetConfig(c)
	return k
}

// SetConfig changes the bounds. What clients have declared and is over them now
// is given up; pins stay.
func (k *Keeper) SetConfig(c KeepConfig) {
	c.Quotas = maps.Clone(c.Quotas)
	k.c = c
	for _, e := range k.sorted() {
		switch {
		case e.Source == KeepDeclared && !c.Declared, e.Source == KeepHot && !c.Hot:
			k.drop(e, KeepOff)
		case e.Source == KeepDeclared && e.Life > c.MaxLife:
			e.Life = c.MaxLife
		}
	}
	for tenant := range maps.Clone(k.spent) {
		k.makeRoom(tenant, 0, nil)
	}
	k.makeMemory(0, KeepPinned, nil)
}

// Config returns the bounds; they are not to be changed.
func (k *Keeper) Config() KeepConfig { return k.c }

// Want takes on w, the first w.Depth keys of chain, or says why not. What is kept
// already is kept on, by the stronger of the two sources.
func (k *Keeper) Want(now fleet.Time, w Wanted, chain []Key) (KeepID, KeepReason) {
	if w.Copies = max(w.Copies, 1); w.Source == KeepDeclared {
		w.Life = min(w.Life, k.c.MaxLife)
	}
	id, why := k.want(now, w, chain)
	if why != KeepFine {
		k.counts.Refused[why]++
		if w.Source == KeepHot {
			k.sated = now.Add(satedFor)
		}
	}
	return id, why
}

func (k *Keeper) want(now fleet.Time, w Wanted, chain []Key) (KeepID, KeepReason) {
	switch {
	case w.Depth < 1 || w.Depth > len(chain) || w.Tokens < 1:
		return 0, KeepShort
	case w.Source == KeepDeclared && !k.c.Declared, w.Source == KeepHot && !k.c.Hot:
		return 0, KeepOff
	}
	key := chain[w.Depth-1]
	if e := k.byKey[key]; e != nil && !k.better(e, &w) {
		e.Used = now
		if e.Source == w.Source {
			e.Life = max(e.Life, w.Life)
		}
		return e.ID, KeepFine
	}
	before := k.replaced(&w, chain)
	if why := k.fits(now, &w, before); why != KeepFine {
		return 0, why
	}
	for _, e := range before {
		k.drop(e, KeepReplaced)
	}
	k.last++
	e := &Kept{Wanted: w, ID: k.last, Key: key, Used: now, touched: map[fleet.EndpointID]fleet.Time{}, there: map[fleet.EndpointID]bool{}}
	k.add(e)
	return e.ID, KeepFine
}

// better reports whether w says more of a prefix than what is kept of it: a
// stronger source, other wishes of an operator, or a shorter text.
func (k *Keeper) better(e *Kept, w *Wanted) bool {
	switch {
	case w.Source != e.Source:
		return w.Source > e.Source
	case w.Source == KeepPinned:
		return true
	}
	return w.Source == KeepHot && w.Bytes < e.Bytes
}

// replaced returns what w takes the place of: what has its key, its name, or is
// a part of it that the same tenant had declared without a name.
func (k *Keeper) replaced(w *Wanted, chain []Key) []*Kept {
	var before []*Kept
	if w.Name != "" {
		if e := k.byName[keepName{w.Tenant, w.Name}]; e != nil && e.Source <= w.Source {
			before = append(before, e)
		}
	}
	k.along(chain[:w.Depth], func(e *Kept) {
		same := e.Key == chain[w.Depth-1]
		part := w.Source == KeepDeclared && e.Source == KeepDeclared && e.Tenant == w.Tenant && e.Name == "" && w.Name == ""
		if (same || part) && !slices.Contains(before, e) {
			before = append(before, e)
		}
	})
	return before
}

// fits makes room for w, of which before is given up, or says what there is no
// room in.
func (k *Keeper) fits(now fleet.Time, w *Wanted, before []*Kept) KeepReason {
	if w.Source != KeepHot {
		freed := fleet.Tokens(0)
		for _, e := range before {
			if e.charged() && e.Tenant == w.Tenant {
				freed += e.Tokens
			}
		}
		if !k.makeRoom(w.Tenant, w.Tokens-freed, before) {
			return KeepQuota
		}
	}
	freed := 0
	for _, e := range before {
		freed += e.Bytes
	}
	if w.Source == KeepHot {
		for _, e := range k.byID {
			if e.Source == KeepHot && now.Sub(e.Used) < hotSpan {
				before = append(before, e) // as hot as w: to change them over would copy texts for nothing
			}
		}
	}
	if !k.makeMemory(w.Bytes-freed, w.Source, before) {
		return KeepMemory
	}
	return KeepFine
}

// charged reports whether e counts against its tenant's quota.
func (e *Kept) charged() bool { return e.Source != KeepHot }

// makeRoom gives up what a tenant has declared, that used least recently first,
// until tokens more are within its quota. It gives up nothing for what can never
// fit.
func (k *Keeper) makeRoom(tenant string, tokens fleet.Tokens, but []*Kept) bool {
	quota := k.c.QuotaOf(tenant)
	var free []*Kept
	most := fleet.Tokens(0)
	for _, e := range k.byID {
		if e.Tenant == tenant && e.Source == KeepDeclared && !slices.Contains(but, e) {
			free = append(free, e)
			most += e.Tokens
		}
	}
	if tokens > 0 && k.spent[tenant]+tokens-most > quota {
		return false
	}
	slices.SortFunc(free, leastRecent)
	for _, e := range free {
		if k.spent[tenant]+tokens <= quota {
			break
		}
		k.drop(e, KeepQuota)
	}
	return k.spent[tenant]+tokens <= quota
}

// makeMemory gives up what is weaker than source, or as weak but no pin, until
// there is memory for bytes more and a place in the table.
func (k *Keeper) makeMemory(bytes int, source KeepSource, but []*Kept) bool {
	var free []*Kept
	most, hot := 0, 0
	for _, e := range k.byID {
		if e.Source == KeepHot {
			hot++
		}
		if e.Source <= source && e.Source != KeepPinned && !slices.Contains(but, e) {
			free = append(free, e)
			most += e.Bytes
		}
	}
	if bytes > 0 && k.bytes+bytes-most > k.c.MaxBytes {
		return false
	}
	slices.SortFunc(free, func(a, b *Kept) int { return cmp.Or(int(a.Source)-int(b.Source), leastRecent(a, b)) })
	full := func() bool {
		return k.bytes+bytes > k.c.MaxBytes || len(k.byID) >= maxKept || source == KeepHot && bytes > 0 && hot >= maxHot
	}
	for _, e := range free {
		if !full() {
			break
		}
		if e.Source == KeepHot {
			hot--
		}
		k.drop(e, KeepMemory)
	}
	return !full()
}

func leastRecent(a, b *Kept) int { return cmp.Or(cmp.Compare(a.Used, b.Used), cmp.Compare(a.ID, b.ID)) }

func (k *Keeper) add(e *Kept) {
	k.byID[e.ID], k.byKey[e.Key] = e, e
	if e.Name != "" {
		k.byName[keepName{e.Tenant, e.Name}] = e
	}
	for len(k.depths) <= e.Depth {
		k.depths = append(k.depths, 0)
	}
	k.depths[e.Depth]++
	k.bytes += e.Bytes
	if e.charged() {
		k.spent[e.Tenant] += e.Tokens
	}
}

// drop gives e up.
func (k *Keeper) drop(e *Kept, why KeepReason) {
	if e.gone {
		return
	}
	e.gone = true
	delete(k.byID, e.ID)
	if k.byKey[e.Key] == e {
		delete(k.byKey, e.Key)
	}
	if n := (keepName{e.Tenant, e.Name}); k.byName[n] == e {
		delete(k.byName, n)
	}
	k.depths[e.Depth]--
	k.bytes -= e.Bytes
	if e.charged() {
		if k.spent[e.Tenant] -= e.Tokens; k.spent[e.Tenant] <= 0 {
			delete(k.spent, e.Tenant)
		}
	}
	k.counts.Dropped[why]++
	k.gone = append(k.gone, e.ID)
}

// Unpin lets go of a pin and reports whether there was one.
func (k *Keeper) Unpin(id KeepID) bool {
	e := k.byID[id]
	if e == nil || e.Source != KeepPinned {
		return false
	}
	k.drop(e, KeepUnpinned)
	return true
}

// Gone appends to dst what has been given up since it was last called.
func (k *Keeper) Gone(dst []KeepID) []KeepID {
	dst = append(dst, k.gone...)
	k.gone = k.gone[:0]
	return dst
}

// along tells of the kept prefixes of a chain, the shortest first.
func (k *Keeper) along(chain []Key, tell func(*Kept)) {
	for d := 1; d < len(k.depths) && d <= len(chain); d++ {
		if k.depths[d] > 0 {
			if e := k.byKey[chain[d-1]]; e != nil {
				tell(e)
			}
		}
	}
}

// Asked notes that a prompt has been asked for. It returns how many of its keys
// are a prefix that is hot and whose text is not remembered, 0 for none.
func (k *Keeper) Asked(now fleet.Time, chain []Key) (hot int) {
	k.along(chain, func(e *Kept) { e.Used = now })
	if !k.c.Hot {
		return 0
	}
	if hot = k.hot.ask(now, chain); hot > 0 && (now < k.sated || k.byKey[chain[hot-1]] != nil) {
		return 0
	}
	return hot
}

// Kept returns what is kept, the strongest and latest first, after giving up what
// has expired. Decide speaks of the same prefixes in the same order.
func (k *Keeper) Kept(now fleet.Time) []*Kept {
	for _, e := range k.sorted() {
		if now >= e.Until() {
			k.drop(e, KeepExpired)
		}
	}
	k.review = append(k.review[:0], k.sorted()...)
	return k.review
}

// sorted returns what is kept, the strongest and latest first.
func (k *Keeper) sorted() []*Kept {
	return slices.SortedFunc(maps.Values(k.byID), func(a, b *Kept) int {
		return cmp.Or(int(b.Source)-int(a.Source), leastRecent(b, a))
	})
}

// Find returns what is kept under an id.
func (k *Keeper) Find(id KeepID) (*Kept, bool) {
	e, ok := k.byID[id]
	return e, ok
}

// Named returns what is kept under the name of a session or pin; an empty tenant
// is any, the latest used.
func (k *Keeper) Named(tenant, name string) (*Kept, bool) {
	if tenant != "" || name == "" {
		e, ok := k.byName[keepName{tenant, name}]
		return e, ok && name != ""
	}
	var latest *Kept
	for n, e := range k.byName {
		if n.name == name && (latest == nil || leastRecent(latest, e) < 0) {
			latest = e
		}
	}
	return latest, latest != nil
}

// Spent returns the tokens kept of each tenant that has any.
func (k *Keeper) Spent() map[string]fleet.Tokens { return maps.Clone(k.spent) }

// Endpoints returns how many endpoints are known: those that come from now on are
// new.
func (k *Keeper) Endpoints() int { return len(k.homes) }

// Bytes returns how much text is remembered.
func (k *Keeper) Bytes() int { return k.bytes }

// Counts returns what has been done so far.
func (k *Keeper) Counts() KeepCounts { return k.counts }
