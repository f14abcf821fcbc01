package server

import (
	"encoding/binary"
	"net"
	"sync"
	"time"

	"penstock.dev/penstock/internal/engine/kvfeed"
	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// feed tells of the engine's blocks as the engine does that is simulated: one
// message for each step, over ZeroMQ, and once more to who asks for a replay.
type feed struct {
	encoding kv.Encoding
	form     string
	topic    []byte
	rank     int32
	keep     int // messages for replays
	// whole says that stores below the GPU have parents and tokens, as SGLang's do;
	// vLLM's only say where blocks are.
	whole bool
	pub   *kvfeed.Publisher

	tokens []uint32 // of events not encoded yet; guarded by Server.mu
	names  *digests // nil: blocks have the simulation's own keys

	// sending is held while messages go out, so that they do so in order. It comes
	// before Server.mu.
	sending sync.Mutex
	held    *kvMessage // which changes places with the next one

	mu      sync.Mutex // of the rest; comes after Server.mu
	seq     uint64     // of the next message
	pending []kvMessage
	ring    []kvMessage // those sent last
	conns   map[net.Conn]struct{}
	closed  bool
}

// kvMessage is one batch of events.
type kvMessage struct {
	seq     uint64
	payload []byte
}

// queueRoom is how many messages wait for one subscriber.
const queueRoom = 10_000

// newFeed returns the feed of options with defaults filled in; nil when there is
// none.
func newFeed(o Options) *feed {
	if o.KVEvents == "" {
		return nil
	}
	c, _ := findEncoding(o.KVEncoding)
	f := &feed{
		encoding: c, form: o.KVReplayForm, topic: []byte(o.KVTopic), rank: int32(o.KVRank), keep: o.KVBufferSteps,
		whole: c == kv.SGLangArray || c == kv.SGLangMap,
		pub:   kvfeed.NewPublisher(queueRoom), conns: make(map[net.Conn]struct{}), names: newDigests(o),
	}
	if f.whole { // SGLang begins with a clear
		f.add(c.AppendBatch(nil, seconds(time.Now()), f.rank, []kv.Event{{Kind: kv.Cleared}}))
	}
	return f
}

func findEncoding(name string) (kv.Encoding, bool) {
	for c := range kv.Encodings {
		if c.String() == name {
			return c, true
		}
	}
	return 0, false
}

func seconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

// add makes a payload the next message.
func (f *feed) add(payload []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending = append(f.pending, kvMessage{f.seq, payload})
	f.seq++
}

// describe fills in what events say of a sequence's blocks; see
// enginesim.Config. It needs s.mu, as all calls of the engine do.
func (s *Server) describe(id fleet.ReqID, depth int, ev *kv.Event) {
	f, l := s.kv, s.legs[id]
	if l != nil && f.names != nil {
		f.names.learn(l.choice, depth, ev)
	}
	if l == nil || ev.Tier != kv.TierGPU && !f.whole {
		return
	}
	const size = int(enginesim.BlockTokens)
	from := len(f.tokens)
	for i := depth * size; i < (depth+len(ev.Blocks))*size; i++ {
		f.tokens = append(f.tokens, l.choice.token(i))
	}
	ev.Tokens = f.tokens[from:len(f.tokens):len(f.tokens)]
	if a := l.choice.adapter; a != "" {
		ev.LoRA = []byte(a)
	}
	var salt []byte
	if l.choice.salt != "" {
		salt = []byte(l.choice.salt)
	}
	if f.whole {
		ev.Salt = salt
	}
	for i := range ev.Blocks {
		if ev.LoRA != nil {
			ev.Extra = append(ev.Extra, kv.Extra{Block: int32(i), Kind: kv.ExtraLoRA, Value: ev.LoRA})
		}
		if depth+i == 0 && salt != nil { // it goes into the first key, and so into all
			ev.Extra = append(ev.Extra, kv.Extra{Kind: kv.ExtraSalt, Value: salt})
		}
	}
}

// token returns token i of the prompt and the answer.
func (c *choice) token(i int) uint32 {
	if i < len(c.tokens) {
		return c.tokens[i]
	}
	if i -= c.prompt; i >= 0 && i < len(c.answer.tokens) {
		return c.answer.tokens[i]
	}
	return 0 // nothing that is asked for: a health check has no text
}

// collect makes messages of what has happened to blocks. It needs s.mu.
func (s *Server) collect() {
	f := s.kv
	if f == nil {
		return
	}
	for at, events := range s.engine.TakeEvents() {
		for i := range events {
			if f.names != nil {
				f.names.rename(&events[i])
			}
			f.shape(&events[i])
		}
		wall := s.epoch.Add(time.Duration(at) + s.rest.lost)
		f.add(f.encoding.AppendBatch(nil, seconds(wall), f.rank, events))
	}
	f.tokens = f.tokens[:0]
	if f.names != nil {
		f.names.tidy()
	}
}

// shape takes from an event what the engine would not say.
func (f *feed) shape(ev *kv.Event) {
	if ev.Kind != kv.Stored {
		return
	}
	if !f.whole {
		ev.Spec = kv.SpecFull
	}
	if len(ev.Tokens) == 0 {
		ev.HasParent, ev.BlockSize = false, 0
	}
}

// tell sends what has been collected. It must be called without s.mu.
func (s *Server) tell() {
	f := s.kv
	if f == nil {
		return
	}
	f.sending.Lock()
	defer f.sending.Unlock()
	for {
		f.mu.Lock()
		if len(f.pending) == 0 {
			f.mu.Unlock()
			return
		}
		m := f.pending[0]
		f.pending = f.pending[1:]
		f.mu.Unlock()
		f.send(m, &s.faults)
	}
}

// send keeps one message for replays and publishes it, with whatever faults there
// are. It needs f.sending.
func (f *feed) send(m kvMessage, faults *faults) {
	if _, ok := faults.hit("kv-malformed", false); ok {
		m.payload = withEvent(m.payload, f.flawed("BlockStored", "block_hashes"))
	}
	if _, ok := faults.hit("kv-unknown", false); ok {
		m.payload = withEvent(m.payload, f.flawed("Future", "x"))
	}
	f.mu.Lock()
	f.ring = append(f.ring, m)
	f.ring = f.ring[max(0, len(f.ring)-f.keep):]
	f.mu.Unlock()
	if _, ok := faults.hit("kv-drop", false); ok {
		return
	}
	if _, ok := faults.hit("kv-corrupt", false); ok {
		m.payload = noise(len(m.payload))
	}
	if f.held == nil {
		if _, ok := faults.hit("kv-swap", false); ok {
			f.held = &m
			return
		}
	}
	f.publish(m)
	if _, ok := faults.hit("kv-duplicate", false); ok {
		f.publish(m)
	}
	if f.held != nil {
		f.publish(*f.held)
		f.held = nil
	}
}

func (f *feed) publish(m kvMessage) {
	f.pub.Publish(f.topic, binary.BigEndian.AppendUint64(nil, m.seq), m.payload)
}

// flawed is an event of a class with a text in the place of its first field.
func (f *feed) flawed(class, field string) []byte {
	text := func(b []byte, s string) []byte { return append(append(b, 0xa0|byte(len(s))), s...) }
	if f.encoding == kv.VLLMArray || f.encoding == kv.SGLangArray {
		return text(text([]byte{0x92}, class), "bad")
	}
	return text(text(text(text([]byte{0x82}, "type"), class), field), "bad")
}

// withEvent returns a payload with one more event, before all others.
func withEvent(payload, event []byte) []byte {
	const at = 10 // after the head of the batch and its time
	var n, size int
	switch h := payload[at]; h {
	case 0xdc:
		n, size = int(binary.BigEndian.Uint16(payload[at+1:])), 3
	case 0xdd:
		n, size = int(binary.BigEndian.Uint32(payload[at+1:])), 5
	default:
		n, size = int(h&0x0f), 1
	}
	b := append(payload[:at:at], 0xdd)
	b = binary.BigEndian.AppendUint32(b, uint32(n+1))
	return append(append(b, event...), payload[at+size:]...)
}

// restartKV is a new process of the engine as far as its blocks are concerned:
// the cache is empty, messages count from 0 and none is kept. Connections break.
// A fence is a first message that says so.
func (s *Server) restartKV(fence bool) {
	f := s.kv
	f.sending.Lock()
	defer f.sending.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.engine.DropCache(s.now(), true)
	s.lose("the process has ended")
	for range s.engine.TakeEvents() { // a process that is killed says nothing
	}
	f.held, f.tokens, f.names = nil, f.tokens[:0], newDigests(s.options)
	f.mu.Lock()
	f.seq, f.pending, f.ring = 0, nil, nil
	f.mu.Unlock()
	f.disconnect()
	if fence {
		f.add(f.encoding.AppendBatch(nil, seconds(time.Now()), f.rank, []kv.Event{{Kind: kv.Cleared}}))
	}
	nudge(s.wake)
}
