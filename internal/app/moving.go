package app

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/transfer"
)

// moving is a ticket of the gateway's own.
type moving struct {
	x              *exchanger
	id             string
	source, answer string  // incarnations
	tokenBytes     float64 // of KV; 0 when not known
	within         time.Duration
	over           atomic.Bool
}

// party is a side of a transfer: a registered instance, or one that the gateway
// registers for an engine that says nothing.
type party struct {
	instance exchange.Instance
	told     bool // by the engine itself
}

// Begin implements gateway.Transfers.
func (x *exchanger) Begin(m gateway.Move, stop func(error)) (gateway.Moving, error) {
	src, dst := x.party(m.Pool, m.From), x.party(m.Pool, m.To)
	k := &moving{x: x, id: m.ID, within: min(m.Within, exchange.MaxLease), tokenBytes: x.tokenBytes(m, &src)}
	if m.Pull {
		k.within = exchange.MaxLease // the engine's usage tells what has come, at the end of its answer
	}
	ended := func(t exchange.Ticket) {
		k.over.Store(true)
		stop(fmt.Errorf("it is %s: %s", t.Stage, cmp.Or(t.Reason, "no reason was given")))
	}
	var t exchange.Ticket
	err := exchange.ErrUnknown
	if src.instance.ID != dst.instance.ID {
		t, err = k.plan(m.Tokens, &src, &dst, ended)
	}
	if errors.Is(err, exchange.ErrUnknown) {
		// A lease has ended just now, or these are two ranks of one server.
		src, dst = x.unnamed(m.Pool, m.From), x.unnamed(m.Pool, m.To)
		t, err = k.plan(m.Tokens, &src, &dst, ended)
	}
	switch {
	case errors.Is(err, exchange.ErrIncompatible):
		x.kick() // the pool does not know yet
		return nil, fmt.Errorf("%w: %w", gateway.ErrPair, err)
	case err != nil:
		return nil, err
	}
	k.source, k.answer = t.SourceIncarnation, t.ConsumerIncarnation
	return k, k.step(func(now fleet.Time, b *exchange.Book) error {
		_, err := b.Prefilling(now, k.id, k.source)
		return err
	})
}

// plan orders k's ticket. Ids are clients' to choose: one that exists already is
// made unique.
func (k *moving) plan(tokens fleet.Tokens, src, dst *party, ended func(exchange.Ticket)) (t exchange.Ticket, err error) {
	prepare := func(now fleet.Time, b *exchange.Book) error {
		for _, side := range []*party{src, dst} {
			if side.told {
				continue
			}
			if _, err := b.Register(now, side.instance, exchange.MaxLease); err != nil {
				return err
			}
		}
		return nil
	}
	o := exchange.Order{
		Source: src.instance.ID, Consumer: dst.instance.ID, Judged: !src.told || !dst.told,
		Tokens: int64(tokens), Bytes: int64(float64(tokens) * k.tokenBytes),
	}
	const tries = 2
	for range tries {
		o.ID = k.id
		if t, err = k.x.server.Plan(o, prepare, ended); !errors.Is(err, exchange.ErrState) {
			break
		}
		k.id += "." + rand.Text()[:8]
	}
	return t, err
}

// party returns what an endpoint is in the exchange.
func (x *exchanger) party(p *live.Pool, e live.Endpoint) party {
	if i := x.found.Load().is[p.Name()][e.ID]; i != nil {
		return party{*i, true}
	}
	return x.unnamed(p, e)
}

// unnamed is an engine that says nothing, as far as the gateway knows it. Its
// incarnation is the endpoint's generation: another process behind the same
// address is known by the engines themselves.
func (x *exchanger) unnamed(p *live.Pool, e live.Endpoint) party {
	i := exchange.Instance{
		ID: transfer.Unnamed + p.Name() + "/" + e.Name, Incarnation: x.nonce + "-" + strconv.FormatUint(uint64(e.Gen), 10),
		Role: e.Role.String(), Weights: exchange.Weights{Model: p.Name()}, Connector: exchange.Connector{Name: e.Transfer.Connector},
		Cache: exchange.Cache{BlockTokens: int(e.Limits.BlockTokens)},
	}
	if s := x.app.fleet.byName(p.Name()); s != nil {
		s.describe(&i, e)
	}
	if len(i.ID) > exchange.MaxName {
		i.ID = i.ID[:exchange.MaxName]
	}
	return party{i, false}
}

// describe adds what configuration says of an engine.
func (s *served) describe(i *exchange.Instance, e live.Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i.Weights.Model, i.Engine = s.config.Model, s.config.Dialect
	for n := range s.config.Variants {
		v := &s.config.Variants[n]
		if variantID(v.Name) != e.Variant {
			continue
		}
		c := v.Serving().Normal()
		i.Parallel = exchange.Parallel{TP: c.TP, PP: c.PP, DP: c.DP}
		i.Cache.DType, i.Weights.DType = c.KV.String(), c.Weights.String()
		i.Cache.Layers, i.Cache.KVHeads, i.Cache.HeadSize = c.Shape.AttentionLayers(), c.Shape.KVHeads, c.Shape.HeadDim
	}
}

// tokenBytes is the KV of one token of the prompt; 0 when nobody knows.
func (x *exchanger) tokenBytes(m gateway.Move, src *party) float64 {
	if s := x.app.fleet.byName(m.Pool.Name()); s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		for n := range s.config.Variants {
			if v := &s.config.Variants[n]; variantID(v.Name) == m.From.Variant {
				c := v.Serving().Normal()
				return c.Shape.KVBytes(c.KV.Bytes())
			}
		}
	}
	return src.instance.TokenBytes()
}

// step does something with the ticket, if it is not over.
func (k *moving) step(f func(fleet.Time, *exchange.Book) error) error {
	var err error
	k.x.server.Do(func(now fleet.Time, b *exchange.Book) { err = f(now, b) })
	return err
}

// Ready implements gateway.Moving.
func (k *moving) Ready() error {
	return k.step(func(now fleet.Time, b *exchange.Book) error {
		if _, err := b.Ready(now, k.id, k.source, 0, 0); err != nil {
			return err
		}
		return b.Readable(now, k.id)
	})
}

// Pulling implements gateway.Moving. From when the engine that answers has seen
// the request it renews the other's lease itself.
func (k *moving) Pulling() {
	_ = k.step(func(now fleet.Time, b *exchange.Book) error { // over already, then
		_, err := b.Pulling(now, k.id, k.answer, k.within)
		return err
	})
}

// Moved implements gateway.Moving.
func (k *moving) Moved(m live.Moved) {
	if m.Tokens == 0 {
		k.close(fleet.FailNone, "nothing of it has come")
		return
	}
	k.finish(exchange.Outcome{
		Bytes: int64(float64(m.Tokens) * k.tokenBytes), Tokens: int64(m.Tokens), Took: m.Took, Expected: m.Expected, Untimed: m.Took == 0,
	})
}

// finish closes the ticket as done, from whatever stage it is in.
func (k *moving) finish(o exchange.Outcome) {
	if k.over.Swap(true) {
		return
	}
	k.x.server.Forget(k.id)
	_ = k.step(func(now fleet.Time, b *exchange.Book) error { // closed by somebody else, then
		_, _ = b.Ready(now, k.id, k.source, 0, 0) // where both engines were asked at once
		_, err := b.Finish(now, k.id, k.answer, o)
		return err
	})
}

// End implements gateway.Moving.
func (k *moving) End(f fleet.Failure, why error) {
	if f == fleet.FailNone && why == nil {
		k.finish(exchange.Outcome{Untimed: true})
		return
	}
	reason := ""
	if why != nil {
		reason = shortened(why.Error())
	}
	k.close(f, reason)
}

// close closes the ticket as failed, or given up.
func (k *moving) close(f fleet.Failure, reason string) {
	if k.over.Swap(true) {
		return
	}
	k.x.server.Forget(k.id)
	_ = k.step(func(now fleet.Time, b *exchange.Book) error { // closed by somebody else, then
		var err error
		if f == fleet.FailNone {
			_, err = b.Abort(now, k.id, reason)
		} else {
			_, err = b.Fail(now, k.id, f, reason)
		}
		return err
	})
}

// shortened makes a reason one that can be kept.
func shortened(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	return strings.ToValidUTF8(s[:min(len(s), exchange.MaxName)], "")
}
