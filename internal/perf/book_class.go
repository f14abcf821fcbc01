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
	shadeMemory  = 40   // lessons over which it is judged what explains them better
	shadeClear   = 10.0 // by how much less must speak against a shadow for it to be believed
	rivalFits    = 4    // fits after which shadows that are not believed have one
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

	scale   Vector       // of each parameter; 0 where it is fixed at 0
	free    [Params]bool // the parameters that are not fixed at 0
	spread  Vector       // of the prior, relative to it
	shades  []shade
	*shade         // the one that is believed
	cover   Matrix // of its parameters
	shaded  int    // lessons that tell of the shadow
	fits    int
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

// shade is what is learnt if so many prompt tokens of a step are computed while it
// reads the weights anyway. That is no parameter of a linear fit: a few are tried side
// by side, and the one that is clearly more plausible than the one believed takes over.
type shade struct {
	tokens float64
	theta  Vector // the parameters, in units of scale
	sums   [buckets]sums
	miss   float64 // mean square of the logarithm by which lessons that tell of it are off
	strain float64 // sum of the squares by which parameters are from the prior, in its spreads
}

// sums are those of lessons of one kind in units of scale: information and
// information times value, each lesson relative to its predicted time.
type sums struct {
	xx    Matrix
	xy    Vector
	count float64
}

// bucket is what lessons of one kind tell beside their sums.
type bucket struct {
	bias   average // what lessons of the kind are off for whatever endpoint, as a logarithm
	total  int     // lessons
	active average // endpoints that get any of the kind
}

// shadows are the numbers of tokens that are tried, relative to the prior's. Without
// experts there is one: weights are read in the time of so few that it hardly matters.
var shadows = [...]float64{1, 0.5, 0.25, 0.125}

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
		c.free[i] = x > 0
	}
	tried := shadows[:]
	if prior.Experts == 0 {
		tried = shadows[:1]
	}
	c.shades = make([]shade, len(tried))
	for i, share := range tried {
		c.shades[i].tokens = prior.Shadow * share
	}
	c.shade = &c.shades[0]
	for i := range c.shades {
		c.shades[i].fit(c)
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
	step := c.prior.With(v)
	step.Shadow = c.tokens
	return step
}

// lesson is one measured stretch of an engine's time.
type lesson struct {
	steps         float64
	seqs, kv      float64 // decoding sequences and tokens of context, on average
	prompt, pairs float64 // computed in it
	requests      float64 // whose overhead is in it
	seconds       float64
	vague         float64 // variance of its logarithm beside the ordinary noise

	// Of steps that computed prompts, how many, and with how many tokens each: how many
	// of these count is the shadow's.
	chunks, each float64

	x      Vector // what was done in it, by parameter
	kind   int
	weight float64 // beside that of an ordinary lesson, in what endpoints differ by
	last   *int    // number of the endpoint's latest lesson of the kind, 0 for none
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
	x, residual, ok := c.compare(c.shade, l)
	if !ok {
		return 0, 0, false
	}
	sd := math.Sqrt(c.noise + l.vague + c.uncertainty(&x))
	weight := c.noise / (c.noise + l.vague)
	if l.each > 0 {
		c.shaded++
	}
	r := c.teach(c.shade, l, &x, residual-math.Log(factor), sd, weight)
	for i := range c.shades {
		if h := &c.shades[i]; h != c.shade {
			if x, residual, ok := c.compare(h, l); ok {
				c.teach(h, l, &x, residual-math.Log(factor), sd, weight)
			}
		}
	}
	if a := math.Abs(residual - math.Log(factor)); a > gate*sd {
		weight *= gate * sd / a
	}
	c.noise = min(max(c.noise+noiseWeight*weight*(r*r-l.vague-c.noise), leastNoise*leastNoise), mostNoise*mostNoise)
	kind := &c.buckets[l.kind]
	kind.total++
	kind.active.turn(kind.total, *l.last)
	*l.last = kind.total
	kind.bias.add(min(max(residual-math.Log(factor), -1), 1), l.weight, biasMemory*max(kind.active.mean, 1))
	c.lessons++
	c.unfit++
	c.watch(r / sd)
	if c.unfit >= 4 && (c.lessons < 100 || c.unfit >= 16) || c.lessons == enough {
		c.fit()
		c.reshade()
	}
	return residual - kind.bias.mean, min((kind.active.mean-1)/max(c.active.mean-1, 1), 1), true
}

// compare returns a lesson as one shade has it, in units of scale and relative to the
// time it predicts, and by how much, as a logarithm, it took longer; false when it
// tells nothing.
func (c *class) compare(h *shade, l *lesson) (x Vector, residual float64, ok bool) {
	x = l.x
	if l.each > 0 {
		x[3] = l.chunks * lit(l.each, l.seqs, h.tokens)
	}
	for i := range x {
		x[i] *= c.scale[i]
	}
	predicted := dot(x, h.theta)
	if predicted <= 0 || l.seconds <= 0 {
		return x, 0, false
	}
	for i := range x {
		x[i] /= predicted
	}
	return x, math.Log(l.seconds / predicted), true
}

// teach has one shade take in a lesson that took longer by r, as a logarithm, where
// sd is expected. It returns r as far as it is heeded.
func (c *class) teach(h *shade, l *lesson, x *Vector, r, sd, weight float64) float64 {
	if l.each > 0 {
		h.miss += (r*r - h.miss) * weight / min(float64(c.shaded), shadeMemory)
	}
	if a := math.Abs(r); a > gate*sd {
		weight *= gate * sd / a
		r = math.Copysign(gate*sd, r)
	}
	h.sums[l.kind].add(x, math.Exp(r), weight)
	return r
}

// reshade has the shade take over that is clearly more plausible. Those that are
// not believed are fitted less often.
func (c *class) reshade() {
	if c.fits++; c.fits%rivalFits != 0 || len(c.shades) == 1 {
		return
	}
	best := c.shade
	for i := range c.shades {
		h := &c.shades[i]
		if h != c.shade {
			h.fit(c)
		}
		if c.shaded >= shadeMemory && c.against(h) < c.against(best)-shadeClear {
			best = h
		}
	}
	if best != c.shade {
		c.shade = best
		c.fit()
	}
}

// against is what speaks against a shade: by how much lessons are off, and how far
// from what is plausible its parameters must be for them to be off no more, as twice a
// logarithm of odds.
func (c *class) against(h *shade) float64 { return shadeMemory*h.miss/c.noise + h.strain }

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
	for i := range c.shades {
		for k := range c.shades[i].sums {
			c.shades[i].sums[k].fade(driftKeeps)
		}
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

func (b *sums) add(x *Vector, y, weight float64) {
	const keep = 1 - math.Ln2/bucketMemory
	b.fade(keep)
	b.xx.add(*x, weight)
	for i := range x {
		b.xy[i] += weight * x[i] * y
	}
	b.count += weight
}

func (b *sums) fade(keep float64) {
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
	info := c.shade.fit(c)
	c.cover = info.inverse(c.free)
}

// fit finds the parameters of one shade, and returns how well they are known.
func (h *shade) fit(c *class) (info Matrix) {
	var sum Vector
	for k := range h.sums {
		if b := &h.sums[k]; b.count > 0 {
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
	h.theta = info.nonNegative(sum, c.free)
	h.strain = 0
	for i, x := range h.theta {
		if c.free[i] {
			h.strain += (x - 1) * (x - 1) / (c.spread[i] * c.spread[i])
		}
	}
	return info
}
