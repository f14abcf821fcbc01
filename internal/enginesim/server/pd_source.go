package server

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// dialTCP is the way to an engine's side channel.
func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// within returns a context that ends with parent, after d unless that is 0, or
// when the engine stops; the function ends it, too.
func (s *Server) within(parent context.Context, d time.Duration) (context.Context, func()) {
	var ctx context.Context
	var cancel context.CancelFunc
	if d > 0 {
		ctx, cancel = context.WithTimeout(parent, d)
	} else {
		ctx, cancel = context.WithCancel(parent)
	}
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-s.closed:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, func() { cancel(); watch.Wait() }
}

// ServeTransfers hands out KV on a connection of the side channel, until its
// peer leaves or the engine stops.
func (s *Server) ServeTransfers(nc net.Conn) error {
	defer nc.Close()
	if _, gone := s.faults.hit("pd-side-gone", false); gone || s.pd == nil {
		return nil
	}
	ctx, end := s.within(context.Background(), 0)
	defer end()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	c := &source{server: s, sideConn: newSideConn(nc)}
	if err := c.hello(); err != nil {
		return err
	}
	s.mu.Lock()
	s.pd.conns[nc] = c.peer
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.pd.conns, nc)
	}()
	for {
		var q sideRequest
		if err := c.receive(&q); err != nil {
			return err
		}
		if err := c.serve(ctx, q); err != nil {
			return err
		}
	}
}

// source is one who fetches, seen from where it does.
type source struct {
	*sideConn
	server *Server
	peer   string
}

// hello lets nobody in who looks for another process.
func (c *source) hello() error {
	var q sideRequest
	if err := c.receive(&q); err != nil {
		return err
	}
	s := c.server
	_, older := s.faults.hit("pd-incompatible", false)
	_, blind := s.faults.hit("pd-stale", false)
	s.mu.Lock()
	p := s.pd
	facts, id, clock := slices.Clone(p.facts), p.engineID, p.clock(time.Now())
	s.mu.Unlock()
	if older {
		facts[1] = "connector " + p.options.Connector + " 11"
	}
	c.peer = q.Peer
	reply := sideReply{EngineID: id, Hash: hashOf(facts), Facts: facts, TP: p.tp, Clock: clock}
	if q.Op != "hello" {
		reply.Error = "the first word must be hello"
	}
	if q.EngineID != "" && q.EngineID != id {
		if !blind {
			reply.Error = fmt.Sprintf("stale incarnation: this is engine %s, not %s", id, q.EngineID)
		}
		reply.EngineID = q.EngineID
	}
	if reply.Error != "" {
		s.count(func(n *counts) { n.Refused++ })
		return errJoined(c.send(reply), fmt.Errorf("side channel: %s", reply.Error))
	}
	return c.send(reply)
}

// errJoined is the first of two errors that there is.
func errJoined(first, second error) error {
	if first != nil {
		return first
	}
	return second
}

func (c *source) serve(ctx context.Context, q sideRequest) error {
	switch q.Op {
	case "read":
		return c.read(ctx, q)
	case "prefix":
		return c.sendPrefix(ctx, q)
	case "free":
		c.server.freeTicket(q)
		return c.send(sideReply{})
	case "heartbeat":
		return c.send(sideReply{Error: c.server.heartbeat(q.Name)})
	}
	return fmt.Errorf("side channel: %q is not known", q.Op)
}

// freeTicket ends a transfer: it has been fetched, or nobody will.
func (s *Server) freeTicket(q sideRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.pd.tickets[q.Name]
	switch {
	case t == nil && q.Awaited: // its prompt's leg will find out
		t = s.pd.newTicket(q.Name)
		t.state, t.unwanted, t.until = ticketAwaited, true, time.Now().Add(s.pd.options.Wait)
	case t == nil:
	case t.id == 0:
		t.unwanted = true
	case t.state == ticketPulling:
		s.closeTicket(t, ticketDone, "")
	default:
		s.closeTicket(t, ticketDone, "not wanted")
	}
	nudge(s.wake)
}

// heartbeat extends a lease by two thirds, counted from now.
func (s *Server) heartbeat(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pd
	p.counts.Heartbeats++
	t := p.tickets[name]
	if t == nil {
		return "nothing of that name is kept"
	}
	if until := time.Now().Add(p.options.Lease * 2 / 3); until.After(t.until) && t.state != ticketAwaited {
		t.until = until
	}
	return ""
}

// read waits for the prompt, if need be, and for the link, and sends blocks.
func (c *source) read(ctx context.Context, q sideRequest) error {
	s := c.server
	t, reason := s.awaitTicket(ctx, q)
	if reason == "" {
		_, reason = t.wanted(q)
	}
	if reason != "" {
		return c.refuse(reason)
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
	t.state = ticketPulling
	wait, took := s.pd.reserve(q.Tokens, slow)
	bytes := s.pd.bytes * float64(q.Tokens)
	s.mu.Unlock()
	if err := sleep(ctx, wait+took); err != nil {
		return err
	}
	s.mu.Lock()
	over := s.pd.tickets[q.Name] != t
	if !over && t.state == ticketPulling {
		s.pd.counts.Served++
		s.pd.counts.BytesOut += bytes
		indexes, _ := t.wanted(q)
		t.sent = record{Peer: c.peer, Tokens: q.Tokens, Blocks: len(indexes), Bytes: bytes, WaitedMS: milliseconds(wait), TookMS: milliseconds(wait + took)}
	}
	s.mu.Unlock()
	if over {
		return c.refuse(fmt.Sprintf("the blocks of %s were freed while they were fetched: %s %s", q.Name, t.state, t.reason))
	}
	indexes, _ := t.wanted(q)
	reply := sideReply{Blocks: len(indexes), Tokens: t.tokens, Bytes: bytes, WaitedMS: milliseconds(wait)}
	if err := c.send(reply); err != nil {
		return err
	}
	_, wrong := s.faults.hit("pd-wrong-block", false)
	return c.sendBlocks(t, indexes, wrong)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (c *source) refuse(reason string) error {
	c.server.count(func(n *counts) { n.Refused++ })
	return c.send(sideReply{Error: reason})
}

func (c *source) sendBlocks(t *ticket, indexes []int, wrong bool) error {
	var b []byte
	for n, i := range indexes {
		key := t.keys[i]
		if wrong && n == len(indexes)/2 {
			key++
		}
		b = appendBlock(b, key, t.incarnation, i)
	}
	_, err := c.Write(b)
	return err
}

// wanted returns which blocks of the prompt are to be sent, or why none.
func (t *ticket) wanted(q sideRequest) (indexes []int, reason string) {
	if q.Blocks == nil {
		if q.Skip < 0 || q.Skip > len(t.keys) {
			return nil, fmt.Sprintf("%s has %d blocks, not %d", t.name, len(t.keys), q.Skip)
		}
		for i := q.Skip; i < len(t.keys); i++ {
			indexes = append(indexes, i)
		}
		return indexes, ""
	}
	for _, b := range q.Blocks {
		i := slices.Index(t.blocks, b)
		if i < 0 {
			return nil, fmt.Sprintf("block %d is not kept for %s", b, t.name)
		}
		indexes = append(indexes, i)
	}
	return indexes, ""
}

// awaitTicket finds what is to be fetched, and waits for it if both legs have
// been sent at once.
func (s *Server) awaitTicket(ctx context.Context, q sideRequest) (*ticket, string) {
	s.mu.Lock()
	t := s.pd.tickets[q.Name]
	if t == nil && q.Awaited && !slices.Contains(s.pd.over, q.Name) {
		t = s.pd.newTicket(q.Name)
		t.state, t.until = ticketAwaited, time.Now().Add(s.pd.options.Wait)
		nudge(s.wake)
	}
	if t != nil {
		t.waiting++
	}
	s.mu.Unlock()
	if t == nil {
		if _, blind := s.faults.hit("pd-stale", false); blind {
			return s.stale(q), ""
		}
		return nil, fmt.Sprintf("nothing is kept for %s: it was freed, its lease has ended, or it never was", q.Name)
	}
	select {
	case <-t.ready:
	case <-ctx.Done():
		return nil, "the engine stops"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.waiting--
	if s.pd.tickets[q.Name] != t {
		return nil, fmt.Sprintf("%s: %s: %s", q.Name, t.state, t.reason)
	}
	return t, ""
}

// stale is what an engine without a check for incarnations has at the blocks of a
// process before it.
func (s *Server) stale(q sideRequest) *ticket {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pd
	t := &ticket{name: q.Name, state: ticketReady, ready: make(chan struct{}), blocks: q.Blocks, tokens: q.Tokens, incarnation: p.incarnation}
	for _, b := range q.Blocks {
		t.keys = append(t.keys, uint64(b)^p.incarnation)
	}
	p.tickets[q.Name] = t
	t.until = time.Now().Add(p.options.Lease)
	t.open()
	return t
}

// sleep waits for d, unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
