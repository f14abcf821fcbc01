package sim

import (
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/workload"
)

// request is one request of the workload and how far it has come.
type request struct {
	workload.Request
	index    int // place in the load, from 0
	gateway  int
	start    fleet.Time
	sent     fleet.Time // when it was last dispatched
	first    fleet.Time // when the client saw its first token; 0 before
	attempt  int
	replica  int // of the last dispatch: the one that answers
	prefill  int // the one that computes the prompt for it and holds its KV; noReplica for none
	stage    int
	source   int           // the one from whose cache its prompt is fetched, with stagePull
	due      fleet.Time    // when what moves will have come
	received fleet.Tokens  // of its prompt, fetched from there
	cached   fleet.Tokens  // prompt tokens that the engine had
	ttft     time.Duration // predicted at its last dispatch; 0 unknown
	tpot     time.Duration
	chain    []uint64   // of the prompt, as engines key it; nil before it is needed
	last     fleet.Time // when its last token came, with Config.Tokens
	done     bool       // the whole answer has come
}

// table holds the requests that are open, so that memory follows what is in
// flight and not the length of the load.
type table struct {
	rows  map[int]*request
	spare []*request
	taken int // requests so far
}

func newTable() table { return table{rows: map[int]*request{}} }

func (t *table) open() int { return len(t.rows) }

// add opens the next request.
func (t *table) add() *request {
	q := &request{}
	if n := len(t.spare); n > 0 {
		q, t.spare = t.spare[n-1], t.spare[:n-1]
	}
	q.index, q.prefill = t.taken, noReplica
	t.rows[t.taken] = q
	t.taken++
	return q
}

// get returns request i, nil when it has ended.
func (t *table) get(i int) *request { return t.rows[i] }

// end forgets a request.
func (t *table) end(q *request) {
	delete(t.rows, q.index)
	*q = request{}
	t.spare = append(t.spare, q)
}
