package engine

import (
	"context"
	"net/http"

	"penstock.dev/penstock/internal/fleet"
)

// Ask sends a request without a body, such as one for what an engine has stored,
// and returns the answer as Send does.
func (c *Client) Ask(ctx context.Context, method, base, path string, header http.Header) (*http.Response, fleet.Failure, error) {
	return c.do(ctx, method, base, path, header, nil)
}
