package app

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/health"
)

// reloader takes changes of the Fleet file on while serving: all of a file or
// nothing of it, and back again when requests begin to fail.
type reloader struct {
	app *App

	mu       sync.Mutex // one change at a time
	current  config.Fleet
	previous *config.Fleet // what a rollback returns to; nil when there is nothing to
	state    admin.ReloadState

	judge  sync.Mutex
	canary *health.Canary
}

// The results of a reload, as told in logs, metrics and status.
const (
	reloadStarted    = "started"
	reloadApplied    = "applied"
	reloadRefused    = "refused"
	reloadRolledBack = "rolled back"
)

func newReloader(a *App) *reloader {
	r := &reloader{app: a, current: a.o.Config, canary: health.NewCanary()}
	r.state = admin.ReloadState{At: a.started, Result: reloadStarted}
	return r
}

// State returns how the last reload went.
func (r *reloader) State() admin.ReloadState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// run reloads when the file changes and when asked, until ctx ends.
func (r *reloader) run(ctx context.Context, asked <-chan struct{}) {
	path := r.app.o.ConfigPath
	if path == "" {
		return
	}
	last := fileSum(path)
	tick := time.NewTicker(r.app.o.Config.Reload.Every)
	defer tick.Stop()
	for {
		force := false
		select {
		case <-ctx.Done():
			return
		case <-asked:
			force = true
		case <-tick.C:
			if !r.app.o.Config.Reload.Watch {
				continue
			}
		}
		// An unreadable file is one being replaced, unless somebody asked.
		sum := fileSum(path)
		if force || sum != last && sum != ([sha256.Size]byte{}) {
			last = sum
			r.load(path)
		}
	}
}

// fileSum returns a digest of a file's content, zero when it cannot be read.
func fileSum(path string) [sha256.Size]byte {
	raw, err := os.ReadFile(path)
	if err != nil {
		return [sha256.Size]byte{}
	}
	return sha256.Sum256(raw)
}

// load reads the file and applies it; a bad one is refused with every reason.
func (r *reloader) load(path string) {
	c, errs := config.Load(path)
	if len(errs) > 0 {
		r.refuse(errs)
		return
	}
	if err := r.Apply(c); err != nil {
		r.refuse([]error{err})
	}
}

func (r *reloader) refuse(errs []error) {
	r.app.log.Error("configuration refused; the old one stays", "problems", len(errs), "err", errors.Join(errs...))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finishLocked(reloadRefused, errs)
}

func (r *reloader) finishLocked(result string, errs []error) {
	r.state = admin.ReloadState{At: time.Now(), Result: result}
	for _, err := range errs {
		r.state.Problems = append(r.state.Problems, err.Error())
	}
	r.app.metrics.Reloaded(result)
}

// Apply takes a valid configuration on. Requests that are open go on; new ones
// meet the new configuration.
func (r *reloader) Apply(c config.Fleet) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.current
	if err := r.applyLocked(c); err != nil {
		return err
	}
	r.previous, r.current = &old, c
	r.app.hosts.Store(&c.Transfer)
	r.app.exchange.kick()
	r.app.gateway.SetPolicy(c.Policy())
	r.finishLocked(reloadApplied, nil)
	for _, field := range needRestart(old, c) {
		r.app.log.Warn("this change needs a restart", "field", field)
		r.state.Problems = append(r.state.Problems, field+": a change needs a restart")
	}
	r.app.log.Info("configuration applied", "pools", len(c.Pools))
	r.judge.Lock()
	r.canary.Changed(r.now())
	r.judge.Unlock()
	return nil
}

// needRestart names the fields whose change is not taken on while serving.
func needRestart(old, c config.Fleet) []string {
	var fields []string
	if old.Limits != c.Limits {
		fields = append(fields, "limits")
	}
	if old.Scrape != c.Scrape {
		fields = append(fields, "scrape")
	}
	if old.Reload != c.Reload {
		fields = append(fields, "reload")
	}
	if old.Transfer.Restarts(&c.Transfer) {
		fields = append(fields, "transfer")
	}
	return fields
}

// applyLocked makes the table serve c's pools. New pools are made before old
// ones go, and if one cannot be made nothing has changed.
func (r *reloader) applyLocked(c config.Fleet) error {
	t := r.app.fleet
	kept := map[string]*served{}
	var fresh []*served
	undo := func(err error) error {
		for _, s := range fresh {
			err = errors.Join(err, s.close())
		}
		return err
	}
	for _, p := range c.Pools {
		if s := t.byName(p.Name); s != nil && !s.replaces(p) {
			kept[p.Name] = s
			continue
		}
		s, err := r.app.openServed(p, r.app.modelsOf(p))
		if err != nil {
			return undo(fmt.Errorf("nothing was changed: %w", err))
		}
		fresh = append(fresh, s)
	}
	for _, p := range c.Pools {
		if s := kept[p.Name]; s != nil {
			s.follow(p)
			s.pool.Configure(p.Config)
			s.setModels(r.app.modelsOf(p))
		}
	}
	var gone []*served
	t.mu.Lock()
	next := append([]*served{}, fresh...)
	for _, s := range t.order {
		if kept[s.pool.Name()] == s || t.asked[s.pool.Name()] != nil {
			next = append(next, s)
		} else {
			gone = append(gone, s)
		}
	}
	t.order = next
	for _, s := range fresh {
		t.clients.Store(s.pool, s.client)
	}
	t.publishLocked()
	t.mu.Unlock()
	for _, s := range gone {
		t.retire(s)
	}
	return nil
}

func (s *served) setModels(models []gateway.Model) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.models = models
	s.joinLocked()
}

func (r *reloader) now() fleet.Time { return fleet.Time(time.Since(r.app.started)) }

// observe learns from the end of a request, and takes the last change back when
// it has made requests fail.
func (r *reloader) observe(x *gateway.Access) {
	now := r.now()
	failed := x.Status >= http.StatusInternalServerError || x.Failure != fleet.FailNone && x.Failure != fleet.FailClient
	r.judge.Lock()
	condemned := r.canary.Observe(r.app.o.Config.Reload.Rollback, now, now.Add(-x.Total), failed)
	r.judge.Unlock()
	if condemned {
		r.app.background.Go(r.rollback)
	}
}

func (r *reloader) rollback() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.previous == nil {
		return
	}
	r.app.log.Error("requests fail since the last change of configuration; it is taken back")
	if err := r.applyLocked(*r.previous); err != nil {
		r.app.log.Error("the change cannot be taken back", "err", err)
		return
	}
	r.current, r.previous = *r.previous, nil
	r.app.hosts.Store(&r.current.Transfer)
	r.app.exchange.kick()
	r.app.gateway.SetPolicy(r.current.Policy())
	r.finishLocked(reloadRolledBack, []error{errors.New("more requests failed after the change than before it")})
}
