package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/kv"
)

// sharedFile is the file of a block in the shared store. Engines that do not fit
// have folders of their own.
func (p *pd) sharedFile(key uint64) string {
	return filepath.Join(p.options.SharedDir, hashOf(p.facts)[:16], strconv.FormatUint(key, 16))
}

// stamp is what blocks of the shared store are marked with in the place of a
// process.
func (p *pd) stamp() uint64 { return incarnationOf(hashOf(p.facts)) }

// storeLater writes the blocks of a request's prompt to the shared store, if
// there is one, and lets the request end then. It reports whether it does. It
// needs s.mu, and works without.
func (s *Server) storeLater(l *leg) bool {
	p := s.pd
	if p.options.Connector != Shared || p.options.Role == RoleDecode || l.choice.repeat || l.choice.pool {
		return false
	}
	keys := l.choice.keys()[:l.choice.prompt/int(enginesim.BlockTokens)]
	here := p.storedBlocks(keys)
	if here == len(keys) {
		return false
	}
	wait, took := p.reserve((len(keys)-here)*int(enginesim.BlockTokens), 1)
	// Not later, which needs s.mu, too: the engine runs, and waits at its end.
	s.background.Go(func() {
		ctx, end := s.within(context.Background(), 0)
		defer end()
		err := sleep(ctx, wait+took)
		if err == nil {
			err = p.store(keys, here)
		}
		if err != nil {
			err = &apiError{http.StatusInternalServerError, fmt.Sprintf("shared store: %v", err), ""}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, id := range l.call.ids {
			if &l.call.legs[i] == l {
				s.endLater(id, l, err)
			}
		}
	})
	return true
}

// store writes blocks, the first one at index first. A block is there at once or
// not at all.
func (p *pd) store(keys []uint64, first int) error {
	if err := os.MkdirAll(filepath.Dir(p.sharedFile(0)), 0o755); err != nil {
		return err
	}
	for i, key := range keys[first:] {
		f, err := os.CreateTemp(filepath.Dir(p.sharedFile(0)), "new-*")
		if err != nil {
			return err
		}
		_, err = f.Write(appendBlock(nil, key, p.stamp(), first+i))
		if err = errors.Join(err, f.Close()); err == nil {
			err = os.Rename(f.Name(), p.sharedFile(key))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// storedBlocks is how many blocks from the first on are in the shared store.
func (p *pd) storedBlocks(keys []uint64) int {
	for i, key := range keys {
		if _, err := os.Stat(p.sharedFile(key)); err != nil {
			return i
		}
	}
	return len(keys)
}

// fetchShared takes over what the shared store has of a prompt, unless too little
// of it is anywhere for the request to be computed here.
func (s *Server) fetchShared(ctx context.Context, c *choice) error {
	const size = int(enginesim.BlockTokens)
	keys, m, p := c.keys()[:c.prompt/size], c.move, s.pd
	s.mu.Lock()
	here := s.engine.Match(kv.TierGPU, keys)
	s.mu.Unlock()
	have := here
	if p != nil {
		have += p.storedBlocks(keys[here:])
	}
	if m.threshold != nil && float64(have*size) < *m.threshold*float64(c.prompt) {
		m.short = true
		return nil
	}
	if have == here {
		return nil
	}
	s.mu.Lock()
	wait, took := p.reserve((have-here)*size, 1)
	s.mu.Unlock()
	if err := sleep(ctx, wait+took); err != nil {
		return err
	}
	for i, key := range keys[here:have] {
		b, err := os.ReadFile(p.sharedFile(key))
		if err == nil {
			err = readBlocks(bytes.NewReader(b), keys[here+i:here+i+1], p.stamp(), here+i)
		}
		switch load, ok := errors.AsType[*loadError](err); {
		case err == nil:
			m.received = (here + i + 1) * size
			continue
		case errors.Is(err, fs.ErrNotExist): // the store has dropped it meanwhile
			return nil
		case ok && load.wrong:
			s.count(func(n *counts) { n.ChecksFailed++; n.Failed++ })
		}
		return &apiError{http.StatusInternalServerError, fmt.Sprintf("Internal server error: KV load: %v", err), ""}
	}
	bytes := p.bytes * float64((have-here)*size)
	s.count(func(n *counts) { n.Pulled++; n.BytesIn += bytes })
	return nil
}
