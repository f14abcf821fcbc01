package server

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// reply is the answer to one completion or chat request, in the making.
type reply struct {
	*generation
	query *wireRequest
	chat  bool
	model string
	id    string
	head  []byte // the JSON object up to its choices
	words wording
}

// complete handles completions and chat completions.
func (s *Server) complete(chat bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q wireRequest
		if err := readJSON(r, &q); err != nil {
			s.fail(w, r, err)
			return
		}
		choices, model, err := s.plan(&q, chat)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		p := &reply{query: &q, chat: chat, model: model, words: s.wording(chat), id: q.RID}
		fill(&p.id, requestID(r))
		p.head = p.makeHead()
		if p.generation, err = s.begin(r.Context(), p.id, choices); err != nil {
			s.failBegun(w, r, err, q.Stream)
			return
		}
		defer p.release()
		if q.Stream {
			p.stream(w, r, p)
		} else {
			p.whole(w, r, p.body)
		}
	}
}

// requestID is the client's own id of the request, or a new one.
func requestID(r *http.Request) string {
	if id := r.Header.Get("X-Request-Id"); id != "" {
		return id
	}
	return rand.Text()
}

// makeHead returns what all events of a stream, and an unstreamed answer,
// begin with.
func (p *reply) makeHead() []byte {
	prefix, object := "cmpl-", "text_completion"
	if p.chat {
		prefix, object = "chatcmpl-", "chat.completion"
		if p.query.Stream {
			object = "chat.completion.chunk"
		}
	}
	if p.words.bareID {
		prefix = ""
	}
	b := append([]byte(`{"id":`), quote(prefix+p.id)...)
	b = append(b, `,"object":"`...)
	b = append(b, object...)
	b = append(b, `","created":`...)
	b = strconv.AppendInt(b, time.Now().Unix(), 10)
	b = append(b, `,"model":`...)
	b = append(b, quote(p.model)...)
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

// body is the whole answer.
func (p *reply) body() []byte {
	b := p.head
	for i := range p.choices {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"index":`...)
		b = strconv.AppendInt(b, int64(i), 10)
		b = p.appendContent(b, i)
		b = append(b, `,"logprobs":`...)
		b = p.appendLogprobs(b, i, 0, p.have(i))
		b = p.appendFinish(b, i)
		b = append(b, '}')
	}
	b = append(b, `],`...)
	b = p.appendUsage(b)
	b = p.appendNext(b)
	return append(b, '}')
}

// appendContent appends what choice i says: text, or a call of a tool.
func (p *reply) appendContent(b []byte, i int) []byte {
	text := quote(p.text(i))
	tool := p.choices[i].answer.tool
	switch {
	case !p.chat:
		b = append(b, `,"text":`...)
		return append(b, text...)
	case tool == "":
		b = append(b, `,"message":{"role":"assistant","content":`...)
		b = append(b, text...)
		return append(b, p.words.noTools...)
	}
	b = append(b, `,"message":{"role":"assistant","content":null,"tool_calls":[{"id":`...)
	b = append(b, quote(p.toolID(i))...)
	b = append(b, p.words.toolIndex...)
	b = append(b, `,"type":"function","function":{"name":`...)
	b = append(b, quote(tool)...)
	b = append(b, `,"arguments":`...)
	b = append(b, text...)
	return append(b, `}}]}`...)
}

// toolID names the tool call of choice i.
func (p *reply) toolID(i int) string { return p.words.toolID + p.id + "-" + strconv.Itoa(i) }

// appendFinish appends why choice i ended.
func (p *reply) appendFinish(b []byte, i int) []byte {
	b = append(b, `,"finish_reason":"`...)
	b = append(b, p.reason(i)...)
	b = append(b, p.words.stop...)
	stop := p.choices[i].answer.stop
	switch {
	case p.reason(i) != "stop":
		return append(b, "null"...)
	case stop == "":
		return append(b, p.words.eos...)
	}
	return append(b, quote(stop)...)
}

// appendUsage appends the usage member as of now.
func (p *reply) appendUsage(b []byte) []byte {
	t := p.tally()
	number := func(name string, v int) {
		b = append(b, name...)
		b = strconv.AppendInt(b, int64(v), 10)
	}
	number(`"usage":{"prompt_tokens":`, t.prompt)
	number(`,"total_tokens":`, t.prompt+t.out)
	number(`,"completion_tokens":`, t.out)
	number(`,"prompt_tokens_details":{"cached_tokens":`, t.cached)
	b = append(b, '}')
	b = append(b, p.words.usageTail...)
	return append(b, '}')
}
