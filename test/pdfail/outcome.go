package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// outcome is what became of a row.
type outcome struct {
	row       row
	connector string

	requests, retried  int
	errors             int // of clients, that somebody else could have served
	broken             int // streams that had begun when their engine died
	excused            int // errors while nobody was there
	wrong              int
	injected, missed   int
	recovery, cancel   []time.Duration
	unrecovered, notes int
	left               left
	why                []string // some of the errors
	failed             error    // the row could not be run to its end
}

// mostWhy is how many errors are told of.
const mostWhy = 3

// run injects a row's fault so many times under load.
func (o *outcome) run(ctx context.Context, opt options) (err error) {
	r, err := start(o.connector, &o.row)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	l := startLoad(r, o.row.key, opt.rate, uint64(len(o.row.key)))
	defer l.end()
	warm := time.Now()
	everybody := make([]string, r.fleet.Engines())
	for i := range everybody {
		everybody[i] = r.name(i)
	}
	if !awaitFor(ctx, 10*time.Second, func() bool {
		_, ok := l.recovered(0, warm, warm, everybody)
		return ok && time.Since(warm) > time.Second
	}) {
		return fmt.Errorf("service is not normal before anything has happened: %s", l.last())
	}
	hurts := make([]hurt, 0, opt.times)
	for n := range opt.times {
		from := l.mark()
		h, err := o.row.inject(ctx, r, n)
		if err != nil {
			return err
		}
		hurts = append(hurts, h)
		o.note(ctx, l, from, &h)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	l.end()
	o.count(l.results, hurts, opt.verbose)
	o.left = r.settle()
	return nil
}

// patient is how many times the bound for recovery is waited for it.
const patient = 3

// note waits until what was hurt has recovered.
func (o *outcome) note(ctx context.Context, l *load, from int, h *hurt) {
	o.injected++
	if h.missed {
		o.missed++
	}
	if o.row.leaves {
		o.cancel = append(o.cancel, h.cancel)
	}
	if h.note != "" {
		o.notes++
		o.tell(h.note)
	}
	var took time.Duration
	ok := awaitFor(ctx, patient*o.row.bound, func() (ok bool) {
		took, ok = l.recovered(from, h.at, h.alive, h.befell)
		return ok
	})
	if !ok {
		o.unrecovered++
		took = time.Since(h.at)
		o.tell(fmt.Sprintf("injection %d: service is not as before: %s", o.injected, l.missing(from, h)))
	}
	o.recovery = append(o.recovery, took)
}

func (o *outcome) tell(why string) {
	if len(o.why) < mostWhy {
		o.why = append(o.why, why)
	}
}

// count counts what clients have seen.
func (o *outcome) count(results []result, hurts []hurt, verbose bool) {
	for i := range results {
		x := &results[i]
		o.requests++
		if x.attempts > 1 {
			o.retried++
		}
		switch {
		case x.wrong:
			o.wrong++
		case x.whole:
			continue
		case excused(x, hurts):
			o.excused++
			continue
		case x.begun && o.row.breaks:
			o.broken++
			continue
		default:
			o.errors++
		}
		o.tell(fmt.Sprintf("%s: %d, begun %v, %d attempts: %s", x.id, x.status, x.begun, x.attempts, x.why))
		if verbose {
			fmt.Fprintf(os.Stderr, "%+v\n", *x)
		}
	}
}

// excused reports whether nobody was there who could have served x.
func excused(x *result, hurts []hurt) bool {
	for i := range hurts {
		if h := &hurts[i]; h.excused && x.arrived.Before(h.alive) && x.ended.After(h.at) {
			return true
		}
	}
	return false
}

// missing tells why service is not as it was before h.
func (l *load) missing(from int, h *hurt) string {
	l.mu.Lock()
	var why []string
	for id, arrived := range l.open {
		if age := time.Since(arrived); age > stuck {
			why = append(why, fmt.Sprintf("%s is open for %v", id, age.Round(time.Millisecond)))
		}
	}
	for _, e := range h.befell {
		if !slices.ContainsFunc(l.results[from:], func(x result) bool { return x.normal() && x.arrived.After(h.alive) && x.via(e) }) {
			why = append(why, e+" has served nothing since")
		}
	}
	l.mu.Unlock()
	return strings.Join(append(why, "the latest that was not normal: "+l.last()), "; ")
}

// last tells of the latest request that was not normal.
func (l *load) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.results) - 1; i >= 0; i-- {
		if x := &l.results[i]; !x.normal() {
			return fmt.Sprintf("%s, %v before now, took %v, %d attempts, %s to %s: %s", x.id, time.Since(x.ended), x.ended.Sub(x.arrived), x.attempts, x.prefill, x.decode, x.why)
		}
	}
	return fmt.Sprintf("%d requests have ended, all of them well; %d are open", len(l.results), len(l.open))
}
