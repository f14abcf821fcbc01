package enginesim

import "penstock.dev/penstock/internal/fleet"

// State is what an engine has to do, as only whoever simulates it can know. It
// holds as of the latest Advance.
type State struct {
	Decoding int          // sequences past their first token, whose next step makes a token each
	Context  fleet.Tokens // tokens of context they read
	Output   fleet.Tokens // tokens they will have generated when all have ended
	Ahead    int          // other requests: those that wait, and those whose prompt is being computed
	Prompt   fleet.Tokens // tokens these have to compute, beside what is cached or others compute before them
	Pairs    float64      // attention pairs of those tokens
	Held     fleet.Tokens // KV of sequences
	Cached   fleet.Tokens // KV that nobody holds, kept for reuse
	Started  fleet.Time   // when the step in flight began; Never without one
}

// State returns the engine's state. It visits every request there is.
func (e *Engine) State() State {
	b := e.blocks
	st := State{
		Held: fleet.Tokens(b.private+b.used) * BlockTokens, Cached: fleet.Tokens(b.idle) * BlockTokens, Started: fleet.Never,
	}
	if e.stepping {
		st.Started = e.started
	}
	ahead := func(s *sequence, computed int) {
		x, n := float64(computed), float64(s.known()-computed)
		st.Ahead++
		st.Prompt += fleet.Tokens(n)
		st.Pairs += n*x + n*(n-1)/2
	}
	for _, s := range e.running {
		if s.generated > 0 && s.computed+1 == s.known() {
			st.Decoding++
			st.Context += fleet.Tokens(s.computed)
			st.Output += fleet.Tokens(s.output)
		} else {
			ahead(s, s.computed)
		}
	}
	for s := e.waiting.first(); s != &e.waiting.ring; s = s.next {
		if !s.foreseen {
			s.expected, s.foreseen = e.expected(s.chain, s.known(), s), true
		}
		ahead(s, min(max(s.expected, s.received), s.known()-1))
	}
	return st
}

// Expected returns how many tokens of a prompt with this chain the engine would
// not compute if it came now: those cached, and those that requests before it are
// going to compute.
func (e *Engine) Expected(chain []uint64, prompt fleet.Tokens) fleet.Tokens {
	return fleet.Tokens(e.expected(chain, int(prompt), &e.waiting.ring))
}

// expected is Expected for a place in the queue before until.
func (e *Engine) expected(chain []uint64, known int, until *sequence) int {
	chain = chain[:min((known-1)/blockTokens, len(chain))]
	n, _ := e.blocks.match(chain)
	n = e.below(chain, n)
	longer := func(s *sequence) {
		if len(chain) > n && len(s.chain) > n && s.chain[n] == chain[n] {
			n = (&run{keys: s.chain}).agree(chain)
		}
	}
	for _, s := range e.running {
		if s.computed < s.prompt {
			longer(s)
		}
	}
	for s := e.waiting.first(); s != until; s = s.next {
		longer(s)
	}
	return n * blockTokens
}

// Replan forgets what has been foreseen of steps to come. Whoever changes what
// the Physics of an engine, or of a rank's set, answers calls it after Advance to
// that time; the step in flight takes as long as it was to take.
func (e *Engine) Replan() {
	e.plan = e.plan[:0]
	if e.set != nil {
		e.set.plan = e.set.plan[:0]
	}
}

// Typical returns a Physics without its noise, where it has any and can tell; a
// step then takes as long as such steps take on average.
func Typical(p Physics) Physics {
	if n, ok := p.(interface{ Typical() Physics }); ok {
		return n.Typical()
	}
	return p
}

// Typical implements the interface that Typical looks for.
func (r *Roofline) Typical() Physics {
	quiet := *r
	quiet.Noise = 0
	return &quiet
}

// Typical implements the interface that Typical looks for.
func (r Ranks) Typical() Physics { return Ranks{Rank: Typical(r.Rank), N: r.N} }
