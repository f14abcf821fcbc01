package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// vLLM's MooncakeConnector: both engines are asked at once and know the transfer by
// the same id. The one that answers is told the other's bootstrap server, and which
// of the engines behind that it is.
func mooncakeLegs(ctx context.Context, c *Client, s *Split) (Legs, error) {
	p := s.Prefill
	at := "http://" + net.JoinHostPort(p.host(), strconv.Itoa(bootstrapPort(p)))
	ids, err := c.workers.get(ctx, p, func(ctx context.Context) (map[int]string, error) { return c.queryWorkers(ctx, at) })
	if err != nil {
		return Legs{}, err
	}
	failed := func() { c.workers.drop(p) }
	who, ok := ids[p.Rank]
	if !ok {
		failed()
		return Legs{}, &lookupError{fmt.Errorf("bootstrap server %s: rank %d has not registered", at, p.Rank)}
	}
	id := str("transfer_id", s.ID)
	first, errFirst := toPrefill(s, flag("do_remote_decode", true), flag("do_remote_prefill", false), id)
	second, err := withParams(s.Body, flag("do_remote_decode", false), flag("do_remote_prefill", true),
		str("remote_bootstrap_addr", at), str("remote_engine_id", who), id)
	return Legs{Course: Together, First: first, Second: second, Failed: failed}, errors.Join(errFirst, err)
}

// bootstrapPort is the one that all ranks of an engine share.
func bootstrapPort(p Party) int {
	if p.Port != 0 {
		return p.Port
	}
	return DefaultBootstrapPort
}

// lookupError is that an engine does not tell who it is.
type lookupError struct{ err error }

func (e *lookupError) Error() string { return e.err.Error() }
func (e *lookupError) Unwrap() error { return e.err }

func isLookup(err error) bool {
	_, ok := errors.AsType[*lookupError](err)
	return ok
}

// The bounds of an answer of a bootstrap server, and of waiting for it.
const (
	maxWorkers    = 1 << 20
	queryTimeout  = 2 * time.Second
	maxIdentifier = 256
)

// queryWorkers asks a bootstrap server for the ids of the engines behind it, by
// data-parallel rank.
func (c *Client) queryWorkers(ctx context.Context, at string) (map[int]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at+"/query", nil)
	if err != nil {
		return nil, &lookupError{fmt.Errorf("bootstrap server %s: %w", at, err)}
	}
	resp, err := c.control.Do(req)
	if err != nil {
		return nil, &lookupError{fmt.Errorf("bootstrap server: %w", err)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxWorkers+1))
	switch {
	case err != nil:
	case resp.StatusCode != http.StatusOK:
		err = fmt.Errorf("it answers %s", resp.Status)
	case len(body) > maxWorkers:
		err = fmt.Errorf("it answers more than %d bytes", maxWorkers)
	}
	var ids map[int]string
	if err == nil {
		ids, err = parseWorkers(body)
	}
	if err != nil {
		return nil, &lookupError{fmt.Errorf("bootstrap server %s: %w", at, err)}
	}
	return ids, nil
}

// parseWorkers reads the answer of a bootstrap server:
//
//	{"0":{"engine_id":"e","worker_addr":{"0":{"0":"tcp://10.0.0.1:5701"}}}}
func parseWorkers(body []byte) (map[int]string, error) {
	var ranks map[string]struct {
		EngineID string `json:"engine_id"`
	}
	if err := json.Unmarshal(body, &ranks); err != nil {
		return nil, fmt.Errorf("it does not list workers: %w", err)
	}
	ids := make(map[int]string, len(ranks))
	for name, w := range ranks {
		rank, err := strconv.Atoi(name)
		switch {
		case err != nil || rank < 0 || rank >= MaxRanks:
			return nil, fmt.Errorf("it lists the rank %q", name)
		case w.EngineID == "" || len(w.EngineID) > maxIdentifier:
			return nil, fmt.Errorf("rank %d has an engine id of %d bytes", rank, len(w.EngineID))
		}
		ids[rank] = w.EngineID
	}
	return ids, nil
}
