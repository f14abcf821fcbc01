package lab

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/workload"
)

// CurveOptions say which caches are asked about.
type CurveOptions struct {
	Replicas []int          // numbers of replicas
	Sizes    []fleet.Tokens // of each replica's cache, all its tiers together
	Rate     float64        // of the sample of blocks, above 0 and at most 1
}

// Validate returns what is wrong with o.
func (o CurveOptions) Validate() error {
	var errs []error
	if len(o.Replicas) == 0 || slices.Min(o.Replicas) < 1 || slices.Max(o.Replicas) > maxReplicas {
		errs = append(errs, fmt.Errorf("replicas: must be from 1 to %d, are %v", maxReplicas, o.Replicas))
	}
	if len(o.Sizes) == 0 || slices.Min(o.Sizes) < enginesim.BlockTokens {
		errs = append(errs, fmt.Errorf("sizes: must be at least %d tokens, are %v", enginesim.BlockTokens, o.Sizes))
	}
	if !(o.Rate > 0 && o.Rate <= 1) {
		errs = append(errs, fmt.Errorf("rate: must be above 0 and at most 1, is %v", o.Rate))
	}
	return errors.Join(errs...)
}

// CurveRow is how much of the prompts so many replicas find cached, by the size
// of their caches.
type CurveRow struct {
	Replicas int       `json:"replicas"`
	Kept     []float64 `json:"kept"`   // each prefix stays with the replica that has it
	Spread   []float64 `json:"spread"` // requests go to replicas in turn
}

// Curve is the miss-ratio curve of a load.
type Curve struct {
	Requests int            `json:"requests"`
	Blocks   uint64         `json:"blocks"` // asked for
	Sampled  float64        `json:"sampled"`
	Ceiling  float64        `json:"ceiling"` // one cache without end
	Sizes    []fleet.Tokens `json:"sizes"`
	Rows     []CurveRow     `json:"rows"`
}

// CacheCurve tells which share of a load's prompt blocks caches of several sizes
// would hold, for several numbers of replicas. It knows order, not time: requests
// that overlap share what one engine would not yet have computed.
func CacheCurve(ctx context.Context, source workload.Source, o CurveOptions) (*Curve, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	out := &Curve{Sampled: o.Rate, Sizes: o.Sizes}
	most := int(slices.Max(o.Sizes) / enginesim.BlockTokens)
	var fleets []*dealt
	for _, n := range o.Replicas {
		fleets = append(fleets, newDealt(n, o.Rate, most))
	}
	var chain, answer []kv.Key
	for q := range workload.All(source) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		chain = sim.AppendBlocks(chain[:0], q.Prompt)
		answer = kv.Answer(answer[:0], uint64(q.Index), q.Output/int(enginesim.BlockTokens))
		for _, f := range fleets {
			f.use(chain, answer)
		}
		out.Requests++
	}
	for i, f := range fleets {
		out.Rows = append(out.Rows, f.row(o.Replicas[i], o.Sizes))
		out.Blocks = f.whole.Uses()
		out.Ceiling = f.whole.Ceiling()
	}
	return out, nil
}

// dealt is so many replicas, to which requests are dealt in two ways.
type dealt struct {
	whole        *kv.Curve // of one cache that sees all
	kept, spread []*kv.Curve
	holder       map[kv.Key]int32 // of a sample of blocks: the replica that used it last
	load         []float64        // blocks that each of kept was asked for, fading
	next         int
}

func newDealt(n int, rate float64, most int) *dealt {
	d := &dealt{whole: kv.NewCurve(rate, math.MaxInt32), holder: map[kv.Key]int32{}, load: make([]float64, n)}
	for range n {
		d.kept, d.spread = append(d.kept, kv.NewCurve(rate, most)), append(d.spread, kv.NewCurve(rate, most))
	}
	return d
}

func (d *dealt) use(chain, answer []kv.Key) {
	for _, c := range [...]*kv.Curve{d.whole, d.kept[d.keeper(chain)], d.spread[d.next%len(d.spread)]} {
		c.Use(chain)
		c.Fill(answer)
	}
	d.next++
}

const (
	// holderEvery is how many blocks apart a chain's replica is remembered: prefixes
	// that differ later than that stay together.
	holderEvery = 16

	// loadFade is what a replica's load keeps with every further request.
	loadFade = 0.999

	// crowded is how many times the mean load a replica may have before what it
	// holds is begun elsewhere.
	crowded = 1.5
)

// keeper returns the replica that a chain belongs to: that of its longest known
// beginning, or the one that had least if there is none or too much is asked of
// it.
func (d *dealt) keeper(chain []kv.Key) int {
	least, sum := 0, 0.0
	for i := range d.load {
		d.load[i] *= loadFade
		if sum += d.load[i]; d.load[i] < d.load[least] {
			least = i
		}
	}
	at := least
	for i := len(chain) / holderEvery * holderEvery; i > 0; i -= holderEvery {
		if h, ok := d.holder[chain[i-1]]; ok {
			if d.load[h]*float64(len(d.load)) <= crowded*sum {
				at = int(h)
			}
			break
		}
	}
	for i := holderEvery; i <= len(chain); i += holderEvery {
		d.holder[chain[i-1]] = int32(at)
	}
	d.load[at] += float64(len(chain))
	return at
}

func (d *dealt) row(n int, sizes []fleet.Tokens) CurveRow {
	r := CurveRow{Replicas: n}
	kept, spread := sum(d.kept), sum(d.spread)
	for _, s := range sizes {
		blocks := float64(s / enginesim.BlockTokens)
		r.Kept, r.Spread = append(r.Kept, kept.HitShare(blocks)), append(r.Spread, spread.HitShare(blocks))
	}
	return r
}

func sum(curves []*kv.Curve) *kv.Curve {
	all := kv.NewCurve(1, 1)
	for _, c := range curves {
		all.Add(c)
	}
	return all
}

// CurveSizes are the sizes worth asking about, around the KV cache of one engine:
// a quarter of it, as without room for long prompts, up to what host memory and
// disks add.
func CurveSizes(engine fleet.Tokens) []fleet.Tokens {
	var sizes []fleet.Tokens
	for _, x := range []float64{0.25, 0.5, 1, 2, 4, 8, 16, 64} {
		sizes = append(sizes, max(fleet.Tokens(x*float64(engine)), enginesim.BlockTokens))
	}
	return sizes
}
