package api

import (
	"fmt"
	"strings"
	"testing"
)

func TestImages(t *testing.T) {
	const a, b = `{"type":"image_url","image_url":{"url":"data:image/png;base64,AAA="}}`, `{"type":"image_url","image_url":{"url":"https://x/y"}}`
	for _, c := range []struct {
		name string
		kind Kind
		body string
		want []string
	}{
		{"chat", Chat, `{"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"an image?"},` + a + `, ` + b + `]},{"role":"user","content":[` + a + `]}]}`, []string{a, b}},
		{"chat, with what else a part says", Chat, `{"messages":[{"content":[{"uuid":"u","type":"image_url","image_url":{"url":"u","detail":"low"}}]}]}`, []string{`{"uuid":"u","type":"image_url","image_url":{"url":"u","detail":"low"}}`}},
		{"responses", Responses, `{"input":[{"role":"user","content":[{"type":"input_image","image_url":"data:image/png;base64,AAA="},{"type":"input_image","file_id":"f"}]},{"type":"message","content":[{"type":"input_image","image_url":"https://x/y"}]}]}`, []string{a, b}},
		{"responses of text", Responses, `{"input":"an image"}`, nil},
		{"messages", Messages, `{"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAA="}},{"type":"tool_result","content":[{"type":"image","source":{"type":"url","url":"https://x/y"}}]}]}]}`, []string{a, b}},
		{"what is none", Chat, `{"image":1,"messages":[{"content":null},{"content":[1,"image",{"type":"image_url"},{"type":"image","source":{}},{}]},3]}`, nil},
		{"a prompt", Completion, `{"prompt":"an image","messages":[{"content":[` + a + `]}]}`, nil},
	} {
		var got []string
		keys := map[string]bool{}
		for _, i := range c.kind.Images([]byte(c.body)) {
			got = append(got, string(i.Part))
			keys[fmt.Sprint(i.Key)] = true
		}
		if strings.Join(got, "\n") != strings.Join(c.want, "\n") || len(keys) != len(got) {
			t.Errorf("%s: %q", c.name, got)
		}
	}
	var many []string
	for i := range 2 * MaxImages {
		many = append(many, fmt.Sprintf(`{"type":"image_url","image_url":{"url":"%d"}}`, i))
	}
	if n := len(Chat.Images([]byte(`{"messages":[{"content":[` + strings.Join(many, ",") + `]}]}`))); n != MaxImages {
		t.Errorf("%d images", n)
	}
}

func TestEncodeImage(t *testing.T) {
	i := Image{Part: []byte(`{"type":"image_url","image_url":{"url":"u"}}`)}
	got := string(EncodeImage([]byte(`{"stream":true,"model":"m","mm_processor_kwargs":{"max":9},"messages":[]}`), i))
	want := `{"model":"m","mm_processor_kwargs":{"max":9},"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"u"}}]}],"max_tokens":1,"stream":false}`
	if got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

func TestJoinObjects(t *testing.T) {
	got := string(JoinObjects([][]byte{[]byte(` {"a":1, "b":{}} `), []byte(`{ }`), []byte(`{"c":2}`)}))
	if want := `{"a":1, "b":{},"c":2}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
