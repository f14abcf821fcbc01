package server

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/stat"
)

// The engines whose surface can be shown.
const (
	VLLM   = "vllm"
	SGLang = "sglang"
)

// Options say which engine to simulate. The zero value is Qwen3-32B on two
// H100 at the speed of life, with vLLM's surface and defaults.
type Options struct {
	Engine      string // VLLM or SGLang; empty: VLLM
	Model       string // of the catalogue; empty: the first. Also the name it is served under.
	Accelerator string // of the catalogue; empty: the first
	TP          int    // tensor parallelism, in accelerators; 0: 2
	DP, EP      int    // data-parallel ranks behind this one surface, and groups of experts; 0: 1
	Precision   string // of weights and arithmetic, as catalog.ParsePrecision reads it; empty: as published
	Replica     int    // index among replicas of one fleet; gives each its own noise

	Speedup float64 // divides all times; 0: 1
	Factor  float64 // multiplies all times, a replica slower than its peers; 0: 1
	Noise   float64 // standard deviation of the log of a step's time, 0 (none) to 1
	// Seed makes text and noise. Replicas of one fleet share it, so that the same
	// prompt has the same answer everywhere.
	Seed uint64

	KVTokens     fleet.Tokens // KV capacity; 0: what fits beside the weights
	MaxSeqs      int          // sequences running at once; 0: 256
	BudgetTokens fleet.Tokens // tokens computed per step; 0: 8192
	MaxModelLen  fleet.Tokens // longest prompt plus output; 0: 131072, or KVTokens if that is less
	OutputMean   float64      // mean length in tokens of answers that end by themselves; 0: 200

	// LoRAs are the adapters served from the start: "name" or "name=path".
	LoRAs    []string
	MaxLoRAs int  // adapters running at once; 0: 1
	LoadLoRA bool // adapters can be loaded and unloaded

	// Parts of the surface that older engines lack.
	NoMessages  bool // Anthropic's API
	NoResponses bool // OpenAI's responses API
	NoMetrics   bool // SGLang shows them only if asked to

	HTTP1Only bool // a Node speaks no HTTP/2, with TLS or without

	// KVEvents is the address to publish KV events at, host:port or as vLLM has it
	// (tcp://*:5557); empty: none. The index among replicas and the rank are added
	// to the port, unless that is 0.
	KVEvents     string
	KVReplay     string // address that replays are asked for at; empty: none
	KVEncoding   string // by kv.Encoding's names; empty: vllm-map, or sglang-map of SGLang
	KVReplayForm string // ReplayTopic, ReplayTopicless or ReplayOff; empty: as the encoding's engine
	KVTopic      string
	// KVHash is how events name blocks: HashInternal, or HashCBOR from the root of
	// KVHashSeed, as of PYTHONHASHSEED; empty: HashInternal.
	KVHash, KVHashSeed string

	KVBufferSteps int // messages kept for replays; 0: 10000
	KVRank        int // data-parallel rank that events and metrics are of

	CPUTokens     fleet.Tokens // KV kept in CPU memory when it leaves the GPU; 0: none
	DiskTokens    fleet.Tokens // KV kept on disk when it leaves CPU memory; 0: none
	CPUBandwidth  float64      // bytes per second and accelerator; 0: 25e9, PCIe 4 x16
	DiskBandwidth float64      // bytes per second and accelerator; 0: 6e9, one NVMe drive

	// Encoder makes it one that only encodes images, for others to fetch.
	Encoder    bool
	EncodeTime time.Duration // of one image; 0: 20 ms

	PD PDOptions // what it has to do with requests of two legs

	DevMode      bool // vLLM's routes for sleeping, pausing and resetting
	RefuseAsleep bool // 503 while asleep; otherwise requests wait until it wakes
}

// hasLoRA reports whether the engine was started for adapters at all.
func (o Options) hasLoRA() bool { return len(o.LoRAs) > 0 || o.LoadLoRA }

// withDefaults fills in what was left open, as far as it is known.
func (o Options) withDefaults() Options {
	fill(&o.Engine, VLLM)
	fill(&o.TP, 2)
	fill(&o.Speedup, 1)
	fill(&o.Factor, 1)
	fill(&o.MaxSeqs, 256)
	fill(&o.BudgetTokens, 8192)
	fill(&o.OutputMean, 200)
	fill(&o.MaxLoRAs, 1)
	fill(&o.CPUBandwidth, 25e9)
	fill(&o.DiskBandwidth, 6e9)
	fill(&o.KVBufferSteps, 10_000)
	fill(&o.EncodeTime, 20*time.Millisecond)
	if o.Engine == SGLang {
		fill(&o.KVEncoding, kv.SGLangMap.String())
	}
	fill(&o.KVEncoding, kv.VLLMMap.String())
	if c, _ := findEncoding(o.KVEncoding); c == kv.VLLMMap || c == kv.VLLMMapBytes {
		fill(&o.KVReplayForm, ReplayTopic)
	}
	fill(&o.KVReplayForm, ReplayTopicless)
	o.PD = o.PD.withDefaults()
	fill(&o.KVHash, HashInternal)
	if s, err := o.serving(); err == nil {
		o.Model, o.Accelerator, o.DP, o.EP = s.Shape.Name, s.Accelerator.Name, s.DP, s.EP
		fill(&o.KVTokens, fleet.Tokens(s.KVTokens())/enginesim.BlockTokens*enginesim.BlockTokens)
		fill(&o.MaxModelLen, min(131_072, o.KVTokens))
	}
	return o
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Serving returns the way of serving that the options describe.
func (o Options) Serving() (catalog.Serving, error) { return o.withDefaults().serving() }

func (o Options) serving() (catalog.Serving, error) {
	m, errModel := catalog.FindModel(o.Model)
	a, errAccelerator := catalog.FindAccelerator(o.Accelerator)
	p, errPrecision := catalog.ParsePrecision(o.Precision)
	if err := errors.Join(errModel, errAccelerator, errPrecision); err != nil {
		return catalog.Serving{}, err
	}
	s := catalog.Serving{Shape: m, Accelerator: a, TP: o.TP, DP: o.DP, EP: o.EP, Weights: p, Engine: o.Engine}.Normal()
	return s, s.Validate()
}

// Validate reports everything that is wrong with o, each with the option's
// name and what would be right.
func (o Options) Validate() error {
	o = o.withDefaults()
	_, err := o.serving()
	errs := []error{err}
	check := func(ok bool, name string, value any, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %v is not possible; use %s", name, value, want))
		}
	}
	check(o.Engine == VLLM || o.Engine == SGLang, "engine", o.Engine, VLLM+" or "+SGLang)
	check(o.MaxLoRAs > 0, "max-loras", o.MaxLoRAs, "a number above 0")
	seen := map[string]bool{"": true, o.Model: true}
	for _, l := range o.LoRAs {
		name := parseLoRA(l).name
		check(!seen[name], "lora", l, "name or name=path, each name once and not the model's")
		seen[name] = true
	}
	check(o.Replica >= 0, "replica", o.Replica, "an index from 0")
	check(o.Speedup > 0 && o.Speedup <= 1e6, "speedup", o.Speedup, "a number above 0")
	check(o.Factor > 0 && o.Factor <= 1e6, "factor", o.Factor, "a number above 0; 1 is the speed of the hardware")
	check(o.Noise >= 0 && o.Noise <= 1, "noise", o.Noise, "0 to 1")
	check(o.MaxSeqs > 0, "max-seqs", o.MaxSeqs, "a number above 0")
	check(o.BudgetTokens > 0, "budget-tokens", o.BudgetTokens, "a number above 0")
	check(o.EncodeTime > 0, "encode-time", o.EncodeTime, "a duration above 0")
	check(!o.Encoder || o.Engine == VLLM, "engine", o.Engine, VLLM+" for one that only encodes")
	check(o.OutputMean >= 1, "output-mean", o.OutputMean, "at least 1")
	o.checkKV(check)
	o.checkPD(check)
	if err == nil {
		check(o.KVTokens >= 2*enginesim.BlockTokens, "kv-tokens", o.KVTokens, "at least 32")
		check(o.MaxModelLen > 1 && o.MaxModelLen <= o.KVTokens, "max-model-len", o.MaxModelLen,
			fmt.Sprintf("2 to the KV cache's %d tokens", o.KVTokens))
	}
	return errors.Join(errs...)
}

// checkKV looks at the options of KV events and of the tiers below the GPU.
func (o Options) checkKV(check func(ok bool, name string, value any, want string)) {
	names := make([]string, kv.Encodings)
	for c := range kv.Encodings {
		names[c] = c.String()
	}
	_, known := findEncoding(o.KVEncoding)
	check(known, "kv-events-encoding", o.KVEncoding, "one of "+strings.Join(names, ", "))
	forms := []string{ReplayTopic, ReplayTopicless, ReplayOff}
	check(slices.Contains(forms, o.KVReplayForm), "kv-replay-form", o.KVReplayForm, "one of "+strings.Join(forms, ", "))
	for name, address := range map[string]string{"kv-events": o.KVEvents, "kv-replay": o.KVReplay} {
		_, err := kvAddress(address, 0)
		check(address == "" || err == nil, name, address, "an address with a port")
	}
	check(o.KVReplay == "" || o.KVEvents != "", "kv-replay", o.KVReplay, "it together with kv-events")
	check(o.KVHash == HashInternal || o.KVHash == HashCBOR && o.Engine == VLLM, "kv-hash", o.KVHash, HashInternal+", or "+HashCBOR+" of "+VLLM)
	check(o.KVHashSeed == "" || o.KVHash == HashCBOR, "kv-hash-seed", o.KVHashSeed, "it together with kv-hash "+HashCBOR)
	check(o.KVBufferSteps > 0, "kv-buffer-steps", o.KVBufferSteps, "a number above 0")
	check(o.KVRank >= 0, "kv-rank", o.KVRank, "a rank from 0")
	check(o.CPUTokens >= 0, "kv-cpu-tokens", o.CPUTokens, "0 or more")
	check(o.DiskTokens == 0 || o.DiskTokens > 0 && o.CPUTokens >= enginesim.BlockTokens, "kv-disk-tokens", o.DiskTokens, "0, or some below kv-cpu-tokens")
	check(o.CPUBandwidth > 0, "kv-cpu-bandwidth", o.CPUBandwidth, "a number above 0")
	check(o.DiskBandwidth > 0, "kv-disk-bandwidth", o.DiskBandwidth, "a number above 0")
}

// kvAddress returns the address to listen at for the i-th of those whose first
// address is given.
func kvAddress(first string, i int) (string, error) {
	host, port, err := net.SplitHostPort(strings.TrimPrefix(first, "tcp://"))
	if err != nil {
		return "", err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", err
	}
	if n != 0 {
		n += uint64(i)
	}
	return net.JoinHostPort(strings.TrimPrefix(host, "*"), strconv.FormatUint(n, 10)), nil
}

// Latencies of loads from the tiers below the GPU: a handful of copies by the
// driver, and reads of files.
const (
	cpuLatency  = 200 * time.Microsecond
	diskLatency = 2 * time.Millisecond
)

// offload is the tiers below the GPU, of which each accelerator has its share
// behind a link of its own.
func (o Options) offload(s catalog.Serving) enginesim.Offload {
	if o.CPUTokens == 0 {
		return enginesim.Offload{}
	}
	store := func(tokens fleet.Tokens, bandwidth float64, latency time.Duration) enginesim.Store {
		return enginesim.Store{Tokens: tokens, Bandwidth: bandwidth * o.Speedup, Latency: time.Duration(float64(latency) / o.Speedup)}
	}
	return enginesim.Offload{
		CPU:     store(o.CPUTokens, o.CPUBandwidth, cpuLatency),
		Disk:    store(o.DiskTokens, o.DiskBandwidth, diskLatency),
		KVBytes: s.KVBytes(),
	}
}

// Physics returns what a Server of these options runs on, and what it can hold,
// for running its engine in virtual time.
func (o Options) Physics() (enginesim.Physics, fleet.Limits, error) {
	if err := o.Validate(); err != nil {
		return nil, fleet.Limits{}, err
	}
	o = o.withDefaults()
	_, t, err := o.newEngine(nil)
	if err != nil {
		return nil, fleet.Limits{}, err
	}
	return t.Speedup, o.Limits(), nil
}

// Limits returns what the engine can hold, defaults filled in.
func (o Options) Limits() fleet.Limits {
	o = o.withDefaults()
	return fleet.Limits{
		MaxModelLen: o.MaxModelLen, KVTokens: o.KVTokens, BlockTokens: enginesim.BlockTokens,
		MaxSeqs: o.MaxSeqs, BudgetTokens: o.BudgetTokens,
	}
}

// throttle is a Physics that can be slowed down while it is in use.
type throttle struct {
	enginesim.Speedup
	factor float64
}

// newEngine builds the engine of valid options with defaults filled in. Its
// events, if any are wanted, are described by the function given.
func (o Options) newEngine(describe func(fleet.ReqID, int, *kv.Event)) (*enginesim.Engine, *throttle, error) {
	s, err := o.serving()
	if err != nil {
		return nil, nil, err
	}
	r := enginesim.NewRoofline(s)
	r.Factor, r.Noise, r.Seed = o.Factor, o.Noise, stat.Mix64(o.Seed+uint64(o.Replica))
	t := &throttle{Speedup: enginesim.Speedup{Physics: enginesim.Ranks{Rank: r, N: s.DP}, By: o.Speedup}, factor: 1}
	t.set(1)
	e, err := enginesim.New(enginesim.Config{
		Physics: t, KVTokens: o.KVTokens, MaxSeqs: o.MaxSeqs,
		BudgetTokens: o.BudgetTokens, MaxAdapters: o.MaxLoRAs, EveryToken: true,
		Offload: o.offload(s), Events: describe != nil && o.KVEvents != "", Describe: describe,
	})
	return e, t, err
}

// set makes steps from the next on last factor times as long.
func (t *throttle) set(factor float64) {
	t.By *= t.factor / factor
	t.factor = factor
}
