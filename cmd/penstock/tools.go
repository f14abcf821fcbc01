package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"time"

	"penstock.dev/penstock/internal/bench"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/fleet"
)

func kvTokens(n int) fleet.Tokens { return fleet.Tokens(n) }

// kvFlags are about the KV of simulated engines: where it is kept, and who is
// told.
type kvFlags struct {
	KVEvents        string  `name:"kv-events" placeholder:"ADDR" help:"Publish KV events over ZeroMQ at this address (127.0.0.1:5557); engine I, or rank I, at a port higher by I."`
	KVReplay        string  `name:"kv-replay" placeholder:"ADDR" help:"Answer requests for replays of KV events at this address; ports as above."`
	KVEncoding      string  `name:"kv-events-encoding" placeholder:"NAME" help:"vllm-array, vllm-map, vllm-map-bytes, sglang-array, sglang-map, trtllm or mooncake (default: vllm-map or sglang-map)."`
	KVReplayForm    string  `name:"kv-replay-form" placeholder:"FORM" help:"topic, topicless or off (default: as the encoding's engine)."`
	KVTopic         string  `name:"kv-topic" placeholder:"TEXT" help:"Topic of KV events (default: empty)."`
	KVHash          string  `name:"kv-hash" placeholder:"ALGO" help:"How KV events name blocks: internal, which nobody can compute, or sha256_cbor, as vLLM does on request (default internal)."`
	KVHashSeed      string  `name:"kv-hash-seed" placeholder:"SEED" help:"The PYTHONHASHSEED of sha256_cbor (default: not set)."`
	KVBufferSteps   int     `name:"kv-buffer-steps" placeholder:"N" help:"Messages kept for replays (default 10000)."`
	KVRank          int     `name:"kv-rank" placeholder:"I" help:"Data-parallel rank that KV events are of (default 0)."`
	KVCPUTokens     int     `name:"kv-cpu-tokens" placeholder:"N" help:"Keep so many tokens of KV in CPU memory when they leave the GPU."`
	KVDiskTokens    int     `name:"kv-disk-tokens" placeholder:"N" help:"Keep so many tokens of KV on disk when they leave CPU memory."`
	KVCPUBandwidth  float64 `name:"kv-cpu-bandwidth" placeholder:"GB/S" help:"From CPU memory to each accelerator (default 25)."`
	KVDiskBandwidth float64 `name:"kv-disk-bandwidth" placeholder:"GB/S" help:"From disk to each accelerator (default 6)."`
}

// with returns o with the flags filled in.
func (f kvFlags) with(o server.Options) server.Options {
	o.KVEvents, o.KVReplay, o.KVEncoding, o.KVReplayForm = f.KVEvents, f.KVReplay, f.KVEncoding, f.KVReplayForm
	o.KVHash, o.KVHashSeed = f.KVHash, f.KVHashSeed
	o.KVTopic, o.KVBufferSteps, o.KVRank = f.KVTopic, f.KVBufferSteps, f.KVRank
	o.CPUTokens, o.DiskTokens = fleet.Tokens(f.KVCPUTokens), fleet.Tokens(f.KVDiskTokens)
	o.CPUBandwidth, o.DiskBandwidth = f.KVCPUBandwidth*1e9, f.KVDiskBandwidth*1e9
	return o
}

type engineCmd struct {
	kvFlags
	pdFlags
	Listen       string        `default:"127.0.0.1:8000" help:"Address to serve on."`
	Model        string        `help:"Model (default Qwen/Qwen3-32B)."`
	Engine       string        `enum:"vllm,sglang" default:"vllm" help:"Whose surface to show: ${enum}."`
	Accelerator  string        `help:"Accelerator (default H100)."`
	TP           int           `name:"tp" default:"2" help:"Tensor parallelism, in accelerators."`
	DP           int           `name:"dp" default:"1" help:"Data-parallel ranks."`
	DPMode       string        `name:"dp-mode" enum:"whole,port,header" default:"whole" help:"What of the ranks is seen: nothing (whole: one engine, in lockstep), a server each at ports higher by the rank (port), or one server that X-data-parallel-rank steers (header). Seen ranks each hold the whole model."`
	EP           int           `name:"ep" default:"1" help:"Groups that experts are dealt to."`
	Precision    string        `placeholder:"FORMAT" help:"Of weights and arithmetic: bf16, fp8 or fp4 (default: as published)."`
	Speedup      float64       `default:"1" help:"Run so many times faster than life."`
	Factor       float64       `default:"1" help:"Multiply step times: above 1 is a slow replica."`
	Noise        float64       `default:"0.05" help:"Spread of step times, 0 to 1."`
	Replica      int           `default:"0" help:"Index among replicas; gives each its own noise."`
	Seed         uint64        `default:"1" help:"Seed of the text; replicas of one fleet share it."`
	KVTokens     int           `name:"kv-tokens" placeholder:"N" help:"KV cache in tokens (default: what the accelerators hold)."`
	MaxSeqs      int           `placeholder:"N" help:"Sequences running at once (default 256)."`
	BudgetTokens int           `placeholder:"N" help:"Tokens per step (default 8192)."`
	MaxModelLen  int           `placeholder:"N" help:"Longest prompt plus answer (default 131072)."`
	OutputMean   float64       `default:"200" help:"Mean length of answers that end by themselves."`
	LoRA         []string      `name:"lora" sep:"none" placeholder:"NAME[=PATH]" help:"Adapter served from the start; repeatable."`
	MaxLoRAs     int           `name:"max-loras" placeholder:"N" help:"Adapters running at once (default 1)."`
	LoadLoRA     bool          `name:"load-lora" help:"Let adapters be loaded and unloaded over HTTP."`
	NoMessages   bool          `name:"no-messages" help:"Do not speak Anthropic's API."`
	NoResponses  bool          `name:"no-responses" help:"Do not speak OpenAI's responses API."`
	NoMetrics    bool          `name:"no-metrics" help:"Show no metrics, as SGLang does unless asked to."`
	Encoder      bool          `help:"Only encode images, for others to fetch."`
	EncodeTime   time.Duration `placeholder:"TIME" help:"To encode one image (default 20ms)."`
	DevMode      bool          `name:"dev-mode" help:"Add vLLM's routes for sleeping, pausing and resetting."`
	RefuseAsleep bool          `name:"refuse-asleep" help:"Answer 503 while asleep instead of waiting."`
	TLSCert      string        `name:"tls-cert" type:"existingfile" placeholder:"FILE" help:"Serve over TLS with this certificate."`
	TLSKey       string        `name:"tls-key" type:"existingfile" placeholder:"FILE" help:"Its key."`
	HTTP1Only    bool          `name:"http1-only" help:"Do not speak HTTP/2."`
	Grace        time.Duration `default:"10s" help:"After a signal, let open requests run for so long."`
}

// Help shows examples.
func (engineCmd) Help() string {
	return `A simulated engine speaks vLLM's API, or SGLang's, and schedules as vLLM does;
only its arithmetic is missing. It can be made to fail on purpose: see POST
/sim/fault.

Examples:
  penstock engine --listen 127.0.0.1:8001
  penstock engine --listen 127.0.0.1:8002 --factor 1.5     a slow replica
  penstock engine --kv-events 127.0.0.1:5557 --kv-replay 127.0.0.1:5657 --kv-cpu-tokens 600000
  penstock engine --dp 4 --dp-mode port --kv-events 127.0.0.1:5557     127.0.0.1:8000 to :8003
  penstock engine --listen 127.0.0.1:8001 --role prefill --kv-connector nixl --kv-side-channel 127.0.0.1:5600
  penstock engine --listen 127.0.0.1:8002 --role decode --kv-connector nixl
  penstock engine --engine sglang --role prefill --kv-connector sglang --kv-bootstrap 127.0.0.1:8998
  penstock engine --engine sglang --lora poet --lora clerk --max-loras 2
  curl -X POST localhost:8001/sim/fault -d '{"kind":"hang","count":1}'`
}

// crashed is the exit status of a simulated crash, as of a process that was
// killed.
const crashed = 137

// Run serves until a signal, or until told to crash.
func (c *engineCmd) Run(ctx context.Context, s streams) error {
	secure, err := c.tls()
	if err != nil {
		return err
	}
	config := server.Config{
		TLS: secure,
		Options: c.with(server.Options{
			Model: c.Model, Accelerator: c.Accelerator, TP: c.TP, DP: c.DP, EP: c.EP, Precision: c.Precision, Replica: c.Replica, Speedup: c.Speedup, Factor: c.Factor,
			Noise: c.Noise, Seed: c.Seed, KVTokens: fleet.Tokens(c.KVTokens), MaxSeqs: c.MaxSeqs,
			Engine: c.Engine, LoRAs: c.LoRA, MaxLoRAs: c.MaxLoRAs, LoadLoRA: c.LoadLoRA,
			NoMessages: c.NoMessages, NoResponses: c.NoResponses, NoMetrics: c.NoMetrics,
			DevMode: c.DevMode, RefuseAsleep: c.RefuseAsleep, HTTP1Only: c.HTTP1Only,
			BudgetTokens: fleet.Tokens(c.BudgetTokens), MaxModelLen: fleet.Tokens(c.MaxModelLen), OutputMean: c.OutputMean,
			PD: c.pdFlags.options(), Encoder: c.Encoder, EncodeTime: c.EncodeTime,
		}),
	}
	n, err := c.listen(s, config)
	if err != nil {
		return err
	}
	select {
	case <-n.Done(): // a simulated crash has cut every connection
		return exitError(crashed)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), c.Grace)
	defer cancel()
	if err := n.Shutdown(grace); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// simulated is what serves: one engine, or its ranks.
type simulated interface {
	Done() <-chan struct{}
	Shutdown(ctx context.Context) error
}

// listen starts what is to be simulated and says where it is.
func (c *engineCmd) listen(s streams, config server.Config) (simulated, error) {
	if c.DPMode == "whole" {
		n, err := server.Listen(c.Listen, config)
		if err == nil {
			announce(s, n, n.URL())
		}
		return n, err
	}
	g, err := server.ListenRanks(c.Listen, c.DP, c.DPMode == "header", config)
	if err != nil {
		return nil, err
	}
	for i, n := range g.Nodes {
		announce(s, n, fmt.Sprintf("%s as rank %d", g.URL(i), i))
	}
	return g, nil
}

func announce(s streams, n *server.Node, at string) {
	o := n.Server.Options()
	fmt.Fprintf(s.Out, "Simulated engine: %s on %d x %s, %d tokens of KV cache, at %s\n", o.Model, o.TP, o.Accelerator, o.KVTokens, at)
	if events, replay := n.KVAddresses(); events != "" {
		fmt.Fprintf(s.Out, "KV events: %s at %s, replays at %s\n", o.KVEncoding, events, cmp.Or(replay, "none"))
	}
	if side, bootstrap := n.PDAddresses(); side != "" {
		fmt.Fprintf(s.Out, "%s engine: KV by %s at %s, bootstrap server at %s\n", o.PD.Role, o.PD.Connector, side, cmp.Or(bootstrap, "none"))
	}
}

// tls is the configuration to serve with; nil without a certificate.
func (c *engineCmd) tls() (*tls.Config, error) {
	if c.TLSCert == "" && c.TLSKey == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert and --tls-key: %w", err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

type benchCmd struct{ bench.Options }

// Help shows examples.
func (benchCmd) Help() string { return bench.Help }

// Run sends the load. It fails when a request did.
func (c *benchCmd) Run(ctx context.Context, s streams) error {
	r, err := bench.Run(ctx, c.Options, bench.Streams{Out: s.Out, Err: s.Err, TTY: bench.IsTerminal(os.Stderr)})
	if err != nil {
		return err
	}
	if r.Requests.Failed > 0 || r.Interrupted {
		return exitError(1)
	}
	return nil
}
