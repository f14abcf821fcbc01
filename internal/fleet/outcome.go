package fleet

import "time"

// Phase is a step in the life of one attempt at an endpoint.
type Phase uint8

// The phases of an attempt, in order. Done and Failed are final.
const (
	PhaseSent       Phase = iota // the request has been written to the engine
	PhaseFirstToken              // the first token has come back
	PhaseProgress                // more tokens, reported at most 4 times a second
	PhaseDone                    // the answer ended as the engine meant it to
	PhaseFailed                  // it did not; see Failure
)

var phaseNames = [...]string{"sent", "first-token", "progress", "done", "failed"}

// String returns the phase's name.
func (p Phase) String() string { return nameOf(phaseNames[:], int(p)) }

// Failure says why an attempt failed, as far as it matters for what is done
// next: whether another endpoint may be tried and whether the endpoint is to
// blame.
type Failure uint8

// The kinds of failure.
const (
	FailNone     Failure = iota
	FailConnect          // no connection, or it broke before any answer
	FailTimeout          // no answer in time
	FailStatus           // a 5xx that is the engine's own fault
	FailOverload         // 429 or 503: the engine is full, not broken
	FailGarbage          // the answer is not what the protocol allows
	FailStream           // the stream broke after the first byte
	FailClient           // the request itself was refused (4xx); no other endpoint would differ
)

var failureNames = [...]string{"none", "connect", "timeout", "status", "overload", "garbage", "stream", "client"}

// String returns the failure's name.
func (f Failure) String() string { return nameOf(failureNames[:], int(f)) }

// Retryable reports whether another endpoint may answer where this one failed,
// provided that no byte has reached the client.
func (f Failure) Retryable() bool {
	switch f {
	case FailConnect, FailTimeout, FailStatus, FailOverload, FailGarbage, FailStream:
		return true
	}
	return false
}

// Unclear reports whether the failure of an endpoint that takes KV over may be that
// of the one it comes from.
func (f Failure) Unclear() bool { return f == FailStatus || f == FailTimeout }

// Blames reports whether the failure speaks against the endpoint's health.
func (f Failure) Blames() bool {
	switch f {
	case FailConnect, FailTimeout, FailStatus, FailGarbage, FailStream:
		return true
	}
	return false
}

// Refusal says why a request got no answer from any endpoint.
type Refusal uint8

// The kinds of refusal. Each maps to one API status.
const (
	RefuseNone       Refusal = iota
	RefuseQueueFull          // the queue has no place: 429
	RefuseExpired            // waited longer than allowed: 503
	RefuseNoEndpoint         // no endpoint is fit: 503
	RefuseEngine             // every attempt failed at the engines: 502
	RefuseTimeout            // the last attempt timed out: 504
	RefuseOverload           // every attempt was refused as overload: 503
	RefuseDraining           // the gateway is shutting down: 503
	RefuseCrowded            // the gateway serves as many requests as it may: 503
)

var refusalNames = [...]string{"none", "queue-full", "expired", "no-endpoint", "engine", "timeout", "overload", "draining", "crowded"}

// String returns the refusal's name.
func (r Refusal) String() string { return nameOf(refusalNames[:], int(r)) }

// Outcome is what became of a request, as its gateway measured it.
type Outcome struct {
	Status   int           // HTTP status sent; 499 when the client left first
	Refusal  Refusal       // why no engine answered, RefuseNone when one did
	Failure  Failure       // how the last attempt failed, FailNone when it did not
	Endpoint EndpointID    // of the last attempt; NoEndpoint when there was none
	Attempts int           // attempts made
	Queue    time.Duration // from arrival to the first dispatch
	TTFT     time.Duration // from arrival to the first token; 0 without one
	ITL      time.Duration // median gap between events that carried output; 0 with fewer than two
	Total    time.Duration // from arrival to the end
	Events   int           // events that carried output
	Bytes    int64         // bytes of answer sent to the client
	Usage    Usage
}
