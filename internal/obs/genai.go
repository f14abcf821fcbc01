package obs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
)

// genAI are the metrics that OpenTelemetry's conventions for generative AI
// define.
type genAI struct {
	duration, ttft, tpot metric.Float64Histogram
	tokens               metric.Int64Histogram
}

// The bucket bounds that the conventions advise.
var (
	genDuration = []float64{.01, .02, .04, .08, .16, .32, .64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92}
	genTTFT     = []float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10}
	genTPOT     = []float64{.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5}
	genTokens   = []float64{1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864}
)

func newGenAI(p *sdkmetric.MeterProvider, version string) (*genAI, error) {
	m := p.Meter(scope, metric.WithInstrumentationVersion(version))
	seconds := func(name, what string, bounds []float64) (metric.Float64Histogram, error) {
		return m.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(what), metric.WithExplicitBucketBoundaries(bounds...))
	}
	g := &genAI{}
	var errs [4]error
	g.duration, errs[0] = seconds("gen_ai.server.request.duration", "Time from a request's arrival to the end of its answer.", genDuration)
	g.ttft, errs[1] = seconds("gen_ai.server.time_to_first_token", "Time from arrival to the first token.", genTTFT)
	g.tpot, errs[2] = seconds("gen_ai.server.time_per_output_token", "Mean time per output token after the first.", genTPOT)
	g.tokens, errs[3] = m.Int64Histogram("gen_ai.client.token.usage", metric.WithUnit("{token}"),
		metric.WithDescription("Tokens of a request, as the engine reports them."), metric.WithExplicitBucketBoundaries(genTokens...))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("instruments: %w", err)
	}
	return g, nil
}

// The attributes of the conventions.
const (
	keyOperation = attribute.Key("gen_ai.operation.name")
	keyProvider  = attribute.Key("gen_ai.provider.name")
	keyModel     = attribute.Key("gen_ai.request.model")
	keyTokenType = attribute.Key("gen_ai.token.type")
	keyErrorType = attribute.Key("error.type")
)

// provider is what the conventions call whoever serves the model.
const provider = "penstock"

// operations names what a path does. Longer paths come first.
var operations = []struct{ path, name string }{
	{"/chat/completions", "chat"},
	{"/messages", "chat"},
	{"/responses", "chat"},
	{"/completions", "text_completion"},
	{"/embeddings", "embeddings"},
}

// operation returns the conventions' word for what a request does.
func operation(path string) string {
	for _, o := range operations {
		if strings.HasSuffix(path, o.path) || strings.Contains(path, o.path+"/") {
			return o.name
		}
	}
	return "other"
}

// errorType returns what went wrong with a request in one word; "" for nothing.
func errorType(a *gateway.Access) string {
	switch {
	case a.Refusal != fleet.RefuseNone:
		return a.Refusal.String()
	case a.Failure != fleet.FailNone:
		return a.Failure.String()
	case a.Status >= 400:
		return strconv.Itoa(a.Status)
	}
	return ""
}

// Observe counts a request at its end.
func (t *Telemetry) Observe(a *gateway.Access) {
	if t == nil || t.gen == nil || a.Pool == "" {
		return
	}
	ctx := context.Background()
	common := []attribute.KeyValue{keyOperation.String(operation(a.Path)), keyProvider.String(provider), keyModel.String(t.models.label(a.Model))}
	set := metric.WithAttributeSet(attribute.NewSet(common...))
	if e := errorType(a); e != "" {
		t.gen.duration.Record(ctx, a.Total.Seconds(), metric.WithAttributeSet(attribute.NewSet(append(common, keyErrorType.String(e))...)))
	} else {
		t.gen.duration.Record(ctx, a.Total.Seconds(), set)
	}
	if a.TTFT > 0 {
		t.gen.ttft.Record(ctx, a.TTFT.Seconds(), set)
		if n := a.Usage.Output; n > 1 && a.Total > a.TTFT {
			t.gen.tpot.Record(ctx, (a.Total-a.TTFT).Seconds()/float64(n-1), set)
		}
	}
	if a.Usage.Known {
		for _, u := range [...]struct {
			kind string
			n    fleet.Tokens
		}{{"input", a.Usage.Prompt}, {"output", a.Usage.Output}} {
			t.gen.tokens.Record(ctx, int64(u.n), metric.WithAttributeSet(attribute.NewSet(append(common, keyTokenType.String(u.kind))...)))
		}
	}
}
