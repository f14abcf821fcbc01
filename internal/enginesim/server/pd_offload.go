package server

import (
	"context"
	"errors"
	"net"
	"strconv"
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/kv"
)

// joinOffload finds the part of a request whose blocks go between peers.
func (p *pd) joinOffload(m *move, k *kvParams) (bool, error) {
	if k.Decoder != nil && k.Prefiller != nil {
		return false, badRequest("kv_transfer_params", "kv_transfer_params: remote_decoder and remote_prefiller exclude each other")
	}
	for _, other := range []*peer{k.Decoder, k.Prefiller, k.Source} {
		if other != nil && other.ID == "" {
			return false, badRequest("kv_transfer_params", "kv_transfer_params: kv_request_id must be given")
		}
	}
	m.source = k.Source
	switch {
	case k.Decoder != nil:
		m.keep, m.name = true, k.Decoder.ID
	case k.Prefiller != nil:
		m.name, m.from = k.Prefiller.ID, kvParams{Host: k.Prefiller.Host, Port: k.Prefiller.Port}
	}
	return m.keep || m.name != "" || m.source != nil, nil
}

// prefix is what has come from a source.
type prefix struct {
	blocks int // that came, from the first one missing on
	reply  sideReply
}

// fetchPrefix takes over what a peer has of a prompt's prefix and this engine has
// not. What does not come is computed here: that is no failure.
func (s *Server) fetchPrefix(ctx context.Context, c *choice) error {
	const size = int(enginesim.BlockTokens)
	from, keys := c.move.source, c.keys()[:c.prompt/size]
	s.mu.Lock()
	here := s.engine.Match(kv.TierGPU, keys)
	s.mu.Unlock()
	if here == len(keys) {
		return nil
	}
	r := record{ID: from.ID, Side: "pull", Peer: net.JoinHostPort(from.Host, strconv.Itoa(from.Port)), State: ticketDone}
	began := time.Now()
	got, err := s.pullPrefix(ctx, r.Peer, keys, here)
	r.TookMS, r.WaitedMS, r.Bytes = milliseconds(time.Since(began)), got.reply.WaitedMS, got.reply.Bytes
	r.Blocks, r.Tokens = got.blocks, got.blocks*size
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.State, r.Reason = "failed", err.Error()+"; computed here"
	}
	load, ok := errors.AsType[*loadError](err)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := &s.pd.counts
	n.Prefixes++
	switch {
	case ok && load.wrong:
		n.ChecksFailed++
		n.PrefixesMissed++
	case err != nil || got.blocks == 0:
		n.PrefixesMissed++
	default:
		n.PrefixBlocks += got.blocks
		n.BytesIn += got.reply.Bytes
		c.move.received = (here + got.blocks) * size
	}
	s.pd.note(r)
	return nil
}

// pullPrefix fetches blocks from the one at index first on.
func (s *Server) pullPrefix(parent context.Context, address string, keys []uint64, first int) (got prefix, err error) {
	ctx, end := s.within(parent, s.pd.options.Wait)
	defer end()
	f := &fetcher{server: s, address: address}
	c, err := f.connect(ctx)
	if err != nil {
		s.stall(ctx)
		return got, err
	}
	defer c.Close()
	if err := c.send(sideRequest{Op: "prefix", Keys: keys, Skip: first}); err != nil {
		return got, err
	}
	if err := c.receive(&got.reply); err != nil {
		return got, err
	}
	if n := got.reply.Blocks; n < 0 || n > len(keys)-first {
		return got, &loadError{wrong: true, reason: "more blocks came than were asked for"}
	}
	if err := readBlocks(c.r, keys[first:first+got.reply.Blocks], incarnationOf(f.engineID), first); err != nil {
		return got, err
	}
	got.blocks = got.reply.Blocks
	return got, nil
}

// stall is what a source that does not answer costs: a moment, or, as with real
// engines, all the time that the client has.
func (s *Server) stall(ctx context.Context) {
	if _, ok := s.faults.hit("pd-pull-stall", false); ok {
		<-ctx.Done()
		return
	}
	_ = sleep(ctx, s.pd.options.PullStall) // whoever waits looks at the context itself
}

// sendPrefix sends a peer the blocks of a prompt's prefix that are here, at any
// tier, from the one on that it lacks.
func (c *source) sendPrefix(ctx context.Context, q sideRequest) error {
	s := c.server
	if q.Skip < 0 || q.Skip > len(q.Keys) {
		return c.refuse("there are no such blocks")
	}
	if _, ok := s.faults.hit("pd-hang", false); ok {
		<-ctx.Done()
		return ctx.Err()
	}
	slow := 1.0
	if f, ok := s.faults.hit("pd-slow-link", false); ok {
		slow = f.Factor
	}
	s.mu.Lock()
	p := s.pd
	n := s.cachedLocked(q.Keys[q.Skip:])
	tokens := n * int(enginesim.BlockTokens)
	bytes := p.bytes * float64(tokens)
	incarnation := p.incarnation
	var wait, took time.Duration
	if n > 0 {
		wait, took = p.reserve(tokens, slow)
		p.counts.PrefixesServed++
		p.counts.BytesOut += bytes
	}
	s.mu.Unlock()
	if err := sleep(ctx, wait+took); err != nil {
		return err
	}
	if err := c.send(sideReply{Blocks: n, Tokens: tokens, Bytes: bytes, WaitedMS: milliseconds(wait)}); err != nil {
		return err
	}
	_, wrong := s.faults.hit("pd-wrong-block", false)
	t := &ticket{keys: q.Keys[:q.Skip+n], incarnation: incarnation}
	indexes := make([]int, n)
	for i := range indexes {
		indexes[i] = q.Skip + i
	}
	return c.sendBlocks(t, indexes, wrong)
}

// cachedLocked is how many of the keys, from the first on, are cached at any tier.
func (s *Server) cachedLocked(keys []uint64) int {
	n := 0
	for n < len(keys) {
		best := 0
		for tier := range kv.Tier(kv.Tiers) {
			best = max(best, s.engine.Match(tier, keys[n:]))
		}
		if best == 0 {
			break
		}
		n += best
	}
	return n
}
