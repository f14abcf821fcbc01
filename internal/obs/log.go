// Package obs turns what happens into signals: logs, metrics and the ring of
// decision records.
package obs

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
)

// NewLogger returns a logger that writes text or json lines at level and above.
func NewLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(strings.ToUpper(level))); err != nil {
		return nil, fmt.Errorf("log level %q: must be debug, info, warn or error", level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fmt.Errorf("log format %q: must be text or json", format)
}

// AccessLine writes the one line of a request. It carries lengths and times,
// never text of the prompt or answer. With redact it names the client's network,
// not its address.
func AccessLine(log *slog.Logger, a *gateway.Access, redact bool) {
	remote := a.Remote
	if redact {
		remote = network(remote)
	}
	attrs := []any{
		"request", a.ID, "method", a.Method, "path", a.Path, "status", a.Status, "pool", a.Pool, "model", a.Model,
		"stream", a.Stream, "remote", remote, "endpoint", a.Endpoint, "attempts", a.Attempts,
		"queue_ms", Millis(a.Queue), "ttft_ms", Millis(a.TTFT), "itl_ms", Millis(a.ITL), "total_ms", Millis(a.Total),
		"prompt_tokens", int(a.Usage.Prompt), "cached_tokens", int(max(a.Usage.Cached, 0)), "output_tokens", int(a.Usage.Output),
		"bytes", a.Bytes,
	}
	if n := len(a.Decisions); n > 0 {
		d := &a.Decisions[n-1]
		attrs = append(attrs, "policy", d.Policy, "margin", d.Margin, "candidates", d.Counts[fleet.Eligible])
		if len(d.Candidates) > 0 {
			attrs = append(attrs, "matched_tokens", int(d.Candidates[0].Matched))
		}
	}
	if a.Tenant != "" {
		attrs = append(attrs, "tenant", a.Tenant)
	}
	if a.Objective != "" {
		attrs = append(attrs, "objective", a.Objective)
	}
	if a.TraceID != "" {
		attrs = append(attrs, "trace", a.TraceID)
	}
	if a.Failure != fleet.FailNone {
		attrs = append(attrs, "failure", a.Failure.String())
	}
	if a.Refusal != fleet.RefuseNone {
		attrs = append(attrs, "refusal", a.Refusal.String())
	}
	if a.Err != nil {
		attrs = append(attrs, "err", a.Err.Error())
	}
	log.Info("request", attrs...)
}

// network returns the network of an address: enough to tell one customer's
// office from another, not one person from another.
func network(remote string) string {
	a, err := netip.ParseAddrPort(remote)
	if err != nil {
		return "unknown"
	}
	ip, bits := a.Addr().Unmap().WithZone(""), 24
	if ip.IsLoopback() {
		return ip.String()
	}
	if ip.Is6() {
		bits = 48
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return "unknown"
	}
	return p.String()
}

// Millis returns d in milliseconds, to the microsecond.
func Millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
