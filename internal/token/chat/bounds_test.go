package chat

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
)

// Whatever a template says, reading and rendering it end.
func TestIsBounded(t *testing.T) {
	deep := strings.Repeat("[", 1<<18)
	for name, source := range map[string]string{
		"loops":          "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
		"ranges":         "{{ range(100000000000) | list | length }}",
		"text":           "{% set ns = namespace(s='x' * 1000) %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
		"output":         "{% for i in range(100000) %}{{ 'x' * 1000000 }}{% endfor %}",
		"repeats":        "{{ 'x' * 100000000 }}",
		"replaces":       "{{ ('x' * 10000).replace('x', 'y' * 10000) }}",
		"replaces none":  "{{ ('x' * 1000000).replace('', 'y' * 100000) }}",
		"joins":          "{{ range(10000) | join('x' * 100000) }}",
		"lists":          "{% set ns = namespace(l=[1]) %}{% for i in range(100) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
		"shared":         "{% set ns = namespace(l=[1]) %}{% for i in range(90) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}",
		"shared, shown":  "{% set ns = namespace(l=[1]) %}{% for i in range(90) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
		"shared, equal":  "{% set ns = namespace(l=[1], m=[1]) %}{% for i in range(90) %}{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% endfor %}{{ ns.l == ns.m }}",
		"deep values":    "{% set ns = namespace(l=[1]) %}{% for i in range(100000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
		"recursion":      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
		"two recursions": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(90) }}",
		"powers":         "{{ 2 ** 2 ** 9999999999 }}",
		"deep lists":     "{{ " + deep,
		"deep brackets":  "{{ " + strings.ReplaceAll(deep, "[", "("),
		"deep not":       "{{ " + strings.Repeat("not ", 1<<17) + "1 }}",
		"deep minus":     "{{ " + strings.Repeat("- ", 1<<17) + "1 }}",
		"deep blocks":    strings.Repeat("{% if 1 %}", 1<<16),
		"deep targets":   "{% set " + strings.ReplaceAll(deep, "[", "(") + "a = 1 %}",
		"long sums":      "{{ 1" + strings.Repeat("+1", 1<<17) + " }}",
		"long filters":   "{{ 1" + strings.Repeat("|abs", 1<<17) + " }}",
		"long paths":     "{{ a" + strings.Repeat(".a", 1<<17) + " }}",
		"long if":        "{{ 1" + strings.Repeat(" if 1 else 1", 1<<15) + " }}",
		"long source":    strings.Repeat("x", 1<<21),
	} {
		v, err := Parse(source)
		if err == nil {
			_, err = v.Render(NewDict(), now)
		}
		if !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := FromJSON([]byte(deep)); !errors.Is(err, ErrRefused) {
		t.Errorf("deep JSON: %v", err)
	}
}

// A template that all share is not changed by who renders it.
func TestRendersAlikeEachTime(t *testing.T) {
	v, err := Parse("{% set ns = namespace(n=0) %}{% macro m(l=[1]) %}{{ l }}{% endmacro %}{% for x in d.l %}{% set ns.n = ns.n + x %}{% endfor %}{% set d = 1 %}{{ ns.n }}{{ m() }}")
	if err != nil {
		t.Fatal(err)
	}
	in, err := FromJSON([]byte(`{"d":{"l":[1,2]}}`))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if got, err := v.Render(in.(*Dict), now); err != nil || got != "3[1]" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	all.Wait()
}

// Any source is read or refused, and rendered or refused.
func FuzzTemplate(f *testing.F) {
	for _, g := range goldens(f) {
		f.Add(g.source, g.vars)
	}
	f.Fuzz(func(t *testing.T, source, vars string) {
		v, err := Parse(source)
		if err != nil {
			if !errors.Is(err, ErrRefused) {
				t.Fatal(err)
			}
			return
		}
		in, err := FromJSON([]byte(vars))
		d, ok := in.(*Dict)
		if err != nil || !ok {
			d = NewDict()
		}
		text, err := v.Render(d, now)
		if err != nil && !errors.Is(err, ErrRefused) || len(text) > maxText {
			t.Fatalf("%d bytes, %v", len(text), err)
		}
		if utf8.ValidString(source) && err == nil && !utf8.ValidString(text) {
			t.Fatalf("%q is cut inside of a character", text)
		}
		if again, e := v.Render(d, now); again != text || (e == nil) != (err == nil) {
			t.Fatalf("%q, %v, and again %q, %v", text, err, again, e)
		}
	})
}

// What a conversation says is printed as it is.
func FuzzContent(f *testing.F) {
	v, err := Parse("{% for m in messages %}<{{ m.role + ': ' + m['content'] }}>{% endfor %}")
	if err != nil {
		f.Fatal(err)
	}
	f.Add("{{ 7 * 7 }}{% for %}{# x")
	f.Fuzz(func(t *testing.T, content string) {
		m, vars := NewDict(), NewDict()
		m.Set("role", "user")
		m.Set("content", content)
		vars.Set("messages", NewList(m))
		if got, err := v.Render(vars, now); err != nil || got != "<user: "+content+">" {
			t.Fatalf("%q, %v", got, err)
		}
	})
}

// BenchmarkChat renders 50 messages of 300 bytes.
func BenchmarkChat(b *testing.B) {
	for _, name := range []string{"chatml", "qwen3", "llama3", "deepseek"} {
		b.Run(name, func(b *testing.B) {
			v, err := Parse(read(b, "testdata/"+name+".jinja"))
			if err != nil {
				b.Fatal(err)
			}
			var messages []any
			size := 0
			for i := range 50 {
				m := NewDict()
				m.Set("role", []string{"user", "assistant"}[i%2])
				m.Set("content", strings.Repeat(fmt.Sprintf("Turbine %d turns. ", i), 16))
				messages = append(messages, m)
				size += 288
			}
			vars := NewDict()
			vars.Set("messages", NewList(messages...))
			vars.Set("tools", nil)
			vars.Set("bos_token", "<s>")
			vars.Set("add_generation_prompt", true)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if text, err := v.Render(vars, now); err != nil || len(text) < size {
					b.Fatal(len(text), err)
				}
			}
		})
	}
}
