package gateway

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"os"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
)

// readBody reads the request body, within its limits of size and time.
func (x *exchange) readBody() bool {
	limit, size := x.g.o.Limits.MaxBody, x.r.ContentLength
	if size > limit {
		x.tooLarge()
		return false
	}
	if size < 0 {
		size = limit
	}
	// Memory is given for what has come, not for what is announced: one byte
	// more than the size, so that the end is seen without growing.
	buf := lend(int(min(size+1, firstRead)))
	for {
		n, err := x.r.Body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		x.body = buf
		switch {
		case int64(len(buf)) > limit:
			x.tooLarge()
			return false
		case err == io.EOF:
			_ = x.rc.SetReadDeadline(time.Time{})
			return true
		case err != nil:
			x.bodyFailed(err)
			return false
		case len(buf) == cap(buf):
			buf = regrow(buf, int(min(growth*int64(len(buf)), size+1)))
			x.body = buf
		}
	}
}

// firstRead is the room for a body before any of it has come.
const firstRead = 16 << 10

func (x *exchange) tooLarge() {
	// The rest of the body is not worth reading.
	x.w.Header().Set("Connection", "close")
	x.refuse(api.TooLarge(x.g.o.Limits.MaxBody))
}

func (x *exchange) bodyFailed(err error) {
	x.access.Err = fmt.Errorf("read request body: %w", err)
	x.w.Header().Set("Connection", "close")
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		x.refuse(api.SlowBody(x.g.o.Limits.BodyTimeout))
	case x.r.Context().Err() != nil:
		x.access.Status = statusGone
	default:
		x.refuse(api.BadBody(fmt.Errorf("not readable: %w", err)))
	}
}

// scan reads what routing needs off the body.
func (x *exchange) scan() error {
	if !x.route.form {
		var err error
		x.req, err = api.Scan(x.body, x.route.kind)
		return err
	}
	kind, params, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" {
		return errors.New("not a multipart form, which this path takes")
	}
	x.req, err = api.ScanForm(x.body, params["boundary"])
	return err
}

// understand finds out what is asked, who serves it, and how it is put to the
// engines.
func (x *exchange) understand() bool {
	err := x.scan()
	x.access.Model, x.access.Stream = x.req.Model, x.req.Stream
	if err != nil {
		x.access.Err = err
		x.refuse(x.misunderstood(err))
		return false
	}
	var ok bool
	if x.service, ok = x.g.o.Fleet.Find(x.req.Model); !ok {
		x.refuse(x.misunderstood(nil))
		return false
	}
	x.access.Pool = x.service.Pool.Name()
	if !x.readTerms() || !x.findOwner() {
		return false
	}
	if err := x.put(); err != nil {
		x.access.Err = err
		if errors.Is(err, errNotSpoken) {
			x.refuse(api.NotSpoken(x.route.path, x.access.Model))
		} else {
			x.refuse(api.BadBody(err))
		}
		return false
	}
	return x.fits()
}

// misunderstood is the answer to a body that is wrong, or names no model that is
// served. At a path that is not of the API it is as if the path did not exist.
func (x *exchange) misunderstood(err error) api.Problem {
	switch {
	case x.route.other:
		return api.NotFound(x.r.Method, x.r.URL.Path)
	case err != nil:
		return api.BadBody(err)
	}
	return api.UnknownModel(x.req.Model)
}

// findOwner finds the endpoint that holds the response the request continues.
// One that is not known may still be known to the engines.
func (x *exchange) findOwner() bool {
	if x.req.Previous == "" {
		return true
	}
	o, e, ok := x.g.owners.find(x.req.Previous, x.access.Tenant, time.Now())
	if !ok && !x.g.owners.others(x.req.Previous, x.access.Tenant) {
		return true
	}
	if !ok || o.pool != x.service.Pool {
		x.refuse(api.UnknownResponse(x.req.Previous, "previous_response_id"))
		return false
	}
	x.owner = e.ID
	return true
}

// errNotSpoken says that the engines do not speak the API, and nothing they do
// speak can stand for it.
var errNotSpoken = errors.New("the engines do not speak this API")

// put decides how the request is put to the engines: as it came where they speak
// its API, with no more changed than must be, and translated where they do not.
func (x *exchange) put() error {
	x.toward = engineSide{kind: x.route.kind, path: x.route.path, rename: x.service.Model != x.req.Model}
	if x.route.other {
		if x.toward.path = x.r.URL.EscapedPath(); x.r.URL.RawQuery != "" {
			x.toward.path += "?" + x.r.URL.RawQuery
		}
	}
	var c api.Changes
	if x.toward.rename {
		c.Model = x.service.Model
	}
	if x.policy.SaltPerTenant && x.route.kind.Salted() {
		c.Salt = x.salt()
		x.req.CacheSalt = api.AppendString(nil, c.Salt)
	}
	x.toward.body = x.req.Rewrite(x.body, c)
	if x.route.needs != 0 && !x.speaks(x.route.needs) {
		if err := x.translate(); err != nil {
			return err
		}
	}
	x.req.Model = x.service.Model
	return nil
}

func (x *exchange) speaks(a engine.API) bool { return x.g.o.Fleet.Speaks(x.service.Pool).Has(a) }

// translate puts the request into words that the engines know.
func (x *exchange) translate() error {
	var err error
	t := &x.toward
	switch {
	case x.route.kind == api.Messages && x.speaks(engine.APIChat):
		t.kind, t.path, t.retell, t.rename = api.Chat, "/v1/chat/completions", true, false
		if t.body, err = api.MessagesToChat(t.body, x.service.Model); err == nil {
			declared := x.req.Declared
			x.req, err = api.Scan(t.body, api.Chat)
			x.req.Declared = declared
		}
	case x.route.kind == api.CountTokens && x.speaks(engine.APITokenizeChat):
		t.kind, t.path, t.count, t.rename = api.Tokenize, "/tokenize", true, false
		t.body, err = api.MessagesToTokenize(t.body, x.service.Model)
	default:
		err = errNotSpoken
	}
	return err
}

// fits estimates the prompt's length and refuses what cannot fit by far: an
// estimate is no ground to refuse what might.
func (x *exchange) fits() bool {
	prompt := x.req.PromptTokens(x.g.ratios.get(x.req.Model))
	x.access.Prompt = prompt
	limit := x.service.MaxModelLen
	if limit == 0 || !x.toward.kind.Salted() {
		return true
	}
	const byFar = 4
	if x.req.Counted() && prompt > limit || prompt > limit*byFar {
		x.refuse(api.OverContext(limit, prompt, x.req.Counted()))
		x.access.Failure = fleet.FailClient
		return false
	}
	return true
}
