package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"penstock.dev/penstock/internal/app"
	"penstock.dev/penstock/internal/bench"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/discovery"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/obs"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/workload"
)

// portFlags are the process settings of whatever serves.
type portFlags struct {
	Listen              string        `default:"127.0.0.1:8080" help:"Public address."`
	AdminListen         string        `default:"127.0.0.1:9090" help:"Admin address; anything but loopback needs --admin-token."`
	AdminToken          string        `placeholder:"TOKEN" help:"Bearer token of the admin port."`
	RegisterToken       string        `placeholder:"TOKEN" help:"Token with which engines may register themselves at the admin port (POST /api/register)."`
	TLSCert             string        `name:"tls-cert" type:"existingfile" placeholder:"FILE" help:"Certificate of the public port, read again when it changes."`
	TLSKey              string        `name:"tls-key" type:"existingfile" placeholder:"FILE" help:"Its key."`
	TLSClientCA         string        `name:"tls-client-ca" type:"existingfile" placeholder:"FILE" help:"Clients must show a certificate of this CA."`
	TransferListen      string        `placeholder:"ADDR" help:"Where engines say what others must know before KV moves between them (default ${transfer}, unless another process is there; off: nowhere); anything but loopback needs --transfer-token or a client CA."`
	TransferToken       string        `placeholder:"TOKEN" help:"Bearer token of that address."`
	TransferTLSCert     string        `name:"transfer-tls-cert" type:"existingfile" placeholder:"FILE" help:"Its certificate, read again when it changes."`
	TransferTLSKey      string        `name:"transfer-tls-key" type:"existingfile" placeholder:"FILE" help:"Its key."`
	TransferTLSClientCA string        `name:"transfer-tls-client-ca" type:"existingfile" placeholder:"FILE" help:"A certificate of this CA does instead of the token."`
	Journal             string        `type:"path" placeholder:"FILE" help:"Record every event and decision of the brain to FILE (lengths, hashes and times, no text)."`
	Seed                uint64        `default:"1" help:"Seed of the policies' random choices."`
	LogFormat           string        `enum:"text,json" default:"text" help:"text or json."`
	LogLevel            string        `enum:"debug,info,warn,error" default:"info" help:"debug, info, warn or error."`
	AccessLog           bool          `negatable:"" default:"true" help:"Write a line for each request."`
	Redact              bool          `negatable:"" default:"true" help:"Name the networks of clients in that line, not their addresses."`
	MetricsListen       string        `placeholder:"ADDR" help:"Serve metrics and health, and nothing else, on another address too; it may be reachable from elsewhere."`
	DrainTimeout        time.Duration `default:"30s" help:"After a signal, let open requests run for so long; a second signal exits at once."`
}

// fleetFlags say which real engines to serve.
type fleetFlags struct {
	Config    string `type:"existingfile" placeholder:"FILE" help:"Fleet file; see penstock check."`
	Endpoints string `placeholder:"URL,URL" help:"Engines by base URL, without a file; their models are asked of them."`
	Dialect   string `enum:"${dialects}" default:"auto" help:"How the --endpoints are spoken to: ${enum}."`
	Policy    string `placeholder:"NAME" help:"Routing policy without a file: ${policies} (default ${policy})."`
}

// options turns the flags into what app runs; simulated, when set, is served
// instead of real engines.
func (f fleetFlags) options(simulated *app.Simulated) (app.Options, error) {
	o := app.Options{Config: config.Default()}
	if f.Policy == "" {
		f.Policy = route.DefaultPolicy
	} else if f.Config != "" {
		return o, errors.New("--policy is for running without a file; set pools[].policy in the file")
	}
	spec := route.Spec{Name: f.Policy}
	if _, err := route.New(spec); err != nil {
		return o, fmt.Errorf("--policy: %w", err)
	}
	switch {
	case f.Config != "" && f.Endpoints != "":
		return o, errors.New("give --config or --endpoints, not both")
	case f.Config != "":
		c, errs := config.Load(f.Config)
		if len(errs) > 0 {
			return o, fmt.Errorf("%s has %d problems:\n%w", f.Config, len(errs), errors.Join(errs...))
		}
		o.Config, o.ConfigPath = c, f.Config
	case f.Endpoints != "":
		found, err := discovery.ParseList(f.Endpoints)
		if err != nil {
			return o, fmt.Errorf("--endpoints: %w", err)
		}
		o.Discover = found
		o.DiscoveredPool = config.DefaultPool()
		o.DiscoveredPool.Dialect, o.DiscoveredPool.Policy = f.Dialect, spec
	case simulated != nil:
		simulated.Pool.Policy = spec
		o.Config.Pools = []config.Pool{simulated.Pool}
	default:
		return o, errors.New("nothing to serve: give --config FILE or --endpoints URL,URL, or try penstock up")
	}
	return o, nil
}

func (f fleetFlags) real() bool { return f.Config != "" || f.Endpoints != "" }

// start fills in the process settings and starts the gateway.
func (p portFlags) start(o app.Options, drainDelay time.Duration, s streams) (*app.App, *slog.Logger, error) {
	log, err := obs.NewLogger(s.Err, p.LogFormat, p.LogLevel)
	if err != nil {
		return nil, nil, err
	}
	o.Listen, o.AdminListen, o.AdminToken = p.Listen, p.AdminListen, p.AdminToken
	o.Journal, o.Seed, o.Version, o.Log, o.AccessLog = p.Journal, p.Seed, version(), log, p.AccessLog
	o.DrainDelay, o.DrainTimeout = drainDelay, p.DrainTimeout
	o.RegisterToken = p.RegisterToken
	o.TLS = app.TLS{Cert: p.TLSCert, Key: p.TLSKey, ClientCA: p.TLSClientCA}
	o.Reload, o.Transfer = s.Hangups, p.transfer()
	o.ShowClients, o.MetricsListen = !p.Redact, p.MetricsListen
	a, err := app.Start(o)
	return a, log, err
}

// defaultTransfer is where engines look for the exchange: SGLang's port.
const defaultTransfer = "127.0.0.1:8998"

// transfer says where engines may register.
func (p portFlags) transfer() app.TransferPort {
	t := app.TransferPort{
		Listen: p.TransferListen, Token: p.TransferToken,
		TLS: app.TLS{Cert: p.TransferTLSCert, Key: p.TransferTLSKey, ClientCA: p.TransferTLSClientCA},
	}
	switch t.Listen {
	case "":
		t.Listen, t.Optional = defaultTransfer, true
	case "off":
		t.Listen = ""
	}
	return t
}

type gatewayCmd struct {
	portFlags
	fleetFlags
	DrainDelay time.Duration `default:"5s" help:"After a signal, answer not ready for so long before closing the port, so that load balancers notice."`
}

// Help shows examples.
func (gatewayCmd) Help() string {
	return `Examples:
  penstock gateway --config fleet.yaml
  penstock gateway --endpoints http://gpu-1:8000,http://gpu-2:8000 --policy p2c
  penstock gateway --config fleet.yaml --listen :8080 --log-format json --journal decisions.journal`
}

// Run serves until a signal.
func (c *gatewayCmd) Run(ctx context.Context, s streams) error {
	o, err := c.options(nil)
	if err != nil {
		return err
	}
	a, log, err := c.start(o, c.DrainDelay, s)
	if err != nil {
		return err
	}
	log.Info("serving", "url", a.URL(), "admin", a.AdminURL())
	return a.Wait(ctx)
}

type upCmd struct {
	portFlags
	fleetFlags
	kvFlags
	Replicas    *int            `placeholder:"N" help:"Simulated engines (default 4)."`
	Prefill     int             `placeholder:"N" help:"Engines that only compute prompts for others; with --decode, instead of --replicas."`
	Decode      int             `placeholder:"N" help:"Engines that take prompts over and answer."`
	Encode      int             `placeholder:"N" help:"Engines that encode images for the others, besides them."`
	Connector   string          `placeholder:"NAME" help:"How engines hand KV over, of those that are simulated: ${connectors} (default nixl, where --prefill is given). With offload they also fetch from each other what is cached."`
	Model       string          `help:"Model of the simulated engines (default Qwen/Qwen3-32B)."`
	Accelerator []string        `help:"Their accelerator (default H100); several are dealt to the engines in turn."`
	Slow        map[int]float64 `placeholder:"I=X" help:"Make engine I (from 0) X times slower than its equals; repeat for more: --slow 3=1.2."`
	TP          int             `name:"tp" default:"2" help:"Their tensor parallelism, in accelerators."`
	KVTokens    int             `name:"kv-tokens" placeholder:"N" help:"Their KV cache in tokens (default: what the accelerators hold)."`
	Noise       float64         `default:"0.05" help:"Spread of their step times, 0 to 1."`
	Speedup     float64         `default:"1" help:"Run them so many times faster than life."`
	Traffic     float64         `placeholder:"RPS" help:"Send so many requests a second to ourselves, so that there is something to see."`
}

// Help shows examples.
func (upCmd) Help() string {
	return `Examples:
  penstock up                                        4 simulated engines, no GPU needed
  penstock up --replicas 8 --speedup 10 --traffic 5  a busier, faster fleet
  penstock up --accelerator H100,A100,L40S --replicas 8 --slow 3=1.2 --traffic 4
  penstock up --prefill 2 --decode 2 --traffic 2     prompts computed by two engines for two others
  penstock up --prefill 2 --decode 2 --connector mooncake
  penstock up --prefill 1 --decode 2 --encode 1      images encoded by an engine of their own
  penstock up --connector offload --traffic 5        prompts fetched from where they are cached
  penstock up --policy round-robin                   to compare
  penstock up --endpoints http://localhost:8000      in front of your own engine
  penstock up --config fleet.yaml`
}

// Run serves until a signal.
func (c *upCmd) Run(ctx context.Context, s streams) error {
	if err := c.contradiction(); err != nil {
		return err
	}
	var sim *app.Simulated
	if !c.real() {
		replicas := defaultReplicas
		if c.Replicas != nil {
			replicas = *c.Replicas
		}
		var err error
		sim, err = app.Simulate(c.with(server.Options{
			Model: c.Model, TP: c.TP, KVTokens: kvTokens(c.KVTokens), Noise: c.Noise, Speedup: c.Speedup, Seed: c.Seed, DevMode: true,
		}), app.Fleet{Replicas: replicas, Accelerators: c.Accelerator, Slow: c.Slow, Prefill: c.Prefill, Decode: c.Decode, Encode: c.Encode, Connector: c.Connector})
		if err != nil {
			return err
		}
	}
	o, err := c.options(sim)
	if err == nil && sim != nil && c.Prefill > 0 && c.Policy != splitPolicy && o.Config.Pools[0].Split == pool.SplitAuto {
		fmt.Fprintf(s.Err, "penstock: --policy %s never splits a request, so the engines of --prefill will be idle: of the policies only %s finds out whether a split pays\n", c.Policy, splitPolicy)
	}
	var a *app.App
	if err == nil {
		a, _, err = c.start(o, 0, s)
	}
	if err != nil {
		if sim != nil {
			err = errors.Join(err, sim.Close())
		}
		return err
	}
	c.greet(s.Out, a, sim)
	traffic := startTraffic(ctx, c.Traffic, a.URL(), s.Err)
	err = a.Wait(ctx)
	<-traffic
	if sim != nil {
		err = errors.Join(err, sim.Close())
	}
	return err
}

// defaultReplicas is how many engines are simulated unless flags say otherwise.
const defaultReplicas = 4

// splitPolicy is the policy that finds out whether a split pays; under the others
// requests are split only where that is insisted on.
const splitPolicy = "predictive"

// contradiction says which flags cannot be meant together.
func (c *upCmd) contradiction() error {
	if c.real() {
		named := "--config"
		if c.Endpoints != "" {
			named = "--endpoints"
		}
		for _, f := range [...]struct {
			name  string
			given bool
		}{
			{"--replicas", c.Replicas != nil},
			{"--prefill", c.Prefill != 0},
			{"--decode", c.Decode != 0},
			{"--encode", c.Encode != 0},
			{"--connector", c.Connector != ""},
		} {
			if f.given {
				return fmt.Errorf("%s is about simulated engines, and %s names real ones: leave one of them out; roles and the connector of real engines are set in a Fleet file (endpoints[].role, kv.transfer.connector)", f.name, named)
			}
		}
	}
	if c.Replicas != nil && (c.Prefill != 0 || c.Decode != 0) {
		return errors.New("give --replicas, or --prefill and --decode, not both: engines that split requests are counted by the latter")
	}
	return nil
}

func (c *upCmd) greet(w io.Writer, a *app.App, sim *app.Simulated) {
	model := "MODEL"
	if sim != nil {
		o := sim.Options()
		model = o.Model
		fmt.Fprintf(w, "Penstock serves %d simulated engines: %s on %d x %s each, %v times as fast as life.\n\n", sim.Engines(), o.Model, o.TP, o.Accelerator, o.Speedup)
	} else {
		fmt.Fprint(w, "Penstock serves real engines.\n\n")
	}
	fmt.Fprintf(w, "  gateway  %s\n  admin    %s\n\nTry, from another shell:\n\n", a.URL(), a.AdminURL())
	fmt.Fprintf(w, "  curl -N %s/v1/chat/completions -H 'Content-Type: application/json' -H 'X-Request-Id: hello' \\\n", a.URL())
	fmt.Fprintf(w, "    -d '{\"model\":%q,\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}'\n", model)
	adminFlag := ""
	if a.AdminURL() != defaultAdmin {
		adminFlag = " --admin " + a.AdminURL()
	}
	fmt.Fprintf(w, "  penstock explain hello%s\n\nCtrl-C ends it.\n", adminFlag)
}

// startTraffic sends a load with shared prefixes to url until ctx ends. The
// channel closes when it has stopped.
func startTraffic(ctx context.Context, rps float64, url string, errs io.Writer) <-chan struct{} {
	done := make(chan struct{})
	if rps <= 0 {
		close(done)
		return done
	}
	o := bench.DefaultOptions()
	o.URL, o.Rate, o.Duration, o.Grace = url, rps, forever, time.Second
	o.Spec = &workload.Spec{API: workload.APISpec{Streaming: true}, Server: workload.ServerSpec{IgnoreEOS: true}}
	o.Spec.Load.Kind = workload.ArrivalPoisson
	o.Spec.Data.SharedPrefix = trafficShape()
	go func() {
		defer close(done)
		if _, err := bench.Run(ctx, o, bench.Streams{Out: io.Discard}); err != nil && ctx.Err() == nil {
			fmt.Fprintf(errs, "penstock: built-in traffic stopped: %v\n", err)
		}
	}()
	return done
}

// forever is longer than anyone runs up.
const forever = 1000 * time.Hour

// trafficShape is the built-in load: a few dozen long system prompts, each with
// many questions, so that caching matters.
func trafficShape() *workload.SharedPrefix {
	return &workload.SharedPrefix{
		Groups: 24, PromptsPerGroup: 20, System: workload.Fixed(2000), Question: workload.Fixed(200), Output: workload.Fixed(150),
	}
}

// helpVars fill in what help texts say of the policies.
func helpVars() kong.Vars {
	return kong.Vars{"transfer": defaultTransfer, "connectors": strings.Join(app.SimulatedConnectors(), ", "), "dialects": strings.Join(engine.DialectNames(), ","), "policies": strings.Join(route.Names(), ", "), "policy": route.DefaultPolicy}
}
