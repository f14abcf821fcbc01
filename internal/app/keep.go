package app

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/keep"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/obs"
)

// manager implements admin.Caches for all pools.
type manager struct{ app *App }

// openKeep begins to keep what is worth it.
func (s *served) openKeep(c config.Pool) {
	s.keep = keep.New(keep.Options{Pool: s.pool, Client: s.client, Dialect: s.loops.Dialect, Config: c.KV.Keep.Config(), Log: s.app.log.With("pool", c.Name)})
	s.keeping.Go(func() { s.keep.Run(s.ctx) })
}

// target is a prompt that somebody named.
type target struct {
	s      *served
	of     string
	prompt kv.Prompt
	seen   *gateway.Seen // nil where its text is not known
}

// pool returns the pool of a name or a model, the only one without either.
func (c manager) pool(name, model string) (*served, error) {
	all := c.app.fleet.pools()
	switch {
	case name != "":
		if s := c.app.fleet.byName(name); s != nil {
			return s, nil
		}
		return nil, fmt.Errorf("pool %q: %w; there are %s", name, admin.ErrNotFound, poolNames(all))
	case model != "":
		if s := (*c.app.fleet.current.Load())[model]; s != nil {
			return s, nil
		}
		return nil, fmt.Errorf("model %q: %w; GET /v1/models lists those served", model, admin.ErrNotFound)
	case len(all) == 1:
		return all[0], nil
	}
	return nil, fmt.Errorf("there are %d pools: say which with \"pool\" or \"model\": %s", len(all), poolNames(all))
}

func poolNames(all []*served) string {
	var names []string
	for _, s := range all {
		names = append(names, s.pool.Name())
	}
	return strings.Join(names, ", ")
}

// find finds the prompt that t names.
func (c manager) find(ctx context.Context, t *admin.KVTarget) (*target, error) {
	s, err := c.pool(t.Pool, t.Model)
	if err != nil {
		return nil, err
	}
	given := 0
	for _, is := range []bool{t.Prompt != "", len(t.Messages) > 0, len(t.Body) > 0, t.Session != "", t.Request != "", t.Of != ""} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, errors.New("name one prompt: by \"prompt\", \"messages\", \"body\", \"session\", \"request\" or \"of\"")
	}
	switch {
	case t.Session != "":
		if p, seen, ok := s.keep.Session(t.Tenant, t.Session); ok {
			return &target{s, "session", p, seen}, nil
		}
		return nil, fmt.Errorf("session %q of pool %s: %w: no late request had it as its prompt_cache_key", t.Session, s.pool.Name(), admin.ErrNotFound)
	case t.Request != "":
		if p, ok := s.keep.Request(t.Request); ok {
			return &target{s, "request", p, nil}, nil
		}
		return nil, fmt.Errorf("request %q of pool %s: %w among the late ones; its id is in the X-Request-Id header of its answer", t.Request, s.pool.Name(), admin.ErrNotFound)
	case t.Of != "":
		return c.guess(ctx, s, t)
	}
	return c.read(ctx, s, t)
}

// guess takes what may be a session, a request or a prompt for the first of them
// that it is.
func (c manager) guess(ctx context.Context, s *served, t *admin.KVTarget) (*target, error) {
	if p, seen, ok := s.keep.Session(t.Tenant, t.Of); ok {
		return &target{s, "session", p, seen}, nil
	}
	if p, ok := s.keep.Request(t.Of); ok {
		return &target{s, "request", p, nil}, nil
	}
	as := *t
	as.Of, as.Prompt = "", t.Of
	return c.read(ctx, s, &as)
}

// read reads a prompt as the gateway would read it from a client.
func (c manager) read(ctx context.Context, s *served, t *admin.KVTarget) (*target, error) {
	body, path := []byte(t.Body), t.Path
	if len(body) == 0 {
		model := t.Model
		if model == "" {
			if models := s.list(); len(models) > 0 {
				model = models[0].ID
			}
		}
		fields := map[string]any{"model": model, "prompt": t.Prompt}
		if path = "/v1/completions"; len(t.Messages) > 0 {
			path, fields = "/v1/chat/completions", map[string]any{"model": model, "messages": t.Messages}
		}
		var err error
		if body, err = json.Marshal(fields); err != nil {
			return nil, fmt.Errorf("messages: %w", err)
		}
	} else if path == "" {
		path = pathOf(body)
	}
	seen, err := c.app.gateway.Read(ctx, path, t.Tenant, body)
	if err != nil {
		return nil, err
	}
	if seen.Service.Pool != s.pool {
		return nil, fmt.Errorf("the model of the body is served by pool %s, not by %s", seen.Service.Pool.Name(), s.pool.Name())
	}
	return &target{s, "prompt", seen.Prompt, seen}, nil
}

// pathOf says to which path a body goes, by what it has.
func pathOf(body []byte) string {
	var fields map[string]json.RawMessage
	_ = json.Unmarshal(body, &fields) // what it is will be said when it is read
	switch {
	case fields["messages"] != nil:
		return "/v1/chat/completions"
	case fields["input"] != nil:
		return "/v1/responses"
	}
	return "/v1/completions"
}

// Where implements admin.Caches.
func (c manager) Where(ctx context.Context, t *admin.KVTarget) (*admin.KVWhere, error) {
	f, err := c.find(ctx, t)
	if err != nil {
		return nil, err
	}
	out := &admin.KVWhere{Pool: f.s.pool.Name(), Of: f.of, Tokens: int(f.prompt.Tokens), ByTokens: len(f.prompt.Blocks) > 0, Kept: f.of == "session" && f.seen != nil, Endpoints: []admin.KVHeld{}}
	for _, at := range f.s.keep.Where(&f.prompt) {
		out.Endpoints = append(out.Endpoints, admin.KVHeld{
			Endpoint: at.Name, Role: at.Role.String(), Tokens: int(at.Tokens), GPU: int(at.Tokens - at.CPU - at.Disk - at.Shared),
			CPU: int(at.CPU), Disk: int(at.Disk), Shared: int(at.Shared), Source: at.Source.String(), FetchMs: obs.Millis(at.Fetch),
		})
	}
	return out, nil
}

// sendable is find for those who need the text.
func (c manager) sendable(ctx context.Context, t *admin.KVTarget) (*target, error) {
	f, err := c.find(ctx, t)
	if err == nil && f.seen == nil {
		err = fmt.Errorf("the text of this %s is not kept, only its keys are: give its prompt, or have the client declare a lifetime (prompt_cache_key, cache_control)", f.of)
	}
	return f, err
}

// Prefetch implements admin.Caches.
func (c manager) Prefetch(ctx context.Context, r *admin.KVPrefetch) (*admin.KVResults, error) {
	f, err := c.sendable(ctx, &r.KVTarget)
	if err != nil {
		return nil, err
	}
	to, err := f.s.keep.Targets(&f.prompt, r.Endpoints, max(r.Copies, 1))
	if err != nil {
		return nil, notFound(err)
	}
	out := &admin.KVResults{Pool: f.s.pool.Name(), Results: make([]admin.KVResult, len(to))}
	done := make(chan struct{})
	for i, e := range to {
		go func() {
			out.Results[i] = prefetched(f.s.keep.Prefetch(ctx, f.seen, e))
			out.Results[i].Endpoint = e.Name
			done <- struct{}{}
		}()
	}
	for range to {
		<-done
	}
	return out, nil
}

func prefetched(sent keep.Sent, err error) admin.KVResult {
	if err != nil {
		return admin.KVResult{Reason: err.Error()}
	}
	r := admin.KVResult{Done: true, Tokens: int(sent.Usage.Prompt), TookMs: obs.Millis(sent.Took)}
	if sent.Usage.Cached >= 0 {
		r.Cached = new(int(sent.Usage.Cached))
	}
	return r
}

func notFound(err error) error { return fmt.Errorf("%w: %w", admin.ErrNotFound, err) }

// Pin implements admin.Caches.
func (c manager) Pin(ctx context.Context, r *admin.KVPin) (*admin.KVKept, error) {
	f, err := c.sendable(ctx, &r.KVTarget)
	if err != nil {
		return nil, err
	}
	life := time.Duration(0)
	if r.For != "" {
		if life, err = time.ParseDuration(r.For); err != nil {
			return nil, err
		}
	}
	var on []live.Endpoint
	if len(r.Endpoints) > 0 {
		if on, err = f.s.keep.Targets(&f.prompt, r.Endpoints, 0); err != nil {
			return nil, notFound(err)
		}
	}
	if i := slices.IndexFunc(on, func(e live.Endpoint) bool { return !e.Role.Decodes() }); i >= 0 {
		return nil, fmt.Errorf("%s does not generate: nothing can be kept there by asking for it", on[i].Name)
	}
	seen := *f.seen
	seen.Tenant = cmp.Or(r.Tenant, seen.Tenant)
	id, err := f.s.keep.Pin(&seen, on, max(r.Copies, 1), life)
	if err != nil {
		return nil, err
	}
	for _, p := range f.s.keep.List() {
		if p.ID == id {
			return new(keptOut(f.s, &p)), nil
		}
	}
	return nil, errors.New("the pin was let go of at once: it expired, or another took its place")
}

func keptOut(s *served, p *keep.Pinned) admin.KVKept {
	out := admin.KVKept{
		ID: uint64(p.ID), Pool: s.pool.Name(), Source: p.Source.String(), Tenant: p.Tenant, Session: p.Name, Tokens: int(p.Tokens), Copies: p.Copies,
		Endpoints: p.On, Has: append([]string{}, p.Has...), AgeS: p.Age.Seconds(), Error: p.Said,
	}
	if p.Life > 0 {
		out.LeftS = new(p.Until.Seconds())
	}
	return out
}

// Kept implements admin.Caches.
func (c manager) Kept(pool string) (*admin.KVKeptList, error) {
	all := c.app.fleet.pools()
	if pool != "" {
		s, err := c.pool(pool, "")
		if err != nil {
			return nil, err
		}
		all = []*served{s}
	}
	out := &admin.KVKeptList{Kept: []admin.KVKept{}, Pools: []admin.KVKeepPool{}}
	for _, s := range all {
		for _, p := range s.keep.List() {
			out.Kept = append(out.Kept, keptOut(s, &p))
		}
		out.Pools = append(out.Pools, keepOut(s))
	}
	return out, nil
}

func keepOut(s *served) admin.KVKeepPool {
	v := s.keep.Status()
	out := admin.KVKeepPool{
		Pool: s.pool.Name(), Bytes: v.Bytes, MaxBytes: s.keep.Config().MaxBytes, Failed: v.Counts.Failed, Seconds: v.Counts.Seconds,
		Orders: map[string]uint64{}, Refused: map[string]uint64{}, Dropped: map[string]uint64{},
	}
	for why, n := range v.Counts.Orders {
		out.Orders[kv.KeepWhy(why).String()] = n
	}
	for why := range kv.KeepReasons {
		name := kv.KeepReason(why).String()
		if n := v.Counts.Refused[why]; n > 0 {
			out.Refused[name] = n
		}
		if n := v.Counts.Dropped[why]; n > 0 {
			out.Dropped[name] = n
		}
	}
	return out
}

// Unpin implements admin.Caches. Ids are a pool's; without its name the only pool
// is meant.
func (c manager) Unpin(pool string, id uint64) error {
	s, err := c.pool(pool, "")
	if err != nil {
		return err
	}
	if !s.keep.Unpin(kv.KeepID(id)) {
		return fmt.Errorf("pin %d of pool %s: %w", id, s.pool.Name(), admin.ErrNotFound)
	}
	return nil
}

// Clear implements admin.Caches.
func (c manager) Clear(ctx context.Context, r *admin.KVClear) (*admin.KVResults, error) {
	s, err := c.pool(r.Pool, "")
	if err != nil {
		return nil, err
	}
	if len(r.Endpoints) == 0 {
		return nil, fmt.Errorf("say whose cache: endpoints by name, or [%q] for all of pool %s", keep.All, s.pool.Name())
	}
	to, err := s.keep.Targets(nil, r.Endpoints, 0)
	if err != nil {
		return nil, notFound(err)
	}
	out := &admin.KVResults{Pool: s.pool.Name(), Results: []admin.KVResult{}}
	for _, e := range to {
		out.Results = append(out.Results, cleared(ctx, s, e))
	}
	return out, nil
}

func cleared(ctx context.Context, s *served, e live.Endpoint) admin.KVResult {
	got, err := s.keep.Clear(ctx, e)
	r := admin.KVResult{Endpoint: e.Name, Before: new(int(got.Before)), After: new(int(got.After)), Confirmed: new(got.Confirmed)}
	switch {
	case err != nil:
		r.Reason = err.Error()
		return r
	case !got.Confirmed && got.After >= got.Before && got.Before > 0:
		r.Reason = "the engine said yes, and its events do not say so: requests under way keep their blocks; try again when it is idle"
	case !got.Confirmed:
		r.Reason = "the engine said yes; it has no events to confirm it, and what was sent there is forgotten"
	}
	r.Done = got.After < got.Before || got.Before == 0
	s.app.log.Info("cache cleared by an operator", "pool", s.pool.Name(), "endpoint", e.Name, "confirmed", got.Confirmed)
	return r
}

// Quotas implements admin.Caches.
func (c manager) Quotas(pool string) (*admin.KVQuotas, error) {
	s, err := c.pool(pool, "")
	if err != nil {
		return nil, err
	}
	k := s.keep.Config()
	out := &admin.KVQuotas{Pool: s.pool.Name(), Default: int(k.Quota), Tenants: map[string]int{}, Used: map[string]int{}}
	for tenant, q := range k.Quotas {
		out.Tenants[tenant] = int(q)
	}
	for tenant, n := range s.keep.Status().Tokens {
		out.Used[tenant] = int(n)
	}
	return out, nil
}

// SetQuotas implements admin.Caches. They hold until the file is loaded again.
func (c manager) SetQuotas(q *admin.KVQuotas) error {
	s, err := c.pool(q.Pool, "")
	if err != nil {
		return err
	}
	if q.Default < 0 {
		return fmt.Errorf("default: must not be negative, is %d", q.Default)
	}
	k := s.keep.Config()
	k.Quota, k.Quotas = fleet.Tokens(q.Default), map[string]fleet.Tokens{}
	for tenant, n := range q.Tenants {
		if n < 0 {
			return fmt.Errorf("tenants.%s: must not be negative, is %d", tenant, n)
		}
		k.Quotas[tenant] = fleet.Tokens(n)
	}
	s.keep.SetConfig(k)
	return nil
}
