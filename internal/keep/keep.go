// Package keep carries out for one pool what kv.Keeper decides: it remembers the
// text of kept prefixes, in memory only, and sends it again to have it cached. It
// also answers, of late requests and sessions, where their prefixes are, and
// clears caches.
package keep

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/live"
)

// Options are what a Keep is made of; all but Log are required.
type Options struct {
	Pool    *live.Pool
	Client  *engine.Client
	Dialect engine.Dialect
	Config  kv.KeepConfig
	Log     *slog.Logger
}

// Keep is the memory of one pool. It is safe for concurrent use. Of texts nothing
// is logged, written down or shown.
type Keep struct {
	o      Options
	orders sync.WaitGroup

	mu     sync.Mutex
	keeper *kv.Keeper
	texts  map[kv.KeepID]*text
	late   late
	gone   []kv.KeepID // scratch
}

// text is a prompt as it is put to engines.
type text struct {
	gateway.Seen
	said string // by the latest order that failed, "" if none has
}

// New returns a memory of nothing.
func New(o Options) *Keep {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Keep{o: o, keeper: kv.NewKeeper(o.Config), texts: map[kv.KeepID]*text{}}
}

// SetConfig changes the bounds.
func (k *Keep) SetConfig(c kv.KeepConfig) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keeper.SetConfig(c)
	k.forgetLocked()
}

// Config returns the bounds.
func (k *Keep) Config() kv.KeepConfig {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keeper.Config()
}

// Note implements gateway.Keep.
func (k *Keep) Note(s *gateway.Seen) {
	now := k.o.Pool.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.late.add(s)
	hot := k.keeper.Asked(now, s.Prompt.Chain)
	switch d := &s.Declared; {
	case d.Keeps():
		w := k.wanted(s, d.Part)
		w.Source, w.Name, w.Life = kv.KeepDeclared, d.Session, d.Life
		_, _ = k.wantLocked(now, s, w) // refusals are counted
	case hot > 0:
		w := k.wanted(s, float64(hot)/float64(len(s.Prompt.Chain)))
		w.Source, w.Depth, w.Life = kv.KeepHot, hot, hotLife
		_, _ = k.wantLocked(now, s, w)
	}
}

// hotLife is how long what was hot is remembered after it was last asked for.
const hotLife = 10 * time.Minute

// wanted is a wish to keep the first part, 0 to 1, of a prompt.
func (k *Keep) wanted(s *gateway.Seen, part float64) kv.Wanted {
	p := &s.Prompt
	return kv.Wanted{
		Tenant: s.Tenant, Depth: max(int(part*float64(len(p.Chain))), min(len(p.Chain), 1)),
		Tokens: max(fleet.Tokens(part*float64(p.Tokens)), 1), Whole: p.Tokens, Bytes: len(s.Body) + keyBytes*(len(p.Chain)+len(p.Blocks)),
	}
}

const keyBytes = 8

// wantLocked has the keeper take a wish on, and remembers its text.
func (k *Keep) wantLocked(now fleet.Time, s *gateway.Seen, w kv.Wanted) (kv.KeepID, kv.KeepReason) {
	id, why := k.keeper.Want(now, w, s.Prompt.Chain)
	if why == kv.KeepFine && k.texts[id] == nil {
		k.texts[id] = &text{Seen: owned(s)}
	}
	k.forgetLocked()
	return id, why
}

// owned returns s with memory of its own.
func owned(s *gateway.Seen) gateway.Seen {
	o := *s
	o.Body = append([]byte(nil), s.Body...)
	o.Prompt.Chain = append([]kv.Key(nil), s.Prompt.Chain...)
	o.Prompt.Blocks = append([]kv.Key(nil), s.Prompt.Blocks...)
	return o
}

// forgetLocked drops the texts of what is no longer kept.
func (k *Keep) forgetLocked() {
	k.gone = k.keeper.Gone(k.gone[:0])
	for _, id := range k.gone {
		delete(k.texts, id)
	}
}

// every is the time between two looks at what is kept.
const every = time.Second

// Run keeps what is to be kept until ctx ends, and waits for what it has begun.
func (k *Keep) Run(ctx context.Context) {
	defer k.orders.Wait()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		for _, o := range k.round() {
			k.orders.Go(func() { k.carryOut(ctx, o) })
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// round asks the keeper what is to be done.
func (k *Keep) round() []kv.Order {
	k.mu.Lock()
	kept := k.keeper.Kept(k.o.Pool.Now())
	k.forgetLocked()
	prompts := make([]kv.Prompt, 0, len(kept))
	for _, e := range kept {
		prompts = append(prompts, k.prefixLocked(e))
	}
	k.mu.Unlock()
	places := k.places(prompts)
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keeper.Decide(k.o.Pool.Now(), places, nil)
}

// prefixLocked is the kept part of a prompt.
func (k *Keep) prefixLocked(e *kv.Kept) kv.Prompt {
	t := k.texts[e.ID]
	if t == nil {
		return kv.Prompt{}
	}
	p := t.Prompt
	p.Chain = p.Chain[:e.Depth]
	if e.Tokens < p.Tokens {
		p.Blocks = p.Blocks[:len(p.Blocks)*int(e.Tokens)/int(p.Tokens)]
		p.Tokens = e.Tokens + 1 // of which all but one can be cached
	}
	return p
}

// places are the endpoints, with what they have of each prompt.
func (k *Keep) places(prompts []kv.Prompt) []kv.Place {
	var snap fleet.Snapshot
	k.o.Pool.View(&snap)
	places := make([]kv.Place, 0, len(snap.Endpoints))
	at := map[fleet.EndpointID]int{}
	for i := range snap.Endpoints {
		if e := &snap.Endpoints[i]; e.Role.Decodes() {
			at[e.ID] = len(places)
			places = append(places, placeOf(e, len(prompts)))
		}
	}
	for n := range prompts {
		for id, c := range k.o.Pool.Look(&prompts[n]) {
			if i, ok := at[id]; ok {
				places[i].Has[n] = c.Tokens - c.CPU - c.Disk - c.Shared
			}
		}
	}
	return places
}

func placeOf(e *fleet.EndpointState, prompts int) kv.Place {
	p := kv.Place{
		ID: e.ID, Gen: e.Gen, Fit: !e.Draining && e.Health == "healthy", Idle: e.InFlight+e.External == 0,
		Capacity: e.Limits.KVTokens, Held: e.Cached, Has: make([]fleet.Tokens, prompts),
	}
	if v := &e.Speed; v.Known {
		p.PerToken, p.Base = v.PerPrompt, v.Base+v.PerRequest
	}
	return p
}

// carryOut sends what an order asks for.
func (k *Keep) carryOut(ctx context.Context, o kv.Order) {
	k.mu.Lock()
	t := k.texts[o.ID]
	k.mu.Unlock()
	began := time.Now()
	err := errGone
	if t != nil {
		_, err = k.send(ctx, &t.Seen, o.Endpoint)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keeper.Ended(k.o.Pool.Now(), o, time.Since(began).Seconds(), err == nil)
	k.forgetLocked()
	if t == nil {
		return
	}
	if t.said = ""; err != nil {
		t.said = err.Error()
		k.o.Log.Debug("a prefix could not be kept", "id", o.ID, "why", o.Why.String(), "endpoint", k.o.Pool.EndpointName(o.Endpoint), "err", err)
	}
}

// Status is what is kept, and what keeping has done.
type Status struct {
	Kept      int
	Endpoints int // that have been seen
	Bytes     int
	Tokens    map[string]fleet.Tokens // by tenant
	Counts    kv.KeepCounts
}

// Status returns the state of the memory.
func (k *Keep) Status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	return Status{Kept: len(k.texts), Endpoints: k.keeper.Endpoints(), Bytes: k.keeper.Bytes(), Tokens: k.keeper.Spent(), Counts: k.keeper.Counts()}
}
