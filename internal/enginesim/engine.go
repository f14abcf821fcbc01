package enginesim

import (
	"fmt"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/stat"
)

const blockTokens = int(BlockTokens)

// Engine is one simulated replica. It is not safe for concurrent use; times
// given to its methods never fall.
type Engine struct {
	config Config
	blocks *blocks
	byID   map[fleet.ReqID]*sequence
	kept   map[fleet.ReqID]*sequence // ended, and still holding blocks; see Request.Keep
	slots  map[string]int            // running sequences by adapter; the base model needs no slot

	running []*sequence // in order of arrival
	waiting queue

	// The step in flight, when stepping: running sequences with a chunk.
	stepping      bool
	started, ends fleet.Time
	batch         Batch
	ready         fleet.Time   // when the next step may begin, when not stepping
	stuck         bool         // nobody waiting can be admitted until something is freed or, with adapters, arrives
	plan          []fleet.Time // see glide
	set           *Lockstep    // whose clock it steps by; nil for its own

	shelves []*shelf // tiers below the GPU, fastest first
	loads   []*load  // of waiting requests, in order of their beginning
	log     *blockLog

	undelivered []Output // of steps that ended during Submit or Abort
	serial      uint64
	spare       []*sequence
	stats       Stats
}

// New returns an idle engine.
func New(c Config) (*Engine, error) {
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("enginesim: bad configuration: %w", err)
	}
	e := &Engine{
		config: c,
		blocks: newBlocks(int(c.KVTokens / BlockTokens)),
		byID:   make(map[fleet.ReqID]*sequence),
		kept:   make(map[fleet.ReqID]*sequence),
		slots:  make(map[string]int),
	}
	if c.Events {
		e.log = &blockLog{describe: c.Describe}
		e.blocks.log = e.log
	}
	e.shelves = newShelves(c.Offload, e.log)
	e.waiting.init()
	return e, nil
}

// Submit queues a request. Requests submitted at one instant can share their
// first step. It fails with ErrEmpty, ErrDuplicate or *TooLargeError.
func (e *Engine) Submit(now fleet.Time, r Request) error {
	if r.Prompt < 1 || r.Pool != (r.Output == 0) || r.Output < 0 {
		return fmt.Errorf("submit %d: prompt %d, output %d: %w", r.ID, r.Prompt, r.Output, ErrEmpty)
	}
	if e.byID[r.ID] != nil || e.kept[r.ID] != nil {
		return fmt.Errorf("submit %d: %w", r.ID, ErrDuplicate)
	}
	output := max(1, int(r.Output)) // pooling ends like a token that nobody counts
	// The last token's KV is never needed.
	if need := ceilDiv(int(r.Prompt)+output-1, blockTokens); need > e.blocks.total {
		return fmt.Errorf("submit %d: %w", r.ID, &TooLargeError{
			Need: fleet.Tokens(need) * BlockTokens, Have: fleet.Tokens(e.blocks.total) * BlockTokens,
		})
	}
	e.catchUp(now)
	if e.set != nil {
		e.set.wake(now)
	} else if !e.stepping && (e.waiting.n == 0 || e.stuck) {
		e.ready = max(e.ready, now)
	}
	s := e.take()
	*s = sequence{
		id: r.ID, chain: r.Chain, prompt: int(r.Prompt), output: output, finish: r.Finish,
		adapter: r.Adapter, pool: r.Pool, received: int(r.Received), keep: r.Keep,
	}
	if s.finish == NotFinished {
		s.finish = FinishLength
	}
	e.byID[r.ID] = s
	e.waiting.pushBack(s)
	if e.config.MaxAdapters > 0 || len(e.loads) > 0 {
		e.stuck = false // it may go past those that wait for a slot or a load
	}
	return nil
}

// Abort takes a request out and frees its blocks at once; full ones stay
// cached. The step in flight still takes its time. It reports whether the
// request was in the engine; there will be no Output about it from now on.
func (e *Engine) Abort(now fleet.Time, id fleet.ReqID) bool {
	e.catchUp(now)
	s := e.byID[id]
	if s == nil {
		return false
	}
	if s.queued() {
		e.waiting.remove(s)
		if s.load != nil {
			e.endLoad(s.load)
		}
	} else {
		e.dropRunning(s)
		e.blocks.release(s)
	}
	e.stats.Finished[NotFinished]++
	e.forget(s)
	e.rouse(now)
	return true
}

// rouse lets a step begin at now, if none is in flight: waiting requests may
// have the room that something else has left.
func (e *Engine) rouse(now fleet.Time) {
	switch {
	case e.stepping:
	case e.set != nil:
		e.set.ready = max(e.set.ready, now)
	default:
		e.ready = max(e.ready, now)
	}
}

// DropCache forgets all cached blocks of all tiers, as after a change of
// weights. Blocks that sequences hold cannot be forgotten: unless preempt is
// set, which sends all that run back to the head of the queue and breaks off
// loads, it then changes nothing and returns false.
func (e *Engine) DropCache(now fleet.Time, preempt bool) bool {
	e.catchUp(now)
	if len(e.running)+len(e.loads)+len(e.kept) > 0 && !preempt {
		return false
	}
	e.dropKept()
	for n := len(e.running); n > 0; n-- {
		victim := e.running[n-1]
		e.undelivered = append(e.undelivered, Output{
			Kind: KindPreempted, At: now, Req: victim.id,
			Tokens: fleet.Tokens(victim.generated), Cached: fleet.Tokens(victim.cached), Admitted: victim.admitted,
		})
		e.preempt(victim)
	}
	for len(e.loads) > 0 {
		e.endLoad(e.loads[0])
	}
	e.blocks.clear()
	for _, t := range e.shelves {
		t.blocks.clear()
	}
	if e.log != nil {
		e.stamp(now)
		e.log.add(kv.Event{Kind: kv.Cleared}, nil)
	}
	e.rouse(now)
	return true
}

// Advance runs the engine up to and including time until. It appends what
// happened to out, in order, and returns out and the time of the next event:
// when Advance is due again, if nothing is submitted before. That is
// fleet.Never for an idle engine.
func (e *Engine) Advance(until fleet.Time, out []Output) ([]Output, fleet.Time) {
	if e.set != nil {
		e.set.advance(until)
	}
	out = append(out, e.undelivered...)
	e.undelivered = e.undelivered[:0]
	if e.set != nil {
		return out, e.set.next()
	}
	out = e.advance(until, out)
	switch {
	case e.stepping && e.calm() && len(e.plan) > 0:
		return out, e.plan[len(e.plan)-1]
	case e.stepping:
		return out, e.ends
	case e.waiting.n > 0:
		return out, e.due(e.ready)
	}
	return out, fleet.Never
}

// catchUp runs what was due strictly before now, for callers that submit or
// abort without having advanced. What is due exactly now waits for Advance, so
// that requests submitted at one instant meet in one step.
func (e *Engine) catchUp(now fleet.Time) {
	if e.set != nil {
		e.set.advance(now - 1)
		return
	}
	e.undelivered = e.advance(now-1, e.undelivered)
}

func (e *Engine) advance(until fleet.Time, out []Output) []Output {
	for {
		if !e.stepping {
			if e.ready > until {
				return out
			}
			if out = e.begin(out); !e.stepping {
				due := e.due(e.ready)
				if e.waiting.n == 0 || due > until {
					return out
				}
				e.ready = due
				continue
			}
		}
		if e.glide(until); e.ends > until {
			return out
		}
		out = e.finish(out)
	}
}

// Stats returns the gauges and counters as of the latest call.
func (e *Engine) Stats() Stats {
	s := e.stats
	s.Running, s.Waiting = len(e.running), e.waiting.n
	s.TotalBlocks = e.blocks.total
	s.Kept = len(e.kept)
	s.UsedBlocks = e.blocks.private + e.blocks.used
	s.CachedBlocks = e.blocks.idle
	s.EvictedBlocks = e.blocks.evicted
	s.CPU, s.Disk = e.tierStats(0), e.tierStats(1)
	return s
}

// dropRunning takes s out of the running batch. A freed place, slot or block
// may let somebody in.
func (e *Engine) dropRunning(s *sequence) {
	e.freeSlot(s)
	for i, r := range e.running {
		if r == s {
			e.running = append(e.running[:i], e.running[i+1:]...)
			break
		}
	}
	e.stuck = false
}

// forget ends s, which is in no queue and holds no blocks.
func (e *Engine) forget(s *sequence) {
	delete(e.byID, s.id)
	e.stuck = false
	*s = sequence{}
	e.spare = append(e.spare, s)
}

func (e *Engine) take() *sequence {
	if n := len(e.spare); n > 0 {
		s := e.spare[n-1]
		e.spare = e.spare[:n-1]
		return s
	}
	return new(sequence)
}

// sequence is a request inside the engine.
type sequence struct {
	id             fleet.ReqID
	serial         uint64 // of this admission; tells its own runs from others
	chain          []uint64
	prompt, output int
	finish         Reason
	adapter        string
	pool           bool
	keep           bool

	generated int  // tokens
	received  int  // tokens of the prompt whose KV comes with it at its next admission
	computed  int  // tokens whose KV is in the cache
	chunk     int  // tokens it computes in the step in flight
	cached    int  // prompt tokens found at first admission
	seen      bool // has been admitted before
	own       bool // chain is the engine's copy and may be appended to
	admitted  fleet.Time
	expected  int  // tokens of its prompt that it will not compute, once foreseen
	foreseen  bool // while it waits; see State

	load *load  // it waits for this one to end
	from [2]int // of the cached blocks, how many came from each shelf

	held      int  // blocks, private and published
	published int  // of those, in the tree
	tail      *run // the deepest run it holds

	next, prev *sequence // in the waiting queue; nil when running
}

// known is the number of tokens there are to compute: the prompt and what has
// been generated.
func (s *sequence) known() int { return s.prompt + s.generated }

func (s *sequence) queued() bool { return s.next != nil }

// extendChain makes the chain reach n blocks. Keys that the caller did not
// give follow from the last one and the request's id: nobody else's match.
func (s *sequence) extendChain(n int) {
	if len(s.chain) >= n {
		return
	}
	if !s.own {
		s.chain = append(make([]uint64, 0, (s.prompt+s.output)/blockTokens), s.chain...)
		s.own = true
	}
	for len(s.chain) < n {
		last := uint64(0)
		if i := len(s.chain); i > 0 {
			last = s.chain[i-1]
		}
		s.chain = append(s.chain, stat.Mix64(last^stat.Mix64(uint64(s.id)+0x5eed)))
	}
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }
