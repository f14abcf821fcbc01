package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
)

// ResetCache has an engine drop the KV that it has cached, all but that of
// requests under way. The error of an engine that cannot says why, and what would
// mend it.
func (c *Client) ResetCache(ctx context.Context, d Dialect, base string) error {
	d, err := c.resolve(ctx, d, base)
	if err != nil {
		return fmt.Errorf("clear the cache of %s: %w", base, err)
	}
	if d.reset == "" {
		return fmt.Errorf("%s engines cannot be told to clear their cache: %s", d.Name, d.resetHint)
	}
	// As a request of a client: an engine may finish what it is doing first.
	resp, _, err := c.Send(ctx, base, d.reset, http.Header{"Content-Type": {"application/json"}}, nil)
	if err != nil {
		return fmt.Errorf("clear the cache of %s: %w", base, err)
	}
	defer resp.Body.Close()
	why, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal)) // the status says enough without
	why = bytes.TrimSpace(why)
	switch {
	case resp.StatusCode == http.StatusOK:
		return nil
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed:
		return fmt.Errorf("%s has no %s: %s", base, d.reset, d.resetHint)
	case resp.StatusCode == http.StatusBadRequest:
		return fmt.Errorf("%s does not clear its cache while it has requests: %s", base, why)
	}
	return fmt.Errorf("clear the cache of %s: status %d: %s", base, resp.StatusCode, why)
}
