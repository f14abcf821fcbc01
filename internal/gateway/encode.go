package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"sync"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/live"
)

// encodePath is where encoders are asked, whatever the API of the request.
const encodePath = "/v1/chat/completions"

// maxEncodeAnswer bounds what an encoder says of one image.
const maxEncodeAnswer = 1 << 20

// findImages finds the images of a request, where somebody is there to encode them.
func (x *exchange) findImages() []kv.Key {
	if !x.service.Pool.Encodes() {
		return nil
	}
	x.images = x.toward.kind.Images(x.toward.body)
	var keys []kv.Key
	for i := range x.images {
		keys = append(keys, x.images[i].Key)
	}
	return keys
}

// sidecarEncodes reports whether the images are encoded by order of a sidecar.
func (x *exchange) sidecarEncodes() bool {
	return engine.Connector(x.at.Transfer.Connector).EncodesItself()
}

// encode has the images of the present attempt encoded, each by a request of its
// own, and keeps where they are. What nobody has encoded in time is encoded by the
// engine that computes the prompt.
func (x *exchange) encode(ctx context.Context) {
	x.encoded = nil
	if len(x.encoders) == 0 || x.sidecarEncodes() {
		return
	}
	answers := make([][]byte, len(x.encoders))
	var legs sync.WaitGroup
	for i, at := range x.encoders {
		if at.ID != fleet.NoEndpoint {
			legs.Go(func() { answers[i] = x.encodeImage(ctx, i, at) })
		}
	}
	legs.Wait()
	var found [][]byte
	for _, a := range answers {
		if a != nil {
			found = append(found, a)
		}
	}
	if len(found) > 0 {
		x.encoded = api.JoinObjects(found)
	}
}

// encodeImage has one image encoded, by one encoder after the other as long as the
// pool names one.
func (x *exchange) encodeImage(ctx context.Context, image int, at live.Endpoint) []byte {
	body := api.EncodeImage(x.toward.body, x.images[image])
	for at.ID != fleet.NoEndpoint {
		where, failure, err := x.askEncoder(ctx, at, body)
		if err == nil {
			x.ticket.Encoded(image, fleet.FailNone)
			return where
		}
		if x.r.Context().Err() != nil {
			return nil // nobody's fault; the ticket's end takes it back
		}
		x.g.o.Log.Debug("an image was not encoded", "request", x.access.ID, "image", image, "endpoint", at.Name, "err", err)
		at = x.ticket.Encoded(image, failure)
	}
	return nil
}

// askEncoder has one encoder encode an image and returns where it is.
func (x *exchange) askEncoder(ctx context.Context, at live.Endpoint, body []byte) ([]byte, fleet.Failure, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, x.g.o.Limits.Encode, engine.ErrFirstByte)
	defer cancel()
	resp, failure, err := x.postTo(ctx, at, encodePath, engine.Leg{Body: body})
	if err != nil {
		failure, err = cause(ctx, failure, err)
		return nil, failure, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxEncodeAnswer+1))
	switch {
	case err != nil:
		failure, err = cause(ctx, fleet.FailStream, err)
		return nil, failure, fmt.Errorf("read the answer of %s: %w", at.Name, err)
	case failure != fleet.FailNone:
		return nil, failure, fmt.Errorf("engine %s, asked to encode an image, answered %s", at.Name, resp.Status)
	case len(answer) > maxEncodeAnswer:
		return nil, fleet.FailGarbage, errors.New("the encoder's answer is too long")
	}
	where, err := engine.EncodedOf(answer)
	if err != nil {
		return nil, fleet.FailGarbage, err
	}
	return where, fleet.FailNone, nil
}

// sidecarsEncoders are those who encode the images by a sidecar's order.
func (x *exchange) sidecarsEncoders() []engine.Party {
	var list []engine.Party
	if !x.sidecarEncodes() {
		return nil
	}
	for _, e := range x.encoders {
		if e.ID != fleet.NoEndpoint {
			list = append(list, party(e))
		}
	}
	return list
}

// sidecarEncoded tells the pool that the images a sidecar had encoded are done with:
// nothing else tells.
func (x *exchange) sidecarEncoded() {
	if !x.sidecarEncodes() {
		return
	}
	for i, e := range x.encoders {
		if e.ID != fleet.NoEndpoint {
			x.ticket.Encoded(i, fleet.FailNone)
		}
	}
	x.encoders = nil
}

// wholeLeg is what one engine is sent that serves the request alone; nil where that
// is the request as it is.
func (x *exchange) wholeLeg() *engine.Leg {
	if x.encoded == nil && x.source.ID == fleet.NoEndpoint && len(x.encoders) == 0 {
		return nil
	}
	l := &engine.Leg{Body: x.toward.body, Header: http.Header{}}
	if x.encoded != nil {
		if b, err := engine.WithEncoded(l.Body, x.encoded); err == nil {
			l.Body = b
		}
	}
	if k := engine.Connector(x.at.Transfer.Connector); x.source.ID != fleet.NoEndpoint && k.CanPull() {
		// One that cannot be told computes it.
		if p, err := k.Pull(l.Body, x.attemptID(), party(x.source)); err == nil {
			l.Body = p.Body
			maps.Copy(l.Header, p.Header)
		}
	}
	if list := x.sidecarsEncoders(); len(list) > 0 {
		l.Header.Set(engine.EncodersHeader, engine.EncodersValue(list))
	}
	return l
}
