package workload

// Reuse counts how much of a load's prompts an endless cache shared by all
// requests would have held already: the ceiling for any router's hit rate. A
// prompt's run counts as held if all runs before it are, and an earlier prompt
// began with the very same runs. The zero value is ready to use; it keeps about
// forty bytes for each distinct run.
type Reuse struct {
	Runs, HeldRuns     int64 // for a Mooncake trace a run is a block
	Tokens, HeldTokens int64

	seen map[uint64]struct{}
}

// Add counts one prompt and remembers it.
func (u *Reuse) Add(prompt []Segment) {
	if u.seen == nil {
		u.seen = map[uint64]struct{}{}
	}
	chain, leading := uint64(0), true
	for _, s := range prompt {
		chain = mix(chain, s.ID, uint64(s.Tokens))
		u.Runs++
		u.Tokens += int64(s.Tokens)
		if leading {
			if _, leading = u.seen[chain]; leading {
				u.HeldRuns++
				u.HeldTokens += int64(s.Tokens)
				continue
			}
		}
		u.seen[chain] = struct{}{}
	}
}

// RunShare is the share of runs held, 0..1; 0 when nothing was added.
func (u *Reuse) RunShare() float64 { return share(u.HeldRuns, u.Runs) }

// TokenShare is the share of tokens held, 0..1; 0 when nothing was added.
func (u *Reuse) TokenShare() float64 { return share(u.HeldTokens, u.Tokens) }

func share(part, all int64) float64 {
	if all == 0 {
		return 0
	}
	return float64(part) / float64(all)
}
