package enginesim

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// mirror is what somebody knows who sees nothing but an engine's events.
type mirror struct {
	on    bool
	last  fleet.Time
	tiers [3]map[uint64]bool
	parts [3]int // blocks a tier can hold
}

func newMirror(c Config) *mirror {
	m := &mirror{on: c.Events, last: -1}
	for i, tokens := range []fleet.Tokens{c.KVTokens, c.Offload.CPU.Tokens, c.Offload.Disk.Tokens} {
		m.tiers[i], m.parts[i] = map[uint64]bool{}, int(tokens/BlockTokens)
	}
	return m
}

// follow takes e's events. Each must be possible after those before it, and all
// of them together must tell the truth.
func (m *mirror) follow(e *Engine) error {
	for at, events := range e.TakeEvents() {
		if at < m.last || len(events) == 0 {
			return fmt.Errorf("%d events of %v after those of %v", len(events), time.Duration(at), time.Duration(m.last))
		}
		m.last = at
		for i := range events {
			if err := m.take(&events[i]); err != nil {
				return fmt.Errorf("event %d of %v: %w", i, time.Duration(at), err)
			}
		}
	}
	if !m.on {
		return nil
	}
	for i, have := range m.tiers {
		n := 0
		for k := range e.Truth(kv.Tier(i)) {
			if n++; !have[k] {
				return fmt.Errorf("tier %d has %x and never said so", i, k)
			}
		}
		if n != len(have) {
			return fmt.Errorf("tier %d has %d blocks and said %d", i, n, len(have))
		}
	}
	return nil
}

func (m *mirror) take(ev *kv.Event) error {
	have := m.tiers[ev.Tier]
	switch ev.Kind {
	case kv.Cleared:
		for _, t := range m.tiers {
			clear(t)
		}
	case kv.Stored:
		if ev.HasParent && !have[uint64(ev.Parent)] {
			return fmt.Errorf("blocks at tier %d after %x, which is not there", ev.Tier, ev.Parent)
		}
		if len(ev.Blocks) == 0 || ev.BlockSize != blockTokens {
			return fmt.Errorf("%d blocks of %d tokens", len(ev.Blocks), ev.BlockSize)
		}
		for _, k := range ev.Blocks {
			if have[uint64(k)] {
				return fmt.Errorf("%x is stored twice at tier %d", k, ev.Tier)
			}
			have[uint64(k)] = true
		}
	case kv.Removed:
		for _, k := range ev.Blocks {
			if !have[uint64(k)] {
				return fmt.Errorf("%x is removed from tier %d, where it is not", k, ev.Tier)
			}
			delete(have, uint64(k))
		}
	}
	if len(have) > m.parts[ev.Tier] {
		return fmt.Errorf("%d blocks at tier %d, which has room for %d", len(have), ev.Tier, m.parts[ev.Tier])
	}
	return nil
}

// drawTiers puts memory below the GPU, slow enough for loads to span steps.
func drawTiers(t *rapid.T, c *Config) {
	c.Offload.KVBytes = 1000
	c.Offload.CPU = Store{
		Tokens:    fleet.Tokens(rapid.IntRange(1, 120).Draw(t, "cpu blocks")) * BlockTokens,
		Bandwidth: rapid.Float64Range(1e6, 1e9).Draw(t, "cpu bandwidth"),
		Latency:   time.Duration(rapid.IntRange(0, 5000).Draw(t, "cpu latency us")) * time.Microsecond,
	}
	if rapid.Bool().Draw(t, "disk") {
		c.Offload.Disk = Store{
			Tokens:    fleet.Tokens(rapid.IntRange(1, 200).Draw(t, "disk blocks")) * BlockTokens,
			Bandwidth: rapid.Float64Range(1e6, 1e8).Draw(t, "disk bandwidth"),
			Latency:   time.Duration(rapid.IntRange(0, 20_000).Draw(t, "disk latency us")) * time.Microsecond,
		}
	}
}

func TestEventsTellTheTruth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, deeds := drawScenario(t)
		if rapid.Bool().Draw(t, "tiers") {
			drawTiers(t, &c)
		}
		c.Events, c.EveryToken = true, rapid.Bool().Draw(t, "every token")
		act(t, c, deeds)
	})
}

// A batch belongs to the step that begins at its time: what is removed for a
// request comes before what it stores, and the parts of a chain say whom they
// follow.
func TestEventsOfAStep(t *testing.T) {
	described := 0
	describe := func(id fleet.ReqID, depth int, ev *kv.Event) {
		described++
		ev.Tokens = append(ev.Tokens, uint32(id), uint32(depth))
	}
	e := newEngine(t, Config{KVTokens: 6 * BlockTokens, BudgetTokens: 48, Events: true, Describe: describe})
	a, b := chainOf(5, 2, 1), chainOf(5, 2, 2)
	keys := func(from []uint64) (to []kv.EngineKey) {
		for _, k := range from {
			to = append(to, kv.EngineKey(k))
		}
		return to
	}
	stored := func(id uint32, chain []uint64, from, to int) kv.Event {
		ev := kv.Event{Kind: kv.Stored, BlockSize: 16, Blocks: keys(chain[from:to]), Tokens: []uint32{id, uint32(from)}}
		if from > 0 {
			ev.Parent, ev.HasParent = kv.EngineKey(chain[from-1]), true
		}
		return ev
	}
	type batch struct {
		At     time.Duration
		Events []kv.Event
	}
	run := func(at time.Duration, id fleet.ReqID, chain []uint64) (got []batch) {
		submit(t, e, fleet.Time(at), Request{ID: id, Prompt: 81, Output: 1, Chain: chain})
		drain(t, e)
		for at, events := range e.TakeEvents() {
			got = append(got, batch{time.Duration(at), append([]kv.Event(nil), events...)})
			for i := range events {
				got[len(got)-1].Events[i].Blocks = append([]kv.EngineKey(nil), events[i].Blocks...)
			}
		}
		return got
	}
	ms := time.Millisecond
	want := []batch{
		{0, []kv.Event{stored(1, a, 0, 3)}},
		{ms + 48*time.Microsecond, []kv.Event{stored(1, a, 3, 5)}},
	}
	if d := cmp.Diff(want, run(0, 1, a)); d != "" {
		t.Errorf("a prompt in two chunks (-want +got):\n%s", d)
	}
	want = []batch{
		{10 * ms, []kv.Event{{Kind: kv.Removed, Blocks: keys(a[3:5])}, stored(2, b, 2, 5)}},
		{11*ms + 48*time.Microsecond, []kv.Event{{Kind: kv.Removed, Blocks: keys(a[2:3])}}},
	}
	if d := cmp.Diff(want, run(10*ms, 2, b)); d != "" {
		t.Errorf("another that shares two blocks (-want +got):\n%s", d)
	}
	if !e.DropCache(fleet.Time(20*ms), false) {
		t.Fatal("the cache is not dropped")
	}
	for at, events := range e.TakeEvents() {
		if time.Duration(at) != 20*ms || len(events) != 1 || events[0].Kind != kv.Cleared {
			t.Errorf("%d events at %v, the first %+v", len(events), time.Duration(at), events[0])
		}
	}
	if described != 3 {
		t.Errorf("%d events described, want 3", described)
	}
}
