package token

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/stat"
)

// The two vocabularies in testdata were trained on a few lines of text, by hand
// of the textbook's algorithm: one of bytes, whose ids below 256 are the bytes,
// and one of characters.
const (
	bytesFile = "testdata/bytes.json"
	charsFile = "testdata/chars.json"
)

func content(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// edited returns a file after edit has changed it.
func edited(t testing.TB, path string, edit func(f map[string]any)) []byte {
	t.Helper()
	var f map[string]any
	if err := json.Unmarshal(content(t, path), &f); err != nil {
		t.Fatal(err)
	}
	edit(f)
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustRead(t testing.TB, data []byte) *Tokenizer {
	t.Helper()
	tok, err := Read(data)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// value parses a part of a file.
func value(s string) any {
	var v any
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		panic(err)
	}
	return v
}

// metaspaced is the vocabulary of characters the way newer files use it.
func metaspaced(t testing.TB, scheme, split string) []byte {
	return edited(t, charsFile, func(f map[string]any) {
		f["normalizer"] = nil
		f["pre_tokenizer"] = value(`{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "` + scheme + `", "split": ` + split + `}`)
	})
}

func TestEncode(t *testing.T) {
	whole := edited(t, bytesFile, func(f map[string]any) {
		m := f["model"].(map[string]any)
		m["ignore_merges"] = true
		m["merges"] = []any{}
	})
	left := edited(t, bytesFile, func(f map[string]any) {
		f["added_tokens"] = value(`[{"id": 355, "content": "<m>", "lstrip": true}]`)
		f["post_processor"] = nil
	})
	gemma := edited(t, charsFile, func(f map[string]any) {
		f["normalizer"] = value(`{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}`)
		f["pre_tokenizer"] = value(`{"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}`)
	})
	for _, c := range []struct {
		name string
		file []byte
		text string
		want []uint32
	}{
		{"bytes", content(t, bytesFile), "hello world", []uint32{270, 353}},
		{"bytes of several characters", content(t, bytesFile), "the cats' größe 日本", []uint32{257, 342, 39, 334, 284}},
		{"digits by three", content(t, bytesFile), "  it's 12345\n", []uint32{32, 287, 291, 32, 292, 51, 52, 53, 10}},
		{"empty", content(t, bytesFile), "", nil},
		{"special tokens", content(t, bytesFile), "<|begin|>hello<|end|>", []uint32{355, 270, 356}},
		{"the longest one", content(t, bytesFile), "<|end|>of<|end|>", []uint32{357, 356}},
		{"white space behind", content(t, bytesFile), "<|user|> \n hello", []uint32{358, 270}},
		{"white space before", left, "hello \u3000\n<m>hello <m>", []uint32{270, 355, 270, 355}},
		{"added and not special", content(t, bytesFile), "<think>hello", []uint32{359, 270}},
		{"words before merges", whole, "hello!", []uint32{270, '!'}},
		{"no word", whole, "hellp", []uint32{'h', 'e', 'l', 'l', 'p'}},
		{"characters", content(t, charsFile), "hello world", []uint32{279, 267, 322, 381, 375}},
		{"characters not known", content(t, charsFile), "  it's 12345\n", []uint32{341, 347, 333, 293, 13}},
		{"known characters of several bytes", content(t, charsFile), "the cats' größe 日本", []uint32{263, 345, 364, 399, 315, 376, 288}},
		{"every part begins with a space", content(t, charsFile), "<s>hello</s>hello", []uint32{1, 279, 2, 279}},
		{"the text begins with a space", metaspaced(t, "first", "false"), "hello<s>hello world", []uint32{279, 1, 273, 267, 322, 381, 375}},
		{"or has one", metaspaced(t, "first", "false"), " hello", []uint32{279}},
		{"always", metaspaced(t, "always", "false"), "<s>hello", []uint32{1, 279}},
		{"never", metaspaced(t, "never", "false"), "hello hello", []uint32{273, 279}},
		{"words of their own", metaspaced(t, "always", "true"), "hello  hello", []uint32{279, 399, 279}},
		{"Gemma", gemma, "hello hello", []uint32{273, 279}},
	} {
		tok := mustRead(t, c.file)
		got, ok := tok.Encoder().Encode(nil, c.text)
		if !ok || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v %v, want %v", c.name, got, ok, c.want)
		}
	}
}

func TestAround(t *testing.T) {
	before, after := mustRead(t, content(t, bytesFile)).Around()
	if !slices.Equal(before, []uint32{355}) || len(after) != 0 {
		t.Errorf("%v, %v", before, after)
	}
}

func TestMergesInBothForms(t *testing.T) {
	pairs := mustRead(t, edited(t, bytesFile, func(f map[string]any) {
		m := f["model"].(map[string]any)
		for i, line := range m["merges"].([]any) {
			left, right, _ := strings.Cut(line.(string), " ")
			m["merges"].([]any)[i] = []string{left, right}
		}
	}))
	if got, _ := pairs.Encoder().Encode(nil, "hello world"); !slices.Equal(got, []uint32{270, 353}) {
		t.Errorf("%v", got)
	}
}

func TestTextThatIsRefused(t *testing.T) {
	e := mustRead(t, content(t, bytesFile)).Encoder()
	for text, want := range map[string]bool{
		"\xff": false, "e\u0301": false, "\u1112\u1161": false, "\u212b": false, "\u0e01\u0e48\u0e48": false,
		"\u00e9": true, "\u0e01\u0e48": true, "\u0915\u094d\u0937": true, "한글 日本 😀": true,
	} {
		got, ok := e.Encode([]uint32{7}, text)
		if ok != want || !ok && len(got) != 1 {
			t.Errorf("%+q: %v, %v", text, got, ok)
		}
	}
}

// alphabet is what random texts are made of: what the vocabularies have merges
// for, and what they do not.
var alphabet = strings.Split("the cat, sat on|hello |request|s|'s|12345|größe|日本|語|é|😀|\n|  |\t|<|<|end|>|<s>|▁|x|HE|/", "|")

func randomText(r *stat.Rand, parts int) string {
	var b strings.Builder
	for range parts {
		b.WriteString(alphabet[r.IntN(len(alphabet))])
	}
	return b.String()
}

func TestDecodeUndoesEncode(t *testing.T) {
	r := stat.NewRand(1, "token")
	for _, path := range []string{bytesFile, charsFile} {
		tok := mustRead(t, content(t, path))
		e := tok.Encoder()
		for range 2000 {
			text := randomText(r, 1+r.IntN(40))
			ids, ok := e.Encode(nil, text)
			got, want := string(tok.Decode(nil, ids)), text
			if path == charsFile { // which puts spaces before parts, and knows no other than its own
				got, want = strings.ReplaceAll(got, " ", ""), strings.NewReplacer(" ", "", "▁", "").Replace(text)
			}
			if !ok || got != want {
				t.Fatalf("%s: %q came back as %q", path, want, got)
			}
		}
	}
}

// naive merges as the textbook does.
func naive(tok *Tokenizer, ids []uint32) []uint32 {
	ids = slices.Clone(ids)
	for {
		at, best, into := -1, noRank, uint32(0)
		for i := 0; i+1 < len(ids); i++ {
			if rank, id := tok.rank(ids[i], ids[i+1]); rank < best {
				at, best, into = i, rank, id
			}
		}
		if at < 0 {
			return ids
		}
		ids[at] = into
		ids = slices.Delete(ids, at+1, at+2)
	}
}

// TestMergeOrder checks both ways of merging against the textbook, on the
// trained merges and on random ones, where order matters more.
func TestMergeOrder(t *testing.T) {
	r := stat.NewRand(2, "token")
	trained := mustRead(t, content(t, bytesFile))
	for round := range 3000 {
		tok := trained
		size := 256
		if round%2 == 0 {
			tok, size = &Tokenizer{merges: newPairs(8)}, 3
			for id := uint32(3); id < 40; id++ {
				tok.merges.put(uint32(r.IntN(int(id))), uint32(r.IntN(int(id))), uint32(r.IntN(1000))*64+id, id)
			}
		}
		e := &Encoder{t: tok}
		ids := make([]uint32, r.IntN(60))
		for i := range ids {
			if ids[i] = uint32(r.IntN(size)); round%2 == 1 {
				ids[i] = uint32("the hello rqusca"[r.IntN(16)])
			}
		}
		want := naive(tok, ids)
		e.ids = slices.Clone(ids)
		if got := e.merge(nil); !slices.Equal(got, want) {
			t.Fatalf("%v: merged to %v, want %v", ids, got, want)
		}
		e.ids = slices.Clone(ids)
		if got := e.mergeLong(nil); !slices.Equal(got, want) {
			t.Fatalf("%v: merged to %v by the heap, want %v", ids, got, want)
		}
	}
}

func TestEncodeAllocatesNothing(t *testing.T) {
	text := randomText(stat.NewRand(3, "token"), 3000)
	for _, data := range [][]byte{content(t, bytesFile), content(t, charsFile), metaspaced(t, "first", "true")} {
		e := mustRead(t, data).Encoder()
		dst, _ := e.Encode(nil, text)
		if n := testing.AllocsPerRun(5, func() { dst, _ = e.Encode(dst[:0], text) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func TestUnsupported(t *testing.T) {
	model := func(key string, v any) func(map[string]any) {
		return func(f map[string]any) { f["model"].(map[string]any)[key] = v }
	}
	set := func(key, v string) func(map[string]any) {
		return func(f map[string]any) { f[key] = value(v) }
	}
	for _, c := range []struct {
		path string
		edit func(map[string]any)
		want string
	}{
		{bytesFile, model("type", "Unigram"), "model.type"},
		{bytesFile, model("dropout", 0.1), "model.dropout"},
		{bytesFile, model("continuing_subword_prefix", "##"), "model.continuing_subword_prefix"},
		{bytesFile, model("end_of_word_suffix", "</w>"), "model.end_of_word_suffix"},
		{charsFile, model("byte_fallback", false), "model.vocab"},
		{bytesFile, set("pre_tokenizer", "null"), "model.vocab"},
		{bytesFile, set("pre_tokenizer", `{"type": "ByteLevel", "add_prefix_space": true}`), "pre_tokenizer.add_prefix_space"},
		{bytesFile, set("pre_tokenizer", `{"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}`), "pre_tokenizer.use_regex"},
		{bytesFile, set("pre_tokenizer", `{"type": "Split", "pattern": {"Regex": "\\w+"}, "behavior": "Isolated"}`), "pre_tokenizer.pattern"},
		{bytesFile, set("pre_tokenizer", `{"type": "Digits"}`), "pre_tokenizer"},
		{charsFile, set("pre_tokenizer", `{"type": "Split", "pattern": {"String": "x"}, "behavior": "Isolated"}`), "pre_tokenizer"},
		{charsFile, set("pre_tokenizer", `{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "odd"}`), "pre_tokenizer.prepend_scheme"},
		{charsFile, set("pre_tokenizer", `{"type": "Metaspace", "replacement": "▁"}`), "normalizer"},
		{bytesFile, set("normalizer", `{"type": "NFKC"}`), "normalizer"},
		{bytesFile, set("normalizer", `{"type": "Prepend", "prepend": "x"}`), "normalizer"},
		{bytesFile, set("post_processor", `{"type": "RobertaProcessing"}`), "post_processor"},
		{charsFile, set("normalizer", `{"type": "Replace", "pattern": {"String": " "}, "content": "`+strings.Repeat("x", 17)+`"}`), "normalizer"},
		{bytesFile, set("added_tokens", `[]`), "post_processor"},
		{bytesFile, set("added_tokens", `[{"id": 400, "content": "x<"}]`), "added_tokens"},
		{bytesFile, set("added_tokens", `[{"id": 355, "content": "x<", "single_word": true}]`), "added_tokens.single_word"},
	} {
		_, err := Read(edited(t, c.path, c.edit))
		var refused *UnsupportedError
		if !errors.As(err, &refused) || refused.Part != c.want {
			t.Errorf("%v, want %s refused", err, c.want)
		}
	}
}

func TestBrokenFiles(t *testing.T) {
	for _, s := range []string{
		``, `{`, `[]`, `{"model": {"type": "BPE"}}`, `{"model": {"type": "BPE", "vocab": {"a": -1}}}`,
		`{"model": {"type": "BPE", "vocab": {"a": 4294967295}}}`, `{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}}}`,
		`{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}`, `{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}}`,
	} {
		if _, err := Read([]byte(s)); err == nil {
			t.Errorf("%s is read", s)
		}
	}
	missing := edited(t, bytesFile, func(f map[string]any) { f["model"].(map[string]any)["merges"] = []string{"z z"} })
	if _, err := Read(missing); err == nil || !strings.Contains(err.Error(), "merge 0") {
		t.Errorf("%v, want the merge named", err)
	}
}

// FuzzRead changes the parts of a file other than its vocabulary, which is too
// long to be mutated usefully.
func FuzzRead(f *testing.F) {
	var base map[string]json.RawMessage
	var model map[string]json.RawMessage
	if json.Unmarshal(content(f, charsFile), &base) != nil || json.Unmarshal(base["model"], &model) != nil {
		f.Fatal("no file to begin with")
	}
	const blocks = `{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}`
	f.Add(`null`, blocks, `null`, `[{"id": 0, "content": "<unk>"}]`, `["h e", ["t", "he"]]`)
	f.Add(`{"type": "NFC"}`, `null`, string(base["post_processor"]), `[{"id": 403, "content": " x", "lstrip": true, "rstrip": true, "normalized": true}]`, `[]`)
	f.Add(string(base["normalizer"]), `{"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]}`, `null`, `[]`, `{}`)
	f.Fuzz(func(t *testing.T, norm, pre, post, tokens, merges string) {
		file := `{"normalizer": ` + norm + `, "pre_tokenizer": ` + pre + `, "post_processor": ` + post + `, "added_tokens": ` + tokens +
			`, "model": {"type": "BPE", "byte_fallback": true, "merges": ` + merges + `, "vocab": ` + string(model["vocab"]) + `}}`
		tok, err := Read([]byte(file))
		if err != nil {
			return
		}
		ids, _ := tok.Encoder().Encode(nil, "<s>hello world,  x 12345 日本\n")
		for _, id := range ids {
			if int(id) >= tok.Size() {
				t.Fatalf("id %d of %d", id, tok.Size())
			}
		}
	})
}

func FuzzEncode(f *testing.F) {
	var encoders []*Encoder
	for _, data := range [][]byte{content(f, bytesFile), content(f, charsFile), metaspaced(f, "first", "true")} {
		encoders = append(encoders, mustRead(f, data).Encoder())
	}
	f.Add("hello world<|end|>of <|user|>  x")
	f.Add("\n\n 12345 größe 日本 ▁▁ e\u0301 \xff")
	f.Fuzz(func(t *testing.T, text string) {
		for i, e := range encoders {
			ids, ok := e.Encode(nil, text)
			if ok && len(ids) > 4*len(text)+4 {
				t.Fatalf("%d tokens of %q", len(ids), text)
			}
			again, _ := e.Encode(nil, text)
			if !slices.Equal(ids, again) {
				t.Fatalf("%q is %v, and then %v", text, ids, again)
			}
			if got := string(e.t.Decode(nil, ids)); i == 0 && ok && got != text && !strings.Contains(text, "<|user|>") {
				t.Fatalf("%q came back as %q", text, got)
			}
		}
	})
}

func benchmark(b *testing.B, path, text string) {
	e := mustRead(b, content(b, path)).Encoder()
	dst, _ := e.Encode(nil, text)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		dst, _ = e.Encode(dst[:0], text)
	}
}

func BenchmarkEncode(b *testing.B) {
	prose := strings.Repeat("A router sends every request where its prefix is cached; the others wait there, it's said. ", 200)
	b.Run("bytes/prose", func(b *testing.B) { benchmark(b, bytesFile, prose) })
	b.Run("bytes/mixed", func(b *testing.B) { benchmark(b, bytesFile, randomText(stat.NewRand(4, "token"), 4000)) })
	b.Run("bytes/one long word", func(b *testing.B) { benchmark(b, bytesFile, strings.Repeat("hellothecat", 2000)) })
	b.Run("chars/prose", func(b *testing.B) { benchmark(b, charsFile, prose) })
}
