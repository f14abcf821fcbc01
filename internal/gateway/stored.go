package gateway

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
)

// storedRoute is that of requests about a response that an engine has stored.
// They compute nothing, so no pool is asked where they go.
var storedRoute = route{kind: api.Responses, style: api.OpenAIResponses}

// serveStored passes a request about a stored response to the endpoint that
// holds it.
func (g *Gateway) serveStored(w http.ResponseWriter, r *http.Request) {
	x := g.begin(w, r, &storedRoute)
	defer x.finish()
	if !x.readTerms() {
		return
	}
	id := r.PathValue("id")
	o, e, ok := g.owners.find(id, x.access.Tenant, time.Now())
	if !ok {
		x.refuse(api.UnknownResponse(id, "response_id"))
		return
	}
	x.access.Model, x.access.Pool = o.asked, o.pool.Name()
	x.access.Outcome.Endpoint, x.access.Endpoint, x.access.Attempts = e.ID, e.Name, 1
	x.at, x.service = e, Service{Pool: o.pool, Model: o.model}
	x.toward = engineSide{kind: api.Responses, path: r.URL.EscapedPath(), rename: o.asked != o.model}
	if r.URL.RawQuery != "" {
		x.toward.path += "?" + r.URL.RawQuery
	}
	if err := x.askStored(); err != nil && x.access.Status != statusGone {
		x.access.Err = err
		x.storedFailed()
	}
}

// askStored passes one such request on, and its answer back.
func (x *exchange) askStored() error {
	ctx, cancel := context.WithCancelCause(x.r.Context())
	defer cancel(nil)
	first := time.AfterFunc(x.g.o.Limits.FirstByte, func() { cancel(engine.ErrFirstByte) })
	defer first.Stop()
	header := x.engineHeader(x.at)
	x.trace.Attempt(&x.access, header)
	resp, failure, err := x.g.o.ClientFor(x.service.Pool).Ask(ctx, x.r.Method, x.at.URL, x.toward.path, header)
	if err != nil {
		x.access.Failure, err = cause(ctx, failure, err)
		return err
	}
	defer resp.Body.Close()
	switch x.access.Failure = failure; {
	case failure != fleet.FailNone && failure != fleet.FailClient:
		return fmt.Errorf("engine %s answered %s", x.at.Name, resp.Status)
	case failure == fleet.FailNone && (isEventStream(resp) || !isJSON(resp)):
		if isEventStream(resp) && x.toward.rename {
			resp.Body = renaming(resp.Body, x.service.Model, x.access.Model)
			resp.ContentLength = -1
		}
		err := x.copyRaw(cancel, first, resp, func() {})
		if err != nil {
			x.access.Failure, err = cause(ctx, fleet.FailStream, err)
		}
		return err
	}
	body, err := readAll(resp.Body, resp.ContentLength)
	switch {
	case err != nil:
		x.access.Failure, err = cause(ctx, fleet.FailStream, err)
		return fmt.Errorf("read answer: %w", err)
	case failure == fleet.FailClient:
		x.verdict(resp, body)
		return nil
	}
	if x.toward.rename {
		body = api.Rename(nil, body, x.service.Model, x.access.Model)
	}
	x.answer(resp, body)
	return nil
}

// storedFailed tells the client that the endpoint did not answer, if it has been
// told nothing yet. No other endpoint could.
func (x *exchange) storedFailed() {
	switch {
	case x.r.Context().Err() != nil:
		x.access.Status = statusGone
	case x.committed:
		x.cut = true
	case x.access.Failure == fleet.FailTimeout:
		x.refuse(api.Refused(fleet.RefuseTimeout, 0))
	case x.access.Failure == fleet.FailOverload:
		x.refuse(api.Refused(fleet.RefuseOverload, time.Second))
	default:
		x.refuse(api.Refused(fleet.RefuseEngine, 0))
	}
}
