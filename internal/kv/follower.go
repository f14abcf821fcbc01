package kv

import "encoding/binary"

// Follower turns what comes from one rank's publisher into changes of an index
// in own keys: it composes a feed, names, and the batches that have to wait. It
// has no clock and no connection: a shell or a simulator tells it what happens
// and does what it says.
//
// What its changes add up to is exactly what the engine holds whenever its
// status says live and whole.
type Follower struct {
	feed  Feed
	names *Names
	batch Batch
	held  []byte // batches that wait: sequence number, length, payload
	spare []byte // the other buffer, while those that waited are handed in again
	max   int    // bytes of held
	rank  int32  // as the last batch says; -1 when not said
	do    Do
}

// Do is what is to be done about an input.
type Do struct {
	Changes []Change // in order; good until the next call
	Replay  bool     // ask for a replay from From, and forget one that runs
	From    uint64   // a sequence number
}

// FollowerStatus is what a follower's word is worth.
type FollowerStatus struct {
	State    FeedState
	Whole    bool // all that the rank holds is known, not just what changed since a loss
	Feed     FeedCounts
	Names    NameCounts
	Held     int     // engine keys that the engine has
	Known    int     // engine keys in memory
	Orphans  int     // events that wait for their parent
	Waiting  int     // bytes of batches that wait
	Batch    float64 // s, time of the last batch on the publisher's clock; 0 none
	Next     uint64  // sequence number expected
	Rank     int32   // as batches say; -1 when they do not
	Provable bool    // the engine's keys are sha256_cbor from the root, as far as seen
	Misfit   Misfit  // why a feed in sequence is FeedMisfit
	Block    int     // tokens of the engine's blocks; 0 not known
	Form     ExtraForm
}

// NewFollower returns a follower that is not connected. canReplay says that the
// engine can be asked for past batches; maxNames bounds the engine keys known,
// maxHeld the bytes of batches that wait for a replay.
func NewFollower(s KeySpace, canReplay bool, maxNames, maxHeld int) *Follower {
	return &Follower{feed: NewFeed(canReplay), names: NewNames(s, maxNames), max: maxHeld, rank: -1}
}

// Connected says that live batches come from now on.
func (f *Follower) Connected() Do {
	f.begin()
	f.held = f.held[:0]
	return f.end(f.feed.Connected())
}

// Disconnected says that batches may be missed from now on. What was known
// stands, but is not vouched for.
func (f *Follower) Disconnected() Do {
	f.begin()
	f.held = f.held[:0]
	return f.end(f.feed.Disconnected())
}

// Live takes a batch that was just published.
func (f *Follower) Live(seq uint64, payload []byte) Do {
	f.begin()
	f.live(seq, payload)
	return f.do
}

// Replayed takes a batch out of the publisher's past.
func (f *Follower) Replayed(seq uint64, payload []byte) Do {
	f.begin()
	f.carryOut(f.feed.Replayed(f.read(seq, payload)), seq, payload)
	return f.do
}

// Ended says that a replay has come to its end mark.
func (f *Follower) Ended() Do {
	f.begin()
	return f.end(f.feed.Ended())
}

// Failed says that a replay cannot be had: refused, cut off, or too late.
func (f *Follower) Failed() Do {
	f.begin()
	return f.end(f.feed.Failed())
}

// Overflow says that a batch was dropped on the way here.
func (f *Follower) Overflow() Do {
	f.begin()
	f.overflow()
	return f.do
}

// Status returns what the follower's word is worth now.
func (f *Follower) Status() FollowerStatus {
	return FollowerStatus{
		State: f.state(), Whole: f.feed.Whole() && f.names.Complete(), Feed: f.feed.Counts(), Names: f.names.Counts(),
		Held: f.names.Held(), Known: f.names.tab.n, Orphans: f.names.orphans.waiting, Waiting: len(f.held),
		Batch: f.feed.last, Next: f.feed.next, Rank: f.rank, Provable: f.names.Provable(),
		Misfit: f.names.Misfit(), Block: f.names.EngineBlock(), Form: f.names.Form(),
	}
}

// state is the feed's, but that nothing vouches for keys that mean nothing here.
func (f *Follower) state() FeedState {
	if s := f.feed.State(); s != FeedLive || f.names.Misfit() == MisfitNone {
		return s
	}
	return FeedMisfit
}

func (f *Follower) begin() {
	f.names.keys = f.names.keys[:0]
	f.do = Do{Changes: f.do.Changes[:0]}
}

func (f *Follower) end(d FeedDo) Do {
	f.carryOut(d, 0, nil)
	return f.do
}

func (f *Follower) live(seq uint64, payload []byte) {
	f.carryOut(f.feed.Live(f.read(seq, payload)), seq, payload)
}

// read decodes a payload. One in which a removal may be missing is damaged: what
// it named would be believed cached for ever.
func (f *Follower) read(seq uint64, payload []byte) FeedBatch {
	err := f.batch.Decode(payload)
	if f.batch.Rank >= 0 {
		f.rank = f.batch.Rank
	}
	return FeedBatch{Seq: seq, Time: f.batch.Time, Clears: f.batch.Clears(), Damaged: err != nil || f.batch.Holes}
}

// carryOut does what the feed wants about the batch just read.
func (f *Follower) carryOut(d FeedDo, seq uint64, payload []byte) {
	if d.Clear {
		if d.Other {
			f.names.Clear()
		} else {
			f.names.Lose()
		}
		f.do.Changes = append(f.do.Changes, Change{Kind: ChangeClear})
		if d.Replay {
			// All from the beginning on comes again, and what waits may be
			// another process's.
			f.held = f.held[:0]
		}
	}
	if d.Apply {
		f.do.Changes = f.names.apply(&f.batch, f.do.Changes)
	}
	if d.Replay {
		f.do.Replay, f.do.From = true, d.From
	}
	if d.Hold {
		f.hold(seq, payload)
	}
	if d.Release {
		f.release()
	}
}

const heldHead = 12 // bytes before a payload that waits

func (f *Follower) hold(seq uint64, payload []byte) {
	if len(f.held)+heldHead+len(payload) > f.max {
		f.overflow()
		return
	}
	f.held = binary.LittleEndian.AppendUint64(f.held, seq)
	f.held = binary.LittleEndian.AppendUint32(f.held, uint32(len(payload)))
	f.held = append(f.held, payload...)
}

// overflow forgets what waits along with what was believed: a replay that is
// running no longer matters.
func (f *Follower) overflow() {
	f.held = f.held[:0]
	f.do.Replay = false
	f.carryOut(f.feed.Overflow(), 0, nil)
}

// release hands in again what waits. Some of it may have to wait once more.
func (f *Follower) release() {
	waited := f.held
	f.held, f.spare = f.spare[:0], waited
	for len(waited) > 0 {
		seq, n := binary.LittleEndian.Uint64(waited), heldHead+int(binary.LittleEndian.Uint32(waited[8:]))
		f.live(seq, waited[heldHead:n])
		waited = waited[n:]
	}
}
