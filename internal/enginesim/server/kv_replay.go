package server

import (
	"encoding/binary"
	"net"
	"slices"
	"time"

	"penstock.dev/penstock/internal/engine/kvfeed"
	"penstock.dev/penstock/internal/kv"
)

// The forms of a replay's messages.
const (
	ReplayTopic     = "topic"     // the topic before the sequence number, as vLLM does since 0.26
	ReplayTopicless = "topicless" // none, as older ones and SGLang
	ReplayOff       = "off"       // requests are not answered
)

// ServeKVEvents speaks with one subscriber to KV events until it leaves. The
// server must publish them; see Options.KVEvents.
func (s *Server) ServeKVEvents(nc net.Conn) error {
	return s.kv.serve(nc, s.kv.pub.Serve)
}

// ServeKVReplay answers one client's requests for replays until it leaves. The
// server must publish KV events.
func (s *Server) ServeKVReplay(nc net.Conn) error {
	return s.kv.serve(nc, s.replay)
}

// serve has use speak over nc, which a restart and the engine's end close.
func (f *feed) serve(nc net.Conn, use func(net.Conn) error) error {
	defer nc.Close()
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return errStopped
	}
	f.conns[nc] = struct{}{}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.conns, nc)
	}()
	return use(nc)
}

// disconnect closes all connections.
func (f *feed) disconnect() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for nc := range f.conns {
		nc.Close()
	}
}

// shut closes all connections, those to come as well.
func (f *feed) shut() {
	if f == nil {
		return
	}
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.disconnect()
}

// replay answers requests: an empty frame and the first number that is wanted.
// Others are passed over, as engines do.
func (s *Server) replay(nc net.Conn) error {
	c, err := kvfeed.NewConn(nc, "ROUTER")
	for err == nil {
		var frames [][]byte
		if frames, err = c.Receive(); err != nil {
			break
		}
		if n := len(frames); n != 2 || len(frames[0]) != 0 || len(frames[1]) != 8 {
			continue
		}
		err = s.answerReplay(c, binary.BigEndian.Uint64(frames[1]))
	}
	return err
}

// answerReplay sends the messages kept from seq on, and the end mark.
func (s *Server) answerReplay(c *kvfeed.Conn, seq uint64) error {
	f := s.kv
	if _, off := s.faults.hit("kv-replay-off", false); off || f.form == ReplayOff {
		return nil
	}
	slow, _ := s.faults.hit("kv-replay-slow", false)
	f.mu.Lock()
	ring := slices.Clone(f.ring)
	f.mu.Unlock()
	if short, ok := s.faults.hit("kv-ring-short", false); ok {
		ring = ring[max(0, len(ring)-short.Batches):]
	}
	for _, m := range ring {
		if m.seq < seq {
			continue
		}
		if err := s.linger(slow.DelayMS); err != nil {
			return err
		}
		if err := f.sendReplay(c, f.topic, m); err != nil {
			return err
		}
	}
	return f.sendReplay(c, nil, kvMessage{seq: kv.EndOfReplay})
}

func (f *feed) sendReplay(c *kvfeed.Conn, topic []byte, m kvMessage) error {
	number := binary.BigEndian.AppendUint64(nil, m.seq)
	if f.form == ReplayTopic {
		return c.Send(nil, topic, number, m.payload)
	}
	return c.Send(nil, number, m.payload)
}

// linger waits for so many milliseconds, unless the engine stops.
func (s *Server) linger(ms float64) error {
	if ms <= 0 {
		return nil
	}
	t := time.NewTimer(time.Duration(ms * float64(time.Millisecond)))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-s.closed:
		return errStopped
	}
}
