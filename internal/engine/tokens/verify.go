package tokens

import (
	"context"
	"errors"
	"fmt"
	"time"

	"penstock.dev/penstock/internal/api"
)

// dialogue is a conversation that is compared with an engine.
type dialogue struct {
	name string
	rest string // of the question, behind the model
}

// Tools and calls of the conversations, in the order that engines write them.
const (
	sampleTools = `"tools":[{"type":"function","function":{"name":"get_weather","description":"Tell the weather, <now> & \"here\" – é.","parameters":{"type":"object","properties":{"zone":{"type":"string","description":"The city's name"},"days":{"type":"number","minimum":-1.5,"default":1.0},"unit":{"type":"string","enum":["°C","F"]}},"required":["zone"],"additionalProperties":false}}},{"type":"function","function":{"name":"time","description":"Tell the time","parameters":{"type":"object","properties":{}}}}]`
	sampleCall  = `{"id":"abcdefghi","type":"function","function":{"name":"get_weather","arguments":"{\"zone\": \"Köln\", \"days\": 2.0, \"a\": [1, null, true]}"}}`
	sampleOther = `{"id":"jklmnopqr","type":"function","function":{"name":"time","arguments":""}}`
	sampleTold  = `{"role":"tool","tool_call_id":"abcdefghi","content":"{\"t\": 21.5, \"sky\": \"clear\"}"}`
	sampleReady = `,"add_generation_prompt":true`
)

// conversations are compared with an engine's, each for what engines and
// templates tend to differ in.
var conversations = []dialogue{
	{"one message", `"messages":[{"role":"user","content":"Hello, world!"}]` + sampleReady},
	{"system and turns", `"messages":[{"role":"system","content":"  Be brief.\n"},{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello there. "},{"role":"user","content":" What is 2+2?\n"},{"role":"assistant","content":"4"},{"role":"user","content":"Thanks"}]` + sampleReady},
	{"no prompt to answer", `"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello."}],"add_generation_prompt":false`},
	{"unicode", `"messages":[{"role":"user","content":"Grüße 日本語 👩‍👩‍👧‍👦 \u00a0नमस्ते\u2028x\u200b"},{"role":"assistant","content":"Ελληνικά…"},{"role":"user","content":"العربية"}]` + sampleReady},
	{"code", `"messages":[{"role":"user","content":"\tdef f(x):\n\t\treturn {'a': x[\"b\"]}  # {{ 7 * 7 }} {% if x %} <|im_end|> </s>\n\n"}]` + sampleReady},
	{"thoughts", `"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"<think>\nhm\n</think>\n\nanswer"},{"role":"user","content":"again"}]` + sampleReady},
	{"empty content", `"messages":[{"role":"system","content":""},{"role":"user","content":""},{"role":"assistant","content":""},{"role":"user","content":"x"}]` + sampleReady},
	{"parts", `"messages":[{"role":"user","content":[{"type":"text","text":"one "},{"type":"text","text":"two"}]}]` + sampleReady},
	{"tools", `"messages":[{"role":"system","content":"Use tools."},{"role":"user","content":"What is the weather?"}],` + sampleTools + sampleReady},
	{"a call and its result", `"messages":[{"role":"user","content":"What is the weather?"},{"role":"assistant","content":null,"tool_calls":[` + sampleCall + `]},` + sampleTold + `],` + sampleTools + sampleReady},
	{"calls with text", `"messages":[{"role":"user","content":"Both?"},{"role":"assistant","content":"Two at once.","tool_calls":[` + sampleCall + `,` + sampleOther + `]},` + sampleTold + `,{"role":"tool","tool_call_id":"jklmnopqr","content":"12:00\n"},{"role":"assistant","content":"Done."},{"role":"user","content":"Thanks"}]` + sampleReady},
	{"a message to go on with", `"messages":[{"role":"user","content":"Count"},{"role":"assistant","content":"one, two,"}],"add_generation_prompt":false,"continue_final_message":true`},
}

// enough is how many conversations must be the same for any to be trusted: there
// are always some that a template or an engine does not take.
const enough = 4

// compareChats returns the form in which the conversations are the same here and
// at the engine, or the first difference.
func (s *Source) compareChats(ctx context.Context, p *source, m *Model, name string, e Engine) (as form, why string, err error) {
	if m.template == nil {
		return 0, m.why, nil
	}
	there := map[string][]uint32{}
	for as = range forms {
		different := ""
		if different, err = s.compareForm(ctx, p, m, name, e, as, there); err != nil || different == "" {
			return as, "", err
		}
		if why == "" {
			why = different
		}
	}
	return 0, why, nil
}

// compareForm compares the conversations in one form. There is what the engine
// has told before.
func (s *Source) compareForm(ctx context.Context, p *source, m *Model, name string, e Engine, as form, there map[string][]uint32) (string, error) {
	same := 0
	for _, c := range conversations {
		question := append(append(append(api.AppendString([]byte(`{"model":`), name), ','), c.rest...), '}')
		here, err := m.chat(nil, question, as, time.Now())
		if err != nil {
			continue // it is left to the engine
		}
		told, ok := there[c.name]
		if !ok {
			told, err = s.told(ctx, p, &call{engine: e, model: name, chat: true, body: question})
			if err != nil && !errors.Is(err, errRefused) {
				return "", fmt.Errorf("conversation %q: %w", c.name, err)
			}
			there[c.name] = told
		}
		if told == nil {
			continue // nor would the engine take a request like it
		}
		if at := differ(here, told); at >= 0 {
			return fmt.Sprintf("conversation %q: %s", c.name, describe(here, told, at)), nil
		}
		same++
	}
	if same < enough {
		return fmt.Sprintf("only %d conversations of %d can be compared", same, len(conversations)), nil
	}
	return "", nil
}
