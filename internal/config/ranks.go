package config

import (
	"fmt"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/engine/kvfeed"
)

// validateRanks checks what is said of an endpoint's ranks, and reports whether
// there are any that can be.
func (e *Endpoint) validateRanks(path string, k *KV, errs *problems) bool {
	if err := engine.CheckRanks(e.URL, e.Ranks, e.RankMode); err != nil {
		errs.add(path+".ranks", "%w", err)
		return false
	}
	if e.Ranks == 0 {
		return false
	}
	events, replay := e.Events, e.Replay
	if events == "" {
		events, replay = k.FeedAt(e.URL)
	}
	for _, at := range [...]string{events, replay} {
		if _, _, err := kvfeed.Address(at, 0); err != nil {
			continue // there is none, or that has been told
		}
		if _, _, err := kvfeed.Address(at, e.Ranks-1); err != nil {
			errs.add(path+".ranks", "KV events of the last: %w", err)
		}
	}
	return true
}

// uniqueRanks checks that names and URLs of ranks are nobody else's. As long as it
// is not said how ranks are told apart, the next ports may be theirs.
func (e *Endpoint) uniqueRanks(path string, i int, urls, names map[string]int, errs *problems) {
	for rank := range e.Ranks {
		if !unique(errs, path+".ranks", fmt.Sprintf("%s/%d", e.Name, rank), i, names, "endpoints[%d]") {
			return
		}
		if rank == 0 || e.RankMode == engine.RanksByHeader {
			continue
		}
		at, err := engine.RankURL(e.URL, rank)
		if err != nil || !unique(errs, path+".ranks", at, i, urls, "endpoints[%d]") {
			return
		}
	}
}
