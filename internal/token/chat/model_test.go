package chat

import (
	"errors"
	"strings"
	"testing"
)

func TestReadsModels(t *testing.T) {
	one := `{"bos_token":{"content":"<s>","lstrip":false},"eos_token":"</s>","pad_token":null,"x":[1e3],"chat_template":`
	for _, c := range []struct {
		name, config, template, tools, want string
	}{
		{"one", one + `"{{ bos_token }}a{{ eos_token }}{{ pad_token is defined }}"}`, "", "null", "<s>a</s>False"},
		{"a file of its own", one + `"a"}`, "{{ bos_token }}b\n", "null", "<s>b"},
		{"no config", "", "{{ bos_token }}c", "null", "c"},
		{"named", one + `[{"name":"tool_use","template":"t"},{"name":"default","template":"d"},{"name":"rag","template":"{% x %}"}]}`, "", "null", "d"},
		{"named, with tools", one + `[{"name":"tool_use","template":"t"},{"name":"default","template":"d"}]}`, "", "[1]", "t"},
		{"one, with tools", one + `"{{ tools }}"}`, "", "[1]", "[1]"},
	} {
		m, err := ReadModel([]byte(c.config), []byte(c.template))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		vars := NewDict()
		tools, err := FromJSON([]byte(c.tools))
		if err != nil {
			t.Fatal(err)
		}
		vars.Set("tools", tools)
		if got, err := m.Render(vars, now); err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", c.name, got, err, c.want)
		}
	}
	for config, problem := range map[string]string{
		"{": "EOF", "[]": "object", `{"chat_template":1}`: "a number", `{"chat_template":[1]}`: "a number", `{"chat_template":"{% if %}"}`: "value belongs",
		`{"chat_template":[{"name":"default","template":"a"},{"name":"tool_use","template":"{{"}]}`: "",
	} {
		if _, err := ReadModel([]byte(config), nil); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), problem) {
			t.Errorf("%s: %v", config, err)
		}
	}
	for _, config := range []string{"", "{}", `{"chat_template":null}`, `{"chat_template":[{"name":"rag","template":"x"}]}`} {
		if _, err := ReadModel([]byte(config), nil); !errors.Is(err, ErrNone) {
			t.Errorf("%s: %v", config, err)
		}
	}
}
