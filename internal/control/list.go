package control

import (
	"context"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/live"
)

// Lister says what an endpoint serves; engine.Client does.
type Lister interface {
	Models(ctx context.Context, base string) ([]engine.Model, error)
}

// listEvery is the time between two questions to an endpoint for its models:
// adapters are loaded and unloaded by people.
const listEvery = 30 * time.Second

// list asks an endpoint for its models and reports whether it answered. An
// endpoint that does not list them is not worse for it.
func (l *Loops) list(ctx context.Context, e live.Endpoint) bool {
	ctx, cancel := context.WithTimeout(ctx, l.Timeout)
	defer cancel()
	models, err := l.Lister.Models(ctx, e.URL)
	if err != nil {
		l.Log.Debug("endpoint does not tell its models", "pool", l.Pool.Name(), "endpoint", e.Name, "err", err)
		return false
	}
	l.Listed(e, models)
	return true
}
