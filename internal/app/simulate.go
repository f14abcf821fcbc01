package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/pool"
)

// Simulated is an embedded fleet of simulated engines, each a real server on a
// loopback port.
type Simulated struct {
	nodes []*server.Node
	dir   string // what they share, until they are closed; empty for nothing
	// Pool is the configuration that fronts it.
	Pool config.Pool
}

// Fleet says which engines to simulate, beside what all have in common.
type Fleet struct {
	Replicas     int
	Accelerators []string        // dealt to the replicas in turn; empty for that of the options
	Slow         map[int]float64 // replicas that are so many times slower than their equals
	NoEvents     bool            // they keep what they cache to themselves
	// Prefill and Decode above 0 split requests: so many engines compute prompts, and
	// so many take them over and answer. Replicas is then their sum.
	Prefill, Decode int
	// Encode is how many more encode images for the others.
	Encode int
	// Connector is how they hand KV over, by one of the names of SimulatedConnectors;
	// empty is nixl where requests are split, and not at all where they are not.
	Connector string
}

// split reports whether requests are split, or what is wrong.
func (f *Fleet) split() (bool, error) {
	if f.Prefill == 0 && f.Decode == 0 {
		return false, nil
	}
	if f.Prefill < 1 || f.Decode < 1 {
		return false, fmt.Errorf("--prefill and --decode must both be at least 1, are %d and %d", f.Prefill, f.Decode)
	}
	f.Replicas = f.Prefill + f.Decode
	return true, nil
}

// SimulatedConnectors returns the names of the connectors that simulated engines
// speak.
func SimulatedConnectors() []string {
	return []string{server.NIXL, server.NIXLPush, server.Mooncake, server.Shared, server.Offload, server.Rooms}
}

// checkConnector says what is wrong with how engines are to hand KV over.
func (f *Fleet) checkConnector(split bool) error {
	switch known := SimulatedConnectors(); {
	case f.Connector == "":
		return nil
	case !slices.Contains(known, f.Connector):
		return fmt.Errorf("--connector: no simulated engine speaks %q: name one of %s", f.Connector, strings.Join(known, ", "))
	case f.Connector == server.Rooms && !split:
		return fmt.Errorf("--connector %s: engines of SGLang do one leg of a request: give --prefill N --decode N", f.Connector)
	}
	return nil
}

// Simulate starts a fleet of engines, alike but for their accelerators, their
// noise and those that are slow. The gateway is told the variants, and not who is
// slow.
func Simulate(o server.Options, f Fleet) (*Simulated, error) {
	split, err := f.split()
	if err != nil {
		return nil, err
	}
	if err := f.checkConnector(split); err != nil {
		return nil, err
	}
	if f.Replicas < 1 || f.Replicas+f.Encode > maxReplicas {
		return nil, fmt.Errorf("--replicas must be between 1 and %d, is %d", maxReplicas, f.Replicas+f.Encode)
	}
	if f.Encode < 0 || f.Encode > 0 && f.Connector == server.Rooms {
		return nil, errors.New("--encode must not be negative, and is for engines of vLLM")
	}
	for i := range f.Slow {
		if i < 0 || i >= f.Replicas {
			return nil, fmt.Errorf("--slow: there is no replica %d among %d, the first is 0", i, f.Replicas)
		}
	}
	if !f.NoEvents && o.KVEvents == "" {
		o.KVEvents, o.KVReplay = "127.0.0.1:0", "127.0.0.1:0"
	}
	s := &Simulated{Pool: config.DefaultPool()}
	s.Pool.Name = "sim"
	if split || f.Connector != "" {
		if err := s.connect(&o, f.Connector); err != nil {
			return nil, err
		}
	}
	encoder := o
	for i := range f.Replicas {
		o.Replica, o.Factor = i, f.Slow[i]
		if n := len(f.Accelerators); n > 0 {
			o.Accelerator = f.Accelerators[i%n]
		}
		if split {
			if o.PD.Role = server.RoleDecode; i < f.Prefill {
				o.PD.Role = server.RolePrefill
			}
		}
		if err := s.start(o); err != nil {
			s.Close()
			return nil, err
		}
	}
	for i := range f.Encode {
		// Of KV it has nothing to tell.
		encoder.Replica, encoder.Encoder, encoder.KVEvents, encoder.KVReplay, encoder.PD = f.Replicas+i, true, "", "", server.PDOptions{}
		if err := s.start(encoder); err != nil {
			s.Close()
			return nil, err
		}
	}
	s.Pool.Model = s.Options().Model
	// Where time runs faster, links do.
	t, faster := &s.Pool.KV.Transfer, s.Options().Speedup
	t.GBps *= faster
	t.Latency = time.Duration(float64(t.Latency) / faster)
	return s, nil
}

// connect has engines hand KV over.
func (s *Simulated) connect(o *server.Options, connector string) (err error) {
	o.PD.Connector = cmp.Or(connector, server.NIXL)
	s.Pool.KV.Transfer.Connector = o.PD.Connector
	switch o.PD.Connector {
	case server.Rooms:
		o.Engine, s.Pool.Dialect, s.Pool.Split = server.SGLang, server.SGLang, pool.SplitOnly // its engines for one leg compute nothing whole
	case server.Shared:
		s.dir, err = os.MkdirTemp("", "penstock-shared-kv-")
		o.PD.SharedDir = s.dir
	}
	return err
}

// kvPort is where others find an engine's KV, as its connector wants it told.
func kvPort(n *server.Node) int {
	side, bootstrap := n.PDAddresses()
	_, port, err := net.SplitHostPort(cmp.Or(bootstrap, side))
	if err != nil {
		return 0
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return 0
	}
	return number
}

// start adds one engine, and its variant if it is the first of it.
func (s *Simulated) start(o server.Options) error {
	n, err := server.Listen("127.0.0.1:0", server.Config{Options: o})
	if err != nil {
		return fmt.Errorf("simulated engine: %w", err)
	}
	s.nodes = append(s.nodes, n)
	o = n.Server.Options()
	name := strings.ToLower(o.Accelerator)
	e := config.Endpoint{Name: fmt.Sprintf("sim-%d", o.Replica), URL: n.URL(), Variant: name}
	if o.PD.Connector != "" {
		e.KVPort = kvPort(n)
		if o.PD.Role != server.RoleBoth {
			e.Role, e.Name = o.PD.Role, fmt.Sprintf("%s-%d", o.PD.Role, o.Replica)
		}
	}
	if o.Encoder {
		e.Role, e.Name = fleet.RoleEncode.String(), fmt.Sprintf("encode-%d", o.Replica)
	}
	if events, replay := n.KVAddresses(); events != "" {
		e.Events = "tcp://" + events
		if replay != "" {
			e.Replay = "tcp://" + replay
		}
	}
	s.Pool.Endpoints = append(s.Pool.Endpoints, e)
	if _, known := s.Pool.FindVariant(name); known && len(s.Pool.Variants) > 0 {
		return nil
	}
	serving, err := o.Serving()
	if err != nil {
		return err
	}
	v := config.NewVariant(name, serving)
	v.MaxSeqs, v.BudgetTokens = o.MaxSeqs, o.BudgetTokens
	const perMs = 1e3
	v.StepMs = config.StepMs(perf.Prior(serving).Step.Scale(perMs / o.Speedup))
	s.Pool.Variants = append(s.Pool.Variants, v)
	return nil
}

// Node returns engine i, from 0; after Restart it is another one.
func (s *Simulated) Node(i int) *server.Node { return s.nodes[i] }

// Restart starts another process at the addresses of engine i, which has ended or
// is ended now. Nothing else may use the engines meanwhile.
func (s *Simulated) Restart(i int) error {
	old := s.nodes[i]
	if err := old.Close(); err != nil {
		return fmt.Errorf("simulated engine: %w", err)
	}
	o := old.Server.Options()
	events, replay := old.KVAddresses()
	side, bootstrap := old.PDAddresses()
	for field, address := range map[*string]string{
		&o.KVEvents: events, &o.KVReplay: replay, &o.PD.SideChannel: side, &o.PD.Bootstrap: bootstrap,
	} {
		if address == "" {
			continue
		}
		first, err := firstOf(address, o.Replica+o.KVRank)
		if err != nil {
			return err
		}
		*field = first
	}
	n, err := server.Listen(strings.TrimPrefix(old.URL(), "http://"), server.Config{Options: o})
	if err != nil {
		return fmt.Errorf("simulated engine: %w", err)
	}
	s.nodes[i] = n
	return nil
}

// firstOf is the address of engine 0, of that of engine i.
func firstOf(address string, i int) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return "", fmt.Errorf("port of %s: %w", address, err)
	}
	return net.JoinHostPort(host, strconv.Itoa(number-i)), nil
}

// maxReplicas bounds the servers of one process.
const maxReplicas = 256

// Engines returns how many there are.
func (s *Simulated) Engines() int { return len(s.nodes) }

// Options returns the engines' options, defaults filled in.
func (s *Simulated) Options() server.Options { return s.nodes[0].Server.Options() }

// closeTimeout is for connections of simulated engines to end.
const closeTimeout = 2 * time.Second

// Close stops the engines.
func (s *Simulated) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var errs []error
	for _, n := range s.nodes {
		if err := n.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			errs = append(errs, err)
		}
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}
