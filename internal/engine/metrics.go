package engine

import (
	"bytes"
	"math"

	"penstock.dev/penstock/internal/fleet"
)

// gauge is something a dialect's metrics tell.
type gauge uint8

const (
	running gauge = iota
	waiting
	kvUsage
	cacheConfig
)

// vllmSeries are the names of vLLM's gauges, older ones that were replaced
// included.
var vllmSeries = []struct {
	name string
	is   gauge
}{
	{"vllm:num_requests_running", running},
	{"vllm:num_requests_waiting", waiting},
	{"vllm:kv_cache_usage_perc", kvUsage},
	{"vllm:gpu_cache_usage_perc", kvUsage},
	{"vllm:cache_config_info", cacheConfig},
}

// take adds one sample. Counts of several engine processes behind one port add
// up; usage is that of the fullest.
func take(g *fleet.Gauges, is gauge, labels []byte, v float64) {
	switch is {
	case running:
		g.Running += int(v)
		g.Known |= fleet.KnownRunning
	case waiting:
		g.Waiting += int(v)
		g.Known |= fleet.KnownWaiting
	case kvUsage:
		g.KVUsage = max(g.KVUsage, v)
		g.Known |= fleet.KnownKVUsage
	case cacheConfig:
		blocks, ok1 := number(label(labels, "num_gpu_blocks"))
		block, ok2 := number(label(labels, "block_size"))
		if ok1 && ok2 && blocks >= 1 && block >= 1 && blocks < maxGauge && block < maxGauge {
			g.KVBlocks += int(blocks)
			g.KVBlock = fleet.Tokens(block)
			g.Known |= fleet.KnownKVCapacity
		}
	}
}

// ReadMetrics reads the gauges it knows from a Prometheus text page in one
// pass, without allocating. What the page does not have, or has as NaN, stays
// unknown. It reports false when the page has none of them.
func ReadMetrics(page []byte) (fleet.Gauges, bool) {
	var g fleet.Gauges
	for len(page) > 0 {
		line := page
		if n := bytes.IndexByte(page, '\n'); n >= 0 {
			line, page = page[:n], page[n+1:]
		} else {
			page = nil
		}
		if len(line) == 0 || line[0] != 'v' {
			continue // comments and other families
		}
		readLine(&g, line)
	}
	return g, g.Known != 0
}

func readLine(g *fleet.Gauges, line []byte) {
	for i := range vllmSeries {
		s := &vllmSeries[i]
		if len(line) <= len(s.name) || string(line[:len(s.name)]) != s.name {
			continue
		}
		rest := line[len(s.name):]
		var labels []byte
		if rest[0] == '{' {
			end := labelsEnd(rest)
			if end < 0 {
				return
			}
			labels, rest = rest[1:end], rest[end+1:]
		} else if rest[0] != ' ' && rest[0] != '\t' {
			continue // a longer name
		}
		rest = bytes.TrimLeft(rest, " \t")
		if sp := bytes.IndexAny(rest, " \t\r"); sp >= 0 {
			rest = rest[:sp] // a timestamp follows
		}
		if v, ok := number(rest); ok && v >= 0 && v < maxGauge {
			take(g, s.is, labels, v)
		}
		return
	}
}

// maxGauge is beyond any count or share that makes sense: larger values are
// damage, not load.
const maxGauge = 1e12

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

// label returns the value of a label that holds no escapes.
func label(labels []byte, name string) []byte {
	for at := 0; ; {
		n := bytes.Index(labels[at:], []byte(name))
		if n < 0 {
			return nil
		}
		at += n
		rest := labels[at+len(name):]
		if (at == 0 || labels[at-1] == ',' || labels[at-1] == ' ') && len(rest) > 2 && rest[0] == '=' && rest[1] == '"' {
			if end := bytes.IndexByte(rest[2:], '"'); end >= 0 {
				return rest[2 : 2+end]
			}
			return nil
		}
		at += len(name)
	}
}

// number reads a decimal without allocating. Gauges need no more than the 15
// digits it is exact to.
func number(b []byte) (float64, bool) {
	neg := false
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		neg = b[0] == '-'
		b = b[1:]
	}
	mantissa, exp, digits, i := 0.0, 0, 0, 0
	point := false
	for ; i < len(b); i++ {
		switch c := b[i]; {
		case c >= '0' && c <= '9':
			digits++
			mantissa = mantissa*10 + float64(c-'0')
			if point {
				exp--
			}
			continue
		case c == '.' && !point:
			point = true
			continue
		}
		break
	}
	if digits == 0 {
		return 0, false // NaN and Inf are not readings
	}
	if i < len(b) {
		e, ok := exponent(b[i:])
		if !ok {
			return 0, false
		}
		exp += e
	}
	v := mantissa * math.Pow10(exp)
	if neg {
		v = -v
	}
	return v, !math.IsInf(v, 0) && !math.IsNaN(v)
}

func exponent(b []byte) (int, bool) {
	if b[0]|0x20 != 'e' || len(b) < 2 {
		return 0, false
	}
	b = b[1:]
	sign := 1
	if b[0] == '-' || b[0] == '+' {
		if b[0] == '-' {
			sign = -1
		}
		b = b[1:]
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' || n > 999 {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return sign * n, len(b) > 0
}
