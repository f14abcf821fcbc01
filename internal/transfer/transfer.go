// Package transfer is the exchange of metadata that KV transfers need, over
// HTTP: engines register and keep their leases, look each other up, are judged as
// pairs, and report transfers. It speaks its own schema, and what Mooncake and
// SGLang engines speak already.
package transfer

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
)

// Options are what an exchange needs to know. All have useful zero values.
type Options struct {
	// Book bounds what is kept; the zero value is exchange.DefaultConfig.
	Book exchange.Config
	// Token must come as a bearer token with every request, but for the document
	// and /health. Without one, and without client certificates, only loopback is
	// answered.
	Token string
	// Admit says why a host that an instance names as its own is none of the
	// fleet's; nil for one that is. Engines connect to what they find here, so
	// whoever may register must not be able to send them anywhere. It is asked
	// under a lock: it must not wait. Nil admits loopback.
	Admit func(host string) error
	// TrustFleet lets requests to the adapters, whose engines can send no token, in
	// from addresses that Admit admits. Use it where the network is trusted.
	TrustFleet bool
	// Census is told when instances come, change or go. It is called under a lock: it
	// must not wait, nor ask the server anything. Nil is told nothing.
	Census func()
}

// Server is the exchange. It has no goroutine of its own: leases end when
// somebody looks, and who watches wakes when one is due.
type Server struct {
	o     Options
	start time.Time
	mux   *http.ServeMux
	doc   []byte

	mu       sync.Mutex
	book     *exchange.Book
	changed  chan struct{} // closed when the book's revision grows
	revision uint64
	watching int
	followed map[string]func(exchange.Ticket)
	census   uint64
	lives    map[string]life
	grace    fleet.Time // until then lives that were restored wait for their instances; 0 for none
	blobs    blobs
	keys     keys
	mooncake map[string]*bootstrap // by the instance of the path; "" for none
	sglang   map[string]*topology
	refused  map[string]uint64
}

// New returns an exchange that knows nobody yet.
func New(o Options) (*Server, error) {
	if o.Book == (exchange.Config{}) {
		o.Book = exchange.DefaultConfig()
	}
	if errs := o.Book.Validate(); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if o.Admit == nil {
		o.Admit = admitLoopback
	}
	s := &Server{
		o: o, start: time.Now(), book: exchange.NewBook(o.Book), changed: make(chan struct{}), followed: map[string]func(exchange.Ticket){}, lives: map[string]life{},
		blobs: blobs{of: map[string]map[string][]byte{}}, keys: keys{at: map[string]*keyValue{}},
		mooncake: map[string]*bootstrap{}, sglang: map[string]*topology{}, refused: map[string]uint64{},
	}
	s.mux = http.NewServeMux()
	for _, r := range s.routes() {
		s.mux.Handle(r.method+" "+r.path, s.guard(r))
		if r.adapter {
			s.mux.Handle(r.method+" /at/{instance}"+r.path, s.guard(r))
		}
	}
	var err error
	if s.doc, err = json.MarshalIndent(document(s.routes()), "", "  "); err != nil {
		return nil, fmt.Errorf("write the OpenAPI document: %w", err)
	}
	return s, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Do runs f on the book, alone. It is how the gateway plans and predicts without
// a request to itself; f must not wait.
func (s *Server) Do(f func(now fleet.Time, b *exchange.Book)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.nowLocked()
	f(now, s.book)
	s.settleLocked()
}

// Plan opens a ticket for somebody in this process, once prepare, which may be
// nil, has made the book ready for it. When the ticket is closed, by whomever,
// ended is told, under a lock: it must not wait, nor ask the server anything.
func (s *Server) Plan(o exchange.Order, prepare func(fleet.Time, *exchange.Book) error, ended func(exchange.Ticket)) (t exchange.Ticket, err error) {
	o.Notify = ended != nil
	s.Do(func(now fleet.Time, b *exchange.Book) {
		if prepare != nil {
			if err = prepare(now, b); err != nil {
				return
			}
		}
		if t, _, err = b.Plan(now, o); err == nil && ended != nil {
			s.followed[o.ID] = ended
		}
	})
	return t, err
}

// Forget tells whoever planned a ticket nothing more of it: who closes it knows.
func (s *Server) Forget(id string) {
	s.mu.Lock()
	delete(s.followed, id)
	s.mu.Unlock()
}

// nowLocked is the present, and what was due by then is done.
func (s *Server) nowLocked() fleet.Time {
	now := fleet.Time(time.Since(s.start))
	s.book.Advance(now)
	if s.grace != 0 && now >= s.grace {
		s.grace = 0
		s.followLocked()
	}
	s.settleLocked()
	return now
}

// Clock is a time of the book on the clock of the wall.
func (s *Server) Clock(t fleet.Time) time.Time { return s.clock(t) }

// clock is a time of the book on the clock of the wall.
func (s *Server) clock(t fleet.Time) time.Time { return s.start.Add(time.Duration(t)).UTC() }

// settleLocked lets what hangs on instances follow them, and wakes who watches.
func (s *Server) settleLocked() {
	if c := s.book.Census(); c != s.census {
		s.census = c
		s.followLocked()
		if s.o.Census != nil {
			s.o.Census()
		}
	}
	for _, t := range s.book.Ended() {
		if f := s.followed[t.ID]; f != nil {
			delete(s.followed, t.ID)
			f(t)
		}
	}
	if r := s.book.Revision(); r != s.revision {
		s.revision = r
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// guard lets in who may use the exchange.
func (s *Server) guard(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !rt.open {
			if status, why := s.stranger(r, rt.adapter); status != 0 {
				s.count("stranger")
				if status == http.StatusUnauthorized {
					w.Header().Set("WWW-Authenticate", "Bearer")
				}
				fail(w, status, errors.New(why))
				return
			}
		}
		r.Body = http.MaxBytesReader(w, r.Body, max(rt.most, maxBody))
		rt.handle(w, r)
	})
}

// stranger says why a request is not let in, or 0.
func (s *Server) stranger(r *http.Request, adapter bool) (status int, why string) {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return 0, ""
	}
	got, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if s.o.Token != "" && bearer && subtle.ConstantTimeCompare([]byte(got), []byte(s.o.Token)) == 1 {
		return 0, ""
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	if adapter && s.o.TrustFleet && s.o.Admit(host) == nil {
		return 0, ""
	}
	if s.o.Token != "" {
		return http.StatusUnauthorized, "the exchange wants its token, Authorization: Bearer …, or a client certificate"
	}
	// The name as well as the peer: a web page elsewhere reaches loopback through
	// a browser, but not by a loopback name.
	if !loopback(host) || !loopback(nameOf(r.Host)) {
		return http.StatusForbidden, "without a token the exchange answers loopback only"
	}
	return 0, ""
}

// nameOf is the name in the Host header.
func nameOf(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.Trim(hostport, "[]")
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func admitLoopback(host string) error {
	if !loopback(host) {
		return errors.New("no fleet is configured, so only loopback is admitted")
	}
	return nil
}

// errForeign marks an address that is none of the fleet's.
var errForeign = errors.New("is not an address of the fleet")

// admit checks a host that engines would be sent to.
func (s *Server) admit(field, host string) error {
	if host == "" || len(host) > exchange.MaxName || strings.ContainsFunc(host, notInHost) {
		return fmt.Errorf("%s: %q is no host", field, host)
	}
	if err := s.o.Admit(host); err != nil {
		return fmt.Errorf("%s: %q %w: %w", field, host, errForeign, err)
	}
	return nil
}

// notInHost finds what is in no name and no address, such as a path or a user.
func notInHost(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_:", r))
}

// Bounds of bodies in bytes.
const (
	maxBody = 1 << 20
	maxBlob = 4 << 20
)

// read decodes a body that must be one JSON value of v's form.
func read(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("read the body: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("read the body: more than one JSON value")
	}
	return nil
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the reader may have gone
}

func text(w http.ResponseWriter, status int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, s) // the reader may have gone
}

// problem is the body of every refusal.
type problem struct {
	Error   string            `json:"error"`
	Verdict *exchange.Verdict `json:"verdict,omitempty"`
}

func fail(w http.ResponseWriter, status int, err error) {
	reply(w, status, problem{Error: err.Error()})
}

// refuse answers with the status that an error asks for.
func (s *Server) refuse(w http.ResponseWriter, err error) {
	status, name := statusOf(err)
	s.count(name)
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "5")
	}
	fail(w, status, err)
}

// statusOf is the status of an error, and the name under which it is counted.
func statusOf(err error) (int, string) {
	var large *http.MaxBytesError
	switch {
	case errors.Is(err, exchange.ErrUnknown), errors.Is(err, exchange.ErrNoTicket):
		return http.StatusNotFound, "unknown"
	case errors.Is(err, exchange.ErrStale):
		return http.StatusConflict, "stale"
	case errors.Is(err, exchange.ErrIncompatible):
		return http.StatusConflict, "incompatible"
	case errors.Is(err, exchange.ErrState):
		return http.StatusConflict, "state"
	case errors.Is(err, exchange.ErrFull):
		return http.StatusServiceUnavailable, "full"
	case errors.Is(err, errForeign):
		return http.StatusForbidden, "address"
	case errors.As(err, &large):
		return http.StatusRequestEntityTooLarge, "large"
	}
	return http.StatusBadRequest, "malformed"
}

// count counts a refusal.
func (s *Server) count(name string) {
	s.mu.Lock()
	s.refused[name]++
	s.mu.Unlock()
}

// Status is the exchange in figures, for metrics and people.
type Status struct {
	Instances map[string]int    // by role
	Tickets   exchange.Tally    //
	Stages    map[string]int    // open tickets by stage
	Refused   map[string]uint64 // requests, by why: stranger, stale, incompatible, address, …
	Links     []exchange.State
	Blobs     int // bytes
	Keys      int // of Mooncake's metadata
	Watching  int // requests that wait for a change
}

// Status returns the figures of now.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nowLocked()
	st := Status{
		Instances: map[string]int{}, Tickets: s.book.Tally(), Stages: map[string]int{}, Refused: map[string]uint64{},
		Links: s.book.Links().List(), Blobs: s.blobs.bytes, Keys: len(s.keys.at), Watching: s.watching,
	}
	for _, e := range s.book.Entries() {
		st.Instances[e.Role]++
	}
	for _, t := range s.book.Tickets() {
		if t.Stage.Open() {
			st.Stages[string(t.Stage)]++
		}
	}
	maps.Copy(st.Refused, s.refused)
	return st
}
