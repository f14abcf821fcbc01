package lab

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"penstock.dev/penstock/internal/sim"
)

// Cache keeps results of cells in a directory, by the content of all they follow
// from: the binary, the scene, the load and the cell. Whatever cannot be read is
// as good as not there, and whatever cannot be written is not kept. A nil Cache
// keeps nothing.
type Cache struct {
	dir   string
	build string
	hits  atomic.Int64
}

// The bounds of a cache: the entries used last stay.
const (
	maxEntries    = 10_000
	maxEntryBytes = 256 << 20 // of all together
)

// OpenCache returns the cache in a directory, which is made with the first entry.
// Results of other binaries than the running one are not found in it.
func OpenCache(dir string) (*Cache, error) {
	build, err := buildID()
	if err != nil {
		return nil, fmt.Errorf("identify the running binary: %w", err)
	}
	return &Cache{dir: dir, build: build}, nil
}

// DefaultCacheDir returns the directory for results of the present user.
func DefaultCacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "penstock", "cells"), nil
}

// Hits returns how many cells have been found.
func (c *Cache) Hits() int {
	if c == nil {
		return 0
	}
	return int(c.hits.Load())
}

// buildID is the content of the running binary: any change of the code changes
// it, committed or not.
func buildID() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// shelf is the part of a cache that belongs to one scene; nil keeps nothing.
type shelf struct {
	cache *Cache
	scene []byte
	prune sync.Once
}

// of returns the shelf of a scene, nil when nothing can be kept of it.
func (c *Cache) of(s *Scene) *shelf {
	if c == nil || s.LoadID == "" || s.Ended != nil {
		return nil
	}
	scene, err := json.Marshal(s)
	if err != nil {
		return nil // it holds what has no content: a function, a channel
	}
	return &shelf{cache: c, scene: scene}
}

// path returns the file of a cell.
func (s *shelf) path(c Cell) string {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(s.cache.build), s.scene, fmt.Appendf(nil, "%q %v %d", c.Policy, c.Load, c.Seed)} {
		fmt.Fprintf(h, "%d:", len(part))
		h.Write(part)
	}
	return filepath.Join(s.cache.dir, hex.EncodeToString(h.Sum(nil)))
}

// load returns a cell's result, nil when there is none.
func (s *shelf) load(c Cell) *sim.Result {
	if s == nil {
		return nil
	}
	path := s.path(c)
	raw, err := os.ReadFile(path)
	if err != nil || len(raw) < sha256.Size {
		return nil
	}
	body := raw[sha256.Size:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], raw[:sha256.Size]) {
		return nil
	}
	r := &sim.Result{}
	if err := gob.NewDecoder(bytes.NewReader(body)).Decode(r); err != nil {
		return nil
	}
	now := time.Now()
	_ = os.Chtimes(path, now, now) // it only makes the entry stay longer
	s.cache.hits.Add(1)
	return r
}

// save keeps a cell's result. A result that cannot be kept is no failure: it will
// be simulated again.
func (s *shelf) save(c Cell, r *sim.Result) {
	if s == nil {
		return
	}
	var body bytes.Buffer
	if err := gob.NewEncoder(&body).Encode(r); err != nil {
		return
	}
	s.prune.Do(func() { prune(s.cache.dir, maxEntries, maxEntryBytes) })
	sum := sha256.Sum256(body.Bytes())
	_ = writeFile(s.path(c), append(sum[:], body.Bytes()...))
}

// writeFile puts a file in its place whole or not at all.
func writeFile(path string, content []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, temporary+"*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// temporary begins the names of files that are being written.
const temporary = "tmp-"

// prune removes the entries used longest ago until so many of so many bytes in
// all are left. It touches nothing in the directory but entries.
func prune(dir string, entries int, size int64) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	var files []fs.FileInfo
	for _, e := range list {
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() && isEntry(e.Name()) {
			files = append(files, info)
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return cmp.Compare(b.ModTime().UnixNano(), a.ModTime().UnixNano()) })
	for i, f := range files {
		size -= f.Size()
		if i >= entries || size < 0 {
			_ = os.Remove(filepath.Join(dir, f.Name()))
		}
	}
}

// isEntry reports whether a file of this name is one of the cache's own.
func isEntry(name string) bool {
	if len(name) > len(temporary) && name[:len(temporary)] == temporary {
		return true // left by a process that died; a live one finds it gone and keeps nothing
	}
	raw, err := hex.DecodeString(name)
	return err == nil && len(raw) == sha256.Size
}
