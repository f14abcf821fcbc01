package app

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadsModelFiles(t *testing.T) {
	tokenizer, err := os.ReadFile("../token/testdata/bytes.json")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files    map[string]string // beside the tokenizer
		template string
		problem  string // with the file it is in
	}{
		"alone":              {},
		"config":             {files: map[string]string{"tokenizer_config.json": `{"chat_template":"{{ messages }}"}`}},
		"template":           {files: map[string]string{"chat_template.jinja": "{{ messages }}"}},
		"not known here":     {files: map[string]string{"chat_template.jinja": "{% include 'x' %}"}},
		"named":              {files: map[string]string{"a.jinja": "x", "chat_template.jinja": "{% include 'x' %}"}, template: "a.jinja"},
		"named, not there":   {template: "a.jinja", problem: "a.jinja: no such file"},
		"named, not read":    {files: map[string]string{"a.jinja": "{% include 'x' %}"}, template: "a.jinja", problem: `a.jinja: chat template: the tag "include"`},
		"config of no JSON":  {files: map[string]string{"tokenizer_config.json": "{", "a.jinja": "x"}, template: "a.jinja", problem: "EOF"},
		"tokenizer not read": {files: map[string]string{"tokenizer.json": "{}"}, problem: "tokenizer.json: "},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write := func(name, content string) {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("tokenizer.json", string(tokenizer))
			for name, content := range c.files {
				write(name, content)
			}
			if c.template != "" {
				c.template = filepath.Join(dir, c.template)
			}
			for _, file := range []string{dir, filepath.Join(dir, "tokenizer.json")} {
				m, err := readModel(file, c.template)
				if c.problem == "" && (err != nil || m == nil) || c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)) {
					t.Errorf("%s: %v, want %q", file, err, c.problem)
				}
			}
		})
	}
	if _, err := readModel(filepath.Join(t.TempDir(), "missing"), ""); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Error(err)
	}
}
