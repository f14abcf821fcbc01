// Package engine speaks with model servers: it sends requests to them, reads
// their metrics and health, and says in the gateway's words what went wrong.
package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Dialect is how a kind of engine is spoken to.
type Dialect struct {
	Name    string
	Metrics string // path of the metrics page; "" for none
	Health  string // path that answers 2xx while the engine is fit
	Speaks  API    // what it can be asked
}

// dialects are the kinds of engine known.
var dialects = []Dialect{
	{
		Name: "vllm", Metrics: "/metrics", Health: "/health",
		Speaks: APIChat | APICompletions | APIResponses | APIMessages | APICountTokens | APIEmbeddings | APITokenize | APIRerank | APIScore | APIAudio,
	},
	{
		Name: "openai", Health: "/v1/models",
		Speaks: APIChat | APICompletions | APIResponses | APIEmbeddings | APIAudio | APIImages,
	},
}

// DialectNames returns the names DialectByName knows.
func DialectNames() []string {
	var names []string
	for _, d := range dialects {
		names = append(names, d.Name)
	}
	return names
}

// DialectByName returns a dialect.
func DialectByName(name string) (Dialect, error) {
	for _, d := range dialects {
		if d.Name == name {
			return d, nil
		}
	}
	return Dialect{}, fmt.Errorf("no dialect %q; known: %s", name, strings.Join(DialectNames(), ", "))
}

// Options tune a Client. Zero fields take the defaults of NewClient.
type Options struct {
	ConnectTimeout time.Duration // to establish a connection; default 2 s
	ControlTimeout time.Duration // for metrics, health and model lists; default 2 s
}

// Client speaks with any number of engines over pooled connections. It is safe
// for concurrent use.
type Client struct {
	data    *http.Transport // requests of clients: no limit but the context's
	control *http.Client    // metrics and health: short
}

// NewClient returns a client. Close frees its idle connections.
func NewClient(o Options) *Client {
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = 2 * time.Second
	}
	if o.ControlTimeout <= 0 {
		o.ControlTimeout = 2 * time.Second
	}
	dial := (&net.Dialer{Timeout: o.ConnectTimeout, KeepAlive: 30 * time.Second}).DialContext
	transport := func() *http.Transport {
		return &http.Transport{
			DialContext: dial, DisableCompression: true, MaxIdleConnsPerHost: 256, IdleConnTimeout: idleConn,
			TLSHandshakeTimeout: o.ConnectTimeout, ReadBufferSize: 16 << 10, WriteBufferSize: 16 << 10,
		}
	}
	return &Client{
		data:    transport(),
		control: &http.Client{Transport: transport(), Timeout: o.ControlTimeout, CheckRedirect: noRedirect},
	}
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

// Send posts a request's body, as it came, and returns the engine's answer.
// Cancelling ctx, also after Send has returned, closes the connection, which
// tells the engine to stop. On failure it says what kind.
func (c *Client) Send(ctx context.Context, base, path string, header http.Header, body []byte) (*http.Response, fleet.Failure, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+path, bytes.NewReader(body))
	if err != nil {
		return nil, fleet.FailConnect, fmt.Errorf("request to %s: %w", base, err)
	}
	req.Header = header
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

// maxMetricsPage is the largest metrics page read; a real one has 30 to 100 KB.
const maxMetricsPage = 8 << 20

// ErrNoGauges says that a metrics page came but had none of the gauges known.
var ErrNoGauges = errors.New("the metrics page has none of the gauges this dialect reads")

// Scrape reads an engine's gauges. buf is scratch memory, returned for reuse.
func (c *Client) Scrape(ctx context.Context, d Dialect, base string, buf []byte) (fleet.Gauges, fleet.Failure, []byte, error) {
	resp, err := c.get(ctx, base+d.Metrics)
	if err != nil {
		return fleet.Gauges{}, Classify(err), buf, fmt.Errorf("scrape %s: %w", base, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fleet.Gauges{}, fleet.FailStatus, buf, fmt.Errorf("scrape %s: status %d", base, resp.StatusCode)
	}
	buf, err = readInto(buf[:0], resp.Body, maxMetricsPage)
	if err != nil {
		return fleet.Gauges{}, fleet.FailGarbage, buf, fmt.Errorf("scrape %s: %w", base, err)
	}
	g, ok := ReadMetrics(buf)
	if !ok {
		return g, fleet.FailGarbage, buf, fmt.Errorf("scrape %s: %w", base, ErrNoGauges)
	}
	return g, fleet.FailNone, buf, nil
}

// Healthy asks whether an engine is fit.
func (c *Client) Healthy(ctx context.Context, d Dialect, base string) error {
	resp, err := c.get(ctx, base+d.Health)
	if err != nil {
		return fmt.Errorf("health of %s: %w", base, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("health of %s: status %d", base, resp.StatusCode)
	}
	return nil
}

func (c *Client) get(ctx context.Context, u string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	return c.control.Do(req)
}

// readInto appends r to buf, at most limit bytes in all.
func readInto(buf []byte, r io.Reader, limit int) ([]byte, error) {
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, make([]byte, max(cap(buf), 32<<10))...)[:len(buf)]
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if len(buf) > limit {
			return buf, fmt.Errorf("the answer is larger than %d bytes", limit)
		}
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return buf, err
		}
	}
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
