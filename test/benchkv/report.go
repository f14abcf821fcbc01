//go:build linux

package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// row is one figure, its goal and how it came about.
type row struct {
	name    string
	unit    string
	samples []float64 // one per round
	limit   float64   // 0: no goal
	atLeast bool      // the goal is a floor
}

// value is the median of the rounds.
func (w row) value() float64 { return quantile(w.samples, 0.5) }

func (w row) missed() bool {
	if w.limit == 0 {
		return false
	}
	if w.atLeast {
		return !(w.value() >= w.limit) // not a number is no success
	}
	return !(w.value() <= w.limit)
}

func (w row) goal() string {
	if w.limit == 0 {
		return ""
	}
	sign, verdict := "<=", "met"
	if w.atLeast {
		sign = ">="
	}
	if w.missed() {
		verdict = "MISSED"
	}
	return fmt.Sprintf("%s %s  %s", sign, figure(w.limit), verdict)
}

type report struct{ rows []row }

// find returns the row of a name, made when it is not there.
func (r *report) find(name, unit string) *row {
	i := slices.IndexFunc(r.rows, func(w row) bool { return w.name == name })
	if i < 0 {
		i = len(r.rows)
		r.rows = append(r.rows, row{name: name, unit: unit})
	}
	return &r.rows[i]
}

// add notes what a round found.
func (r *report) add(name, unit string, sample float64) *row {
	w := r.find(name, unit)
	w.samples = append(w.samples, sample)
	return w
}

// toBeAtMost gives a row its goal.
func (w *row) toBeAtMost(limit float64) { w.limit = limit }

// toBeAtLeast gives a row a goal that is a floor.
func (w *row) toBeAtLeast(limit float64) { w.limit, w.atLeast = limit, true }

func (r *report) write(out io.Writer) {
	var missed []string
	goals := 0
	for _, w := range r.rows {
		spread := ""
		if len(w.samples) > 1 {
			spread = fmt.Sprintf("[%s, %s]", figure(slices.Min(w.samples)), figure(slices.Max(w.samples)))
		}
		fmt.Fprintf(out, "  %-62s %8s %-22s %-10s %s\n", w.name, figure(w.value()), spread, w.unit, w.goal())
		if w.limit != 0 {
			goals++
		}
		if w.missed() {
			missed = append(missed, fmt.Sprintf("%s is %s %s, goal %s", strings.TrimSpace(w.name), figure(w.value()), w.unit, figure(w.limit)))
		}
	}
	if len(missed) > 0 {
		fmt.Fprintf(out, "\nbench-kv: %d of %d goals missed: %s\n", len(missed), goals, strings.Join(missed, "; "))
		return
	}
	fmt.Fprintf(out, "\nbench-kv: all %d goals met\n", goals)
}

// figure writes a number with three digits that count.
func figure(v float64) string {
	switch {
	case v == 0 || math.IsNaN(v):
		return fmt.Sprint(v)
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// quantile returns the q-quantile of samples, which it leaves in order.
func quantile(samples []float64, q float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// cpu returns the processor time of this thread. Reading it costs about 0.3 µs.
func cpu() time.Duration {
	const threadClock = 3
	var ts syscall.Timespec
	_, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, threadClock, uintptr(unsafe.Pointer(&ts)), 0)
	if errno != 0 {
		panic("benchkv: the kernel does not know the time of a thread: " + errno.Error())
	}
	return time.Duration(ts.Nano())
}

// costOf returns the processor time of f.
func costOf(f func()) time.Duration {
	begun := cpu()
	f()
	return cpu() - begun
}
