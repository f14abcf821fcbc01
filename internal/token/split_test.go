package token

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// TestSplit compares the scanners with what Python's regex module, which has
// lookahead, makes of the patterns themselves.
func TestSplit(t *testing.T) {
	var cases []struct {
		Pattern string     `json:"pattern"`
		Pieces  [][]string `json:"pieces"`
	}
	if err := json.Unmarshal(content(t, "testdata/splits.json"), &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) != len(styles) {
		t.Errorf("%d patterns are tested, %d are known", len(cases), len(styles))
	}
	for _, c := range cases {
		style, ok := styles[c.Pattern]
		if !ok {
			t.Errorf("%s is not known", c.Pattern)
			continue
		}
		p := newSplitter(style)
		for _, want := range c.Pieces {
			var got []string
			for s := strings.Join(want, ""); s != ""; {
				n := p.next(s)
				got = append(got, s[:n])
				s = s[n:]
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", c.Pattern, got, want)
			}
		}
	}
}

func BenchmarkSplit(b *testing.B) {
	text := strings.Repeat("The quick brown fox's 12 tests, größer als 日本 (x += 1);\n", 100)
	for name, style := range map[string]style{"gpt2": {gpt2: true}, "llama3": {begin: true, digits: 3}, "o200k": {cased: true, end: true, slash: true, digits: 3}} {
		p := newSplitter(style)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				for s := text; s != ""; {
					s = s[p.next(s):]
				}
			}
		})
	}
}
