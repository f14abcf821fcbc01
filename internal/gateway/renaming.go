package gateway

import (
	"errors"
	"io"

	"penstock.dev/penstock/internal/api"
)

// renamer reads an event stream with the model's name changed in it.
type renamer struct {
	io.Closer
	from     io.Reader
	old, new string
	split    api.Splitter
	ready    []byte
	err      error
}

func renaming(body io.ReadCloser, from, to string) io.ReadCloser {
	return &renamer{Closer: body, from: body, old: from, new: to}
}

// Read implements io.Reader.
func (r *renamer) Read(p []byte) (int, error) {
	for len(r.ready) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		n, err := r.from.Read(r.split.Space())
		if tooLong := r.split.Filled(n); tooLong != nil {
			err = tooLong
		}
		r.ready = r.ready[:0]
		if whole := r.split.Whole(); whole != nil {
			api.Events(whole, func(ev []byte) { r.ready = api.RenameEvent(r.ready, ev, r.old, r.new) })
		}
		if errors.Is(err, io.EOF) {
			r.ready = append(r.ready, r.split.Rest()...)
		}
		r.err = err
	}
	n := copy(p, r.ready)
	r.ready = r.ready[n:]
	return n, nil
}
