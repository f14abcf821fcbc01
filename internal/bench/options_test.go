package bench

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
)

func parseFlags(t *testing.T, args ...string) (Options, error) {
	t.Helper()
	var o Options
	k, err := kong.New(&o, kong.Exit(func(int) { t.Fatal("kong wants to exit") }))
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.Parse(args)
	return o, err
}

func TestFlagDefaultsAreDefaultOptions(t *testing.T) {
	o, err := parseFlags(t)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(DefaultOptions(), o); d != "" {
		t.Error(d)
	}
}

func TestFlags(t *testing.T) {
	o, err := parseFlags(t, "--url", "http://localhost:1", "--endpoint", "chat", "--no-stream", "--no-ignore-eos", "--goodput", "ttft:500",
		"--goodput", "tpot:50", "--header", "A=b;c", "--header", "D=e=f", "--duration", "90s", "--rate", "2.5", "--seed", "9")
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultOptions()
	want.URL, want.Endpoint, want.Stream, want.IgnoreEOS = "http://localhost:1", "chat", false, false
	want.Goodput, want.Header = []string{"ttft:500", "tpot:50"}, map[string]string{"A": "b;c", "D": "e=f"}
	want.Duration, want.Rate, want.Seed = 90*time.Second, 2.5, 9
	if d := cmp.Diff(want, o); d != "" {
		t.Error(d)
	}
	if _, err := parseFlags(t, "--endpoint", "responses"); err == nil {
		t.Error("unknown endpoint accepted")
	}
}

func TestParseGoodput(t *testing.T) {
	got, err := ParseGoodput([]string{"ttft:500", "TPOT:12.5", "e2el:9000"})
	if want := (Targets{TTFT: 500 * time.Millisecond, TPOT: 12500 * time.Microsecond, E2E: 9 * time.Second}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "ttft", "ttft:", "ttft:x", "ttft:-1", "ttft:0", "ttft:NaN", "ttft:Inf", "itl:5"} {
		if _, err := ParseGoodput([]string{bad}); err == nil || !strings.Contains(err.Error(), "--goodput") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := ParseGoodput([]string{"ttft:1", "ttft:2"}); err == nil {
		t.Error("a metric given twice is accepted")
	}
}

func TestRemoteServersAreRefused(t *testing.T) {
	for url, local := range map[string]bool{
		"http://127.0.0.1:8080": true, "http://localhost:8080/v1/": true, "http://[::1]:80": true, "http://127.9.9.9": true,
		"http://a.localhost": true, "http://0.0.0.0:8000": true,
		"http://10.0.0.1:8080": false, "https://api.openai.com/v1": false, "http://localhost.example.com": false, "http://[fe80::1]": false,
		"http://169.254.169.254": false,
	} {
		_, err := parseTarget(url, false)
		if (err == nil) != local {
			t.Errorf("%s: %v", url, err)
		}
		if !local && !strings.Contains(err.Error(), "--allow-remote") {
			t.Errorf("%s: the error does not say what to do: %v", url, err)
		}
		if u, err := parseTarget(url, true); err != nil || strings.Contains(u.String(), "/v1") {
			t.Errorf("%s with --allow-remote: %v, %v", url, u, err)
		}
	}
	for _, bad := range []string{"", "localhost:8080", "ftp://localhost", "http://", "http://[::1"} {
		if _, err := parseTarget(bad, true); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func TestContradictingOptionsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"workload and trace":   func(o *Options) { o.Workload, o.Trace = "a", "b" },
		"rate and concurrency": func(o *Options) { o.Rate, o.Concurrency = 1, 1 },
		"rate of a trace":      func(o *Options) { o.Trace, o.Rate = "a", 1 },
		"speed without trace":  func(o *Options) { o.TraceSpeed = 2 },
		"negative rate":        func(o *Options) { o.Rate = -1 },
		"negative duration":    func(o *Options) { o.Duration = -1 },
		"no tokens":            func(o *Options) { o.InputLen = 0 },
		"no time":              func(o *Options) { o.Timeout = 0 },
		"nothing in flight":    func(o *Options) { o.MaxInFlight = 0 },
		"above the bound":      func(o *Options) { o.Concurrency = 5000 },
		"no copies":            func(o *Options) { o.Trace, o.TraceCopies = "a", 0 },
		"endpoint":             func(o *Options) { o.Endpoint = "responses" },
		"verify":               func(o *Options) { o.Verify = "some" },
		"missing trace":        func(o *Options) { o.Trace = "does-not-exist.jsonl" },
		"missing workload":     func(o *Options) { o.Workload = "does-not-exist.yaml" },
	} {
		o := DefaultOptions()
		change(&o)
		if _, err := newPlan(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestFlagsComeBeforeTheWorkloadFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "w.yaml")
	text := `
load: {type: poisson, interval: 0, request_timeout: 20, base_seed: 7, stages: [{rate: 3, duration: 10}, {rate: 4, duration: 5}]}
api: {type: chat, streaming: false, headers: {a: file, b: file}}
server: {type: vllm, model_name: m, base_url: "http://localhost:9", ignore_eos: false}
data: {type: random, input_distribution: {}, output_distribution: {}}
report: {goodput: {constraints: {ttft: 0.25}}}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o := DefaultOptions()
	o.Workload = file
	p, err := newPlan(o)
	if err != nil {
		t.Fatal(err)
	}
	if p.URL != "http://localhost:9" || p.Model != "m" || !p.chat || p.Stream || p.IgnoreEOS || p.Timeout != 20*time.Second || p.Seed != 7 ||
		p.targets.TTFT != 250*time.Millisecond || p.closed || p.total != 15*time.Second || p.Header["a"] != "file" {
		t.Errorf("%+v", p)
	}
	o.URL, o.Model, o.Endpoint, o.Seed, o.Header = "http://localhost:1", "n", "completions", 5, map[string]string{"a": "flag"}
	o.Concurrency, o.Requests, o.Goodput = 3, 50, []string{"e2e:1"}
	if p, err = newPlan(o); err != nil {
		t.Fatal(err)
	}
	if p.URL != "http://localhost:1" || p.Model != "n" || p.chat || p.Seed != 5 || !p.closed || p.stages[0].Concurrency != 3 ||
		p.targets != (Targets{E2E: time.Millisecond}) || p.Header["a"] != "flag" || p.Header["b"] != "file" {
		t.Errorf("%+v", p)
	}
}

func TestSecretsStayOutOfTheReport(t *testing.T) {
	o := DefaultOptions()
	o.Header = map[string]string{"Authorization": "Bearer x", "X-Api-Key": "x", "X-Team": "blue"}
	if d := cmp.Diff(map[string]string{"Authorization": "***", "X-Api-Key": "***", "X-Team": "blue"}, withoutSecrets(o).Header); d != "" {
		t.Error(d)
	}
}
