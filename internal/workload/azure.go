package workload

import (
	"bufio"
	"strconv"
	"strings"
	"time"
)

// azureHeader is the first line of Azure's LLM inference traces.
const azureHeader = "TIMESTAMP,ContextTokens,GeneratedTokens"

// azureTime is their time format; the fraction has up to nine digits, the time
// zone of the later traces is optional.
const azureTime = "2006-01-02 15:04:05"

// readAzure reads Azure's CSV. It records no prefixes, so every prompt is unique.
func readAzure(br *bufio.Reader, t *Trace, p *problems) {
	var zero, last time.Time
	headed := false
	lines(br, p, func(n int, line []byte) bool {
		text := string(line)
		if !headed {
			headed = true
			if strings.ReplaceAll(text, " ", "") != azureHeader {
				p.add(lineNo(n), "want the header %s, got %.80q; is this an Azure trace?", azureHeader, text)
				return false
			}
			return true
		}
		f := strings.Split(text, ",")
		if len(f) != 3 {
			p.add(lineNo(n), "want 3 fields, got %d", len(f))
			return true
		}
		before := len(p.list)
		at, err := time.Parse(azureTime, strings.TrimSuffix(strings.TrimSpace(f[0]), "+00:00"))
		switch {
		case err != nil:
			p.add(lineNo(n)+" TIMESTAMP", "want %q, got %.40q", azureTime+".0000000", f[0])
		case at.Before(last):
			p.add(lineNo(n)+" TIMESTAMP", "%s is before the row above it; sort the trace by time", f[0])
		case !zero.IsZero() && at.Sub(zero) > milliseconds(maxTraceMS):
			p.add(lineNo(n)+" TIMESTAMP", "%s is more than %g ms after the first row", f[0], maxTraceMS)
		}
		row := Row{Parent: NoRequest, Line: n}
		row.Input = p.count(n, "ContextTokens", f[1], 1)
		row.Output = p.count(n, "GeneratedTokens", f[2], 0)
		if zero.IsZero() {
			zero = at
		}
		last = at
		row.At = at.Sub(zero)
		if len(p.list) == before {
			t.Rows = append(t.Rows, row)
		}
		return true
	})
}

// count reads one token count of a CSV field.
func (p *problems) count(line int, field, text string, least int64) int {
	v, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		p.add(lineNo(line)+" "+field, "want a number of tokens, got %.40q", text)
		return 0
	}
	return p.length(line, field, &v, least)
}
