package app

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/discovery"
	"penstock.dev/penstock/internal/engine"
)

// rankFinder asks an engine how its data-parallel ranks are told apart;
// engine.Client does.
type rankFinder interface {
	FindRankMode(ctx context.Context, base string) (engine.RankMode, error)
}

// ranked is an engine with ranks; it is asked again when it comes anew.
type ranked struct {
	url   string
	ranks int
}

// finding is what is known of how an engine's ranks are told apart.
type finding struct {
	mode string // empty until it is decided
	why  string // of the mode, or of there being none yet
	seen int    // looks that ended alike without being sure
}

// rankLooks is how often in a row there must be nothing at the next port before
// the ranks are taken to be behind one: those of an engine that starts come one
// after the other.
const rankLooks = 3

// look takes in one answer and reports whether that decides it.
func (f *finding) look(m engine.RankMode, err error) bool {
	if err != nil {
		*f = finding{why: err.Error()}
		return false
	}
	f.why = m.Why
	if f.seen++; m.Sure || f.seen >= rankLooks {
		f.mode = m.Mode
	}
	return f.mode != ""
}

// rankEvery is the time between two looks.
const rankEvery = time.Second

// spreadLocked returns the endpoints that an endpoint of a source is: its ranks, if
// it has any, and none as long as it is not known how they are told apart.
func (m *members) spreadLocked(e discovery.Endpoint) []discovery.Endpoint {
	mode := cmp.Or(e.RankMode, engine.RanksAuto)
	switch {
	case e.Ranks == 0:
		return []discovery.Endpoint{e}
	case e.Ranks == 1 && mode == engine.RanksAuto:
		mode = engine.RanksByPort // there is nothing to tell apart
	case mode == engine.RanksAuto:
		mode = m.findLocked(e)
	}
	if mode == "" {
		return nil
	}
	list, err := e.Spread(mode)
	if err != nil { // ports were checked when the list was read
		m.log.Error("ranks have no ports", "endpoint", e.Name, "err", err)
	}
	return list
}

// findLocked returns how the ranks of e are told apart, empty while that is being
// found out.
func (m *members) findLocked(e discovery.Endpoint) string {
	key := ranked{e.URL, e.Ranks}
	if f := m.found[key]; f != nil {
		return f.mode
	}
	f := &finding{why: "it has not answered yet"}
	m.found[key] = f
	m.leaving.Go(func() { m.find(e, key, f) })
	return ""
}

// find asks until there is an answer, or nobody wants one any more.
func (m *members) find(e discovery.Endpoint, key ranked, f *finding) {
	told := ""
	for m.ctx.Err() == nil {
		mode, err := m.finder.FindRankMode(m.ctx, e.URL)
		m.mu.Lock()
		if m.found[key] != f || m.ctx.Err() != nil {
			m.mu.Unlock()
			return
		}
		if f.look(mode, err) {
			m.log.Info("data-parallel ranks are told apart", "endpoint", e.Name, "ranks", e.Ranks, "by", f.mode, "because", f.why)
			m.reconcileLocked(m.drain)
			m.mu.Unlock()
			return
		}
		why := f.why
		m.mu.Unlock()
		if why != told {
			told = why
			m.log.Warn("how data-parallel ranks are told apart is not known yet", "endpoint", e.Name, "ranks", e.Ranks, "because", why)
		}
		sleep(m.ctx, m.lookEvery)
	}
}

// forgetRanksLocked drops what was found of engines that no source lists any more:
// what comes back may be served otherwise.
func (m *members) forgetRanksLocked() {
	wanted := map[ranked]bool{}
	for _, list := range m.wanted {
		for _, e := range list {
			wanted[ranked{e.URL, e.Ranks}] = true
		}
	}
	for key := range m.found {
		if !wanted[key] {
			delete(m.found, key)
		}
	}
}

// undecided returns the endpoints whose ranks are not in the pool yet, by name.
func (m *members) undecided() []admin.Undecided {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []admin.Undecided
	for _, list := range m.wanted {
		for _, e := range list {
			if f := m.found[ranked{e.URL, e.Ranks}]; f != nil && f.mode == "" {
				all = append(all, admin.Undecided{Endpoint: e.Name, URL: e.URL, Ranks: e.Ranks, Why: f.why})
			}
		}
	}
	slices.SortFunc(all, func(a, b admin.Undecided) int { return strings.Compare(a.Endpoint, b.Endpoint) })
	return all
}
