package obs

import (
	"context"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
)

// Trace begins the trace of a request, or continues that of its client. Spans
// carry names, counts and times: never text of a prompt or an answer, nor the
// client's address.
func (t *Telemetry) Trace(r *http.Request, id string) gateway.Trace {
	f := &followed{t: t, start: time.Now()}
	parent := propagation.TraceContext{}.Extract(context.Background(), propagation.HeaderCarrier(r.Header))
	_, f.span = t.tracer.Start(parent, "request", trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(f.start),
		trace.WithAttributes(
			attribute.String("http.request.method", r.Method), attribute.String("url.path", r.URL.Path), attribute.String("penstock.request_id", id)))
	return f
}

// followed is one request's trace: a server span, and a client span for each
// attempt under it.
type followed struct {
	t        *Telemetry
	span     trace.Span
	start    time.Time
	attempts []attemptSpan
}

type attemptSpan struct {
	span     trace.Span
	endpoint string
	failure  fleet.Failure
	ended    time.Time // zero while it runs
}

// ID implements gateway.Trace.
func (f *followed) ID() string { return f.span.SpanContext().TraceID().String() }

// Attempt implements gateway.Trace. What the engine does becomes part of the
// attempt's span.
func (f *followed) Attempt(a *gateway.Access, toEngine http.Header) {
	ctx, span := f.t.tracer.Start(trace.ContextWithSpan(context.Background(), f.span), "attempt", trace.WithSpanKind(trace.SpanKindClient))
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(toEngine))
	f.attempts = append(f.attempts, attemptSpan{span: span, endpoint: a.Endpoint})
}

// Failed implements gateway.Trace.
func (f *followed) Failed(failure fleet.Failure) {
	if n := len(f.attempts); n > 0 {
		f.attempts[n-1].failure, f.attempts[n-1].ended = failure, time.Now()
	}
}

// End implements gateway.Trace. Only now are the decisions known, so attempts
// end here too, with the times they really ended at.
func (f *followed) End(a *gateway.Access) {
	end := time.Now()
	if f.span.IsRecording() {
		f.queued(a)
		f.describe(a)
	}
	for i := range f.attempts {
		at := &f.attempts[i]
		if at.ended.IsZero() {
			at.failure, at.ended = a.Failure, end
		}
		if at.span.IsRecording() {
			at.describe(i+1, a)
		}
		at.span.End(trace.WithTimestamp(at.ended))
	}
	f.span.End(trace.WithTimestamp(end))
}

// queued adds a span for the time a request stood in the queue.
func (f *followed) queued(a *gateway.Access) {
	if a.Queue < time.Millisecond || a.Arrived.IsZero() {
		return
	}
	_, span := f.t.tracer.Start(trace.ContextWithSpan(context.Background(), f.span), "queue", trace.WithTimestamp(a.Arrived))
	span.End(trace.WithTimestamp(a.Arrived.Add(a.Queue)))
}

// describe says of the server span what became of the request.
func (f *followed) describe(a *gateway.Access) {
	op, model := operation(a.Path), f.t.models.label(a.Model)
	f.span.SetName(op + " " + model)
	f.span.SetAttributes(
		keyOperation.String(op), keyProvider.String(provider), keyModel.String(model),
		attribute.Int("http.response.status_code", a.Status),
		attribute.String("penstock.pool", a.Pool), attribute.Bool("penstock.stream", a.Stream),
		attribute.Int("penstock.attempts", a.Attempts), attribute.Float64("penstock.queue_ms", Millis(a.Queue)))
	if a.Usage.Known {
		f.span.SetAttributes(
			attribute.Int("gen_ai.usage.input_tokens", int(a.Usage.Prompt)), attribute.Int("gen_ai.usage.output_tokens", int(a.Usage.Output)))
		if a.Usage.Cached >= 0 {
			f.span.SetAttributes(attribute.Int("gen_ai.usage.cache_read.input_tokens", int(a.Usage.Cached)))
		}
	}
	if a.TTFT > 0 && !a.Arrived.IsZero() {
		f.span.AddEvent("first token", trace.WithTimestamp(a.Arrived.Add(a.TTFT)))
	}
	if e := errorType(a); e != "" {
		f.span.SetAttributes(keyErrorType.String(e))
		if a.Status >= 500 || a.Failure.Blames() {
			f.span.SetStatus(codes.Error, e)
		}
	}
}

// describe says of an attempt's span why it went where, and how it ended.
func (s *attemptSpan) describe(n int, a *gateway.Access) {
	s.span.SetAttributes(attribute.Int("penstock.attempt", n), attribute.String("penstock.endpoint", s.endpoint))
	for i := range a.Decisions {
		d := &a.Decisions[i]
		if d.Attempt != n {
			continue
		}
		s.span.SetAttributes(
			attribute.String("penstock.policy", d.Policy), attribute.Float64("penstock.margin", d.Margin),
			attribute.Int("penstock.candidates", d.Counts[fleet.Eligible]))
		if len(d.Candidates) > 0 {
			s.span.SetAttributes(attribute.Int("penstock.matched_tokens", int(d.Candidates[0].Matched)))
		}
	}
	if s.failure != fleet.FailNone {
		s.span.SetAttributes(keyErrorType.String(s.failure.String()))
		s.span.SetStatus(codes.Error, s.failure.String())
	}
}
