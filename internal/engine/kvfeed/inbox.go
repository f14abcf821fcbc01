package kvfeed

import "sync"

// What a message in an inbox says.
type signal uint8

const (
	signalLive signal = iota
	signalConnected
	signalDisconnected
	signalOverflow
)

// message is what a connection hands over to the follower.
type message struct {
	signal  signal
	seq     uint64
	payload []byte
}

// inbox is the queue between a connection and the follower. When batches come
// faster than they are followed, those that wait are dropped for one message
// that says so: what is lost is told, and the queue never grows.
type inbox struct {
	wake chan struct{} // holds one when there is something to take

	mu      sync.Mutex
	queue   []message
	head    int
	bytes   int // of payloads queued
	most    int // bytes
	spare   [][]byte
	dropped uint64 // batches
}

const (
	maxQueued = 4096 // messages
	maxSpare  = 64   // buffers kept for reuse
	perBatch  = 64   // bytes that a batch counts beside its payload
)

func newInbox(most int) *inbox { return &inbox{wake: make(chan struct{}, 1), most: most} }

// live queues a copy of a batch.
func (b *inbox) live(seq uint64, payload []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bytes+len(payload)+perBatch > b.most || len(b.queue)-b.head >= maxQueued {
		b.overflow()
		return
	}
	var buf []byte
	if n := len(b.spare); n > 0 {
		buf, b.spare = b.spare[n-1], b.spare[:n-1]
	}
	b.bytes += len(payload) + perBatch
	b.push(message{signal: signalLive, seq: seq, payload: append(buf[:0], payload...)})
}

// say queues a signal, which is never dropped.
func (b *inbox) say(s signal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.push(message{signal: s})
}

func (b *inbox) push(m message) {
	if b.head > 0 && len(b.queue) == cap(b.queue) {
		b.queue = append(b.queue[:0], b.queue[b.head:]...)
		b.head = 0
	}
	b.queue = append(b.queue, m)
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// overflow drops all batches that wait, and the one at hand.
func (b *inbox) overflow() {
	kept := b.queue[:0]
	for _, m := range b.queue[b.head:] {
		switch m.signal {
		case signalLive:
			b.dropped++
		case signalOverflow: // the new one says it
		default:
			kept = append(kept, m)
		}
	}
	clear(b.queue[len(kept):])
	b.queue, b.head, b.bytes = kept, 0, 0
	b.dropped++
	b.push(message{signal: signalOverflow})
}

// take returns the oldest message. Its payload goes back with done.
func (b *inbox) take() (message, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.head == len(b.queue) {
		b.queue, b.head = b.queue[:0], 0
		return message{}, false
	}
	m := b.queue[b.head]
	b.queue[b.head] = message{}
	b.head++
	if m.signal == signalLive {
		b.bytes -= len(m.payload) + perBatch
	}
	return m, true
}

// done gives a message's buffer back.
func (b *inbox) done(m message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.payload != nil && len(b.spare) < maxSpare {
		b.spare = append(b.spare, m.payload)
	}
}

// lost returns how many batches were dropped.
func (b *inbox) lost() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dropped
}
