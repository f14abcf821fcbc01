package main

import (
	"strings"
	"testing"
	"time"
)

func TestRecovery(t *testing.T) {
	now := time.Now()
	at := func(ms int) time.Time { return now.Add(time.Duration(ms-2000) * time.Millisecond) } // all but 2 s ago
	one := func(from, to, attempts int, via string) result {
		return result{arrived: at(from), ended: at(to), whole: true, attempts: attempts, prefill: via, decode: "d"}
	}
	for name, c := range map[string]struct {
		results []result
		open    time.Time
		want    time.Duration
		ok      bool
	}{
		"nothing was seen of it":      {[]result{one(100, 200, 1, "p")}, time.Time{}, 200 * time.Millisecond, true},
		"one was tried again":         {[]result{one(50, 300, 2, "p"), one(100, 200, 1, "p")}, time.Time{}, 300 * time.Millisecond, true},
		"it has served nothing since": {[]result{one(100, 200, 1, "other")}, time.Time{}, 0, false},
		"one is open for long":        {[]result{one(100, 200, 1, "p")}, at(500), 0, false},
		"the latest went wrong":       {[]result{one(100, 200, 1, "p"), one(1700, 1900, 1, "")}, time.Time{}, 1900 * time.Millisecond, false},
		"one was slow":                {[]result{one(100, 900, 1, "p"), one(950, 1000, 1, "p")}, time.Time{}, 1000 * time.Millisecond, true},
	} {
		l := load{results: c.results, open: map[string]time.Time{}}
		if !c.open.IsZero() {
			l.open["x"] = c.open
		}
		got, ok := l.recovered(0, at(0), at(0), []string{"p"})
		if ok != c.ok || c.ok && got.Round(time.Millisecond) != c.want {
			t.Errorf("%s: %v, %v; want %v, %v", name, got, ok, c.want, c.ok)
		}
	}
}

func TestStreamsAreReadToTheirEnd(t *testing.T) {
	const token = `data: {"choices":[{"text":"a","finish_reason":null}]}` + "\n\n"
	const finish = `data: {"choices":[{"text":"b","finish_reason":"length"}]}` + "\n\n"
	const done = "data: [DONE]\n\n"
	for text, want := range map[string]string{
		token + finish + done:               "ab",
		": nothing yet\n\n" + finish + done: "b",
		token + done:                        "without a reason",
		token + finish:                      "broke off",
		token + `data: {"error":{"message":"gone"}}` + "\n\n" + done: "error in the stream",
		token + "data: {\n\n": "{",
	} {
		got, err := readStream(strings.NewReader(text), func() {})
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// Every row is held to a bound, and has a name of its own.
func TestRows(t *testing.T) {
	seen := map[string]bool{}
	for _, x := range rows() {
		if seen[x.key] || x.name == "" || x.inject == nil || x.bound == 0 {
			t.Errorf("%+v", x.key)
		}
		seen[x.key] = true
	}
}
