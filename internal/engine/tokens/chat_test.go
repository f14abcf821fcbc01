package tokens

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/token"
)

// tiny is a template, and rendered what an engine makes of it, without reading
// it.
const tiny = `{{ bos_token }}{{ mood | default('', true) }}
{%- if tools %}<|user|>tools{% for t in tools %} {{ t.function.name }}{% endfor %}<|end|>{% endif %}
{%- for m in messages %}
    {%- if m.role == 'judge' %}{{ raise_exception('no judges') }}{% endif %}
    {{- '<|user|>' + m.role + '\n' + m.content }}
    {%- for c in m.tool_calls or [] %}[{{ c.function.name }} of {{ c.function.arguments | length }}]{% endfor %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}<|user|>assistant{% endif %}`

type asking struct {
	Prompt   *string
	Ready    bool                  `json:"add_generation_prompt"`
	Continue bool                  `json:"continue_final_message"`
	Template struct{ Mood string } `json:"chat_template_kwargs"`
	Tools    []struct{ Function struct{ Name string } }
	Messages []struct {
		Role    string
		Content any
		Calls   []struct {
			Function struct{ Name, Arguments string }
		} `json:"tool_calls"`
	}
}

func (q *asking) rendered() string {
	var b strings.Builder
	b.WriteString("<|begin|>" + q.Template.Mood)
	if len(q.Tools) > 0 {
		b.WriteString("<|user|>tools")
		for _, t := range q.Tools {
			b.WriteString(" " + t.Function.Name)
		}
		b.WriteString("<|end|>")
	}
	for i, m := range q.Messages {
		content, _ := m.Content.(string)
		if parts, ok := m.Content.([]any); ok {
			var texts []string
			for _, p := range parts {
				texts = append(texts, p.(map[string]any)["text"].(string))
			}
			content = strings.Join(texts, "\n")
		}
		b.WriteString("<|user|>" + m.Role + "\n" + content)
		if q.Continue && i == len(q.Messages)-1 {
			return b.String()
		}
		for _, c := range m.Calls {
			var args map[string]any
			json.Unmarshal([]byte(c.Function.Arguments), &args)
			fmt.Fprintf(&b, "[%s of %d]", c.Function.Name, len(args))
		}
		b.WriteString("<|end|>")
	}
	if q.Ready {
		b.WriteString("<|user|>assistant")
	}
	return b.String()
}

// served is an engine behind a socket that tells tokens at /tokenize only.
type served struct {
	url     string
	asked   atomic.Int64
	changed func(q *asking, text string) (string, int) // what it does otherwise
}

func serve(t *testing.T, file []byte) *served {
	t.Helper()
	tok, err := token.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &served{changed: func(_ *asking, text string) (string, int) { return text, 200 }}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /tokenize", func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		body, _ := io.ReadAll(r.Body)
		var q asking
		if err := json.Unmarshal(body, &q); err != nil {
			t.Error(err)
		}
		var ids []uint32
		if q.Prompt != nil {
			before, after := tok.Around()
			ids, _ = tok.Encoder().Encode(slices.Clone(before), *q.Prompt)
			ids = append(ids, after...)
		} else {
			text, status := s.changed(&q, q.rendered())
			if status != 200 {
				w.WriteHeader(status)
				return
			}
			ids, _ = tok.Encoder().Encode(nil, text)
		}
		json.NewEncoder(w).Encode(map[string]any{"count": len(ids), "tokens": ids})
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// withTemplate returns a model with the template.
func withTemplate(t testing.TB, file []byte, source string) *Model {
	t.Helper()
	m, err := ReadModel(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.ReadTemplate([]byte(`{"bos_token":"<|begin|>"}`), []byte(source)); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestConversationsAreTokenizedHereOnceProven(t *testing.T) {
	file := vocabulary(t)
	e := serve(t, file)
	client := engine.NewClient(engine.Options{})
	t.Cleanup(client.Close)
	at := Engine{URL: e.url, Client: client}
	s := start(t, Options{Budget: 10 * time.Second})
	s.Use("p", withTemplate(t, file, tiny))
	if trust := s.Status().Pools[0].Local; trust.Chat || !strings.Contains(trust.WhyChat, notCompared) {
		t.Errorf("trusted before: %+v", trust)
	}
	trust, err := s.Verify(t.Context(), "p", "m", at)
	if err != nil || !trust.Text || !trust.Chat || trust.WhyChat != "" {
		t.Fatalf("%+v, %v", trust, err)
	}

	long := strings.Repeat("A river of data. ", 10)
	body := func(rest string) string {
		return `{"model":"m","messages":[{"role":"system","content":"` + long + `"},{"role":"user","content":"` + long + `"}]` + rest + `}`
	}
	plain := body("")
	for _, c := range []struct {
		name string
		kind api.Kind
		body string
		how  How
	}{
		{"turns", api.Chat, plain, HowLocal},
		{"again", api.Chat, plain, HowCache},
		{"sampling", api.Chat, body(`,"temperature":0,"n":2,"stream":true`), HowCache},
		{"arguments", api.Chat, body(`,"chat_template_kwargs":{"mood":"glad"}`), HowLocal},
		{"no prompt", api.Chat, body(`,"add_generation_prompt":false`), HowLocal},
		{"tools", api.Chat, body("," + sampleTools), HowLocal},
		{"tools and a choice", api.Chat, body("," + sampleTools + `,"tool_choice":"auto"`), HowLocal},
		{"go on", api.Chat, body(`,"add_generation_prompt":false,"continue_final_message":true`), HowEngine}, // it ends with a space
		{"go on with text", api.Chat, strings.Replace(body(`,"add_generation_prompt":false,"continue_final_message":true`), `data. "}]`, `end"}]`, 1), HowLocal},
		{"parts", api.Chat, strings.Replace(plain, `"`+long+`"}]`, `[{"type":"text","text":"one"},{"type":"text","text":"two"}]}]`, 1), HowLocal},
		{"calls", api.Chat, strings.Replace(plain, "}]", `},{"role":"assistant","content":null,"refusal":null,"tool_calls":[`+sampleCall+`]},`+sampleTold+`]`, 1), HowLocal},
		{"instructions", api.Responses, `{"model":"m","instructions":"` + long + `","input":"` + long + `"}`, HowLocal},
		{"Messages", api.Messages, `{"model":"m","max_tokens":5,"system":"` + long + `","messages":[{"role":"user","content":"` + long + `x"}]}`, HowLocal},
		// What is not certain is asked.
		{"a choice", api.Chat, body("," + sampleTools + `,"tool_choice":"none"`), HowEngine},
		{"a template of the client's own", api.Chat, body(`,"chat_template":"{{ 7 * 7 }}"`), HowEngine},
		{"arguments of engines", api.Chat, body(`,"chat_template_kwargs":{"messages":[]}`), HowEngine},
		{"documents", api.Chat, body(`,"documents":[{"text":"x"}]`), HowEngine},
		{"effort", api.Chat, body(`,"reasoning_effort":"low"`), HowEngine},
		{"special tokens", api.Chat, body(`,"add_special_tokens":true`), HowEngine},
		{"tools in another order", api.Chat, body(`,"tools":[{"function":{"name":"f","description":"","parameters":{}},"type":"function"}]`), HowEngine},
		{"tools with more", api.Chat, body(`,"tools":[{"type":"function","function":{"name":"f","description":"","parameters":{},"strict":true}}]`), HowEngine},
		{"thoughts", api.Chat, strings.Replace(plain, `"role":"user"`, `"role":"assistant","reasoning_content":"r"`, 1), HowEngine},
		{"calls in another form", api.Chat, strings.Replace(plain, `"role":"user"`, `"tool_calls":[{"id":"x"}],"role":"assistant"`, 1), HowEngine},
		{"half a character", api.Chat, strings.Replace(plain, "river", `\ud83d`, 1), HowEngine},
	} {
		before := e.asked.Load()
		q := ask(t, client, c.kind, c.body)
		q.Engine = func() (Engine, bool) { return at, true }
		r := s.Keys(t.Context(), q, nil)
		if r.How != c.how || (e.asked.Load() > before) != (c.how == HowEngine) {
			t.Errorf("%s: %v (%v), want %v", c.name, r.How, r.Reason, c.how)
		}
		if c.how != HowLocal {
			continue
		}
		// A gateway that asks has the same keys.
		asks := start(t, Options{Budget: 10 * time.Second})
		if w := asks.Keys(t.Context(), q, nil); w.How != HowEngine || !slices.Equal(w.Keys, r.Keys) || w.Tokens != r.Tokens {
			t.Errorf("%s: %d tokens, keys %x; the engine has %d, keys %x", c.name, r.Tokens, r.Keys, w.Tokens, w.Keys)
		}
	}
}

// What a client writes is text, however much it looks like a template.
func TestConversationsAreNoTemplates(t *testing.T) {
	m := withTemplate(t, vocabulary(t), tiny)
	text, err := m.write([]byte(`{"model":"m","messages":[{"role":"user","content":"{{ 7 * 7 }}{% for i in range(9) %}x{% endfor %}{# #}"}]}`), formText, time.Time{})
	if want := "<|begin|><|user|>user\n{{ 7 * 7 }}{% for i in range(9) %}x{% endfor %}{# #}<|end|>"; err != nil || text != want {
		t.Errorf("%q, %v", text, err)
	}
}

func TestOneDifferenceIsEnough(t *testing.T) {
	file := vocabulary(t)
	client := engine.NewClient(engine.Options{})
	t.Cleanup(client.Close)
	for _, c := range []struct {
		name    string
		source  string
		changed func(q *asking, text string) (string, int)
		why     string
	}{
		{"no template", "", nil, "no chat template"},
		{"another system prompt", tiny, func(_ *asking, text string) (string, int) { return text + "x", 200 }, `conversation "one message": token`},
		{"tools written otherwise", tiny, func(q *asking, text string) (string, int) {
			if len(q.Tools) > 0 {
				text += "x"
			}
			return text, 200
		}, `conversation "tools": token`},
		{"one that refuses most", tiny, func(q *asking, text string) (string, int) {
			if len(q.Messages) > 1 {
				return "", 400
			}
			return text, 200
		}, "only 3 conversations"},
		{"one that fails", tiny, func(*asking, string) (string, int) { return "", 500 }, notCompared + `: conversation "one message": /tokenize answered 500`},
		{"one that tells of texts only", tiny, func(*asking, string) (string, int) { return "", 501 }, "does not tell tokens of conversations"},
		{"a template that takes none", "{{ raise_exception('no') }}", nil, "only 0 conversations"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := serve(t, file)
			if c.changed != nil {
				e.changed = c.changed
			}
			m, err := ReadModel(file)
			if err != nil {
				t.Fatal(err)
			}
			m.ReadTemplate([]byte(`{"bos_token":"<|begin|>"}`), []byte(c.source))
			s := start(t, Options{Budget: 10 * time.Second})
			s.Use("p", m)
			at := Engine{URL: e.url, Client: client}
			trust, err := s.Verify(t.Context(), "p", "m", at)
			if (err != nil) != strings.HasPrefix(c.why, notCompared) || !trust.Text || trust.Chat || !strings.Contains(trust.WhyChat, c.why) {
				t.Fatalf("%+v, %v", trust, err)
			}
			if st := s.Status().Pools[0]; st.Local != trust {
				t.Errorf("status %+v", st)
			}
			if c.changed == nil {
				q := ask(t, client, api.Chat, talk(sentence, sentence))
				q.Engine = func() (Engine, bool) { return at, true }
				if r := s.Keys(t.Context(), q, nil); r.How != HowEngine {
					t.Errorf("%v (%v)", r.How, r.Reason)
				}
			}
		})
	}
}

// Some engines hand the parts of contents to templates that go through them.
func TestFormIsThatOfTheEngine(t *testing.T) {
	file := vocabulary(t)
	e := serve(t, file)
	e.changed = func(q *asking, _ string) (string, int) {
		var b strings.Builder
		for _, m := range q.Messages {
			if s, ok := m.Content.(string); ok {
				b.WriteString("<" + s + ">")
			}
			parts, _ := m.Content.([]any)
			for _, p := range parts {
				b.WriteString("<" + p.(map[string]any)["text"].(string) + ">")
			}
		}
		return b.String(), 200
	}
	client := engine.NewClient(engine.Options{})
	t.Cleanup(client.Close)
	s := start(t, Options{Budget: 10 * time.Second})
	s.Use("p", withTemplate(t, file, "{% for m in messages %}{% if m.content is string %}<{{ m.content }}>{% else %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %}{% endfor %}"))
	trust, err := s.Verify(t.Context(), "p", "m", Engine{URL: e.url, Client: client})
	if as := s.pools["p"].local.as; err != nil || !trust.Chat || as != formParts {
		t.Errorf("form %d: %+v, %v", as, trust, err)
	}
}

// BenchmarkConversation makes the keys of a chat of 50 messages here.
func BenchmarkConversation(b *testing.B) {
	file, err := readVocabulary()
	if err != nil {
		b.Fatal(err)
	}
	m := withTemplate(b, file, tiny)
	texts := make([]string, 50)
	for i := range texts {
		texts[i] = strings.Repeat(fmt.Sprintf("Turbine %d turns. ", i), 20)
	}
	q := ask(b, nil, api.Chat, talk(texts...))
	p, _ := read(q)
	var ids []uint32
	b.SetBytes(int64(len(q.Body)))
	b.ReportAllocs()
	for b.Loop() {
		var ok bool
		if ids, ok = m.conversation(ids[:0], q, &p, formText); !ok || len(ids) == 0 {
			b.Fatal("left to the engine")
		}
		maker := newMaker(q)
		if keys := maker.make(nil, ids, []kv.Media(nil)); len(keys) == 0 {
			b.Fatal("no keys")
		}
	}
}
