package chat

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// at is the time in which golden.py renders.
var now = time.Date(2026, 3, 5, 7, 8, 9, 0, time.UTC)

// golden is a case of a file that golden.py has written.
type golden struct {
	file, name, source, vars, want string
	refused                        bool
}

// goldens reads all cases.
func goldens(tb testing.TB) []golden {
	tb.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		tb.Fatal(files, err)
	}
	var out []golden
	for _, file := range files {
		shared, err := os.ReadFile(strings.TrimSuffix(file, ".txt") + ".jinja")
		if err != nil && !os.IsNotExist(err) {
			tb.Fatal(err)
		}
		parts := strings.Split("\n"+strings.TrimSuffix(read(tb, file), "\n"), "\n=== ")
		_, common, _ := strings.Cut(parts[0], "all: ")
		for _, part := range parts[1:] {
			name, rest, _ := strings.Cut(part, "\n")
			g := golden{file: filepath.Base(file), name: name, vars: common}
			before, want, ok := strings.Cut("\n"+rest, "\n--- want\n")
			if g.want = want; !ok {
				before, _, g.refused = strings.Cut("\n"+rest, "\n--- refused")
			}
			if source, vars, ok := strings.Cut(before, "\n--- vars\n"); ok {
				before, g.vars = source, vars
			}
			if g.source = strings.TrimPrefix(before, "\n"); len(shared) > 0 {
				g.source = string(shared)
			}
			out = append(out, g)
		}
	}
	return out
}

func read(tb testing.TB, file string) string {
	tb.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

func (g *golden) render(tb testing.TB) (string, error) {
	tb.Helper()
	t, err := Parse(g.source)
	if err != nil {
		return "", err
	}
	vars, err := FromJSON([]byte(g.vars))
	if err != nil {
		tb.Fatal(g.name, err)
	}
	return t.Render(vars.(*Dict), now)
}

// left are sources, or parts of them, that Jinja renders and this package
// refuses.
var left = []string{
	// Whole features.
	"recursive", "{% call", "{% filter", "| upper %}", "{% block", "varargs", "self", "loop.cycle",
	// Numbers in other notations, large ones, and keys that are numbers.
	"1_000", "0x1f", "0b11", "0o17", `\101`, "12345678 * 10", "// 0.5", "7.5 %", "{1:",
	// Letters whose other case takes a table.
	"äÖß", "İ", "'ß'", "ǆ",
	// What is of little use in prompts.
	"[missing]", "[1,2] <", "isdigit", "'%s", "[1] * 2", "sameas", "__class__", "%-d", "l | max", "l | min", "l | sum", "| escape", "| e }}",
	"| float", "round", "wordcount", "truncate", "center", "groupby", "batch", "| slice", "| attr", "urlencode", "striptags", "pprint",
}

func TestRendersWhatJinjaRenders(t *testing.T) {
	for _, g := range goldens(t) {
		got, err := g.render(t)
		refusal := false
		for _, l := range left {
			refusal = refusal || strings.Contains(g.source, l)
		}
		switch {
		case g.refused && err == nil:
			t.Errorf("%s %s: %s\nis refused by Jinja, and rendered as %q", g.file, g.name, g.source, got)
		case err != nil && !g.refused && !refusal:
			t.Errorf("%s %s: %s\n%v\nwant %q", g.file, g.name, g.source, err, g.want)
		case err == nil && refusal:
			t.Errorf("%s %s: %s\nis no longer left out", g.file, g.name, g.source)
		case err == nil && got != g.want:
			t.Errorf("%s %s: %s\ngot  %q\nwant %q", g.file, g.name, g.source, got, g.want)
		}
	}
}
