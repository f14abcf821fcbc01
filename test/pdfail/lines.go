package main

import (
	"bufio"
	"io"
	"strings"
)

// lines reads a stream line by line, whatever the length of one.
type lines struct{ r *bufio.Reader }

func newLines(r io.Reader) lines { return lines{bufio.NewReader(r)} }

// next returns a line without its end. A last one without is no line: what sent it
// has broken off.
func (l lines) next() (string, error) {
	s, err := l.r.ReadString('\n')
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return "", err
	}
	return strings.TrimRight(s, "\r\n"), nil
}
