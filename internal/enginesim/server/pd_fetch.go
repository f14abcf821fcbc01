package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/kv"
)

// recomputeBelow is how many tokens are not worth a transfer to vLLM.
const recomputeBelow = 64

// farewell bounds how long an engine tries to tell another that it will not
// fetch.
const farewell = 5 * time.Second

// fetch does what must be done before a request can be computed: it takes over
// KV that is elsewhere, or lets those know who will.
func (s *Server) fetch(ctx context.Context, choices []choice) error {
	if len(choices) == 0 || choices[0].move == nil {
		return nil
	}
	c := &choices[0]
	m := c.move
	if m.source != nil {
		if err := s.fetchPrefix(ctx, c); err != nil {
			return err
		}
	}
	switch {
	case m.keep:
		_, m.dies = s.faults.hit("pd-die-before", false)
		if f, ok := s.faults.hit("pd-expire", false); ok {
			m.lease = new(time.Duration(f.DelayMS * float64(time.Millisecond)))
		}
		if m.name != "" {
			return s.claim(m)
		}
		return nil
	case m.source != nil && m.name == "":
		return nil
	case s.pd == nil || s.pd.options.Connector == Shared:
		return s.fetchShared(ctx, c)
	}
	f := &fetcher{server: s, choice: c, move: m, keys: c.keys()}
	err := f.run(ctx)
	if err != nil && (ctx.Err() != nil || s.stopped()) {
		return errJoined(ctx.Err(), errStopped)
	}
	return err
}

func (s *Server) stopped() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// fetcher is a request whose prompt is computed elsewhere.
type fetcher struct {
	server   *Server
	choice   *choice
	move     *move
	keys     []uint64
	cached   int // blocks that are here
	missing  int // tokens that are not
	address  string
	engineID string // empty if not known
	record   record
}

// run fetches, as far as it is worth it. When it fails, the request fails or is
// computed here.
func (f *fetcher) run(parent context.Context) error {
	s := f.server
	p := s.pd
	ctx, end := s.within(parent, p.options.Wait)
	defer end()
	f.begin()
	defer f.end()
	began := time.Now()
	err := f.find(ctx)
	if err == nil && f.missing < recomputeBelow && p.options.Connector != Rooms {
		f.record.State, f.record.Reason = ticketDone, "not worth a transfer"
		if f.cached*int(enginesim.BlockTokens) >= f.choice.prompt-1 {
			f.record.Reason = "all is cached"
		}
		f.decline()
		return nil
	}
	if err == nil {
		err = f.pull(ctx)
	}
	f.record.TookMS = milliseconds(time.Since(began))
	if err == nil {
		f.record.State = ticketDone
		f.move.received = f.choice.prompt
		if _, ok := s.faults.hit("pd-die-after-pull", false); ok {
			s.die()
		}
		return nil
	}
	f.record.State, f.record.Reason = "failed", err.Error()
	if parent.Err() != nil { // the client has gone
		f.record.State = ticketAborted
		f.decline()
		return parent.Err()
	}
	load, ok := errors.AsType[*loadError](err)
	wrong := ok && load.wrong
	recompute := p.options.LoadFailure == LoadRecompute && p.options.Connector != Rooms && !wrong
	s.count(func(n *counts) {
		n.Failed++
		switch {
		case wrong:
			n.ChecksFailed++
		case recompute:
			n.Recomputed++
		}
	})
	if recompute {
		f.record.Reason += "; computed here"
		return nil
	}
	if p.options.Connector == Rooms {
		return &apiError{http.StatusInternalServerError, fmt.Sprintf("KVTransferError(bootstrap_room=%s): %v", f.move.name, err), ""}
	}
	return &apiError{http.StatusInternalServerError, fmt.Sprintf("Internal server error: KV load: %v", err), ""}
}

// begin looks for what is cached and makes the request one that waits.
func (f *fetcher) begin() {
	s := f.server
	s.mu.Lock()
	defer s.mu.Unlock()
	full := f.choice.prompt / int(enginesim.BlockTokens)
	f.cached = s.engine.Match(kv.TierGPU, f.keys[:full])
	f.missing = f.choice.prompt - f.cached*int(enginesim.BlockTokens)
	f.record = record{ID: f.name(), Side: "in", Tokens: f.missing, Blocks: len(f.keys) - f.cached, State: ticketPulling}
	s.pd.incoming++
}

func (f *fetcher) end() {
	s := f.server
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pd.incoming--
	s.pd.note(f.record)
}

// name is what both legs call the transfer.
func (f *fetcher) name() string {
	if f.move.name != "" {
		return f.move.name
	}
	return f.move.from.RequestID
}

// find learns where the other leg is computed.
func (f *fetcher) find(ctx context.Context) error {
	var err error
	from := &f.move.from
	switch f.server.pd.options.Connector {
	case Rooms:
		f.address, err = f.server.askRoute(ctx, f.move.room)
	case Mooncake:
		f.address, f.engineID, err = f.server.askWorkers(ctx, from.Bootstrap, from.EngineID)
	default:
		f.address, f.engineID = net.JoinHostPort(from.Host, strconv.Itoa(from.Port)), from.EngineID
	}
	f.record.Peer = f.address
	return err
}

// connect opens a connection to the source and makes sure that it is the one
// that is meant, and that its blocks fit in here.
func (f *fetcher) connect(ctx context.Context) (*sideConn, error) {
	s := f.server
	s.mu.Lock()
	id, facts := s.pd.engineID, s.pd.facts
	s.mu.Unlock()
	nc, err := s.pd.dial(ctx, f.address)
	if err != nil {
		return nil, fmt.Errorf("side channel of the prefill engine: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	c := newSideConn(nc)
	c.stop = stop
	var reply sideReply
	err = c.send(sideRequest{Op: "hello", EngineID: f.engineID, Peer: id})
	if err == nil {
		err = c.receive(&reply)
	}
	switch here, there := s.pd.tp, reply.TP; {
	case err != nil:
		err = fmt.Errorf("side channel of the prefill engine: %w", err)
	case reply.Error != "":
		err = fmt.Errorf("the prefill engine refuses: %s", reply.Error)
	case reply.Hash != hashOf(facts):
		err = fmt.Errorf("compatibility hash mismatch: %s", differences(facts, reply.Facts))
	case there > 0 && here%there != 0 && there%here != 0:
		err = fmt.Errorf("incompatible: tp_size %d here, %d there; one must divide the other", here, there)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	if f.engineID == "" {
		f.engineID = reply.EngineID
	}
	return c, nil
}

// pull waits for room, reads the blocks that are missing, checks them and has
// the source free them. The lease is extended meanwhile.
func (f *fetcher) pull(ctx context.Context) error {
	s := f.server
	ctx, cancel := context.WithCancel(ctx)
	var beats sync.WaitGroup
	defer beats.Wait()
	defer cancel()
	own := *f // connections find out the engine id
	beats.Go(func() { own.beat(ctx) })
	leave, err := s.awaitRoom(ctx, len(f.keys))
	if err != nil {
		return err
	}
	defer leave()
	if _, ok := s.faults.hit("pd-die-before-pull", false); ok {
		s.die()
	}
	c, err := f.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	wanted, err := f.wanted()
	if err != nil {
		return err
	}
	var reply sideReply
	if err = c.send(wanted); err == nil {
		err = c.receive(&reply)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("no transfer within %v: %w", s.pd.options.Wait, ctx.Err())
	case err != nil:
		return fmt.Errorf("the transfer broke off: %w", err)
	case reply.Error != "":
		return &loadError{reason: reply.Error}
	case reply.Tokens != f.choice.prompt || reply.Blocks != len(f.keys)-f.cached:
		return &loadError{wrong: true, reason: fmt.Sprintf("%d blocks came of a prompt of %d tokens, not %d of %d",
			reply.Blocks, reply.Tokens, len(f.keys)-f.cached, f.choice.prompt)}
	}
	f.record.Bytes, f.record.WaitedMS = reply.Bytes, reply.WaitedMS
	if err := readBlocks(c.r, f.keys[f.cached:], incarnationOf(f.engineID), f.cached); err != nil {
		return err
	}
	s.count(func(n *counts) { n.Pulled++; n.BytesIn += reply.Bytes })
	if err := c.send(sideRequest{Op: "free", Name: f.name()}); err == nil {
		_ = c.receive(&reply) // all is here: whether the source knows is its lease's business
	}
	return nil
}

// awaits reports whether both legs may have been sent at once, so that the other
// one may be yet to begin.
func (f *fetcher) awaits() bool {
	return f.move.name != "" && f.server.pd.options.Connector != Offload
}

// wanted is the request for what is missing.
func (f *fetcher) wanted() (sideRequest, error) {
	q := sideRequest{Op: "read", Name: f.name(), Skip: f.cached, Tokens: f.missing, Awaited: f.awaits()}
	if f.move.name != "" {
		return q, nil
	}
	blocks, err := blockNumbers(f.move.from.BlockIDs)
	if err != nil {
		return q, err
	}
	if len(blocks) != len(f.keys) {
		return q, &loadError{wrong: true, reason: fmt.Sprintf("%d remote blocks for a prompt of %d", len(blocks), len(f.keys))}
	}
	q.Blocks = blocks[f.cached:]
	return q, nil
}

// beat extends the lease at the source until ctx ends.
func (f *fetcher) beat(ctx context.Context) {
	s := f.server
	if _, ok := s.faults.hit("pd-no-heartbeat", false); ok {
		return
	}
	tick := time.NewTicker(s.pd.options.Lease / 6)
	defer tick.Stop()
	var c *sideConn
	for {
		select {
		case <-ctx.Done():
			if c != nil {
				c.Close()
			}
			return
		case <-tick.C:
		}
		if c == nil {
			c, _ = f.connect(ctx) // the next beat tries again
		}
		if c == nil {
			continue
		}
		var reply sideReply
		err := c.send(sideRequest{Op: "heartbeat", Name: f.name()})
		if err == nil {
			err = c.receive(&reply)
		}
		if err != nil {
			c.Close()
			c = nil
		}
	}
}

// decline tells the source that its blocks will not be fetched. Nobody waits for
// that.
func (f *fetcher) decline() {
	if f.address == "" {
		return
	}
	own := *f
	f.server.later(func() {
		ctx, end := own.server.within(context.Background(), farewell)
		defer end()
		c, err := own.connect(ctx)
		if err != nil {
			return // its lease will end
		}
		defer c.Close()
		var reply sideReply
		if c.send(sideRequest{Op: "free", Name: own.name(), Awaited: own.awaits()}) == nil {
			_ = c.receive(&reply)
		}
	})
}

// awaitRoom waits until the engine has a place and blocks for one more request,
// and keeps them until the function is called: KV that comes must have a place to
// go to.
func (s *Server) awaitRoom(ctx context.Context, blocks int) (leave func(), err error) {
	p := s.pd
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		st := s.engine.Stats()
		idle := st.Running+st.Waiting+p.arriving+st.Kept == 0
		if idle || st.Running+st.Waiting+p.arriving < s.options.MaxSeqs && st.UsedBlocks+p.reserved+blocks <= st.TotalBlocks {
			break
		}
		room := p.room
		s.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			err = fmt.Errorf("no room within %v: %w", p.options.Wait, ctx.Err())
		}
		s.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
	p.arriving++
	p.reserved += blocks
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		p.arriving--
		p.reserved -= blocks
		s.rousePD()
	}, nil
}
