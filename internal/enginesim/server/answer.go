package server

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"
)

// reply is the answer to one completion or chat request, in the making.
type reply struct {
	server  *Server
	query   *wireRequest
	chat    bool
	head    []byte // the JSON object up to its choices
	choices []choice
	call    *call
	cut     *cut // the fault that breaks it off, if any

	// For streams:
	w    http.ResponseWriter
	buf  []byte
	sent []int // tokens, by choice
	out  int   // tokens, of all choices
}

// complete handles completions and chat completions.
func (s *Server) complete(chat bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q wireRequest
		if err := readJSON(r, &q); err != nil {
			writeError(w, err)
			return
		}
		choices, err := s.plan(&q, chat)
		if err != nil {
			writeError(w, err)
			return
		}
		call, err := s.submit(choices)
		if err != nil {
			writeError(w, err)
			return
		}
		// Whatever ends the handler, a client gone above all, frees the engine.
		defer s.drop(call)
		p := &reply{
			server: s, query: &q, chat: chat, choices: choices, call: call, cut: s.faults.cut(),
			w: w, sent: make([]int, len(choices)),
		}
		p.head = p.makeHead(r.Header.Get("X-Request-Id"))
		if q.Stream {
			p.stream(r)
		} else {
			p.whole(r)
		}
	}
}

// makeHead returns what all events of a stream, and an unstreamed answer,
// begin with.
func (p *reply) makeHead(requestID string) []byte {
	if requestID == "" {
		requestID = rand.Text()
	}
	prefix, object := "cmpl-", "text_completion"
	if p.chat {
		prefix, object = "chatcmpl-", "chat.completion"
		if p.query.Stream {
			object = "chat.completion.chunk"
		}
	}
	b := append([]byte(`{"id":`), quote(prefix+requestID)...)
	b = append(b, `,"object":"`...)
	b = append(b, object...)
	b = append(b, `","created":`...)
	b = strconv.AppendInt(b, time.Now().Unix(), 10)
	b = append(b, `,"model":`...)
	b = append(b, quote(p.server.options.Model)...)
	return append(b, `,"choices":[`...)
}

// quote returns s as a JSON string.
func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings always marshal
	}
	return b
}

// errStopped breaks off what a stopped engine will not answer any more.
var errStopped = errors.New("the engine has stopped")

// wait returns when the engine has made more tokens, with an error when there
// will be none: the client has gone, or the engine has stopped.
func (p *reply) wait(r *http.Request) error {
	select {
	case <-p.call.wake:
		return nil
	case <-r.Context().Done():
		return r.Context().Err()
	case <-p.server.closed:
		return errStopped
	}
}

// done reports whether all choices are complete.
func (p *reply) done() bool {
	for i := range p.choices {
		if int(p.call.legs[i].have.Load()) < len(p.choices[i].answer.ends) {
			return false
		}
	}
	return true
}

// whole answers in one piece.
func (p *reply) whole(r *http.Request) {
	for !p.done() {
		if err := p.wait(r); err != nil {
			panic(http.ErrAbortHandler) // the only way to break off without an answer
		}
	}
	b := p.head
	for i := range p.choices {
		if i > 0 {
			b = append(b, ',')
		}
		a := &p.choices[i].answer
		b = append(b, `{"index":`...)
		b = strconv.AppendInt(b, int64(i), 10)
		if p.chat {
			b = append(b, `,"message":{"role":"assistant","content":`...)
			b = append(b, quote(a.text)...)
			b = append(b, `,"tool_calls":[]}`...)
		} else {
			b = append(b, `,"text":`...)
			b = append(b, quote(a.text)...)
		}
		b = append(b, `,"logprobs":null`...)
		b = appendFinish(b, a)
		b = append(b, '}')
		p.out += len(a.ends)
	}
	b = append(b, `],`...)
	b = p.appendUsage(b)
	b = append(b, '}')
	p.w.Header().Set("Content-Type", "application/json")
	p.w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if p.cut != nil {
		p.w.Write(b[:len(b)/2])
		p.breakOff()
	}
	p.w.Write(b)
}

// appendFinish appends why an answer ended.
func appendFinish(b []byte, a *answer) []byte {
	b = append(b, `,"finish_reason":"`...)
	b = append(b, a.finish.String()...)
	b = append(b, `","stop_reason":`...)
	if a.stop == "" {
		return append(b, "null"...)
	}
	return append(b, quote(a.stop)...)
}

// appendUsage appends the usage member as of now. Choices of one prompt count
// its tokens once.
func (p *reply) appendUsage(b []byte) []byte {
	n := 1
	if p.query.N != nil {
		n = *p.query.N
	}
	prompt, cached := int64(0), int64(0)
	for i := 0; i < len(p.choices); i += n {
		prompt += int64(p.choices[i].prompt)
		cached += p.call.legs[i].cached.Load()
	}
	number := func(name string, v int64) {
		b = append(b, name...)
		b = strconv.AppendInt(b, v, 10)
	}
	number(`"usage":{"prompt_tokens":`, prompt)
	number(`,"total_tokens":`, prompt+int64(p.out))
	number(`,"completion_tokens":`, int64(p.out))
	number(`,"prompt_tokens_details":{"cached_tokens":`, cached)
	return append(b, `}}`...)
}

// breakOff sends what is written and tears the connection.
func (p *reply) breakOff() {
	// The client may be gone already, which is as good.
	_ = http.NewResponseController(p.w).Flush()
	panic(http.ErrAbortHandler)
}
