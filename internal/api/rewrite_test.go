package api

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func TestRewriteTouchesOnlyWhatChanges(t *testing.T) {
	for _, c := range []struct{ name, body, model, salt, want string }{
		{"nothing", `{ "model" : "m", "prompt":"x" }`, "", "", `{ "model" : "m", "prompt":"x" }`},
		{"model", "{\"prompt\":\"x\",\n \"model\" :  \"m\" }\r\n", "n", "", "{\"prompt\":\"x\",\n \"model\" :  \"n\" }\r\n"},
		{"the last model", `{"model":"a","model":"m","prompt":"x"}`, "n", "", `{"model":"a","model":"n","prompt":"x"}`},
		{"a model that needs escapes", `{"model":"m","prompt":"x"}`, "a\"\\\n\xff<é", "", "{\"model\":\"a\\\"\\\\\\u000a\uFFFD<é\",\"prompt\":\"x\"}"},
		{"salt", `{ "model":"m","prompt":"x"}`, "", "s", `{"cache_salt":"s", "model":"m","prompt":"x"}`},
		{"salt there", `{"model":"m","cache_salt": null ,"prompt":"x"}`, "", "s", `{"model":"m","cache_salt": "s" ,"prompt":"x"}`},
		{"control first", `{ "kv_transfer_params" : {"a":1} , "model":"m","prompt":"x"}`, "", "", `{ "model":"m","prompt":"x"}`},
		{"control last", `{"model":"m","prompt":"x" , "kv_transfer_params":null }`, "", "", `{"model":"m","prompt":"x" }`},
		{"control between", `{"model":"m","bootstrap_host":"h","prompt":"x"}`, "", "", `{"model":"m","prompt":"x"}`},
		{"controls in a row", `{"bootstrap_host":"h","bootstrap_port":1,"model":"m","bootstrap_room":2,"kv_transfer_params":{},"prompt":"x"}`, "", "", `{"model":"m","prompt":"x"}`},
		{"control behind an escape", `{"kv_transfer\u005fparams":{},"model":"m","prompt":"x"}`, "", "", `{"model":"m","prompt":"x"}`},
		{"control within", `{"model":"m","prompt":"x","extra":{"kv_transfer_params":1}}`, "", "", `{"model":"m","prompt":"x","extra":{"kv_transfer_params":1}}`},
		{"encoded images", `{"ec_transfer_params":{"h":{"peer_host":"evil"}},"model":"m","prompt":"x"}`, "", "", `{"model":"m","prompt":"x"}`},
		{"ranks", `{"data_parallel_rank":3,"model":"m","routed_dp_rank":1,"prompt":"x","disaggregated_params":{}}`, "", "", `{"model":"m","prompt":"x"}`},
		{"by their prefixes", `{"model":"m","remote_host":"h","prompt":"x","bootstrap_anything":1}`, "", "", `{"model":"m","prompt":"x"}`},
		{"in what engines take apart", `{"model":"m","vllm_xargs":{"kv_transfer_params":"{}","a":1},"prompt":"x","sampling_params":{"n":1,"extra_args":{"kv_transfer_params":{"remote_host":"h"}},"max":2}}`, "", "", `{"model":"m","vllm_xargs":{"a":1},"prompt":"x","sampling_params":{"n":1,"extra_args":{},"max":2}}`},
		{"in there behind a comma", `{"vllm_xargs":{"a":[{}] , "kv_transfer\u005fparams" : 1 },"model":"m","prompt":"x"}`, "", "", `{"vllm_xargs":{"a":[{}] },"model":"m","prompt":"x"}`},
		{"all at once", `{"kv_transfer_params":1,"model":"m","kv_transfer_params":2,"prompt":"x"}`, "n", "s", `{"cache_salt":"s","model":"n","prompt":"x"}`},
	} {
		r, err := Scan([]byte(c.body), Completion)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := r.Rewrite([]byte(c.body), Changes{Model: c.model, Salt: c.salt}); string(got) != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// FuzzRewrite holds that a rewritten body is what decoding, changing and
// comparing says it should be.
func FuzzRewrite(f *testing.F) {
	f.Add([]byte(`{"kv_transfer_params":1,"model":"m","cache_salt":null,"prompt":"x","bootstrap_room":[]}`), "n", "s")
	f.Add([]byte(`{ "bootstrap_host" : "h" , "model" : "m" }`), "", "")
	f.Add([]byte(`{"sampling_params":{"extra_args":{"remote_host":1,"a":{}},"vllm_xargs":{"kv_transfer_params":2}},"model":"m"}`), "", "s")
	f.Fuzz(func(t *testing.T, body []byte, model, salt string) {
		r, err := Scan(body, Other)
		if err != nil {
			return
		}
		out := r.Rewrite(body, Changes{Model: model, Salt: salt})
		var was, is map[string]any
		if json.Unmarshal(body, &was) != nil {
			t.Fatal("scanned what is not JSON")
		}
		if err := json.Unmarshal(out, &is); err != nil {
			t.Fatalf("%s became %s: %v", body, out, err)
		}
		withoutControls(was)
		if model != "" {
			was["model"] = strings.ToValidUTF8(model, "\uFFFD")
		}
		if salt != "" {
			was["cache_salt"] = strings.ToValidUTF8(salt, "\uFFFD")
		}
		delete(was, "model") // runs of bad bytes are replaced one by one
		delete(is, "model")
		if salt != "" {
			delete(was, "cache_salt")
			delete(is, "cache_salt")
		}
		if !reflect.DeepEqual(was, is) {
			t.Fatalf("%s became %s", body, out)
		}
	})
}

// withoutControls takes out what clients may not set.
func withoutControls(m map[string]any) {
	for k, v := range m {
		inner, object := v.(map[string]any)
		switch {
		case isControl([]byte(k)):
			delete(m, k)
		case object && carries([]byte(k)):
			withoutControls(inner)
		}
	}
}

func TestRename(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{`{"id":1, "model" : "m" ,"x":{"model":"m"}}`, `{"id":1, "model" : "al\"ias" ,"x":{"model":"m"}}`},
		{`{"model":"\u006d"}`, `{"model":"al\"ias"}`},
		{`{"model":"other"}`, `{"model":"other"}`},
		{`{"model":null,"response":{"a":1,"model":"m"},"message":{"model":"m"}}`, `{"model":null,"response":{"a":1,"model":"al\"ias"},"message":{"model":"al\"ias"}}`},
		{`[{"model":"m"}]`, `[{"model":"m"}]`},
		{`not JSON "model":"m"`, `not JSON "model":"m"`},
	} {
		if got := string(Rename(nil, []byte(c.body), "m", `al"ias`)); got != c.want {
			t.Errorf("%s: %s", c.body, got)
		}
	}
}

func TestRenameEvent(t *testing.T) {
	for _, c := range []struct{ event, want string }{
		{"data: {\"model\":\"m\"}\n\n", "data: {\"model\":\"n\"}\n\n"},
		{"event: x\r\ndata:{\"response\":{\"model\":\"m\"}} \r\nid: 1\r\n\r\n", "event: x\r\ndata:{\"response\":{\"model\":\"n\"}} \r\nid: 1\r\n\r\n"},
		{": ping\n\n", ": ping\n\n"},
		{"data: [DONE]\n\n", "data: [DONE]\n\n"},
		{"event: x\ndata: {\"a\":1,\ndata: \"model\":\"m\"}\n\n", "event: x\ndata:{\"a\":1,\ndata: \"model\":\"n\"}\n\n"},
	} {
		got := string(RenameEvent(nil, []byte(c.event), "m", "n"))
		if got != c.want {
			t.Errorf("%q: %q, want %q", c.event, got, c.want)
		}
	}
	ev, buf := []byte("data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[]}\n\n"), make([]byte, 0, 100)
	if n := testing.AllocsPerRun(100, func() { buf = RenameEvent(buf[:0], ev, "m", "a longer name") }); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
}

// FuzzRename holds that renaming there and back changes nothing, and that only
// names change.
func FuzzRename(f *testing.F) {
	f.Add([]byte("data: {\"model\":\"m\",\"response\":{\"model\":\"m\"}}\n\n"))
	f.Fuzz(func(t *testing.T, event []byte) {
		there := RenameEvent(nil, event, "m", "\x01unused\x01")
		if bytes.Contains(event, []byte("data")) && bytes.Count(event, []byte("data:")) > 1 {
			return // lines are joined and cut again, which may move white space
		}
		if back := RenameEvent(nil, there, "\x01unused\x01", "m"); !bytes.Equal(back, event) && !bytes.Contains(event, []byte(`\u00`)) {
			t.Fatalf("%q became %q and %q", event, there, back)
		}
	})
}

func TestSeveral(t *testing.T) {
	for _, c := range []struct {
		body string
		kind Kind
		want bool
	}{
		{`{"model":"m","prompt":"a"}`, Completion, false},
		{`{"model":"m","prompt":["a"]}`, Completion, false},
		{`{"model":"m","prompt":["a, \"b\"]"]}`, Completion, false},
		{`{"model":"m","prompt":["a","b"]}`, Completion, true},
		{`{"model":"m","prompt":[1,2,3]}`, Completion, false},
		{`{"model":"m","prompt":[[1,2,3]]}`, Completion, false},
		{`{"model":"m","prompt":[[1,2],[3]]}`, Completion, true},
		{`{"model":"m","prompt":"a","n":1,"best_of":1}`, Completion, false},
		{`{"model":"m","prompt":"a","n":2}`, Completion, true},
		{`{"model":"m","prompt":"a","best_of":3}`, Completion, true},
		{`{"model":"m","n":2,"messages":[]}`, Chat, true},
		{`{"model":"m","n":null,"messages":[{"content":["x","y"]},{"content":[{"text":"a"},{"text":"b"}]}]}`, Chat, false},
	} {
		r, err := Scan([]byte(c.body), c.kind)
		if err != nil || r.Several() != c.want {
			t.Errorf("%s: %v, %v; want %v", c.body, r.Several(), err, c.want)
		}
	}
}
