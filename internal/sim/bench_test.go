package sim

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// conversations makes loads for n replicas, near what they can do: the Mooncake
// conversation trace where it is there, in as many copies as it takes, else
// prompts and answers of such lengths.
func conversations(b *testing.B) func(n, requests int) workload.Source {
	b.Helper()
	const each = 0.42 // requests per second and replica
	f, err := os.Open(filepath.Join("..", "..", "..", "shared", "traces", "mooncake_conversation_trace.jsonl"))
	if err != nil {
		lengths := func(mean, std float64, most int) workload.Dist {
			return workload.Dist{Kind: workload.DistLogNormal, Mean: mean, Std: std, Min: 1, Max: most}
		}
		return func(n, requests int) workload.Source {
			d := time.Duration(float64(requests) / (each * float64(n)) * 1e9)
			a := workload.NewArrivals(workload.ArrivalPoisson, []workload.Stage{{Rate: each * float64(n), Duration: d}}, 0, stat.NewRand(1, "a"))
			return workload.Random{Input: lengths(12_000, 17_000, 120_000), Output: lengths(343, 300, 2000)}.Source(a, 1)
		}
	}
	defer f.Close()
	trace, err := workload.ReadTrace(f, workload.FormatAuto)
	if err != nil {
		b.Fatal(err)
	}
	const recorded = 3.34 // requests per second
	return func(n, requests int) workload.Source {
		copies := max(int(math.Round(each*float64(n)/recorded)), 1)
		src, err := trace.Replay(workload.ReplayOptions{Speed: each * float64(n) / (recorded * float64(copies)), Copies: copies, Seed: 1})
		if err != nil {
			b.Fatal(err)
		}
		return &workload.Limit{Source: src, Requests: requests}
	}
}

// BenchmarkSimulate is the cost of one simulated request, all included, under
// predictive with an SLO. Bytes are what is allocated, not what is kept.
func BenchmarkSimulate(b *testing.B) {
	loads := conversations(b)
	for _, n := range []int{8, 64, 512, 4096} {
		b.Run(fmt.Sprintf("replicas=%d", n), func(b *testing.B) {
			c := qwen(b, n, "predictive")
			c.Targets = Targets{TTFT: 5 * time.Second, TPOT: 100 * time.Millisecond}
			for i := range c.Replicas {
				c.Replicas[i].Variant = 1
				c.Replicas[i].Step = perf.Step{Base: 13e-3, PerSeq: 20e-6, PerKV: 46e-9, PerPrompt: 52e-6, PerPair: 3e-10}
			}
			requests, bytes := 0, uint64(0)
			var before, after runtime.MemStats
			for b.Loop() {
				b.StopTimer()
				load := loads(n, max(8000, 4*n))
				runtime.ReadMemStats(&before)
				b.StartTimer()
				requests += mustRun(b, c, load).Arrived
				runtime.ReadMemStats(&after)
				bytes += after.TotalAlloc - before.TotalAlloc
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(requests), "ns/request")
			b.ReportMetric(float64(bytes)/float64(requests), "B/request")
			b.ReportMetric(float64(requests)/b.Elapsed().Seconds(), "requests/s")
		})
	}
}
