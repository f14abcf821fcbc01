package engine

import (
	"context"
	"fmt"
	"net/http"

	"penstock.dev/penstock/internal/fleet"
)

// Ask sends a request without a body, such as one for what an engine has stored,
// and returns the answer as Send does.
func (c *Client) Ask(ctx context.Context, method, base, path string, header http.Header) (*http.Response, fleet.Failure, error) {
	req, err := http.NewRequestWithContext(ctx, method, base+path, nil)
	if err != nil {
		return nil, fleet.FailConnect, fmt.Errorf("request to %s: %w", base, err)
	}
	if err := c.access.apply(header); err != nil {
		return nil, fleet.FailConnect, fmt.Errorf("request to %s: %w", base, err)
	}
	req.Header = header
	resp, err := c.data.RoundTrip(req)
	if err != nil {
		return nil, Classify(err), fmt.Errorf("request to %s: %w", base, err)
	}
	return resp, ClassifyStatus(resp.StatusCode), nil
}
