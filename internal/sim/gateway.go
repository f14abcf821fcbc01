package sim

import (
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/stat"
)

// gateway is one brain and what its shell keeps for it.
type gateway struct {
	brain  *pool.Brain
	policy route.Policy
	wake   fleet.Time
}

// openGateways makes the gateways' brains.
func (r *run) openGateways() error {
	for g := range max(r.c.Gateways, 1) {
		deps, err := pool.Assemble(r.c.known())
		if err != nil {
			return err
		}
		if r.c.Pool.Policy.Name == Clairvoyant {
			deps.Policy = &clairvoyant{run: r, rule: deps.Policy}
		}
		seed := r.c.Seed
		if g > 0 {
			seed = stat.Mix64(seed ^ stat.Mix64(uint64(g)))
		}
		r.gateways = append(r.gateways, &gateway{brain: pool.New(r.c.Pool, deps, seed), policy: deps.Policy, wake: fleet.Never})
	}
	return nil
}

// known is the pool's configuration with a policy that the catalogue has.
func (c *Config) known() pool.Config {
	p := c.Pool
	if p.Policy.Name == Clairvoyant {
		p.Policy = route.Spec{Name: clairvoyantRule, Weights: p.Policy.Weights}
	}
	return p
}

// gatewayOf returns the gateway that request i comes through.
func (r *run) gatewayOf(i int) int {
	if len(r.gateways) == 1 {
		return 0
	}
	return int(stat.Mix64(r.c.Seed^stat.Mix64(uint64(i)+0x6a7e)) % uint64(len(r.gateways)))
}

// pair puts a gateway and a replica into one number, for the heap.
func (r *run) pair(g, k int) int { return g*len(r.c.Replicas) + k }

// unpair takes apart what pair made.
func (r *run) unpair(what int) (g, k int) {
	return what / len(r.c.Replicas), what % len(r.c.Replicas)
}

// step tells gateway g's brain of ev and carries out what follows.
func (r *run) step(g int, ev pool.Event) {
	gw := r.gateways[g]
	r.out = gw.brain.Step(r.now, ev, r.out[:0])
	if g == 0 && r.c.Journal != nil {
		_ = r.c.Journal.Record(r.now, ev, r.out)
	}
	for i := range r.out {
		r.act(g, &r.out[i])
	}
	if at := gw.brain.Wake(); at != gw.wake {
		if gw.wake = at; at != fleet.Never {
			r.push(max(at, r.now), kindWake, g)
		}
	}
}

// tell tells all gateways.
func (r *run) tell(ev pool.Event) {
	for g := range r.gateways {
		r.step(g, ev)
	}
}

// scrape reads a replica's gauges for a gateway and foresees the next reading.
func (r *run) scrape(what int) {
	g, k := r.unpair(what)
	if en := r.engines[k]; en.listed {
		s := pool.Sample{Endpoint: endpointID(k), Gen: en.told, Taken: r.now}
		switch {
		case en.Engine == nil:
			s.Failure = fleet.FailConnect
		case en.mute:
			s.Failure = fleet.FailTimeout
		default:
			r.collect(k, r.now)
			st := en.Stats()
			s.Gauges = fleet.Gauges{
				Known: fleet.KnownRunning | fleet.KnownWaiting | fleet.KnownKVUsage, Running: st.Running, Waiting: st.Waiting, KVUsage: st.KVUsage(),
			}
		}
		r.step(g, &s)
	}
	if r.requests.open() > 0 || !r.drained {
		r.push(r.now.Add(r.c.Scrape), kindScrape, what)
	}
}
