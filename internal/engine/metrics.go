package engine

import (
	"bytes"

	"penstock.dev/penstock/internal/fleet"
)

// Reading is what one metrics page said.
type Reading struct {
	fleet.Gauges
	// Adapters are the LoRA adapters at work; zero when the engine tells none.
	Adapters fleet.Adapters
	// Missing are the gauges that the dialect knows of and the page did not have.
	// They are unknown, not zero.
	Missing fleet.Known
}

// Read reads the gauges a dialect knows from a Prometheus text page in one
// pass, without allocating. What the page does not have, or has as NaN, stays
// unknown. It reports false when the page has none of them.
func (d Dialect) Read(text []byte) (Reading, bool) {
	if d.page == nil {
		return Reading{}, false
	}
	r := reader{page: d.page}
	return r.read(text)
}

// read reads a page.
func (r *reader) read(text []byte) (Reading, bool) {
	for len(text) > 0 {
		line := text
		if n := bytes.IndexByte(text, '\n'); n >= 0 {
			line, text = text[:n], text[n+1:]
		} else {
			text = nil
		}
		if len(line) == 0 || line[0] != r.page.prefix[0] {
			continue // comments and other families
		}
		r.line(line)
	}
	return r.finish()
}

// reader gathers the samples of one page.
type reader struct {
	page     *page
	value    [gauges]float64
	rank     [gauges]uint8
	seen     [gauges]bool
	adapters fleet.Adapters
	told     float64 // when the adapters were
	ranked   bool    // only samples of the rank only
	only     []byte
}

// line reads one sample, if it is of a family that the page's table has.
func (r *reader) line(line []byte) {
	prefix := r.page.prefix
	if len(line) <= len(prefix) || string(line[:len(prefix)]) != prefix {
		return
	}
	line = line[len(prefix):]
	for i := range r.page.series {
		s := &r.page.series[i]
		if line[0] != s.name[0] || len(line) <= len(s.name) || string(line[:len(s.name)]) != s.name {
			continue
		}
		rest := line[len(s.name):]
		if rest[0] != '{' && rest[0] != ' ' && rest[0] != '\t' {
			continue // a longer name
		}
		r.sample(s, rest)
		return
	}
}

// sample reads what follows a family's name.
func (r *reader) sample(s *series, rest []byte) {
	var labels []byte
	if rest[0] == '{' {
		end := labelsEnd(rest)
		if end < 0 {
			return
		}
		labels, rest = rest[1:end], rest[end+1:]
	}
	rest = bytes.TrimLeft(rest, " \t")
	if sp := bytes.IndexAny(rest, " \t\r"); sp >= 0 {
		rest = rest[:sp] // a timestamp follows
	}
	v, ok := number(rest)
	if !ok || v < 0 || v >= maxGauge || !r.ofRank(labels) || r.page.skip != nil && r.page.skip(labels) {
		return
	}
	r.take(s, labels, v)
}

// maxGauge is beyond any count or share that makes sense: larger values are
// damage, not load.
const maxGauge = 1e12

// take adds one sample. Counts of several engine processes behind one port add
// up; usage is that of the fullest.
func (r *reader) take(s *series, labels []byte, v float64) {
	switch s.is {
	case cacheConfig:
		b, ok1 := number(label(labels, r.page.blocksLabel))
		size, ok2 := number(label(labels, r.page.blockLabel))
		if ok1 && ok2 && b >= 1 && size >= 1 && b < maxGauge && size < maxGauge {
			r.add(blocks, s.rank, b)
			r.add(blockTokens, s.rank, size)
		}
	case adapters:
		r.lora(labels, v)
	default:
		r.add(s.is, s.rank, v)
	}
}

// add adds v to what is known of g, unless a family of higher rank has spoken.
func (r *reader) add(g gauge, rank uint8, v float64) {
	switch {
	case !r.seen[g] || rank > r.rank[g]:
		r.seen[g], r.rank[g], r.value[g] = true, rank, v
	case rank < r.rank[g]:
	case g == kvUsage || g == blockTokens:
		r.value[g] = max(r.value[g], v)
	default:
		r.value[g] += v
	}
}

// lora takes one sample of vLLM's adapters. Each state the engine was in since
// its start is a series of its own; the value says when, in whole seconds, and
// those of the newest second all count.
func (r *reader) lora(labels []byte, at float64) {
	if at < r.told {
		return
	}
	if at > r.told {
		r.told, r.adapters = at, fleet.Adapters{}
	}
	if n, ok := number(label(labels, "max_lora")); ok && n >= 0 && n < maxGauge {
		r.adapters.Max = int(n)
	}
	addNames(&r.adapters, label(labels, "running_lora_adapters"))
	addNames(&r.adapters, label(labels, "waiting_lora_adapters"))
}

// addNames adds a comma-separated list.
func addNames(a *fleet.Adapters, list []byte) {
	for len(list) > 0 {
		name := list
		if n := bytes.IndexByte(list, ','); n >= 0 {
			name, list = list[:n], list[n+1:]
		} else {
			list = nil
		}
		if name = bytes.TrimSpace(name); len(name) > 0 {
			a.Add(fleet.AdapterOf(name))
		}
	}
}

// finish turns what was gathered into a reading.
func (r *reader) finish() (Reading, bool) {
	out := Reading{Adapters: r.adapters}
	g := &out.Gauges
	if r.seen[running] {
		g.Known |= fleet.KnownRunning
		g.Running = int(r.value[running])
	}
	if r.seen[waiting] {
		g.Known |= fleet.KnownWaiting
		g.Waiting = int(r.value[waiting])
	}
	if r.seen[kvUsage] {
		g.Known |= fleet.KnownKVUsage
		g.KVUsage = r.value[kvUsage]
	}
	switch size := max(r.value[blockTokens], 1); {
	case r.seen[blocks] && r.seen[blockTokens] && r.value[blocks] >= 1:
		g.KVBlocks, g.KVBlock = int(r.value[blocks]), fleet.Tokens(size)
		g.Known |= fleet.KnownKVCapacity
	case r.value[kvTokens] >= size:
		g.KVBlocks, g.KVBlock = int(r.value[kvTokens]/size), fleet.Tokens(size)
		g.Known |= fleet.KnownKVCapacity
	}
	out.Missing = r.page.wants &^ g.Known
	return out, g.Known != 0
}

// labelsEnd returns the index of the brace that closes labels, minding quotes.
func labelsEnd(b []byte) int {
	quoted := false
	for i := 1; i < len(b); i++ {
		switch {
		case quoted && b[i] == '\\':
			i++
		case b[i] == '"':
			quoted = !quoted
		case b[i] == '}' && !quoted:
			return i
		}
	}
	return -1
}
