package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDeclared(t *testing.T) {
	text := strings.Repeat("x", 1000)
	for name, c := range map[string]struct {
		kind    Kind
		body    string
		session string
		life    time.Duration
		part    [2]float64
	}{
		"nothing":   {Chat, `"messages":[]`, "", 0, [2]float64{1, 1}},
		"key":       {Chat, `"messages":[],"prompt_cache_key":"s-1"`, "s-1", 5 * time.Minute, [2]float64{1, 1}},
		"a day":     {Responses, `"input":"x","prompt_cache_key":"s","prompt_cache_retention":"24h"`, "s", 24 * time.Hour, [2]float64{1, 1}},
		"in memory": {Chat, `"messages":[],"prompt_cache_retention":"in_memory"`, "", 0, [2]float64{1, 1}},
		"no string": {Chat, `"messages":[],"prompt_cache_key":7,"prompt_cache_retention":{}`, "", 0, [2]float64{1, 1}},
		"too long":  {Chat, `"messages":[],"prompt_cache_key":"` + text + `"`, "", 0, [2]float64{1, 1}},
		"other API": {Embeddings, `"input":"x","prompt_cache_key":"s"`, "", 0, [2]float64{1, 1}},
		"half": {
			Messages, `"system":[{"type":"text","text":"` + text + `","cache_control":{"type":"ephemeral"}}],"messages":[{"role":"user","content":"` + text + `"}]`,
			"", 5 * time.Minute,
			[2]float64{0.45, 0.55},
		},
		"most, for an hour": {
			Messages, `"messages":[{"role":"user","content":[{"type":"text","text":"` + text + `","cache_control":{"type":"ephemeral","ttl":"1h"}}]},{"role":"user","content":"x"}],` +
				`"system":"` + text + `"`, "", time.Hour, [2]float64{0.9, 1},
		},
		"only tools": {Messages, `"tools":[{"name":"t","cache_control":{"type":"ephemeral"}}],"messages":[{"role":"user","content":"x"}]`, "", 5 * time.Minute, [2]float64{0, 0}},
		"automatic":  {Messages, `"cache_control":{"type":"ephemeral"},"messages":[{"role":"user","content":"x"}]`, "", 5 * time.Minute, [2]float64{1, 1}},
		"taken back": {Messages, `"messages":[{"role":"user","content":[{"type":"text","text":"x","cache_control":null}]}]`, "", 0, [2]float64{1, 1}},
	} {
		r, err := Scan([]byte(`{"model":"m",`+c.body+`}`), c.kind)
		d := r.Declared
		if err != nil || d.Session != c.session || d.Life != c.life || d.Part < c.part[0] || d.Part > c.part[1] || d.Keeps() != (c.life > 0) {
			t.Errorf("%s: %v: %+v", name, err, d)
		}
	}
}

func TestReplay(t *testing.T) {
	for _, c := range []struct {
		kind      Kind
		body, out string
	}{
		{Chat, `{"model":"m","stream":true,"stream_options":{"include_usage":true},"n":2,"messages":[{"role":"user","content":"<é>"}],"tools":[1]}`, `{"model":"m","messages":[{"role":"user","content":"<é>"}],"tools":[1],"max_tokens":1,"stream":false}`},
		{Chat, `{"messages":[],"max_completion_tokens":9,"max_tokens":9}`, `{"messages":[],"max_completion_tokens":1,"stream":false}`},
		{Completion, `{"prompt":"x","echo":true,"max_tokens":0}`, `{"prompt":"x","max_tokens":1,"stream":false}`},
		{Responses, `{"input":"x","store":true}`, `{"input":"x","max_output_tokens":1,"store":false,"stream":false}`},
		{Messages, `{"messages":[],"system":"s","max_tokens":100}`, `{"messages":[],"system":"s","max_tokens":1,"stream":false}`},
	} {
		out, err := Replay([]byte(c.body), c.kind)
		var got, want map[string]any
		if err != nil || json.Unmarshal(out, &got) != nil || json.Unmarshal([]byte(c.out), &want) != nil {
			t.Fatalf("%s: %s, %v", c.body, out, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", c.body, diff)
		}
	}
	for _, k := range []Kind{Embeddings, Rerank, Other} {
		if _, err := Replay([]byte(`{}`), k); err == nil {
			t.Errorf("kind %d can be replayed", k)
		}
	}
}
