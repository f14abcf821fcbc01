package app

import (
	"errors"
	"fmt"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/discovery"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
)

// turn is an endpoint on its way to another role. It takes nothing new until what
// it has in the old one has ended, or the time for that is up.
type turn struct {
	to       live.Target
	since    time.Time
	wait     time.Duration
	draining bool
	until    time.Time // once it drains
}

// turnLocked has a member take another role. One that would leave the pool without
// anybody who answers waits until there is somebody else.
func (m *members) turnLocked(name string, mem *member, to live.Target) {
	t := &turn{to: to, since: time.Now(), wait: m.drain}
	if m.patience[name] > 0 {
		t.wait = m.patience[name]
	}
	mem.turning = t
	m.log.Info("endpoint changes its role", "endpoint", name, "from", mem.endpoint.Role.String(), "to", to.Role.String(), "drain", t.wait)
	if !m.stepTurnLocked(name, mem, t) {
		m.leaving.Go(func() { m.turn(name, mem, t) })
	}
}

// turn takes a turn to its end.
func (m *members) turn(name string, mem *member, t *turn) {
	tick := time.NewTicker(leavePoll)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
		}
		m.mu.Lock()
		over := m.stepTurnLocked(name, mem, t)
		m.mu.Unlock()
		if over {
			return
		}
	}
}

// stepTurnLocked takes a turn as far as it goes now, and reports whether it is
// over: taken, or no longer wanted.
func (m *members) stepTurnLocked(name string, mem *member, t *turn) bool {
	if m.current[name] != mem || mem.turning != t || !mem.deadline.IsZero() {
		return true
	}
	if !t.draining {
		if mem.endpoint.Role.Decodes() && !t.to.Role.Decodes() && !m.answersLocked(mem) {
			return false
		}
		t.draining, t.until = true, time.Now().Add(t.wait)
		m.pool.Drain(mem.endpoint)
	}
	open := m.pool.InFlight(mem.endpoint)
	if open > 0 && time.Now().Before(t.until) {
		return false
	}
	if open > 0 {
		m.log.Warn("endpoint takes its new role while requests of the old one go on", "endpoint", name, "open", open)
	}
	mem.turning = nil
	m.takeLocked(name, mem, t.to)
	m.log.Info("endpoint has its new role", "endpoint", name, "role", t.to.Role.String())
	return true
}

// answersLocked reports whether a member other than one answers requests.
func (m *members) answersLocked(but *member) bool {
	for name, mem := range m.current {
		if mem != but && mem.deadline.IsZero() && !m.held[name] && mem.endpoint.Role.Decodes() && (mem.turning == nil || !mem.turning.draining) {
			return true
		}
	}
	return false
}

// stayLocked ends a turn that is no longer wanted.
func (m *members) stayLocked(name string, mem *member) {
	if mem.turning == nil {
		return
	}
	mem.turning = nil
	if !m.held[name] {
		mem.endpoint = m.pool.Add(mem.endpoint.Target)
	}
	m.log.Info("endpoint keeps its role", "endpoint", name, "role", mem.endpoint.Role.String())
}

// errRole says why a role cannot be given.
var errRole = errors.New("the role cannot be given")

// setRole gives an endpoint that is there, or all ranks of a server, a role,
// whatever their source says. What they have in the old one may take so long; 0 is
// the pool's own time.
func (m *members) setRole(name string, role fleet.Role, wait time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	named := m.namedLocked(name)
	for _, full := range named {
		e := m.current[full].endpoint
		switch {
		case e.Role == fleet.RoleStore:
			return fmt.Errorf("%w: %s is a store", errRole, full)
		case e.Role == fleet.RoleEncode:
			return fmt.Errorf("%w: %s encodes images, and its engine can do nothing else", errRole, full)
		case role != fleet.RoleBoth && e.Transfer.Connector == "":
			return fmt.Errorf("%w: %s needs a way to hand KV over; set kv.transfer.connector", errRole, full)
		}
	}
	if len(named) == 0 {
		return fmt.Errorf("pool %s has no endpoint %q", m.pool.Name(), name)
	}
	before := map[string]fleet.Role{}
	for _, full := range named {
		if r, ok := m.roles[full]; ok {
			before[full] = r
		}
		m.roles[full] = role
	}
	if !m.someAnswerLocked() {
		for _, full := range named {
			delete(m.roles, full)
			if r, ok := before[full]; ok {
				m.roles[full] = r
			}
		}
		return fmt.Errorf("%w: nobody would answer requests; give another endpoint the role decode or both first", errRole)
	}
	for _, full := range named {
		m.patience[full] = wait
	}
	m.reconcileLocked(m.drain)
	return nil
}

// clearRole lets an endpoint's source say its role again.
func (m *members) clearRole(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	named := m.namedLocked(name)
	if len(named) == 0 {
		return fmt.Errorf("pool %s has no endpoint %q", m.pool.Name(), name)
	}
	for _, full := range named {
		delete(m.roles, full)
		delete(m.patience, full)
	}
	m.reconcileLocked(m.drain)
	return nil
}

// namedLocked are the members that a name means: one, or all ranks of a server.
func (m *members) namedLocked(name string) []string {
	var list []string
	for full, mem := range m.current {
		rank := mem.endpoint.Rank
		if mem.deadline.IsZero() && (full == name || rank.Of > 0 && full == discovery.RankName(name, rank.Index)) {
			list = append(list, full)
		}
	}
	return list
}

// someAnswerLocked reports whether, in the roles that members are to have, somebody
// answers.
func (m *members) someAnswerLocked() bool {
	for name, mem := range m.current {
		role := mem.endpoint.Role
		if mem.turning != nil {
			role = mem.turning.to.Role
		}
		if r, ok := m.roles[name]; ok {
			role = r
		}
		if mem.deadline.IsZero() && role.Decodes() {
			return true
		}
	}
	return false
}

// turnings tells of the changes of roles under way, by endpoint.
func (m *members) turnings() map[string]admin.Turning {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list map[string]admin.Turning
	for name, mem := range m.current {
		t := mem.turning
		if t == nil {
			continue
		}
		if list == nil {
			list = map[string]admin.Turning{}
		}
		list[name] = admin.Turning{
			From: mem.endpoint.Role.String(), To: t.to.Role.String(), Since: t.since, Until: t.until, Draining: t.draining, Open: m.pool.InFlight(mem.endpoint),
		}
	}
	return list
}

// SetRole implements admin.Fleet.
func (t *table) SetRole(pool, name, role string, wait time.Duration) error {
	s := t.byName(pool)
	if s == nil {
		return fmt.Errorf("%w: %q", errNoPool, pool)
	}
	if role == "" {
		return s.members.clearRole(name)
	}
	for _, r := range [...]fleet.Role{fleet.RoleBoth, fleet.RolePrefill, fleet.RoleDecode} {
		if r.String() == role {
			return s.members.setRole(name, r, wait)
		}
	}
	return fmt.Errorf("%w: must be both, prefill or decode, is %q", errRole, role)
}
