//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/stat"
)

// workload is chains of blocks, what endpoints store of them, and what is asked.
type workload struct {
	endpoints int
	chains    []chain
	stores    []piece // in order
	queries   []query
}

// chain is the keys of a prompt's blocks. The first keys, as many as shared,
// are those of another chain, its base.
type chain struct {
	keys         []kv.Key
	base, shared int
}

// piece is keys from:to of a chain at an endpoint.
type piece struct{ endpoint, chain, from, to int32 }

// query asks for the first n keys of a chain.
type query struct{ chain, n int32 }

const (
	storeBlocks   = 16  // of one event
	systemBlocks  = 128 // of a system prompt
	systems       = 200
	streams       = 256 // prompts that engines work on at the same time
	goalEndpoints = 64
)

// lengths are those of queries.
var lengths = [...]int{64, 512, 3750}

// generate makes a workload of about so many distinct blocks. Half of the
// chains begin with one of 200 system prompts, which every endpoint comes to
// have; of the chains 70 % are on one endpoint, 20 % on two and 10 % on four, the
// later ones having a part. Stores come from many prompts in turn, as they would
// from many engines, so that a chain's blocks do not lie together.
func generate(blocks, endpoints int, seed uint64) *workload {
	r := stat.NewRand(seed, "benchkv")
	w := &workload{endpoints: endpoints}
	for range systems {
		w.chains = append(w.chains, chain{keys: freshKeys(r, nil, systemBlocks), base: -1})
	}
	var todo []piece
	for n := systems * systemBlocks; n < blocks; {
		c := chain{base: -1}
		if r.IntN(2) == 0 {
			c.base, c.shared = r.IntN(systems), systemBlocks
			c.keys = append(c.keys, w.chains[c.base].keys...)
		}
		own := drawLength(r)
		c.keys = freshKeys(r, c.keys, own)
		n += own
		id := len(w.chains)
		w.chains = append(w.chains, c)
		for i := range drawCopies(r) {
			to := len(c.keys)
			if i > 0 {
				to = 1 + r.IntN(to)
			}
			todo = append(todo, piece{int32(r.IntN(endpoints)), int32(id), 0, int32(to)})
		}
	}
	w.interleave(r, todo)
	w.ask(r)
	return w
}

// drawLength draws the blocks of a prompt: mostly hundreds, some thousands.
func drawLength(r *stat.Rand) int {
	switch p := r.Float64(); {
	case p < 0.70:
		return 100 + r.IntN(400)
	case p < 0.95:
		return 512 + r.IntN(700)
	}
	return 3750 + r.IntN(400)
}

func drawCopies(r *stat.Rand) int {
	switch p := r.Float64(); {
	case p < 0.7:
		return 1
	case p < 0.9:
		return 2
	}
	return 4
}

func freshKeys(r *stat.Rand, keys []kv.Key, n int) []kv.Key {
	out := make([]kv.Key, len(keys), len(keys)+n)
	copy(out, keys)
	for range n {
		out = append(out, kv.Key(r.Uint64()|1))
	}
	return out
}

// interleave makes stores of todo, some of which are always under way together.
func (w *workload) interleave(r *stat.Rand, todo []piece) {
	var active []piece
	for len(todo) > 0 || len(active) > 0 {
		if len(active) < streams && len(todo) > 0 {
			active, todo = append(active, todo[0]), todo[1:]
			continue
		}
		i := r.IntN(len(active))
		p := &active[i]
		next := *p
		next.to = min(p.from+storeBlocks, p.to)
		w.stores = append(w.stores, next)
		if p.from = next.to; p.from == p.to {
			active[i] = active[len(active)-1]
			active = active[:len(active)-1]
		}
	}
}

// ask makes queries of each length, each about another chain as far as there
// are any.
func (w *workload) ask(r *stat.Rand) {
	for _, n := range lengths {
		var long []int32
		for id := range w.chains {
			if len(w.chains[id].keys) >= n {
				long = append(long, int32(id))
			}
		}
		perm := r.Perm(len(long))
		for _, i := range perm[:min(len(perm), 2000)] {
			w.queries = append(w.queries, query{long[i], int32(n)})
		}
	}
}

// keys returns what p is about, and the key before it.
func (w *workload) keys(p piece) (parent kv.Key, keys []kv.Key) {
	all := w.chains[p.chain].keys
	if p.from > 0 {
		parent = all[p.from-1]
	}
	return parent, all[p.from:p.to]
}

// fill makes all stores.
func (w *workload) fill(x *kv.Blocks) {
	for _, p := range w.stores {
		parent, keys := w.keys(p)
		x.Store(int(p.endpoint), kv.TierGPU, parent, keys)
	}
}

const workloadHead = "penstock kv workload 1"

func (w *workload) writeFile(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(w.write(f), f.Close())
}

func (w *workload) write(out io.Writer) error {
	b := bufio.NewWriterSize(out, 1<<20)
	fmt.Fprintf(b, "%s\nendpoints %d\n", workloadHead, w.endpoints)
	var line []byte
	for _, c := range w.chains {
		line = append(line[:0], "chain "...)
		line = strconv.AppendInt(line, int64(c.base), 10)
		line = strconv.AppendInt(append(line, ' '), int64(c.shared), 10)
		for _, k := range c.keys[c.shared:] {
			line = strconv.AppendUint(append(line, ' '), uint64(k), 16)
		}
		fmt.Fprintf(b, "%s\n", line)
	}
	for _, p := range w.stores {
		fmt.Fprintf(b, "store %d %d %d %d\n", p.endpoint, p.chain, p.from, p.to)
	}
	for _, q := range w.queries {
		fmt.Fprintf(b, "query %d %d\n", q.chain, q.n)
	}
	return b.Flush()
}

func readFile(name string) (*workload, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w := &workload{}
	s := bufio.NewScanner(f)
	s.Buffer(nil, 64<<20)
	for n := 1; s.Scan(); n++ {
		if n == 1 {
			if s.Text() != workloadHead {
				return nil, fmt.Errorf("%s does not begin with %q", name, workloadHead)
			}
			continue
		}
		if err := w.line(s.Text()); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
	}
	return w, s.Err()
}

// line reads one line of a file.
func (w *workload) line(text string) error {
	what, rest, _ := strings.Cut(text, " ")
	if what == "chain" {
		return w.readChain(rest)
	}
	var n [4]int32
	fields := strings.Fields(rest)
	if len(fields) > len(n) {
		return fmt.Errorf("%d numbers after %s", len(fields), what)
	}
	for i, f := range fields {
		v, err := strconv.ParseInt(f, 10, 32)
		if err != nil {
			return err
		}
		n[i] = int32(v)
	}
	switch {
	case what == "endpoints" && len(fields) == 1:
		w.endpoints = int(n[0])
	case what == "store" && len(fields) == 4:
		if !w.has(n[1], n[3]) || n[2] < 0 || n[2] >= n[3] || n[0] < 0 || int(n[0]) >= w.endpoints {
			return errors.New("a store of what there is not")
		}
		w.stores = append(w.stores, piece{n[0], n[1], n[2], n[3]})
	case what == "query" && len(fields) == 2:
		if !w.has(n[0], n[1]) {
			return errors.New("a query for what there is not")
		}
		w.queries = append(w.queries, query{n[0], n[1]})
	default:
		return fmt.Errorf("cannot read %q with %d numbers", what, len(fields))
	}
	return nil
}

// has reports whether there is a chain of at least n keys.
func (w *workload) has(chain, n int32) bool {
	return chain >= 0 && int(chain) < len(w.chains) && n >= 0 && int(n) <= len(w.chains[chain].keys)
}

func (w *workload) readChain(rest string) error {
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return errors.New("a chain without base and shared")
	}
	base, err := strconv.Atoi(fields[0])
	if err != nil {
		return err
	}
	shared, err := strconv.Atoi(fields[1])
	if err != nil {
		return err
	}
	c := chain{base: base, shared: shared}
	if shared > 0 {
		if !w.has(int32(base), int32(shared)) {
			return errors.New("a chain on a base that there is not")
		}
		c.keys = append(c.keys, w.chains[base].keys[:shared]...)
	}
	for _, f := range fields[2:] {
		k, err := strconv.ParseUint(f, 16, 64)
		if err != nil {
			return err
		}
		c.keys = append(c.keys, kv.Key(k))
	}
	w.chains = append(w.chains, c)
	return nil
}
