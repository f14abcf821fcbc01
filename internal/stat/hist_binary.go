package stat

import (
	"encoding/binary"
	"errors"
	"math"
)

// errHist says that bytes are no histogram.
var errHist = errors.New("stat: bytes are no histogram")

// MarshalBinary encodes the histogram exactly: number, sum, extremes, then the
// buckets that are not empty as distance from the one before and count.
func (h *Hist) MarshalBinary() ([]byte, error) {
	b := binary.AppendUvarint(nil, h.n)
	if h.n == 0 {
		return b, nil
	}
	b = binary.LittleEndian.AppendUint64(b, math.Float64bits(h.sum))
	b = binary.AppendUvarint(b, uint64(h.min))
	b = binary.AppendUvarint(b, uint64(h.max))
	last := -1
	for i, c := range h.counts {
		if c > 0 {
			b = binary.AppendUvarint(b, uint64(i-last))
			b = binary.AppendUvarint(b, c)
			last = i
		}
	}
	return b, nil
}

// UnmarshalBinary decodes what MarshalBinary wrote.
func (h *Hist) UnmarshalBinary(b []byte) error {
	bad := false
	next := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			bad = true
			return 0
		}
		b = b[n:]
		return v
	}
	*h = Hist{}
	out := Hist{n: next()}
	if out.n == 0 {
		if bad || len(b) > 0 {
			return errHist
		}
		return nil
	}
	const word = 8
	if bad || len(b) < word {
		return errHist
	}
	out.sum = math.Float64frombits(binary.LittleEndian.Uint64(b))
	b = b[word:]
	out.min, out.max = int64(next()), int64(next())
	out.counts = make([]uint64, histTotal)
	at, seen := -1, uint64(0)
	for len(b) > 0 && !bad {
		gap, count := next(), next()
		if bad || gap == 0 || count == 0 || gap > histTotal || at+int(gap) >= histTotal {
			return errHist
		}
		at += int(gap)
		out.counts[at] = count
		seen += count
	}
	if bad || seen != out.n || out.min < 0 || out.max < out.min {
		return errHist
	}
	*h = out
	return nil
}
