// Package fleet holds the nouns every other package speaks in: endpoints,
// requests, limits, gauges, decisions. They are plain values: nothing here
// decides, measures or does I/O.
package fleet

import "time"

// Time is an instant in nanoseconds since the journal's epoch. The live shell
// derives it from a monotonic clock, the simulator from its event heap; pure
// packages never learn which.
type Time int64

// Never is later than every instant; a wake-up time of Never asks for none.
const Never Time = 1<<63 - 1

// Add returns t+d, saturating at Never.
func (t Time) Add(d time.Duration) Time {
	s := t + Time(d)
	if d > 0 && s < t {
		return Never
	}
	return s
}

// Sub returns the duration t-u.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t - u) }

// Seconds returns t in seconds since the epoch.
func (t Time) Seconds() float64 { return float64(t) / 1e9 }

// ReqID names one client request within one gateway process.
type ReqID uint64

// EndpointID names one endpoint for as long as the fleet knows it; ids are
// never reused within a journal.
type EndpointID uint32

// NoEndpoint is the id of no endpoint; real ids start at 1.
const NoEndpoint EndpointID = 0

// Gen counts the incarnations of an endpoint: events that carry an older
// generation speak of a process that is gone.
type Gen uint32

// Tokens is a count of model tokens.
type Tokens int

// Role says which phases of a request an endpoint serves.
type Role uint8

// The roles of an endpoint.
const (
	RoleBoth Role = iota
	RolePrefill
	RoleDecode
	RoleEncode
	RoleStore // serves nobody: a store of KV that endpoints share
)

var roleNames = [...]string{"both", "prefill", "decode", "encode", "store"}

// String returns the role's name as written in configuration.
func (r Role) String() string { return nameOf(roleNames[:], int(r)) }

// Prefills reports whether an endpoint of the role computes prompts for others.
func (r Role) Prefills() bool { return r == RoleBoth || r == RolePrefill }

// Decodes reports whether an endpoint of the role answers requests.
func (r Role) Decodes() bool { return r == RoleBoth || r == RoleDecode }

// Limits are what an engine can hold at once. Zero means unknown, never none.
type Limits struct {
	MaxModelLen  Tokens // longest prompt plus output of one request
	KVTokens     Tokens // KV cache capacity
	BlockTokens  Tokens // tokens per KV block
	MaxSeqs      int    // sequences that may run in one step
	BudgetTokens Tokens // tokens one step may process
}

// Merge returns l with every unknown field taken from o.
func (l Limits) Merge(o Limits) Limits {
	pick := func(a, b Tokens) Tokens {
		if a != 0 {
			return a
		}
		return b
	}
	l.MaxModelLen = pick(l.MaxModelLen, o.MaxModelLen)
	l.KVTokens = pick(l.KVTokens, o.KVTokens)
	l.BlockTokens = pick(l.BlockTokens, o.BlockTokens)
	l.BudgetTokens = pick(l.BudgetTokens, o.BudgetTokens)
	if l.MaxSeqs == 0 {
		l.MaxSeqs = o.MaxSeqs
	}
	return l
}

// Known is a set of gauges that a sample really carried. A gauge outside the
// set is unknown, which is neither zero nor full.
type Known uint8

// The gauges a sample can carry.
const (
	KnownRunning Known = 1 << iota
	KnownWaiting
	KnownKVUsage
	KnownKVCapacity

	// AllGauges are all there are.
	AllGauges Known = 1<<iota - 1
)

// Has reports whether every gauge in want is known.
func (k Known) Has(want Known) bool { return k&want == want }

var knownNames = [...]string{"running", "waiting", "kv-usage", "kv-capacity"}

// Names returns the names of the gauges in the set.
func (k Known) Names() []string {
	var names []string
	for i, n := range knownNames {
		if k.Has(1 << i) {
			names = append(names, n)
		}
	}
	return names
}

// Gauges are what an engine says of itself at one instant.
type Gauges struct {
	Known    Known
	Running  int     // sequences in the running batch
	Waiting  int     // sequences admitted but not yet running
	KVUsage  float64 // share of KV blocks in use, 0..1
	KVBlocks int     // blocks in the cache, with KnownKVCapacity
	KVBlock  Tokens  // tokens per block, with KnownKVCapacity
}

// Usage is the token count of one finished (or broken) answer.
type Usage struct {
	Known  bool   // the engine reported prompt and output
	Prompt Tokens // prompt tokens, cached ones included
	Cached Tokens // prompt tokens served from cache; -1 when not reported
	Output Tokens // generated tokens
}

func nameOf(names []string, i int) string {
	if i >= 0 && i < len(names) {
		return names[i]
	}
	return "unknown"
}
