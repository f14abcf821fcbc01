package server

import (
	"errors"
	"net/http"
	"strconv"
)

// stream answers token by token as server-sent events. Headers go out with the
// first token, so that what fails before is still a clean failure.
func (p *reply) stream(r *http.Request) {
	rc := http.NewResponseController(p.w)
	p.w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	p.w.Header().Set("Cache-Control", "no-cache")
	for {
		if err := p.wait(r); err != nil {
			if errors.Is(err, errStopped) {
				panic(http.ErrAbortHandler)
			}
			return
		}
		p.buf = p.buf[:0]
		complete := true
		for i := range p.choices {
			have := int(p.call.legs[i].have.Load())
			for p.sent[i] < have {
				p.token(i)
			}
			complete = complete && have == len(p.choices[i].answer.ends)
		}
		if complete {
			p.end()
		}
		if len(p.buf) > 0 {
			if _, err := p.w.Write(p.buf); err != nil {
				return // the client has gone
			}
			if err := rc.Flush(); err != nil {
				return
			}
		}
		if complete {
			return
		}
	}
}

// token writes the events of the next token of choice i: the role before the
// first, the finish after the last.
func (p *reply) token(i int) {
	a := &p.choices[i].answer
	n := p.sent[i]
	if n == 0 && p.chat {
		p.event(i, `,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}`, "", "")
	}
	p.mayCut(i)
	p.sent[i]++
	p.out++
	// A token whose text belongs to a stop string brings no text and no event.
	if delta := escape(a.delta(n)); delta != "" {
		if p.chat {
			p.event(i, `,"delta":{"content":"`, delta, `"},"logprobs":null,"finish_reason":null}`)
		} else {
			p.event(i, `,"text":"`, delta, `","logprobs":null,"finish_reason":null,"stop_reason":null}`)
		}
	}
	if p.sent[i] < len(a.ends) {
		return
	}
	p.mayCut(i)
	tail := `,"text":"","logprobs":null`
	if p.chat {
		tail = `,"delta":{},"logprobs":null`
	}
	p.event(i, string(append(appendFinish([]byte(tail), a), '}')), "", "")
}

// escape returns s as it stands between quotes in JSON.
func escape(s string) string {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			q := quote(s)
			return string(q[1 : len(q)-1])
		}
	}
	return s
}

// event writes one event about choice i.
func (p *reply) event(i int, before, delta, after string) {
	b := append(p.buf, "data: "...)
	b = append(b, p.head...)
	b = append(b, `{"index":`...)
	b = strconv.AppendInt(b, int64(i), 10)
	b = append(b, before...)
	b = append(b, delta...)
	b = append(b, after...)
	b = append(b, ']')
	if p.query.StreamOptions.IncludeUsage && p.query.StreamOptions.ContinuousUsage {
		b = append(b, ',')
		b = p.appendUsage(b)
	}
	p.buf = append(b, "}\n\n"...)
}

// end writes what follows the last finish event.
func (p *reply) end() {
	if p.query.StreamOptions.IncludeUsage {
		b := append(p.buf, "data: "...)
		b = append(b, p.head...)
		b = append(b, `],`...)
		b = p.appendUsage(b)
		p.buf = append(b, "}\n\n"...)
	}
	p.buf = append(p.buf, "data: [DONE]\n\n"...)
}

// mayCut breaks the stream off if a fault says so at this token of choice i.
// An answer that ends sooner is cut before its finish event.
func (p *reply) mayCut(i int) {
	ending := p.sent[i] == len(p.choices[i].answer.ends)
	if p.cut == nil || p.out < p.cut.after && !ending {
		return
	}
	if p.cut.inside {
		whole := len(p.buf)
		p.event(i, `,"delta":{"content":"`, "cut", `"},"logprobs":null,"finish_reason":null}`)
		p.buf = p.buf[:whole+(len(p.buf)-whole)/2]
	}
	p.w.Write(p.buf)
	p.breakOff()
}
