package tokens

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/token"
	"penstock.dev/penstock/internal/token/chat"
)

// Model is a model's tokenizer and its chat template, from its own files. It
// never changes.
type Model struct {
	tokenizer *token.Tokenizer
	encoders  sync.Pool
	template  *chat.Model // nil without
	why       string      // without
}

// ReadModel reads a model's tokenizer.json.
func ReadModel(tokenizer []byte) (*Model, error) {
	t, err := token.Read(tokenizer)
	if err != nil {
		return nil, err
	}
	m := &Model{tokenizer: t, why: chat.ErrNone.Error()}
	m.encoders.New = func() any { return t.Encoder() }
	return m, nil
}

// ReadTemplate adds the model's chat template: from its tokenizer_config.json, or
// from a file of its own where that is not empty. Where it fails, conversations
// are left to engines, and why is told with the trust in them. It is called
// before the model is used.
func (m *Model) ReadTemplate(config, template []byte) error {
	t, err := chat.ReadModel(config, template)
	if err != nil {
		m.template, m.why = nil, err.Error()
		return err
	}
	m.template, m.why = t, ""
	return nil
}

// Trust says whether prompts are tokenized here: texts of completions, and
// conversations, which take the model's template as well. Why not is told
// without any user's words.
type Trust struct {
	Text, Chat       bool
	WhyText, WhyChat string // why not
}

// local is a pool's own tokenizer.
type local struct {
	model *Model
	trust Trust
	as    form // of conversations
}

const notCompared = "not compared with an engine yet"

// Use gives the pool a tokenizer, in the place of any before; nil for none. It
// is not used before Verify has found it exact.
func (s *Source) Use(pool string, m *Model) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.poolLocked(pool)
	p.local = nil
	if m != nil {
		p.local = &local{model: m, trust: Trust{WhyText: notCompared, WhyChat: notCompared}}
	}
}

// Verify compares the pool's own tokenizer with what the engine makes of a fixed
// set of texts, and then its template with what the engine makes of
// conversations; one difference, and prompts like it are not tokenized here. It
// is called once an engine is there, and again when one has been replaced. Where
// the engine cannot tell, trust stays what it was, and it returns why.
func (s *Source) Verify(ctx context.Context, pool, model string, e Engine) (Trust, error) {
	s.mu.Lock()
	p := s.poolLocked(pool)
	l := p.local
	s.mu.Unlock()
	if l == nil {
		return Trust{}, errors.New("the pool has no tokenizer of its own")
	}
	whyText, errText := s.compare(ctx, p, l.model, model, e)
	as, whyChat, errChat := form(0), "", errText
	if errText == nil {
		as, whyChat, errChat = s.compareChats(ctx, p, l.model, model, e)
	}
	if errors.Is(errChat, errUnspoken) && errText == nil {
		whyChat, errChat = errUnspoken.Error()+" of conversations", nil // and does not learn to
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.local != l {
		return l.trust, errors.Join(errText, errChat)
	}
	was := l.trust
	l.trust.Text, l.trust.WhyText = judged(l.trust.Text, l.trust.WhyText, whyText, errText)
	l.trust.Chat, l.trust.WhyChat = judged(l.trust.Chat, l.trust.WhyChat, whyChat, errChat)
	if errChat == nil {
		l.as = as
	}
	if was.Text != l.trust.Text || was.Chat != l.trust.Chat || errText == nil && was.WhyText != l.trust.WhyText || errChat == nil && was.WhyChat != l.trust.WhyChat {
		s.o.Log.Info("the tokenizer has been compared with an engine's", "pool", pool, "text", l.trust.Text, "why_not_text", l.trust.WhyText,
			"chat", l.trust.Chat, "why_not_chat", l.trust.WhyChat, "engine", e.URL)
	}
	if errText != nil {
		return l.trust, errText
	}
	return l.trust, errChat
}

// judged returns whether prompts of a kind are trusted after a comparison, and
// why not.
func judged(trusted bool, whyNot, why string, err error) (bool, string) {
	switch {
	case err == nil:
		return why == "", why
	case strings.HasPrefix(whyNot, notCompared):
		return trusted, fmt.Sprintf("%s: %v", notCompared, err)
	}
	return trusted, whyNot
}

// samples are texts on which tokenizers tend to differ.
var samples = []string{
	"a", " ", "Hello, world!", "  two  spaces  and   three ", "\n\n\ttabs\t\tand\r\nlines\n\n\n ", "trailing newline\n",
	"I'm, you'll, WE'VE; don't 'quote'", "MiXeD CaSe CamelCase snake_case SCREAMING_CASE", "1 12 123 1234 12345 1,234.567e-89 0x1f 2026-03-14T15:09:26Z",
	"func main() {\n\tfor i := 0; i < 10; i++ {\n\t\tfmt.Println(\"x\", i)\n\t}\n}\n", "    if x == 1:\n        return {'a': [1, 2, 3]}  # comment\n",
	`{"key": "value", "list": [1, 2.5, null, true], "nested": {"a\\b": "\"c\""}}`, "<div class=\"x\">&amp; &lt;b&gt;</div>",
	"Grüße aus Köln, señor; naïve café", "Ελληνικά и русский текст", "日本語のテキスト、中文文本，한국어 텍스트", "النص العربي עברית हिन्दी ไทย",
	"emoji 😀👍🏽 👩‍👩‍👧‍👦 🇩🇪 end", "e\u0301 \u00a0no-break\u200bzero\u200d width\ufeff", "∑∫√ ≤≥≠ → ⇒ ∀x∈ℝ", "....!!!???---___===***###",
	"<s> </s> <|im_start|>user<|im_end|> <|endoftext|> [INST] [/INST] <|eot_id|> <bos> <unk> <pad>", "https://example.org/a/b?c=d&e=f#g user@example.org",
	strings.Repeat("long ", 40), strings.Repeat("x", 200), strings.Repeat(" ", 65), strings.Repeat("\n", 17), "\x00\x01\x1f\x7f",
}

// compare returns the first difference between here and the engine, empty for
// none.
func (s *Source) compare(ctx context.Context, p *source, m *Model, name string, e Engine) (string, error) {
	for i, text := range samples {
		here, ok := m.encode(nil, text, true)
		if !ok {
			continue // it is left to the engine
		}
		there, err := s.sample(ctx, p, name, e, text)
		if err != nil {
			return "", fmt.Errorf("sample %d: %w", i, err)
		}
		if at := differ(here, there); at >= 0 {
			return fmt.Sprintf("sample %d, %.40q: %s", i, text, describe(here, there, at)), nil
		}
	}
	return "", nil
}

// sample asks for the tokens of one text.
func (s *Source) sample(ctx context.Context, p *source, model string, e Engine, text string) ([]uint32, error) {
	b := api.AppendString([]byte(`{"model":`), model)
	b = append(api.AppendString(append(b, `,"prompt":`...), text), '}')
	return s.told(ctx, p, &call{engine: e, model: model, body: b})
}

// told returns what an engine answers to a question.
func (s *Source) told(ctx context.Context, p *source, c *call) ([]uint32, error) {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	w := borrow()
	defer w.giveBack()
	c.s, c.pool = s, p
	a := answer{most: s.o.MaxTokens}
	err := c.ask(ctx, &a, w)
	return a.tokens, err
}

// differ returns the first index at which a and b differ, -1 for none.
func differ(a, b []uint32) int {
	if slices.Equal(a, b) {
		return -1
	}
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// describe tells a difference in tokens.
func describe(here, there []uint32, at int) string {
	show := func(t []uint32) []uint32 { return t[min(at, len(t)):min(at+4, len(t))] }
	return fmt.Sprintf("token %d of %d on is %v here and %v of %d at the engine", at, len(here), show(here), show(there), len(there))
}

// encode appends the tokens of text, with those that the model expects around
// it if wanted. It reports false where it is not sure of them.
func (m *Model) encode(dst []uint32, text string, around bool) ([]uint32, bool) {
	e := m.encoders.Get().(*token.Encoder)
	defer m.encoders.Put(e)
	before, after := m.tokenizer.Around()
	if around {
		dst = append(dst, before...)
	}
	dst, ok := e.Encode(dst, text)
	if around {
		dst = append(dst, after...)
	}
	return dst, ok
}

// tokenize makes the tokens of a prompt here, if that is trusted.
func (s *Source) tokenize(q *Query, p *prompt, exact digest, bounds []digest, dst []kv.Key) (Result, bool) {
	s.mu.Lock()
	l := s.poolLocked(q.Pool).local
	usable, as := false, formText
	if l != nil {
		usable, as = l.trust.Text, l.as
		if p.chat {
			usable = l.trust.Chat
		}
	}
	s.mu.Unlock()
	if !usable {
		return Result{}, false
	}
	w := borrow()
	defer w.giveBack()
	ok := false
	if p.chat {
		w.tokens, ok = l.model.conversation(w.tokens[:0], q, p, as)
	} else {
		w.tokens, ok = l.model.completion(w.tokens[:0], p)
	}
	if !ok || len(w.tokens) > s.o.MaxTokens {
		return Result{}, false
	}
	m, at := newMaker(q), len(dst)
	dst = m.make(dst, w.tokens, nil)
	s.cache.put(exact, bounds, dst[at:], len(w.tokens))
	return Result{Keys: dst, Tokens: len(w.tokens), How: HowLocal}, true
}

// conversation appends the tokens of a conversation.
func (m *Model) conversation(dst []uint32, q *Query, p *prompt, as form) ([]uint32, bool) {
	question, reason := compose(q, p)
	if reason != ReasonNone {
		return dst, false
	}
	dst, err := m.chat(dst, question, as, time.Now())
	return dst, err == nil
}

// completion appends the tokens of a text.
func (m *Model) completion(dst []uint32, p *prompt) ([]uint32, bool) {
	around, plain := p.plain()
	if !plain {
		return dst, false
	}
	t := text(p.raw)
	if strings.Contains(t, "\ufffd") {
		return dst, false // it may stand for what is no text, which engines read otherwise
	}
	return m.encode(dst, t, around)
}

// plain reports whether nothing but the text decides on a completion's tokens,
// and whether those around it are wanted.
func (p *prompt) plain() (around, ok bool) {
	around = true
	for _, m := range p.members[:p.n] {
		if string(m.name) != "add_special_tokens" {
			return false, false
		}
		around = !bytes.Equal(m.value, []byte("false"))
	}
	return around, true
}
