package enginesim

import (
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// flat is a physics of steps that take equally long.
type flat struct{ step time.Duration }

func (f *flat) StepTime(Batch) time.Duration { return f.step }

func TestStateIsWhatIsThereToDo(t *testing.T) {
	e, err := New(Config{Physics: &flat{10 * time.Millisecond}, KVTokens: 16_000, MaxSeqs: 2, BudgetTokens: 256})
	if err != nil {
		t.Fatal(err)
	}
	shared := make([]uint64, 20)
	for i := range shared {
		shared[i] = uint64(100 + i)
	}
	submit := func(at fleet.Time, id fleet.ReqID, prompt, output fleet.Tokens, chain []uint64) {
		if err := e.Submit(at, Request{ID: id, Prompt: prompt, Output: output, Chain: chain}); err != nil {
			t.Fatal(err)
		}
	}
	submit(0, 1, 100, 50, nil)
	e.Advance(0, nil)
	submit(1, 2, 640, 5, shared)                                      // computed in chunks beside it
	submit(2, 3, 400, 5, append(append([]uint64{}, shared...), 7, 8)) // waits for a seat
	e.Advance(fleet.Time(25*time.Millisecond), nil)
	// Two steps have ended. The first has 2 tokens; the second has its first chunk
	// computed, and the next is under way.
	st := e.State()
	want := State{
		Decoding: 1, Context: 101, Output: 50, Ahead: 2, Started: fleet.Time(20 * time.Millisecond),
		Prompt: 640 - 255 + 80, Pairs: 385*255 + 385*384/2 + 80*320 + 80*79/2,
		Held: 7*16 + 32*16,
	}
	if st != want {
		t.Errorf("state\n%+v, want\n%+v", st, want)
	}
	if got := e.Expected(append(append([]uint64{}, shared...), 7, 9), 500); got != 21*16 {
		t.Errorf("%d tokens expected of a prompt that shares 21 blocks with one that waits", got)
	}
}

func TestReplanFollowsAPhysicsThatChanges(t *testing.T) {
	for _, after := range []int{0, 7, 300} {
		end := func(replan bool) fleet.Time {
			f := &flat{10 * time.Millisecond}
			e, err := New(Config{Physics: f, KVTokens: 16_000, MaxSeqs: 2, BudgetTokens: 256})
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Submit(0, Request{ID: 1, Prompt: 100, Output: 401}); err != nil {
				t.Fatal(err)
			}
			at := fleet.Time(after)*fleet.Time(10*time.Millisecond) + fleet.Time(5*time.Millisecond)
			e.Advance(at, nil)
			if f.step *= 2; replan {
				e.Replan()
			}
			out, next := e.Advance(at, nil)
			for next != fleet.Never {
				out, next = e.Advance(next, out)
			}
			return out[len(out)-1].At
		}
		// The step in flight takes as long as it was to take.
		if got, want := end(true), fleet.Time(after+1+2*(400-after))*fleet.Time(10*time.Millisecond); got != want {
			t.Errorf("slowed down after %d steps: ends at %v, want %v", after, time.Duration(got), time.Duration(want))
		}
	}
}
