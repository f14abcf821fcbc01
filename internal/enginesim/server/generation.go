package server

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/kv"
)

// choice is one sequence to generate.
type choice struct {
	prompt  int    // tokens
	repeat  bool   // its prompt is that of the choice before, and is counted there
	max     int    // tokens asked for at most
	adapter string // empty: the base model
	pool    bool   // no tokens are wanted
	tokens  []uint32
	salt    string // cache salt
	move    *move  // nil: it is computed here and nowhere else
	sight   *sight // nil: there are no images in it; of the first choice only
	answer  answer
	digests []kv.Digest // of its blocks, as far as they have been asked for
}

// generation is the sequences of one request on their way through the engine,
// as seen by the handler that answers with them. It belongs to that handler.
type generation struct {
	server  *Server
	id      string // as its client knows it
	choices []choice
	call    *call
	cut     *cut  // the fault that breaks it off, if any
	sent    []int // tokens answered with, by choice
	out     int   // the same, of all choices
}

// begin submits choices under the id that clients know the request by. Whatever
// ends the handler, a client gone above all, release must free the engine.
func (s *Server) begin(ctx context.Context, id string, choices []choice) (*generation, error) {
	s.enter(id)
	err := s.see(ctx, choices)
	if err == nil {
		err = s.fetch(ctx, choices)
	}
	if err != nil {
		s.exit(id)
		return nil, err
	}
	if s.options.Encoder {
		return &generation{server: s, id: id, choices: choices, call: idleCall(len(choices)), sent: make([]int, len(choices))}, nil
	}
	if len(choices) > 0 && choices[0].move != nil && choices[0].move.short {
		return &generation{server: s, id: id, choices: choices, call: idleCall(len(choices)), sent: make([]int, len(choices))}, nil
	}
	call, err := s.submit(id, choices)
	for {
		held, ok := errors.AsType[heldError](err)
		if !ok {
			break
		}
		select {
		case <-held.gate:
			call, err = s.submit(id, choices)
		case <-ctx.Done():
			err = ctx.Err()
		case <-s.closed:
			err = errStopped
		}
	}
	if err != nil {
		s.exit(id)
		s.leave(choices)
		return nil, err
	}
	return &generation{server: s, id: id, choices: choices, call: call, cut: s.faults.cut(), sent: make([]int, len(choices))}, nil
}

// release takes what is left out of the engine.
func (g *generation) release() {
	g.server.drop(g.call)
	g.server.leave(g.choices)
	g.server.exit(g.id)
}

// enter counts a request as under way, from before anything is fetched for it.
func (s *Server) enter(id string) {
	s.load.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.underWay[id]++
}

// exit ends what enter has begun.
func (s *Server) exit(id string) {
	s.load.Add(-1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.underWay[id]--; s.underWay[id] <= 0 {
		delete(s.underWay, id)
	}
}

// UnderWay reports whether a request is under way whose id contains part. Clients
// choose a part of the ids that engines know requests by.
func (s *Server) UnderWay(part string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.underWay {
		if strings.Contains(id, part) {
			return true
		}
	}
	return false
}

// ended reports whether choice i will get no more tokens.
func (g *generation) ended(i int) bool { return g.call.legs[i].state.Load() != legRuns }

// have returns how many tokens choice i has by now.
func (g *generation) have(i int) int { return int(g.call.legs[i].have.Load()) }

// done reports whether all choices have ended.
func (g *generation) done() bool {
	for i := range g.choices {
		if !g.ended(i) {
			return false
		}
	}
	return true
}

// reason says why choice i ended, as OpenAI's API does.
func (g *generation) reason(i int) string {
	a := &g.choices[i].answer
	switch {
	case g.call.legs[i].state.Load() == legAborted:
		return "abort"
	case g.choices[i].move != nil && g.choices[i].move.short:
		return "cache_threshold"
	case a.tool != "" && a.finish == enginesim.FinishStop:
		return "tool_calls"
	}
	return a.finish.String()
}

// text returns what choice i has said by now.
func (g *generation) text(i int) string {
	a, n := &g.choices[i].answer, g.have(i)
	if n == 0 {
		return ""
	}
	return a.text[:a.ends[n-1]]
}

// tally is the tokens of a request as of now.
type tally struct{ prompt, cached, out int }

// tally counts the prompt of several choices once, and the tokens that were
// sent so far.
func (g *generation) tally() tally {
	t := tally{out: g.out}
	for i := range g.choices {
		if !g.choices[i].repeat {
			t.prompt += g.choices[i].prompt
			t.cached += int(g.call.legs[i].cached.Load())
		}
	}
	return t
}

// errStopped breaks off what a stopped engine will not answer any more.
var errStopped = errors.New("the engine has stopped")

// wait returns when the engine has made more tokens, with an error when there
// will be none: the client has gone, or the engine has stopped.
func (g *generation) wait(ctx context.Context) error {
	select {
	case <-g.call.wake:
		return g.call.failed()
	case <-ctx.Done():
		return ctx.Err()
	case <-g.server.closed:
		return errStopped
	}
}

// await waits for the end of all choices and counts their tokens as sent.
func (g *generation) await(ctx context.Context) error {
	for !g.done() {
		if err := g.wait(ctx); err != nil {
			return err
		}
	}
	for i := range g.choices {
		g.sent[i] = g.have(i)
		g.out += g.sent[i]
	}
	return g.call.failed()
}

// whole answers in one piece, which body writes once all choices have ended.
func (g *generation) whole(w http.ResponseWriter, r *http.Request, body func() []byte) {
	if err := g.await(r.Context()); err != nil {
		if failure, ok := errors.AsType[*apiError](err); ok {
			g.server.fail(w, r, failure)
			return
		}
		panic(http.ErrAbortHandler) // the only way to break off without an answer
	}
	b := body()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if g.cut != nil {
		w.Write(b[:len(b)/2])
		breakOff(w)
	}
	w.Write(b)
	g.server.answered(w, g.choices)
}

// framer writes the events of one dialect's streams; each method appends to b
// and returns it.
type framer interface {
	open(b []byte) []byte            // before anything is known
	role(b []byte, i int) []byte     // before the first token of choice i
	token(b []byte, i, n int) []byte // token n of choice i
	finish(b []byte, i int) []byte   // after the last token of choice i
	end(b []byte) []byte             // after all choices
	specimen(b []byte, i int) []byte // any event about choice i, to be torn
}

// stream answers token by token as server-sent events. Headers go out with the
// first event, so that what fails before is still a clean failure.
func (g *generation) stream(w http.ResponseWriter, r *http.Request, f framer) {
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	buf := f.open(nil)
	over := make([]bool, len(g.choices)) // its finish was sent
	for complete := false; ; {
		if len(buf) > 0 {
			if _, err := w.Write(buf); err != nil {
				return // the client has gone
			}
			if err := rc.Flush(); err != nil {
				return
			}
		}
		if complete {
			g.server.answered(w, g.choices)
			return
		}
		if err := g.wait(r.Context()); err != nil {
			if errors.Is(err, errStopped) {
				panic(http.ErrAbortHandler)
			}
			if failure, ok := errors.AsType[*apiError](err); ok {
				writeErrorEvent(w, failure)
			}
			return
		}
		buf, complete = buf[:0], true
		for i := range g.choices {
			if !over[i] {
				buf, over[i] = g.advance(w, buf, f, i)
			}
			complete = complete && over[i]
		}
		if complete {
			buf = f.end(buf)
		}
	}
}

// advance writes the events of choice i that are due: the role before its
// first token, the finish after its last. It reports whether it is over.
func (g *generation) advance(w http.ResponseWriter, buf []byte, f framer, i int) (b []byte, over bool) {
	over = g.ended(i) // looked at before have, which then is final
	have := g.have(i)
	if g.sent[i] == 0 && (have > 0 || over) {
		buf = f.role(buf, i)
	}
	for g.sent[i] < have {
		g.mayCut(w, buf, f, i, false)
		n := g.sent[i]
		g.sent[i]++
		g.out++
		buf = f.token(buf, i, n)
	}
	if over {
		g.mayCut(w, buf, f, i, true)
		buf = f.finish(buf, i)
	}
	return buf, over
}

// mayCut breaks the stream off if a fault says so at this place. An answer
// that ends sooner is cut before its finish event.
func (g *generation) mayCut(w http.ResponseWriter, buf []byte, f framer, i int, ending bool) {
	if g.cut == nil || g.out < g.cut.after && !ending {
		return
	}
	if g.cut.inside {
		whole := len(buf)
		buf = f.specimen(buf, i)
		buf = buf[:whole+(len(buf)-whole)/2]
	}
	w.Write(buf)
	breakOff(w)
}

// breakOff sends what is written and tears the connection.
func breakOff(w http.ResponseWriter) {
	// The client may be gone already, which is as good.
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}
