// Package bench sends load to any server that speaks the OpenAI API and
// measures what comes back. Open-loop load keeps to its schedule whatever the
// server does, and latency counts from the moment a request should have been
// sent, so a server that stalls cannot hide it. Streams are checked as they
// arrive: a lost, doubled or broken event is an error, not a fast answer.
package bench

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"penstock.dev/penstock/internal/workload"
)

// Options are the flags of penstock bench. Start from DefaultOptions when not
// filled in by kong. Flags left empty take the workload file's word, then the
// default.
type Options struct {
	URL      string `name:"url" json:"url" placeholder:"URL" help:"Server to load, without /v1 (default http://127.0.0.1:8080)."`
	Model    string `name:"model" json:"model" help:"Model to ask for (default: the first of /v1/models)."`
	Endpoint string `name:"endpoint" json:"endpoint" enum:",completions,chat" default:"" placeholder:"API" help:"completions or chat (default completions)."`
	Stream   bool   `name:"stream" json:"stream" negatable:"" default:"true" help:"Ask for streamed answers; without, TTFT is the whole latency."`

	Workload    string  `name:"workload" json:"workload,omitempty" type:"existingfile" placeholder:"FILE.yaml" help:"Workload in inference-perf's YAML shape: shared_prefix, random or conversation_replay."`
	Trace       string  `name:"trace" json:"trace,omitempty" type:"existingfile" placeholder:"FILE" help:"Replay a recorded trace, for example --trace conversation.jsonl --trace-speed 10 --duration 60s."`
	TraceFormat string  `name:"trace-format" json:"trace_format,omitempty" enum:"auto,mooncake,azure" default:"auto" help:"auto, mooncake or azure."`
	TraceSpeed  float64 `name:"trace-speed" json:"trace_speed,omitempty" default:"1" help:"Play the trace so many times faster; a turn still waits for the answer before it."`
	TraceCopies int     `name:"trace-copies" json:"trace_copies,omitempty" default:"1" help:"Lay so many copies over each other, begun at different places and with text of their own."`
	RealAnswers bool    `name:"real-answers" json:"real_answers" help:"Put the server's real answers into later turns of a conversation. Prompts then depend on the server."`

	Rate        float64       `name:"rate" json:"rate,omitempty" placeholder:"R" help:"Open loop: send R requests per second (default 5 when nothing else says)."`
	Arrival     string        `name:"arrival" json:"arrival,omitempty" enum:",poisson,constant" default:"" placeholder:"KIND" help:"Arrivals of --rate: poisson or constant (default poisson)."`
	Concurrency int           `name:"concurrency" json:"concurrency,omitempty" placeholder:"N" help:"Closed loop: keep N requests in flight."`
	Requests    int           `name:"requests" json:"requests,omitempty" placeholder:"N" help:"Stop after N requests."`
	Duration    time.Duration `name:"duration" json:"duration_ns,omitempty" placeholder:"D" help:"Send for so long, for example 60s (default 30s with --rate)."`
	Warmup      time.Duration `name:"warmup" json:"warmup_ns,omitempty" placeholder:"D" help:"Do not measure requests due in the first D."`
	InputLen    int           `name:"input-len" json:"input_len,omitempty" default:"512" help:"Prompt tokens of the quick load without --workload and --trace."`
	OutputLen   int           `name:"output-len" json:"output_len,omitempty" default:"128" help:"Answer tokens of the quick load."`
	Seed        uint64        `name:"seed" json:"seed" placeholder:"N" help:"Seed of all text and arrivals; the same seed and options send the same requests (default: the file's, or 42)."`
	IgnoreEOS   bool          `name:"ignore-eos" json:"ignore_eos" negatable:"" default:"true" help:"Ask the server to generate exactly the wanted number of tokens."`

	Goodput     []string          `name:"goodput" json:"goodput,omitempty" placeholder:"METRIC:MS" help:"Target a good request meets, in ms; repeat for more: --goodput ttft:500 --goodput tpot:50 (also e2e)."`
	Verify      string            `name:"verify" json:"verify" enum:"strict,framing,off" default:"strict" help:"Check streams: strict also wants one event per token; framing allows engines that put several tokens into one; off."`
	Timeout     time.Duration     `name:"timeout" json:"timeout_ns" default:"300s" help:"Give a request up after so long."`
	MaxInFlight int               `name:"max-in-flight" json:"max_in_flight" default:"4096" help:"Never have more requests open; what is due waits, and the lag is reported."`
	Grace       time.Duration     `name:"grace" json:"grace_ns" default:"5s" help:"After an interrupt, wait so long for open requests."`
	Header      map[string]string `name:"header" json:"header,omitempty" mapsep:"none" placeholder:"K=V" help:"Header to add to each request; repeat for more."`
	APIKey      string            `name:"api-key" json:"-" env:"PENSTOCK_API_KEY" placeholder:"KEY" help:"Key sent as a bearer token."`
	AllowRemote bool              `name:"allow-remote" json:"allow_remote" help:"Allow a server that is not on this machine."`

	JSON   bool   `name:"json" json:"-" help:"Print the result as JSON instead of a table."`
	Output string `name:"output" short:"o" json:"-" type:"path" placeholder:"FILE" help:"Also write the JSON result to FILE."`
	// Spec is a workload made in code, in place of a file.
	Spec *workload.Spec `kong:"-" json:"-"`

	PerRequest string `name:"per-request" json:"-" type:"path" placeholder:"FILE" help:"Write one JSON line per request to FILE."`
}

// Help is shown below the flags of penstock bench.
const Help = `Examples:
  penstock bench                                     quick look: 5 requests/s for 30 s
  penstock bench --concurrency 32 --requests 1000    closed loop
  penstock bench --trace conversation.jsonl --trace-speed 10 --duration 60s \
      --goodput ttft:500 --goodput tpot:50           a recorded load, with targets
  penstock bench --workload shared_prefix.yaml --rate 20 --duration 2m --json`

// DefaultOptions are the options kong fills in when no flag is given.
func DefaultOptions() Options {
	return Options{
		Stream: true, TraceFormat: "auto", TraceSpeed: 1, TraceCopies: 1, InputLen: 512, OutputLen: 128,
		IgnoreEOS: true, Verify: "strict", Timeout: 300 * time.Second, MaxInFlight: 4096, Grace: 5 * time.Second,
	}
}

// Defaults of flags that a workload file may set instead.
const (
	defaultURL      = "http://127.0.0.1:8080"
	defaultRate     = 5
	defaultDuration = 30 * time.Second
	defaultSeed     = 42
)

// check refuses what cannot be meant, all at once being too rare to matter.
func (o *Options) check() error {
	switch {
	case o.Workload != "" && o.Trace != "":
		return fmt.Errorf("--workload and --trace: give one of them")
	case o.Rate != 0 && o.Concurrency != 0:
		return fmt.Errorf("--rate and --concurrency: a load is open loop or closed loop, give one of them")
	case o.Trace != "" && (o.Rate != 0 || o.Arrival != ""):
		return fmt.Errorf("--trace brings its own arrivals: change them with --trace-speed and --trace-copies, or use --concurrency")
	case o.Trace == "" && (o.TraceSpeed != 1 || o.TraceCopies != 1):
		return fmt.Errorf("--trace-speed and --trace-copies need --trace FILE")
	case !(o.Rate >= 0 && o.Rate <= 1e6):
		return fmt.Errorf("--rate %v: want 0..1000000 requests per second", o.Rate)
	case o.TraceCopies < 1:
		return fmt.Errorf("--trace-copies %d: want at least 1", o.TraceCopies)
	case o.Concurrency < 0 || o.Requests < 0 || o.Duration < 0 || o.Warmup < 0 || o.Grace < 0:
		return fmt.Errorf("--concurrency, --requests, --duration, --warmup and --grace must not be negative")
	case o.InputLen < 1 || o.OutputLen < 1:
		return fmt.Errorf("--input-len %d, --output-len %d: want at least 1 token", o.InputLen, o.OutputLen)
	case o.Timeout <= 0:
		return fmt.Errorf("--timeout %v: want more than 0", o.Timeout)
	case o.MaxInFlight < 1:
		return fmt.Errorf("--max-in-flight %d: want at least 1", o.MaxInFlight)
	case o.Concurrency > o.MaxInFlight:
		return fmt.Errorf("--concurrency %d is above --max-in-flight %d; raise the latter", o.Concurrency, o.MaxInFlight)
	}
	return nil
}

// Targets are what a good request meets; zero fields ask nothing.
type Targets struct {
	TTFT time.Duration // to the first token, from the intended send time
	TPOT time.Duration // mean per output token after the first
	E2E  time.Duration // whole answer, from the intended send time
}

// ParseGoodput reads targets such as ttft:500 and tpot:50, in milliseconds.
func ParseGoodput(list []string) (Targets, error) {
	var t Targets
	for _, s := range list {
		name, ms, ok := strings.Cut(s, ":")
		v, err := strconv.ParseFloat(ms, 64)
		if !ok || err != nil || !(v > 0 && v < 1e9) {
			return t, fmt.Errorf("--goodput %q: want METRIC:MILLISECONDS, for example ttft:500", s)
		}
		if err := t.set(strings.ToLower(name), time.Duration(v*float64(time.Millisecond))); err != nil {
			return t, fmt.Errorf("--goodput %q: %w", s, err)
		}
	}
	return t, nil
}

func (t *Targets) set(name string, d time.Duration) error {
	field := map[string]*time.Duration{"ttft": &t.TTFT, "tpot": &t.TPOT, "e2e": &t.E2E, "e2el": &t.E2E}[name]
	if field == nil {
		return fmt.Errorf("metric %q is not known; use ttft, tpot or e2e", name)
	}
	if *field != 0 {
		return fmt.Errorf("metric %q is given twice", name)
	}
	*field = d
	return nil
}

// parseTarget checks a server's URL. Unless remote is set, only this machine is
// allowed: a load generator pointed elsewhere by mistake is an attack.
func parseTarget(raw string, remote bool) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("--url %q: want http://HOST:PORT", raw)
	}
	if !remote && !isLocal(u.Hostname()) {
		return nil, fmt.Errorf("--url %q is not this machine: load on other people's servers is refused; add --allow-remote if it is yours", raw)
	}
	u.Path = strings.TrimSuffix(strings.TrimRight(u.Path, "/"), "/v1")
	u.RawQuery, u.Fragment = "", ""
	return u, nil
}

// isLocal says whether a host name surely means this machine. Names other than
// localhost are not looked up: they may mean something else a moment later.
func isLocal(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && (ip.IsLoopback() || ip.IsUnspecified())
}
