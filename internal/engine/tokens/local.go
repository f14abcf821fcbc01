package tokens

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/token"
)

// Model is a model's tokenizer, from its own files. It never changes.
type Model struct {
	tokenizer *token.Tokenizer
	encoders  sync.Pool
}

// ReadModel reads a model's tokenizer.json.
func ReadModel(tokenizer []byte) (*Model, error) {
	t, err := token.Read(tokenizer)
	if err != nil {
		return nil, err
	}
	m := &Model{tokenizer: t}
	m.encoders.New = func() any { return t.Encoder() }
	return m, nil
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
}

const (
	notCompared = "not compared with an engine yet"
	noTemplate  = "chat templates are left to the engines"
)

// Use gives the pool a tokenizer, in the place of any before; nil for none. It
// is not used before Verify has found it exact.
func (s *Source) Use(pool string, m *Model) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.poolLocked(pool)
	p.local = nil
	if m != nil {
		p.local = &local{model: m, trust: Trust{WhyText: notCompared, WhyChat: noTemplate}}
	}
}

// Verify compares the pool's own tokenizer with what the engine makes of a
// fixed set of texts; one difference, and prompts are not tokenized here. It is
// called once an engine is there, and again when one has been replaced. Where
// the engine cannot tell, trust stays what it was, and it returns why.
func (s *Source) Verify(ctx context.Context, pool, model string, e Engine) (Trust, error) {
	s.mu.Lock()
	p := s.poolLocked(pool)
	l := p.local
	s.mu.Unlock()
	if l == nil {
		return Trust{}, errors.New("the pool has no tokenizer of its own")
	}
	why, err := s.compare(ctx, p, l.model, model, e)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || p.local != l {
		if err != nil && strings.HasPrefix(l.trust.WhyText, notCompared) {
			l.trust.WhyText = fmt.Sprintf("%s: %v", notCompared, err)
		}
		return l.trust, err
	}
	was := l.trust
	l.trust.Text, l.trust.WhyText = why == "", why
	if was != l.trust {
		s.o.Log.Info("the tokenizer has been compared with an engine's", "pool", pool, "trusted", l.trust.Text, "why_not", why, "engine", e.URL)
	}
	return l.trust, nil
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
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	w := borrow()
	defer w.giveBack()
	c := &call{s: s, pool: p, engine: e, model: model}
	b := api.AppendString([]byte(`{"model":`), model)
	c.body = append(api.AppendString(append(b, `,"prompt":`...), text), '}')
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
	usable := l != nil && l.trust.Text && !p.chat
	s.mu.Unlock()
	around, plain := p.plain()
	if !usable || !plain {
		return Result{}, false
	}
	t := text(p.raw)
	if strings.Contains(t, "\ufffd") {
		return Result{}, false // it may stand for what is no text, which engines read otherwise
	}
	w := borrow()
	defer w.giveBack()
	var ok bool
	w.tokens, ok = l.model.encode(w.tokens[:0], t, around)
	if !ok || len(w.tokens) > s.o.MaxTokens {
		return Result{}, false
	}
	m, at := newMaker(q), len(dst)
	dst = m.make(dst, w.tokens, nil)
	s.cache.put(exact, bounds, dst[at:], len(w.tokens))
	return Result{Keys: dst, Tokens: len(w.tokens), How: HowLocal}, true
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
