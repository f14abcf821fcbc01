package enginesim

import (
	"testing"

	"penstock.dev/penstock/internal/fleet"
)

func TestKeptBlocksWaitForWhoFetchesThem(t *testing.T) {
	e := newEngine(t, Config{KVTokens: 10 * BlockTokens})
	submit(t, e, 0, Request{ID: 1, Prompt: 96, Output: 1, Chain: chainOf(6, 0, 1), Keep: true})
	drain(t, e)
	if s := e.Stats(); s.Kept != 1 || s.UsedBlocks != 6 || s.Running != 0 {
		t.Fatalf("%+v, want the prompt's 6 blocks held", s)
	}
	if err := e.Submit(e.ready, Request{ID: 1, Prompt: 16, Output: 1, Chain: chainOf(1, 1, 3)}); err == nil {
		t.Error("an id that still holds blocks is taken twice")
	}
	// Another finds no room until they are given up.
	submit(t, e, e.ready, Request{ID: 2, Prompt: 96, Output: 1, Chain: chainOf(6, 0, 2)})
	if out, next := e.Advance(e.ready+1_000_000_000, nil); len(out) != 0 || next != fleet.Never {
		t.Fatalf("%v, next %v: it ran without room, or will ask again and again", out, next)
	}
	now := e.ready + 2_000_000_000
	if !e.Release(now, 1) || e.Release(now, 1) {
		t.Error("released never, or twice")
	}
	drain(t, e)
	if s := e.Stats(); s.Kept != 0 || s.UsedBlocks != 0 || s.Finished[FinishLength] != 2 {
		t.Errorf("%+v, want both done and nothing held", s)
	}
	if err := e.check(); err != nil {
		t.Error(err)
	}
}

func TestKeptBlocksServeOthers(t *testing.T) {
	e := newEngine(t, Config{})
	chain := chainOf(6, 0, 1)
	submit(t, e, 0, Request{ID: 1, Prompt: 96, Output: 1, Chain: chain, Keep: true})
	drain(t, e)
	submit(t, e, e.ready, Request{ID: 2, Prompt: 97, Output: 1, Chain: chain})
	out := drain(t, e)
	if out[len(out)-1].Cached != 96 {
		t.Errorf("%d tokens cached of what is held, want 96", out[len(out)-1].Cached)
	}
	if !e.DropCache(e.ready, true) || e.Stats().UsedBlocks != 0 || e.Stats().Kept != 0 {
		t.Errorf("a reset leaves %+v", e.Stats())
	}
	if e.Release(e.ready, 1) {
		t.Error("what a reset has dropped is released")
	}
}
