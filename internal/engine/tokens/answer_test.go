package tokens

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func TestReadAnswer(t *testing.T) {
	for text, want := range map[string][]uint32{
		`{"max_model_len":8192,"count":3,"tokens":[487892895,1690122482,745738054],"token_strs":null}`: {487892895, 1690122482, 745738054},
		`{"token_ids":[1, 2 ,4294967295]}`:                                 {1, 2, 4294967295},
		`[{"request_id":"a\"[","x":{"y":["]"]},"token_ids":[5],"z":-1.5}]`: {5},
		`{"token_ids":[]}`: {},
		`{"token_ids":[7],"features":{"mm_hashes":{},"mm_placeholders":{}}}`: {7},
	} {
		a := answer{most: 10}
		if err := a.read([]byte(text)); err != nil || !slices.Equal(a.tokens, want) {
			t.Errorf("%s: %v, %v", text, a.tokens, err)
		}
	}
	for _, text := range []string{
		``, `{}`, `[]`, `null`, `{"tokens":null}`, `{"token_ids":[1,]}`, `{"token_ids":[-1]}`, `{"token_ids":[1.5]}`, `{"token_ids":["1"]}`,
		`{"token_ids":[4294967296]}`, `{"token_ids":[99999999999999999999]}`, `{"token_ids":[1`, `{"token_ids":[1]`, `{"token_ids":[1]} x`,
		`[{"token_ids":[1]},{"token_ids":[2]}]`, `{"token_ids":[1],"tokens":[1]}`, `{"count":2,"token_ids":[1]}`, `{"count":x,"token_ids":[1]}`,
		`{"token_ids":[1,2,3,4,5,6,7,8,9,10,11]}`,
		`{"token_ids":[1],"features":{"mm_hashes":{"image":["a"]},"mm_placeholders":{"image":[]}}}`,
		`{"token_ids":[1],"features":{"mm_hashes":{"image":["a"]},"mm_placeholders":{"image":[{"offset":1,"length":1}]}}}`,
		`{"token_ids":[1],"features":{"mm_hashes":{"image":["a"]},"mm_placeholders":{"image":[{"offset":-1,"length":1}]}}}`,
		`{"token_ids":[1],"features":[1]}`, strings.Repeat("[", 1000),
	} {
		a := answer{most: 10}
		if err := a.read([]byte(text)); err == nil {
			t.Errorf("%s: read as %v", text, a.tokens)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`[{"token_ids":[5],"features":{"mm_hashes":{"image":["a"]},"mm_placeholders":{"image":[{"offset":0,"length":1}]}}}]`))
	f.Add([]byte(`{"count":2,"tokens":[4294967295, 0],"token_strs":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a := answer{most: 100}
		err := a.read(b)
		if len(a.tokens) > 100 || len(a.media) > len(b) {
			t.Fatalf("%d tokens, %d media", len(a.tokens), len(a.media))
		}
		if err != nil || !json.Valid(b) {
			return
		}
		// Names with escapes are other names here; JSON has them all.
		type object struct {
			IDs    []uint32 `json:"token_ids"`
			Tokens []uint32 `json:"tokens"`
		}
		var o object
		if list := []object{}; json.Unmarshal(b, &list) == nil && len(list) == 1 {
			o = list[0]
		} else if json.Unmarshal(b, &o) != nil {
			t.Fatalf("%q is no answer, and was read", b)
		}
		if !slices.Equal(a.tokens, o.IDs) && !slices.Equal(a.tokens, o.Tokens) {
			t.Fatalf("%v, want %v or %v", a.tokens, o.IDs, o.Tokens)
		}
	})
}

// Whatever a body says, reading it ends, and what is hashed is bounded.
func FuzzPrompt(f *testing.F) {
	f.Add([]byte(`{"model":"m","messages":[{"role":"user","content":"a\\\""}],"tool_choice":"none"}`))
	f.Add([]byte(`{"prompt":[[1,2]],"x":{"y":[}`))
	s := New(Options{})
	f.Cleanup(s.Close)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, raw := range [][]byte{b, b[len(b)/2:]} {
			q := Query{Body: b, Prompt: raw, Kind: 1}
			p, reason := read(&q)
			if reason != ReasonNone {
				continue
			}
			if n := len(s.bounds(nil, s.heads(&q, &p), p.raw)); n == 0 || n > maxBounds {
				t.Fatalf("%d bounds", n)
			}
		}
	})
}
