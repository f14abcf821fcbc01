package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
)

// stream passes an event stream on: whole events only, each flushed at once, with
// its bytes unchanged unless the client asked in another API or by another name
// than the engine answers. Until the first event with data nothing has been promised to
// the client and another endpoint may still answer.
type stream struct {
	x      *exchange
	ctx    context.Context
	cancel context.CancelCauseFunc
	first  *time.Timer // runs until the first event with data
	idle   *time.Timer // runs from then on, while the engine is waited for
	resp   *http.Response

	split    *api.Splitter
	protocol api.Protocol
	retell   api.Retelling
	told     []byte // events as the client gets them, where that is not as they came
	held     []byte // comments that came before the first event with data
	usage    fleet.Usage
	finished bool // a finish reason or [DONE] has been seen
	done     bool // [DONE] has been passed on: the client has all there is
	lastWord bool // the engine's own error event has been passed on
	lastText time.Time
	progress time.Time
}

var splitters = sync.Pool{New: func() any { return new(api.Splitter) }}

func isEventStream(resp *http.Response) bool {
	t, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.EqualFold(strings.TrimSpace(t), "text/event-stream")
}

// verdict says what reading part of a stream came to.
type verdict struct {
	failure fleet.Failure
	err     error
	gone    bool // the client, not the engine
}

var fine = verdict{}

// run reports whether another order follows.
func (s *stream) run() bool {
	s.split = splitters.Get().(*api.Splitter)
	s.x.gaps = new(gaps)
	s.usage.Cached = -1
	s.protocol = s.x.toward.kind.Protocol()
	s.finished = s.protocol == api.AnyJSON // of which nobody knows what ends it
	if s.x.toward.retell {
		s.retell = s.x.retelling()
	}
	v := s.pump()
	if s.idle != nil {
		s.idle.Stop()
	}
	if v == fine || s.done {
		s.split.Reset()
		splitters.Put(s.split)
		s.settle()
		s.x.ticket.Done(s.usage)
		return false
	}
	return s.broke(v)
}

// pump reads until the stream ends.
func (s *stream) pump() verdict {
	for {
		n, err := s.resp.Body.Read(s.split.Space())
		if n > 0 {
			if s.idle != nil {
				s.idle.Stop() // what follows may wait for the client, not for the engine
			}
			tooLong := s.split.Filled(n)
			if whole := s.split.Whole(); whole != nil {
				if v := s.take(whole); v != fine {
					return v
				}
			}
			if tooLong != nil {
				return verdict{failure: fleet.FailGarbage, err: tooLong}
			}
			if s.x.committed {
				s.wait()
			}
		}
		switch {
		case err == io.EOF:
			return s.end()
		case err != nil:
			return verdict{failure: fleet.FailStream, err: fmt.Errorf("read stream: %w", err)}
		}
	}
}

// afterDone is how long a stream may stay open after [DONE]. Reading on to its
// end keeps the connection to the engine fit for reuse.
const afterDone = time.Second

// wait starts the idle timer, before the next read.
func (s *stream) wait() {
	limit := s.x.g.o.Limits.Idle
	if s.done {
		limit = min(limit, afterDone)
	}
	if s.idle == nil {
		s.idle = time.AfterFunc(limit, func() { s.cancel(engine.ErrIdle) })
		return
	}
	s.idle.Reset(limit)
}

// end judges a stream that ended cleanly: it must have finished, and with a
// whole event.
func (s *stream) end() verdict {
	switch {
	case len(s.split.Rest()) > 0:
		return verdict{failure: fleet.FailStream, err: errors.New("the stream ended inside an event")}
	case !s.finished:
		return verdict{failure: fleet.FailStream, err: errors.New("the stream ended without a finish reason or [DONE]")}
	case s.x.toward.retell && !s.done:
		s.told = s.retell.End(s.told[:0])
		return s.forward(s.told, true)
	}
	return fine
}

// take looks at whole events and forwards those that are in order.
func (s *stream) take(whole []byte) verdict {
	good, begun, done := 0, s.x.committed, false
	asIs := !s.x.toward.retell && !s.x.toward.rename && s.x.pre.ID == fleet.NoEndpoint
	s.told = s.told[:0]
	bad := fine
	now := time.Now()
	api.Events(whole, func(ev []byte) {
		if bad != fine {
			return
		}
		ev = s.moved(ev)
		c := api.ReadEvent(s.protocol, ev)
		if bad = faultOf(c); bad != fine {
			// Before anything is promised somebody else may do better; after it,
			// the engine's own error is the last word.
			if !c.Error || !begun {
				return
			}
			s.lastWord = true
		}
		if !asIs {
			if v := s.tell(ev, c); v != fine {
				bad = v
				return
			}
		}
		good += len(ev)
		begun = begun || c.Data || c.Done
		done = done || c.Done
		s.note(c, now)
	})
	events := whole[:good]
	if !asIs {
		events = s.told
	}
	if v := s.forward(events, begun); v != fine {
		return v
	}
	s.done = s.done || done
	return bad
}

// moved returns an event that counts as cached what was so where the prompt was
// computed.
func (s *stream) moved(ev []byte) []byte {
	n := s.x.preCached.Load()
	if n < 0 || !bytes.Contains(ev, []byte(`"cached_tokens"`)) {
		return ev
	}
	return api.SetCachedEvent(make([]byte, 0, len(ev)+16), ev, int(n))
}

// tell appends an event to told as the client gets it.
func (s *stream) tell(ev []byte, c api.Chunk) verdict {
	x := s.x
	switch {
	case !x.toward.retell && !x.toward.rename:
		s.told = append(s.told, ev...)
	case !x.toward.retell:
		s.told = api.RenameEvent(s.told, ev, x.service.Model, x.access.Model)
	case c.Error:
		p, _ := api.EngineRefused(http.StatusBadGateway, api.EventData(ev), x.route.style)
		s.told = append(s.told, p.Event(x.route.style, x.access.ID)...)
	default:
		var err error
		if s.told, err = s.retell.Event(s.told, ev); err != nil {
			return verdict{failure: fleet.FailGarbage, err: err}
		}
	}
	return fine
}

func faultOf(c api.Chunk) verdict {
	switch {
	case c.Garbage:
		return verdict{failure: fleet.FailGarbage, err: errors.New("an event's data is not JSON")}
	case c.Overload:
		return verdict{failure: fleet.FailOverload, err: errors.New("the engine sent an overload error as an event")}
	case c.Error:
		return verdict{failure: fleet.FailStatus, err: errors.New("the engine sent an error as an event")}
	}
	return fine
}

// note keeps account of one event.
func (s *stream) note(c api.Chunk, now time.Time) {
	x := s.x
	s.count(c.Usage)
	if c.ID != "" {
		x.owned(c.ID)
	}
	s.finished = s.finished || c.Done || c.Finish
	if !c.Text {
		return
	}
	x.access.Events++
	if x.access.Events == 1 {
		x.access.TTFT = now.Sub(x.start)
		s.progress = now
		x.firstToken()
	} else {
		x.gaps.add(now.Sub(s.lastText))
	}
	s.lastText = now
	if now.Sub(s.progress) >= progressEvery {
		s.progress = now
		x.ticket.Progress(fleet.Tokens(x.access.Events))
	}
}

// count takes in what an event says of usage. Some APIs tell the prompt first and
// the output at the end.
func (s *stream) count(u fleet.Usage) {
	switch {
	case u.Known && u.Prompt == 0:
		s.usage.Known, s.usage.Output = true, u.Output
	case u.Known:
		s.usage = u
	case u.Prompt > 0:
		s.usage.Prompt, s.usage.Cached = u.Prompt, u.Cached
	}
}

// progressEvery bounds Progress reports to four a second.
const progressEvery = 250 * time.Millisecond

// errGivenUp ends an attempt whose transfer was given up as its answer came.
var errGivenUp = errors.New("the transfer was given up before the answer began")

// forward writes events to the client, flushed. Before the first event with
// data they are held back.
func (s *stream) forward(events []byte, begun bool) verdict {
	x := s.x
	if len(events) == 0 {
		return fine
	}
	if !x.committed {
		if !begun {
			if s.held = append(s.held, events...); len(s.held) > api.MaxEvent {
				return verdict{failure: fleet.FailGarbage, err: errors.New("more than 1 MiB of comments before the first event")}
			}
			return fine
		}
		if !x.fate.begin() {
			return verdict{failure: fleet.FailOverload, err: errGivenUp}
		}
		s.first.Stop()
		x.commit(s.resp)
		x.w.WriteHeader(s.resp.StatusCode)
		if len(s.held) > 0 {
			events = append(s.held, events...)
			s.held = nil
		}
	}
	if err := x.send(events); err != nil {
		return verdict{gone: true, err: err}
	}
	return fine
}

// broke ends a stream that failed, and reports whether another order follows.
func (s *stream) broke(v verdict) bool {
	x := s.x
	if v.gone || x.r.Context().Err() != nil {
		s.settle()
		x.gone(v.err)
		return false
	}
	if !x.committed {
		return x.failed(s.ctx, v.failure, v.err)
	}
	v.failure, v.err = cause(s.ctx, v.failure, v.err)
	s.settle()
	x.access.Failure, x.access.Err = v.failure, v.err
	x.ticket.Failed(v.failure, true)
	if !s.lastWord {
		if err := x.send(api.StreamBroke(v.failure).Event(x.route.style, x.access.ID)); err != nil {
			x.gone(err)
		}
	}
	return false
}

// settle accounts for what was streamed. Without the engine's word, each event
// with output counts as a token.
func (s *stream) settle() {
	if !s.usage.Known {
		s.usage.Output = fleet.Tokens(s.x.access.Events)
		s.x.access.Usage = s.usage
		return
	}
	s.x.used(s.usage)
}

// gaps keeps an even thinning of the gaps between events, for their median: a
// stream of any length costs the same few bytes.
type gaps struct {
	kept   [gapRoom]time.Duration
	n      int // kept
	seen   int
	stride int // every stride-th gap is kept
}

const gapRoom = 128

func (g *gaps) add(d time.Duration) {
	if g.stride == 0 {
		g.stride = 1
	}
	g.seen++
	if g.seen%g.stride != 0 {
		return
	}
	if g.n == gapRoom {
		for i := range gapRoom / 2 {
			g.kept[i] = g.kept[2*i+1]
		}
		g.n = gapRoom / 2
		g.stride *= 2
		if g.seen%g.stride != 0 {
			return
		}
	}
	g.kept[g.n] = d
	g.n++
}

// median returns the median of the kept gaps, 0 when there are none or g is nil.
func (g *gaps) median() time.Duration {
	if g == nil || g.n == 0 {
		return 0
	}
	s := g.kept[:g.n]
	slices.Sort(s)
	return s[len(s)/2]
}
