package route

import (
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// prefixAffinity weighs what an endpoint has cached of the prompt against the
// work that stands before it, all in prompt tokens. The score is minus
//
//	backlog + uncached·(1 + displaced·full) + fetch + active/activePerToken + overflow + adapter
//
// fetch is what bringing the cached part to the GPU takes that is at slower tiers.
// backlog is what must be computed before the request and uncached what must be
// computed for it: together its own wait. Where the cache is full, each token
// computed also pushes out one that somebody would have found, who then
// computes it, and delays those behind: full is the share of the cache that
// would be in use, displaced what that costs. active is the context that the
// endpoint's decoding sequences read in every step. overflow is by how much the
// request exceeds the KV cache: that part can only run once others have ended.
// adapter is what loading the request's LoRA adapter takes.
//
// A hot prefix cannot pile up on one endpoint: as soon as the holder's load
// exceeds what its cache saves, another endpoint is cheaper, computes the prefix
// and holds it too; with room in the caches that is soon.
type prefixAffinity struct{}

const (
	// displaced is what one token pushed out of a full cache costs others, in
	// prompt tokens: computing it again, pushing out another in turn, and the wait
	// of whoever comes behind. Lower values move sessions off their caches in
	// bursts; docs/decisions/0003-prefix-affinity.md has the comparison.
	displaced = 3.0

	// activePerToken is how many tokens of context in use weigh as one prompt
	// token. Reading one token's KV in a step takes about 1/900 of the time of
	// computing one (57 ns against 50 µs, measured for Qwen3-32B TP2 on H100), and
	// a request meets a few such steps before its first token and hundreds after.
	activePerToken = 16

	// adapterLoad is what loading an adapter costs, in prompt tokens: some hundred
	// megabytes from the host's memory or disk, 0.1 to 0.5 s, at 50 to 60 µs a
	// token. Where another must go first, that one is loaded again later.
	adapterLoad = 4000

	// assumedKV is the KV cache of an engine that does not tell, in tokens.
	assumedKV = 250_000
)

func (prefixAffinity) Pick(v *View, q *Query, r *stat.Rand, out *Plan) {
	for _, c := range q.Candidates {
		uncached := max(q.Prompt-v.Matched[c], 1)
		capacity := v.KVTokens[c]
		if capacity <= 0 {
			capacity = assumedKV
		}
		full := min(float64(v.Cached[c]+uncached)/float64(capacity), 1)
		overflow := fleet.Tokens(0)
		if v.KVTokens[c] > 0 {
			overflow = max(v.Active[c]+uncached-capacity, 0)
		}
		out.Score[c] = -(float64(v.Backlog[c]+overflow) + float64(uncached)*(1+displaced*full) + float64(v.Active[c])/activePerToken + adapterCost(v.Adapter[c]) + fetchCost(v, c))
	}
	pickBest(q, r, out)
}

// fetchShare is what fetching one token from a slower tier costs, in prompt tokens,
// where the speed of neither is known: 5 us over PCIe against 50 to compute it.
const fetchShare = 0.1

// fetchCost is what it takes to bring to the GPU what is cached elsewhere, in prompt
// tokens.
func fetchCost(v *View, c int) float64 {
	if c >= len(v.Cache) || v.Cache[c].Fetch <= 0 {
		return 0
	}
	if s := &v.Step[c]; s.Known() && s.PerPrompt > 0 {
		return v.Cache[c].Fetch.Seconds() / s.PerPrompt
	}
	k := &v.Cache[c]
	return fetchShare * float64(k.CPU+k.Disk+k.Shared)
}

// adapterCost is what an adapter's fit costs, in prompt tokens.
func adapterCost(f fleet.AdapterFit) float64 {
	switch f {
	case fleet.AdapterRoom:
		return adapterLoad
	case fleet.AdapterFull:
		return 2 * adapterLoad
	}
	return 0
}
