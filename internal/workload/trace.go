package workload

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Format names a trace file format.
type Format string

// The trace formats.
const (
	FormatAuto     Format = "auto"     // told by the file's first byte
	FormatMooncake Format = "mooncake" // JSON lines: timestamp, input_length, output_length, hash_ids
	FormatAzure    Format = "azure"    // CSV: TIMESTAMP, ContextTokens, GeneratedTokens
)

// BlockTokens is how many tokens one hash id of a Mooncake trace stands for.
const BlockTokens = 512

// Row is one recorded request.
type Row struct {
	At      time.Duration // arrival, from the trace's own zero
	Input   int           // prompt tokens, at least 1
	Output  int           // answer tokens, at least 0
	Hashes  []uint64      // one id per block of the prompt, the last block partial; nil when not recorded
	Session string        // conversation, when recorded
	Tenant  string        // whom to charge, when recorded
	Parent  int           // row whose answer this one follows, or NoRequest
	Delay   time.Duration // recorded pause after that answer; 0 when not recorded
	Turn    int           // turns before it in its conversation
	Root    int           // first row of its conversation; itself when alone
	Line    int           // in the file, from 1
}

// Trace is a recorded load: rows by arrival, parents before children.
type Trace struct {
	Format   Format
	Rows     []Row
	Inferred int // rows whose parent was inferred from the prompts' blocks
}

// Limits on what a trace may say, against typing errors and hostile files.
const (
	maxLine     = 16 << 20 // bytes
	maxTraceMS  = 1e12     // about 31 years
	maxProblems = 20       // after so many the rest is hardly news
)

// ReadTrace reads a whole trace. Everything wrong with it is refused with line
// number and field, up to twenty problems at once.
//
// Conversations are taken from the rows' session_id where recorded. Where not,
// they are inferred from the blocks: a row follows the latest earlier row all of
// whose whole blocks begin its prompt, if it has room for that row's answer
// too, and if the last of those blocks is not a common preamble (a block that
// more than eight different blocks follow). Rows that share no more than one
// block are never joined.
func ReadTrace(r io.Reader, f Format) (*Trace, error) {
	br := bufio.NewReaderSize(r, 1<<16)
	if f == FormatAuto || f == "" {
		var err error
		if f, err = sniff(br); err != nil {
			return nil, err
		}
	}
	t := &Trace{Format: f}
	p := &problems{}
	switch f {
	case FormatMooncake:
		readMooncake(br, t, p)
	case FormatAzure:
		readAzure(br, t, p)
	default:
		return nil, fmt.Errorf("trace format %q: want auto, mooncake or azure", f)
	}
	if len(t.Rows) == 0 && len(p.list) == 0 {
		return nil, fmt.Errorf("%s trace: no requests in it", f)
	}
	if err := p.err(); err != nil {
		return nil, fmt.Errorf("%s trace:\n%w", f, err)
	}
	t.order()
	t.joinSessions()
	return t, nil
}

// sniff tells the format by the first byte that is not white space.
func sniff(br *bufio.Reader) (Format, error) {
	head, err := br.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read trace: %w", err)
	}
	head = bytes.TrimLeft(head, "\ufeff \t\r\n")
	if len(head) == 0 {
		return "", errors.New("trace: no requests in it")
	}
	if head[0] == '{' {
		return FormatMooncake, nil
	}
	return FormatAzure, nil
}

// lines calls each for every line that is not blank, until it says stop.
func lines(br *bufio.Reader, p *problems, each func(n int, line []byte) bool) {
	sc := bufio.NewScanner(br)
	sc.Buffer(make([]byte, 0, 1<<16), maxLine)
	n := 0
	for sc.Scan() {
		n++
		line := bytes.TrimSpace(sc.Bytes())
		if n == 1 {
			line = bytes.TrimPrefix(line, []byte("\ufeff"))
		}
		if len(line) > 0 && !each(n, line) {
			return
		}
		if len(p.list) >= maxProblems {
			p.add(lineNo(n), "giving up after %d problems", maxProblems)
			return
		}
	}
	if err := sc.Err(); err != nil {
		p.add(lineNo(n+1), "%v", err)
	}
}

func lineNo(n int) string { return fmt.Sprintf("line %d", n) }

// order sorts rows by arrival. Only rows timed by their session can be out of
// order here; the sort is stable, so that they stay behind their parents.
func (t *Trace) order() {
	byAt := func(a, b Row) int { return int(min(max(a.At-b.At, -1), 1)) }
	if !slices.IsSortedFunc(t.Rows, byAt) {
		slices.SortStableFunc(t.Rows, byAt)
	}
}

// Span is the time from the trace's zero to just after its last bucket.
func (t *Trace) Span() time.Duration {
	if len(t.Rows) == 0 {
		return 0
	}
	return t.Rows[len(t.Rows)-1].At - t.Rows[0].At + t.bucket()
}

// bucket is the usual distance between two distinct arrival times: the step of
// the recorder's clock, where it is coarse.
func (t *Trace) bucket() time.Duration {
	var gaps []time.Duration
	for i := 1; i < len(t.Rows); i++ {
		if g := t.Rows[i].At - t.Rows[i-1].At; g > 0 {
			gaps = append(gaps, g)
		}
	}
	if len(gaps) == 0 {
		return time.Second
	}
	slices.Sort(gaps)
	return gaps[len(gaps)/2]
}

// arrivals returns each row's time from the first, rows recorded at one instant
// spread evenly until the next one (at most one usual step away): a recorder
// that rounds to seconds would otherwise make bursts that never were.
func (t *Trace) arrivals() []time.Duration {
	at := make([]time.Duration, len(t.Rows))
	step := t.bucket()
	for i := 0; i < len(t.Rows); {
		j := i + 1
		for j < len(t.Rows) && t.Rows[j].At == t.Rows[i].At {
			j++
		}
		width := step
		if j < len(t.Rows) {
			width = min(step, t.Rows[j].At-t.Rows[i].At)
		}
		// Whole and remainder apart: years times many rows would overflow.
		n := time.Duration(j - i)
		for k := range n {
			at[i+int(k)] = t.Rows[i].At - t.Rows[0].At + width/n*k + width%n*k/n
		}
		i = j
	}
	return at
}
