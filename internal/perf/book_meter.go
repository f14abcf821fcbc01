package perf

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Job is one attempt's entry in a Book: made by Sent, closed exactly once by
// Done or Drop. The zero Job is closed.
type Job struct {
	slot     int
	open     bool
	decoding bool // past its first token
	guessed  bool // which nothing told of

	prompt, uncached fleet.Tokens
	pairs            float64
	sent, first      fleet.Time
	origin           float64 // the meter's clock when its output was 0
	at               totals  // the meter's totals at its first token
	ttft, tpot       float64 // predicted when sent, s; 0 unknown
	fetch            float64 // in ttft, for what was cached elsewhere
	under, vague     float64 // of the step under way when it came, the share left, and its variance
	fill             prefill
	serial           uint64 // tells it from what stands in its place later
}

// Open reports whether the attempt stands in the book.
func (j *Job) Open() bool { return j.open }

// Predicted returns what was predicted when the attempt was sent, in seconds; 0
// unknown.
func (j *Job) Predicted() (ttft, tpot float64) { return j.ttft, j.tpot }

// Fetched returns how long fetching what is cached elsewhere has taken of j's wait
// until now, in seconds, if all else took as long as predicted; NaN when nothing
// was predicted.
func (j *Job) Fetched(now fleet.Time) float64 {
	if !j.open || j.ttft == 0 {
		return math.NaN()
	}
	const late = 1.5
	wait := now.Sub(j.sent).Seconds()
	if j.fetch <= 0 && wait < late*j.ttft {
		return math.NaN() // it came while the request had to wait anyway
	}
	return wait - (j.ttft - j.fetch)
}

// Begin says that j has only now begun to wait for its endpoint: it waited for
// something else since it was sent.
func (j *Job) Begin(now fleet.Time) {
	if j.open && !j.decoding {
		j.sent = max(j.sent, now)
	}
}

// totals are what an endpoint has done since it was added, as far as the gateway
// can tell.
type totals struct {
	seqs   float64 // ∫ n dt, sequence seconds
	kv     float64 // ∫ K dt, token seconds
	prompt float64 // prompt tokens computed
	pairs  float64 // attention pairs computed
}

// prefillWindow is over how long the share of prompts is averaged: long enough
// to hold a few of them, short beside a change of load.
const prefillWindow = 30 * time.Second

// shortPass is the time in seconds over which an exponential that fades over
// prefillWindow is a straight line, to a millionth.
const shortPass = 0.03

// meter keeps count of what one endpoint is doing. Its clock counts decode steps
// as the belief says they pass, so that the context of what decodes grows between
// reports.
type meter struct {
	now   fleet.Time
	clock float64
	totals

	decoding int
	context  float64 // K
	found    float64 // of it, what was cached already and others may hold too
	ahead    int
	backlog  fleet.Tokens
	waiting  fleet.Tokens // prompt tokens of those ahead, cached ones included
	pairs    float64
	from     fleet.Time // since when the first of those ahead is computed
	boundary fleet.Time // when a step was last seen to end; 0 for never
	prefill  float64    // share of its time that prompts take
	arrivals float64    // prompts per second

	// The request that had its first token last, for telling those of one step.
	latest       *Job
	latestAt     fleet.Time
	latestSerial uint64

	silent []silent // those of whose first token nothing will tell, in the order they are due
}

// fading is what is left of an average after a time, kept since most endpoints of a
// pool were last looked at together.
type fading struct{ dt, share float64 }

// silent is a request that is taken to decode from a time on.
type silent struct {
	job    *Job
	serial uint64 // of the job, which may have been closed and its place taken
	due    fleet.Time
}

// expect foresees the first token of a request that will not tell of it.
func (m *meter) expect(j *Job, due fleet.Time) {
	if n := len(m.silent); n > 0 {
		due = max(due, m.silent[n-1].due)
	}
	m.silent = append(m.silent, silent{j, j.serial, due})
}

// settle lets those decode whose first token should have come.
func (m *meter) settle() {
	n := 0
	for n < len(m.silent) && m.silent[n].due <= m.now {
		if q := m.silent[n]; q.job.open && q.job.serial == q.serial && !q.job.decoding {
			m.arrived(q.job)
			m.join(q.job)
			q.job.guessed = true
			m.from = m.now
		}
		n++
	}
	if n > 0 {
		m.silent = append(m.silent[:0], m.silent[n:]...)
	}
}

// pass lets the meter run on to now under the believed step.
func (m *meter) pass(now fleet.Time, s *Step, f *fading) {
	dt := now.Sub(m.now).Seconds()
	if dt <= 0 {
		return
	}
	m.now = now
	n := float64(m.decoding)
	m.totals.seqs += n * dt
	m.totals.kv += m.context * dt
	if m.decoding > 0 {
		steps := dt * (1 - prefillShare(m.prefill)) / max(s.time(&Work{Seqs: n, KV: m.context}), 1e-5)
		m.clock += steps
		m.context += n * steps
	}
	if dt != f.dt {
		f.dt, f.share = dt, 1-dt/prefillWindow.Seconds()
		if dt > shortPass {
			f.share = math.Exp(-dt / prefillWindow.Seconds())
		}
	}
	fade := f.share
	m.prefill *= fade
	m.arrivals *= fade
	m.settle()
}

// sent counts a request that has been dispatched.
func (m *meter) sent(j *Job, s *Step) {
	if m.ahead == 0 {
		m.from = j.sent
	}
	m.ahead++
	m.backlog += j.uncached
	m.waiting += j.prompt
	m.pairs += j.pairs
	m.arrivals += 1 / prefillWindow.Seconds()
	m.prefill += s.Prompt(j.uncached, j.pairs) / prefillWindow.Seconds()
}

// arrived takes a request off those ahead.
func (m *meter) arrived(j *Job) {
	m.ahead--
	m.backlog -= j.uncached
	m.waiting -= j.prompt
	m.pairs = max(m.pairs-j.pairs, 0)
}

// join lets a request decode that has had its first token.
func (m *meter) join(j *Job) {
	m.totals.prompt += float64(j.uncached)
	m.totals.pairs += j.pairs
	m.decoding++
	j.decoding, j.first, j.at = true, m.now, m.totals
	j.origin = m.clock - 1 // one token is there
	m.context += float64(j.prompt) + 1
	m.found += float64(j.prompt - j.uncached)
}

// leave takes a request away, wherever it stands.
func (m *meter) leave(j *Job) {
	if !j.decoding {
		m.arrived(j)
		m.from = m.now // whoever was behind it begins now, if it did not before
		return
	}
	m.decoding--
	m.context -= float64(j.prompt) + m.clock - j.origin
	m.found -= float64(j.prompt - j.uncached)
	if m.decoding == 0 {
		m.context, m.found = 0, 0 // what rounding left
	}
}

// corrected tells how much output a request really has.
func (m *meter) corrected(j *Job, output fleet.Tokens) {
	origin := m.clock - float64(output)
	m.context += j.origin - origin
	j.origin = origin
}

// load sets l to what a request would meet, others' requests included, which look
// like ours.
func (m *meter) load(others int, l *Load) {
	*l = Load{
		Decoding: m.decoding, Active: fleet.Tokens(max(m.context, 0)), Ahead: m.ahead, Backlog: m.backlog, Pairs: m.pairs, Prefill: m.prefill, Arrivals: m.arrivals,
	}
	if m.ahead > 0 {
		l.Elapsed = max(m.now.Sub(m.from), 0)
	}
	if m.boundary > 0 {
		l.Boundary = max(m.now.Sub(m.boundary), 1)
	}
	if others > 0 {
		each := fleet.Tokens(othersContext)
		if m.decoding > 0 {
			each = l.Active / fleet.Tokens(m.decoding)
		}
		l.Decoding += others
		l.Active += each * fleet.Tokens(others)
	}
	l.Held = l.Active - fleet.Tokens(m.found)
}

// othersContext is the context assumed of a sequence that another gateway sent,
// in tokens, where none of ours is beside it to go by.
const othersContext = 1000
