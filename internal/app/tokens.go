package app

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/engine/tokens"
	"penstock.dev/penstock/internal/gateway"
)

// openTokens returns how the pool's prompts become tokens, nil where nobody uses
// them.
func (s *served) openTokens(c config.Pool) (*gateway.Tokens, error) {
	t := c.KV.Tokens
	if t.From == config.TokensNone || t.From == config.TokensAuto && !c.Feeds() {
		return nil, nil
	}
	source := tokens.New(tokens.Options{CacheBytes: int64(t.CacheBytes), Budget: t.Budget, Log: s.app.log.With("pool", c.Name)})
	g := &gateway.Tokens{Source: source, Space: c.Space(), Engine: s.tokenizer(t.URL)}
	if t.From != config.TokensFile {
		return g, nil
	}
	raw, err := os.ReadFile(t.File)
	if err != nil {
		source.Close()
		return nil, fmt.Errorf("kv.tokens.file: %w", err)
	}
	model, err := tokens.ReadModel(raw)
	if err != nil {
		source.Close()
		return nil, fmt.Errorf("kv.tokens.file %s: %w", t.File, err)
	}
	source.Use(c.Name, model)
	s.sources.Go(func() { s.verifyTokens(s.ctx, g, c) })
	return g, nil
}

// tokenizer returns a function that returns a server to ask for tokens: always
// the same if one is configured, or one endpoint after the other.
func (s *served) tokenizer(url string) func() (tokens.Engine, bool) {
	if url != "" {
		return func() (tokens.Engine, bool) { return tokens.Engine{URL: url, Client: s.client}, true }
	}
	var turn atomic.Uint64
	return func() (tokens.Engine, bool) {
		at, ok := s.pool.Server(turn.Add(1))
		return tokens.Engine{URL: at.URL, Client: s.client}, ok
	}
}

// verifyTokens compares the local tokenizer with an engine's until one answers.
func (s *served) verifyTokens(ctx context.Context, g *gateway.Tokens, c config.Pool) {
	for ctx.Err() == nil {
		if e, ok := g.Engine(); ok {
			trust, err := g.Source.Verify(ctx, c.Name, c.Model, e)
			if err == nil {
				s.app.log.Info("local tokenizer compared with an engine", "pool", c.Name, "text", trust.Text, "chat", trust.Chat, "why_text", trust.WhyText, "why_chat", trust.WhyChat)
				return
			}
			s.app.log.Debug("local tokenizer cannot be compared yet", "pool", c.Name, "err", err)
		}
		sleep(ctx, verifyEvery)
	}
}

// verifyEvery is the time between two tries to compare a local tokenizer.
const verifyEvery = 5 * time.Second

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
