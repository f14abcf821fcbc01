package server

import (
	"net/http"
	"slices"
	"strconv"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/kv"
)

// tierNames are how /sim/kv names the tiers.
var tierNames = [...]string{kv.TierGPU: "gpu", kv.TierCPU: "cpu", kv.TierDisk: "disk"}

// showKV says which full blocks are where in truth, once the messages before
// "next_seq" have been told: how many per tier, and all keys with ?keys=true.
func (s *Server) showKV(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	truth := map[string][]uint64{}
	for t, name := range tierNames {
		truth[name] = slices.Sorted(s.engine.Truth(kv.Tier(t)))
	}
	stats := s.engine.Stats()
	s.collect()
	reply := map[string]any{"block_tokens": enginesim.BlockTokens}
	if s.kv != nil {
		s.kv.mu.Lock()
		reply["next_seq"] = s.kv.seq
		s.kv.mu.Unlock()
		truth = s.kv.named(truth)
	}
	s.mu.Unlock()
	s.tell()
	blocks, keys := map[string]int{}, map[string][]string{}
	for name, list := range truth {
		blocks[name] = len(list)
		keys[name] = make([]string, len(list))
		for i, k := range list {
			keys[name][i] = strconv.FormatUint(k, 16) // as text: numbers in JSON lose their last digits
		}
	}
	reply["blocks"] = blocks
	reply["capacity"] = map[string]int{"gpu": stats.TotalBlocks, "cpu": stats.CPU.TotalBlocks, "disk": stats.Disk.TotalBlocks}
	reply["loads"] = map[string]uint64{"cpu": stats.CPU.Loads, "disk": stats.Disk.Loads}
	reply["hit_tokens"] = map[string]uint64{
		"gpu": stats.PrefixHits - stats.CPU.Hits - stats.Disk.Hits, "cpu": stats.CPU.Hits, "disk": stats.Disk.Hits,
	}
	if r.URL.Query().Get("keys") == "true" {
		reply["keys"] = keys
	}
	writeJSON(w, http.StatusOK, reply)
}

// named returns the keys of tiers as events name them. It needs Server.mu.
func (f *feed) named(truth map[string][]uint64) map[string][]uint64 {
	if f.names == nil {
		return truth
	}
	for _, keys := range truth {
		for i, k := range keys {
			keys[i] = f.names.low(k)
		}
		slices.Sort(keys)
	}
	f.names.tidy()
	return truth
}

// matchKV says how many tokens of a prompt each tier has: {"prompt": text or
// token ids, "lora": "", "cache_salt": ""}.
func (s *Server) matchKV(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Prompt prompts `json:"prompt"`
		LoRA   string  `json:"lora"`
		Salt   string  `json:"cache_salt"`
	}
	err := readJSON(r, &q)
	if err == nil && len(q.Prompt) != 1 {
		err = badRequest("prompt", "prompt: must be one prompt, as text or as token ids")
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	chain, _ := enginesim.Chain(nil, startOf(q.LoRA, q.Salt), q.Prompt[0])
	reply := map[string]int{"prompt": len(q.Prompt[0])}
	s.mu.Lock()
	for t, name := range tierNames {
		reply[name] = s.engine.Match(kv.Tier(t), chain) * int(enginesim.BlockTokens)
	}
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, reply)
}
