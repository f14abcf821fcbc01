package server

import "strconv"

// wording is where the engines' OpenAI answers differ. vLLM leaves out what is
// not set; SGLang writes every field of its models.
type wording struct {
	bareID             bool   // ids have no prefix
	role, before       string // the first event, and an event up to its text
	after              string // from the text's end up to its logprobs
	rest               string // after the logprobs, when the answer goes on
	last               string // the last event up to its logprobs
	stop               string // between the finish reason and the stop string
	eos                string // the stop string of an answer that ends by itself
	noUsage, usageTail string // at the end of an event without usage, and inside one
	noTools            string // after the text of a message without tool calls
	toolID, toolIndex  string
	toolName, toolArgs string // an event up to the tool's name, or its arguments
}

func (s *Server) wording(chat bool) wording {
	if s.options.Engine == SGLang {
		return sglangWording(chat)
	}
	w := wording{
		before: `,"text":"`, after: `"`, rest: `,"finish_reason":null,"stop_reason":null}`, last: `,"text":""`,
		stop: `","stop_reason":`, noTools: `,"tool_calls":[]}`, eos: "null", toolID: "chatcmpl-tool-",
	}
	if chat {
		w.role = `,"delta":{"role":"assistant","content":""}`
		w.before, w.after, w.rest = `,"delta":{"content":"`, `"}`, `,"finish_reason":null}`
		w.last = `,"delta":{}`
		w.toolName = `,"delta":{"tool_calls":[{"id":`
		w.toolArgs = `,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"`
	}
	return w
}

func (p *reply) open(b []byte) []byte { return b }

// role writes the first event of a chat's choice and, if it calls a tool, the
// event with the tool's name.
func (p *reply) role(b []byte, i int) []byte {
	if !p.chat {
		return b
	}
	b = p.event(b, i, p.words.role, "", "", "null", p.words.rest)
	if tool := p.choices[i].answer.tool; tool != "" {
		call := p.words.toolName + string(quote(p.toolID(i))) + `,"type":"function","index":0,"function":{"name":` + string(quote(tool)) + `,"arguments":""}}]}`
		b = p.event(b, i, call, "", "", "null", p.words.rest)
	}
	return b
}

// token writes the event of token n. A token whose text belongs to a stop
// string, or to the name of a tool, brings no text and no event.
func (p *reply) token(b []byte, i, n int) []byte {
	a := &p.choices[i].answer
	delta := escape(a.delta(n))
	switch {
	case delta == "":
		return b
	case a.tool != "":
		return p.event(b, i, p.words.toolArgs, delta, `"}}]}`, "null", p.words.rest)
	case p.query.Logprobs.wanted():
		return p.event(b, i, p.words.before, delta, p.words.after, string(p.appendLogprobs(nil, i, n, n+1)), p.words.rest)
	}
	return p.event(b, i, p.words.before, delta, p.words.after, "null", p.words.rest)
}

func (p *reply) finish(b []byte, i int) []byte {
	return p.event(b, i, p.words.last, "", "", "null", string(append(p.appendFinish(nil, i), '}')))
}

func (p *reply) specimen(b []byte, i int) []byte {
	return p.event(b, i, p.words.before, "cut", p.words.after, "null", p.words.rest)
}

// event writes one event about choice i.
func (p *reply) event(b []byte, i int, before, delta, after, logprobs, rest string) []byte {
	b = append(b, "data: "...)
	b = append(b, p.head...)
	b = append(b, `{"index":`...)
	b = strconv.AppendInt(b, int64(i), 10)
	b = append(b, before...)
	b = append(b, delta...)
	b = append(b, after...)
	b = append(b, `,"logprobs":`...)
	b = append(b, logprobs...)
	b = append(b, rest...)
	b = append(b, ']')
	if p.query.StreamOptions.IncludeUsage && p.query.StreamOptions.ContinuousUsage {
		b = append(b, ',')
		b = p.appendUsage(b)
	} else {
		b = append(b, p.words.noUsage...)
	}
	return append(b, "}\n\n"...)
}

// end writes what follows the last finish event.
func (p *reply) end(b []byte) []byte {
	if p.query.StreamOptions.IncludeUsage {
		b = append(b, "data: "...)
		b = append(b, p.head...)
		b = append(b, `],`...)
		b = p.appendUsage(b)
		b = append(b, "}\n\n"...)
	}
	return append(b, "data: [DONE]\n\n"...)
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
