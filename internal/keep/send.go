package keep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
)

// Sent is how sending a prompt for its cache went.
type Sent struct {
	Endpoint string
	Usage    fleet.Usage // Cached is what was there before
	Took     time.Duration
}

var errGone = errors.New("it is no longer kept")

const (
	// lastPriority is below what any objective asks for.
	lastPriority = -1 << 20
	// sendFor bounds how long one may take: a prompt of a million tokens at 10,000 a
	// second, and some waiting.
	sendFor   = 3 * time.Minute
	maxAnswer = 1 << 20
	// requestID begins the ids of such requests, in engines' logs.
	requestID = "penstock-keep-"
)

// send has an endpoint answer a prompt with one token, as a request of the pool
// like any other: the ledger counts it, and it fails like them.
func (k *Keep) send(ctx context.Context, s *gateway.Seen, to fleet.EndpointID) (Sent, error) {
	body, err := api.Replay(s.Body, s.Kind)
	if err != nil {
		return Sent{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, sendFor)
	defer cancel()
	terms := s.Terms
	terms.Priority, terms.SLO = lastPriority, fleet.SLO{}
	began := time.Now()
	id := fmt.Sprintf("%s%x", requestID, began.UnixNano())
	t := k.o.Pool.Open(id, &pool.Arrive{
		Prompt: s.Prompt.Tokens, MaxOut: 1, Chain: s.Prompt.Chain, KeyTokens: s.Prompt.KeyTokens, Blocks: s.Prompt.Blocks,
		Terms: terms, Owner: to, Adapter: s.Service.Adapter, Loadable: s.Service.Load != nil, Silent: true,
	})
	defer t.Close()
	var failed error
	for {
		o, err := t.Wait(ctx)
		switch {
		case err != nil:
			return Sent{}, err
		case o.Refusal != fleet.RefuseNone && failed != nil:
			return Sent{}, failed
		case o.Refusal != fleet.RefuseNone:
			return Sent{}, fmt.Errorf("the pool refused it: %s", api.Refused(o.Refusal, 0).Message)
		}
		u, failure, err := k.attempt(ctx, t, o.Endpoint, s, id, body)
		if err == nil {
			t.Done(u)
			return Sent{Endpoint: o.Endpoint.Name, Usage: u, Took: time.Since(began)}, nil
		}
		if failed = err; !t.Failed(failure, false) {
			return Sent{}, failed
		}
	}
}

// attempt sends the body once and reads what comes back.
func (k *Keep) attempt(ctx context.Context, t *live.Ticket, e live.Endpoint, s *gateway.Seen, id string, body []byte) (fleet.Usage, fleet.Failure, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t.Sent(cancel)
	if load := s.Service.Load; load != nil {
		if err := load(ctx, e); err != nil {
			return fleet.Usage{}, fleet.FailOverload, err
		}
	}
	h := http.Header{"Content-Type": {"application/json"}, "X-Request-Id": {id}}
	if s.Kind == api.Messages {
		h.Set("Anthropic-Version", "2023-06-01")
	}
	resp, failure, err := k.o.Client.Send(ctx, e.URL, s.Path, h, body)
	if err != nil {
		return fleet.Usage{}, failure, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case err != nil:
		return fleet.Usage{}, engine.Classify(err), fmt.Errorf("read answer of %s: %w", e.Name, err)
	case failure != fleet.FailNone:
		p, _ := api.EngineRefused(resp.StatusCode, answer, api.OpenAI)
		return fleet.Usage{}, failure, fmt.Errorf("%s answered %s: %s", e.Name, resp.Status, p.Message)
	}
	c, ok := api.ReadAnswer(s.Kind.Protocol(), answer)
	if !ok || c.Error || c.Overload {
		return fleet.Usage{}, fleet.FailGarbage, fmt.Errorf("%s gave no answer that can be read", e.Name)
	}
	return c.Usage, fleet.FailNone, nil
}
