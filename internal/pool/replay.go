package pool

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/journal"
)

// Recorder journals a brain's life: one head record with the configuration and
// seed, then for every step its number, time, event and actions.
type Recorder struct {
	w   *journal.Writer
	seq uint64
	enc journal.Encoder
}

// NewRecorder starts a journal of a brain made with c and seed.
func NewRecorder(w *journal.Writer, c Config, seed uint64) (*Recorder, error) {
	r := &Recorder{w: w}
	r.enc.Fixed(seed)
	EncodeEvent(&r.enc, &Configure{Config: c})
	return r, w.Append(r.enc.B)
}

// Record appends one step.
func (r *Recorder) Record(now fleet.Time, ev Event, actions []Action) error {
	r.seq++
	r.enc.B = r.enc.B[:0]
	r.enc.Uint(r.seq)
	r.enc.Int(int64(now))
	EncodeEvent(&r.enc, ev)
	EncodeActions(&r.enc, actions)
	return r.w.Append(r.enc.B)
}

// ErrParity says that a replayed step gave other actions than the recorded one.
var ErrParity = errors.New("replay differs from the journal")

// Replay feeds a journal's events to a fresh brain and compares its actions,
// byte by byte, with those recorded. It returns the brain and the number of
// steps replayed; ErrParity names the first step that differs.
func Replay(r *journal.Reader) (*Brain, uint64, error) {
	b, err := replayHead(r)
	if err != nil {
		return nil, 0, err
	}
	var out []Action
	var enc journal.Encoder
	for n := uint64(0); ; n++ {
		body, err := r.Next()
		if errors.Is(err, io.EOF) {
			return b, n, nil
		}
		if err != nil {
			return b, n, err
		}
		d := journal.Decoder{B: body}
		seq, now := d.Uint(), fleet.Time(d.Int())
		ev, err := DecodeEvent(&d)
		if err != nil {
			return b, n, fmt.Errorf("step %d: %w", seq, err)
		}
		out = b.Step(now, ev, out[:0])
		enc.B = enc.B[:0]
		EncodeActions(&enc, out)
		if recorded := body[len(body)-d.Rest():]; !bytes.Equal(enc.B, recorded) {
			return b, n, fmt.Errorf("%w at step %d (%T at %v)", ErrParity, seq, ev, now)
		}
	}
}

func replayHead(r *journal.Reader) (*Brain, error) {
	t, err := NewTape(r)
	if err != nil {
		return nil, err
	}
	deps, err := Assemble(t.Config)
	if err != nil {
		return nil, fmt.Errorf("head record: %w", err)
	}
	return New(t.Config, deps, t.Seed), nil
}

// Tape reads what a journal holds, without a brain: what was told and what was
// done, whatever a brain of today would do.
type Tape struct {
	Config Config // of the brain, at the beginning
	Seed   uint64

	r *journal.Reader
}

// Step is one step of a brain's life.
type Step struct {
	Seq     uint64
	At      fleet.Time
	Event   Event
	Actions []Action
}

// NewTape reads the head record of a journal.
func NewTape(r *journal.Reader) (*Tape, error) {
	body, err := r.Next()
	if err != nil {
		return nil, fmt.Errorf("journal has no head record: %w", err)
	}
	d := journal.Decoder{B: body}
	t := &Tape{r: r, Seed: d.Fixed()}
	ev, err := DecodeEvent(&d)
	if err != nil {
		return nil, fmt.Errorf("head record: %w", err)
	}
	head, ok := ev.(*Configure)
	if !ok {
		return nil, fmt.Errorf("%w: head record is a %T", journal.ErrDamaged, ev)
	}
	t.Config = head.Config
	return t, nil
}

// Next returns the next step, or io.EOF after the last.
func (t *Tape) Next() (Step, error) {
	body, err := t.r.Next()
	if err != nil {
		return Step{}, err
	}
	d := journal.Decoder{B: body}
	s := Step{Seq: d.Uint(), At: fleet.Time(d.Int())}
	if s.Event, err = DecodeEvent(&d); err == nil {
		s.Actions, err = DecodeActions(&d)
	}
	if err != nil {
		return s, fmt.Errorf("step %d: %w", s.Seq, err)
	}
	return s, nil
}
