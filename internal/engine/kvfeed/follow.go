package kvfeed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"penstock.dev/penstock/internal/kv"
)

// How long a replay may take, and how long one of its batches may be waited for.
const (
	replayIdle  = 2 * time.Second
	replayTotal = 2 * time.Minute
)

// updateKeys is how many keys one Update has at most, so that whoever takes it
// is not kept from other work.
const updateKeys = 1024

// FollowOptions says whom to follow, and how.
type FollowOptions struct {
	// Publish is the endpoint of the rank's PUB ("tcp://host:5557"), to which a SUB
	// connects. It is not used with Listen.
	Publish string
	// Listen is where the rank's PUB connects to, for engines that connect
	// instead of binding. It is the rank's alone: a new connection takes the
	// place of the one before. Follow closes it.
	Listen net.Listener
	// Replay is the endpoint of the rank's ROUTER; empty when it has none.
	Replay string
	// Rank is added to the ports of Publish and Replay.
	Rank int
	// Topics is the prefix of the topics to subscribe to.
	Topics string
	// Topic is what batches should be published under; others are counted, not
	// refused: the connection says whose they are. Empty: anything.
	Topic string

	// Keys, MaxNames and MaxHeld (bytes) are the follower's. MaxQueue bounds the
	// bytes between socket and follower. 0 of the last three is a default.
	Keys                        kv.KeySpace
	MaxNames, MaxHeld, MaxQueue int
	// State is what an earlier follower saved, if anything.
	State []byte
	// Save takes requests for the state as of then. What is handed over is the
	// receiver's.
	Save <-chan func(state []byte)
	// Dial replaces the network.
	Dial Dialer
}

// The defaults of FollowOptions: a million blocks are 16 million tokens, more than a
// rank and its host memory hold.
const (
	DefaultNames = 1 << 20
	DefaultHeld  = 16 << 20
	DefaultQueue = 16 << 20
)

// LinkStatus is what became of connections and messages.
type LinkStatus struct {
	Connected  bool
	Connects   uint64 // connections that were had
	Replays    uint64 // replays begun
	Failed     uint64 // replays that failed
	Malformed  uint64 // messages without a sequence number
	Mismatched uint64 // batches under another topic
	Dropped    uint64 // batches for which there was no room
	Err        error  // why the last connection or replay ended or could not be had; nil none
}

// Update is one piece of what has changed.
type Update struct {
	Changes []kv.Change // in order, 1024 keys at most; good until the sink returns
	More    bool        // the next update belongs to the same step
	Status  kv.FollowerStatus
	Link    LinkStatus
}

// Follow follows one rank until ctx ends, which is what it returns, or fails at
// once when o cannot be. It hands all changes of the index to sink, in order and
// from one goroutine; a sink that is slow loses batches, which the status tells.
func Follow(ctx context.Context, o FollowOptions, sink func(Update)) error {
	f, err := newFollowing(o, sink)
	if err != nil {
		if o.Listen != nil {
			o.Listen.Close()
		}
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var receiving sync.WaitGroup
	receiving.Go(func() { f.receive(ctx) })
	defer receiving.Wait()
	defer f.stopReplay()
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.in.wake:
			for m, ok := f.in.take(); ok && ctx.Err() == nil; m, ok = f.in.take() {
				f.act(ctx, m)
				f.in.done(m)
			}
		case r := <-f.replays:
			f.replayed(ctx, r)
		case save := <-o.Save:
			save(f.follower.AppendState(nil))
		}
	}
}

// following is one Follow.
type following struct {
	o        FollowOptions
	sink     func(Update)
	dial     Dialer
	follower *kv.Follower
	in       *inbox
	pub, ask [2]string // network and address

	replays chan replayPart
	replay  context.CancelFunc
	asked   int // number of the replay that runs
	running sync.WaitGroup

	mu   sync.Mutex
	link LinkStatus
}

func newFollowing(o FollowOptions, sink func(Update)) (*following, error) {
	f := &following{o: o, sink: sink, dial: o.Dial, replays: make(chan replayPart)}
	if f.dial == nil {
		f.dial = dialer()
	}
	var err error
	if o.Listen == nil {
		if f.pub[0], f.pub[1], err = Address(o.Publish, o.Rank); err != nil {
			return nil, fmt.Errorf("publisher: %w", err)
		}
	}
	if o.Replay != "" {
		if f.ask[0], f.ask[1], err = Address(o.Replay, o.Rank); err != nil {
			return nil, fmt.Errorf("replay: %w", err)
		}
	}
	or := func(n, otherwise int) int {
		if n <= 0 {
			return otherwise
		}
		return n
	}
	f.in = newInbox(or(o.MaxQueue, DefaultQueue))
	f.follower = kv.NewFollower(o.Keys, o.Replay != "", or(o.MaxNames, DefaultNames), or(o.MaxHeld, DefaultHeld))
	if o.State != nil {
		if err := f.follower.LoadState(o.State); err != nil {
			f.note(func(l *LinkStatus) { l.Err = err }) // begin with nothing
		}
		f.warm()
	}
	return f, nil
}

// warm hands over what a loaded state knows.
func (f *following) warm() {
	var changes []kv.Change
	keys := make([]kv.Key, 0, updateKeys)
	for c := range f.follower.Known() {
		if len(keys)+len(c.Keys) > updateKeys {
			f.emit(changes, true)
			changes, keys = changes[:0], keys[:0]
		}
		from := len(keys)
		keys = append(keys, c.Keys...)
		c.Keys = keys[from:len(keys):len(keys)]
		changes = append(changes, c)
	}
	f.emit(changes, false)
}

func (f *following) note(change func(*LinkStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.link)
}

// act tells the follower what has happened and does what it says.
func (f *following) act(ctx context.Context, m message) {
	switch m.signal {
	case signalLive:
		f.do(ctx, f.follower.Live(m.seq, m.payload))
	case signalConnected:
		f.do(ctx, f.follower.Connected())
	case signalDisconnected:
		f.stopReplay()
		f.do(ctx, f.follower.Disconnected())
	case signalOverflow:
		f.do(ctx, f.follower.Overflow())
	}
}

func (f *following) do(ctx context.Context, d kv.Do) {
	f.hand(d.Changes)
	if d.Replay {
		f.startReplay(ctx, d.From)
	}
}

// hand gives changes to the sink in pieces.
func (f *following) hand(changes []kv.Change) {
	room, from := updateKeys, 0
	for i := 0; i < len(changes); {
		c := &changes[i]
		if len(c.Keys) <= room {
			room -= len(c.Keys)
			i++
			continue
		}
		head := *c
		head.Keys = c.Keys[:room]
		piece := append(changes[from:i:i], head)
		if room == 0 {
			piece = piece[:len(piece)-1]
		} else {
			if c.Kind == kv.ChangeStore {
				c.Parent = c.Keys[room-1]
			}
			c.Keys = c.Keys[room:]
		}
		f.emit(piece, true)
		room, from = updateKeys, i
	}
	f.emit(changes[from:], false)
}

func (f *following) emit(changes []kv.Change, more bool) {
	f.mu.Lock()
	link := f.link
	f.mu.Unlock()
	link.Dropped = f.in.lost()
	f.sink(Update{Changes: changes, More: more, Status: f.follower.Status(), Link: link})
}

// receive keeps a SUB connection and queues what comes over it.
func (f *following) receive(ctx context.Context) {
	if f.o.Listen != nil {
		f.accept(ctx)
		return
	}
	_ = Keep(ctx, func(ctx context.Context) (*Conn, error) {
		c, err := f.dial.socket(ctx, f.pub[0], f.pub[1], "SUB")
		if err != nil {
			f.note(func(l *LinkStatus) { l.Err = err })
		}
		return c, err
	}, f.subscribe)
}

// maxGreeting is how many peers may introduce themselves at a time.
const maxGreeting = 16

// accept takes connections; the newest that is a publisher's counts.
func (f *following) accept(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { f.o.Listen.Close() })
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	greeting := make(chan struct{}, maxGreeting)
	var last turn
	for tries := 0; ctx.Err() == nil; {
		nc, err := f.o.Listen.Accept()
		if err != nil {
			f.note(func(l *LinkStatus) { l.Err = err })
			if errors.Is(err, net.ErrClosed) {
				return
			}
			pause(ctx, wait(tries))
			tries++
			continue
		}
		tries = 0
		greeting <- struct{}{}
		serving.Go(func() { f.serve(ctx, nc, &last, func() { <-greeting }) })
	}
}

// turn is the connection that counts.
type turn struct {
	mu   sync.Mutex
	end  context.CancelFunc
	done chan struct{} // closed when its last word has been queued
}

// take ends the one whose turn it was, and waits until it has had its last word.
func (t *turn) take(end context.CancelFunc) (done chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.end != nil {
		t.end()
		<-t.done
	}
	t.end, t.done = end, make(chan struct{})
	return t.done
}

// serve receives from a publisher that has connected, until it leaves, another
// takes its place, or ctx ends.
func (f *following) serve(ctx context.Context, nc net.Conn, last *turn, met func()) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: tcpIdle, Interval: tcpProbe, Count: 3})
	}
	c, err := NewConn(nc, "SUB")
	if met(); err != nil {
		f.note(func(l *LinkStatus) { l.Err = err })
		return
	}
	defer c.Close()
	defer close(last.take(cancel))
	_ = f.subscribe(c)
}

// subscribe receives over one connection until it fails.
//
// A batch published before the subscription is known to the peer and after the
// replay would be missed, and not noticed until the next one. So the follower
// hears of the connection only when the peer has answered a PING sent behind the
// subscription, or is known not to.
func (f *following) subscribe(c *Conn) error {
	if err := c.Subscribe(f.o.Topics); err != nil {
		return err
	}
	var once sync.Once
	connected := func() {
		once.Do(func() {
			f.note(func(l *LinkStatus) { l.Connected, l.Connects = true, l.Connects+1 })
			f.in.say(signalConnected)
		})
	}
	c.pong = func() {
		c.Limit(deadAfter, 0)
		connected()
	}
	var pinging sync.WaitGroup
	done := make(chan struct{})
	pinging.Go(func() { keepPinging(c, done, connected) })
	err := f.listen(c, connected)
	c.Close()
	close(done)
	pinging.Wait()
	f.note(func(l *LinkStatus) { l.Connected, l.Err = false, err })
	f.in.say(signalDisconnected)
	return err
}

// keepPinging asks the peer for signs of life, if it can give them. It calls
// settled when the first should have come.
func keepPinging(c *Conn, done <-chan struct{}, settled func()) {
	if !c.Pings() {
		settled()
		return
	}
	for pause := settle; c.Ping() == nil; pause = pingEvery {
		select {
		case <-done:
			return
		case <-time.After(pause):
			settled()
		}
	}
}

// listen queues batches, the first of which shows that the peer knows of the
// subscription.
func (f *following) listen(c *Conn, connected func()) error {
	for {
		frames, err := c.Receive()
		if err != nil {
			return err
		}
		seq, payload, err := Part(frames)
		if err != nil {
			f.note(func(l *LinkStatus) { l.Malformed++ })
			continue
		}
		if f.o.Topic != "" && !bytes.Equal(frames[0], []byte(f.o.Topic)) {
			f.note(func(l *LinkStatus) { l.Mismatched++ })
		}
		connected()
		f.in.live(seq, payload)
	}
}

// replayPart is a batch of a replay, or its end.
type replayPart struct {
	asked   int
	seq     uint64
	payload []byte
	ended   bool
	err     error
}

// startReplay asks for a replay, and forgets the one that runs.
func (f *following) startReplay(ctx context.Context, from uint64) {
	f.stopReplay()
	f.note(func(l *LinkStatus) { l.Replays++ })
	f.asked++
	ctx, f.replay = context.WithCancel(ctx)
	asked := f.asked
	f.running.Go(func() {
		err := f.readReplay(ctx, asked, from)
		f.pass(ctx, replayPart{asked: asked, ended: true, err: err})
	})
}

// stopReplay ends the replay that runs, and waits until it has.
func (f *following) stopReplay() {
	if f.replay != nil {
		f.replay()
		f.running.Wait()
		f.replay = nil
	}
	f.asked++
}

func (f *following) pass(ctx context.Context, r replayPart) {
	select {
	case f.replays <- r:
	case <-ctx.Done():
	}
}

// readReplay passes a replay on, batch by batch as they are followed.
func (f *following) readReplay(ctx context.Context, asked int, from uint64) error {
	c, err := f.dial.socket(ctx, f.ask[0], f.ask[1], "DEALER")
	if err != nil {
		return err
	}
	defer c.Close()
	c.Limit(replayIdle, replayTotal)
	if err := c.AskReplay(from); err != nil {
		return err
	}
	return c.ReadReplay(func(seq uint64, payload []byte) {
		f.pass(ctx, replayPart{asked: asked, seq: seq, payload: bytes.Clone(payload)})
	})
}

func (f *following) replayed(ctx context.Context, r replayPart) {
	switch {
	case r.asked != f.asked: // forgotten meanwhile
	case !r.ended:
		f.do(ctx, f.follower.Replayed(r.seq, r.payload))
	case r.err == nil:
		f.do(ctx, f.follower.Ended())
	default:
		f.note(func(l *LinkStatus) { l.Failed, l.Err = l.Failed+1, r.err })
		f.do(ctx, f.follower.Failed())
	}
}
