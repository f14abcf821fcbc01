// Package engine speaks with model servers: it sends requests to them, reads
// their metrics and health, and says in the gateway's words what went wrong.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Options tune a Client. Zero fields take the defaults of NewClient.
type Options struct {
	ConnectTimeout time.Duration // to establish a connection; default 2 s
	ControlTimeout time.Duration // for metrics, health and model lists; default 2 s
	Access         *Access       // what engines are shown and whom we trust; nil for nothing and the system's authorities
	HTTP2          string        // HTTP2Auto (default), HTTP2Off or HTTP2Prior
	Log            *slog.Logger  // told what engines are found to be; nil for none
	// Dial makes connections, as that of net.Dialer does; nil for one of its own.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Client speaks with any number of engines over pooled connections. It is safe
// for concurrent use.
type Client struct {
	data    *http.Transport // requests of clients: no limit but the context's
	control *http.Client    // metrics and health: short
	access  *Access
	log     *slog.Logger
	seen    sights
	// Who engines have said they are, for transfers between them.
	pushers known[pusher]
	workers known[map[int]string]
}

// NewClient returns a client. Close frees its idle connections.
func NewClient(o Options) *Client {
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = 2 * time.Second
	}
	if o.ControlTimeout <= 0 {
		o.ControlTimeout = 2 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: o.ConnectTimeout, KeepAlive: 30 * time.Second}).DialContext
	}
	return &Client{
		data: o.transport(), access: o.Access, log: o.Log,
		control: &http.Client{Transport: o.transport(), Timeout: o.ControlTimeout, CheckRedirect: noRedirect},
	}
}

// transport returns connections of their own for one kind of use.
func (o Options) transport() *http.Transport {
	t := &http.Transport{
		DialContext:        o.Dial,
		DisableCompression: true, MaxIdleConnsPerHost: 256, IdleConnTimeout: idleConn,
		TLSHandshakeTimeout: o.ConnectTimeout, ReadBufferSize: 16 << 10, WriteBufferSize: 16 << 10,
		Protocols: new(http.Protocols),
	}
	switch o.HTTP2 {
	case HTTP2Off:
		t.Protocols.SetHTTP1(true)
	case HTTP2Prior:
		t.Protocols.SetHTTP2(true)
		t.Protocols.SetUnencryptedHTTP2(true)
	default:
		t.Protocols.SetHTTP1(true)
		t.Protocols.SetHTTP2(true)
	}
	if o.Access != nil {
		t.TLSClientConfig = o.Access.tls.Clone()
	}
	return t
}

// idleConn is how long an unused connection is kept. Uvicorn, which vLLM and
// SGLang listen with, closes its own after 5 s; ours must go first, or a request
// is now and then sent into a connection that is just closing.
const idleConn = 4 * time.Second

// noRedirect hands redirects back as answers: an engine has no business sending
// us, and the request's prompt, elsewhere.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Close frees idle connections.
func (c *Client) Close() {
	c.data.CloseIdleConnections()
	c.control.CloseIdleConnections()
}

// Send is Post for a body that is no payload.
func (c *Client) Send(ctx context.Context, base, path string, header http.Header, body []byte) (*http.Response, fleet.Failure, error) {
	return c.Post(ctx, base, path, header, NewPayload(body, nil))
}

// Post sends a request's body, as it came, and returns the engine's answer.
// Cancelling ctx, also after Post has returned, closes the connection, which
// tells the engine to stop. The header is the client's to keep: credentials are
// added to it. On failure it says what kind.
func (c *Client) Post(ctx context.Context, base, path string, header http.Header, body *Payload) (*http.Response, fleet.Failure, error) {
	return c.do(ctx, http.MethodPost, base, path, header, body)
}

// do is Post and Ask: body is nil for a request without one.
func (c *Client) do(ctx context.Context, method, base, path string, header http.Header, body *Payload) (*http.Response, fleet.Failure, error) {
	req, err := http.NewRequestWithContext(ctx, method, base+path, nil)
	if err != nil {
		return nil, fleet.FailConnect, fmt.Errorf("request to %s: %w", base, err)
	}
	if err := c.access.apply(header); err != nil {
		return nil, fleet.FailConnect, fmt.Errorf("request to %s: %w", base, err)
	}
	req.Header = header
	if body != nil {
		body.putInto(req)
	}
	resp, err := c.data.RoundTrip(req)
	if err != nil {
		return nil, Classify(err), fmt.Errorf("request to %s: %w", base, err)
	}
	return resp, ClassifyStatus(resp.StatusCode), nil
}

// Classify says what kind of failure a transport error is.
func Classify(err error) fleet.Failure {
	var timeout net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, ErrFirstByte), errors.Is(err, ErrIdle):
		return fleet.FailTimeout
	case strings.Contains(err.Error(), "malformed"):
		// net/http has no typed error for an answer that is not HTTP.
		return fleet.FailGarbage
	case errors.As(err, &timeout) && timeout.Timeout() && !isDial(err):
		return fleet.FailTimeout
	}
	return fleet.FailConnect
}

func isDial(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// The causes with which a request's context is cancelled when the engine is too
// slow.
var (
	ErrFirstByte = errors.New("no answer within the first-byte timeout")
	ErrIdle      = errors.New("nothing within the idle timeout")
)

// ClassifyStatus says what an answer's status means for the request: FailNone
// for an answer to pass on as a success, FailClient for an error that is the
// client's and is passed on too, and other kinds for the engine's failures.
func ClassifyStatus(status int) fleet.Failure {
	switch {
	case status >= 200 && status < 300:
		return fleet.FailNone
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		return fleet.FailOverload
	case status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusProxyAuthRequired:
		// The engine refuses the gateway, not the client, whose credentials it
		// never sees.
		return fleet.FailStatus
	case status >= 400 && status < 500:
		return fleet.FailClient
	}
	return fleet.FailStatus // 5xx, and 1xx or 3xx that no engine should send
}

// CheckURL refuses what cannot be an engine's base URL and returns it without a
// trailing slash.
func CheckURL(raw string) (string, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return "", fmt.Errorf("%q is not a URL: %w", raw, err)
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("%q must start with http:// or https://", raw)
	case u.Host == "" || u.Hostname() == "":
		return "", fmt.Errorf("%q names no host", raw)
	case u.User != nil:
		return "", fmt.Errorf("%q must not carry credentials", u.Redacted())
	case u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("%q must not have a query or fragment", raw)
	}
	base := strings.TrimRight(raw, "/")
	if strings.HasSuffix(base, "/v1") {
		return "", fmt.Errorf("%q must be the server's base URL, without /v1", raw)
	}
	return base, nil
}
