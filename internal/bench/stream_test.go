package bench

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// events joins event data into a stream.
func events(data ...string) string {
	var b strings.Builder
	for _, d := range data {
		b.WriteString("data: " + d + "\n\n")
	}
	return b.String()
}

const (
	tokA   = `{"id":"x","choices":[{"index":0,"text":" a","finish_reason":null}]}`
	tokEnd = `{"id":"x","choices":[{"index":0,"text":" b","finish_reason":"length"}]}`
	use2   = `{"id":"x","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":8}}}`
)

func readStream(text io.Reader, v verifyLevel, wanted int) (*stream, error) {
	s := newStream()
	s.reset(v, true, func() time.Duration { return time.Second })
	err := s.read(text)
	if err == nil {
		s.count(wanted, true)
	}
	return s, err
}

func TestStreamVerdicts(t *testing.T) {
	sse := &sseError{}
	for name, c := range map[string]struct {
		text  string
		wrong string // part of what is found wrong
		err   any    // errCut or an *sseError
	}{
		"whole":                {text: events(tokA, tokEnd, use2, "[DONE]")},
		"comments and CRLF":    {text: ": ping\r\n\r\nevent: x\r\ndata:" + tokA + "\r\n\r\n" + strings.ReplaceAll(events(tokEnd, use2, "[DONE]"), "\n", "\r\n")},
		"two data lines":       {text: "data: {\"id\":\"x\",\ndata: \"choices\":[{\"text\":\" a\"}]}\n\n" + events(tokEnd, use2, "[DONE]")},
		"doubled token":        {text: events(tokA, tokA, tokEnd, use2, "[DONE]"), wrong: "3 events with text for 2 tokens"},
		"lost token":           {text: events(tokEnd, use2, "[DONE]"), wrong: "1 events with text for 2 tokens"},
		"no DONE":              {text: events(tokA, tokEnd, use2), wrong: "no [DONE]"},
		"DONE twice":           {text: events(tokA, tokEnd, use2, "[DONE]", "[DONE]"), wrong: "after [DONE]"},
		"token after DONE":     {text: events(tokA, tokEnd, use2, "[DONE]", tokA), wrong: "after [DONE]"},
		"bytes after DONE":     {text: events(tokA, tokEnd, use2, "[DONE]") + "data: ", wrong: "6 bytes after [DONE]"},
		"no finish_reason":     {text: events(tokA, tokA, use2, "[DONE]"), wrong: "no finish_reason"},
		"finish_reason twice":  {text: events(tokA, tokEnd, `{"choices":[{"finish_reason":"stop"}]}`, use2, "[DONE]"), wrong: "finish_reason twice"},
		"text after finish":    {text: events(tokEnd, tokA, use2, "[DONE]"), wrong: "text after finish_reason"},
		"another answer's":     {text: events(tokA, strings.Replace(tokEnd, `"x"`, `"y"`, 1), use2, "[DONE]"), wrong: "id changed"},
		"half an event":        {text: "data: " + tokA[:20] + "\n\n" + events(tokEnd, use2, "[DONE]"), wrong: "not a JSON object"},
		"not a stream":         {text: "<html>\n\n", wrong: "no field of an event stream", err: errCut},
		"short answer":         {text: events(tokEnd, `{"usage":{"completion_tokens":1}}`, "[DONE]"), wrong: "1 tokens where 2 were wanted"},
		"cut between events":   {text: events(tokA), err: errCut},
		"cut inside an event":  {text: events(tokA) + "data: {", err: errCut},
		"cut before the blank": {text: strings.TrimSuffix(events(tokA, tokEnd, use2, "[DONE]"), "\n"), err: errCut},
		"empty":                {text: "", err: errCut},
		"error event":          {text: events(tokA, `{"error":{"message":"boom"}}`, "[DONE]"), err: sse},
		"endless event":        {text: "data: " + strings.Repeat("x", maxEvent+1), err: errCut, wrong: "longer than"},
	} {
		for how, r := range map[string]io.Reader{"at once": strings.NewReader(c.text), "by bytes": iotest.OneByteReader(strings.NewReader(c.text))} {
			if len(c.text) > 1<<16 && how == "by bytes" {
				continue
			}
			s, err := readStream(r, verifyStrict, 2)
			if (c.wrong == "") != (s.wrong == "") || !strings.Contains(s.wrong, c.wrong) {
				t.Errorf("%s, %s: found %q, want %q", name, how, s.wrong, c.wrong)
			}
			switch want := c.err.(type) {
			case nil:
				if err != nil {
					t.Errorf("%s, %s: %v", name, how, err)
				}
			case *sseError:
				if !errors.As(err, &want) || !strings.Contains(want.body, "boom") {
					t.Errorf("%s, %s: %v, want the error event", name, how, err)
				}
			case error:
				if !errors.Is(err, want) {
					t.Errorf("%s, %s: %v, want %v", name, how, err, want)
				}
			}
		}
	}
}

func TestStreamVerifyLevels(t *testing.T) {
	merged := events(tokEnd, use2, "[DONE]")
	if s, _ := readStream(strings.NewReader(merged), verifyFraming, 2); s.wrong != "" {
		t.Errorf("framing must allow two tokens in one event: %s", s.wrong)
	}
	if s, err := readStream(strings.NewReader(events(tokA, tokA, tokEnd)), verifyOff, 2); s.wrong != "" || err != nil {
		t.Errorf("off must find nothing: %s, %v", s.wrong, err)
	}
}

func TestStreamCollects(t *testing.T) {
	s, err := readStream(strings.NewReader(events(tokA, tokEnd, use2, "[DONE]")), verifyStrict, 2)
	if err != nil || string(s.text) != " a b" || s.tokens != 2 || len(s.gaps) != 1 || s.usage.cached != 8 || s.finish != "length" {
		t.Errorf("%v, text %q, %d tokens, gaps %v, usage %+v, finish %q", err, s.text, s.tokens, s.gaps, s.usage, s.finish)
	}
}

func FuzzStream(f *testing.F) {
	f.Add(events(tokA, tokEnd, use2, "[DONE]"), 7)
	f.Add(": x\r\n\r\ndata: a\ndata: b\n\n\n\nid: 1\n", 1)
	f.Fuzz(func(t *testing.T, text string, step int) {
		// However the bytes are cut up, the verdict is the same.
		a, errA := readStream(strings.NewReader(text), verifyStrict, 2)
		b, errB := readStream(&stepReader{text: text, step: max(step, 1)}, verifyStrict, 2)
		if a.wrong != b.wrong || a.tokens != b.tokens || (errA == nil) != (errB == nil) {
			t.Fatalf("at once: %q %v; in steps: %q %v", a.wrong, errA, b.wrong, errB)
		}
	})
}

type stepReader struct {
	text string
	step int
}

func (r *stepReader) Read(p []byte) (int, error) {
	if r.text == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.step)], r.text)
	r.text = r.text[n:]
	return n, nil
}

func BenchmarkStream128Tokens(b *testing.B) {
	text := events(append(append(make([]string, 0, 131), strings.Split(strings.Repeat(completionEvent+"\n", 127), "\n")[:127]...),
		strings.Replace(completionEvent, `"finish_reason":null`, `"finish_reason":"length"`, 1),
		strings.Replace(usageEvent, `"a"`, `"cmpl-7f3a"`, 1), "[DONE]")...)
	s := newStream()
	clock := func() time.Duration { return time.Second }
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		s.reset(verifyStrict, false, clock)
		// An event per read, as a server that flushes each token sends them.
		if err := s.read(&stepReader{text: text, step: len(completionEvent) + 8}); err != nil || s.wrong != "" {
			b.Fatal(err, s.wrong)
		}
		s.count(128, true)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/130, "ns/event")
}
