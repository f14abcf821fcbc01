package profile

import (
	"math"
	"testing"
	"time"

	"penstock.dev/penstock/internal/engine"
)

// told is an answer whose tokens came at these milliseconds after it was asked
// for, so many milliseconds after the first was.
func told(late, output int, at ...int) *answer {
	r := &answer{started: time.Unix(0, 0).Add(time.Duration(late) * time.Millisecond), prompt: 100, output: output}
	for _, ms := range at {
		r.tokens = append(r.tokens, time.Duration(ms)*time.Millisecond)
	}
	return r
}

// TestTallyLooksOnlyWhereAllDecode: the first stream decodes slowly while the
// second is computed, and the second quickly when the first has ended.
func TestTallyLooksOnlyWhereAllDecode(t *testing.T) {
	r := tallyOf([]*answer{
		told(0, 5, 10, 50, 60, 70, 80),
		told(5, 6, 50, 55, 65, 75, 78, 81), // 55, 60, 70, 80, 83, 86 on the first one's clock
	}, 1)
	// From 55 to 80: 60, 70, 80 of the first and 55, 60, 70, 80 of the second.
	if r.steps != 5 || math.Abs(r.seconds-0.045) > 1e-9 || math.Abs(r.first-0.030) > 1e-9 {
		t.Errorf("%+v", r)
	}
	if context := r.context / r.steps; context < 102 || context > 104 {
		t.Errorf("%g tokens of context in the middle", context)
	}
	if r := tallyOf([]*answer{told(0, 2, 10, 20), told(0, 2, 30, 40)}, 1); r.steps != 0 {
		t.Errorf("streams that never decode together have %g steps", r.steps)
	}
	// Half as many events as tokens: an event stands for two.
	if r := tallyOf([]*answer{told(0, 6, 10, 30, 50)}, 1); r.steps != 4 || r.seconds != 0.04 {
		t.Errorf("%+v", r)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n"))
	f.Add([]byte("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n"))
	f.Add([]byte(": ping\n\ndata: {\"error\":{\"message\":\"no\"}}\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := answer{raw: raw, marks: []mark{{len(raw), time.Second}}}
		if err := r.parse(); err != nil {
			return
		}
		if len(r.tokens) == 0 || r.perEvent() < 0 {
			t.Errorf("an answer of %d events, %g tokens each", len(r.tokens), r.perEvent())
		}
		for _, at := range r.tokens {
			if at != time.Second {
				t.Errorf("a token after %v", at)
			}
		}
	})
}

func TestPromptsAreNew(t *testing.T) {
	a := asker{model: "m", dialect: engine.Dialect{}, rand: newRand(1)}
	one, err := a.request(500, 1)
	if err != nil {
		t.Fatal(err)
	}
	two, err := a.request(500, 1)
	if err != nil {
		t.Fatal(err)
	}
	same := 0
	for same < min(len(one.body), len(two.body)) && one.body[same] == two.body[same] {
		same++
	}
	if one.text != 1250 || same > 100 {
		t.Errorf("prompts of %d bytes share %d bytes with the next", one.text, same)
	}
}
