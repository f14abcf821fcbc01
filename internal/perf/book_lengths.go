package perf

import (
	"math/bits"

	"penstock.dev/penstock/internal/fleet"
)

// Lengths predicts how long answers will be, from the answers there were: by
// whose they are and how long the prompt is, as far as such have been seen, else
// from all.
type Lengths struct {
	all   mean
	byKey map[uint64]mean
	order []uint64 // keys in the order they came, for forgetting
}

// mean is an average that forgets.
type mean struct {
	value  float64
	weight float64 // answers it stands for, at most lengthMemory
}

const (
	// firstOutput is the answer expected before any has been seen, in tokens: what
	// conversation traces have on average.
	firstOutput = 250
	// lengthMemory is over how many answers lengths are averaged.
	lengthMemory = 200
	// trustKey is how many answers of one key weigh as much as those of all.
	trustKey = 5
	// maxKeys bounds the keys in mind.
	maxKeys = 4096
)

func newLengths() Lengths { return Lengths{byKey: map[uint64]mean{}} }

func (m *mean) add(x float64) {
	m.weight = min(m.weight+1, lengthMemory)
	m.value += (x - m.value) / m.weight
}

// key tells apart whose answer it is and the order of magnitude of the prompt.
func key(a Ask) uint64 { return a.Key*64 + uint64(bits.Len(uint(max(a.Prompt, 0)))) }

func (l *Lengths) expect(a Ask) fleet.Tokens {
	x := l.mean()
	if k := l.byKey[key(a)]; k.weight > 0 {
		x = (k.value*k.weight + x*trustKey) / (k.weight + trustKey)
	}
	out := max(fleet.Tokens(x), 1)
	if a.MaxOut > 0 {
		out = min(out, a.MaxOut)
	}
	return out
}

func (l *Lengths) mean() float64 {
	if l.all.weight == 0 {
		return firstOutput
	}
	return l.all.value
}

func (l *Lengths) learn(a Ask, output fleet.Tokens) {
	l.all.add(float64(output))
	k := key(a)
	m, known := l.byKey[k]
	if !known {
		if len(l.order) == maxKeys {
			delete(l.byKey, l.order[0])
			l.order = append(l.order[:0], l.order[1:]...)
		}
		l.order = append(l.order, k)
	}
	m.add(float64(output))
	l.byKey[k] = m
}
