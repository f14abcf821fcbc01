package engine

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
)

// RankHeader names the data-parallel rank that a request is for, where the ranks
// of an engine share a port.
const RankHeader = "X-Data-Parallel-Rank"

// The ways in which the data-parallel ranks of an engine are told apart.
const (
	RanksAuto     = "auto"   // found out by asking
	RanksByPort   = "port"   // each has a port of its own, higher by its rank
	RanksByHeader = "header" // they share a port, and RankHeader says whose a request is
)

// MaxRanks bounds the ranks of one engine.
const MaxRanks = 1024

// RankURL returns the base URL of a rank that has a port of its own, of the engine
// whose first rank is at base.
func RankURL(base string, rank int) (string, error) {
	u, err := url.Parse(base)
	if err != nil {
		return "", fmt.Errorf("%q is not a URL: %w", base, err)
	}
	if rank == 0 {
		return base, nil
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	n, err := strconv.Atoi(port)
	if err != nil || n+rank > 65535 {
		return "", fmt.Errorf("%q: there is no port for rank %d", base, rank)
	}
	u.Host = net.JoinHostPort(u.Hostname(), strconv.Itoa(n+rank))
	return u.String(), nil
}

// CheckRanks refuses ranks that cannot be of the engine at base; none are fine.
func CheckRanks(base string, ranks int, mode string) error {
	switch mode {
	case "", RanksAuto, RanksByPort, RanksByHeader:
	default:
		return fmt.Errorf("rankMode must be %s, %s or %s, is %q", RanksAuto, RanksByPort, RanksByHeader, mode)
	}
	switch {
	case ranks == 0 && mode != "" && mode != RanksAuto:
		return fmt.Errorf("rankMode %s says nothing without ranks", mode)
	case ranks < 0 || ranks > MaxRanks:
		return fmt.Errorf("ranks must be between 1 and %d, is %d", MaxRanks, ranks)
	case ranks > 0 && mode != RanksByHeader:
		_, err := RankURL(base, ranks-1)
		return err
	}
	return nil
}

// RankMode is how an engine's ranks were found to be told apart.
type RankMode struct {
	Mode string // RanksByPort or RanksByHeader
	Why  string // what told
	// Sure is false where nothing answers at the next port, which may be yet to
	// come.
	Sure bool
}

// FindRankMode finds out how the ranks of the engine at base are told apart: one
// whose metrics tell of another rank has them all behind its port, and what answers
// at the next port as the same kind with the same model is the next rank. It fails
// while nothing answers at base.
func (c *Client) FindRankMode(ctx context.Context, base string) (RankMode, error) {
	here, err := c.Detect(ctx, base)
	if err != nil {
		return RankMode{}, err
	}
	if err := c.Healthy(ctx, here.Dialect, base); err != nil {
		return RankMode{}, err
	}
	if c.tellsRank(ctx, here.Dialect, base, 1) {
		return RankMode{RanksByHeader, "its metrics tell of several ranks", true}, nil
	}
	next, err := RankURL(base, 1)
	if err != nil {
		return RankMode{RanksByHeader, "there is no next port", true}, nil
	}
	there, err := c.Detect(ctx, next)
	switch {
	case err != nil:
		return RankMode{Mode: RanksByHeader, Why: "nothing answers at " + next}, nil //nolint:nilerr // that is what was asked
	case there.Dialect.Name != here.Dialect.Name:
		return RankMode{RanksByHeader, fmt.Sprintf("what answers at %s is %s, not %s", next, there.Dialect.Name, here.Dialect.Name), true}, nil
	case !c.alike(ctx, base, next):
		return RankMode{RanksByHeader, next + " serves another model", true}, nil
	}
	return RankMode{RanksByPort, next + " answers as another " + there.Dialect.Name + " of the same model", true}, nil
}

// tellsRank reports whether an engine's metrics have series of a rank.
func (c *Client) tellsRank(ctx context.Context, d Dialect, base string, rank int) bool {
	if d.page == nil || d.Metrics == "" {
		return false
	}
	text, _, err := c.page(ctx, base+d.Metrics)
	if err != nil {
		return false
	}
	_, ok := d.ReadRank(text, rank)
	return ok
}

// alike reports whether two servers have a model in common, as far as they tell.
func (c *Client) alike(ctx context.Context, a, b string) bool {
	first, errA := c.Models(ctx, a)
	second, errB := c.Models(ctx, b)
	if errA != nil || errB != nil {
		return errA != nil && errB != nil
	}
	return slices.ContainsFunc(first, func(m Model) bool {
		return slices.ContainsFunc(second, func(n Model) bool { return m.ID == n.ID })
	})
}

// ReadRank is Read of the samples that are labelled as those of one data-parallel
// rank. Those of all ranks together say nothing of one.
func (d Dialect) ReadRank(text []byte, rank int) (Reading, bool) {
	if d.page == nil {
		return Reading{}, false
	}
	r := reader{page: d.page, ranked: true, only: strconv.AppendInt(nil, int64(rank), 10)}
	return r.read(text)
}

// ofRank reports whether a sample is of the rank that is read.
func (r *reader) ofRank(labels []byte) bool {
	if !r.ranked {
		return true
	}
	return r.page.rankLabel != "" && bytes.Equal(label(labels, r.page.rankLabel), r.only)
}
