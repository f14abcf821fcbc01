package tokens

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"penstock.dev/penstock/internal/kv"
)

// flight is one prompt that an engine is asked about, for all requests that
// have it.
type flight struct {
	done   chan struct{}
	keys   []kv.Key // with the others, set before done is closed
	tokens int
	reason Reason
}

// call is a question under way. It holds nothing of the request.
type call struct {
	s      *Source
	pool   *source
	engine Engine
	chat   bool
	model  string
	body   []byte
	media  bool
	maker  maker
	exact  digest
	bounds []digest
	trial  bool
	start  time.Time
}

// wait asks an engine, or joins those who wait for the same prompt, and waits
// for the answer as long as the budget lasts.
func (s *Source) wait(ctx context.Context, q *Query, p *prompt, exact digest, bounds []digest, dst []kv.Key) Result {
	f, reason := s.join(q, p, exact, bounds)
	if f == nil {
		return Result{Keys: dst, Reason: reason}
	}
	budget := time.NewTimer(s.o.Budget)
	defer budget.Stop()
	select {
	case <-f.done:
	case <-budget.C:
		return Result{Keys: dst, Reason: ReasonBudget}
	case <-ctx.Done():
		return Result{Keys: dst, Reason: ReasonGone}
	}
	if f.reason != ReasonNone {
		return Result{Keys: dst, Tokens: f.tokens, Reason: f.reason}
	}
	return Result{Keys: append(dst, f.keys...), Tokens: f.tokens, How: HowEngine}
}

// join returns the flight of the prompt, which it begins if nobody has.
func (s *Source) join(q *Query, p *prompt, exact digest, bounds []digest) (*flight, Reason) {
	if f, reason := s.joinable(q.Pool, exact); f != nil || reason != ReasonNone {
		return f, reason
	}
	e, ok := q.Engine()
	if !ok {
		return nil, ReasonNoEngine
	}
	body, reason := compose(q, p)
	if reason != ReasonNone {
		return nil, reason
	}
	c := &call{
		s: s, engine: e, chat: p.chat, model: q.Model, body: body, media: p.chat && hasMedia(p.raw),
		maker: newMaker(q), exact: exact, bounds: bounds, start: time.Now(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, reason := s.joinableLocked(q.Pool, exact); f != nil || reason != ReasonNone {
		return f, reason
	}
	c.pool = s.poolLocked(q.Pool)
	if c.pool.mannerLocked(e.URL, p.chat, c.start).way == wayNone {
		return nil, ReasonUnspoken
	}
	if ok, c.trial = c.pool.circuit.allow(c.start); !ok {
		return nil, ReasonOpen
	}
	f := &flight{done: make(chan struct{})}
	s.flights[exact] = f
	s.calls.Go(func() { c.run(f) })
	return f, ReasonNone
}

func (s *Source) joinable(pool string, exact digest) (*flight, Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.joinableLocked(pool, exact)
}

// joinableLocked returns the flight of the prompt, or why none can begin.
func (s *Source) joinableLocked(pool string, exact digest) (*flight, Reason) {
	if f := s.flights[exact]; f != nil {
		return f, ReasonNone
	}
	if keys, tokens, ok := s.cache.get(exact, nil); ok { // it has just landed
		f := &flight{done: make(chan struct{}), keys: keys, tokens: tokens}
		close(f.done)
		return f, ReasonNone
	}
	switch {
	case s.closed || len(s.flights) >= s.o.MaxCalls:
		return nil, ReasonBusy
	case !s.poolLocked(pool).circuit.ready(time.Now()):
		return nil, ReasonOpen
	}
	return nil, ReasonNone
}

// run asks, keeps what it is told and lets those know who wait.
func (c *call) run(f *flight) {
	ctx, cancel := context.WithTimeout(c.s.ctx, c.s.o.Timeout)
	defer cancel()
	w := borrow()
	defer w.giveBack()
	a := answer{tokens: w.tokens[:0], most: c.s.o.MaxTokens}
	err := c.ask(ctx, &a, w)
	w.tokens = a.tokens[:0]
	f.reason = reasonOf(err)
	if f.reason == ReasonNone {
		if f.tokens = len(a.tokens); c.media && !a.hashed {
			f.reason = ReasonMedia
		} else {
			f.keys = c.maker.make(make([]kv.Key, 0, len(a.tokens)/c.maker.block), a.tokens, a.media)
			c.s.cache.put(c.exact, c.bounds, f.keys, f.tokens)
		}
	}
	c.land(f)
}

// land ends a flight.
func (c *call) land(f *flight) {
	took := time.Since(c.start)
	// What the engine has understood and does not take says nothing against it.
	told := f.reason == ReasonNone || f.reason == ReasonMedia || f.reason == ReasonRefused || f.reason == ReasonLong
	s := c.s
	s.mu.Lock()
	delete(s.flights, c.exact)
	changed := s.ctx.Err() == nil && c.pool.circuit.report(time.Now(), told && took <= s.o.Budget, c.trial)
	state := c.pool.circuit.state()
	s.mu.Unlock()
	close(f.done)
	s.tally.answered(took)
	if changed {
		s.o.Log.Info("asking engines for tokens has changed", "pool", c.pool.name, "circuit", state, "engine", c.engine.URL)
	}
}

// The errors of asking. What else goes wrong is the engine's failure.
var (
	errUnspoken = errors.New("the engine does not tell tokens")
	errRefused  = errors.New("the engine does not take the prompt")
	errLong     = errors.New("the prompt has too many tokens")
)

func reasonOf(err error) Reason {
	switch {
	case err == nil:
		return ReasonNone
	case errors.Is(err, errUnspoken):
		return ReasonUnspoken
	case errors.Is(err, errRefused):
		return ReasonRefused
	case errors.Is(err, errLong):
		return ReasonLong
	}
	return ReasonFailed
}

// ask asks in the way the engine is known to understand, or finds that out.
func (c *call) ask(ctx context.Context, a *answer, w *room) error {
	for {
		c.s.mu.Lock()
		way := c.pool.mannerLocked(c.engine.URL, c.chat, time.Now()).way
		c.s.mu.Unlock()
		path := way.path(c.chat)
		if path == "" {
			return errUnspoken
		}
		status, err := c.post(ctx, path, w)
		if err != nil {
			return err
		}
		heard := c.judge(status, w.body)
		c.s.mu.Lock()
		c.pool.mannerLocked(c.engine.URL, c.chat, time.Now()).heard(heard, time.Now())
		c.s.mu.Unlock()
		switch heard {
		case heardNothing:
			continue // the next way
		case heardRefusal:
			return errRefused
		case heardFailure:
			return fmt.Errorf("%s answered %d", path, status)
		}
		return a.read(w.body)
	}
}

// maxAnswer bounds what is read of an answer, in bytes: media come with it.
const maxAnswer = 64 << 20

// post sends the question and reads the answer into w.
func (c *call) post(ctx context.Context, path string, w *room) (status int, err error) {
	header := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}}
	resp, _, err := c.engine.Client.Send(ctx, c.engine.URL, path, header, c.body)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	w.body = w.body[:0]
	for {
		if len(w.body) == cap(w.body) {
			w.body = append(w.body, make([]byte, max(len(w.body), 16<<10))...)[:len(w.body)]
		}
		n, err := resp.Body.Read(w.body[len(w.body):cap(w.body)])
		w.body = w.body[:len(w.body)+n]
		switch {
		case err == io.EOF:
			return resp.StatusCode, nil
		case err != nil:
			return 0, fmt.Errorf("read answer: %w", err)
		case len(w.body) > maxAnswer:
			return 0, errLong
		}
	}
}

// judge says what an answer means.
func (c *call) judge(status int, body []byte) heard {
	switch {
	case status == http.StatusOK:
		return heardTokens
	case status == http.StatusMethodNotAllowed, status == http.StatusNotImplemented:
		return heardNothing
	case status == http.StatusNotFound && !bytes.Contains(body, []byte(c.model)):
		return heardNothing // it knows the path if it misses the model
	case status/100 == 4 && status != http.StatusTooManyRequests && status != http.StatusUnauthorized && status != http.StatusForbidden:
		return heardRefusal
	}
	return heardFailure
}

// way is how an engine is asked, from the best on.
type way uint8

const (
	wayRender   way = iota // tokens, and hashes of media
	wayTokenize            // tokens
	wayNone
)

func (w way) path(chat bool) string {
	switch {
	case w == wayTokenize:
		return "/tokenize"
	case w == wayNone:
		return ""
	case chat:
		return "/v1/chat/completions/render"
	}
	return "/v1/completions/render"
}

// heard is what an answer means for the way it was asked in.
type heard uint8

const (
	heardTokens heard = iota
	heardNothing
	heardRefusal
	heardFailure
)

// asked is an engine and what it is asked about.
type asked struct {
	url  string
	chat bool
}

// manner is how an engine is asked for a while. Engines are replaced by newer
// ones behind the same address, so nothing is remembered for good.
type manner struct {
	way     way
	until   time.Time
	refused int // in a row
}

const (
	rememberWay     = 10 * time.Minute
	rememberRefusal = time.Minute
	// manyRefusals in a row are the engine's fault rather than its clients': it has
	// the path, and means something else by it.
	manyRefusals = 8
	// maxManners bounds what is remembered of engines that may long be gone.
	maxManners = 4096
)

// mannerLocked returns how an engine is asked now.
func (p *source) mannerLocked(url string, chat bool, now time.Time) *manner {
	m := p.manners[asked{url, chat}]
	if m == nil {
		if len(p.manners) >= maxManners {
			clear(p.manners)
		}
		m = &manner{}
		p.manners[asked{url, chat}] = m
	}
	if m.way != wayRender && now.After(m.until) {
		*m = manner{}
	}
	return m
}

// heard takes an answer to a question asked in m's way.
func (m *manner) heard(h heard, now time.Time) {
	switch h {
	case heardTokens:
		m.refused = 0
	case heardNothing:
		m.next(now.Add(rememberWay))
	case heardRefusal:
		if m.refused++; m.refused >= manyRefusals {
			m.next(now.Add(rememberRefusal))
		}
	case heardFailure:
	}
}

func (m *manner) next(until time.Time) {
	*m = manner{way: min(m.way+1, wayNone), until: until}
}
