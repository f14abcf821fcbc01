package fleet

import "slices"

// Adapter stands for a LoRA adapter by the hash of its name; NoAdapter is the
// base model itself.
type Adapter uint64

// NoAdapter is the adapter of a request to a base model.
const NoAdapter Adapter = 0

// AdapterOf returns the adapter with a name (64-bit FNV-1a: journals must
// replay in any process).
func AdapterOf[S ~string | ~[]byte](name S) Adapter {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * prime
	}
	return Adapter(max(h, 1))
}

// MaxAdapters is how many adapters of one engine are kept in mind.
const MaxAdapters = 16

// Adapters are the LoRA adapters that an engine has at work, running or
// waiting. What is not among them may still be in its memory.
type Adapters struct {
	Max   int // adapters it can hold at once; 0 unknown
	Count int
	List  [MaxAdapters]Adapter // the first Count are set
}

// Has reports whether a is at work.
func (s *Adapters) Has(a Adapter) bool {
	return slices.Contains(s.List[:s.Count], a)
}

// Add adds an adapter. Beyond MaxAdapters they are forgotten.
func (s *Adapters) Add(a Adapter) {
	if s.Count < MaxAdapters && !s.Has(a) {
		s.List[s.Count] = a
		s.Count++
	}
}

// AdapterFit says what serving a request's adapter takes at an endpoint.
type AdapterFit uint8

// The fits, from worst to best.
const (
	AdapterNone   AdapterFit = iota // the request names no adapter
	AdapterFull                     // another must go first
	AdapterRoom                     // it must be loaded, as far as is known into free room
	AdapterLoaded                   // it is there
)

var fitNames = [...]string{"", "full", "room", "loaded"}

// String returns the fit's name; "" for AdapterNone.
func (f AdapterFit) String() string { return nameOf(fitNames[:], int(f)) }
