package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"penstock.dev/penstock/internal/exchange"
)

// Client keeps one instance registered, for as long as Run runs.
type Client struct {
	URL      string // of the exchange, such as http://gateway:8998
	Token    string
	Instance exchange.Instance
	Lease    time.Duration     // 0 is the exchange's default
	Blobs    map[string][]byte // left for peers with every registration, by name
	HTTP     *http.Client      // nil is http.DefaultClient
	Log      *slog.Logger      // nil is silent
}

// ErrReplaced says that another process has taken the instance's place: this one
// must not serve its blocks any more.
var ErrReplaced = errors.New("another incarnation has taken this instance's place")

// Between attempts while the exchange cannot be reached, and between heartbeats,
// however short the lease.
const (
	leastBeat  = 100 * time.Millisecond
	firstRetry = 500 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// Run registers, sends heartbeats, and registers again when the exchange does not
// know the instance any more: one that has restarted knows everybody within one
// heartbeat. When ctx ends it takes the instance out and returns nil. A refusal
// ends it too: ErrReplaced, or what is wrong with the registration.
func (c *Client) Run(ctx context.Context) error {
	known, retry := false, firstRetry
	for {
		next, err := c.beat(ctx, known)
		switch {
		case ctx.Err() != nil:
			return c.leave(context.WithoutCancel(ctx))
		case known && errors.Is(err, errForgotten):
			known = false
			continue // at once: every moment unknown is one in which no peer is found
		case err == nil:
			known, retry, next = true, firstRetry, max(next, leastBeat)
		case errors.Is(err, errRefused):
			return err
		default:
			c.log().LogAttrs(ctx, slog.LevelWarn, "the transfer exchange does not answer", slog.Any("error", err), slog.Duration("retry_in", retry))
			next, retry = retry, min(2*retry, lastRetry)
		}
		select {
		case <-ctx.Done():
		case <-time.After(next):
		}
	}
}

func (c *Client) log() *slog.Logger {
	if c.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Log
}

var (
	errForgotten = errors.New("the exchange does not know the instance")
	errRefused   = errors.New("the exchange refuses")
)

// beat registers or renews, and returns when the next heartbeat is due.
func (c *Client) beat(ctx context.Context, known bool) (time.Duration, error) {
	var a registered
	if known {
		err := c.call(ctx, http.MethodPost, "/instances/"+url.PathEscape(c.Instance.ID)+"/heartbeat", heartbeat{c.Instance.Incarnation}, &a)
		return time.Duration(a.HeartbeatMs) * time.Millisecond, err
	}
	body := registration{Instance: c.Instance}
	if c.Lease > 0 {
		body.Lease = c.Lease.String()
	}
	if err := c.call(ctx, http.MethodPost, "/instances", body, &a); err != nil {
		return 0, err
	}
	for name, blob := range c.Blobs {
		q := url.Values{"incarnation": {c.Instance.Incarnation}, "name": {name}}
		if err := c.call(ctx, http.MethodPut, "/blobs/"+url.PathEscape(c.Instance.ID)+"?"+q.Encode(), blob, nil); err != nil {
			return 0, err
		}
	}
	return time.Duration(a.HeartbeatMs) * time.Millisecond, nil
}

// leave takes the instance out. It tries once: the lease ends by itself.
func (c *Client) leave(ctx context.Context) error {
	q := url.Values{"incarnation": {c.Instance.Incarnation}}
	if err := c.call(ctx, http.MethodDelete, "/instances/"+url.PathEscape(c.Instance.ID)+"?"+q.Encode(), nil, nil); err != nil {
		c.log().LogAttrs(ctx, slog.LevelDebug, "not taken out of the transfer exchange", slog.Any("error", err))
	}
	return nil
}

// callTimeout bounds one call.
const callTimeout = 5 * time.Second

// call sends in, as JSON if it is no bytes, and reads the answer into out.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	data, raw := in.([]byte)
	if in != nil && !raw {
		var err error
		if data, err = json.Marshal(in); err != nil {
			return fmt.Errorf("%w: write a request: %w", errRefused, err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.URL, "/")+prefix+path, bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return c.answer(resp, out)
}

// answer reads what came back.
func (c *Client) answer(resp *http.Response, out any) error {
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode/100 == 2 {
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(data, out); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		return nil
	}
	var p problem
	if json.Unmarshal(data, &p) != nil || p.Error == "" {
		p.Error = resp.Status
	}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: %s", errForgotten, p.Error)
	case resp.StatusCode == http.StatusConflict:
		return fmt.Errorf("%w: %w: %s", errRefused, ErrReplaced, p.Error)
	case resp.StatusCode/100 == 4:
		return fmt.Errorf("%w with %d: %s", errRefused, resp.StatusCode, p.Error)
	}
	return fmt.Errorf("%d: %s", resp.StatusCode, p.Error)
}
