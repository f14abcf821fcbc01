package tokens

import (
	"sync"

	"penstock.dev/penstock/internal/kv"
)

// maker makes keys of tokens.
type maker struct {
	space   kv.KeySpace
	block   int
	form    kv.ExtraForm
	adapter string
	salt    string
}

// newMaker returns what makes keys for q; it keeps nothing of it.
func newMaker(q *Query) maker {
	m := maker{space: q.Space, block: q.Block, form: q.Form, adapter: q.Adapter, salt: text(q.Salt)}
	if m.space.Mode == kv.KeysMapped {
		m.block = m.space.Block
	}
	if m.block <= 0 {
		m.block = kv.DefaultBlock
	}
	return m
}

// make appends the keys of the full blocks of tokens to dst.
func (m *maker) make(dst []kv.Key, tokens []uint32, media []kv.Media) []kv.Key {
	x := kv.Extras{Form: m.form, Adapter: m.adapter, Salt: m.salt, Media: media}
	if m.space.Mode == kv.KeysMapped {
		return kv.ChainTokens(dst, kv.TokenSeed([]byte(m.adapter), []byte(m.salt)), m.block, tokens, &x)
	}
	root := m.space.Root
	if root == (kv.Digest{}) {
		root = kv.VLLMRoot(kv.VLLMUnseeded)
	}
	w := borrow()
	defer w.giveBack()
	w.digests = kv.NewHasher(root, m.block).Chain(w.digests[:0], tokens, &x)
	for i := range w.digests {
		dst = append(dst, w.digests[i].Low())
	}
	return dst
}

// room is memory for one answer or prompt, used again.
type room struct {
	body    []byte
	tokens  []uint32
	digests []kv.Digest
}

// rooms are free. What grew beyond the usual is left to the collector.
var rooms = sync.Pool{New: func() any { return new(room) }}

// maxRoom is the largest room kept, in bytes of an answer.
const maxRoom = 4 << 20

func borrow() *room { return rooms.Get().(*room) }

func (w *room) giveBack() {
	if cap(w.body) <= maxRoom && cap(w.tokens) <= maxRoom/4 {
		rooms.Put(w)
	}
}
