package transfer

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
)

// Unnamed begins the ids of instances that the gateway registers itself, for
// engines that say nothing. Nobody else may.
const Unnamed = "@"

// registration is the body of POST /instances.
type registration struct {
	exchange.Instance
	Lease string `json:"lease,omitempty"` // such as 30s
}

// registered answers a registration or a heartbeat.
type registered struct {
	ID          string    `json:"id"`
	Incarnation string    `json:"incarnation"`
	Expires     time.Time `json:"expires"`
	HeartbeatMs int64     `json:"heartbeatMs"` // how often to send one: a third of the lease
}

// heartbeat is the body of one.
type heartbeat struct {
	Incarnation string `json:"incarnation"`
}

// instance is one of GET /instances.
type instance struct {
	exchange.Instance
	Since   time.Time `json:"since"`
	Seen    time.Time `json:"seen"`
	Expires time.Time `json:"expires"`
}

// instanceList answers GET /instances. Index goes into the next watch.
type instanceList struct {
	Index     uint64     `json:"index"`
	Instances []instance `json:"instances"`
}

func (s *Server) postInstance(w http.ResponseWriter, r *http.Request) {
	var body registration
	lease := time.Duration(0)
	err := read(r, &body)
	if err == nil && body.Lease != "" {
		if lease, err = time.ParseDuration(body.Lease); err != nil || lease <= 0 {
			err = fmt.Errorf("lease: must be a positive duration such as 30s, is %q", body.Lease)
		}
	}
	if err == nil && strings.HasPrefix(body.ID, Unnamed) {
		err = fmt.Errorf("id: must not begin with %q, as those do that the gateway makes", Unnamed)
	}
	if err == nil {
		err = s.admitRanks(body.Ranks)
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	var e exchange.Entry
	s.Do(func(now fleet.Time, b *exchange.Book) {
		if e, err = b.Register(now, body.Instance, lease); err == nil {
			s.noteLocked(e)
		}
	})
	if err != nil {
		s.refuse(w, err)
		return
	}
	reply(w, http.StatusOK, s.told(e))
}

// admitRanks checks the addresses that an instance says are its own.
func (s *Server) admitRanks(ranks []exchange.Rank) error {
	if len(ranks) > exchange.MaxRanks {
		return fmt.Errorf("ranks: at most %d, are %d", exchange.MaxRanks, len(ranks))
	}
	for n, r := range ranks {
		if err := s.admit(fmt.Sprintf("ranks[%d].host", n), r.Host); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) told(e exchange.Entry) registered {
	return registered{e.ID, e.Incarnation, s.clock(e.Expires), (e.Expires.Sub(e.Seen) / 3).Milliseconds()}
}

func (s *Server) postHeartbeat(w http.ResponseWriter, r *http.Request) {
	var body heartbeat
	if err := read(r, &body); err != nil {
		s.refuse(w, err)
		return
	}
	var e exchange.Entry
	var err error
	s.Do(func(now fleet.Time, b *exchange.Book) {
		if e, err = b.Renew(now, r.PathValue("id"), body.Incarnation); err == nil {
			s.noteLocked(e)
		}
	})
	if err != nil {
		s.refuse(w, err)
		return
	}
	reply(w, http.StatusOK, s.told(e))
}

func (s *Server) deleteInstance(w http.ResponseWriter, r *http.Request) {
	var err error
	s.Do(func(now fleet.Time, b *exchange.Book) {
		err = b.Leave(now, r.PathValue("id"), r.URL.Query().Get("incarnation"))
	})
	if err != nil {
		s.refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) getInstance(w http.ResponseWriter, r *http.Request) {
	var e exchange.Entry
	found := false
	s.Do(func(_ fleet.Time, b *exchange.Book) { e, found = b.Find(r.PathValue("id")) })
	if !found {
		s.refuse(w, fmt.Errorf("%w: %q", exchange.ErrUnknown, r.PathValue("id")))
		return
	}
	reply(w, http.StatusOK, s.shown(e))
}

func (s *Server) shown(e exchange.Entry) instance {
	return instance{e.Instance, s.clock(e.Since), s.clock(e.Seen), s.clock(e.Expires)}
}

func (s *Server) getInstances(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	s.watch(w, r, func(index uint64, b *exchange.Book) any {
		list := instanceList{Index: index, Instances: []instance{}}
		for _, e := range b.Entries() {
			if fits(q.Get("role"), e.Role) && fits(q.Get("model"), e.Weights.Model) && fits(q.Get("domain"), e.Domain) {
				list.Instances = append(list.Instances, s.shown(e))
			}
		}
		return list
	})
}

// fits reports whether a value passes a filter; an empty filter passes all.
func fits(want, got string) bool { return want == "" || want == got }

// How long a watch waits by itself, at most, and how many may wait at once.
const (
	defaultWait = 30 * time.Second
	maxWait     = 5 * time.Minute
	maxWatching = 4096
)

// watch answers with what list makes of the book, at once, or with ?watch=true
// when the index is no longer the caller's or the wait is over.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, list func(index uint64, b *exchange.Book) any) {
	q := r.URL.Query()
	index, wait, err := patience(q.Get("index"), q.Get("wait"))
	if err != nil {
		s.refuse(w, err)
		return
	}
	if q.Get("watch") == "true" && index != 0 {
		if err := s.await(r, index, wait); err != nil {
			s.refuse(w, err)
			return
		}
	}
	var v any
	s.Do(func(_ fleet.Time, b *exchange.Book) { v = list(s.indexLocked(), b) })
	reply(w, http.StatusOK, v)
}

// indexLocked is the book's revision, and above it the time this exchange began:
// one that starts anew has other indices. It is never 0, which is no index, and
// below 2^53, so that every reader of JSON keeps it exact.
func (s *Server) indexLocked() uint64 {
	began := uint64(s.start.UnixMilli()) % (1 << 20)
	return began<<32 + (s.book.Revision()+1)%(1<<32)
}

// patience reads the parameters of a watch.
func patience(index, wait string) (uint64, time.Duration, error) {
	n, d := uint64(0), defaultWait
	var err error
	if index != "" {
		if n, err = strconv.ParseUint(index, 10, 64); err != nil {
			return 0, 0, fmt.Errorf("index: must be the index of an earlier answer, is %q", index)
		}
	}
	if wait != "" {
		if d, err = time.ParseDuration(wait); err != nil || d <= 0 || d > maxWait {
			return 0, 0, fmt.Errorf("wait: must be a duration up to %v, is %q", maxWait, wait)
		}
	}
	return n, d, nil
}

// await returns when the index is no longer the caller's, or wait is over. Each
// waiter wakes for leases that end meanwhile.
func (s *Server) await(r *http.Request, index uint64, wait time.Duration) error {
	end := time.Now().Add(wait)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watching >= maxWatching {
		return fmt.Errorf("%w: %d requests are watching already", exchange.ErrFull, s.watching)
	}
	s.watching++
	defer func() { s.watching-- }()
	for {
		now := s.nowLocked()
		left := time.Until(end)
		if s.indexLocked() != index || left <= 0 {
			return nil
		}
		if due, ok := s.book.Wake(); ok {
			left = min(left, max(due.Sub(now), time.Millisecond))
		}
		if !s.sleepLocked(r, left) {
			return errors.New("the caller has gone")
		}
	}
}

// sleepLocked lets go of the lock until something changes or d is over. It
// reports whether the caller is still there.
func (s *Server) sleepLocked(r *http.Request, d time.Duration) bool {
	changed := s.changed
	s.mu.Unlock()
	defer s.mu.Lock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.Context().Done():
		return false
	case <-changed:
	case <-timer.C:
	}
	return true
}

// judged answers GET /verdict.
type judged struct {
	exchange.Verdict
	Estimate exchange.Estimate `json:"estimate"`
}

func (s *Server) getVerdict(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	bytes, err := int64(0), error(nil)
	if v := q.Get("bytes"); v != "" {
		if bytes, err = strconv.ParseInt(v, 10, 64); err != nil || bytes < 0 {
			s.refuse(w, fmt.Errorf("bytes: must be a number that is not negative, is %q", v))
			return
		}
	}
	var a judged
	s.Do(func(now fleet.Time, b *exchange.Book) {
		if a.Verdict, err = b.Judge(q.Get("prefill"), q.Get("decode")); err == nil {
			a.Estimate, err = b.Predict(now, q.Get("prefill"), q.Get("decode"), bytes)
		}
	})
	if err != nil {
		s.refuse(w, err)
		return
	}
	reply(w, http.StatusOK, a)
}

// linkList answers GET /links.
type linkList struct {
	Links []exchange.State `json:"links"`
	Prior linkPrior        `json:"prior"`
}

// linkPrior is what a link is believed to be before anything has moved over it.
type linkPrior struct {
	LatencySeconds float64 `json:"latencySeconds"`
	BytesPerSecond float64 `json:"bytesPerSecond"`
}

func (s *Server) getLinks(w http.ResponseWriter, _ *http.Request) {
	p := s.o.Book.Prior
	a := linkList{Prior: linkPrior{p.Latency.Seconds(), p.BytesPerSecond}}
	s.Do(func(_ fleet.Time, b *exchange.Book) { a.Links = b.Links().List() })
	reply(w, http.StatusOK, a)
}
