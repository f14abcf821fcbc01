package server

import (
	"cmp"
	"net/http"
	"slices"
	"time"
)

// record is a transfer that is over, as GET /sim/pd tells of it.
type record struct {
	ID       string  `json:"id"`
	Side     string  `json:"side"` // out: it was fetched from here; in: to here; pull: a prefix, to here
	Peer     string  `json:"peer,omitempty"`
	State    string  `json:"state"`
	Reason   string  `json:"reason,omitempty"`
	Tokens   int     `json:"tokens"`
	Blocks   int     `json:"blocks"`
	Bytes    float64 `json:"bytes"`
	WaitedMS float64 `json:"waited_ms"` // for its turn on the link
	TookMS   float64 `json:"took_ms"`   // all of it
}

// counts are what has happened since the process was started.
type counts struct {
	Kept       int `json:"kept"`       // prompts whose blocks were kept
	Freed      int `json:"freed"`      // because they were fetched, or not wanted
	Expired    int `json:"expired"`    // because nobody came in time
	Aborted    int `json:"aborted"`    // because their request was, or the cache dropped
	Served     int `json:"served"`     // transfers from here
	Pulled     int `json:"pulled"`     // transfers to here
	Refused    int `json:"refused"`    // who wanted what is not there, or of another process
	Failed     int `json:"failed"`     // transfers to here
	Recomputed int `json:"recomputed"` // of those, prompts computed here instead
	Heartbeats int `json:"heartbeats"`
	// Prefixes were asked of a peer: those that brought nothing, the blocks that came
	// of the others, and those sent to peers.
	Prefixes       int     `json:"prefixes"`
	PrefixesMissed int     `json:"prefixes_missed"`
	PrefixBlocks   int     `json:"prefix_blocks"`
	PrefixesServed int     `json:"prefixes_served"`
	BytesIn        float64 `json:"bytes_in"`
	BytesOut       float64 `json:"bytes_out"`
	// ChecksFailed are transfers of blocks that were not what they should be: of
	// other tokens, another process, or damaged. There must be none.
	ChecksFailed int `json:"checks_failed"`
}

// keptRecords is how many transfers are remembered.
const keptRecords = 256

// note remembers a transfer. It needs Server.mu.
func (p *pd) note(r record) {
	p.records = append(p.records, r)
	p.records = p.records[max(0, len(p.records)-keptRecords):]
}

// count changes what is counted.
func (s *Server) count(change func(n *counts)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.pd.counts)
}

// shownTicket is a ticket as GET /sim/pd shows it.
type shownTicket struct {
	ID      string  `json:"id"`
	State   string  `json:"state"`
	Tokens  int     `json:"tokens"`
	Blocks  int     `json:"blocks"`
	Waiting int     `json:"waiting"`  // who want it before it is ready
	LeaseMS float64 `json:"lease_ms"` // left
}

// showPD tells all of the engine's part in requests of two legs.
func (s *Server) showPD(w http.ResponseWriter, r *http.Request) {
	if s.pd == nil {
		s.fail(w, r, &apiError{http.StatusNotFound, "the engine was started without a KV connector", ""})
		return
	}
	s.mu.Lock()
	p, stats := s.pd, s.engine.Stats()
	tickets, blocks := []shownTicket{}, 0
	for _, t := range p.tickets {
		shown := shownTicket{ID: t.name, State: t.state, Tokens: t.tokens, Blocks: len(t.keys), Waiting: t.waiting}
		if !t.until.IsZero() {
			shown.LeaseMS = milliseconds(time.Until(t.until))
		}
		tickets = append(tickets, shown)
		blocks += len(t.keys)
	}
	reply := map[string]any{
		"role": p.options.Role, "connector": p.options.Connector, "engine_id": p.engineID, "host": p.host, "port": p.port,
		"bootstrap": p.bootstrap, "compatibility_hash": hashOf(p.facts), "facts": p.facts, "tp_size": p.tp,
		"link_bytes_per_second": p.options.Link, "bytes_per_token": p.bytes, "lease_seconds": p.options.Lease.Seconds(),
		"kept": stats.Kept, "kept_blocks": blocks, "incoming": p.incoming,
		"records": slices.Clone(p.records), "counts": p.counts,
	}
	s.mu.Unlock()
	slices.SortFunc(tickets, func(a, b shownTicket) int { return cmp.Compare(a.ID, b.ID) })
	reply["tickets"] = tickets
	writeJSON(w, http.StatusOK, reply)
}
