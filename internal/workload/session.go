package workload

import "slices"

// A block that more than this many different blocks follow is a preamble that
// conversations share, not the end of somebody's turn. On the Mooncake
// conversation trace any bound from 4 to 12 gives nearly the same answer.
const preambleFanout = 8

// joinSessions sets Parent, Turn and Root of all rows.
func (t *Trace) joinSessions() {
	last := map[string]int{} // latest row of each recorded session
	ends := map[uint64][]int{}
	fan := t.fanout()
	for i := range t.Rows {
		r := &t.Rows[i]
		r.Parent = NoRequest
		if r.Session != "" {
			if prev, ok := last[r.Session]; ok {
				r.Parent = prev
			}
			last[r.Session] = i
		} else if r.Parent = t.continues(i, ends, fan); r.Parent != NoRequest {
			t.Inferred++
		}
		r.Root = i
		if r.Parent != NoRequest {
			r.Root, r.Turn = t.Rows[r.Parent].Root, t.Rows[r.Parent].Turn+1
		}
		if whole := min(r.Input/BlockTokens, len(r.Hashes)); whole >= 2 && r.Session == "" {
			id := r.Hashes[whole-1]
			ends[id] = append(ends[id], i)
		}
	}
}

// continues finds the row that row i goes on from. ends lists earlier rows by
// their last whole block.
func (t *Trace) continues(i int, ends map[uint64][]int, fan map[uint64]int) int {
	r := &t.Rows[i]
	for k := len(r.Hashes) - 1; k >= 2; k-- {
		id := r.Hashes[k-1]
		rows := ends[id]
		if len(rows) == 0 || fan[id] > preambleFanout {
			continue
		}
		for _, row := range slices.Backward(rows) {
			if p := &t.Rows[row]; p.Input/BlockTokens == k && p.Input+p.Output <= r.Input {
				return row
			}
		}
	}
	return NoRequest
}

// fanout counts the different blocks that follow each block, as far as it matters.
func (t *Trace) fanout() map[uint64]int {
	type pair struct{ a, b uint64 }
	seen := map[pair]struct{}{}
	fan := map[uint64]int{}
	for i := range t.Rows {
		h := t.Rows[i].Hashes
		for k := 1; k < len(h); k++ {
			if fan[h[k-1]] > preambleFanout {
				continue
			}
			p := pair{h[k-1], h[k]}
			if _, ok := seen[p]; !ok {
				seen[p] = struct{}{}
				fan[p.a]++
			}
		}
	}
	return fan
}
