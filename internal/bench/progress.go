package bench

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"penstock.dev/penstock/internal/stat"
)

// plainEvery is how often a progress line is written where there is no terminal.
const plainEvery = 10 * time.Second

// progress shows how a run goes: one line rewritten on a terminal, a line now
// and then elsewhere. A nil writer shows nothing.
type progress struct {
	w     io.Writer
	tty   bool
	total time.Duration // 0 when unknown
	want  int           // requests, 0 when unknown
	next  time.Duration // plain lines only
	shown bool
}

// IsTerminal says whether a file is a terminal.
func IsTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

const barWidth = 24

// show writes the line for now.
func (p *progress) show(now time.Duration, t *tally, flying int) {
	if p.w == nil || (!p.tty && now < p.next) {
		return
	}
	p.next = now + plainEvery
	line := fmt.Sprintf("%4.0f s  %s sent  %s in flight  %s done  %s failed", now.Seconds(),
		whole(t.sent), whole(flying), whole(t.ended), whole(t.failed))
	if t.recent.Count() > 0 {
		line += fmt.Sprintf("  TTFT p50 %s ms", millis(t.recent.Quantile(0.5)/float64(time.Millisecond)))
		if !p.tty || t.recent.Count() >= 200 {
			t.recent = stat.Hist{}
		}
	}
	if !p.tty {
		fmt.Fprintln(p.w, line)
		return
	}
	p.shown = true
	fmt.Fprintf(p.w, "\r\x1b[K%s%s", p.bar(now, t.ended), line)
}

// bar draws how far the run is, or nothing when its end is not known.
func (p *progress) bar(now time.Duration, ended int) string {
	part := 0.0
	switch {
	case p.want > 0:
		part = float64(ended) / float64(p.want)
	case p.total > 0:
		part = now.Seconds() / p.total.Seconds()
	default:
		return ""
	}
	full := int(min(part, 1) * barWidth)
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", barWidth-full) + "] "
}

// end clears the line.
func (p *progress) end() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
