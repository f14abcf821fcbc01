package server

import (
	"bufio"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// BenchmarkStreamedToken is the cost of one token on its way from the engine
// through HTTP to a client that only counts bytes, with 25 streams at once. Its
// cpu-us/token is the whole process's CPU time, client included.
func BenchmarkStreamedToken(b *testing.B) {
	n := listen(b, Options{Speedup: 10})
	const streams, tokens = 25, 200
	request := map[string]any{"prompt": strings.Repeat(" word", 2000), "max_tokens": tokens, "ignore_eos": true, "stream": true}
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before, rounds := cpu(), 0
	for b.Loop() {
		rounds++
		var all sync.WaitGroup
		for range streams {
			all.Go(func() {
				resp, err := send(b.Context(), n.URL()+"/v1/completions", request)
				if err != nil {
					b.Error(err)
					return
				}
				defer resp.Body.Close()
				if _, err := io.Copy(io.Discard, bufio.NewReader(resp.Body)); err != nil {
					b.Error(err)
				}
			})
		}
		all.Wait()
	}
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(rounds*streams*tokens), "cpu-us/token")
}

// BenchmarkPlan is what a 12,000-token prompt costs before it is in the
// engine: decoding, tokenizing, hashing, and composing 343 tokens.
func BenchmarkPlan(b *testing.B) {
	s, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	limit := 343
	q := &wireRequest{MaxTokens: &limit, IgnoreEOS: true}
	text := quote(strings.Repeat(" word", 12_000))
	b.ReportAllocs()
	for b.Loop() {
		if err := q.Prompt.UnmarshalJSON(text); err != nil {
			b.Fatal(err)
		}
		if _, _, err := s.plan(q, false); err != nil {
			b.Fatal(err)
		}
	}
}
