package kv

import (
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// KeepWhy says what an order is for.
type KeepWhy uint8

// What orders are for.
const (
	KeepRefresh KeepWhy = iota // it is not there, or no longer
	KeepTouch                  // it is there, and next to be evicted
	KeepWarm                   // the endpoint is new
	keepWhys
)

// KeepWhys is how many there are.
const KeepWhys = int(keepWhys)

var keepWhyNames = [KeepWhys]string{"refresh", "touch", "warm"}

func (w KeepWhy) String() string { return keepWhyNames[w] }

// Order asks for a kept prompt to be sent to an endpoint, for an answer of one
// token. Ended must be called for each.
type Order struct {
	ID       KeepID
	Endpoint fleet.EndpointID
	Gen      fleet.Gen
	Why      KeepWhy
	Missing  fleet.Tokens
	Seconds  float64 // that it is expected to take

	kept *Kept
}

// Place is an endpoint as Decide sees it.
type Place struct {
	ID       fleet.EndpointID
	Gen      fleet.Gen
	Fit      bool         // it serves
	Idle     bool         // and has nothing to do
	Capacity fleet.Tokens // of its GPU; 0 unknown
	Held     fleet.Tokens // on its GPU
	PerToken float64      // s, of a prompt; 0 unknown
	Base     float64      // s, of a request
	// Has are the tokens it has of each prefix of Kept, in the same order.
	Has []fleet.Tokens
}

// Mostly reports whether an endpoint that has so many tokens of a prefix has it,
// but for an end that no engine's blocks may cover.
func Mostly(has, tokens fleet.Tokens) bool {
	return float64(has) >= mostOf*float64(tokens) || has > 0 && tokens-has <= lastBlock
}

// has reports whether p has the i'th prefix, e.
func (p *Place) has(i int, e *Kept) bool { return Mostly(p.Has[i], e.Tokens) }

// allowance is what an endpoint may still be asked for the sake of keeping.
type allowance struct {
	gen     fleet.Gen
	joined  fleet.Time
	isNew   bool         // it came while others were serving
	warm    fleet.Tokens // that it may still be given beforehand
	saved   float64      // s
	at      fleet.Time   // of saved
	pending bool         // an order is under way
	retry   fleet.Time
}

// slowToken is what a prompt token is taken for where nothing is known of an
// engine's speed, in seconds: 10,000 tokens a second.
const slowToken = 1e-4

// Decide appends to out what is to be done now, at most one order for each
// endpoint. Places are all endpoints there are, as of the latest call of Kept.
func (k *Keeper) Decide(now fleet.Time, places []Place, out []Order) []Order {
	k.settle(now, places)
	for i := range places {
		p := &places[i]
		h := k.homes[p.ID]
		if !p.Fit || !p.Idle || h.pending || now < h.retry || len(p.Has) < len(k.review) {
			continue
		}
		for n, e := range k.review {
			if e.gone || len(p.Has) <= n {
				continue
			}
			if o, ok := k.order(now, n, e, i, places); ok {
				out = append(out, k.give(h, e, o))
				break
			}
		}
	}
	return out
}

// settle brings what is known of endpoints up to now, and forgets those that are
// gone.
func (k *Keeper) settle(now fleet.Time, places []Place) {
	for id := range k.homes {
		if !slices.ContainsFunc(places, func(p Place) bool { return p.ID == id }) {
			delete(k.homes, id)
		}
	}
	most := k.c.Share * budgetFor.Seconds()
	for i := range places {
		p := &places[i]
		h := k.homes[p.ID]
		if h == nil || h.gen != p.Gen {
			h = &allowance{gen: p.Gen, joined: now, isNew: k.began || h != nil, warm: k.c.WarmTokens, saved: most, at: now}
			k.homes[p.ID] = h
		}
		h.saved = min(h.saved+k.c.Share*now.Sub(h.at).Seconds(), most)
		h.at = now
	}
	k.began = k.began || len(places) > 0
}

// order says whether the n'th prefix, e, is to be sent to places[at], and what
// for.
func (k *Keeper) order(now fleet.Time, n int, e *Kept, at int, places []Place) (Order, bool) {
	p := &places[at]
	h := k.homes[p.ID]
	o := Order{ID: e.ID, Endpoint: p.ID, Gen: p.Gen, Missing: max(e.Whole-p.Has[n], 0), kept: e}
	perToken := p.PerToken
	if perToken <= 0 {
		perToken = slowToken
	}
	o.Seconds = p.Base + perToken*float64(o.Missing)
	switch {
	case e.Source == KeepHot:
		o.Why = KeepWarm
		return o, h.isNew && now.Sub(h.joined) < warmSpan && !p.has(n, e) && o.Missing <= h.warm
	case p.has(n, e):
		e.there[p.ID] = true
		o.Why = KeepTouch
		o.Missing, o.Seconds = 0, p.Base
		stale := now.Sub(max(e.Used, e.touched[p.ID])) >= touchEvery
		return o, stale && p.presses() && k.mine(n, e, at, places) && k.affords(h, o.Seconds)
	}
	o.Why = KeepRefresh
	if at, asked := e.touched[p.ID]; asked && !e.there[p.ID] && now.Sub(at) < refreshGap {
		return o, false
	}
	return o, k.wants(n, e, at, places) && k.room(p, e) && k.affords(h, o.Seconds)
}

// presses reports whether p is about to evict something.
func (p *Place) presses() bool {
	return p.Capacity > 0 && float64(p.Held) >= full*float64(p.Capacity)
}

// mine reports whether places[at], which has e, is among those that shall have
// it: the first that do, where any will do.
func (k *Keeper) mine(n int, e *Kept, at int, places []Place) bool {
	if e.On != nil {
		return slices.Contains(e.On, places[at].ID)
	}
	before := 0
	for i := range at {
		if places[i].Fit && places[i].has(n, e) {
			before++
		}
	}
	return before < e.Copies
}

// wants reports whether e, which places[at] lacks, is to be put there: one of
// those named, or of all that could be asked now the one that has most of it.
func (k *Keeper) wants(n int, e *Kept, at int, places []Place) bool {
	if e.On != nil {
		return slices.Contains(e.On, places[at].ID)
	}
	copies, best := e.pending, at
	for i := range places {
		p := &places[i]
		switch h := k.homes[p.ID]; {
		case !p.Fit:
		case p.has(n, e):
			copies++
		case p.Idle && !h.pending && p.Has[n] > places[best].Has[n] && k.room(p, e):
			best = i
		}
	}
	return copies < e.Copies && best == at
}

// room reports whether p may be given e beside what else it has that is kept.
func (k *Keeper) room(p *Place, e *Kept) bool {
	if p.Capacity == 0 {
		return true
	}
	sum := e.Tokens
	for i, o := range k.review {
		if !o.gone && o != e && o.charged() && i < len(p.Has) && p.has(i, o) {
			sum += o.Tokens
		}
	}
	return float64(sum) <= keepRoom*float64(p.Capacity)
}

// affords reports whether an endpoint has time left for keeping. What takes
// longer than can ever be saved up must wait for all of it, and leaves a debt.
func (k *Keeper) affords(h *allowance, seconds float64) bool {
	return k.c.Share > 0 && h.saved >= min(seconds, k.c.Share*budgetFor.Seconds())
}

// give makes o an order that is under way.
func (k *Keeper) give(h *allowance, e *Kept, o Order) Order {
	h.pending = true
	e.pending++
	if o.Why == KeepWarm {
		h.warm -= o.Missing
	} else {
		h.saved -= o.Seconds
	}
	delete(e.there, o.Endpoint)
	k.counts.Orders[o.Why]++
	k.counts.Tokens[o.Why] += o.Missing
	return o
}

// Ended tells how an order went, and how many seconds it took.
func (k *Keeper) Ended(now fleet.Time, o Order, seconds float64, ok bool) {
	e := o.kept
	e.pending--
	k.counts.Seconds += seconds
	if h := k.homes[o.Endpoint]; h != nil && h.gen == o.Gen {
		h.pending = false
		if o.Why != KeepWarm {
			h.saved += o.Seconds - seconds
		}
		if !ok {
			h.retry = now.Add(retryAfter)
		}
	}
	if ok {
		e.failures = 0
		e.touched[o.Endpoint] = now
		return
	}
	k.counts.Failed++
	if e.failures++; e.failures >= maxFailed && e.Source != KeepPinned {
		k.drop(e, KeepFailed)
	}
}

// Spend charges an endpoint for what was done there beside orders, at somebody's
// request: it delays what keeping would do.
func (k *Keeper) Spend(id fleet.EndpointID, seconds float64) {
	if h := k.homes[id]; h != nil {
		h.saved -= seconds
	}
}

// hotCounts counts how often prefixes are asked for, in two generations of which
// the older counts half. A prefix is counted where its length in keys is a power
// of two, and only when the one before it has been seen: a prompt that nobody
// repeats takes one entry.
type hotCounts struct {
	now, past map[Key]uint16
	since     fleet.Time
}

const (
	hotSpan    = 2 * time.Minute // of a generation
	maxCounted = 4096            // prefixes in one
	hotAsked   = 3               // times within the last two that make a prefix hot
	hotFirst   = 4               // keys of the shortest that counts: 256 tokens
)

// ask counts chain and returns the length, in keys, of its longest prefix that is
// hot, 0 for none.
func (c *hotCounts) ask(now fleet.Time, chain []Key) (hot int) {
	if c.now == nil || now.Sub(c.since) >= hotSpan || len(c.now) >= maxCounted {
		c.now, c.past, c.since = make(map[Key]uint16), c.now, now
	}
	for d := hotFirst; d <= len(chain); d *= 2 {
		key := chain[d-1]
		n := min(c.now[key]+1, 1<<15)
		c.now[key] = n
		n += c.past[key] / 2
		if n >= hotAsked {
			hot = d
		}
		if n == 1 {
			break
		}
	}
	return hot
}
