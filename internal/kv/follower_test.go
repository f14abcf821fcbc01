package kv

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/cespare/xxhash/v2"
	"pgregory.net/rapid"
)

// rankModel is one rank of an engine: what it truly holds, and its publisher with
// a ring of the last batches.
type rankModel struct {
	c       Encoding
	direct  bool // its keys are the own keys
	size    int
	process uint64
	hashed  [][]EngineKey // of the prompts, where keys are direct
	prompts []prompt
	refs    map[EngineKey]*[tiers]int
	owned   map[EngineKey][]Key
	events  []Event
	now     float64
	ring    []sent // of this process, the newest last
	room    int
	truth   []holdings // after each batch of this process
}

type sent struct {
	seq     uint64
	payload []byte
}

func newRankModel(c Encoding, direct bool, size, room int) *rankModel {
	m := &rankModel{c: c, direct: direct, size: size, room: room}
	for i := range 4 {
		p := sequence(16 * 12)
		p.tokens[i*40] = uint32(i) // shares more and more of its beginning
		m.prompts = append(m.prompts, p)
	}
	m.restart()
	return m
}

func (m *rankModel) space() KeySpace {
	if m.direct {
		return KeySpace{Mode: KeysDirect}
	}
	return KeySpace{}
}

// restart begins a new process, whose keys are others.
func (m *rankModel) restart() {
	m.process++
	m.refs, m.owned, m.events, m.ring, m.truth = map[EngineKey]*[tiers]int{}, map[EngineKey][]Key{}, nil, nil, nil
	for i := range m.prompts {
		own := m.prompts[i].keys(DefaultBlock)
		for j, k := range m.keys(i) {
			m.owned[k] = own[j*m.size/DefaultBlock : (j+1)*m.size/DefaultBlock]
			if m.direct {
				m.owned[k] = []Key{Key(k)}
			}
			m.refs[k] = &[tiers]int{}
		}
	}
}

func (m *rankModel) keys(prompt int) []EngineKey {
	if m.direct {
		return m.digests(prompt)
	}
	keys := m.prompts[prompt].engineKeys(m.size)
	for i := range keys {
		keys[i] ^= EngineKey(m.process << 40)
	}
	return keys
}

// digests are the keys of an engine that hashes as is known; each of its processes
// does.
func (m *rankModel) digests(prompt int) []EngineKey {
	for len(m.hashed) <= prompt {
		var keys []EngineKey
		for _, d := range NewHasher(VLLMRoot(VLLMUnseeded), m.size).Chain(nil, m.prompts[len(m.hashed)].tokens, nil) {
			keys = append(keys, EngineKey(d.Low()))
		}
		m.hashed = append(m.hashed, keys)
	}
	return m.hashed[prompt]
}

// serve stores what the GPU does not have yet of a prompt's first n blocks.
func (m *rankModel) serve(prompt, n int) {
	keys := m.keys(prompt)
	n = min(n, len(keys))
	from := 0
	for from < n && m.refs[keys[from]][TierGPU] > 0 {
		from++
	}
	if from == n {
		return
	}
	e := m.prompts[prompt].event(m.c, m.size, from, n)
	e.Blocks = keys[from:n]
	if from > 0 {
		e.Parent = keys[from-1]
	}
	for _, k := range e.Blocks {
		m.refs[k][TierGPU]++
	}
	m.events = append(m.events, e)
}

// evict removes the last block that a tier has of a prompt.
func (m *rankModel) evict(prompt int, tier Tier) {
	for _, k := range slices.Backward(m.keys(prompt)) {
		if m.refs[k][tier] > 0 {
			m.refs[k][tier]--
			m.events = append(m.events, gone(tier, k))
			return
		}
	}
}

// offload copies the first n blocks of a prompt that the GPU has.
func (m *rankModel) offload(prompt, n int) {
	for _, k := range m.keys(prompt) {
		if m.refs[k][TierGPU] > 0 && n > 0 {
			m.refs[k][TierCPU]++
			m.events = append(m.events, copies(TierCPU, k))
			n--
		}
	}
}

func (m *rankModel) clear() {
	for _, r := range m.refs {
		*r = [tiers]int{}
	}
	m.events = append(m.events, Event{Kind: Cleared})
}

// publish sends what has happened as one batch.
func (m *rankModel) publish() sent {
	m.now++
	s := sent{uint64(len(m.truth)), m.c.AppendBatch(nil, m.now, 3, m.events)}
	m.events = nil
	m.ring = append(m.ring, s)
	m.ring = m.ring[max(0, len(m.ring)-m.room):]
	var h holdings
	for k, r := range m.refs {
		for tier := range tiers {
			for _, own := range m.owned[k] {
				if r[tier] > 0 {
					if h[tier] == nil {
						h[tier] = map[Key]bool{}
					}
					h[tier][own] = true
				}
			}
		}
	}
	m.truth = append(m.truth, h)
	return s
}

// line is what lies between a publisher and a follower, and the index behind it.
type line struct {
	t         *rapid.T
	m         *rankModel
	f         *Follower
	h         holdings
	canReplay bool
	maxHeld   int
	depth     int
}

func (l *line) do(d Do) {
	if l.m.direct {
		l.h.applyAll(d.Changes)
	} else {
		l.h.apply(d.Changes, l.t.Fatalf)
	}
	if !d.Replay {
		return
	}
	if l.depth++; l.depth > 100 {
		l.t.Fatalf("replays without end")
	}
	defer func() { l.depth-- }()
	l.replay(d.From)
}

// replay answers from the ring, while new batches may come. A replay asked for on
// the way takes its place.
func (l *line) replay(from uint64) {
	ring := slices.Clone(l.m.ring)
	if rapid.IntRange(0, 5).Draw(l.t, "meanwhile") == 0 {
		if asked := l.asked(); l.live(l.m.publish()) && l.asked() != asked {
			return
		}
	}
	if rapid.IntRange(0, 8).Draw(l.t, "replay") == 0 {
		l.do(l.f.Failed())
		return
	}
	asked := l.asked()
	for _, s := range ring {
		if s.seq < from {
			continue
		}
		l.do(l.f.Replayed(s.seq, s.payload))
		if l.asked() != asked {
			return
		}
	}
	l.do(l.f.Ended())
}

func (l *line) asked() uint64 { return l.f.Status().Feed.Replays }

func (l *line) live(s sent) bool {
	l.do(l.f.Live(s.seq, s.payload))
	return true
}

func (l *line) reconnect() {
	l.do(l.f.Disconnected())
	l.do(l.f.Connected())
}

// handOver has a new follower go on from the old one's state.
func (l *line) handOver() {
	l.do(l.f.Disconnected())
	l.h.close(l.f, l.t.Fatalf)
	state := l.f.AppendState(nil)
	l.f = NewFollower(l.m.space(), l.canReplay, 1000, l.maxHeld)
	if err := l.f.LoadState(state); err != nil {
		l.t.Fatal(err)
	}
	l.h.close(l.f, l.t.Fatalf)
	l.do(l.f.Connected())
}

// close checks that what f knows is h.
func (h *holdings) close(f *Follower, fail func(string, ...any)) {
	var known holdings
	for c := range f.Known() {
		for i, k := range c.Keys {
			if i == 0 && c.Parent != 0 && f.Status().Whole && !known.anywhere(c.Parent) && h.anywhere(c.Parent) {
				fail("a block before its parent")
			}
			if known[c.Tier] == nil {
				known[c.Tier] = map[Key]bool{}
			}
			known[c.Tier][k] = true
		}
	}
	for tier := range tiers {
		if len(known[tier])+len(h[tier]) > 0 && !maps.Equal(known[tier], h[tier]) {
			fail("tier %d: %d known, %d told", tier, len(known[tier]), len(h[tier]))
		}
	}
}

func (h *holdings) anywhere(k Key) bool {
	for tier := range tiers {
		if h[tier][k] {
			return true
		}
	}
	return false
}

// check compares what is believed with the truth as of the last batch applied:
// never more, and all of it when the follower says so.
func (l *line) check() {
	s := l.f.Status()
	if s.State != FeedLive {
		return
	}
	truth := &holdings{} // of an engine that has published nothing
	if s.Next > 0 {
		truth = &l.m.truth[s.Next-1]
	}
	for tier := range tiers {
		for k := range l.h[tier] {
			if !truth[tier][k] {
				l.t.Fatalf("tier %d: %x is believed and not there; %+v", tier, k, s)
			}
		}
		if s.Whole && len(l.h[tier]) != len(truth[tier]) {
			l.t.Fatalf("tier %d: %d believed of %d; %+v", tier, len(l.h[tier]), len(truth[tier]), s)
		}
	}
}

func (l *line) happen() {
	t, m := l.t, l.m
	for range rapid.IntRange(0, 3).Draw(t, "events") {
		p := rapid.IntRange(0, len(m.prompts)-1).Draw(t, "prompt")
		switch rapid.IntRange(0, 9).Draw(t, "event") {
		case 0, 1:
			m.evict(p, TierGPU)
		case 2:
			m.evict(p, TierCPU)
		case 3:
			m.offload(p, rapid.IntRange(1, 4).Draw(t, "copies"))
		default:
			m.serve(p, rapid.IntRange(1, 12).Draw(t, "blocks"))
		}
	}
	if rapid.IntRange(0, 30).Draw(t, "clear") == 0 {
		m.clear()
	}
}

func (l *line) deliver() {
	t, m := l.t, l.m
	switch rapid.IntRange(0, 13).Draw(t, "transport") {
	case 0: // lost
		m.publish()
	case 1: // doubled
		s := m.publish()
		l.live(s)
		l.live(s)
	case 2: // swapped
		a, b := m.publish(), m.publish()
		l.live(b)
		l.live(a)
	case 3: // damaged on the way
		s := m.publish()
		l.live(sent{s.seq, s.payload[:rapid.IntRange(0, len(s.payload)-1).Draw(t, "cut")]})
	case 4: // damaged for good
		m.publish()
		last := &m.ring[len(m.ring)-1]
		last.payload = last.payload[:len(last.payload)-1]
		l.live(*last)
	case 5:
		m.restart()
		if rapid.Bool().Draw(t, "says so") {
			m.clear()
		}
		for range rapid.IntRange(0, 3).Draw(t, "young") {
			m.publish()
			l.happen()
		}
		l.reconnect()
	case 6:
		for range rapid.IntRange(0, 6).Draw(t, "missed") {
			m.publish()
		}
		l.reconnect()
	case 7:
		l.do(l.f.Overflow())
	case 8:
		l.handOver()
	default:
		l.live(m.publish())
	}
}

// TestFollowerIsNeverWrong has an engine serve behind a transport that fails in
// every way, and compares what is believed with what is there.
func TestFollowerIsNeverWrong(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &line{
			t: t, canReplay: rapid.IntRange(0, 3).Draw(t, "replay") > 0, maxHeld: rapid.SampledFrom([]int{0, 300, 1 << 20}).Draw(t, "held"),
			m: newRankModel(
				Encoding(rapid.IntRange(0, int(Encodings)-1).Draw(t, "encoding")), rapid.IntRange(0, 3).Draw(t, "direct") == 0,
				rapid.SampledFrom([]int{1, 4, 16, 48}).Draw(t, "size"),
				rapid.SampledFrom([]int{1, 4, 100}).Draw(t, "ring"),
			),
		}
		l.f = NewFollower(l.m.space(), l.canReplay, 1000, l.maxHeld)
		l.do(l.f.Connected())
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			l.happen()
			l.deliver()
			l.check()
		}
		for range 3 {
			l.happen()
			l.live(l.m.publish())
			l.check()
		}
		s := l.f.Status()
		if s.State == FeedMisfit && s.Misfit == MisfitUnproven && l.m.direct {
			s.State = FeedLive // no chain has begun since
		}
		if s.State != FeedLive || s.Next != uint64(len(l.m.truth)) || s.Rank != 3 || s.Batch != l.m.now {
			t.Fatalf("after 3 good batches: %+v", s)
		}
	})
}

// told is a payload that stores the first blocks of one chain.
func storing(time float64, from, to int) []byte {
	p := sequence(16 * 32)
	return VLLMMap.AppendBatch(nil, time, 0, []Event{p.event(VLLMMap, 16, from, to)})
}

func TestFollowerWaitsForReplay(t *testing.T) {
	f := NewFollower(KeySpace{}, true, 100, 1000)
	if d := f.Connected(); !d.Replay || d.From != 0 || len(d.Changes) != 0 {
		t.Fatalf("%+v", d)
	}
	if d := f.Live(1, storing(2, 2, 3)); len(d.Changes) != 0 || f.Status().Waiting == 0 {
		t.Fatalf("%+v", d)
	}
	if d := f.Replayed(0, storing(1, 0, 2)); len(d.Changes) != 1 || len(d.Changes[0].Keys) != 2 {
		t.Fatalf("%+v", d)
	}
	if d := f.Ended(); len(d.Changes) != 1 || len(d.Changes[0].Keys) != 1 || f.Status().State != FeedLive || !f.Status().Whole {
		t.Fatalf("%+v, %+v", d, f.Status())
	}
	// A batch in which a removal cannot be read is asked for again.
	broken := VLLMMap.AppendBatch(nil, 3, 0, []Event{gone(TierGPU, 1)})
	broken[10+len("xxxx")] = 0xc0
	if d := f.Live(2, broken); !d.Replay || d.From != 2 {
		t.Fatalf("%+v, %+v", d, f.Status())
	}
	// No room for what comes meanwhile: all is forgotten.
	d := f.Live(3, make([]byte, 0, 2000))
	for seq := uint64(3); f.Status().State == FeedGap && seq < 10; seq++ {
		d = f.Live(seq, storing(float64(seq), 0, 32))
	}
	if len(d.Changes) != 1 || d.Changes[0].Kind != ChangeClear || f.Status().State != FeedUnknown || f.Status().Feed.Overflows != 1 || f.Status().Waiting != 0 {
		t.Fatalf("%+v, %+v", d, f.Status())
	}
}

func TestFollowerProvesItsState(t *testing.T) {
	old := NewFollower(KeySpace{}, true, 100, 1000)
	old.Connected()
	old.Ended()
	old.Live(0, storing(1, 0, 2))
	state := old.AppendState(nil)
	for name, c := range map[string]struct {
		time    float64
		changes int
		whole   bool
	}{"the same process": {1, 0, true}, "another": {1.5, 1, false}} {
		f := NewFollower(KeySpace{}, true, 100, 1000)
		if err := f.LoadState(state); err != nil || f.Status().State != FeedConnecting || f.Status().Held != 2 {
			t.Fatalf("%v, %+v", err, f.Status())
		}
		if d := f.Connected(); !d.Replay || d.From != 0 {
			t.Fatalf("%s: %+v", name, d)
		}
		d := f.Replayed(0, storing(c.time, 0, 2))
		if !d.Replay { // else that of the other process is still to come
			f.Ended()
		}
		if len(d.Changes) != c.changes || f.Status().Whole != c.whole {
			t.Errorf("%s: %+v, %+v", name, d, f.Status())
		}
	}
	for name, f := range map[string]*Follower{
		"another block": NewFollower(KeySpace{Block: 32}, true, 100, 1000), "another mode": NewFollower(KeySpace{Mode: KeysDirect}, true, 100, 1000),
		"another root": NewFollower(KeySpace{Root: VLLMRoot("7")}, true, 100, 1000),
	} {
		if err := f.LoadState(state); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range state {
		if err := NewFollower(KeySpace{}, true, 100, 1000).LoadState(state[:i]); !errors.Is(err, ErrState) {
			t.Fatalf("the first %d bytes: %v", i, err)
		}
	}
}

// sound checks what must hold of names whatever was said.
func (n *Names) sound(fail func(string, ...any)) {
	held, orphans := 0, 0
	for i := range n.tab.slots {
		e := &n.tab.slots[i]
		if e.flags != 0 && n.tab.find(e.engine) != i {
			fail("slot %d cannot be found", i)
		}
		if e.held() {
			held++
		}
		if e.flags&nameOrphan != 0 {
			orphans++
			if r := n.orphans.at(uint32(e.hash)); !r.used || !slices.Contains(r.blocks, e.engine) {
				fail("slot %d waits for nothing", i)
			}
		}
	}
	if held != n.held || n.tab.n > n.max || len(n.ready) != 0 || (orphans > 0 && n.orphans.waiting == 0) {
		fail("%d held, counted as %d; %d known of %d; %d ready, %d wait in %d", held, n.held, n.tab.n, n.max, len(n.ready), orphans, n.orphans.waiting)
	}
}

// FuzzFollower reads its input as a list of what happens: a byte that says what,
// one for the sequence number, two for the payload's length, the payload.
func FuzzFollower(f *testing.F) {
	op := func(what, seq byte, payload []byte) []byte {
		return append([]byte{what, seq, byte(len(payload)), byte(len(payload) >> 8)}, payload...)
	}
	f.Add(true, byte(16), slices.Concat(op(0, 0, nil), op(4, 0, nil), op(2, 0, storing(1, 0, 3)), op(2, 2, storing(3, 4, 5)), op(3, 1, storing(2, 3, 4)), op(4, 0, nil)))
	f.Add(false, byte(7), slices.Concat(op(0, 0, nil), op(2, 1, storing(1, 2, 9)), op(2, 2, storing(1, 0, 2)), op(7, 0, nil), op(2, 9, storing(5, 0, 2))))
	for _, c := range []Encoding{VLLMArray, SGLangArray, Mooncake} {
		p := sequence(64)
		f.Add(true, byte(16), slices.Concat(op(0, 0, nil), op(4, 0, nil), op(2, 0, c.AppendBatch(nil, 1, 0, []Event{p.event(c, 16, 1, 4), p.event(c, 16, 0, 1), gone(TierGPU, 4)}))))
	}
	f.Fuzz(func(t *testing.T, replay bool, block byte, input []byte) {
		fo := NewFollower(KeySpace{Block: int(block)}, replay, 100, 500)
		for len(input) >= 4 {
			what, seq, n := input[0], uint64(input[1]), min(len(input)-4, int(input[2])|int(input[3])<<8)
			payload := input[4 : 4+n]
			input = input[4+n:]
			var d Do
			switch what % 8 {
			case 0:
				d = fo.Connected()
			case 1:
				d = fo.Disconnected()
			case 2:
				d = fo.Live(seq, payload)
			case 3:
				d = fo.Replayed(seq, payload)
			case 4:
				d = fo.Ended()
			case 5:
				d = fo.Failed()
			case 6:
				d = fo.Overflow()
			case 7:
				next := NewFollower(KeySpace{Block: int(block)}, replay, 100, 500)
				if err := next.LoadState(fo.AppendState(nil)); err != nil {
					t.Fatal(err)
				}
				fo = next
			}
			for _, c := range d.Changes {
				if len(c.Keys) == 0 && c.Kind != ChangeClear || c.Kind == 0 || int(c.Tier) >= tiers {
					t.Fatalf("%+v", c)
				}
			}
			if s := fo.Status(); s.Waiting > 500 || s.Held > 100 {
				t.Fatalf("%+v", s)
			}
			fo.names.sound(t.Fatalf)
		}
	})
}

func FuzzLoadState(f *testing.F) {
	fo := NewFollower(KeySpace{}, true, 100, 500)
	fo.Connected()
	fo.Ended()
	fo.Live(0, storing(1, 0, 3))
	p := sequence(192)
	fo.Live(1, VLLMMap.AppendBatch(nil, 2, 0, []Event{p.event(VLLMMap, 48, 0, 3), copies(TierCPU, p.engineKeys(16)[0])}))
	state := fo.AppendState(nil)
	f.Add(state[:len(state)-stateTail])
	f.Fuzz(func(t *testing.T, state []byte) {
		fo := NewFollower(KeySpace{}, true, 50, 500)
		if fo.LoadState(binary.LittleEndian.AppendUint64(slices.Clone(state), xxhash.Sum64(state))) != nil {
			if s := fo.Status(); s.Held != 0 || s.Next != 0 {
				t.Fatalf("%+v after an error", s)
			}
			return
		}
		for range fo.Known() {
			fo.names.sound(t.Fatalf)
		}
		again := NewFollower(KeySpace{}, true, 50, 500)
		if err := again.LoadState(fo.AppendState(nil)); err != nil || again.Status().Held != fo.Status().Held {
			t.Fatalf("%v", err)
		}
		fo.Connected()
		fo.Replayed(fo.feed.next-1, storing(1, 1, 5))
		fo.Ended()
		fo.Live(fo.feed.next, VLLMMap.AppendBatch(nil, 9, 0, []Event{gone(TierGPU, p.engineKeys(16)...)}))
		fo.names.sound(t.Fatalf)
	})
}

func TestFollowerAllocatesNothing(t *testing.T) {
	payloads, _ := stream(VLLMMap, 16)
	f := NewFollower(KeySpace{}, true, 10_000, 1<<20)
	f.Connected()
	f.Ended()
	seq := uint64(0)
	all := func() {
		for _, p := range payloads {
			f.Live(seq, p)
			seq++
		}
	}
	all()
	if got := testing.AllocsPerRun(10, all); got > 0 || f.Status().Feed.Applied != seq {
		t.Errorf("%v allocations, %+v", got, f.Status())
	}
}
