package server

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/enginesim"
)

func pieces(text string) []string {
	var out []string
	for _, id := range appendTokens(nil, text) {
		out = append(out, string(appendText(nil, id)))
	}
	return out
}

func TestPieces(t *testing.T) {
	for text, want := range map[string][]string{
		"":                    nil,
		"one":                 {"one"},
		"turbines":            {"turb", "ines"},
		"a river runs":        {"a", " riv", "er", " run", "s"},
		"two  spaces ":        {"two", " ", " spa", "ces", " "},
		"stop. Go, now!\n":    {"stop", ".", " Go", ",", " now", "!", "\n"},
		"{\"a\":12345}":       {"{", "\"", "a", "\"", ":", "1234", "5", "}"},
		"nul\x00 and\x00\x00": {"nul", "\x00", " and", "\x00", "\x00"},
	} {
		if d := cmp.Diff(want, pieces(text)); d != "" {
			t.Errorf("%q (-want +got):\n%s", text, d)
		}
	}
}

func TestTokenizingLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "text")
		ids := appendTokens(nil, text)
		var back []byte
		for _, id := range ids {
			if id >= tokenStart && id < specialsEnd {
				t.Fatalf("text makes the special token %x", id)
			}
			back = appendText(back, id)
		}
		if string(back) != text {
			t.Fatalf("%q came back as %q", text, back)
		}
	})
}

// What the engine says, tokenized, is what it generated: otherwise no cache
// would survive a turn.
func TestGeneratedTextHasTheTokensItWasMadeOf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.SampledFrom([]voice{voiceStart, voiceMiddle}).Draw(t, "voice")
		middle := v == voiceMiddle
		c := enginesim.NewContext("").Add(rapid.Uint32().Draw(t, "context"))
		var ids []uint32
		var text []byte
		for range rapid.IntRange(1, 200).Draw(t, "length") {
			id := v.next(c.Draw(1))
			c = c.Add(id)
			ids, text = append(ids, id), appendText(text, id)
		}
		if got := appendTokens(nil, string(text)); !slices.Equal(got, ids) {
			t.Fatalf("%q has %d tokens, was made of %d", text, len(got), len(ids))
		}
		if escape(string(text)) != string(text) {
			t.Fatalf("%q needs escapes", text)
		}
		// After running text, too, unless a space at its end could join.
		if middle {
			before := "Some words"
			got := appendTokens(nil, before+string(text))
			if !slices.Equal(got, append(appendTokens(nil, before), ids...)) {
				t.Fatalf("%q joins with %q", text, before)
			}
		}
	})
}

func TestChatTemplateKeepsMessagesApart(t *testing.T) {
	chat := func(messages ...message) []uint32 {
		ids, err := appendChat(nil, messages, nil)
		if err != nil {
			t.Fatal(err)
		}
		return ids
	}
	msg := func(role, content string) message { return message{Role: role, Content: quote(content)} }
	one := chat(msg("user", "ab"))
	if slices.Equal(one, chat(msg("user", "a"), msg("user", "b"))) {
		t.Error("two messages look like one")
	}
	two := chat(msg("user", "ab"), msg("assistant", "yes"), msg("user", "c"))
	// The prompt of a turn is the beginning of the next turn's.
	if !slices.Equal(two[:len(one)], one) {
		t.Error("the next turn does not begin with this one")
	}
}

func BenchmarkTokenize(b *testing.B) {
	text := ""
	for range 2000 {
		text += " The water comes down the pipe."
	}
	ids := appendTokens(nil, text)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		ids = appendTokens(ids[:0], text)
	}
	b.ReportMetric(float64(len(text))/float64(len(ids)), "bytes/token")
}
