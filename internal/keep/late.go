package keep

import (
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/kv"
)

// The bounds of what is known of late requests: 2 MiB of keys, and their names.
const (
	maxLate     = 4096
	maxLateKeys = 1 << 18
)

// late knows the keys of late requests, by their ids and the sessions they named.
// It is a ring of requests beside a ring of keys, so that noting one allocates
// nothing.
type late struct {
	list []lateRequest
	next int
	keys []kv.Key
	at   uint64 // keys ever written
}

// lateRequest is what is known of one.
type lateRequest struct {
	id, tenant, session string
	from                uint64 // its first key
	chain, blocks       int
	tokens              fleet.Tokens
	keyTokens           float64
}

// add notes a request. One whose keys would crowd out all others is left out.
func (l *late) add(s *gateway.Seen) {
	p := &s.Prompt
	if len(p.Chain)+len(p.Blocks) > maxLateKeys/4 {
		return
	}
	if l.keys == nil {
		l.keys, l.list = make([]kv.Key, maxLateKeys), make([]lateRequest, maxLate)
	}
	l.list[l.next] = lateRequest{
		id: s.ID, tenant: s.Tenant, session: s.Declared.Session, from: l.at, chain: len(p.Chain), blocks: len(p.Blocks), tokens: p.Tokens, keyTokens: p.KeyTokens,
	}
	l.next = (l.next + 1) % maxLate
	l.write(p.Chain)
	l.write(p.Blocks)
}

func (l *late) write(keys []kv.Key) {
	for len(keys) > 0 {
		n := copy(l.keys[l.at%maxLateKeys:], keys)
		keys, l.at = keys[n:], l.at+uint64(n)
	}
}

// find returns the prompt of the latest request that is wanted, and false when
// none is known, or its keys no longer are.
func (l *late) find(wanted func(*lateRequest) bool) (kv.Prompt, bool) {
	for i := range l.list {
		r := &l.list[(l.next-1-i+2*maxLate)%maxLate]
		if r.tokens == 0 || !wanted(r) {
			continue
		}
		if l.at-r.from > maxLateKeys {
			return kv.Prompt{}, false
		}
		return kv.Prompt{
			Tokens: r.tokens, KeyTokens: r.keyTokens, Chain: l.read(r.from, r.chain), Blocks: l.read(r.from+uint64(r.chain), r.blocks),
		}, true
	}
	return kv.Prompt{}, false
}

func (l *late) read(from uint64, n int) []kv.Key {
	out := make([]kv.Key, n)
	for i := range out {
		out[i] = l.keys[(from+uint64(i))%maxLateKeys]
	}
	return out
}
