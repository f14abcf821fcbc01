package engine

import (
	"bytes"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// Payload is a request's body in memory that is used again. Whoever made it
// holds it, and so does every attempt to send it until the transport has closed
// its reader, which may be after Post has returned; when the last of them lets
// go the memory is given back.
type Payload struct {
	bytes   []byte
	holders atomic.Int32
	free    func()
}

// NewPayload returns a payload that its maker holds. Free is called once, from
// any goroutine, when nobody reads b any more; nil for memory that is not used
// again.
func NewPayload(b []byte, free func()) *Payload {
	p := &Payload{bytes: b, free: free}
	p.holders.Store(1)
	return p
}

// Release lets go of the payload. Its maker calls it once.
func (p *Payload) Release() {
	if p.holders.Add(-1) == 0 && p.free != nil {
		p.free()
	}
}

// putInto makes p the body of req.
func (p *Payload) putInto(req *http.Request) {
	if len(p.bytes) == 0 {
		req.Body = http.NoBody
		return
	}
	req.ContentLength = int64(len(p.bytes))
	if p.free == nil {
		// A reader that the transport knows goes out in one write with the header.
		req.Body = io.NopCloser(bytes.NewReader(p.bytes))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(p.bytes)), nil }
		return
	}
	open := func() io.ReadCloser {
		p.holders.Add(1)
		return &outgoing{payload: p, rest: p.bytes}
	}
	req.Body = open()
	// For an attempt on a connection that the engine was just closing; called
	// within RoundTrip, while the maker holds on.
	req.GetBody = func() (io.ReadCloser, error) { return open(), nil }
}

// outgoing reads a payload once. The lock makes Close wait for a Read that is
// under way: afterwards nobody looks at the memory.
type outgoing struct {
	mu      sync.Mutex
	payload *Payload // nil once closed
	rest    []byte
}

// Read implements io.Reader.
func (o *outgoing) Read(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.payload == nil:
		return 0, http.ErrBodyReadAfterClose
	case len(o.rest) == 0:
		return 0, io.EOF
	}
	n := copy(p, o.rest)
	o.rest = o.rest[n:]
	return n, nil
}

// Close implements io.Closer.
func (o *outgoing) Close() error {
	o.mu.Lock()
	p := o.payload
	o.payload, o.rest = nil, nil
	o.mu.Unlock()
	if p != nil {
		p.Release()
	}
	return nil
}
