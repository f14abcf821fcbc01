package api

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestRetellWhole(t *testing.T) {
	for _, c := range []struct{ name, body, want string }{
		{
			"text",
			`{"id":"chatcmpl-1","model":"served","choices":[{"index":0,"message":{"role":"assistant","content":"h\u00e9\n","reasoning":"hm"},"finish_reason":"stop","stop_reason":null}],"usage":{"prompt_tokens":11,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}}}`,
			`{"id":"msg_1","type":"message","role":"assistant","model":"asked","content":[{"type":"text","text":"h\u00e9\n"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":3,"cache_creation_input_tokens":0,"cache_read_input_tokens":8,"output_tokens":4}}`,
		},
		{
			"tools",
			`{"id":"x","choices":[{"message":{"content":null,"tool_calls":[{"id":"t1","type":"function","function":{"name":"f","arguments":" {\"a\": 1}"}},{"id":"t2","function":{"name":"g","arguments":""}}]},"finish_reason":"tool_calls"}]}`,
			`{"id":"msg_x","type":"message","role":"assistant","model":"asked","content":[{"type":"tool_use","id":"t1","name":"f","input":{"a": 1}},{"type":"tool_use","id":"t2","name":"g","input":{}}],"stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}}`,
		},
		{
			"a stop sequence",
			`{"id":"x","choices":[{"message":{"content":"a"},"finish_reason":"stop","stop_reason":"END"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}`,
			`{"id":"msg_x","type":"message","role":"assistant","model":"asked","content":[{"type":"text","text":"a"}],"stop_reason":"stop_sequence","stop_sequence":"END","usage":{"input_tokens":1,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":1}}`,
		},
	} {
		r := Retelling{Model: "asked", Prompt: 7}
		got, err := r.Whole(nil, []byte(c.body))
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %v\n got %s\nwant %s", c.name, err, got, c.want)
		}
	}
	for finish, want := range map[string]string{"length": "max_tokens", "content_filter": "refusal", "stop": "end_turn", "abort": "end_turn", "function_call": "tool_use"} {
		r := Retelling{}
		got, err := r.Whole(nil, []byte(`{"choices":[{"message":{},"finish_reason":"`+finish+`"}]}`))
		if err != nil || !strings.Contains(string(got), `"stop_reason":"`+want+`"`) {
			t.Errorf("%s: %s %v", finish, got, err)
		}
	}
	for _, bad := range []string{
		`{"choices":[]}`, `{"choices":[{},{}]}`, `{"choices":7}`, ``,
		`{"choices":[{"message":{"tool_calls":[{"id":"t","function":{"name":"f","arguments":"{"}}]}}]}`,
		`{"choices":[{"message":{"tool_calls":[{"id":"t","function":{"name":"f","arguments":"[]"}}]}}]}`,
	} {
		r := Retelling{}
		if _, err := r.Whole(nil, []byte(bad)); !errors.Is(err, ErrRetell) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// retellStream retells a stream and returns the data of its events, and checks
// that each event's name is its type.
func retellStream(t testing.TB, events ...string) (got []string, err error) {
	t.Helper()
	r := Retelling{Model: "asked", Prompt: 7}
	var out []byte
	for _, e := range events {
		if !strings.HasPrefix(e, ":") {
			e = "data: " + e
		}
		if out, err = r.Event(out, []byte(e+"\n\n")); err != nil {
			return nil, err
		}
	}
	out = r.End(out)
	Events(out, func(ev []byte) {
		name, _, _ := strings.Cut(string(ev), "\n")
		data := string(EventData(ev))
		if data == "" {
			got = append(got, strings.TrimSpace(string(ev)))
			return
		}
		var kind struct{ Type string }
		if err := json.Unmarshal([]byte(data), &kind); err != nil || name != "event: "+kind.Type {
			t.Errorf("event %q: %v", ev, err)
		}
		got = append(got, data)
	})
	return got, nil
}

func delta(rest string) string {
	return `{"id":"chatcmpl-1","model":"served","choices":[{"index":0,` + rest + `}]}`
}

func TestRetellStream(t *testing.T) {
	got, err := retellStream(t,
		": ping",
		delta(`"delta":{"role":"assistant","content":""},"finish_reason":null`),
		delta(`"delta":{"reasoning":"hm"}`),
		delta(`"delta":{"content":"a\u00e9"}`),
		delta(`"delta":{"content":"b","tool_calls":null}`),
		delta(`"delta":{"tool_calls":[{"index":0,"id":"t1","type":"function","function":{"name":"f","arguments":""}}]}`),
		delta(`"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\":"}}]}`),
		delta(`"delta":{"tool_calls":[{"index":0,"function":{"name":null,"arguments":"1}"}},{"index":1,"id":"t2","function":{"name":"g","arguments":"{}"}}]}`),
		delta(`"delta":{},"finish_reason":"tool_calls"`),
		`{"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}}}`,
		"[DONE]",
	)
	want := []string{
		": ping",
		`{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"asked","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}}}`,
		`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`,
		`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a\u00e9"}}`,
		`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"b"}}`,
		`{"type":"content_block_stop","index":0}`,
		`{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"t1","name":"f","input":{}}}`,
		`{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\"a\":"}}`,
		`{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"1}"}}`,
		`{"type":"content_block_stop","index":1}`,
		`{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"t2","name":"g","input":{}}}`,
		`{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{}"}}`,
		`{"type":"content_block_stop","index":2}`,
		`{"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":3,"cache_creation_input_tokens":0,"cache_read_input_tokens":8,"output_tokens":4}}`,
		`{"type":"message_stop"}`,
	}
	if err != nil || strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%v\n got %s\nwant %s", err, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRetellStreamWithoutUsageOrDone(t *testing.T) {
	got, err := retellStream(t, delta(`"delta":{"content":"a"}`), delta(`"delta":{"content":"b"},"finish_reason":"stop","stop_reason":"X"`))
	if err != nil || len(got) != 7 {
		t.Fatalf("%v %q", err, got)
	}
	if want := `{"type":"message_delta","delta":{"stop_reason":"stop_sequence","stop_sequence":"X"},"usage":{"input_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":2}}`; got[5] != want {
		t.Errorf("%s", got[5])
	}
}

func TestRetellStreamRefusesWhatItCannotSay(t *testing.T) {
	call := func(index, rest string) string {
		return delta(`"delta":{"tool_calls":[{"index":` + index + rest + `}]}`)
	}
	begin := `,"id":"t","function":{"name":"f","arguments":"{}"}`
	for name, events := range map[string][]string{
		"a call without a name":        {call("0", `,"id":"t","function":{"arguments":"{}"}`)},
		"a call without an id":         {call("0", `,"function":{"name":"f"}`)},
		"a call that goes on too late": {call("0", begin), call("1", begin), call("0", `,"function":{"arguments":"x"}`)},
	} {
		if _, err := retellStream(t, events...); !errors.Is(err, ErrRetell) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRetellingTextAllocatesNothing(t *testing.T) {
	r := Retelling{Model: "asked"}
	ev := []byte("data: " + delta(`"delta":{"content":" word"},"finish_reason":null`) + "\n\n")
	buf := make([]byte, 0, 4096)
	step := func() {
		var err error
		if buf, err = r.Event(buf[:0], ev); err != nil {
			t.Fatal(err)
		}
	}
	step()
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
}

// FuzzRetell holds that whatever an engine streams, what is told is a stream of
// well-formed events: blocks open and close in order, and the message ends once.
func FuzzRetell(f *testing.F) {
	f.Add(delta(`"delta":{"content":"a"}`), delta(`"delta":{"tool_calls":[{"index":0,"id":"t","function":{"name":"f","arguments":"{"}}]}`), delta(`"delta":{},"finish_reason":"stop"`))
	f.Fuzz(func(t *testing.T, a, b, c string) {
		for _, e := range []string{a, b, c} {
			if ch := ReadChunk([]byte("data: " + e + "\n\n")); ch.Garbage || ch.Error || strings.ContainsAny(e, "\r\n") {
				return // never reaches the retelling
			}
		}
		got, err := retellStream(t, a, b, c, "[DONE]")
		if err != nil || len(got) == 0 {
			return
		}
		open, next := -1, 0
		for i, data := range got {
			var e struct {
				Type  string
				Index int
			}
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatalf("%s: %v", data, err)
			}
			ok := true
			switch e.Type {
			case "message_start":
				ok = i == 0
			case "content_block_start":
				ok, open = open < 0 && e.Index == next, e.Index
			case "content_block_delta":
				ok = open == e.Index
			case "content_block_stop":
				ok, open, next = open == e.Index, -1, next+1
			case "message_delta":
				ok = open < 0 && i == len(got)-2
			case "message_stop":
				ok = i == len(got)-1
			}
			if !ok {
				t.Fatalf("event %d of %q is out of order", i, got)
			}
		}
	})
}
