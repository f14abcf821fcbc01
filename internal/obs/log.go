// Package obs turns what happens into signals: logs, metrics and the ring of
// decision records.
package obs

import (
	"context"
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
	var room [32]slog.Attr // on the stack: this is written for every request
	attrs := append(room[:0],
		slog.String("request", a.ID), slog.String("method", a.Method), slog.String("path", a.Path), slog.Int("status", a.Status),
		slog.String("pool", a.Pool), slog.String("model", a.Model), slog.Bool("stream", a.Stream), slog.String("remote", remote),
		slog.String("endpoint", a.Endpoint), slog.Int("attempts", a.Attempts),
		slog.Float64("queue_ms", Millis(a.Queue)), slog.Float64("ttft_ms", Millis(a.TTFT)),
		slog.Float64("itl_ms", Millis(a.ITL)), slog.Float64("total_ms", Millis(a.Total)),
		slog.Int("prompt_tokens", int(a.Usage.Prompt)), slog.Int("cached_tokens", int(max(a.Usage.Cached, 0))),
		slog.Int("output_tokens", int(a.Usage.Output)), slog.Int64("bytes", a.Bytes),
	)
	if n := len(a.Decisions); n > 0 {
		d := &a.Decisions[n-1]
		attrs = append(attrs, slog.String("policy", d.Policy), slog.Float64("margin", d.Margin), slog.Int("candidates", d.Counts[fleet.Eligible]))
		if len(d.Candidates) > 0 {
			attrs = append(attrs, slog.Int("matched_tokens", int(d.Candidates[0].Matched)))
		}
	}
	if a.Tenant != "" {
		attrs = append(attrs, slog.String("tenant", a.Tenant))
	}
	if a.Objective != "" {
		attrs = append(attrs, slog.String("objective", a.Objective))
	}
	if a.TraceID != "" {
		attrs = append(attrs, slog.String("trace", a.TraceID))
	}
	if a.Failure != fleet.FailNone {
		attrs = append(attrs, slog.String("failure", a.Failure.String()))
	}
	if a.Refusal != fleet.RefuseNone {
		attrs = append(attrs, slog.String("refusal", a.Refusal.String()))
	}
	if a.Err != nil {
		attrs = append(attrs, slog.String("err", a.Err.Error()))
	}
	log.LogAttrs(context.Background(), slog.LevelInfo, "request", attrs...)
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
