package route

import (
	"cmp"
	"math"
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
)

// lean decides which of the endpoints that can do both lean to computing prompts
// for the others. One request alone gains nothing from being split among endpoints
// that all decode: only where some are left free of decoding, and others free of
// prompts, do both go faster, so it is decided for the load as a whole. Endpoints
// are taken in order of their ids, so that gateways that see the same lean alike.
type lean struct {
	rate     float64 // requests per second, fading
	mix      perf.Stream
	seen     int
	began    fleet.Time // of the first request
	last     fleet.Time // of the latest
	due      fleet.Time // when to think again
	moved    fleet.Time // when they were dealt last
	prefills int        // how many lean to prompts
	is       []bool     // by slot
	group    []int      // the slots that are dealt, by their ids
	meter    meter
	tried    []trial // by how many lean
	liked    int     // how many it would have been the last time, were they tried
	beside   float64 // what a prompt adds to steps that also decode, over what was told of it; 0 before it was measured
	slower   float64 // what a step that only decodes takes, over what was told of it; 0 before it was measured
}

const (
	// leanWindow is over how long arrivals are counted, and leanMemory over how many
	// requests lengths are averaged.
	leanWindow = 60 * time.Second
	leanMemory = 200

	// leanFew is how many requests must have been seen before anything leans.
	leanFew = 50

	// leanEvery is the time between two thoughts, and leanPause how long nothing is
	// measured after endpoints were dealt anew: answers that an endpoint has still to
	// decode when it begins to lean take seconds to end.
	leanEvery = 10 * time.Second
	leanPause = 5 * time.Second

	// leanDwell is how long a deal is kept, unless another is better for sure: what is
	// measured in less is chance.
	leanDwell = time.Minute

	// leanGain is by what share the mean time of a request must be shorter for more
	// endpoints to lean, or fewer, and leanPlain by what share longer it may be where none
	// leans: that has less that can go wrong.
	leanGain  = 0.02
	leanPlain = 0.03

	// leanSure is the gain with which what was never tried is tried at once, and not
	// only when it looks better for the second time.
	leanSure = 0.1

	// leanShare is the share of requests that must be split for endpoints to go on
	// leaning: where single requests do not like it, the load as a whole cannot.
	leanShare = 0.3
	leanRest  = time.Minute // for which nothing leans then
)

// note counts a request of which so much is cached where it would go.
func (l *lean) note(q *Query, cached fleet.Tokens) {
	if l.seen == 0 {
		l.began, l.last = q.Now, q.Now
	}
	dt := q.Now.Sub(l.last).Seconds()
	l.last = q.Now
	l.rate = l.rate*math.Exp(-dt/leanWindow.Seconds()) + 1/leanWindow.Seconds()
	l.seen++
	weight := max(1/float64(l.seen), 1.0/leanMemory)
	l.mix.Prompt += weight * (float64(q.Prompt) - l.mix.Prompt)
	l.mix.Uncached += weight * (float64(max(q.Prompt-cached, 1)) - l.mix.Uncached)
	l.mix.Output += weight * (float64(max(q.Output, 1)) - l.mix.Output)
}

// think deals the endpoints anew when it is time to.
func (l *lean) think(v *View, q *Query) {
	for len(l.is) < len(v.ID) {
		l.is = append(l.is, false)
	}
	l.meter.look(v, q.Now, l.group, l.is)
	if len(q.Prefills) < 2 || q.Now < l.due || l.seen < leanFew || len(l.group) > 0 && !l.meter.settled(q.Now) {
		return
	}
	l.due = q.Now.Add(leanEvery)
	before := len(l.group)
	l.group = l.group[:0]
	for _, c := range q.Candidates {
		if slices.Contains(q.Prefills, c) && v.Connector[c] == v.Connector[q.Prefills[0]] && v.Step[c].Known() {
			l.group = append(l.group, c)
		}
	}
	if len(l.group) != len(q.Prefills) {
		return // roles are dealt by configuration, or some are not there: as it was
	}
	if len(l.group) != before {
		l.meter, l.tried = meter{from: q.Now}, l.tried[:0]
	}
	slices.SortFunc(l.group, func(a, b int) int { return cmp.Compare(v.ID[a], v.ID[b]) })
	l.deal(v, q)
}

// deal decides how many lean, and which.
func (l *lean) deal(v *View, q *Query) {
	if l.meter.n < meterFew {
		return // the group has just been made
	}
	w := l.weigh(v, q)
	now := w.expected(l.prefills)
	best, at := now, l.prefills
	for x := range w.n {
		if c := w.expected(x); c < best && c < now*(1-leanGain) {
			best, at = c, x
		}
	}
	liked, sure := at, best <= now*(1-leanSure)
	switch {
	case l.prefills > 0 && l.meter.splits < leanShare:
		at, l.due = 0, q.Now.Add(leanRest)
	case sure, at > l.prefills && l.meter.busy > leanFull:
	case l.prefills > 0 && q.Now.Sub(l.moved) < leanDwell:
		at = l.prefills
	case !l.tried[at].fresh(q.Now) && (l.liked == 0) != (at == 0):
		// What has never been seen here may look better by chance, and to try it costs.
		at = l.prefills
	}
	l.liked = liked
	if at != l.prefills {
		l.moved = q.Now
		l.meter = meter{from: q.Now.Add(leanPause)}
	}
	l.prefills = at
	clear(l.is)
	for _, c := range l.group[:at] {
		l.is[c] = true
	}
}

// answering returns the candidates that do not lean to prompts; all where there
// are no others.
func (l *lean) answering(q *Query, dst []int) []int {
	if l.prefills == 0 {
		return q.Candidates
	}
	dst = dst[:0]
	for _, c := range q.Candidates {
		if c >= len(l.is) || !l.is[c] {
			dst = append(dst, c)
		}
	}
	if len(dst) == 0 {
		return q.Candidates
	}
	return dst
}

// computing returns the prefill slots that lean so, or can do nothing else; all
// where there are none.
func (l *lean) computing(q *Query, dst []int) []int {
	dst = dst[:0]
	for _, c := range q.Prefills {
		if c < len(l.is) && l.is[c] || !slices.Contains(q.Candidates, c) {
			dst = append(dst, c)
		}
	}
	if len(dst) == 0 {
		return q.Prefills
	}
	return dst
}

// leave forgets a slot whose endpoint is another.
func (l *lean) leave(slot int) {
	if slot < len(l.is) {
		l.is[slot] = false
	}
}

// of returns what an endpoint that can do both leans to; RoleBoth where none lean.
func (l *lean) of(slot int) fleet.Role {
	switch {
	case l.prefills == 0:
		return fleet.RoleBoth
	case slot < len(l.is) && l.is[slot]:
		return fleet.RolePrefill
	}
	return fleet.RoleDecode
}
