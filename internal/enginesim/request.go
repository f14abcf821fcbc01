package enginesim

import (
	"errors"
	"fmt"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// Reason says how a request ended.
type Reason uint8

// The reasons to end. An abort is the caller's own doing and makes no Output.
const (
	NotFinished  Reason = iota
	FinishLength        // the output reached its limit
	FinishStop          // the model or a stop string ended it
)

// String returns the reason as the OpenAI API spells it; empty when not
// finished.
func (r Reason) String() string { return [...]string{"", "length", "stop"}[r] }

// Request is one sequence to compute.
type Request struct {
	ID fleet.ReqID // unique among the requests in the engine
	// Chain has the cumulative key of each full block of the prompt, and may go
	// on into the output as far as that is known. The engine keeps the slice and
	// never changes its elements; nor may the caller. Blocks past its end get
	// keys that no other request has.
	Chain  []uint64
	Prompt fleet.Tokens // at least 1
	Output fleet.Tokens // tokens to generate, at least 1
	Finish Reason       // what to report at the end; NotFinished means FinishLength
	// Received is how many of the prompt's tokens come with their KV, computed
	// elsewhere and moved here by now. It takes blocks like any other, and is
	// computed here when it is lost to preemption.
	Received fleet.Tokens
	// Adapter is the LoRA adapter it runs with; empty for the base model. Its
	// keys must differ from those of other adapters: their KV does.
	Adapter string
	// Pool wants the prompt's last hidden state, as for an embedding: one prefill
	// and no decode. Output is then 0, and the only report has no tokens.
	Pool bool
	// Keep has its blocks held after its end until Release: another engine will
	// fetch them.
	Keep bool
}

// Kind is the kind of an Output.
type Kind uint8

// The kinds of output.
const (
	KindTokens    Kind = iota // a request has more tokens
	KindPreempted             // a running request lost its blocks and waits again
	KindStep                  // a step has ended; only with Config.EveryToken
)

// Output is one thing that happened inside the engine.
type Output struct {
	Kind Kind
	At   fleet.Time
	Req  fleet.ReqID // zero for KindStep

	// Tokens is what the request has generated so far or, for KindStep, what the
	// step computed. Unless Config.EveryToken is set, only the first token and
	// the end of a request are reported.
	Tokens   fleet.Tokens
	Cached   fleet.Tokens // prompt tokens found in the cache at first admission
	FromCPU  fleet.Tokens // of those, how many had to be loaded from CPU memory
	FromDisk fleet.Tokens // and from disk
	First    bool         // this is the request's first report of tokens
	Finish   Reason       // how it ended; NotFinished while it goes on
	Admitted fleet.Time   // when it was first scheduled
}

// Config describes an engine. The fields up to BudgetTokens are required.
type Config struct {
	Physics      Physics
	KVTokens     fleet.Tokens // capacity; rounded down to whole blocks
	MaxSeqs      int          // sequences running at once
	BudgetTokens fleet.Tokens // tokens computed per step
	MaxAdapters  int          // different adapters running at once; 0 for no limit
	// EveryToken makes each token and each step an Output, as a server needs.
	// Without it steps that only decode are run through without looking at each
	// sequence, which is how a simulator wants it; times are the same.
	EveryToken bool
	Offload    Offload
	// Events makes the engine note what happens to blocks; see TakeEvents.
	Events bool
	// Describe fills in what of a kv.Stored event only whoever submitted the
	// request knows: tokens, adapter, salt. The event's blocks are the request's
	// from depth on, a number of blocks. It must not call the engine, and what it
	// puts into the event must last until the event has been taken. It may be nil,
	// and is not called for blocks that go to disk.
	Describe func(id fleet.ReqID, depth int, ev *kv.Event)
}

func (c Config) validate() error {
	var errs []error
	check := func(ok bool, field string, value any, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %v; must be %s", field, value, want))
		}
	}
	check(c.Physics != nil, "Physics", c.Physics, "given")
	check(c.KVTokens >= BlockTokens, "KVTokens", c.KVTokens, fmt.Sprintf("at least one block of %d", BlockTokens))
	check(c.MaxSeqs > 0, "MaxSeqs", c.MaxSeqs, "above 0")
	check(c.BudgetTokens > 0, "BudgetTokens", c.BudgetTokens, "above 0")
	check(c.MaxAdapters >= 0, "MaxAdapters", c.MaxAdapters, "0 or more")
	o := c.Offload
	check(o.CPU.Tokens >= 0 && o.Disk.Tokens >= 0, "Offload", o.CPU.Tokens, "0 tokens or more")
	check(o.Disk.Tokens == 0 || o.CPU.Tokens >= BlockTokens, "Offload.CPU.Tokens", o.CPU.Tokens, "at least a block above a disk")
	check(o.CPU.Tokens == 0 || o.KVBytes > 0, "Offload.KVBytes", o.KVBytes, "above 0")
	for _, s := range []Store{o.CPU, o.Disk} {
		check(s.Tokens == 0 || s.Bandwidth > 0 && s.Latency >= 0, "Offload.Bandwidth", s.Bandwidth, "above 0, and Latency 0 or more")
	}
	return errors.Join(errs...)
}

// Errors of Submit that callers tell apart.
var (
	ErrDuplicate = errors.New("a request of this id is in the engine")
	ErrEmpty     = errors.New("prompt and output must each be at least one token; the output to pool is 0")
)

// TooLargeError refuses a request that could not run even on an empty engine.
type TooLargeError struct {
	Need, Have fleet.Tokens // KV tokens, in whole blocks
}

// Error names both sizes.
func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the request needs KV cache for %d tokens and the engine has %d; shorten the prompt or the output", e.Need, e.Have)
}

// Stats are an engine's gauges and its counters since it was made.
type Stats struct {
	Running, Waiting                      int // sequences
	TotalBlocks, UsedBlocks, CachedBlocks int // used: held by sequences; cached: idle, for reuse; the rest is free
	Kept                                  int // requests that have ended and hold blocks to be fetched

	PrefixQueries    uint64 // prompt tokens looked up at first admission
	PrefixHits       uint64 // of those, found
	Preemptions      uint64
	PromptTokens     uint64 // of requests whose prompt is done, cached tokens included
	GenerationTokens uint64
	Finished         [3]uint64 // by Reason; NotFinished counts aborts
	EvictedBlocks    uint64
	Steps            uint64
	Busy             time.Duration // time spent in finished steps

	CPU, Disk TierStats
}

// KVUsage returns the share of blocks held by sequences, 0 to 1.
func (s Stats) KVUsage() float64 { return float64(s.UsedBlocks) / float64(s.TotalBlocks) }
