package bench

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"penstock.dev/penstock/internal/workload"
)

// maxHeld bounds the requests that are due but wait for an earlier answer. When
// it is reached no more are taken from the source until some can go, and the
// lag of the rest tells.
const maxHeld = 1 << 16

// pending is a request whose time is known.
type pending struct {
	req workload.Request
	due time.Duration // intended send time
}

// dueHeap orders requests by due time, then by index.
type dueHeap []pending

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	return h[i].due < h[j].due || (h[i].due == h[j].due && h[i].req.Index < h[j].req.Index)
}
func (h dueHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)   { *h = append(*h, x.(pending)) }
func (h *dueHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = pending{}
	*h = old[:len(old)-1]
	return x
}

// dispatcher sends a plan's requests at their times. One goroutine runs it and
// owns all of its state; each request in flight has one goroutine more.
type dispatcher struct {
	p     *plan
	send  func(ctx context.Context, r *workload.Request, due time.Duration, answers [][]byte) Result
	clock func() time.Duration    // since the start of the load
	onNew func(*workload.Request) // called for each request sent
	onEnd func(*Result)           // called for each result, in order of arrival
	tick  func()                  // called about every tickEvery, for the progress line

	next    *workload.Request // taken from the source, not yet looked at
	dry     bool              // the source has no more, or time is up
	ready   dueHeap
	held    map[int][]workload.Request // by the index they wait for
	nHeld   int
	ends    []time.Duration  // by index: when the answer ended, running until then
	history map[int][][]byte // with --real-answers, by index: the conversation's answers up to it
	flying  int
	stage   int
	waited  int  // requests that had to wait for an earlier answer past their time
	blocked bool // --max-in-flight held a due request back
	wg      sync.WaitGroup
}

const (
	running   time.Duration = -1
	tickEvery               = 200 * time.Millisecond
)

// run sends everything and returns when all answers are in. When ctx ends it
// stops sending, waits for the grace time, and cancels what is left.
func (d *dispatcher) run(ctx context.Context) (interrupted bool) {
	d.held, d.history = map[int][]workload.Request{}, map[int][][]byte{}
	flight, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	done := make(chan Result, 64)
	timer, ticker := time.NewTimer(0), time.NewTicker(tickEvery)
	defer timer.Stop()
	defer ticker.Stop()
	stop, grace := ctx.Done(), (<-chan time.Time)(nil)
	for {
		now := d.clock()
		d.pull(now)
		d.launch(flight, now, done)
		if d.flying == 0 && d.dry && len(d.ready) == 0 && d.nHeld == 0 {
			break
		}
		timer.Reset(d.sleep(now))
		select {
		case r := <-done:
			d.land(&r)
			for more := true; more; {
				select {
				case r := <-done:
					d.land(&r)
				default:
					more = false
				}
			}
		case <-timer.C:
		case <-ticker.C:
			d.tick()
		case <-stop:
			interrupted, stop = true, nil
			d.drop()
			grace = time.After(d.p.Grace)
		case <-grace:
			cancel(errInterrupted)
		}
	}
	d.wg.Wait()
	return interrupted
}

// drop forgets everything not yet sent.
func (d *dispatcher) drop() {
	d.dry, d.next, d.ready, d.nHeld = true, nil, nil, 0
	clear(d.held)
}

// limit is how many requests may be in flight now.
func (d *dispatcher) limit() int {
	if d.p.closed {
		return min(d.p.stages[d.stage].Concurrency, d.p.MaxInFlight)
	}
	return d.p.MaxInFlight
}

// pull takes requests from the source whose time has come: by the clock in an
// open loop, by a free place in a closed one.
func (d *dispatcher) pull(now time.Duration) {
	if d.p.closed && d.p.Duration > 0 && now >= d.p.Duration {
		d.drop()
	}
	for !d.dry && d.nHeld+len(d.ready) < maxHeld {
		if d.next == nil {
			r, ok := d.p.source.Next()
			if !ok {
				d.dry = true
				return
			}
			d.next = &r
		}
		if !d.wants(now) {
			return
		}
		r := *d.next
		d.next = nil
		d.admit(r, now)
	}
}

// wants says whether the next request should be taken now.
func (d *dispatcher) wants(now time.Duration) bool {
	if !d.p.closed {
		return d.next.At <= now
	}
	if d.next.Stage != d.stage {
		if d.flying > 0 || len(d.ready) > 0 || d.nHeld > 0 {
			return false // a stage ends when its last answer does
		}
		d.stage = d.next.Stage
	}
	// Those waiting for an answer or thinking hold no place, but looking for
	// others in their stead must end somewhere.
	return d.flying+d.dueBy(now) < d.limit() && d.nHeld+len(d.ready) < 16*d.limit()+1024
}

// dueBy counts ready requests that could go now, as far as places matter.
func (d *dispatcher) dueBy(now time.Duration) int {
	n := 0
	for i := range d.ready {
		if d.ready[i].due <= now {
			n++
		}
	}
	return n
}

// admit takes a request in: ready at its time, or held for an earlier answer.
func (d *dispatcher) admit(r workload.Request, now time.Duration) {
	d.ends = append(d.ends, running)
	due := r.At
	if d.p.closed {
		due = now // a closed loop has no schedule but its free places
	}
	if r.After == workload.NoRequest {
		heap.Push(&d.ready, pending{r, due})
		return
	}
	end := d.ends[r.After]
	if end == running {
		r.At = due
		d.held[r.After] = append(d.held[r.After], r)
		d.nHeld++
		return
	}
	heap.Push(&d.ready, pending{r, max(due, end+r.Think)})
}

// launch sends what is due, as far as places allow.
func (d *dispatcher) launch(ctx context.Context, now time.Duration, done chan<- Result) {
	for len(d.ready) > 0 && d.ready[0].due <= now {
		if d.flying >= d.limit() {
			d.blocked = !d.p.closed || d.limit() < d.p.stages[d.stage].Concurrency
			return
		}
		next := heap.Pop(&d.ready).(pending)
		if d.p.closed {
			next.due = now // having waited for a place is no lateness
		}
		answers := d.takeHistory(&next.req)
		d.onNew(&next.req)
		d.flying++
		d.wg.Go(func() { done <- d.send(ctx, &next.req, next.due, answers) })
	}
}

// takeHistory returns the real answers to the earlier turns of a request's
// conversation. Each is taken by the one turn that follows, so that nothing is
// kept of conversations that are over.
func (d *dispatcher) takeHistory(r *workload.Request) [][]byte {
	if !d.p.RealAnswers || r.After == workload.NoRequest {
		return nil
	}
	h := d.history[r.After]
	delete(d.history, r.After)
	if r.Turn == 0 {
		return nil // a new conversation in an old one's place
	}
	return h
}

// land takes a result in and frees those that waited for it.
func (d *dispatcher) land(r *Result) {
	d.flying--
	end := max(r.end, 0)
	d.ends[r.Index] = end
	waiting := d.held[r.Index]
	delete(d.held, r.Index)
	d.nHeld -= len(waiting)
	if d.p.RealAnswers {
		d.history[r.Index] = append(r.history, r.answer)
	}
	for _, q := range waiting {
		due := max(q.At, end+q.Think)
		if due > q.At && !d.p.closed {
			d.waited++
		}
		heap.Push(&d.ready, pending{q, due})
	}
	d.onEnd(r)
}

// sleep is how long nothing can happen by the clock alone.
func (d *dispatcher) sleep(now time.Duration) time.Duration {
	wake := now + time.Hour
	if len(d.ready) > 0 && d.flying < d.limit() {
		wake = min(wake, d.ready[0].due)
	}
	if d.next != nil && !d.p.closed && d.nHeld+len(d.ready) < maxHeld {
		wake = min(wake, d.next.At)
	}
	if d.p.closed && d.p.Duration > 0 && !d.dry {
		wake = min(wake, d.p.Duration)
	}
	return max(wake-now, 0)
}
