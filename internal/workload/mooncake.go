package workload

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"time"
)

// mooncakeRow is one line of a Mooncake trace. Pointers tell absent from zero.
// session_id, delay and tenant are optional extensions other tools write too;
// each row describes its whole prompt, whichever turn it is.
type mooncakeRow struct {
	Timestamp    *float64 `json:"timestamp"` // ms
	InputLength  *int64   `json:"input_length"`
	OutputLength *int64   `json:"output_length"`
	HashIDs      []int64  `json:"hash_ids"`
	SessionID    string   `json:"session_id"`
	Delay        *float64 `json:"delay"` // ms after the session's previous answer
	Tenant       string   `json:"tenant"`
}

func readMooncake(br *bufio.Reader, t *Trace, p *problems) {
	last := -1.0
	sessionAt := map[string]time.Duration{} // arrival of each session's latest row
	lines(br, p, func(n int, line []byte) bool {
		var m mooncakeRow
		dec := json.NewDecoder(bytes.NewReader(line))
		if err := dec.Decode(&m); err != nil {
			p.add(lineNo(n), "%s", explainJSON(err))
			return true
		}
		if dec.More() {
			p.add(lineNo(n), "more than one JSON value on the line")
			return true
		}
		before := len(p.list)
		row := Row{Session: m.SessionID, Tenant: m.Tenant, Parent: NoRequest, Line: n}
		row.Input = p.length(n, "input_length", m.InputLength, 1)
		row.Output = p.length(n, "output_length", m.OutputLength, 0)
		prev, follows := sessionAt[m.SessionID]
		follows = follows && m.SessionID != ""
		switch {
		case m.Timestamp != nil:
			if *m.Timestamp < 0 || *m.Timestamp > maxTraceMS {
				p.add(lineNo(n)+" timestamp", "want 0..%g ms, got %g", maxTraceMS, *m.Timestamp)
			} else if *m.Timestamp < last {
				p.add(lineNo(n)+" timestamp", "%g is before the row above it (%g); sort the trace by timestamp", *m.Timestamp, last)
			}
			last = max(last, *m.Timestamp)
			row.At = milliseconds(*m.Timestamp)
		case follows && m.Delay != nil:
			row.At = prev // as early as its session allows: the delay does the timing
		default:
			p.add(lineNo(n)+" timestamp", "missing; only a later row of a session_id with a delay may go without")
		}
		if m.Delay != nil {
			if *m.Delay < 0 || *m.Delay > maxTraceMS {
				p.add(lineNo(n)+" delay", "want 0..%g ms, got %g", maxTraceMS, *m.Delay)
			}
			row.Delay = milliseconds(*m.Delay)
		}
		row.Hashes = p.hashes(n, &m, row.Input)
		if len(p.list) == before {
			if m.SessionID != "" {
				sessionAt[m.SessionID] = row.At
			}
			t.Rows = append(t.Rows, row)
		}
		return true
	})
}

// length checks one token count.
func (p *problems) length(line int, field string, v *int64, least int64) int {
	switch {
	case v == nil:
		p.add(lineNo(line)+" "+field, "missing")
	case *v < least || *v > maxTokens:
		p.add(lineNo(line)+" "+field, "want %d..%d tokens, got %d", least, maxTokens, *v)
	default:
		return int(*v)
	}
	return 0
}

// hashes checks that there is one id per block, or none at all.
func (p *problems) hashes(line int, m *mooncakeRow, input int) []uint64 {
	if m.HashIDs == nil || input == 0 {
		return nil
	}
	if want := (input + BlockTokens - 1) / BlockTokens; len(m.HashIDs) != want {
		p.add(lineNo(line)+" hash_ids", "want %d ids for %d tokens in blocks of %d, got %d", want, input, BlockTokens, len(m.HashIDs))
		return nil
	}
	out := make([]uint64, len(m.HashIDs))
	for i, h := range m.HashIDs {
		out[i] = uint64(h)
	}
	return out
}

func milliseconds(ms float64) time.Duration {
	return time.Duration(min(max(ms, 0), maxTraceMS) * float64(time.Millisecond))
}

// explainJSON names the field of a type error; other errors speak for themselves.
func explainJSON(err error) string {
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return te.Field + ": want " + te.Type.String() + ", got " + te.Value
	}
	return "not a JSON object: " + err.Error()
}
