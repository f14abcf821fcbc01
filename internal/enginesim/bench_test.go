package enginesim

import (
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// mooncakeLike returns n requests with the lengths of the Mooncake
// conversation trace in the mean (12,000 in, 343 out), of which a third
// continue an earlier one.
func mooncakeLike(n int) []Request {
	r := stat.NewRand(1, "mooncake-like")
	reqs := make([]Request, n)
	for i := range reqs {
		prompt := min(max(int(r.LogNormal(12_000, 1)), 100), 120_000)
		c, keys := NewContext("").Add(uint32(i)), make([]uint64, 0, prompt/blockTokens)
		if i > 0 && r.Float64() < 0.33 {
			old := reqs[r.IntN(i)]
			keys = append(keys, old.Chain[:min(len(old.Chain), prompt/blockTokens)]...)
		}
		for len(keys) < prompt/blockTokens {
			c = c.Add(uint32(len(keys)))
			keys = append(keys, c.Key())
		}
		reqs[i] = Request{Prompt: fleet.Tokens(prompt), Output: fleet.Tokens(min(max(int(r.LogNormal(343, 1)), 1), 2000)), Chain: keys}
	}
	return reqs
}

// BenchmarkRequest is one simulated request on a replica that about 15 requests
// share at any time.
func BenchmarkRequest(b *testing.B) {
	spec := qwen(b, 2)
	roofline := NewRoofline(spec)
	roofline.Noise = 0.05
	reqs := mooncakeLike(4096)
	e := newEngine(b, Config{Physics: roofline, KVTokens: capacity(spec)})
	r := stat.NewRand(1, "arrivals")
	var out []Output
	now, next, i := fleet.Time(0), fleet.Never, 0
	b.ReportAllocs()
	for b.Loop() {
		now += fleet.Time(r.Exp(float64(1700 * time.Millisecond)))
		for next < now {
			out, next = e.Advance(next, out[:0])
		}
		req := reqs[i%len(reqs)]
		req.ID = fleet.ReqID(i)
		i++
		if err := e.Submit(now, req); err != nil {
			b.Fatal(err)
		}
		out, next = e.Advance(now, out[:0])
	}
	s := e.Stats()
	b.ReportMetric(float64(s.Steps)/float64(i), "steps/req")
	b.ReportMetric(float64(s.GenerationTokens)/float64(s.Steps), "batch")
	b.ReportMetric(float64(s.Waiting), "waiting")
}

// BenchmarkDecodeStep is one step of 64 decoding sequences with every token
// reported, as behind a server.
func BenchmarkDecodeStep(b *testing.B) {
	e := newEngine(b, Config{EveryToken: true, KVTokens: 1 << 30})
	for id := range fleet.ReqID(64) {
		submit(b, e, 0, Request{ID: id, Prompt: 100, Output: 1 << 22})
	}
	out, next := e.Advance(0, nil)
	b.ReportAllocs()
	for b.Loop() {
		out, next = e.Advance(next, out[:0])
	}
}

func BenchmarkChain(b *testing.B) {
	tokens := make([]uint32, 12_000)
	for i := range tokens {
		tokens[i] = uint32(i)
	}
	keys := make([]uint64, 0, 750)
	b.ReportAllocs()
	for b.Loop() {
		keys, _ = Chain(keys[:0], NewContext(""), tokens)
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	spec := qwen(t, 2)
	e := newEngine(t, Config{Physics: NewRoofline(spec), KVTokens: 60_000})
	chains := make([][]uint64, 20)
	for i := range chains {
		chains[i] = chainOf(400, 100, uint32(i))
	}
	var out []Output
	id, now := fleet.ReqID(0), fleet.Time(0)
	cycle := func() {
		for range 5 {
			id++
			// The chain covers the output, so the engine needs none of its own.
			if err := e.Submit(now, Request{ID: id, Prompt: 6000, Output: 300, Chain: chains[id%20]}); err != nil {
				t.Fatal(err)
			}
		}
		for next := now; next != fleet.Never; {
			now = next
			out, next = e.Advance(next, out[:0])
		}
	}
	for range 20 {
		cycle()
	}
	if n := testing.AllocsPerRun(20, cycle); n > 0 {
		t.Errorf("%v allocations per five requests, want none", n)
	}
	if e.Stats().EvictedBlocks == 0 {
		t.Error("the test is meant to evict")
	}
}

// BenchmarkRequestBelow is BenchmarkRequest with tiers below the GPU and events
// about them all.
func BenchmarkRequestBelow(b *testing.B) {
	spec := qwen(b, 2)
	for _, c := range []struct {
		name       string
		cpu, disk  fleet.Tokens
		everything bool
	}{{name: "none"}, {name: "events", everything: true}, {name: "cpu", cpu: 600_000}, {name: "disk", cpu: 600_000, disk: 6_000_000}, {name: "all", cpu: 600_000, disk: 6_000_000, everything: true}} {
		b.Run(c.name, func(b *testing.B) {
			roofline := NewRoofline(spec)
			reqs := mooncakeLike(4096)
			o := Offload{KVBytes: spec.KVBytes(), CPU: Store{Tokens: c.cpu, Bandwidth: 25e9}, Disk: Store{Tokens: c.disk, Bandwidth: 6e9}}
			e := newEngine(b, Config{Physics: roofline, KVTokens: capacity(spec), Offload: o, Events: c.everything})
			r := stat.NewRand(1, "arrivals")
			var out []Output
			now, next, i, blocks := fleet.Time(0), fleet.Never, 0, 0
			b.ReportAllocs()
			for b.Loop() {
				now += fleet.Time(r.Exp(float64(1700 * time.Millisecond)))
				for next < now {
					out, next = e.Advance(next, out[:0])
				}
				req := reqs[i%len(reqs)]
				req.ID = fleet.ReqID(i)
				i++
				if err := e.Submit(now, req); err != nil {
					b.Fatal(err)
				}
				out, next = e.Advance(now, out[:0])
				for _, events := range e.TakeEvents() {
					for j := range events {
						blocks += len(events[j].Blocks)
					}
				}
			}
			s := e.Stats()
			b.ReportMetric(float64(s.PrefixHits)/float64(s.PrefixQueries), "hits")
			b.ReportMetric(float64(s.CPU.Loads+s.Disk.Loads)/float64(i), "loads/req")
			b.ReportMetric(float64(blocks)/float64(i), "blocks/req")
		})
	}
}
