package kv

import (
	"testing"

	"pgregory.net/rapid"
)

// said is one batch of one process.
type said struct {
	process int
	FeedBatch
}

// publisher is an engine with a ring of its last batches, and follower a shell
// around a feed: it delivers, holds, and answers replays at once.
type publisher struct {
	process int
	seq     uint64
	now     float64
	ring    []said
	room    int
}

func (p *publisher) publish() said {
	p.now++
	b := said{p.process, FeedBatch{Seq: p.seq, Time: p.now}}
	p.seq++
	p.ring = append(p.ring, b)
	p.ring = p.ring[max(0, len(p.ring)-p.room):]
	return b
}

func (p *publisher) restart() { p.process, p.seq, p.ring = p.process+1, 0, nil }

type follower struct {
	feed   Feed
	from   *publisher
	held   []said
	belief []said
	depth  int
	fail   func(format string, args ...any)
}

// do carries out what the feed wants about b. Whatever is applied must follow
// what is believed, from the same process, without a gap.
func (f *follower) do(d FeedDo, b said) {
	if f.depth++; f.depth > 200 {
		f.fail("the feed asks without end")
		return
	}
	defer func() { f.depth-- }()
	if d.Clear {
		f.belief = nil
	}
	if d.Apply {
		if n := len(f.belief); n > 0 && (f.belief[n-1].process != b.process || f.belief[n-1].Seq+1 != b.Seq) {
			f.fail("%+v applied after %+v", b, f.belief[n-1])
		}
		if b.Damaged {
			f.fail("%+v applied, which is damaged", b)
		}
		f.belief = append(f.belief, b)
	}
	if d.Hold {
		f.held = append(f.held, b)
	}
	if d.Release {
		held := f.held
		f.held = nil
		for _, h := range held {
			f.do(f.feed.Live(h.FeedBatch), h)
		}
	}
	if d.Replay {
		f.replay(d.From)
	}
}

// replay answers from the ring; a replay asked for on the way takes its place.
func (f *follower) replay(from uint64) {
	asked := f.feed.Counts().Replays
	for _, b := range f.from.ring {
		if b.Seq < from {
			continue
		}
		f.do(f.feed.Replayed(b.FeedBatch), b)
		if f.feed.Counts().Replays != asked {
			return
		}
	}
	f.do(f.feed.Ended(), said{})
}

func (f *follower) live(b said) { f.do(f.feed.Live(b.FeedBatch), b) }

func (f *follower) reconnect() {
	f.do(f.feed.Disconnected(), said{})
	f.held = nil
	f.do(f.feed.Connected(), said{})
}

func follow(canReplay bool, room int, fail func(string, ...any)) (*follower, *publisher) {
	p := &publisher{room: room}
	f := &follower{feed: NewFeed(canReplay), from: p, fail: fail}
	f.do(f.feed.Connected(), said{})
	return f, p
}

// TestFeedNeverMixes throws faults at a feed: what is believed is one run of
// one process's batches at all times, and a few whole batches later it is live
// at the publisher's last.
func TestFeedNeverMixes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		canReplay := rapid.Bool().Draw(t, "replay")
		f, p := follow(canReplay, rapid.IntRange(1, 12).Draw(t, "ring"), t.Fatalf)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 12).Draw(t, "what") {
			case 0: // lost
				p.publish()
			case 1: // doubled
				b := p.publish()
				f.live(b)
				f.live(b)
			case 2: // swapped
				a, b := p.publish(), p.publish()
				f.live(b)
				f.live(a)
			case 3: // damaged on the way
				b := p.publish()
				b.Damaged = true
				f.live(b)
			case 4: // damaged for good
				p.publish()
				p.ring[len(p.ring)-1].Damaged = true
				f.live(p.ring[len(p.ring)-1])
			case 5:
				p.restart()
				for range rapid.IntRange(0, 3).Draw(t, "young") {
					p.publish()
				}
				f.reconnect()
			case 6:
				for range rapid.IntRange(0, 15).Draw(t, "missed") {
					p.publish()
				}
				f.reconnect()
			case 7:
				f.do(f.feed.Overflow(), said{})
			default:
				f.live(p.publish())
			}
		}
		for range 3 {
			f.live(p.publish())
		}
		if n := len(f.belief); f.feed.State() != FeedLive || n < 3 || f.belief[n-1].Seq != p.seq-1 || f.belief[n-1].process != p.process {
			t.Fatalf("%v after 3 good batches, %d believed, %+v", f.feed.State(), n, f.feed.Counts())
		}
	})
}

func TestFeedAnswersToFaults(t *testing.T) {
	for name, c := range map[string]struct {
		canReplay bool
		room      int
		script    func(*follower, *publisher)
		believed  int // batches
		whole     bool
		want      FeedCounts
	}{
		"joins late": {true, 100, func(_ *follower, _ *publisher) {}, 4, true, FeedCounts{Applied: 4, Replays: 1}},
		"one lost":   {true, 100, func(_ *follower, p *publisher) { p.publish() }, 6, true, FeedCounts{Applied: 6, Gaps: 1, Replays: 2, Duplicate: 1}},
		"one lost, no replay": {false, 100, func(_ *follower, p *publisher) { p.publish() }, 1, false, FeedCounts{
			Applied: 5, Gaps: 1, Lost: 1,
		}},
		"more lost than the ring has": {true, 2, func(_ *follower, p *publisher) {
			for range 5 {
				p.publish()
			}
		}, 2, false, FeedCounts{Applied: 6, Gaps: 1, Replays: 2, Lost: 1, Duplicate: 1}},
		"a new process": {true, 100, func(f *follower, p *publisher) {
			p.restart()
			p.publish()
			f.reconnect()
		}, 2, true, FeedCounts{Applied: 6, Replays: 3, Restarts: 1, Disconnect: 1}},
		"a new process over the old connection": {true, 100, func(_ *follower, p *publisher) { p.restart() }, 1, true, FeedCounts{
			Applied: 5, Replays: 1, Restarts: 1,
		}},
		"a blip": {true, 100, func(f *follower, _ *publisher) { f.reconnect() }, 5, true, FeedCounts{Applied: 5, Replays: 2, Disconnect: 1}},
		"a blip, no replay": {false, 100, func(f *follower, _ *publisher) { f.reconnect() }, 1, false, FeedCounts{
			Applied: 5, Lost: 1, Disconnect: 1,
		}},
		"cleared after a loss": {false, 100, func(f *follower, p *publisher) {
			p.publish()
			b := p.publish()
			b.Clears = true
			f.live(b)
		}, 2, true, FeedCounts{Applied: 6, Gaps: 1, Lost: 1}},
	} {
		f, p := follow(c.canReplay, c.room, t.Fatalf)
		if c.canReplay && name == "joins late" {
			p.publish()
			p.publish()
			p.publish()
			f, _ = &follower{feed: NewFeed(true), from: p, fail: t.Fatalf}, p
			f.do(f.feed.Connected(), said{})
		} else {
			for range 4 {
				f.live(p.publish())
			}
			c.script(f, p)
		}
		f.live(p.publish())
		if f.feed.State() != FeedLive || len(f.belief) != c.believed || f.feed.Whole() != c.whole || f.feed.Counts() != c.want {
			t.Errorf("%s: %v, %d believed, whole %v, %+v; want %d, %v, %+v",
				name, f.feed.State(), len(f.belief), f.feed.Whole(), f.feed.Counts(), c.believed, c.whole, c.want)
		}
	}
}
