// Package tokens finds out which tokens a request's prompt becomes, so that the
// blocks of its KV can be named as the engines' events name them. It knows
// earlier prompts, tokenizes by itself where that is proven to be exact, and
// asks an engine within a budget of time for the rest. It keeps keys of blocks
// and hashes of prompts, never their text.
package tokens

import (
	"context"
	"hash/maphash"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// How says where the keys of a request come from.
type How uint8

// The ways, from knowing nothing to knowing all.
const (
	HowNone   How = iota
	HowPrefix     // of an earlier prompt with the same beginning; the rest is not known
	HowGiven      // the prompt came as token ids
	HowCache      // of an earlier, equal prompt
	HowLocal      // tokenized here
	HowEngine     // an engine told
	hows
)

var howNames = [hows]string{"none", "prefix", "given", "cache", "local", "engine"}

func (h How) String() string { return howNames[h] }

// Reason says why the tokens of a whole prompt are not known.
type Reason uint8

// The reasons. ReasonNone is that of prompts which are known.
const (
	ReasonNone     Reason = iota
	ReasonKind            // requests like it are not told in tokens by anybody
	ReasonSeveral         // it has several prompts
	ReasonMedia           // it has media, and their hashes are not told
	ReasonLong            // more tokens than are read
	ReasonNoEngine        // no engine to ask
	ReasonUnspoken        // the engine has no way to tell
	ReasonOpen            // the circuit is open: engines tell too late, or not at all
	ReasonBusy            // too many engines' answers are waited for
	ReasonBudget          // no answer within the budget; it serves the next turn
	ReasonRefused         // the engine does not take the prompt
	ReasonFailed          // the engine failed, or its answer is not to be understood
	ReasonGone            // the client has left
	reasons
)

var reasonNames = [reasons]string{
	"", "unsupported", "several prompts", "media", "too long", "no engine", "not spoken",
	"circuit open", "busy", "over budget", "refused", "failed", "client gone",
}

func (r Reason) String() string { return reasonNames[r] }

// Asker sends requests to engines; an engine.Client is one. Send does not touch
// body after the answer's body is closed.
type Asker interface {
	Send(ctx context.Context, base, path string, header http.Header, body []byte) (*http.Response, fleet.Failure, error)
}

// Engine is one that may be asked for tokens.
type Engine struct {
	URL    string // base
	Client Asker
}

// Query is a request whose tokens are looked for. Its byte fields are not kept.
type Query struct {
	Pool string
	Kind api.Kind // as it is put to the engine
	// Model and Adapter are names at the engine: what is asked for, and the LoRA
	// among them, which is part of every key; empty for none.
	Model, Adapter string
	// Body is valid JSON. The others are raw values inside it, or copies of them;
	// they may be nil.
	Body, Prompt, Tools, Lead, Salt []byte

	Space kv.KeySpace
	Block int          // tokens of an engine's block, which a key stands for under KeysDirect
	Form  kv.ExtraForm // how the engines write extras, under KeysDirect

	// Engine returns one that may be asked, and is called only then.
	Engine func() (Engine, bool)
}

// Result is what is known of a prompt's tokens.
type Result struct {
	Keys   []kv.Key // the caller's, with those of the prompt's full blocks appended
	Tokens int      // of the whole prompt, exactly; 0 when not known
	How    How
	Reason Reason // why not more; ReasonNone when all is known
}

// Options tune a Source. Zero fields take the defaults.
type Options struct {
	CacheBytes int64         // bound on what is kept of prompts; default 64 MiB
	Budget     time.Duration // how long a request waits for an engine's answer; default 50 ms
	Timeout    time.Duration // after which an engine's answer is given up; default 5 s
	MaxCalls   int           // answers waited for at a time; default 32
	MaxTokens  int           // longest prompt that is read, in tokens; default 1 Mi
	Log        *slog.Logger  // told what becomes of circuits and tokenizers; nil for none
}

func (o *Options) fill() {
	def(&o.CacheBytes, 64<<20)
	def(&o.Budget, 50*time.Millisecond)
	def(&o.Timeout, 5*time.Second)
	def(&o.MaxCalls, 32)
	def(&o.MaxTokens, 1<<20)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

func def[T int | int64 | time.Duration](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// Source tells the tokens of requests. It is safe for concurrent use.
type Source struct {
	o     Options
	seeds [2]maphash.Seed
	cache cache
	tally tally

	ctx   context.Context // of the calls, which outlive requests
	stop  context.CancelFunc
	calls sync.WaitGroup

	mu      sync.Mutex // after it only the cache's own
	flights map[digest]*flight
	pools   map[string]*source
	closed  bool
}

// source is what is known of one pool.
type source struct {
	name    string
	circuit circuit
	manners map[asked]*manner
	local   *local // nil without
}

// New returns a source that knows no prompt. Close ends the calls it has begun.
func New(o Options) *Source {
	o.fill()
	s := &Source{
		o: o, seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		flights: map[digest]*flight{}, pools: map[string]*source{},
	}
	s.cache.init(o.CacheBytes)
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Close cancels the calls under way and waits for them.
func (s *Source) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.calls.Wait()
}

// Keys appends the keys of the request's full blocks to dst, as far as they can
// be had within the budget.
func (s *Source) Keys(ctx context.Context, q *Query, dst []kv.Key) Result {
	r := s.keys(ctx, q, dst)
	s.tally.count(r.How, r.Reason)
	return r
}

func (s *Source) keys(ctx context.Context, q *Query, dst []kv.Key) Result {
	p, reason := read(q)
	if reason != ReasonNone {
		return Result{Keys: dst, Reason: reason}
	}
	if p.ids {
		return s.given(q, &p, dst)
	}
	h := s.heads(q, &p)
	exact := s.sum(h, p.raw)
	if out, n, ok := s.cache.get(exact, dst); ok {
		return Result{Keys: out, Tokens: n, How: HowCache}
	}
	bounds := s.bounds(nil, h, p.raw)
	whole := bounds[len(bounds)-1]
	if out, n, ok := s.cache.alike(exact, whole, dst); ok {
		return Result{Keys: out, Tokens: n, How: HowCache}
	}
	if r, ok := s.tokenize(q, &p, exact, bounds, dst); ok {
		return r
	}
	r := s.wait(ctx, q, &p, exact, bounds, dst)
	if r.How == HowNone {
		if out, ok := s.cache.prefix(bounds, dst); ok {
			r.Keys, r.How = out, HowPrefix
		}
	}
	return r
}

// given keys a prompt of token ids.
func (s *Source) given(q *Query, p *prompt, dst []kv.Key) Result {
	w := borrow()
	defer w.giveBack()
	c := cursor{b: p.raw}
	var ok bool
	if w.tokens, ok = c.ids(w.tokens[:0], s.o.MaxTokens); !ok {
		return Result{Keys: dst, Reason: ReasonLong}
	}
	m := newMaker(q)
	return Result{Keys: m.make(dst, w.tokens, nil), Tokens: len(w.tokens), How: HowGiven}
}

// pool returns what is known of the pool; the caller holds mu.
func (s *Source) poolLocked(name string) *source {
	p := s.pools[name]
	if p == nil {
		p = &source{name: name, manners: map[asked]*manner{}}
		p.circuit.wait = firstWait
		s.pools[name] = p
	}
	return p
}

// Forget drops what is known of a pool that is no more. Its prompts leave the
// cache as they grow old.
func (s *Source) Forget(pool string) {
	s.mu.Lock()
	delete(s.pools, pool)
	s.mu.Unlock()
}
