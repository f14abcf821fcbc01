package obs

import "sync"

// maxLabels is how many values of one label are kept apart. Beyond it they
// count together, as other: a client that invents names must not be able to fill
// the memory of whoever stores the metrics.
const maxLabels = 1000

// otherLabel stands for the values that came too late.
const otherLabel = "other"

// bounded lets through the first values it sees.
type bounded struct {
	mu    sync.RWMutex
	limit int
	seen  map[string]struct{}
}

func newBounded(limit int) *bounded { return &bounded{limit: limit, seen: map[string]struct{}{}} }

// label returns v, or other when there are too many already.
func (b *bounded) label(v string) string {
	b.mu.RLock()
	_, ok := b.seen[v]
	full := len(b.seen) >= b.limit
	b.mu.RUnlock()
	switch {
	case ok:
		return v
	case full:
		return otherLabel
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.seen[v]; !ok && len(b.seen) >= b.limit {
		return otherLabel
	}
	b.seen[v] = struct{}{}
	return v
}
