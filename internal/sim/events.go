package sim

import (
	"errors"
	"fmt"
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/stat"
)

// Events say how engines publish what they do with their blocks, and what gets
// lost of it. What is published is bytes, as live.
type Events struct {
	Encoding kv.Encoding
	Lag      time.Duration // of a batch on its way to a gateway, and of a question for past ones
	Ring     int           // batches that a publisher can give again; 0: it cannot be asked
	// Mapped has gateways hash the tokens in events, which costs a simulation a
	// multiple; otherwise the engines' keys are theirs.
	Mapped bool
	// Shares of batches: that never come, come twice, come after the one behind
	// them, are cut short on the way.
	Lose, Double, Swap, Corrupt float64
	ClearFirst                  bool // a new process begins with a batch that clears
	// Audit above 0 compares the gateways' indexes with the engines' caches, so far
	// apart.
	Audit time.Duration
}

func (e *Events) validate() error {
	if e == nil {
		return nil
	}
	var errs []error
	if e.Encoding >= kv.Encodings {
		errs = append(errs, fmt.Errorf("events.encoding: %d is none", e.Encoding))
	}
	if e.Lag < 0 || e.Audit < 0 || e.Ring < 0 {
		errs = append(errs, errors.New("events: lag, audit and ring must not be negative"))
	}
	for _, share := range []float64{e.Lose, e.Double, e.Swap, e.Corrupt} {
		if !(share >= 0 && share <= 1) {
			errs = append(errs, fmt.Errorf("events: a share must be from 0 to 1, is %v", share))
		}
	}
	return errors.Join(errs...)
}

// publisher is what one engine publishes.
type publisher struct {
	next    uint64 // sequence number
	ring    [][]byte
	first   uint64 // sequence number of ring[0]
	process uint64 // counts its processes: connections end with them
}

// line is what one gateway hears of one engine.
type line struct {
	follower *kv.Follower
	process  uint64 // it is connected to; 0 for none
	asked    uint64 // counts the replays asked for: one that is not the last is over
	late     []byte // a batch that comes after the one behind it
	lateSeq  uint64
	lost     bool // since the last time it was live and whole
	lostAt   fleet.Time
}

// letterKind is what comes over a line.
type letterKind uint8

const (
	letterLive letterKind = iota
	letterReplayed
	letterEnded
	letterFailed
	letterConnected
	letterBroken
)

// letter is something on its way over a line.
type letter struct {
	kind    letterKind
	what    int // the pair of gateway and replica
	process uint64
	asked   uint64
	seq     uint64
	payload []byte
}

// post sends a letter that comes at a time.
func (r *run) post(at fleet.Time, l letter) {
	slot := len(r.letters)
	if n := len(r.freeLetters); n > 0 {
		slot, r.freeLetters = r.freeLetters[n-1], r.freeLetters[:n-1]
		r.letters[slot] = l
	} else {
		r.letters = append(r.letters, l)
	}
	r.push(max(at, r.now), kindLetter, slot)
}

// openLines makes what gateways hear of engines.
func (r *run) openLines() {
	e := r.c.Events
	if e == nil {
		return
	}
	space := kv.KeySpace{Block: int(enginesim.BlockTokens), Mode: kv.KeysDirect}
	if e.Mapped {
		space.Mode = kv.KeysMapped
		r.own = map[uint64]kv.Key{}
	}
	for range len(r.gateways) * len(r.c.Replicas) {
		r.lines = append(r.lines, &line{follower: kv.NewFollower(space, e.Ring > 0, 1<<21, 64<<20)})
	}
	if e.Audit > 0 {
		r.push(fleet.Time(e.Audit), kindAudit, 0)
	}
}

// opened tells the lines that replica k has a new process.
func (r *run) opened(k int) {
	if r.c.Events == nil {
		return
	}
	p := &r.engines[k].events
	*p = publisher{process: p.process + 1}
	for g := range r.gateways {
		r.post(r.now.Add(r.c.Events.Lag), letter{kind: letterConnected, what: r.pair(g, k), process: p.process})
	}
	if r.c.Events.ClearFirst {
		r.publish(k, r.now, []kv.Event{{Kind: kv.Cleared}})
	}
}

// broke tells the lines that replica k's process is gone.
func (r *run) broke(k int) {
	if r.c.Events == nil {
		return
	}
	for g := range r.gateways {
		r.post(r.now.Add(r.c.Events.Lag), letter{kind: letterBroken, what: r.pair(g, k), process: r.engines[k].events.process})
	}
}

// publishAll publishes what replica k has done with its blocks.
func (r *run) publishAll(k int) {
	if r.c.Events == nil {
		return
	}
	for at, events := range r.engines[k].TakeEvents() {
		r.publish(k, at, events)
	}
}

// noParent stands before the first block of a chain where keys are taken as they
// are: an event with neither parent nor tokens would only tell of a copy.
const noParent kv.EngineKey = 1

func (r *run) publish(k int, at fleet.Time, events []kv.Event) {
	e, p := r.c.Events, &r.engines[k].events
	for i := range events {
		ev := &events[i]
		switch {
		case ev.Kind != kv.Stored:
		case e.Mapped:
			ev.Tokens = r.tokensOf(ev.Blocks)
		case !ev.HasParent:
			ev.HasParent, ev.Parent = true, noParent
		}
	}
	payload := e.Encoding.AppendBatch(nil, at.Seconds(), 0, events)
	r.tokens = r.tokens[:0]
	seq := p.next
	p.next++
	if e.Ring > 0 {
		if len(p.ring) == e.Ring {
			p.ring, p.first = p.ring[1:], p.first+1
		}
		p.ring = append(p.ring, payload)
	}
	for g := range r.gateways {
		r.send(r.pair(g, k), at, seq, payload)
	}
}

// send puts one batch on a line, with what can befall it there.
func (r *run) send(what int, at fleet.Time, seq uint64, payload []byte) {
	e, l := r.c.Events, r.lines[what]
	_, k := r.unpair(what)
	process := r.engines[k].events.process
	come := func(seq uint64, payload []byte) {
		r.post(at.Add(e.Lag), letter{kind: letterLive, what: what, process: process, seq: seq, payload: payload})
	}
	late, lateSeq := l.late, l.lateSeq
	l.late = nil
	switch x := r.mishaps.Float64(); {
	case x < e.Lose:
	case x < e.Lose+e.Double:
		come(seq, payload)
		come(seq, payload)
	case x < e.Lose+e.Double+e.Swap:
		l.late, l.lateSeq = payload, seq
	case x < e.Lose+e.Double+e.Swap+e.Corrupt:
		come(seq, payload[:r.mishaps.IntN(len(payload))])
	default:
		come(seq, payload)
	}
	if late != nil {
		come(lateSeq, late)
	}
}

// deliver hands over a letter.
func (r *run) deliver(slot int) {
	t := r.letters[slot]
	r.letters[slot] = letter{}
	r.freeLetters = append(r.freeLetters, slot)
	l := r.lines[t.what]
	if t.kind == letterConnected {
		l.process = t.process
		r.follow(t.what, l.follower.Connected())
		return
	}
	if t.process != l.process {
		return // of a connection that is over
	}
	switch t.kind {
	case letterBroken:
		l.process = 0
		r.follow(t.what, l.follower.Disconnected())
	case letterLive:
		r.follow(t.what, l.follower.Live(t.seq, t.payload))
	default:
		if t.asked != l.asked {
			return // of a replay that is over
		}
		switch t.kind {
		case letterReplayed:
			r.follow(t.what, l.follower.Replayed(t.seq, t.payload))
		case letterEnded:
			r.follow(t.what, l.follower.Ended())
		case letterFailed:
			r.follow(t.what, l.follower.Failed())
		}
	}
}

// follow does what a follower says: it tells the gateway's brain, and asks the
// engine for past batches.
func (r *run) follow(what int, do kv.Do) {
	g, k := r.unpair(what)
	l, en := r.lines[what], r.engines[k]
	status := l.follower.Status()
	r.step(g, &pool.KV{
		Endpoint: endpointID(k), Gen: en.told, Update: kv.Update{State: status.State, Whole: status.Whole, Changes: do.Changes},
	})
	r.healed(what, l)
	if !do.Replay {
		return
	}
	l.asked++
	r.replay(what, do.From)
}

// replay answers a gateway that asks for past batches, from a sequence number on.
func (r *run) replay(what int, from uint64) {
	_, k := r.unpair(what)
	l, en := r.lines[what], r.engines[k]
	p := &en.events
	at := r.now.Add(2 * r.c.Events.Lag)
	t := letter{kind: letterFailed, what: what, process: l.process, asked: l.asked}
	if en.Engine == nil || p.process != l.process {
		r.post(at, t)
		return
	}
	for i := max(from, p.first); i < p.next; i++ {
		t.kind, t.seq, t.payload = letterReplayed, i, p.ring[i-p.first]
		r.post(at, t)
	}
	t.kind, t.payload = letterEnded, nil
	r.post(at, t)
}

// tokensOf makes up the tokens of blocks from their keys, which are all that is
// simulated of them.
func (r *run) tokensOf(keys []kv.EngineKey) []uint32 {
	from := len(r.tokens)
	for _, k := range keys {
		for i := range uint64(enginesim.BlockTokens) {
			r.tokens = append(r.tokens, uint32(stat.Mix64(uint64(k)+i)%150_000))
		}
	}
	return r.tokens[from:]
}

// blocksOf returns the keys by which gateways know the full blocks of a prompt,
// or nothing where they do not know its tokens.
func (r *run) blocksOf(q *request) []kv.Key {
	if r.c.Events == nil {
		return nil
	}
	chain := q.engineChain()
	n := min(len(chain), q.Input/int(enginesim.BlockTokens))
	r.blocks, r.engineKeys = r.blocks[:0], r.engineKeys[:0]
	if !r.c.Events.Mapped {
		for _, k := range chain[:n] {
			r.blocks = append(r.blocks, kv.Key(k))
		}
		return r.blocks
	}
	for _, k := range chain {
		r.engineKeys = append(r.engineKeys, kv.EngineKey(k))
	}
	r.blocks = kv.ChainTokens(r.blocks, kv.TokenSeed(nil, nil), int(enginesim.BlockTokens), r.tokensOf(r.engineKeys), nil)
	r.tokens = r.tokens[:0]
	if r.c.Events.Audit > 0 {
		for i, k := range chain {
			r.own[k] = r.blocks[i]
		}
	}
	return r.blocks[:n]
}
