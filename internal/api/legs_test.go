package api

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestSplice(t *testing.T) {
	put := []Field{{"a", []byte("1")}, {"kv", []byte(`{"ids":[[1,2]],"big":12345678901234567890}`)}}
	for _, x := range []struct{ in, want string }{
		{`{}`, `{"a":1,"kv":{"ids":[[1,2]],"big":12345678901234567890}}`},
		{`{"m":"x"}`, `{"a":1,"kv":{"ids":[[1,2]],"big":12345678901234567890},"m":"x"}`},
		{` {"a": 7 , "n" : 1.50, "drop": [1] } `, ` {"a":1,"kv":{"ids":[[1,2]],"big":12345678901234567890},"n" : 1.50} `},
		{`{"drop":{"x":[]},"kv":null}`, `{"a":1,"kv":{"ids":[[1,2]],"big":12345678901234567890}}`},
		{`{"\u0061":2,"b":3}`, `{"a":1,"kv":{"ids":[[1,2]],"big":12345678901234567890},"b":3}`},
	} {
		got, err := Splice([]byte(x.in), put, "drop")
		if err != nil || string(got) != x.want {
			t.Errorf("%s\nbecame %s, %v\n  want %s", x.in, got, err, x.want)
		}
	}
	if _, err := Splice([]byte(`{"a":`), put); err == nil {
		t.Error("half a body is taken")
	}
}

func TestToPrefill(t *testing.T) {
	got, err := Chat.ToPrefill([]byte(`{"model":"m","max_completion_tokens":500,"stream":true,"stream_options":{"include_usage":true},"stop":["."],"messages":[]}`), Field{"kv_transfer_params", []byte(`{"do_remote_decode":true}`)})
	want := `{"stream":false,"max_tokens":1,"max_completion_tokens":1,"ignore_eos":true,"kv_transfer_params":{"do_remote_decode":true},"model":"m","messages":[]}`
	if err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
	if got, err := Responses.ToPrefill([]byte(`{"input":"x","max_output_tokens":9}`)); err != nil || string(got) != `{"stream":false,"max_output_tokens":1,"input":"x"}` {
		t.Errorf("%s, %v", got, err)
	}
	if string(Member(got, "model")) != `"m"` || Member(got, "stream_options") != nil {
		t.Errorf("members of %s", got)
	}
}

func FuzzSplice(f *testing.F) {
	f.Add([]byte(`{"a":1,"b":[{"c":null}],"drop":"x"}`))
	f.Add([]byte(` { "stream" : true , "max_tokens":5 } `))
	f.Fuzz(func(t *testing.T, body []byte) {
		var before map[string]json.RawMessage
		valid := json.Unmarshal(body, &before) == nil && before != nil
		got, err := Splice(body, []Field{{"put", []byte(`[1]`)}}, "drop")
		if err != nil || !valid {
			return
		}
		var after map[string]json.RawMessage
		if err := json.Unmarshal(got, &after); err != nil {
			t.Fatalf("%q became %q: %v", body, got, err)
		}
		if string(after["put"]) != "[1]" || after["drop"] != nil {
			t.Fatalf("%q became %q", body, got)
		}
		for name, raw := range before {
			if name != "put" && name != "drop" && !bytes.Equal(raw, after[name]) {
				t.Fatalf("%q changed from %q to %q", name, raw, after[name])
			}
		}
	})
}

func TestSetCached(t *testing.T) {
	for _, x := range []struct{ in, want string }{
		{`{"id":"a","usage":{"prompt_tokens":9,"prompt_tokens_details":{"audio":0,"cached_tokens": 8},"total":10},"z":1}`, `{"id":"a","usage":{"prompt_tokens":9,"prompt_tokens_details":{"audio":0,"cached_tokens": 3},"total":10},"z":1}`},
		{`{"usage":{"input_tokens_details":{"cached_tokens":8}}}`, `{"usage":{"input_tokens_details":{"cached_tokens":3}}}`},
		{`{"usage":null}`, `{"usage":null}`},
		{`{"usage":{"prompt_tokens":9,"prompt_tokens_details":null}}`, `{"usage":{"prompt_tokens":9,"prompt_tokens_details":null}}`},
		{`{"choices":[]}`, `{"choices":[]}`},
	} {
		if got := string(SetCached(nil, []byte(x.in), 3)); got != x.want {
			t.Errorf("%s\nbecame %s", x.in, got)
		}
		if got := string(SetCachedEvent(nil, []byte("data: "+x.in+"\n\n"), 3)); got != "data: "+x.want+"\n\n" {
			t.Errorf("as an event %s\nbecame %s", x.in, got)
		}
	}
	for _, plain := range []string{": comment\n\n", "data: [DONE]\n\n", ""} {
		if got := string(SetCachedEvent(nil, []byte(plain), 3)); got != plain {
			t.Errorf("%q became %q", plain, got)
		}
	}
}
