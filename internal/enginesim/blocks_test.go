package enginesim

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"penstock.dev/penstock/internal/fleet"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

// check verifies everything that must hold of e between calls.
func (e *Engine) check() error {
	b := e.blocks
	for i, t := range e.shelves {
		if err := t.check(e, i); err != nil {
			return fmt.Errorf("tier %d: %w", t.blocks.tier, err)
		}
	}
	if b.private < 0 || b.used < 0 || b.idle < 0 || b.free() < 0 {
		return fmt.Errorf("a count is negative: private %d, used %d, idle %d, free %d", b.private, b.used, b.idle, b.free())
	}
	refs, private, slots := map[*run]int{}, 0, map[string]int{}
	holders := slices.Clone(e.running)
	for _, s := range e.kept {
		holders = append(holders, s)
	}
	for _, l := range e.loads {
		if !l.s.queued() || l.s.load != l || e.byID[l.s.id] != l.s {
			return fmt.Errorf("request %d loads but does not wait", l.s.id)
		}
		holders = append(holders, l.s)
	}
	for _, s := range holders {
		if s.adapter != "" && s.load == nil && e.kept[s.id] == nil {
			slots[s.adapter]++
		}
		depth := 0
		for r := s.tail; r != nil; r = r.parent {
			refs[r]++
			depth += len(r.keys)
		}
		if depth != s.published || s.held < s.published {
			return fmt.Errorf("request %d holds %d blocks, has published %d, and its path has %d", s.id, s.held, s.published, depth)
		}
		if s.held < ceilDiv(s.computed, blockTokens) {
			return fmt.Errorf("request %d has %d tokens in %d blocks", s.id, s.computed, s.held)
		}
		private += s.held - s.published
	}
	if !maps.Equal(slots, e.slots) || e.config.MaxAdapters > 0 && len(slots) > e.config.MaxAdapters {
		return fmt.Errorf("slots %v, running %v of at most %d", e.slots, slots, e.config.MaxAdapters)
	}
	if private != b.private {
		return fmt.Errorf("counted private %d, kept %d", private, b.private)
	}
	return b.checkRuns(refs)
}

// check verifies what must hold of the i-th tier below the GPU.
func (t *shelf) check(e *Engine, i int) error {
	refs := map[*run]int{}
	for _, l := range e.loads {
		for r := l.reads[i].tail; r != nil; r = r.parent {
			refs[r]++
		}
	}
	b := t.blocks
	if b.private != 0 || b.free() < 0 || b.idle < 0 || b.used < 0 {
		return fmt.Errorf("private %d, used %d, idle %d of %d", b.private, b.used, b.idle, b.total)
	}
	return b.checkRuns(refs)
}

// checkRuns verifies the tree of runs, of which those given are held so often.
func (b *blocks) checkRuns(refs map[*run]int) error {
	used, idle, kids := 0, 0, map[*run]int{}
	for key, r := range b.heads {
		if r.keys[0] != key {
			return fmt.Errorf("run %x is listed under %x", r.keys[0], key)
		}
		if r.refs != refs[r] {
			return fmt.Errorf("run %x has %d references, %d sequences hold it", key, r.refs, refs[r])
		}
		if end := r.start + len(r.keys); len(r.chain) < end || !slices.Equal(r.chain[r.start:end], r.keys) {
			return fmt.Errorf("run %x is not a part of its chain", key)
		}
		if r.refs > 0 {
			used += len(r.keys)
		} else {
			idle += len(r.keys)
		}
		if (r.refs == 0) != (r.newer != nil) {
			return fmt.Errorf("run %x with %d references: in the idle ring is %v", key, r.refs, r.newer != nil)
		}
		if p := r.parent; p != nil {
			kids[p]++
			if b.heads[p.keys[0]] != p || p.start+len(p.keys) != r.start {
				return fmt.Errorf("run %x at depth %d does not follow its parent", key, r.start)
			}
		}
	}
	for _, r := range b.heads {
		if r.kids != kids[r] {
			return fmt.Errorf("run %x counts %d children, has %d", r.keys[0], r.kids, kids[r])
		}
	}
	if used != b.used || idle != b.idle {
		return fmt.Errorf("counted used %d idle %d, kept %d %d", used, idle, b.used, b.idle)
	}
	for gone, r := map[*run]int{}, b.lru.newer; r != &b.lru; r = r.newer {
		if r.kids != gone[r] {
			return fmt.Errorf("run %x would be evicted before its children", r.keys[0])
		}
		gone[r.parent]++
	}
	return nil
}

func TestEvictionTakesTheLeafReleasedLongestAgo(t *testing.T) {
	b := newBlocks(10)
	hold := func(serial uint64, chain []uint64) *sequence {
		s := &sequence{serial: serial, chain: chain}
		n, _ := b.match(chain)
		b.acquire(s, n)
		b.grow(s, len(chain))
		b.publish(s, len(chain))
		return s
	}
	left, right := chainOf(5, 2, 1), chainOf(6, 2, 2) // two blocks shared, then 3 and 4
	l := hold(1, left)
	r := hold(2, right)
	b.release(l)
	b.release(r)
	if b.idle != 9 || b.free() != 1 {
		t.Fatalf("idle %d, free %d; want 9 and 1", b.idle, b.free())
	}
	cached := func() [2]int {
		x, _ := b.match(left)
		y, _ := b.match(right)
		return [2]int{x, y}
	}
	var got [][2]int
	for _, n := range []int{2, 2, 2, 2, 1} {
		b.evict(n)
		got = append(got, cached())
	}
	// The older branch goes first, from its end; the shared stem goes last.
	want := [][2]int{{3, 6}, {2, 5}, {2, 3}, {1, 1}, {0, 0}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("cached blocks of both chains (-want +got):\n%s", d)
	}
	if len(b.heads) != 0 || b.free() != 10 {
		t.Errorf("%d runs left, %d blocks free", len(b.heads), b.free())
	}
}

func TestReuseMovesAChainToTheBackOfTheLine(t *testing.T) {
	e := newEngine(t, Config{KVTokens: 10 * BlockTokens})
	run := func(id fleet.ReqID, chain []uint64) {
		submit(t, e, e.ready, Request{ID: id, Prompt: 64, Output: 1, Chain: chain})
		drain(t, e)
	}
	a, b, c := chainOf(4, 0, 1), chainOf(4, 0, 2), chainOf(4, 0, 3)
	run(1, a)
	run(2, b)
	run(3, a) // a is now younger than b
	run(4, c) // needs two blocks of somebody's
	na, _ := e.blocks.match(a)
	nb, _ := e.blocks.match(b)
	if na != 4 || nb != 2 {
		t.Errorf("cached of a: %d, of b: %d; want 4 and 2", na, nb)
	}
}

func TestAPromptIsOneRun(t *testing.T) {
	e := newEngine(t, Config{})
	submit(t, e, 0, Request{ID: 1, Prompt: 12_000, Output: 300, Chain: chainOf(750, 750, 0)})
	drain(t, e)
	if n := len(e.blocks.heads); n != 1 {
		t.Errorf("%d runs for one sequence, want 1", n)
	}
	submit(t, e, e.ready, Request{ID: 2, Prompt: 12_000, Output: 1, Chain: chainOf(750, 500, 9)})
	drain(t, e)
	if n := len(e.blocks.heads); n != 3 {
		t.Errorf("%d runs after one divergence, want 3", n)
	}
}

// A block computed by two sequences at once is kept once.
func TestDoublePublicationIsMerged(t *testing.T) {
	b := newBlocks(20)
	chain := chainOf(8, 8, 0)
	one, two := &sequence{serial: 1, chain: chain}, &sequence{serial: 2, chain: chain}
	b.grow(one, 8)
	b.grow(two, 8)
	b.publish(one, 4)
	b.publish(two, 6)
	b.publish(one, 8)
	if b.used != 8 || b.private != 2 {
		t.Errorf("used %d, private %d; want 8 and 2", b.used, b.private)
	}
	b.publish(two, 8)
	b.release(one)
	b.release(two)
	if b.idle != 8 || b.free() != 12 {
		t.Errorf("idle %d, free %d; want 8 and 12", b.idle, b.free())
	}
}
