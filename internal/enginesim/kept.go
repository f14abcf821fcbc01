package enginesim

import "penstock.dev/penstock/internal/fleet"

// keep holds the blocks of s, which has ended, for somebody who will fetch them.
func (e *Engine) keep(s *sequence) {
	delete(e.byID, s.id)
	e.kept[s.id] = s
	e.stuck = false
}

// Release gives up the blocks that a request with Keep holds after its end: they
// have been fetched, or nobody will. It reports whether there were any; they stay
// cached.
func (e *Engine) Release(now fleet.Time, id fleet.ReqID) bool {
	e.catchUp(now)
	s := e.kept[id]
	if s == nil {
		return false
	}
	delete(e.kept, id)
	e.letGo(s)
	e.rouse(now)
	return true
}

// letGo frees what a kept sequence holds.
func (e *Engine) letGo(s *sequence) {
	e.blocks.release(s)
	e.stuck = false
	*s = sequence{}
	e.spare = append(e.spare, s)
}

// dropKept gives up all that is kept.
func (e *Engine) dropKept() {
	for id, s := range e.kept {
		delete(e.kept, id)
		e.letGo(s)
	}
}
