// Package config is the schema of the Fleet file: what may be written, what
// stands for what is not, and every reason to refuse it.
package config

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/pool"
)

// The identity of the Fleet file this version reads.
const (
	APIVersion = "penstock.dev/v1alpha1"
	Kind       = "Fleet"
)

// Fleet is the whole file.
type Fleet struct {
	// APIVersion must be penstock.dev/v1alpha1.
	APIVersion string `json:"apiVersion"`
	// Kind must be Fleet.
	Kind string `json:"kind"`
	// Limits bound what clients and engines may take.
	Limits Limits `json:"limits"`
	// Scrape says how engines' gauges are read.
	Scrape Scrape `json:"scrape"`
	// Reload says how a changed file is taken on while serving.
	Reload Reload `json:"reload"`
	// Transfer is the exchange of what engines must know of each other before KV moves
	// between them.
	Transfer Exchange `json:"transfer"`
	// Accelerators are data sheets beside those of the built-in catalogue.
	Accelerators []Accelerator `json:"accelerators"`
	// Pools are the models served and the endpoints that serve them.
	Pools []Pool `json:"pools"`

	Front
}

// Limits bound what clients and engines may take.
type Limits struct {
	// MaxBodyBytes is the largest request body, in bytes.
	MaxBodyBytes int64 `json:"maxBodyBytes"`
	// MaxHeaderBytes is the largest request header, in bytes.
	MaxHeaderBytes int `json:"maxHeaderBytes"`
	// MaxConnections is how many client connections may be open at once; 0 does
	// not bound them.
	MaxConnections int `json:"maxConnections"`
	// MaxRequests is how many requests may be served at once, streams included; 0
	// does not bound them.
	MaxRequests int `json:"maxRequests"`
	// BodyTimeout is the time a request body may take to arrive.
	BodyTimeout time.Duration `json:"bodyTimeout"`
	// ConnectTimeout is the time to connect to an engine.
	ConnectTimeout time.Duration `json:"connectTimeout"`
	// FirstByteTimeout is the time an engine may take to its first event or
	// whole answer.
	FirstByteTimeout time.Duration `json:"firstByteTimeout"`
	// IdleTimeout is the time between two events of a stream.
	IdleTimeout time.Duration `json:"idleTimeout"`
	// WriteTimeout is the time a client may take to accept what is written.
	WriteTimeout time.Duration `json:"writeTimeout"`
}

// Scrape says how engines' gauges are read.
type Scrape struct {
	// Interval is the time between two readings of an endpoint that is busy.
	Interval time.Duration `json:"interval"`
	// IdleInterval is the time between two readings of one that is not.
	IdleInterval time.Duration `json:"idleInterval"`
	// Timeout is the time a reading may take.
	Timeout time.Duration `json:"timeout"`
}

// Pool is one model and the endpoints that serve it. Beside its own fields it
// takes those of pool.Config: policy, signals, queue, room, retry, health,
// index.
type Pool struct {
	// Name is unique among pools; the model's name by default.
	Name string `json:"name"`
	// Model is what clients ask for. Required.
	Model string `json:"model"`
	// Adapters are LoRA adapters that may be loaded on demand: by name, the path
	// under which every engine of the pool finds it.
	Adapters map[string]string `json:"adapters"`
	// Aliases are further names that clients may use, each with the model it stands
	// for: that of the pool, or an adapter of it.
	Aliases map[string]string `json:"aliases"`
	// Dialect is how the engines are spoken to; auto asks each what it is. Without one it
	// is vllm, or sglang where kv.transfer.connector is.
	Dialect string `json:"dialect"`
	// Endpoints are the servers. At least one, unless they come from elsewhere.
	Endpoints []Endpoint `json:"endpoints"`
	// Variants are the ways in which the model is served: what is believed of
	// endpoints that name one, and what is simulated.
	Variants []Variant `json:"variants"`
	// Engine is what is known of every endpoint of the pool.
	Engine Engine `json:"engine"`
	// Credentials are what the gateway shows the engines; the secret stays in the
	// environment or a file. Those of clients go no further than the gateway.
	Credentials engine.Credentials `json:"credentials"`
	// TLS says how https endpoints are trusted and met.
	TLS engine.TLS `json:"tls"`
	// HTTP2 is auto (where TLS agrees on it), off, or prior (without asking, also
	// in clear text: h2c).
	HTTP2 string `json:"http2"`
	// KV says how the pool learns what its engines have cached.
	KV KV `json:"kv"`

	Sources
	pool.Config
}

// Endpoint is one server.
type Endpoint struct {
	// URL is its base, without /v1.
	URL string `json:"url"`
	// Name is unique in the pool; host and port of the URL by default.
	Name string `json:"name"`
	// Variant is the name of its variant; that of the pool's only variant by
	// default.
	Variant string `json:"variant"`
	// Role is both, prefill (it computes prompts for others), decode (it takes them
	// over and answers) or encode (it encodes the images of prompts for others).
	Role string `json:"role"`
	// KVPort is where other engines find its KV, where kv.transfer.bootstrapPort does
	// not tell; ranks are at ports higher by their number, except behind a bootstrap
	// server.
	KVPort int `json:"kvPort"`
	// Events is tcp://host:port where it publishes its KV events, where kv.eventsPort does
	// not tell.
	Events string `json:"events"`
	// Replay is tcp://host:port where its past events can be asked for.
	Replay string `json:"replay"`
	// Ranks is how many data-parallel ranks the server has, each with a cache of its
	// own: they become endpoints NAME/0, NAME/1, …, with KV events and replays at
	// ports higher by the rank, and what is said of limits and step time is said of
	// each. Without it the server is one endpoint, however many ranks it has.
	Ranks int `json:"ranks"`
	// RankMode says how ranks are told apart: port (the server of each is at a port
	// higher by its rank), header (all are behind the URL, and X-data-parallel-rank
	// says whose a request is), or auto: found out by asking. auto by default.
	RankMode string `json:"rankMode"`
}

// Engine is what is known of an engine beforehand; what is not given is learnt
// from its metrics where they tell.
type Engine struct {
	// KVTokens is the KV cache capacity in tokens.
	KVTokens fleet.Tokens `json:"kvTokens"`
	// MaxSeqs is how many sequences run at once.
	MaxSeqs int `json:"maxSeqs"`
	// BudgetTokens is how many tokens a step may process.
	BudgetTokens fleet.Tokens `json:"budgetTokens"`
	// StepMs is the believed step time in milliseconds; without it times to first
	// token are not predicted.
	StepMs StepMs `json:"stepMs"`
}

// StepMs holds the parameters of perf.Step in milliseconds, as fits are
// published.
type StepMs struct {
	// Base is the time of an empty step.
	Base float64 `json:"base"`
	// PerSeq is the time per decoding sequence.
	PerSeq float64 `json:"perSeq"`
	// PerKV is the time per token of context.
	PerKV float64 `json:"perKV"`
	// PerPrompt is the time per prompt token.
	PerPrompt float64 `json:"perPrompt"`
	// PerPair is the time per pair of prompt token and token before it.
	PerPair float64 `json:"perPair"`
	// Experts is the time to read the weights of all experts; 0 for dense models.
	Experts float64 `json:"experts"`
	// Touch is the share of the experts that one token touches, 0 to 1; not a time.
	Touch float64 `json:"touch"`
	// Shadow is how many prompt tokens a step computes while it reads the weights
	// anyway; not a time.
	Shadow float64 `json:"shadow"`
	// PerRequest is the time per request that is no step's work: network, HTTP,
	// tokenising.
	PerRequest float64 `json:"perRequest"`
}

// Step returns the parameters in seconds.
func (s StepMs) Step() perf.Step {
	const ms = 1e-3
	return perf.Step(s).Scale(ms)
}

// Limits returns the engine's limits.
func (e Engine) Limits() fleet.Limits {
	return fleet.Limits{KVTokens: e.KVTokens, MaxSeqs: e.MaxSeqs, BudgetTokens: e.BudgetTokens}
}

// Default returns a fleet without pools.
func Default() Fleet {
	l := gateway.DefaultLimits()
	return Fleet{
		APIVersion: APIVersion, Kind: Kind, Front: defaultFront(),
		Limits: Limits{
			MaxBodyBytes: l.MaxBody, MaxHeaderBytes: 64 << 10, MaxConnections: 20_000, MaxRequests: 10_000, BodyTimeout: l.BodyTimeout, ConnectTimeout: 2 * time.Second,
			FirstByteTimeout: l.FirstByte, IdleTimeout: l.Idle, WriteTimeout: l.Write,
		},
		Reload: defaultReload(), Transfer: defaultExchange(),
		Scrape: Scrape{Interval: time.Second, IdleInterval: 5 * time.Second, Timeout: 2 * time.Second},
	}
}

// DefaultPool returns a pool that sets nothing.
func DefaultPool() Pool {
	var p Pool
	p.setDefaults()
	p.completeDialect()
	return p
}

// setDefaults fills a pool before the file is decoded over it, but for what
// depends on other fields.
func (p *Pool) setDefaults() {
	p.Credentials.Header = engine.DefaultHeader
	p.HTTP2 = engine.HTTP2Auto
	p.Config = pool.Default()
	p.KV = defaultKV()
	p.Sources = defaultSources()
}

// Load reads a file and returns the fleet, or every problem found, each with
// the path of its field.
func Load(path string) (Fleet, []error) { return load(path, true) }

// LoadSimulated is Load for a fleet that is only simulated: pools need no
// endpoints if they have variants.
func LoadSimulated(path string) (Fleet, []error) { return load(path, false) }

func load(path string, serve bool) (Fleet, []error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return Fleet{}, []error{fmt.Errorf("read fleet file: %w", err)}
	}
	return parse(raw, filepath.Dir(path), serve)
}

// Parse reads a file's content; see Load. Paths in it are relative to the
// working directory.
func Parse(raw []byte) (Fleet, []error) { return parse(raw, "", true) }

func parse(raw []byte, dir string, serve bool) (Fleet, []error) {
	f := Default()
	// The identity must be written, not assumed.
	f.APIVersion, f.Kind = "", ""
	if errs := decodeYAML(raw, &f); len(errs) > 0 {
		return f, errs
	}
	f.complete()
	var errs problems
	f.resolve(dir, &errs)
	return f, append(f.validate(serve), errs...)
}

// complete fills what depends on other fields.
func (f *Fleet) complete() {
	for i := range f.Pools {
		p := &f.Pools[i]
		if p.Name == "" {
			p.Name = p.Model
		}
		p.completeDialect()
		if p.KV.Transfer.Connector == string(engine.ConnectorSGLang) && p.Split != pool.SplitNever {
			p.Split = pool.SplitOnly // its engines do the leg that they were started for, and nothing else
		}
		for k := range p.Endpoints {
			e := &p.Endpoints[k]
			if base, err := engine.CheckURL(e.URL); err == nil {
				e.URL = base
				if u, err := url.Parse(base); err == nil && e.Name == "" {
					e.Name = u.Host
				}
			}
		}
	}
}

// completeDialect fills the dialect of a pool that names none.
func (p *Pool) completeDialect() {
	if p.Dialect == "" {
		p.Dialect = engineVLLM
		if p.KV.Transfer.Connector == string(engine.ConnectorSGLang) {
			p.Dialect = engineSGLang
		}
	}
}

// GatewayLimits returns the limits in the gateway's terms.
func (l Limits) GatewayLimits() gateway.Limits {
	return gateway.Limits{
		MaxBody: l.MaxBodyBytes, MaxRequests: l.MaxRequests, BodyTimeout: l.BodyTimeout, FirstByte: l.FirstByteTimeout, Idle: l.IdleTimeout, Write: l.WriteTimeout,
	}
}
