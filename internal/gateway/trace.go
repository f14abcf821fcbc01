package gateway

import (
	"net/http"

	"penstock.dev/penstock/internal/fleet"
)

// Trace follows one request for a tracing system. Its methods are called in
// order from the request's goroutine and must not block.
type Trace interface {
	// ID names the trace; "" for none. It goes into the access record.
	ID() string
	// Attempt begins an attempt at a.Endpoint and adds to the header what the
	// engine needs to continue the trace.
	Attempt(a *Access, toEngine http.Header)
	// Failed ends an attempt of which the client has seen nothing.
	Failed(f fleet.Failure)
	// End ends the trace, and with it the attempt under way.
	End(a *Access)
}

// noTrace follows nothing; the client's own trace context is passed on as it
// came.
type noTrace struct{}

func (noTrace) ID() string                     { return "" }
func (noTrace) Attempt(*Access, http.Header)   {}
func (noTrace) Failed(fleet.Failure)           {}
func (noTrace) End(*Access)                    {}
func startNoTrace(*http.Request, string) Trace { return noTrace{} }
