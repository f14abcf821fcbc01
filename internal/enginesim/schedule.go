package enginesim

import (
	"slices"
	"sort"

	"penstock.dev/penstock/internal/fleet"
)

// begin forms the next step at e.ready and puts it in flight, unless there is
// nothing to run.
func (e *Engine) begin(out []Output) []Output {
	if out = e.form(out); len(e.running) == 0 {
		return out
	}
	e.stepping = true
	e.started = e.ready
	e.ends = e.started.Add(max(1, e.config.Physics.StepTime(e.batch)))
	return out
}

// form decides what the next step computes.
func (e *Engine) form(out []Output) []Output {
	e.batch = Batch{Step: e.stats.Steps}
	e.plan = e.plan[:0]
	e.stamp(e.ready)
	if len(e.loads) > 0 {
		e.finishLoads()
	}
	budget := int(e.config.BudgetTokens)
	preempted := e.stats.Preemptions
	budget, out = e.scheduleRunning(budget, out)
	// A step that had to preempt admits nobody: the place would be lost again.
	if e.stats.Preemptions == preempted && !e.stuck {
		e.admitWaiting(budget)
	}
	e.batch.Again = e.again()
	return out
}

// again is Batch.Again of the batch formed: what its sequences hold in common.
func (e *Engine) again() fleet.Tokens {
	n := e.blocks.again()
	if len(e.loads) > 0 {
		n = max(0, n-e.unread())
	}
	return min(fleet.Tokens(n)*BlockTokens, e.batch.Context)
}

// scheduleRunning gives each running sequence its next tokens, in order of
// arrival, preempting from the back when blocks run out.
func (e *Engine) scheduleRunning(budget int, out []Output) (int, []Output) {
	for i := 0; i < len(e.running) && budget > 0; i++ {
		s := e.running[i]
		chunk := min(s.known()-s.computed, budget)
		need := ceilDiv(s.computed+chunk, blockTokens)
		for need-s.held > e.blocks.room() {
			victim := e.running[len(e.running)-1]
			e.preempt(victim)
			out = append(out, Output{
				Kind: KindPreempted, At: e.ready, Req: victim.id,
				Tokens: fleet.Tokens(victim.generated), Cached: fleet.Tokens(victim.cached), Admitted: victim.admitted,
			})
			if victim == s {
				return budget, out
			}
		}
		e.schedule(s, chunk, need)
		budget -= chunk
	}
	return budget, out
}

// admitWaiting admits waiting requests in order while places, budget and
// blocks last. Those whose adapter finds no slot are passed over, and those that
// wait for KV to be loaded.
func (e *Engine) admitWaiting(budget int) {
	for s := e.waiting.first(); s != &e.waiting.ring; {
		if budget <= 0 || len(e.running) >= e.config.MaxSeqs {
			return
		}
		next := s.next
		if s.load != nil || !e.slotFor(s) {
			s = next
			continue
		}
		// At least one token is always computed: there is no logit without it.
		limit := min((s.known()-1)/blockTokens, len(s.chain))
		hit, idle := e.blocks.match(s.chain[:limit])
		computed := max(hit*blockTokens, min(s.received, s.known()-1))
		if len(e.shelves) > 0 {
			if depth := e.below(s.chain[:limit], hit); depth*blockTokens > computed {
				if depth-hit > e.blocks.room()-idle {
					e.stuck = true
					return
				}
				e.startLoad(s, s.chain[:limit], hit, depth)
				s = next
				continue
			}
		}
		chunk := min(s.known()-computed, budget)
		need := ceilDiv(computed+chunk, blockTokens)
		// Idle blocks that this request is about to use cannot be evicted for it.
		if need-hit > e.blocks.room()-idle {
			e.stuck = true
			return
		}
		e.waiting.remove(s)
		e.takeSlot(s)
		e.running = append(e.running, s)
		e.serial++
		s.serial, s.computed = e.serial, computed
		e.blocks.acquire(s, hit)
		if !s.seen {
			s.seen, s.cached, s.admitted = true, hit*blockTokens, e.ready
			e.countHits(s, hit)
			e.stats.PrefixQueries += uint64(s.prompt)
			e.stats.PrefixHits += uint64(s.cached)
		}
		e.writeThrough(s, hit)
		e.schedule(s, chunk, need)
		budget -= chunk
		s = next
	}
	e.stuck = e.waiting.n > 0
}

// schedule puts the next chunk tokens of s into the batch, with need blocks to
// hold them and all before. Blocks that the chunk fills are published now: the
// step writes each layer's KV before it reads it, so even a sequence of the
// same step may use them.
func (e *Engine) schedule(s *sequence, chunk, need int) {
	if need > s.held {
		e.blocks.grow(s, need)
	}
	if s.generated > 0 && s.computed+1 == s.known() {
		e.batch.Decodes++
		e.batch.Context += fleet.Tokens(s.computed)
	} else {
		e.batch.addChunk(chunk, s.computed)
	}
	s.chunk = chunk
	if full := (s.computed + chunk) / blockTokens; full > s.published {
		s.extendChain(full)
		e.blocks.publish(s, full)
		e.writeThrough(s, full)
	}
}

// preempt sends s, a running sequence, back to the head of the queue without
// its blocks. It computes again what has been evicted by its next admission.
func (e *Engine) preempt(s *sequence) {
	e.dropRunning(s)
	e.blocks.release(s)
	s.computed, s.chunk, s.received = 0, 0, 0
	e.waiting.pushFront(s)
	e.stats.Preemptions++
}

// finish ends the step in flight: its sequences have computed their chunks,
// and those with nothing left to compute have a new token.
func (e *Engine) finish(out []Output) []Output {
	e.stepping = false
	e.ready = e.ends
	e.stats.Steps++
	if len(e.running) > 0 {
		e.stats.Busy += e.ends.Sub(e.started)
	}
	if e.config.EveryToken {
		out = append(out, Output{Kind: KindStep, At: e.ends, Tokens: e.batch.Tokens()})
	}
	kept := e.running[:0]
	for _, s := range e.running {
		fresh := s.chunk > 0 && s.computed+s.chunk == s.known()
		s.computed += s.chunk
		s.chunk = 0
		if fresh {
			out = e.emit(s, out)
		}
		if s.generated < s.output {
			kept = append(kept, s)
			continue
		}
		e.freeSlot(s)
		e.stats.Finished[s.finish]++
		if s.keep {
			e.keep(s)
			continue
		}
		e.blocks.release(s)
		e.forget(s)
	}
	clear(e.running[len(kept):])
	e.running = kept
	return out
}

// emit counts one new token of s and reports it where it is wanted.
func (e *Engine) emit(s *sequence, out []Output) []Output {
	s.generated++
	if !s.pool {
		e.stats.GenerationTokens++
	}
	o := Output{
		At: e.ends, Req: s.id, Tokens: fleet.Tokens(s.generated), Cached: fleet.Tokens(s.cached),
		First: s.generated == 1, Admitted: s.admitted,
		FromCPU: fleet.Tokens(s.from[0]) * BlockTokens, FromDisk: fleet.Tokens(s.from[1]) * BlockTokens,
	}
	if o.First {
		e.stats.PromptTokens += uint64(s.prompt)
	}
	if s.generated == s.output {
		o.Finish = s.finish
	}
	if s.pool {
		o.Tokens = 0
	}
	if o.First || o.Finish != NotFinished || e.config.EveryToken {
		out = append(out, o)
	}
	return out
}

// maxPlan bounds how many steps are planned ahead.
const maxPlan = 1024

// calm reports whether the step in flight will be followed by the same batch
// one token further on, as long as nobody finishes and blocks last: all that
// runs decodes, and nobody can be admitted.
func (e *Engine) calm() bool {
	return !e.config.EveryToken && e.batch.Prefills == 0 && e.batch.Decodes == len(e.running) &&
		(e.waiting.n == 0 || e.stuck || len(e.running) >= e.config.MaxSeqs)
}

// glide skips over steps that end by until and in which nothing happens but
// that every sequence decodes one more token. It leaves in flight a step that
// ends after until or has to be finished properly. The ends of the steps to
// come are kept in e.plan, so that each step costs one StepTime and a skip
// costs one visit to each sequence, however many steps it covers. The last
// entry is the next time something can happen.
//
// The outcome is that of single steps, with one exception: sequences that
// decode the very same chain at the same time merge their copies of a block
// once per skip, not once per block, and so may evict a few blocks more. See
// stride.
func (e *Engine) glide(until fleet.Time) {
	if !e.calm() {
		e.plan = e.plan[:0]
		return
	}
	if len(e.plan) == 0 {
		e.makePlan()
	}
	// The last planned step is finished properly.
	skip := sort.Search(len(e.plan)-1, func(i int) bool { return e.plan[i] > until })
	if skip == 0 {
		return
	}
	e.skip(e.plan[:skip+1])
	e.plan = slices.Delete(e.plan, 0, skip)
}

// skip ends the steps that end at all of ends but the last, and puts another like
// them in flight.
func (e *Engine) skip(ends []fleet.Time) {
	steps := len(ends) - 1
	if len(e.running) > 0 {
		e.stats.Busy += ends[steps-1].Sub(e.started)
	}
	e.stats.Steps += uint64(steps)
	e.stats.GenerationTokens += uint64(len(e.running) * steps)
	e.started, e.ends = ends[steps-1], ends[steps]
	stride := e.stride(steps)
	for at := stride; at <= steps; at += stride {
		e.stamp(ends[at-1])
		e.batch = Batch{Step: e.stats.Steps}
		for _, s := range e.running {
			s.computed += stride
			s.generated += stride
			e.schedule(s, 1, ceilDiv(s.computed+1, blockTokens))
		}
	}
	e.batch.Again = e.again()
}

// stride is how many of so many steps are skipped at once: all, unless it
// matters in which order and when sequences fill their blocks.
func (e *Engine) stride(steps int) int {
	if len(e.shelves) > 0 || e.log != nil {
		return 1
	}
	return steps
}

// unchanged is for how many more steps the running batch surely stays as it is.
func (e *Engine) unchanged() int {
	steps := maxPlan
	for _, s := range e.running {
		steps = min(steps, s.output-s.generated-1)
	}
	if n := len(e.running); n > 0 {
		// s more tokens take at most ceil(s/block) more blocks per sequence.
		steps = min(steps, e.blocks.room()/n*blockTokens)
	}
	return steps
}

// makePlan fills the empty e.plan with the ends of the step in flight and of
// those that follow it unchanged. A load that ends makes a change.
func (e *Engine) makePlan() {
	n, steps := len(e.running), e.unchanged()
	b, t, loaded := e.batch, e.ends, e.loaded()
	e.plan = append(e.plan, t)
	for i := 0; i < steps && t < loaded; i++ {
		b.Step++
		b.Context += fleet.Tokens(n)
		t = t.Add(max(1, e.config.Physics.StepTime(b)))
		e.plan = append(e.plan, t)
	}
}

// queue is the waiting requests, first in first out, except that preempted
// ones go to the head. It is a ring through a sentinel so that an abort takes
// constant time.
type queue struct {
	ring sequence
	n    int
}

func (q *queue) init() { q.ring.next, q.ring.prev = &q.ring, &q.ring }

func (q *queue) first() *sequence      { return q.ring.next }
func (q *queue) pushBack(s *sequence)  { q.insert(s, q.ring.prev) }
func (q *queue) pushFront(s *sequence) { q.insert(s, &q.ring) }

func (q *queue) insert(s, after *sequence) {
	s.prev, s.next = after, after.next
	after.next.prev = s
	after.next = s
	q.n++
}

func (q *queue) remove(s *sequence) {
	s.prev.next, s.next.prev = s.next, s.prev
	s.next, s.prev = nil, nil
	q.n--
}
