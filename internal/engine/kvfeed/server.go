package kvfeed

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"penstock.dev/penstock/internal/kv"
)

// ReplayOptions says how batches of the past are kept and handed out.
type ReplayOptions struct {
	Steps     int           // batches kept; 0 is 10,000, as engines have it
	Topicless bool          // replies in the old form, which does not name the topic
	Delay     time.Duration // before each reply
	Off       bool          // requests are not answered
}

const (
	defaultSteps = 10_000
	maxRing      = 64 << 20 // bytes of payloads kept
)

// ReplayServer is the ROUTER side: it keeps the last batches, and sends whoever
// asks those from a sequence number on.
type ReplayServer struct {
	mu    sync.Mutex
	o     ReplayOptions
	ring  []pastBatch // oldest first, from head on
	head  int
	bytes int
}

type pastBatch struct {
	seq            uint64
	topic, payload []byte
}

// NewReplayServer returns a server that keeps nothing yet.
func NewReplayServer(o ReplayOptions) *ReplayServer {
	s := &ReplayServer{}
	s.Tune(o)
	return s
}

// Tune changes how replays are served from now on.
func (s *ReplayServer) Tune(o ReplayOptions) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.Steps <= 0 {
		o.Steps = defaultSteps
	}
	s.o = o
	s.shrink()
}

// Keep adds a batch, which must not change afterwards. Batches come in order.
func (s *ReplayServer) Keep(seq uint64, topic, payload []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.head > len(s.ring)/2 {
		kept := copy(s.ring, s.ring[s.head:])
		clear(s.ring[kept:])
		s.ring, s.head = s.ring[:kept], 0
	}
	s.ring = append(s.ring, pastBatch{seq, topic, payload})
	s.bytes += len(payload)
	s.shrink()
}

func (s *ReplayServer) shrink() {
	for len(s.ring)-s.head > s.o.Steps || s.bytes > maxRing {
		s.bytes -= len(s.ring[s.head].payload)
		s.ring[s.head] = pastBatch{}
		s.head++
	}
}

// Forget drops all that is kept, as a new process would have it.
func (s *ReplayServer) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ring, s.head, s.bytes = nil, 0, 0
}

// since returns what is kept from seq on.
func (s *ReplayServer) since(seq uint64) ([]pastBatch, ReplayOptions) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.ring[s.head:]
	for len(kept) > 0 && kept[0].seq < seq {
		kept = kept[1:]
	}
	return slices.Clone(kept), s.o
}

// Serve speaks with one peer until it leaves. Requests that cannot be read are
// not answered, as engines do it.
func (s *ReplayServer) Serve(nc net.Conn) error {
	c, err := NewConn(nc, "ROUTER")
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		frames, err := c.Receive()
		if err != nil {
			return err
		}
		if len(frames) != 2 || len(frames[0]) != 0 || len(frames[1]) != 8 {
			continue
		}
		if err := s.reply(c, binary.BigEndian.Uint64(frames[1])); err != nil {
			return err
		}
	}
}

func (s *ReplayServer) reply(c *Conn, from uint64) error {
	past, o := s.since(from)
	if o.Off {
		return nil
	}
	for _, b := range append(past, pastBatch{seq: kv.EndOfReplay}) {
		if o.Delay > 0 {
			time.Sleep(o.Delay) // a peer that leaves meanwhile is found out by the next reply
		}
		frames := [][]byte{nil, b.topic, binary.BigEndian.AppendUint64(nil, b.seq), b.payload}
		if o.Topicless {
			frames = slices.Delete(frames, 1, 2)
		}
		if err := c.Send(frames...); err != nil {
			return err
		}
	}
	return nil
}

// SourceOptions says what a Source is like.
type SourceOptions struct {
	Topic  string
	First  uint64 // sequence number of a process's first batch; 0 with vLLM and SGLang
	Room   int    // batches queued for one subscriber; 0 is 100,000, as engines have it
	Replay ReplayOptions
}

// Source is what one rank of an engine publishes with: a PUB, and a ROUTER with
// its ring.
type Source struct {
	topic  []byte
	first  uint64
	pub    *Publisher
	replay *ReplayServer

	mu    sync.Mutex
	next  uint64
	conns map[net.Conn]struct{}
}

const defaultRoom = 100_000

// NewSource returns a source that has published nothing.
func NewSource(o SourceOptions) *Source {
	if o.Room <= 0 {
		o.Room = defaultRoom
	}
	return &Source{
		topic: []byte(o.Topic), first: o.First, next: o.First, pub: NewPublisher(o.Room), replay: NewReplayServer(o.Replay),
		conns: map[net.Conn]struct{}{},
	}
}

// Publish sends payload, which must not change afterwards, as the next batch. It
// returns its number, and for how many subscribers there was no room.
func (s *Source) Publish(payload []byte) (seq uint64, missed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seq = s.keep(payload)
	return seq, s.pub.Publish(s.topic, binary.BigEndian.AppendUint64(nil, seq), payload)
}

// Lose is Publish of a batch that nobody gets but by replay.
func (s *Source) Lose(payload []byte) (seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keep(payload)
}

func (s *Source) keep(payload []byte) uint64 {
	seq := s.next
	s.next++
	s.replay.Keep(seq, s.topic, payload)
	return seq
}

// Tune changes how replays are served from now on.
func (s *Source) Tune(o ReplayOptions) { s.replay.Tune(o) }

// Restart makes s a new process: nothing of the past is kept, numbers begin
// again, and connections end.
func (s *Source) Restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = s.first
	s.replay.Forget()
	for nc := range s.conns {
		nc.Close()
	}
}

// Serve serves subscribers at pub and, unless it is nil, replays at replay until
// ctx ends, which is what it returns. It closes both.
func (s *Source) Serve(ctx context.Context, pub, replay net.Listener) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	if replay != nil {
		serving.Go(func() { s.accept(ctx, replay, s.replay.Serve) })
	}
	s.accept(ctx, pub, s.pub.Serve)
	return ctx.Err()
}

// Connect publishes to the listening SUB at an address until ctx ends, for
// gateways to which engines connect. A nil dial is the network.
func (s *Source) Connect(ctx context.Context, dial Dialer, network, address string) error {
	if dial == nil {
		dial = dialer()
	}
	for tries := 0; ctx.Err() == nil; tries++ {
		if nc, err := dial(ctx, network, address); err == nil {
			begun := time.Now()
			s.speak(ctx, nc, s.pub.Serve)
			if time.Since(begun) > settled {
				tries = 0
			}
		}
		pause(ctx, wait(tries))
	}
	return ctx.Err()
}

// accept serves connections until ctx ends.
func (s *Source) accept(ctx context.Context, l net.Listener, serve func(net.Conn) error) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	for tries := 0; ctx.Err() == nil; {
		nc, err := l.Accept()
		switch {
		case err == nil:
			tries = 0
			serving.Go(func() { s.speak(ctx, nc, serve) })
		case errors.Is(err, net.ErrClosed):
			return
		default:
			pause(ctx, wait(tries))
			tries++
		}
	}
}

// speak serves one connection, which ends with ctx and with the process.
func (s *Source) speak(ctx context.Context, nc net.Conn, serve func(net.Conn) error) {
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	s.mu.Lock()
	s.conns[nc] = struct{}{}
	s.mu.Unlock()
	_ = serve(nc) // it ends when the peer leaves
	nc.Close()
	s.mu.Lock()
	delete(s.conns, nc)
	s.mu.Unlock()
}
