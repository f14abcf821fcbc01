package tokens

import (
	"maps"
	"slices"
	"sync"
	"time"

	"penstock.dev/penstock/internal/stat"
)

// Status is what a source has done and how it stands.
type Status struct {
	By      map[How]uint64    // requests by how their keys were had
	Without map[Reason]uint64 // requests of which not all is known, by why
	Answers stat.Hist         // how long engines took to answer, ns
	Calls   int               // under way
	Cache   CacheCounts
	Pools   []PoolStatus // by name
}

// PoolStatus is how one pool stands.
type PoolStatus struct {
	Name    string
	Circuit string // closed, open or trying
	// Local says whether prompts are tokenized here; Has is false where no
	// tokenizer was given.
	Has   bool
	Local Trust
	// Asked are the engines that were asked, by how: render, tokenize or none.
	Asked map[string]int
}

var wayNames = [...]string{wayRender: "render", wayTokenize: "tokenize", wayNone: "none"}

// tally counts requests.
type tally struct {
	mu      sync.Mutex
	by      [hows]uint64
	without [reasons]uint64
	answers stat.Hist
}

func (t *tally) count(h How, r Reason) {
	t.mu.Lock()
	t.by[h]++
	if r != ReasonNone {
		t.without[r]++
	}
	t.mu.Unlock()
}

func (t *tally) answered(took time.Duration) {
	t.mu.Lock()
	t.answers.Observe(int64(took))
	t.mu.Unlock()
}

// Status returns what the source has done so far.
func (s *Source) Status() Status {
	st := Status{By: map[How]uint64{}, Without: map[Reason]uint64{}, Cache: s.cache.counted()}
	s.tally.mu.Lock()
	for h, n := range s.tally.by {
		st.By[How(h)] = n
	}
	for r, n := range s.tally.without[1:] {
		st.Without[Reason(r+1)] = n
	}
	st.Answers.Merge(&s.tally.answers)
	s.tally.mu.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	st.Calls = len(s.flights)
	for _, name := range slices.Sorted(maps.Keys(s.pools)) {
		st.Pools = append(st.Pools, s.pools[name].status())
	}
	return st
}

func (p *source) status() PoolStatus {
	st := PoolStatus{Name: p.name, Circuit: p.circuit.state(), Asked: map[string]int{}}
	if p.local != nil {
		st.Has, st.Local = true, p.local.trust
	}
	for _, m := range p.manners {
		st.Asked[wayNames[m.way]]++
	}
	return st
}
