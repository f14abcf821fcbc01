package transfer

import (
	"iter"
	"net/http"
	"net/netip"
	"strings"

	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
)

// Engines that speak Mooncake's or SGLang's words keep no lease there: what they
// leave is tagged with whose it is, and goes when that instance's lease ends or
// its process is another. What nobody has registered for goes when its host
// leaves the fleet.

// life is an instance's incarnation as it was known last.
type life struct {
	incarnation string
	seen        fleet.Time
}

// tag says whose a thing is.
type tag struct {
	owner string // an instance's id; "" while none is known
	host  string // where it points
	at    fleet.Time
	gone  bool
}

// noteLocked records that an incarnation was heard of.
func (s *Server) noteLocked(e exchange.Entry) {
	if was, known := s.lives[e.ID]; known && was.incarnation != e.Incarnation {
		s.endLocked(e.ID, was.seen)
	}
	s.lives[e.ID] = life{e.Incarnation, e.Seen}
}

// followLocked ends the lives that the book no longer has, and finds owners for
// what came before its instance did.
func (s *Server) followLocked() {
	for id, was := range s.lives {
		e, there := s.book.Find(id)
		if !there && s.grace != 0 {
			continue
		}
		if !there || e.Incarnation != was.incarnation {
			s.endLocked(id, was.seen)
			delete(s.lives, id)
		}
	}
	owners := s.ownersLocked()
	for t := range s.tagsLocked() {
		if t.owner == "" {
			t.owner = owners[t.host]
		}
	}
	s.sweepLocked()
}

// endLocked drops what an instance has left until it was heard of last. What came
// after that is of the process that takes its place: it may speak with its
// engine's words before it has registered.
func (s *Server) endLocked(id string, seen fleet.Time) {
	s.blobs.drop(id)
	for t := range s.tagsLocked() {
		t.gone = t.gone || t.owner == id && t.at <= seen
	}
	s.sweepLocked()
}

// ownersLocked are the instances by host; "" where several share one.
func (s *Server) ownersLocked() map[string]string {
	owners := map[string]string{}
	for _, e := range s.book.Entries() {
		for _, r := range e.Ranks {
			if other, taken := owners[r.Host]; taken && other != e.ID {
				owners[r.Host] = ""
				continue
			}
			owners[r.Host] = e.ID
		}
	}
	return owners
}

// whoseLocked is the instance that a request in an engine's words is about: the
// one in the path, or the one whose id the first part of the Host name is, for
// engines that can be given a host and a port but no path; "" for neither.
func (s *Server) whoseLocked(r *http.Request) string {
	if id := r.PathValue("instance"); id != "" {
		return id
	}
	host := nameOf(r.Host)
	id, _, dotted := strings.Cut(host, ".")
	if _, err := netip.ParseAddr(host); err == nil || !dotted {
		return ""
	}
	if _, there := s.book.Find(id); !there {
		return ""
	}
	return id
}

// tagLocked makes a tag: of the instance in the path, or of the only one there is
// at the host.
func (s *Server) tagLocked(now fleet.Time, instance, host string) tag {
	if instance == "" {
		instance = s.ownersLocked()[host]
	}
	return tag{owner: instance, host: host, at: now}
}

// staleLocked reports whether a tag's host has left the fleet.
func (s *Server) staleLocked(t tag) bool { return t.gone || s.o.Admit(t.host) != nil }

// tagsLocked are all tags.
func (s *Server) tagsLocked() iter.Seq[*tag] {
	return func(yield func(*tag) bool) {
		for _, k := range s.keys.at {
			if !yield(&k.tag) {
				return
			}
		}
		for _, b := range s.mooncake {
			for _, e := range b.engines {
				if !yield(&e.tag) {
					return
				}
			}
		}
		for _, r := range s.sglang {
			for _, e := range r.ranks {
				if !yield(&e.tag) {
					return
				}
			}
		}
	}
}

// sweepLocked takes out what is tagged as gone.
func (s *Server) sweepLocked() {
	for name, k := range s.keys.at {
		if k.gone {
			s.keys.drop(name)
		}
	}
	for _, b := range s.mooncake {
		for dp, e := range b.engines {
			if e.gone {
				b.retire(dp)
			}
		}
	}
	for name, r := range s.sglang {
		for at, e := range r.ranks {
			if e.gone {
				delete(r.ranks, at)
			}
		}
		if len(r.ranks) == 0 && len(r.rooms) == 0 {
			delete(s.sglang, name)
		}
	}
}
