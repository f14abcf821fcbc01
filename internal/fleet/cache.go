package fleet

import "time"

// CacheSource says what stands behind an answer about a cache, weakest first.
type CacheSource uint8

// The sources.
const (
	CacheHistory   CacheSource = iota // what was sent there, forgotten as an engine would forget it
	CacheExpected                     // sent there so lately that its events are still to come
	CacheConfirmed                    // the engine's own events
)

var cacheSourceNames = [...]string{"history", "expected", "confirmed"}

// String returns the source's name.
func (s CacheSource) String() string { return nameOf(cacheSourceNames[:], int(s)) }

// Cached is what one endpoint is believed to have of one prompt.
type Cached struct {
	Tokens            Tokens // of the prompt's beginning, at any tier
	CPU, Disk, Shared Tokens // of these, those that are at no faster tier
	Ready             Tokens // of these, those that are there already, as far as can be told: others are being computed
	Source            CacheSource
	Fetch             time.Duration // predicted time to bring to the GPU what is not there
}

// Link is how fast KV moves from a tier to the GPU.
type Link struct {
	Latency  float64 // s
	PerToken float64 // s; 0 unknown
}

// Links are the links from an endpoint's slower tiers.
type Links struct{ CPU, Disk, Shared Link }

// CacheState is what is known of one endpoint's cache, for people.
type CacheState struct {
	Feed                   string // state of its feed of KV events; empty when it has none
	Whole                  bool   // the feed has told of all that is there
	Source                 CacheSource
	Demoted                bool          // its feed has been found to say what is not so
	GPU, CPU, Disk, Shared Tokens        // confirmed by events
	Lag                    time.Duration // from a prompt's first token to the events that confirm it
	Unconfirmed            uint64        // prompts whose events never came
	Audits                 uint64        // answers whose engine told how much was cached
	Claimed, Reported      Tokens        // in all of these: believed, and told by engines
	Over, Under            Tokens        // by how much was believed too much, and too little
	OverShare              float64       // of what is believed now, lately, the share that is not so
}
