package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"penstock.dev/penstock/internal/fleet"
)

// maxMetricsPage is the largest metrics page read; a real one has 30 to 100 KB.
const maxMetricsPage = 8 << 20

// ErrNoGauges says that a metrics page came but had none of the gauges known.
var ErrNoGauges = errors.New("the metrics page has none of the gauges this dialect reads")

// Scrape reads an engine's gauges. buf is scratch memory, returned for reuse.
// Of an engine without a metrics page it only learns whether it is fit: the
// reading is then empty, and its load is what the ledger says.
func (c *Client) Scrape(ctx context.Context, d Dialect, base string, buf []byte) (Reading, fleet.Failure, []byte, error) {
	return c.scrape(ctx, d, base, buf, Dialect.Read)
}

// ScrapeRank is Scrape of one data-parallel rank among several behind base. A page
// that tells only of all together is an empty reading: that of an engine that is
// fit, and whose load is what the ledger says.
func (c *Client) ScrapeRank(ctx context.Context, d Dialect, base string, rank int, buf []byte) (Reading, fleet.Failure, []byte, error) {
	return c.scrape(ctx, d, base, buf, func(d Dialect, page []byte) (Reading, bool) {
		r, _ := d.ReadRank(page, rank)
		_, ok := d.Read(page)
		return r, ok
	})
}

func (c *Client) scrape(ctx context.Context, d Dialect, base string, buf []byte, read func(Dialect, []byte) (Reading, bool)) (Reading, fleet.Failure, []byte, error) {
	d, err := c.resolve(ctx, d, base)
	if err != nil {
		return Reading{}, Classify(err), buf, err
	}
	if d.Metrics == "" {
		return c.unread(ctx, d, base, buf)
	}
	resp, err := c.get(ctx, base+d.Metrics)
	if err != nil {
		c.seen.forget(base)
		return Reading{}, Classify(err), buf, fmt.Errorf("scrape %s: %w", base, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		if d.metricsOptional && isAbsent(resp.StatusCode) {
			c.tell(base, d, d.page.wants)
			return c.unread(ctx, d, base, buf)
		}
		return Reading{}, fleet.FailStatus, buf, fmt.Errorf("scrape %s: status %d", base, resp.StatusCode)
	}
	buf, err = readInto(buf[:0], resp.Body, maxMetricsPage)
	if err != nil {
		return Reading{}, fleet.FailGarbage, buf, fmt.Errorf("scrape %s: %w", base, err)
	}
	r, ok := read(d, buf)
	c.tell(base, d, r.Missing)
	if !ok {
		return r, fleet.FailGarbage, buf, fmt.Errorf("scrape %s: %w", base, ErrNoGauges)
	}
	return r, fleet.FailNone, buf, nil
}

// isAbsent reports whether a status says that there is no such page.
func isAbsent(status int) bool {
	return status == http.StatusNotFound || status == http.StatusMethodNotAllowed || status == http.StatusNotImplemented
}

// unread is the reading of an engine that has no metrics page.
func (c *Client) unread(ctx context.Context, d Dialect, base string, buf []byte) (Reading, fleet.Failure, []byte, error) {
	r := Reading{Missing: d.Gauges()}
	err := c.Healthy(ctx, d, base)
	var status statusError
	switch {
	case err == nil:
		return r, fleet.FailNone, buf, nil
	case errors.As(err, &status):
		return r, fleet.FailStatus, buf, err
	}
	return r, Classify(err), buf, err
}

// statusError is an answer whose status was not wanted.
type statusError int

// Error implements error.
func (s statusError) Error() string { return fmt.Sprintf("status %d", int(s)) }

// Healthy asks whether an engine is fit.
func (c *Client) Healthy(ctx context.Context, d Dialect, base string) error {
	d, err := c.resolve(ctx, d, base)
	if err != nil {
		return err
	}
	resp, err := c.get(ctx, base+d.Health)
	if err != nil {
		c.seen.forget(base)
		return fmt.Errorf("health of %s: %w", base, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("health of %s: %w", base, statusError(resp.StatusCode))
	}
	return nil
}

func (c *Client) get(ctx context.Context, u string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	if err := c.access.apply(req.Header); err != nil {
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

// Resolve returns the dialect an endpoint is spoken to in: d itself, or, for
// auto, what it was last found to be.
func (c *Client) Resolve(d Dialect, base string) (Dialect, bool) {
	if d.Name != Auto {
		return d, true
	}
	s, ok := c.seen.get(base)
	return s.dialect, ok && s.dialect.Name != ""
}

// resolve is Resolve, asking the engine when it must.
func (c *Client) resolve(ctx context.Context, d Dialect, base string) (Dialect, error) {
	if known, ok := c.Resolve(d, base); ok {
		return known, nil
	}
	found, err := c.Detect(ctx, base)
	if err != nil {
		return d, err
	}
	c.seen.update(base, func(s *sight) { s.dialect = found.Dialect })
	c.log.Info("engine recognised", "endpoint", base, "dialect", found.Dialect.Name, "because", found.Why)
	return found.Dialect, nil
}

// tell logs which gauges are missing at an endpoint, when that changes.
func (c *Client) tell(base string, d Dialect, missing fleet.Known) {
	if s, _ := c.seen.get(base); s.missing == missing {
		return
	}
	c.seen.update(base, func(s *sight) { s.missing = missing })
	if missing == 0 {
		c.log.Info("endpoint tells all gauges", "endpoint", base, "dialect", d.Name)
		return
	}
	c.log.Warn("endpoint does not tell all gauges; what is missing counts as unknown, not as zero",
		"endpoint", base, "dialect", d.Name, "missing", strings.Join(missing.Names(), ","))
}

// sights is what a client has found out about endpoints, by base URL.
type sights struct {
	mu sync.Mutex
	by map[string]sight
}

type sight struct {
	dialect Dialect     // found for auto; no name when not yet
	missing fleet.Known // gauges that its last page did not have
}

// maxSights bounds what is remembered where endpoints come and go: beyond it
// all is found out again.
const maxSights = 4096

func (s *sights) get(base string) (sight, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.by[base]
	return v, ok
}

func (s *sights) update(base string, change func(*sight)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil || len(s.by) >= maxSights {
		s.by = map[string]sight{}
	}
	v := s.by[base]
	change(&v)
	s.by[base] = v
}

// forget drops what was found of an endpoint's kind: what comes back may be
// another.
func (s *sights) forget(base string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.by[base]; ok {
		v.dialect = Dialect{}
		s.by[base] = v
	}
}
