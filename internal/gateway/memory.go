package gateway

import (
	"sync"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/kv"
)

// The memory of request bodies is used again: with prompts of hundreds of
// kilobytes, collecting it would cost more than all that is done with them.
// There is one shelf for each power of growth from firstRead on. Larger bodies
// are rare and smaller ones cheap: both are the collector's.
const (
	growth  = 4
	shelves = 5 // up to 4 MiB
)

var bodies [shelves]sync.Pool

// chains is room for the keys of prompts while their requests are brought
// before the pool.
var chains = sync.Pool{New: func() any { return new([]kv.Key) }}

// shelf returns where memory for n bytes lies, and how much there is of it.
func shelf(n int) (i, size int, ok bool) {
	size = firstRead
	for i = 0; i < shelves && size < n; i++ {
		size *= growth
	}
	return i, size, n >= firstRead && i < shelves
}

// lend returns empty memory for at least n bytes.
func lend(n int) []byte {
	i, size, ok := shelf(n)
	if !ok {
		return make([]byte, 0, n)
	}
	if b, ok := bodies[i].Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, size)
}

// giveBack takes memory that nobody reads any more.
func giveBack(b []byte) {
	if i, size, ok := shelf(cap(b)); ok && size == cap(b) {
		bodies[i].Put(&b)
	}
}

// regrow moves b to memory for at least n bytes.
func regrow(b []byte, n int) []byte {
	bigger := append(lend(n), b...)
	giveBack(b)
	return bigger
}

// bodyPayload is what is sent to engines: it, or what x.req says of it, may lie
// in the memory that was lent.
func (x *exchange) bodyPayload() *engine.Payload {
	lent := x.body
	if cap(lent) < firstRead {
		return engine.NewPayload(x.toward.body, nil)
	}
	return engine.NewPayload(x.toward.body, func() { giveBack(lent) })
}

// letGo gives the body's memory back, at once or when the last attempt that
// sends it has ended.
func (x *exchange) letGo() {
	if x.payload != nil {
		x.payload.Release()
	} else if x.body != nil {
		giveBack(x.body)
	}
	x.body, x.payload = nil, nil
}
