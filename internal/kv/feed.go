package kv

import "math"

// FeedState is what the stream of one rank's events is worth.
type FeedState uint8

// The states of a feed. Only FeedLive vouches for what it has said.
const (
	FeedConnecting FeedState = iota // no connection: what was cached may have gone since
	FeedReplaying                   // connected; the history is being asked for, or checked
	FeedLive                        // in sequence
	FeedGap                         // batches are missing and have been asked for again
	FeedUnknown                     // the history is lost and forgotten; nothing has come since
	FeedRestarted                   // a new process speaks; its beginning has been asked for
	FeedMisfit                      // in sequence, but its keys are not what requests' would be; see Misfit
)

// String names s for logs and metrics.
func (s FeedState) String() string {
	names := [...]string{"connecting", "replaying", "live", "gap", "unknown", "restarted", "misfit"}
	return names[min(int(s), len(names)-1)]
}

// EndOfReplay is the sequence number of the mark that ends a replay.
const EndOfReplay = math.MaxUint64

// How patient a feed is.
const (
	// feedAsks is how often in a row a replay may leave a gap open: a batch that
	// is broken in the publisher's ring is broken every time.
	feedAsks = 3
	// feedStale is how many old batches in a row, in rising order, are a new
	// process whose clock is behind rather than copies.
	feedStale = 3
)

// FeedCounts counts what became of batches.
type FeedCounts struct {
	Applied    uint64 // batches
	Duplicate  uint64 // batches dropped since they were applied before, or given up
	Damaged    uint64 // batches that could not be read
	Gaps       uint64 // times that a batch was missing
	Replays    uint64 // times that a replay was asked for
	Lost       uint64 // times that history was given up and forgotten
	Restarts   uint64 // new processes at the other end
	Overflows  uint64 // times that this side could not keep up
	Disconnect uint64 // connections lost
}

// FeedBatch is what a feed must know of a batch.
type FeedBatch struct {
	Seq     uint64
	Time    float64 // s, on the publisher's clock
	Clears  bool    // it empties the cache
	Damaged bool    // it cannot be read, or not the removals in it
}

// FeedDo is what the caller does about an input, in the order of the fields.
type FeedDo struct {
	Clear   bool   // forget all that this rank is believed to hold
	Other   bool   // with Clear: another process speaks, whose keys are its own
	Apply   bool   // apply the batch handed in
	Hold    bool   // keep the batch for when Release comes; if there is no room, say so with Overflow
	Release bool   // hand in again, as live, the batches held, in order
	Replay  bool   // ask for a replay from From, and forget one that runs
	From    uint64 // a sequence number
}

// Feed follows the sequence of one rank's batches, and decides what may be
// believed. It never serves a gap as truth: what cannot be filled is forgotten.
//
// A batch older than expected is a copy, or the word of a new process: a new
// process writes later than the last batch applied, a copy does not.
type Feed struct {
	canReplay bool
	state     FeedState
	known     bool   // next and last are set
	whole     bool   // every batch since the cache was empty has been applied
	anchor    bool   // the first batch of this replay must be the last applied
	fresh     bool   // nothing has come over this connection yet
	next      uint64 // sequence number expected
	last      float64
	asks      int
	stale     int
	staleSeq  uint64
	asked     uint64 // from where on the last replay was
	untouched bool   // it is one from the beginning, and nothing has come yet
	echo      uint64 // batches from here to echoEnd were published during a replay, and come once more
	echoEnd   uint64
	counts    FeedCounts
}

// NewFeed returns a feed that is not connected; canReplay says that the engine
// can be asked for past batches.
func NewFeed(canReplay bool) Feed { return Feed{canReplay: canReplay} }

// State returns the feed's state.
func (f *Feed) State() FeedState { return f.state }

// Whole reports whether what was said is all that the rank holds, and not just
// what has changed since a loss.
func (f *Feed) Whole() bool { return f.whole }

// Counts returns what became of batches.
func (f *Feed) Counts() FeedCounts { return f.counts }

// Connected says that live batches come from now on. What was known is proven by
// the last batch being replayed: a new process does not have it.
func (f *Feed) Connected() FeedDo {
	f.fresh, f.stale, f.asks = true, 0, 0
	if !f.canReplay {
		f.state = FeedUnknown
		if f.known {
			return f.lose() // a new process may have come to the very same number
		}
		return FeedDo{}
	}
	f.state, f.anchor = FeedReplaying, f.known && f.next > 0
	if f.anchor {
		return f.ask(f.next - 1)
	}
	return f.ask(0)
}

// Disconnected says that batches may be missed from now on.
func (f *Feed) Disconnected() FeedDo {
	f.state = FeedConnecting
	f.counts.Disconnect++
	return FeedDo{}
}

// Overflow says that this side had to drop a batch, held or applied.
func (f *Feed) Overflow() FeedDo {
	f.counts.Overflows++
	return f.lose()
}

// Live takes a batch that was just published.
func (f *Feed) Live(b FeedBatch) FeedDo {
	fresh := f.fresh
	if f.state == FeedConnecting || b.Seq == EndOfReplay {
		return FeedDo{}
	}
	if !f.asking() {
		f.fresh = false
	}
	if b.Damaged {
		f.counts.Damaged++
	}
	switch {
	case f.state == FeedReplaying && f.canReplay, f.state == FeedRestarted && !f.known:
		if f.known && !f.anchor && b.Seq < f.next {
			return f.old(b, false)
		}
		return f.hold(b)
	case !f.known && b.Damaged:
		return FeedDo{}
	case !f.known:
		return f.begin(b)
	case b.Seq < f.next:
		return f.old(b, fresh)
	case b.Seq == f.next && !b.Damaged:
		return f.apply(b)
	case f.state == FeedGap:
		return f.hold(b)
	}
	return f.gap(b)
}

// Replayed takes a batch out of the publisher's past.
func (f *Feed) Replayed(b FeedBatch) FeedDo {
	if !f.asking() {
		return FeedDo{}
	}
	if b.Damaged {
		f.counts.Damaged++
	}
	f.untouched = false
	switch {
	case f.anchor:
		return f.check(b)
	case !f.known && b.Damaged:
		return FeedDo{}
	case !f.known:
		return f.begin(b)
	case b.Seq < f.next:
		f.counts.Duplicate++
		return FeedDo{}
	case b.Damaged:
		// What it said is lost; what comes after it is not.
		do := f.forget()
		f.known, f.next, f.last = true, b.Seq+1, b.Time
		return do
	case b.Seq == f.next:
		return f.apply(b)
	}
	do := f.forget() // the ring no longer has what is missing
	do.Apply = f.begin(b).Apply
	return do
}

// Ended says that a replay has come to its end mark.
func (f *Feed) Ended() FeedDo {
	if !f.asking() {
		return FeedDo{}
	}
	if f.anchor { // nobody there knows the last batch
		return f.restart()
	}
	f.state, f.fresh = FeedLive, false
	f.echo, f.echoEnd = f.asked, f.next
	switch {
	case f.known:
	case f.untouched: // nothing has ever been published: that is all there is to know
		f.known, f.whole, f.next, f.last = true, true, 0, 0
	default:
		f.state = FeedUnknown
	}
	return FeedDo{Release: true}
}

// Failed says that a replay cannot be had: refused, cut off, or too late.
func (f *Feed) Failed() FeedDo {
	if !f.asking() {
		return FeedDo{}
	}
	do := f.lose()
	do.Release = true
	return do
}

// asking reports whether a replay runs.
func (f *Feed) asking() bool {
	return f.canReplay && (f.state == FeedReplaying || f.state == FeedGap || f.state == FeedRestarted)
}

func (f *Feed) ask(from uint64) FeedDo {
	f.counts.Replays++
	f.asked, f.echo, f.echoEnd = from, 0, 0
	f.untouched = from == 0
	return FeedDo{Replay: true, From: from}
}

// begin starts a sequence at b, of which nothing before is known. Publishers
// start at 0. One starts at 1, which looks like another whose first batch is
// lost: it is whole from when it clears, as are those that start anywhere.
func (f *Feed) begin(b FeedBatch) FeedDo {
	f.whole = b.Seq == 0
	f.known, f.next = true, b.Seq
	return f.apply(b)
}

func (f *Feed) apply(b FeedBatch) FeedDo {
	f.next, f.last, f.stale = b.Seq+1, b.Time, 0
	f.whole = f.whole || b.Clears
	f.counts.Applied++
	if !f.asking() {
		f.state, f.asks = FeedLive, 0
	}
	return FeedDo{Apply: true}
}

func (f *Feed) hold(b FeedBatch) FeedDo {
	if b.Damaged {
		return FeedDo{} // missed again after the replay, then asked for
	}
	return FeedDo{Hold: true}
}

// gap answers a batch that comes too early or cannot be read.
func (f *Feed) gap(b FeedBatch) FeedDo {
	f.counts.Gaps++
	if f.canReplay && f.asks < feedAsks {
		f.asks++
		f.state = FeedGap
		do := f.ask(f.next)
		do.Hold = f.hold(b).Hold
		return do
	}
	do := f.lose()
	if !b.Damaged {
		do.Apply = f.begin(b).Apply
	}
	return do
}

// old answers a batch that comes too late; first says that it is the first of a
// connection.
func (f *Feed) old(b FeedBatch, first bool) FeedDo {
	if b.Seq >= f.echo && b.Seq < f.echoEnd && b.Time <= f.last {
		f.echo = b.Seq + 1
		f.counts.Duplicate++
		return FeedDo{}
	}
	if f.stale == 0 || b.Seq > f.staleSeq {
		f.stale++
	} else {
		f.stale = 1
	}
	f.staleSeq = b.Seq
	if b.Damaged || (b.Time <= f.last && !first && (f.asking() || f.stale < feedStale)) {
		f.counts.Duplicate++
		return FeedDo{}
	}
	if b.Seq > 1 && f.canReplay {
		do := f.restart()
		do.Hold = true
		return do
	}
	f.counts.Restarts++
	f.state, f.asks = FeedLive, 0
	do := f.begin(b)
	do.Clear, do.Other = true, true
	return do
}

// check takes the first batch of a replay that must begin with the last one
// applied.
func (f *Feed) check(b FeedBatch) FeedDo {
	f.anchor = false
	switch {
	case b.Damaged:
		return f.restart() // nothing is proven
	case b.Seq+1 == f.next && b.Time == f.last:
		return FeedDo{}
	case b.Seq+1 == f.next:
		return f.restart()
	}
	do := f.forget()
	do.Apply = f.begin(b).Apply
	return do
}

// restart forgets the process that was and asks the one that is for its
// beginning.
func (f *Feed) restart() FeedDo {
	f.counts.Restarts++
	f.state, f.known, f.whole, f.anchor, f.asks, f.stale = FeedRestarted, false, false, false, 0, 0
	do := f.ask(0)
	do.Clear, do.Other = true, true
	return do
}

// forget gives up what was believed, in the middle of whatever goes on.
func (f *Feed) forget() FeedDo {
	f.counts.Lost++
	f.known, f.whole, f.anchor = false, false, false
	return FeedDo{Clear: true}
}

// lose gives up what was believed; the next batch is a new beginning.
func (f *Feed) lose() FeedDo {
	if f.state != FeedConnecting {
		f.state = FeedUnknown
	}
	f.asks, f.stale = 0, 0
	return f.forget()
}
