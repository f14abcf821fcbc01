package engine

import (
	"bytes"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/fleet"
)

func TestReadMetrics(t *testing.T) {
	vllm := mustDialect("vllm")
	for _, c := range []struct {
		name, page string
		want       fleet.Gauges
	}{
		{
			"one engine", "# HELP x\nvllm:num_requests_running{engine=\"0\",model_name=\"m\"} 3.0\nvllm:num_requests_waiting{engine=\"0\"} 2\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.25\n",
			fleet.Gauges{Known: fleet.KnownRunning | fleet.KnownWaiting | fleet.KnownKVUsage, Running: 3, Waiting: 2, KVUsage: 0.25},
		},
		{
			"two engines: counts add, usage is the fuller one's", "vllm:num_requests_running{engine=\"0\"} 3\nvllm:num_requests_running{engine=\"1\"} 4\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.1\nvllm:kv_cache_usage_perc{engine=\"1\"} 7.5e-1",
			fleet.Gauges{Known: fleet.KnownRunning | fleet.KnownKVUsage, Running: 7, KVUsage: 0.75},
		},
		{"the old name of usage", "vllm:gpu_cache_usage_perc 0.5\n", fleet.Gauges{Known: fleet.KnownKVUsage, KVUsage: 0.5}},
		{"longer names are others", "vllm:num_requests_waiting_by_reason{reason=\"capacity\"} 9\nvllm:num_requests_running_total 9\n", fleet.Gauges{}},
		{"NaN is unknown, not zero", "vllm:num_requests_running NaN\n", fleet.Gauges{}},
		{"negative and absurd are damage", "vllm:num_requests_running -1\nvllm:num_requests_waiting 1e300\n", fleet.Gauges{}},
		{
			"capacity", "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"18625\",x_num_gpu_blocks=\"7\"} 1.0\n",
			fleet.Gauges{Known: fleet.KnownKVCapacity, KVBlocks: 18625, KVBlock: 16},
		},
		{"capacity None is unknown", "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"None\"} 1.0\n", fleet.Gauges{}},
		{"a brace and comma in a label", "vllm:num_requests_running{model_name=\"a}\\\",b\"} 5 1700000000\n", fleet.Gauges{Known: fleet.KnownRunning, Running: 5}},
		{"cut off", "vllm:num_requests_running{engine=\"0", fleet.Gauges{}},
	} {
		if got, _ := vllm.Read([]byte(c.page)); got.Gauges != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// TestReadMetricsOfRecordedEngines reads pages captured from a running server.
func TestReadMetricsOfRecordedEngines(t *testing.T) {
	for file, want := range map[string]fleet.Gauges{
		"metrics-under-load": {Known: fleet.KnownRunning | fleet.KnownWaiting | fleet.KnownKVUsage | fleet.KnownKVCapacity, Running: 8, Waiting: 1},
		"metrics-queue-full": {Known: fleet.KnownRunning | fleet.KnownWaiting | fleet.KnownKVUsage | fleet.KnownKVCapacity, Running: 1, Waiting: 1},
	} {
		raw := capture(t, "llm-d-inference-sim", file+".response.http")
		_, page, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
		got, ok := mustDialect("vllm").Read(page)
		if !ok || got.Running != want.Running || got.Waiting != want.Waiting || !got.Known.Has(fleet.KnownRunning|fleet.KnownWaiting|fleet.KnownKVUsage) {
			t.Errorf("%s: %+v, want %+v", file, got, want)
		}
	}
}

// capture returns a recorded exchange. Captures live beside the repository; in
// CI they must be there.
func capture(t *testing.T, parts ...string) []byte {
	t.Helper()
	path := filepath.Join(append([]string{"..", "..", "..", "shared", "captures"}, parts...)...)
	raw, err := os.ReadFile(path)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("recorded exchanges are missing: %v", err)
		}
		t.Skipf("recorded exchanges are not here: %v", err)
	}
	return raw
}

func TestNumberAgreesWithStrconv(t *testing.T) {
	for _, s := range []string{"0", "1", "12.5", "0.000125", "1e3", "1E-7", "123456789012", "+4", "-2.5e+2", "3.0"} {
		want, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := number([]byte(s)); !ok || math.Abs(got-want) > 1e-12*math.Abs(want) {
			t.Errorf("number(%q) = %v, want %v", s, got, want)
		}
	}
	for _, s := range []string{"", "NaN", "+Inf", "1e", "1x", ".", "e5", "1e9999"} {
		if v, ok := number([]byte(s)); ok {
			t.Errorf("number(%q) = %v, want none", s, v)
		}
	}
}

func metricsPage() []byte {
	var b strings.Builder
	b.WriteString("vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"18625\"} 1.0\n")
	for i := range 400 {
		b.WriteString("# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.\n")
		b.WriteString("vllm:time_to_first_token_seconds_bucket{engine=\"0\",le=\"" + strconv.Itoa(i) + "\",model_name=\"Qwen/Qwen3-32B\"} 17.0\n")
	}
	b.WriteString("vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 3.0\nvllm:num_requests_waiting{engine=\"0\"} 2\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.25\n")
	return []byte(b.String())
}

func TestReadMetricsDoesNotAllocate(t *testing.T) {
	page, vllm := metricsPage(), mustDialect("vllm")
	if n := testing.AllocsPerRun(20, func() { vllm.Read(page) }); n != 0 {
		t.Errorf("%v allocations per page", n)
	}
}

func FuzzReadMetrics(f *testing.F) {
	f.Add(metricsPage()[:2000])
	f.Add([]byte("vllm:num_requests_running{a=\"\\"))
	f.Add([]byte(loraPage))
	for _, d := range otherDialects {
		f.Add([]byte(d.text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, d := range dialects {
			r, ok := d.Read(text)
			if r.Running < 0 || r.Waiting < 0 || math.IsNaN(r.KVUsage) || r.KVUsage < 0 || r.KVBlocks < 0 || r.KVBlock < 0 {
				t.Fatalf("%s: impossible gauges: %+v", d.Name, r)
			}
			if ok != (r.Known != 0) || r.Missing&r.Known != 0 || d.page != nil && (r.Missing|r.Known)&d.page.wants != d.page.wants {
				t.Fatalf("%s: known and missing are not the whole: %+v", d.Name, r)
			}
			if a := r.Adapters; a.Count < 0 || a.Count > fleet.MaxAdapters || a.Max < 0 {
				t.Fatalf("%s: impossible adapters: %+v", d.Name, a)
			}
		}
	})
}

func BenchmarkReadMetrics(b *testing.B) {
	page, vllm := metricsPage(), mustDialect("vllm")
	b.SetBytes(int64(len(page)))
	b.ReportAllocs()
	for b.Loop() {
		vllm.Read(page)
	}
}

func TestScrapeRefusesWhatIsNoMetricsPage(t *testing.T) {
	for name, c := range map[string]struct {
		serve http.HandlerFunc
		want  fleet.Failure
		text  string
	}{
		"50 MB": {func(w http.ResponseWriter, _ *http.Request) {
			line := []byte("vllm:num_requests_running{engine=\"0\"} 1\n")
			for range 50 << 20 / len(line) {
				if _, err := w.Write(line); err != nil {
					return
				}
			}
		}, fleet.FailGarbage, "larger than"},
		"other page": {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>hello</html>")) }, fleet.FailGarbage, "none of the gauges"},
		"404":        {http.NotFound, fleet.FailStatus, "status 404"},
	} {
		srv := httptest.NewServer(c.serve)
		cl := NewClient(Options{})
		d, err := DialectByName("vllm")
		if err != nil {
			t.Fatal(err)
		}
		_, kind, buf, err := cl.Scrape(t.Context(), d, srv.URL, nil)
		if kind != c.want || err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, %v", name, kind, err)
		}
		if cap(buf) > 4*maxMetricsPage {
			t.Errorf("%s: kept %d bytes", name, cap(buf))
		}
		cl.Close()
		srv.Close()
	}
}

func TestCheckURL(t *testing.T) {
	if got, err := CheckURL("http://a:8000/"); err != nil || got != "http://a:8000" {
		t.Errorf("%q %v", got, err)
	}
	for raw, want := range map[string]string{
		"a:8000": "must start with http", "ftp://a": "must start with http", "http://": "no host", "http://u:p@a": "credentials",
		"http://a/v1": "without /v1", "http://a?x=1": "query", "http://a b": "not a URL",
	} {
		if _, err := CheckURL(raw); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", raw, err, want)
		}
	}
}
