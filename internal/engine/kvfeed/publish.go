package kvfeed

import (
	"bytes"
	"net"
	"sync"
)

// Publisher is the PUB side: what it publishes goes to whoever has subscribed.
// A subscriber that does not keep up misses messages, as with every PUB: its
// queue never grows.
type Publisher struct {
	room int // messages queued for one subscriber

	mu   sync.Mutex
	subs map[*subscriber]struct{}
}

type subscriber struct {
	queue    chan [][]byte
	done     chan struct{}
	prefixes [][]byte // guarded by the publisher's lock
}

// NewPublisher returns a publisher that queues up to room messages for each
// subscriber.
func NewPublisher(room int) *Publisher {
	return &Publisher{room: room, subs: map[*subscriber]struct{}{}}
}

// Publish sends a message, which must not change afterwards, to those who
// subscribed to a prefix of its first frame. It returns for how many there was
// no room.
func (p *Publisher) Publish(frames ...[]byte) (missed int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.subs {
		if !s.wants(frames[0]) {
			continue
		}
		select {
		case s.queue <- frames:
		default:
			missed++
		}
	}
	return missed
}

func (s *subscriber) wants(topic []byte) bool {
	for _, prefix := range s.prefixes {
		if bytes.HasPrefix(topic, prefix) {
			return true
		}
	}
	return false
}

// Serve speaks with one subscriber until it leaves.
func (p *Publisher) Serve(nc net.Conn) error {
	c, err := NewConn(nc, "PUB")
	if err != nil {
		return err
	}
	s := &subscriber{queue: make(chan [][]byte, p.room), done: make(chan struct{})}
	p.mu.Lock()
	p.subs[s] = struct{}{}
	p.mu.Unlock()
	var sending sync.WaitGroup
	sending.Go(func() { s.send(c) })
	for err == nil {
		var frames [][]byte
		if frames, err = c.Receive(); err == nil && len(frames) == 1 && len(frames[0]) > 0 {
			p.subscribe(s, frames[0][0] == 1, frames[0][1:])
		}
	}
	p.mu.Lock()
	delete(p.subs, s)
	p.mu.Unlock()
	close(s.done)
	c.Close()
	sending.Wait()
	return err
}

func (s *subscriber) send(c *Conn) {
	for {
		select {
		case <-s.done:
			return
		case frames := <-s.queue:
			if c.Send(frames...) != nil {
				c.Close()
				return
			}
		}
	}
}

// maxPrefixes bounds the subscriptions of one peer.
const maxPrefixes = 64

func (p *Publisher) subscribe(s *subscriber, on bool, prefix []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on && len(s.prefixes) < maxPrefixes {
		s.prefixes = append(s.prefixes, bytes.Clone(prefix))
		return
	}
	for i, known := range s.prefixes {
		if !on && bytes.Equal(known, prefix) {
			s.prefixes = append(s.prefixes[:i], s.prefixes[i+1:]...)
			return
		}
	}
}
