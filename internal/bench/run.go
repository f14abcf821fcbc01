package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// Streams are where a run writes.
type Streams struct {
	Out io.Writer // the table, or with Options.JSON the result
	Err io.Writer // progress; nil for none
	TTY bool      // Err is a terminal: see IsTerminal
}

// Run sends the load, writes the result and returns it. When ctx ends, sending
// stops, open requests get Options.Grace to finish, and what was measured is
// reported: an interrupted run is no error, and neither are failed requests.
// The error says that the load could not be started or the result not written.
func Run(ctx context.Context, o Options, w Streams) (*Report, error) {
	p, err := newPlan(o)
	if err != nil {
		return nil, err
	}
	client := newClient(p)
	defer client.CloseIdleConnections()
	if p.Model == "" {
		if p.Model, err = firstModel(ctx, client, p); err != nil {
			return nil, err
		}
	}
	if o.JSON {
		w.Err = nil
	}
	var lines *resultWriter
	if o.PerRequest != "" {
		if lines, err = createResults(o.PerRequest); err != nil {
			return nil, err
		}
	}
	rep := execute(ctx, p, client, w, lines)
	if err := lines.close(); err != nil {
		return rep, err
	}
	return rep, rep.write(o, w.Out)
}

// execute runs a plan against a client and reports. It is the part of Run that
// touches neither files nor flags.
func execute(ctx context.Context, p *plan, client *http.Client, w Streams, lines *resultWriter) *Report {
	p.modelJSON = quoteJSON(p.Model)
	started := time.Now()
	clock := func() time.Duration { return time.Since(started) }
	s := &sender{p: p, client: client, clock: clock, run: runID(started)}
	t := newTally(p)
	bar := &progress{w: w.Err, tty: w.TTY, total: p.total, want: p.Requests, next: plainEvery}
	d := &dispatcher{p: p, send: s.send, clock: clock}
	d.onNew = t.begin
	d.onEnd = func(r *Result) {
		t.add(r)
		lines.write(r)
		if r.gaps != nil {
			s.pool.Put(r.gaps)
			r.gaps = nil
		}
	}
	d.tick = func() { bar.show(clock(), t, d.flying) }
	interrupted := d.run(ctx)
	bar.end()
	rep := t.report(d.waited, d.blocked)
	rep.Started, rep.RunID, rep.Interrupted = started.UTC(), s.run, interrupted
	return rep
}

// write puts the report where the options want it.
func (r *Report) write(o Options, out io.Writer) error {
	js, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	js = append(js, '\n')
	if o.Output != "" {
		if err := os.WriteFile(o.Output, js, 0o644); err != nil {
			return fmt.Errorf("write --output: %w", err)
		}
	}
	if !o.JSON {
		js = []byte(r.Table())
	}
	if _, err := out.Write(js); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

// resultWriter writes one line per request. The first error ends it and is told
// by close. A nil one writes nothing.
type resultWriter struct {
	f   *os.File
	w   *bufio.Writer
	enc *json.Encoder
	err error
}

func createResults(name string) (*resultWriter, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, fmt.Errorf("create --per-request: %w", err)
	}
	w := bufio.NewWriterSize(f, 1<<16)
	return &resultWriter{f: f, w: w, enc: json.NewEncoder(w)}, nil
}

func (w *resultWriter) write(r *Result) {
	if w != nil && w.err == nil {
		w.err = w.enc.Encode(r)
	}
}

func (w *resultWriter) close() error {
	if w == nil {
		return nil
	}
	if err := errors.Join(w.err, w.w.Flush(), w.f.Close()); err != nil {
		return fmt.Errorf("write --per-request: %w", err)
	}
	return nil
}
