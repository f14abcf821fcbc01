package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
)

// try asks the engine that answers whether it has enough of the prompt. If it has,
// the response is its answer, of which nothing has been taken.
func (x *exchange) try(ctx context.Context, l engine.Leg) (resp *http.Response, missed bool, failure fleet.Failure, err error) {
	resp, failure, err = x.post(ctx, x.at, l)
	if err != nil {
		return nil, false, failure, err
	}
	if failure != fleet.FailNone {
		return resp, false, fleet.FailNone, nil // whoever reads it sees
	}
	head, missed, err := x.missed(resp)
	if err != nil || missed {
		resp.Body.Close()
		return nil, missed, fleet.FailStream, err
	}
	resp.Body = &resumed{Reader: io.MultiReader(bytes.NewReader(head), resp.Body), Closer: resp.Body}
	return resp, false, fleet.FailNone, nil
}

// resumed is a body of which the beginning has been looked at.
type resumed struct {
	io.Reader
	io.Closer
}

// missed reads an answer up to where it says something: text, or that too little of
// the prompt has KV. It returns what it has read.
func (x *exchange) missed(resp *http.Response) (head []byte, missed bool, err error) {
	if !isEventStream(resp) {
		if head, err = readAll(resp.Body, resp.ContentLength); err != nil {
			return nil, false, fmt.Errorf("read answer: %w", err)
		}
		c, _ := api.ReadAnswer(x.toward.kind.Protocol(), head)
		return head, c.Missed, nil
	}
	var split api.Splitter
	for {
		n, err := resp.Body.Read(split.Space())
		tooLong := split.Filled(n)
		from := len(head)
		head = append(head, split.Whole()...)
		says := false
		api.Events(head[from:], func(ev []byte) {
			c := api.ReadEvent(x.toward.kind.Protocol(), ev)
			missed = missed || c.Missed
			says = says || c.Text || c.Finish || c.Error || c.Garbage || c.Done
		})
		switch {
		case missed:
			return nil, true, nil
		case says || err == io.EOF:
			return append(head, split.Rest()...), false, nil
		case err != nil:
			return nil, false, fmt.Errorf("read stream: %w", err)
		case tooLong != nil || len(head) > api.MaxEvent:
			return nil, false, errors.New("more than 1 MiB before the first text")
		}
	}
}
