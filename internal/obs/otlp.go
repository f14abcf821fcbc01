package obs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Telemetry sends traces and gen_ai metrics over OTLP. What is sent where is
// told by the standard OTEL_ variables; without them there is no Telemetry.
type Telemetry struct {
	tracer trace.Tracer // nil when traces are off
	gen    *genAI       // nil when metrics are off
	models *bounded
	stop   []func(context.Context) error
}

// The protocols of OTLP that are spoken.
const (
	otlpHTTP = "http/protobuf"
	otlpGRPC = "grpc"
)

// StartTelemetry returns what the environment asks for: nil when that is
// nothing. Nothing is sent before there is something to tell, and a receiver
// that is not there costs no request anything.
func StartTelemetry(ctx context.Context, version string, log *slog.Logger) (*Telemetry, error) {
	traces, metrics := signalWanted("TRACES", log), signalWanted("METRICS", log)
	if !traces && !metrics {
		return nil, nil //nolint:nilnil // no telemetry is the usual case, and no error
	}
	res, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", "penstock"), attribute.String("service.version", version)),
		resource.WithFromEnv(), // wins over the above
	)
	if err != nil {
		return nil, fmt.Errorf("telemetry: resource: %w", err)
	}
	otel.SetErrorHandler(&seldom{log: log})
	t := &Telemetry{models: newBounded(maxLabels)}
	if traces {
		err = t.startTraces(ctx, res, version)
	}
	if err == nil && metrics {
		err = t.startMetrics(ctx, res, version)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("telemetry: %w", err), t.Shutdown(ctx))
	}
	log.Info("sending telemetry over OTLP", "traces", traces, "metrics", metrics)
	return t, nil
}

// signalWanted reports whether the environment asks for a signal.
func signalWanted(signal string, log *slog.Logger) bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	switch exporter := os.Getenv("OTEL_" + signal + "_EXPORTER"); exporter {
	case "otlp":
		return true
	case "none":
		return false
	case "":
		return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != ""
	default:
		log.Warn("telemetry is sent over OTLP only; this signal stays off", "variable", "OTEL_"+signal+"_EXPORTER", "value", exporter)
		return false
	}
}

// protocol returns the protocol of a signal.
func protocol(signal string) (string, error) {
	for _, name := range []string{"OTEL_EXPORTER_OTLP_" + signal + "_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		switch v := os.Getenv(name); v {
		case "":
		case otlpHTTP, otlpGRPC:
			return v, nil
		default:
			return "", fmt.Errorf("%s must be %s or %s, is %q", name, otlpHTTP, otlpGRPC, v)
		}
	}
	return otlpHTTP, nil
}

func (t *Telemetry) startTraces(ctx context.Context, res *resource.Resource, version string) error {
	p, err := protocol("TRACES")
	if err != nil {
		return err
	}
	var exporter sdktrace.SpanExporter
	if p == otlpGRPC {
		exporter, err = otlptracegrpc.New(ctx)
	} else {
		exporter, err = otlptracehttp.New(ctx)
	}
	if err != nil {
		return fmt.Errorf("traces: %w", err)
	}
	// The sampler, and how spans are batched, come from the environment too.
	provider := sdktrace.NewTracerProvider(sdktrace.WithResource(res), sdktrace.WithBatcher(exporter))
	t.stop = append(t.stop, provider.Shutdown)
	t.tracer = provider.Tracer(scope, trace.WithInstrumentationVersion(version))
	return nil
}

// scope names the instrumentation.
const scope = "penstock.dev/penstock"

func (t *Telemetry) startMetrics(ctx context.Context, res *resource.Resource, version string) error {
	p, err := protocol("METRICS")
	if err != nil {
		return err
	}
	var exporter sdkmetric.Exporter
	if p == otlpGRPC {
		exporter, err = otlpmetricgrpc.New(ctx)
	} else {
		exporter, err = otlpmetrichttp.New(ctx)
	}
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	provider := sdkmetric.NewMeterProvider(sdkmetric.WithResource(res), sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exporter)))
	t.stop = append(t.stop, provider.Shutdown)
	t.gen, err = newGenAI(provider, version)
	return err
}

// Traces reports whether requests are traced.
func (t *Telemetry) Traces() bool { return t != nil && t.tracer != nil }

// Shutdown sends what is left, for as long as ctx allows.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	if t == nil {
		return nil
	}
	var errs []error
	for _, stop := range t.stop {
		errs = append(errs, stop(ctx))
	}
	return errors.Join(errs...)
}

// seldom logs what goes wrong with sending, once a minute at most: a receiver
// that is down fails every few seconds.
type seldom struct {
	log  *slog.Logger
	last atomic.Int64
}

// Handle implements the error handler of OpenTelemetry.
func (s *seldom) Handle(err error) {
	now, last := time.Now().UnixNano(), s.last.Load()
	if now-last > int64(time.Minute) && s.last.CompareAndSwap(last, now) {
		s.log.Warn("telemetry cannot be sent", "err", err)
	}
}
