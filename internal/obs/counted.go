package obs

import "github.com/prometheus/client_golang/prometheus"

// Counted is what is counted of one pool beside its brain, by shells that are not
// known here. The inner keys are closed sets, all of them there from the start, so
// that a first count is seen as a rise.
type Counted struct {
	Batches map[string]map[string]uint64 // of KV events, by endpoint and what became of them
	Dropped map[string]map[string]uint64 // events and blocks, by endpoint and why they were left out
	Found   map[string]uint64            // prompts by how their tokens were found out
	Missing map[string]uint64            // prompts whose tokens are not all known, by why
}

var (
	descBatches = prometheus.NewDesc("penstock_kv_feed_batches_total", "Batches of KV events by what became of them, and what befell the feed: gaps, replays, lost histories, restarts, disconnects.", []string{"pool", "endpoint", "what"}, nil)
	descDropped = prometheus.NewDesc("penstock_kv_feed_dropped_total", "KV events and blocks that are not in the index, by why (misfit: the engine does not hash as direct keys need).", []string{"pool", "endpoint", "reason"}, nil)
	descFound   = prometheus.NewDesc("penstock_tokens_found_total", "Prompts by how their tokens were found out: given, cache, local, engine, prefix (of the beginning only), none.", []string{"pool", "how"}, nil)
	descMissing = prometheus.NewDesc("penstock_tokens_missing_total", "Prompts whose tokens are not all known, by why.", []string{"pool", "reason"}, nil)
)

// collect tells what is counted of one pool.
func (c *Counted) collect(count func(*prometheus.Desc, uint64, ...string), pool string) {
	for desc, by := range map[*prometheus.Desc]map[string]map[string]uint64{descBatches: c.Batches, descDropped: c.Dropped} {
		for endpoint, counts := range by {
			for what, n := range counts {
				count(desc, n, pool, endpoint, what)
			}
		}
	}
	for desc, counts := range map[*prometheus.Desc]map[string]uint64{descFound: c.Found, descMissing: c.Missing} {
		for what, n := range counts {
			count(desc, n, pool, what)
		}
	}
}
