package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"penstock.dev/penstock/internal/gateway"
)

// flushTimeout is how long telemetry may take to send what is left.
const flushTimeout = 3 * time.Second

// trace returns the gateway's hook for traces, nil when there are none.
func (a *App) trace() func(*http.Request, string) gateway.Trace {
	if !a.telemetry.Traces() {
		return nil
	}
	return a.telemetry.Trace
}

// stopTelemetry sends what is left. A collector that cannot be reached must not
// make a clean end look like a failure.
func (a *App) stopTelemetry() {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	if err := a.telemetry.Shutdown(ctx); err != nil {
		a.log.Warn("the last telemetry was not sent", "err", err)
	}
}

// metricsPort serves what monitoring needs and nothing else: it may be reached
// from elsewhere, and no token is asked for.
type metricsPort struct {
	listener net.Listener
	server   *http.Server // nil before serve
	serving  sync.WaitGroup
}

// openMetricsPort listens on addr; "" is none.
func openMetricsPort(addr string) (*metricsPort, error) {
	if addr == "" {
		return nil, nil //nolint:nilnil // no port is the usual case, and no error
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("metrics port: %w (choose another with --metrics-listen)", err)
	}
	return &metricsPort{listener: l}, nil
}

// serve begins to answer.
func (p *metricsPort) serve(metrics http.Handler, ready func() bool, log *slog.Logger) {
	if p == nil {
		return
	}
	say := func(w http.ResponseWriter, status int, text string) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text + "\n")) // the prober may have gone
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready() {
			say(w, http.StatusServiceUnavailable, "not ready")
			return
		}
		say(w, http.StatusOK, "ok")
	})
	p.server = &http.Server{
		Handler: mux, ReadHeaderTimeout: headerTimeout, WriteTimeout: time.Minute, IdleTimeout: keepAlive,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	p.serving.Go(func() {
		if err := p.server.Serve(p.listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics port failed; serving goes on", "err", err)
		}
	})
}

// close ends what there is of the port.
func (p *metricsPort) close() error {
	switch {
	case p == nil:
		return nil
	case p.server == nil:
		return p.listener.Close()
	}
	err := p.server.Close()
	p.serving.Wait()
	return err
}

// MetricsURL returns the base URL of the metrics port, "" without one.
func (a *App) MetricsURL() string {
	if a.metricsPort == nil {
		return ""
	}
	return "http://" + a.metricsPort.listener.Addr().String()
}
