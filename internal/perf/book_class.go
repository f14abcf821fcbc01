package perf

import "math"

// What learning trusts. Spreads are standard deviations of the logarithm.
const (
	weakSpread   = 2.0  // of a parameter nothing is known of, relative to the guess
	firstNoise   = 0.15 // of one lesson, before its spread has been seen
	firstTTFT    = 0.35 // of times to first token around predictions, before any is compared
	firstTPOT    = 0.15 // of times per token
	leastNoise   = 0.03 // lessons are no better than this: they are averages over changing batches
	mostNoise    = 0.6
	noiseWeight  = 0.02 // of one lesson in the estimate of the noise
	bucketMemory = 40   // lessons after which half of a bucket's weight is younger
	gate         = 2.58 // noises beyond which a lesson counts only as if it stood there (99 %)
	driftSlack   = 0.5  // noises of bias that the drift alarm overlooks
	driftAlarm   = 12.0 // noises of bias, summed, that raise it
	driftKeeps   = 0.1  // of what was learnt before the alarm
	biasMemory   = 10   // lessons of a kind from each endpoint over which their bias is averaged
	activeMemory = 50   // lessons over which it is counted who gets any
	enough       = 8    // lessons from which a class without a prior predicts
)

// weakPrior stands for an engine of which nothing is known: the order of
// magnitude of an 8B model on a data-centre accelerator.
var weakPrior = Step{Base: 12e-3, PerSeq: 50e-6, PerKV: 50e-9, PerPrompt: 50e-6, PerPair: 1e-9, PerRequest: 5e-3}

// class is what has been learnt of all endpoints of one variant: regularised
// least squares over lessons, each normalised by its endpoint's factor. Lessons
// are summed up by the kind of step they tell of, and forgotten only for new ones
// of their kind, so that a quiet night does not erase what the day taught.
type class struct {
	variant uint64
	prior   Step
	weak    bool

	scale   Vector // of each parameter; 0 where it is fixed at 0
	theta   Vector // the belief, in units of scale
	cover   Matrix
	free    [Params]bool // the parameters that are not fixed at 0
	spread  Vector       // of the prior, relative to it
	buckets [buckets]bucket
	noise   float64 // variance of the logarithm of a lesson
	lessons int
	// How far measured times spread around what was predicted.
	ttftSpread, tpotSpread spread
	unfit                  int // lessons since the last fit
	version                uint32
	members                int
	active                 average // members that get lessons
	common                 float64 // what members' factors seemed to have in common, summed up

	up, down float64 // CUSUM of normalised residuals (Page, 1954)
	drifts   int
	fading   fading
}

// bucket sums up lessons of one kind in units of scale: information and
// information times value, each lesson relative to its predicted time.
type bucket struct {
	xx    Matrix
	xy    Vector
	count float64

	bias   average // what lessons of the kind are off for whatever endpoint, as a logarithm
	total  int     // lessons
	active average // endpoints that get any of the kind
}

// Kinds of lesson: by sequences beside it, by context per sequence, by the share
// of prompt work.
const (
	seqKinds    = 8
	kvKinds     = 4
	promptKinds = 3
	buckets     = seqKinds * kvKinds * promptKinds
)

func newClass(variant uint64, prior Step) *class {
	c := &class{variant: variant}
	c.setPrior(prior)
	return c
}

// setPrior makes the class start anew from a prior; a zero one is unknown.
func (c *class) setPrior(prior Step) {
	*c = class{variant: c.variant, prior: prior, members: c.members, version: c.version + 1, spread: priorSpreads, ttftSpread: newSpread(firstTTFT * firstTTFT), tpotSpread: newSpread(firstTPOT * firstTPOT), noise: firstNoise * firstNoise}
	if !prior.Known() {
		c.weak, prior = true, weakPrior
		for i := range c.spread {
			c.spread[i] = weakSpread
		}
	}
	if prior.PerRequest == 0 {
		prior.PerRequest = weakPrior.PerRequest
	}
	c.scale = prior.Vector()
	for i, x := range c.scale {
		if c.free[i] = x > 0; c.free[i] {
			c.theta[i] = 1
		}
	}
	c.fit()
}

// step returns the belief for the class's hardware at factor 1, zero while too
// little is known.
func (c *class) step() Step {
	if c.weak && c.lessons < enough {
		return Step{}
	}
	return c.guess()
}

// guess is step even when little is known.
func (c *class) guess() Step {
	var v Vector
	for i := range v {
		v[i] = c.theta[i] * c.scale[i]
	}
	return c.prior.With(v)
}

// lesson is one measured stretch of an engine's time.
type lesson struct {
	x       Vector // what was done in it, by parameter
	seconds float64
	kind    int
	vague   float64 // variance of its logarithm beside the ordinary noise
	weight  float64 // beside that of an ordinary lesson, in what endpoints differ by
	last    *int    // number of the endpoint's latest lesson of the kind, 0 for none
}

// kindOf returns the bucket of a stretch with so many sequences and tokens of
// context beside it and such a share of prompt work.
func kindOf(seqs, kv, promptShare float64) int {
	n := min(max(int(math.Log2(seqs+1)), 0), seqKinds-1)
	each := kv / max(seqs, 1)
	k := min(max(int(math.Log2(each/500+1)/2), 0), kvKinds-1)
	p := min(int(promptShare*promptKinds), promptKinds-1)
	return (n*kvKinds+k)*promptKinds + p
}

// average is a mean that fades.
type average struct{ mean, n float64 }

func (a *average) add(x, weight, memory float64) {
	a.n = min(a.n+weight, memory)
	a.mean += (x - a.mean) * weight / a.n
}

// turn notes that an endpoint has got the lesson of number n, and before that the one
// of number last, 0 for none. The mean number of lessons from one of an endpoint to
// its next is how many endpoints get any, however they take turns; those that come
// back after long count as one more.
func (a *average) turn(n, last int) {
	gap := float64(n - last)
	if most := 4*a.mean + 4; last == 0 || gap > most {
		gap = a.mean + 1
	}
	a.add(gap, 1, activeMemory)
}

// learn takes in a lesson of an endpoint with a factor, and returns by how much, as
// a logarithm, it took longer than the class at factor 1 takes in such lessons: what
// the class has wrong of a kind of step says nothing of an endpoint that happens to
// be given more of that kind than the others.
//
// share is how many of the members that get lessons get any of that kind, 0 for one
// and 1 for all: only what many go through sets them apart.
func (c *class) learn(l *lesson, factor float64) (residual, share float64, ok bool) {
	var x Vector
	for i := range x {
		x[i] = l.x[i] * c.scale[i]
	}
	predicted := dot(x, c.theta)
	if predicted <= 0 || l.seconds <= 0 {
		return 0, 0, false
	}
	residual = math.Log(l.seconds / predicted)
	r := residual - math.Log(factor)
	for i := range x {
		x[i] /= predicted
	}
	sd := math.Sqrt(c.noise + l.vague + c.uncertainty(&x))
	weight := c.noise / (c.noise + l.vague)
	if a := math.Abs(r); a > gate*sd {
		weight *= gate * sd / a
		r = math.Copysign(gate*sd, r)
	}
	c.noise = min(max(c.noise+noiseWeight*weight*(r*r-l.vague-c.noise), leastNoise*leastNoise), mostNoise*mostNoise)
	kind := &c.buckets[l.kind]
	kind.add(&x, math.Exp(r), weight)
	kind.total++
	kind.active.turn(kind.total, *l.last)
	*l.last = kind.total
	kind.bias.add(min(max(residual-math.Log(factor), -1), 1), l.weight, biasMemory*max(kind.active.mean, 1))
	c.lessons++
	c.unfit++
	c.watch(r / sd)
	if c.unfit >= 4 && (c.lessons < 100 || c.unfit >= 16) || c.lessons == enough {
		c.fit()
	}
	return residual - kind.bias.mean, min((kind.active.mean-1)/max(c.active.mean-1, 1), 1), true
}

// watch raises the alarm when residuals lean to one side for long: the engine
// has changed, and what was learnt before counts little.
func (c *class) watch(z float64) {
	c.up = max(c.up+z-driftSlack, 0)
	c.down = max(c.down-z-driftSlack, 0)
	if c.up < driftAlarm && c.down < driftAlarm {
		return
	}
	c.up, c.down = 0, 0
	if c.lessons > 2*bucketMemory {
		c.drifts++
	}
	for i := range c.buckets {
		c.buckets[i].fade(driftKeeps)
	}
}

// uncertainty is the variance of a prediction relative to itself.
func (c *class) uncertainty(x *Vector) float64 {
	v := 0.0
	for i := range x {
		for j := range x {
			v += x[i] * c.cover[i][j] * x[j]
		}
	}
	return max(v, 0)
}

func (b *bucket) add(x *Vector, y, weight float64) {
	const keep = 1 - math.Ln2/bucketMemory
	b.fade(keep)
	b.xx.add(*x, weight)
	for i := range x {
		b.xy[i] += weight * x[i] * y
	}
	b.count += weight
}

func (b *bucket) fade(keep float64) {
	for i := range b.xx {
		for j := range b.xx {
			b.xx[i][j] *= keep
		}
		b.xy[i] *= keep
	}
	b.count *= keep
}

// fit finds the parameters, none negative, that explain the prior and the
// lessons best, and how sure they are.
func (c *class) fit() {
	c.unfit = 0
	c.version++
	var info Matrix
	var sum Vector
	for k := range c.buckets {
		if b := &c.buckets[k]; b.count > 0 {
			for i := range sum {
				for j := range sum {
					info[i][j] += b.xx[i][j] / c.noise
				}
				sum[i] += b.xy[i] / c.noise
			}
		}
	}
	for i := range sum {
		if c.free[i] {
			p := 1 / (c.spread[i] * c.spread[i])
			info[i][i] += p
			sum[i] += p // the prior is 1 in units of scale
		}
	}
	c.theta = info.nonNegative(sum, c.free)
	c.cover = info.inverse(c.free)
}
