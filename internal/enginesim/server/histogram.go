package server

import (
	"slices"
	"strconv"
	"strings"
)

// histogram counts observations in buckets as Prometheus wants them.
type histogram struct {
	name, help string
	bounds     []float64 // upper, inclusive, ascending
	counts     []uint64  // one more than bounds: the last is +Inf
	sum        float64
}

func newHistogram(name, help string, bounds []float64) *histogram {
	return &histogram{name: name, help: help, bounds: bounds, counts: make([]uint64, len(bounds)+1)}
}

func (h *histogram) observe(v float64) {
	i, _ := slices.BinarySearch(h.bounds, v)
	h.counts[i]++
	h.sum += v
}

// append writes the family in the text format. labels is the inside of the
// braces.
func (h *histogram) append(b []byte, labels string) []byte {
	b = appendFamily(b, h.name, h.help, "histogram")
	total := uint64(0)
	for i, n := range h.counts {
		total += n
		b = append(b, h.name...)
		b = append(b, "_bucket{"...)
		b = append(b, labels...)
		b = append(b, `,le="`...)
		if i < len(h.bounds) {
			b = appendNumber(b, h.bounds[i])
		} else {
			b = append(b, "+Inf"...)
		}
		b = append(b, `"} `...)
		b = strconv.AppendUint(b, total, 10)
		b = append(b, '\n')
	}
	b = appendSample(b, h.name+"_sum", labels, h.sum)
	return appendSample(b, h.name+"_count", labels, float64(total))
}

// appendFamily writes the two comment lines of a metric family.
func appendFamily(b []byte, name, help, kind string) []byte {
	for _, part := range []string{"# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"} {
		b = append(b, part...)
	}
	return b
}

func appendSample(b []byte, name, labels string, v float64) []byte {
	for _, part := range []string{name, "{", labels, "} "} {
		b = append(b, part...)
	}
	return append(appendNumber(b, v), '\n')
}

// appendNumber writes a number as Python's client does: always with a point.
func appendNumber(b []byte, v float64) []byte {
	n := len(b)
	b = strconv.AppendFloat(b, v, 'g', -1, 64)
	for _, c := range b[n:] {
		if c == '.' || c == 'e' {
			return b
		}
	}
	return append(b, ".0"...)
}

// escapeLabel returns s as it stands between the quotes of a label.
func escapeLabel(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s)
}
