package pool

import (
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/perf"
)

// Event is something the brain is told. The set is closed: each type has one
// handler in Brain and one encoding in codec.go. Events are passed as pointers
// and may be reused by the caller after Step returns.
type Event interface{ isEvent() }

// Configure replaces the brain's configuration. Requests and endpoints stay.
type Configure struct{ Config Config }

// Change says what happened to an endpoint.
type Change uint8

// The changes of an endpoint.
const (
	EndpointUp    Change = iota // it is there: new, or known with changed facts
	EndpointDrain               // it takes nothing new and finishes what it has
	EndpointGone                // it is no more; what it had has failed or will
)

// Endpoint tells of an endpoint that came, changed or went.
type Endpoint struct {
	Endpoint fleet.EndpointID
	Gen      fleet.Gen // a higher generation is a new process with an empty cache
	Change   Change
	Role     fleet.Role
	Limits   fleet.Limits
	Variant  uint64      // endpoints of one variant are equals; 0 for those of which nothing is told
	Step     perf.Step   // step time believed before any is measured; zero when unknown
	Links    fleet.Links // how fast KV is believed to come from slower tiers; zero when unknown
	// Wire is how fast KV is believed to leave for another endpoint of the same
	// Connector; with the Connector 0 it cannot.
	Wire      fleet.Link
	Connector uint64
	Pulls     bool // endpoints of that Connector fetch from each other's caches what they lack of a prompt
}

// KV tells what an endpoint's feed of KV events has to say. Changes are in the
// keys of the index, never more than a step can apply in a millisecond.
type KV struct {
	Endpoint fleet.EndpointID
	Gen      fleet.Gen
	Update   kv.Update
}

// Sample is one reading of an endpoint's gauges, or the failure to get one.
type Sample struct {
	Endpoint fleet.EndpointID
	Gen      fleet.Gen
	Taken    fleet.Time    // when the engine answered
	Failure  fleet.Failure // FailNone when Gauges were read
	Gauges   fleet.Gauges
	Adapters fleet.Adapters // those at work; zero when the engine does not tell
}

// Serves tells which LoRA adapters an endpoint answers to. Before the first one
// it is tried for those that no other endpoint is known to have.
type Serves struct {
	Endpoint fleet.EndpointID
	Gen      fleet.Gen
	Adapters []fleet.Adapter
}

// Barred tells which endpoints' KV an endpoint cannot use, though their connectors
// are the same: the whole list, in place of the one before. What is not told of
// may be used.
type Barred struct {
	Endpoint fleet.EndpointID
	Gen      fleet.Gen
	Sources  []fleet.EndpointID
}

// Probed answers a Probe action.
type Probed struct {
	Endpoint fleet.EndpointID
	Gen      fleet.Gen
	OK       bool
}

// Arrive is a new request. ReqIDs must be new.
type Arrive struct {
	Req       fleet.ReqID
	Prompt    fleet.Tokens // prompt tokens, estimated
	MaxOut    fleet.Tokens // output limit; 0 when the request sets none
	Chain     []kv.Key     // of the prompt's bytes
	KeyTokens float64      // prompt tokens each key of Chain covers
	Blocks    []kv.Key     // of its full blocks of tokens, where these are known
	Terms     fleet.Terms
	// Owner is the only endpoint that can serve the request, since it holds what
	// the request continues; NoEndpoint when any can.
	Owner   fleet.EndpointID
	Adapter fleet.Adapter // the LoRA adapter it names; NoAdapter for the base model
	Images  []kv.Key      // of its content: what stands for each of its images
	// Silent says that the answer comes whole: nothing tells of its first token.
	Silent bool
	// Whole says that more than one sequence is asked for: engines hand over one.
	Whole bool
	// Loadable says that whoever sends the request can have its adapter loaded, so
	// that an endpoint without it will do.
	Loadable bool
}

// Leg reports progress of one attempt of a request.
type Leg struct {
	Req     fleet.ReqID
	Attempt int
	Phase   fleet.Phase
	Output  fleet.Tokens  // tokens generated so far, with PhaseProgress
	Usage   fleet.Usage   // with PhaseDone
	Failure fleet.Failure // with PhaseFailed
	// Committed says, with PhaseFailed, that the client has seen part of the
	// answer, so that no other endpoint may start it again.
	Committed bool
	// Prefill says that it is of the leg that computes the prompt for the other: with
	// PhaseDone or PhaseFailed.
	Prefill bool
}

// Encoded tells what became of the encoding of one image of a request. After a
// failure an Encode follows.
type Encoded struct {
	Req     fleet.ReqID
	Attempt int
	Image   int // index into Arrive.Images
	Failure fleet.Failure
}

// Gone says that the client left before its answer ended.
type Gone struct{ Req fleet.ReqID }

// Tick says only that time has passed; see Brain.Wake.
type Tick struct{}

func (*Configure) isEvent() {}
func (*Endpoint) isEvent()  {}
func (*Sample) isEvent()    {}
func (*Serves) isEvent()    {}
func (*KV) isEvent()        {}
func (*Barred) isEvent()    {}
func (*Probed) isEvent()    {}
func (*Arrive) isEvent()    {}
func (*Leg) isEvent()       {}
func (*Encoded) isEvent()   {}
func (*Gone) isEvent()      {}
func (*Tick) isEvent()      {}

// ActionKind says what an action asks for.
type ActionKind uint8

// The kinds of action.
const (
	Dispatch ActionKind = iota // send the request to Endpoint, with Prefill to that first
	Cancel                     // stop the attempt at Endpoint and free what it holds
	Refuse                     // answer the client with Refusal
	Probe                      // ask whether Endpoint is fit; answer with Probed
	Fitness                    // tell: Endpoint's health is now Health
	Moved                      // tell: Endpoint has the KV that Prefill has computed, or what Source had of it
	Encode                     // have Image encoded at Endpoint instead; NoEndpoint when nobody does
)

var actionNames = [...]string{"dispatch", "cancel", "refuse", "probe", "fitness", "moved", "encode"}

// String returns the kind's name.
func (k ActionKind) String() string { return actionNames[k] }

// Action is something the brain asks its shell to do. Only the fields named
// with its kind are set.
type Action struct {
	Kind       ActionKind
	Req        fleet.ReqID      // Dispatch, Cancel, Refuse, Moved, Encode
	Attempt    int              // Dispatch, Cancel, Moved, Encode
	Image      int              // Encode
	Endpoint   fleet.EndpointID // all but Refuse
	Gen        fleet.Gen        // all but Refuse
	Prefill    fleet.EndpointID // Dispatch, Moved: computes the prompt for Endpoint; NoEndpoint when that does so itself
	PrefillGen fleet.Gen        // Dispatch, Moved
	Source     fleet.EndpointID // Dispatch, Moved: from whose cache Endpoint fetches what it lacks; NoEndpoint for none
	SourceGen  fleet.Gen        // Dispatch, Moved
	Decision   *fleet.Decision  // Dispatch; valid until the next Step
	Refusal    fleet.Refusal    // Refuse
	RetryAfter time.Duration    // Refuse; 0 when coming back will not help
	Health     health.State     // Fitness
	Cause      fleet.Failure    // Fitness: what led to an ejection
	Tokens     fleet.Tokens     // Moved: how many; 0 when nothing of what was to be fetched has come
	Expected   time.Duration    // Moved: how long that was predicted to take
	Took       time.Duration    // Moved: how long it took, if all else went as predicted; 0 when nothing tells
}
