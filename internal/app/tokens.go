package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	g := &gateway.Tokens{Source: source, Space: c.Space(), Engine: s.tokenizer(t.URL), Form: s.feeds.Form}
	if t.From != config.TokensFile {
		return g, nil
	}
	model, err := readModel(t.File, t.Template)
	if err != nil {
		source.Close()
		return nil, err
	}
	source.Use(c.Name, model)
	// Not one of the sources, whose end a reload waits for: it may take as long as no
	// engine answers.
	s.checks.Go(func() { s.verifyTokens(s.ctx, g, c) })
	return g, nil
}

// readModel reads a model's tokenizer.json, or the one in a directory, and the
// chat template: of a file of its own, or what is beside the tokenizer. Where
// none is found there, or one that cannot be read here, conversations are left
// to the engines; a template that is asked for by name must be read.
func readModel(file, template string) (*tokens.Model, error) {
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		file = filepath.Join(file, "tokenizer.json")
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("kv.tokens.file: %w", err)
	}
	m, err := tokens.ReadModel(raw)
	if err != nil {
		return nil, fmt.Errorf("kv.tokens.file %s: %w", file, err)
	}
	config, err := readAny(filepath.Join(filepath.Dir(file), "tokenizer_config.json"))
	if err != nil {
		return nil, fmt.Errorf("kv.tokens.file: %w", err)
	}
	if template != "" {
		source, err := os.ReadFile(template)
		if err == nil {
			err = m.ReadTemplate(config, source)
		}
		if err != nil {
			return nil, fmt.Errorf("kv.tokens.template %s: %w", template, err)
		}
		return m, nil
	}
	source, err := readAny(filepath.Join(filepath.Dir(file), "chat_template.jinja"))
	if err != nil {
		return nil, fmt.Errorf("kv.tokens.file: %w", err)
	}
	_ = m.ReadTemplate(config, source) // what fails is told when it is compared
	return m, nil
}

// readAny reads a file if there is one.
func readAny(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return raw, err
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
