package kvfeed

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"penstock.dev/penstock/internal/kv"
)

// pipes is a network in memory.
type pipes struct {
	mu        sync.Mutex
	listening map[string]*pipeListener
	conns     []net.Conn
}

type pipeListener struct {
	address string
	accepts chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func (p *pipes) listen(address string) *pipeListener {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listening == nil {
		p.listening = map[string]*pipeListener{}
	}
	l := &pipeListener{address: address, accepts: make(chan net.Conn), closed: make(chan struct{})}
	p.listening[address] = l
	return l
}

func (p *pipes) dial(ctx context.Context, _, address string) (net.Conn, error) {
	p.mu.Lock()
	l := p.listening[address]
	p.mu.Unlock()
	if l == nil {
		return nil, errors.New("nobody listens")
	}
	near, far := net.Pipe()
	select {
	case l.accepts <- far:
		p.mu.Lock()
		defer p.mu.Unlock()
		p.conns = append(p.conns, near)
		return near, nil
	case <-l.closed:
		return nil, errors.New("refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// cut ends all connections there are.
func (p *pipes) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepts:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: l.address} }

// engine is a source and what it truly holds.
type engine struct {
	*Source
	now   float64
	truth map[kv.Key]bool
}

func newEngine(o SourceOptions) *engine {
	return &engine{Source: NewSource(o), truth: map[kv.Key]bool{}}
}

// block is the i-th of blocks that have nothing in common.
func block(i int) kv.Event {
	e := kv.Event{Kind: kv.Stored, Blocks: []kv.EngineKey{kv.EngineKey(1000 + i)}, Tokens: make([]uint32, 16), BlockSize: 16}
	e.Tokens[0] = uint32(i)
	return e
}

func ownKey(i int) kv.Key {
	return kv.ChainTokens(nil, kv.TokenSeed(nil, nil), 16, block(i).Tokens, nil)[0]
}

func (e *engine) batch(events ...kv.Event) []byte {
	e.now++
	return kv.VLLMMap.AppendBatch(nil, e.now, 0, events)
}

// store returns a batch in which block i is stored.
func (e *engine) store(i int) []byte {
	e.truth[ownKey(i)] = true
	return e.batch(block(i))
}

func (e *engine) remove(i int) []byte {
	delete(e.truth, ownKey(i))
	return e.batch(kv.Event{Kind: kv.Removed, Blocks: block(i).Blocks})
}

func (e *engine) restart(says bool) {
	e.Restart()
	clear(e.truth)
	if says {
		e.Publish(e.batch(kv.Event{Kind: kv.Cleared}))
	}
}

// gateway is an index that follows.
type gateway struct {
	t       *testing.T
	mu      sync.Mutex
	index   map[kv.Key]bool
	last    Update
	clears  int
	updates int
	gate    chan struct{} // the sink takes one for each update, when there is one
	done    chan error
}

func (g *gateway) sink(u Update) {
	if g.gate != nil {
		<-g.gate
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	keys := 0
	for _, c := range u.Changes {
		keys += len(c.Keys)
		if c.Kind == kv.ChangeClear {
			clear(g.index)
			g.clears++
		}
		for _, k := range c.Keys {
			if g.index[k] == (c.Kind == kv.ChangeStore) {
				g.t.Errorf("%+v changes nothing", c)
			}
			if delete(g.index, k); c.Kind == kv.ChangeStore {
				g.index[k] = true
			}
		}
	}
	if keys > updateKeys {
		g.t.Errorf("an update of %d keys", keys)
	}
	u.Changes = nil
	g.last = u
	g.updates++
}

func follow(ctx context.Context, t *testing.T, o FollowOptions, gate chan struct{}) *gateway {
	g := &gateway{t: t, index: map[kv.Key]bool{}, gate: gate, done: make(chan error, 1)}
	go func() { g.done <- Follow(ctx, o, g.sink) }()
	return g
}

// seen returns the last update, and how often all was forgotten.
func (g *gateway) seen() (Update, int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last, g.clears
}

func (g *gateway) status() kv.FollowerStatus {
	u, _ := g.seen()
	return u.Status
}

func (g *gateway) link() LinkStatus {
	u, _ := g.seen()
	return u.Link
}

func (g *gateway) has(i int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.index[ownKey(i)]
}

func clears(g *gateway) int {
	_, n := g.seen()
	return n
}

// want checks state, wholeness, and whether the index is the engine's truth.
func (g *gateway) want(e *engine, state kv.FeedState, whole, equal bool) {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.last.Status; s.State != state || s.Whole != whole {
		g.t.Errorf("%v, whole %v; want %v, %v; %+v %+v", s.State, s.Whole, state, whole, s.Feed, g.last.Link)
	}
	if got := maps.Equal(g.index, e.truth); got != equal {
		g.t.Errorf("%d keys of %d, equal: %v", len(g.index), len(e.truth), got)
	}
}

// scene is an engine on a network in memory and somebody who follows it. It is
// over when play returns.
func scene(t *testing.T, so SourceOptions, fo FollowOptions, play func(ctx context.Context, p *pipes, e *engine, fo FollowOptions)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p, e := &pipes{}, newEngine(so)
		var serving sync.WaitGroup
		pub, replay := p.listen("e:5557"), p.listen("e:5558")
		serving.Go(func() { _ = e.Serve(ctx, pub, replay) })
		fo.Publish, fo.Dial = "tcp://e:5557", p.dial
		play(ctx, p, e, fo)
		cancel()
		serving.Wait()
	})
}

const replayAt = "tcp://e:5558"

func TestFollowFromTheMiddle(t *testing.T) {
	for _, topicless := range []bool{false, true} {
		scene(t, SourceOptions{Topic: "kv@e", Replay: ReplayOptions{Topicless: topicless}}, FollowOptions{Replay: replayAt, Topics: "kv@", Topic: "kv@e"},
			func(ctx context.Context, _ *pipes, e *engine, fo FollowOptions) {
				for i := range 10 {
					e.Publish(e.store(i))
				}
				g := follow(ctx, t, fo, nil)
				synctest.Wait()
				g.want(e, kv.FeedLive, true, true)
				e.Publish(e.remove(3))
				e.Lose(e.store(20))
				e.Publish(e.store(21))
				synctest.Wait()
				g.want(e, kv.FeedLive, true, true)
				if l := g.link(); !l.Connected || l.Connects != 1 || l.Replays != 2 || l.Mismatched != 0 || l.Failed != 0 || clears(g) != 0 {
					t.Errorf("%+v, %d clears", l, clears(g))
				}
			})
	}
}

func TestFollowAcrossCutsAndRestarts(t *testing.T) {
	scene(t, SourceOptions{}, FollowOptions{Replay: replayAt, Topic: "other"}, func(ctx context.Context, p *pipes, e *engine, fo FollowOptions) {
		g := follow(ctx, t, fo, nil)
		synctest.Wait()
		e.Publish(e.store(1))
		synctest.Wait()
		p.cut()
		synctest.Wait()
		g.want(e, kv.FeedConnecting, true, true)
		e.Publish(e.store(2))
		time.Sleep(time.Second)
		g.want(e, kv.FeedLive, true, true)
		if clears(g) != 0 || g.link().Mismatched != 1 {
			t.Errorf("%d clears after a blip, %+v", clears(g), g.link())
		}
		for i, says := range []bool{false, true} {
			e.restart(says)
			e.Publish(e.store(10))
			e.Publish(e.store(11))
			time.Sleep(time.Second)
			g.want(e, kv.FeedLive, true, true)
			if n := g.status().Feed.Restarts; n != uint64(i+1) {
				t.Errorf("%d restarts", n)
			}
		}
	})
}

func TestFollowWithoutReplay(t *testing.T) {
	scene(t, SourceOptions{Replay: ReplayOptions{Off: true}}, FollowOptions{}, func(ctx context.Context, _ *pipes, e *engine, fo FollowOptions) {
		without := follow(ctx, t, fo, nil)
		fo.Replay = replayAt
		refused := follow(ctx, t, fo, nil)
		fo.Replay = "tcp://nobody:1"
		gone := follow(ctx, t, fo, nil)
		all := []*gateway{without, refused, gone}
		synctest.Wait()
		refused.want(e, kv.FeedReplaying, false, true)
		time.Sleep(2 * replayIdle)
		e.Publish(e.store(0))
		synctest.Wait()
		for _, g := range all {
			g.want(e, kv.FeedLive, true, true)
		}
		e.Lose(e.store(1))
		e.Publish(e.store(2))
		time.Sleep(2 * replayIdle)
		for _, g := range all {
			g.want(e, kv.FeedLive, false, false) // what came after the loss
			if g.has(0) || !g.has(2) {
				t.Error("not just what came after the loss")
			}
		}
		e.restart(true)
		e.Publish(e.store(3))
		time.Sleep(time.Minute)
		e.Publish(e.store(4))
		synctest.Wait()
		refused.want(e, kv.FeedLive, false, false)
		e.Publish(e.batch(kv.Event{Kind: kv.Cleared}))
		clear(e.truth)
		synctest.Wait()
		for _, g := range all {
			g.want(e, kv.FeedLive, true, true)
		}
		if refused.link().Failed == 0 || gone.link().Err == nil {
			t.Errorf("%+v, %+v", refused.link(), gone.link())
		}
	})
}

func TestFollowSlowReplay(t *testing.T) {
	scene(t, SourceOptions{Replay: ReplayOptions{Delay: time.Second}}, FollowOptions{Replay: replayAt}, func(ctx context.Context, _ *pipes, e *engine, fo FollowOptions) {
		for i := range 20 {
			e.Publish(e.store(i))
		}
		g := follow(ctx, t, fo, nil)
		time.Sleep(10 * time.Second)
		e.Publish(e.store(30)) // waits for the replay
		synctest.Wait()
		g.want(e, kv.FeedReplaying, true, false)
		time.Sleep(15 * time.Second)
		g.want(e, kv.FeedLive, true, true)
		e.Tune(ReplayOptions{Delay: 3 * time.Second}) // longer than anybody waits
		e.Lose(e.store(31))
		e.Publish(e.store(32))
		time.Sleep(10 * time.Second)
		g.want(e, kv.FeedLive, false, false)
		// As much as is asked for, but never to its end.
		e.Tune(ReplayOptions{Delay: 1900 * time.Millisecond})
		for i := range 100 {
			e.Publish(e.store(100 + i))
		}
		e.restart(false)
		for i := range 100 {
			e.Publish(e.store(100 + i))
		}
		time.Sleep(replayTotal + time.Minute)
		if g.link().Failed != 2 || g.status().State != kv.FeedUnknown {
			t.Errorf("%+v, %+v", g.link(), g.status())
		}
	})
}

func TestFollowSlowSink(t *testing.T) {
	scene(t, SourceOptions{}, FollowOptions{Replay: replayAt, MaxQueue: 10_000}, func(ctx context.Context, p *pipes, e *engine, fo FollowOptions) {
		gate := make(chan struct{})
		g := follow(ctx, t, fo, gate)
		go func() {
			for range 3 { // connected, replay ended, one batch
				gate <- struct{}{}
			}
		}()
		synctest.Wait()
		e.Publish(e.store(0))
		synctest.Wait()
		for i := range 1000 {
			e.Publish(e.store(1 + i))
		}
		synctest.Wait()
		close(gate)
		synctest.Wait()
		if l := g.link(); l.Dropped == 0 || g.status().Feed.Overflows == 0 || clears(g) == 0 {
			t.Errorf("%+v %+v", l, g.status())
		}
		// What is lost may be asked for once more, from the beginning.
		g.want(e, kv.FeedLive, g.status().Whole, g.status().Whole)
		g.mu.Lock()
		index := maps.Clone(g.index)
		g.mu.Unlock()
		for k := range index {
			if !e.truth[k] {
				t.Errorf("%x is believed and not there", k)
			}
		}
		p.cut()
		time.Sleep(time.Minute)
		e.Publish(e.store(5000))
		synctest.Wait()
		if g.status().State != kv.FeedLive || !g.has(5000) {
			t.Errorf("%+v", g.status())
		}
	})
}

// TestFollowHalfOpen meets a peer that answers once and then says nothing for ever,
// and one that is only silent.
func TestFollowHalfOpen(t *testing.T) {
	scene(t, SourceOptions{}, FollowOptions{}, func(ctx context.Context, p *pipes, e *engine, fo FollowOptions) {
		silent := follow(ctx, t, fo, nil)
		dead := p.listen("dead:1")
		go func() {
			for {
				nc, err := dead.Accept()
				if err != nil {
					return
				}
				go func() {
					c, err := NewConn(nc, "PUB")
					for first := true; err == nil; {
						var f frame
						if f, _, err = readFrame(c.r, nil, 100); err == nil && first && f.flags&flagCommand != 0 {
							_, err = c.answer(f.body)
							first = false
						}
					}
				}()
			}
		}()
		fo.Publish = "tcp://dead:1"
		lost := follow(ctx, t, fo, nil)
		time.Sleep(time.Hour)
		e.Publish(e.store(1))
		synctest.Wait()
		silent.want(e, kv.FeedLive, true, true)
		if n := silent.link().Connects; n != 1 {
			t.Errorf("%d connections to a peer that is only silent", n)
		}
		if l := lost.link(); l.Connects < 100 || l.Connects > 250 {
			t.Errorf("%+v", l)
		}
		dead.Close()
	})
}

// TestFollowThoseThatConnect listens, for engines that connect.
func TestFollowThoseThatConnect(t *testing.T) {
	scene(t, SourceOptions{}, FollowOptions{Replay: replayAt}, func(ctx context.Context, p *pipes, e *engine, fo FollowOptions) {
		fo.Listen = p.listen("gateway:1")
		g := follow(ctx, t, fo, nil)
		one, cancel := context.WithCancel(ctx)
		go func() { _ = e.Connect(one, p.dial, "tcp", "gateway:1") }()
		synctest.Wait()
		e.Publish(e.store(1))
		synctest.Wait()
		g.want(e, kv.FeedLive, true, true)
		// Somebody who is no publisher takes nobody's place.
		if nc, err := p.dial(ctx, "tcp", "gateway:1"); err != nil {
			t.Error(err)
		} else {
			nc.Close()
		}
		e.Publish(e.store(2))
		synctest.Wait()
		g.want(e, kv.FeedLive, true, true)
		if g.link().Connects != 1 {
			t.Errorf("%+v", g.link())
		}
		// A second connection takes the place of the first, which may be dead.
		go func() { _ = e.Connect(ctx, p.dial, "tcp", "gateway:1") }()
		synctest.Wait()
		cancel()
		time.Sleep(time.Minute)
		e.Publish(e.store(3))
		synctest.Wait()
		g.want(e, kv.FeedLive, true, true)
		if g.link().Connects < 2 {
			t.Errorf("%+v", g.link())
		}
	})
}

func TestFollowWarmAndInPieces(t *testing.T) {
	scene(t, SourceOptions{}, FollowOptions{Replay: replayAt}, func(ctx context.Context, _ *pipes, e *engine, fo FollowOptions) {
		save := make(chan func([]byte))
		fo.Save = save
		one, cancel := context.WithCancel(ctx)
		g := follow(one, t, fo, nil)
		synctest.Wait()
		long := kv.Event{Kind: kv.Stored, BlockSize: 16, Tokens: make([]uint32, 16*5000)}
		for i := range 5000 {
			long.Tokens[16*i] = uint32(i)
			long.Blocks = append(long.Blocks, kv.EngineKey(1e6+i))
		}
		for _, k := range kv.ChainTokens(nil, kv.TokenSeed(nil, nil), 16, long.Tokens, nil) {
			e.truth[k] = true
		}
		e.Publish(e.batch(block(1), long, block(2)))
		e.truth[ownKey(1)], e.truth[ownKey(2)] = true, true
		synctest.Wait()
		g.want(e, kv.FeedLive, true, true)
		got := make(chan []byte, 1)
		save <- func(state []byte) { got <- state }
		fo.State = <-got
		cancel()
		if err := <-g.done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		e.Publish(e.remove(2))
		next := follow(ctx, t, fo, nil)
		synctest.Wait()
		next.want(e, kv.FeedLive, true, true)
		if n := next.status().Feed; n.Applied != 1 || next.clears != 0 {
			t.Errorf("not warm: %+v", n)
		}
		fo.State = []byte("rubbish")
		cold := follow(ctx, t, fo, nil)
		synctest.Wait()
		cold.want(e, kv.FeedLive, true, true)
	})
}

// TestFollowOverSockets does it over the networks there are.
func TestFollowOverSockets(t *testing.T) {
	listen := func(network, address string) net.Listener {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), network, address)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	socket := filepath.Join(t.TempDir(), "s")
	for name, l := range map[string]net.Listener{"tcp": listen("tcp", "127.0.0.1:0"), "ipc": listen("unix", socket)} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			replay := listen("tcp", "127.0.0.1:0")
			e := newEngine(SourceOptions{})
			var serving sync.WaitGroup
			serving.Go(func() { _ = e.Serve(ctx, l, replay) })
			e.Publish(e.store(1))
			o := FollowOptions{Publish: "tcp://" + l.Addr().String(), Replay: "tcp://" + replay.Addr().String()}
			if name == "ipc" {
				o.Publish = "ipc://" + socket
			}
			got := make(chan Update, 1000)
			var following sync.WaitGroup
			following.Go(func() { _ = Follow(ctx, o, func(u Update) { got <- u }) })
			deadline := time.After(20 * time.Second)
			for wanted := 1; wanted < 4; {
				select {
				case u := <-got:
					if s := u.Status; s.State == kv.FeedLive && s.Whole && s.Held == wanted {
						wanted++
						e.Publish(e.store(wanted))
					}
				case <-deadline:
					t.Fatalf("not live with %d blocks", wanted)
				}
			}
			cancel()
			following.Wait()
			serving.Wait()
		})
	}
}

func TestAddress(t *testing.T) {
	for _, c := range []struct {
		endpoint         string
		rank             int
		network, address string
		err              string
	}{
		{"tcp://host:5557", 0, "tcp", "host:5557", ""},
		{"tcp://host:5557", 3, "tcp", "host:5560", ""},
		{"tcp://*:5557", 1, "tcp", ":5558", ""},
		{"tcp://[::1]:5557", 1, "tcp", "[::1]:5558", ""},
		{"ipc:///run/kv", 0, "unix", "/run/kv", ""},
		{"ipc:///run/kv", 1, "", "", "no place for rank 1"},
		{"inproc://kv", 0, "", "", "inside the engine's process"},
		{"host:5557", 0, "", "", "no scheme"},
		{"udp://host:5557", 0, "", "", "scheme"},
		{"tcp://host", 0, "", "", "missing port"},
		{"tcp://host:*", 0, "", "", "port"},
		{"tcp://host:65535", 1, "", "", "port"},
		{"tcp://host:5557", -1, "", "", "rank -1"},
	} {
		network, address, err := Address(c.endpoint, c.rank)
		if network != c.network || address != c.address || (err != nil) != (c.err != "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s, %d: %q %q %v", c.endpoint, c.rank, network, address, err)
		}
		if err != nil && !errors.Is(err, ErrEndpoint) {
			t.Errorf("%v", err)
		}
	}
	if err := Follow(t.Context(), FollowOptions{Publish: "inproc://x"}, nil); !errors.Is(err, ErrEndpoint) {
		t.Error(err)
	}
}

func TestInboxIsBounded(t *testing.T) {
	b := newInbox(1000)
	b.say(signalConnected)
	for range 100 {
		b.live(1, make([]byte, 36))
	}
	var said []signal
	lives := 0
	for m, ok := b.take(); ok; m, ok = b.take() {
		if m.signal == signalLive {
			lives++
			b.done(m)
			continue
		}
		said = append(said, m.signal)
	}
	if len(said) != 2 || said[0] != signalConnected || said[1] != signalOverflow || lives > 10 || b.bytes != 0 || b.lost()+uint64(lives) != 100 {
		t.Errorf("%v, %d batches, %d bytes, %d lost", said, lives, b.bytes, b.lost())
	}
	for range 10 * maxQueued {
		b.live(1, nil)
		if m, ok := b.take(); !ok || m.signal != signalLive {
			t.Fatal("nothing to take")
		}
	}
	if cap(b.queue) > 2*maxQueued {
		t.Errorf("room for %d messages", cap(b.queue))
	}
}

// FuzzReadReplay reads what may come instead of a replay.
func FuzzReadReplay(f *testing.F) {
	number := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	end := appendMessage(nil, nil, nil, number(kv.EndOfReplay), nil)
	f.Add(append(appendMessage(nil, nil, number(1), []byte("old")), end...))
	f.Add(append(appendMessage(nil, nil, []byte("topic"), number(2), []byte("new")), end...))
	f.Add(appendMessage(nil, number(1)))
	f.Fuzz(func(t *testing.T, wire []byte) {
		c := newConn(memory{Reader: bytes.NewReader(wire)})
		fo := kv.NewFollower(kv.KeySpace{}, true, 100, 1000)
		fo.Connected()
		total := 0
		if c.ReadReplay(func(seq uint64, payload []byte) {
			if seq == kv.EndOfReplay {
				t.Fatal("the end is not a batch")
			}
			total += len(payload)
			fo.Replayed(seq, payload)
		}) == nil {
			fo.Ended()
		}
		if total > len(wire) {
			t.Fatalf("%d bytes out of %d", total, len(wire))
		}
	})
}

// FuzzReplayServer asks in every way there is.
func FuzzReplayServer(f *testing.F) {
	greeting := make([]byte, 64)
	greeting[0], greeting[9], greeting[10] = 0xff, 0x7f, 3
	copy(greeting[12:], "NULL")
	ready := appendCommand(greeting, "READY", append([]byte("\x0bSocket-Type\x00\x00\x00\x06"), "DEALER"...))
	f.Add(appendMessage(nil, nil, binary.BigEndian.AppendUint64(nil, 3)))
	f.Add(appendMessage(nil, []byte("x"), nil, nil))
	f.Fuzz(func(t *testing.T, asked []byte) {
		s := NewReplayServer(ReplayOptions{Steps: 4})
		for seq := range uint64(6) {
			s.Keep(seq, nil, []byte("payload"))
		}
		nc := memory{Conn: deadlines{}, Reader: bytes.NewReader(append(bytes.Clone(ready), asked...))}
		if err := s.Serve(nc); err == nil {
			t.Fatal("it ends without reason")
		}
	})
}

// deadlines is a connection whose deadlines never come.
type deadlines struct{ net.Conn }

func (deadlines) SetDeadline(time.Time) error { return nil }
func (deadlines) Close() error                { return nil }
