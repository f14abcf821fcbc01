// Package enginesim is one simulated engine replica: a step machine that
// schedules, caches and preempts as vLLM's V1 engine does, and whose steps last
// as long as a Physics says. It is pure: time is a parameter, so the same
// machine runs in virtual time inside a simulator and on the wall clock behind
// a server.
//
// A request is a chain of block keys and two lengths, never an array of
// tokens. Each step has one token budget: running sequences take theirs first
// (one token for a decode, the next chunk for an unfinished prompt), then
// waiting requests are admitted in order of arrival. Full blocks are published
// under their keys in a radix tree of runs and survive their sequence until
// room is needed. When a running sequence finds no block, the latest arrival
// gives up all of its own and later computes again whatever was evicted.
// Requests for LoRA adapters also wait for one of a few slots, and others may
// pass them. Data-parallel ranks that share experts share a clock: see Lockstep.
//
// Below the GPU there may be tiers that keep what it evicts: see Offload. What
// happens to blocks at each tier can be told as the events that engines send: see
// TakeEvents.
package enginesim
