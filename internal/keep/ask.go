package keep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/live"
)

// Session returns the prompt that was last asked in a session of a tenant, of any
// for "", and its text where that is kept.
func (k *Keep) Session(tenant, name string) (kv.Prompt, *gateway.Seen, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e, ok := k.keeper.Named(tenant, name); ok && k.texts[e.ID] != nil {
		t := k.texts[e.ID]
		return t.Prompt, &t.Seen, true
	}
	p, ok := k.late.find(func(r *lateRequest) bool { return r.session == name && (tenant == "" || r.tenant == tenant) })
	return p, nil, ok && name != ""
}

// Request returns the prompt of a late request.
func (k *Keep) Request(id string) (kv.Prompt, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.late.find(func(r *lateRequest) bool { return r.id == id })
}

// At is what an endpoint has of a prompt.
type At struct {
	live.Endpoint
	fleet.Cached
}

// Where returns what each endpoint is believed to have of a prompt, the one that
// has most first.
func (k *Keep) Where(p *kv.Prompt) []At {
	has := k.o.Pool.Look(p)
	var all []At
	for _, e := range k.o.Pool.Endpoints() {
		all = append(all, At{e, has[e.ID]})
	}
	slices.SortFunc(all, func(a, b At) int { return cmp.Or(int(b.Tokens-a.Tokens), cmp.Compare(a.Name, b.Name)) })
	return all
}

// Targets returns the endpoints of names. Without names it is as many as copies
// says of those that lack p, those that have nothing to do first.
func (k *Keep) Targets(p *kv.Prompt, names []string, copies int) ([]live.Endpoint, error) {
	if len(names) > 0 {
		return k.named(names)
	}
	var free []At
	load := map[fleet.EndpointID]int{}
	has := 0
	var snap fleet.Snapshot
	k.o.Pool.View(&snap)
	fit := map[fleet.EndpointID]bool{}
	for i := range snap.Endpoints {
		e := &snap.Endpoints[i]
		fit[e.ID] = e.Role.Decodes() && !e.Draining && e.Health == "healthy"
		load[e.ID] = e.InFlight + e.External
	}
	for _, a := range k.Where(p) {
		switch {
		case !fit[a.ID]:
		case kv.Mostly(a.Tokens, p.Tokens):
			has++
		default:
			free = append(free, a)
		}
	}
	slices.SortStableFunc(free, func(a, b At) int { return load[a.ID] - load[b.ID] })
	var out []live.Endpoint
	for _, a := range free[:min(max(copies-has, 0), len(free))] {
		out = append(out, a.Endpoint)
	}
	return out, nil
}

// All stands for all endpoints that serve.
const All = "all"

func (k *Keep) named(names []string) ([]live.Endpoint, error) {
	all := k.o.Pool.Endpoints()
	slices.SortFunc(all, func(a, b live.Endpoint) int { return cmp.Compare(a.Name, b.Name) })
	if len(names) == 1 && names[0] == All {
		return slices.DeleteFunc(all, func(e live.Endpoint) bool { return !e.Role.Decodes() }), nil
	}
	var out []live.Endpoint
	for _, name := range names {
		i := slices.IndexFunc(all, func(e live.Endpoint) bool { return e.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("pool %s has no endpoint %q", k.o.Pool.Name(), name)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// Prefetch has an endpoint cache a prompt now, whatever keeping may cost.
func (k *Keep) Prefetch(ctx context.Context, s *gateway.Seen, e live.Endpoint) (Sent, error) {
	if !e.Role.Decodes() {
		return Sent{}, errNoStoreAPI(e.Name)
	}
	sent, err := k.send(ctx, s, e.ID)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keeper.Spend(e.ID, sent.Took.Seconds())
	return sent, err
}

func errNoStoreAPI(name string) error {
	return fmt.Errorf("%s is a store: Penstock reads its events and knows no API to change what it has; use the store's own tools", name)
}

// Pin keeps a prompt until Unpin, or for life without being asked for; 0 is for
// ever.
func (k *Keep) Pin(s *gateway.Seen, on []live.Endpoint, copies int, life time.Duration) (kv.KeepID, error) {
	w := k.wanted(s, 1)
	w.Source, w.Copies, w.Life = kv.KeepPinned, copies, life
	for _, e := range on {
		w.On = append(w.On, e.ID)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	id, why := k.wantLocked(k.o.Pool.Now(), s, w)
	c := k.keeper.Config()
	switch why {
	case kv.KeepFine:
		return id, nil
	case kv.KeepQuota:
		return 0, fmt.Errorf("over quota: tenant %q may have %d tokens kept, has %d pinned or declared, and this prompt has %d; raise kv.keep.quotas, or PUT /api/kv/quotas",
			s.Tenant, c.QuotaOf(s.Tenant), k.keeper.Spent()[s.Tenant], s.Prompt.Tokens)
	case kv.KeepMemory:
		return 0, fmt.Errorf("no memory: pins take %d bytes of %d, and this prompt would take %d; raise kv.keep.maxBytes or unpin something", k.keeper.Bytes(), c.MaxBytes, w.Bytes)
	case kv.KeepShort:
		return 0, fmt.Errorf("too short: a prompt is known by its first %d bytes at the least", kv.ChunkBytes)
	}
	return 0, errors.New("not kept: " + why.String())
}

// Unpin lets go of a pin and reports whether there was one.
func (k *Keep) Unpin(id kv.KeepID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	ok := k.keeper.Unpin(id)
	k.forgetLocked()
	return ok
}

// Pinned is one kept prefix, and who has it.
type Pinned struct {
	kv.Kept
	Until time.Duration // from now; 0 for what stays
	Age   time.Duration // since it was last asked for
	Has   []string      // endpoints that have it
	On    []string      // that shall have it; empty for any
	Said  string        // why it could not be sent, "" if it could
}

// List returns what is kept, the strongest and latest first.
func (k *Keep) List() []Pinned {
	k.mu.Lock()
	now := k.o.Pool.Now()
	kept := k.keeper.Kept(now)
	k.forgetLocked()
	out, prompts := make([]Pinned, 0, len(kept)), make([]kv.Prompt, 0, len(kept))
	for _, e := range kept {
		p := Pinned{Kept: *e, Age: now.Sub(e.Used)}
		if e.Life > 0 {
			p.Until = e.Until().Sub(now)
		}
		if t := k.texts[e.ID]; t != nil {
			p.Said = t.said
		}
		out, prompts = append(out, p), append(prompts, k.prefixLocked(e))
	}
	k.mu.Unlock()
	for i := range out {
		for _, at := range k.Where(&prompts[i]) {
			if at.Role.Decodes() && kv.Mostly(at.Tokens, out[i].Tokens) {
				out[i].Has = append(out[i].Has, at.Name)
			}
		}
		for _, id := range out[i].Kept.On {
			out[i].On = append(out[i].On, k.o.Pool.EndpointName(id))
		}
	}
	return out
}

// Cleared is how clearing an endpoint's cache went.
type Cleared struct {
	Before    fleet.Tokens // that it was believed to have on its GPU
	After     fleet.Tokens
	Confirmed bool // by the endpoint's events
}

// How long the events of an engine may take to tell that its cache is empty.
const (
	confirmFor   = 3 * time.Second
	confirmEvery = 20 * time.Millisecond
)

// Clear empties an endpoint's cache. Where events tell of it the index follows
// them; where not, what was sent there is forgotten.
func (k *Keep) Clear(ctx context.Context, e live.Endpoint) (Cleared, error) {
	if !e.Role.Decodes() {
		return Cleared{}, errNoStoreAPI(e.Name)
	}
	before, fed := k.standing(e)
	if err := k.o.Client.ResetCache(ctx, k.o.Dialect, e.URL); err != nil {
		return Cleared{Before: before, After: before}, err
	}
	if !fed {
		k.o.Pool.Cleared(e)
		after, _ := k.standing(e)
		return Cleared{Before: before, After: after}, nil
	}
	c := Cleared{Before: before}
	for until := time.Now().Add(confirmFor); ; {
		c.After, _ = k.standing(e)
		if c.Confirmed = c.After < before || before == 0; c.Confirmed || ctx.Err() != nil || time.Now().After(until) {
			return c, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(confirmEvery):
		}
	}
}

// standing returns what an endpoint is believed to have on its GPU, and whether
// its events tell.
func (k *Keep) standing(e live.Endpoint) (held fleet.Tokens, fed bool) {
	var snap fleet.Snapshot
	k.o.Pool.View(&snap)
	for i := range snap.Endpoints {
		if s := &snap.Endpoints[i]; s.ID == e.ID {
			if fed = s.Cache.Feed == kv.FeedLive.String(); fed {
				return s.Cache.GPU, true
			}
			return s.Cached, false
		}
	}
	return 0, false
}
