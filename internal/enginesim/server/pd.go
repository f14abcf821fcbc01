package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
)

// What an engine is there for when a request is computed in two legs. With vLLM's
// connectors that is only what operators call it: any engine takes either leg, and
// whole requests.
const (
	RoleBoth    = "both"
	RolePrefill = "prefill"
	RoleDecode  = "decode"
)

// The ways for the legs of a request to find each other and hand over its KV.
const (
	NIXL     = "nixl"      // vLLM: the prompt's leg first, then the other one pulls
	NIXLPush = "nixl-push" // vLLM: both at once, known by a transfer_id
	Mooncake = "mooncake"  // vLLM: both at once, known by a transfer_id, found over a bootstrap server
	Rooms    = "sglang"    // SGLang: both at once, known by a bootstrap_room
	Shared   = "shared"    // vLLM: a store that all share
	Offload  = "offload"   // vLLM: the prompt's leg first, and prefixes from peers
)

// What becomes of a request whose KV cannot be fetched.
const (
	LoadFail      = "fail"
	LoadRecompute = "recompute"
)

// How blocks are named to others.
const (
	BlockInts    = "int"
	BlockStrings = "string"
)

// PDOptions say how an engine shares requests with others: one computes the
// prompt, another takes over its KV and answers. Durations are of the wall clock,
// whatever the speedup, but for LinkLatency.
type PDOptions struct {
	Role      string // RoleBoth, RolePrefill or RoleDecode; empty: RoleBoth
	Connector string // empty: none, and what requests say of transfers is ignored
	// SideChannel is where others fetch KV, and Bootstrap where they ask who is
	// there; the index among replicas and the rank are added to ports other than 0.
	SideChannel string // empty: 127.0.0.1:0
	Bootstrap   string // of Mooncake and Rooms; empty: 127.0.0.1:0
	SharedDir   string // of Shared

	Link        float64       // bytes per second that can leave the engine; 0: 50e9
	LinkLatency time.Duration // of each transfer; 0: 1 ms
	Lease       time.Duration // for which blocks are kept to be fetched; 0: 30 s
	Wait        time.Duration // for the other leg and for the transfer; 0: 5 minutes
	PullStall   time.Duration // that a source which does not answer costs; 0: 50 ms
	LoadFailure string        // LoadFail or LoadRecompute; empty: LoadFail
	BlockIDs    string        // BlockInts or BlockStrings; empty: BlockInts
}

func (o PDOptions) withDefaults() PDOptions {
	fill(&o.Role, RoleBoth)
	fill(&o.SideChannel, "127.0.0.1:0")
	fill(&o.Bootstrap, "127.0.0.1:0")
	fill(&o.Link, 50e9)
	fill(&o.LinkLatency, time.Millisecond)
	fill(&o.Lease, 30*time.Second)
	fill(&o.Wait, 5*time.Minute)
	fill(&o.PullStall, 50*time.Millisecond)
	fill(&o.LoadFailure, LoadFail)
	fill(&o.BlockIDs, BlockInts)
	return o
}

// checkPD looks at the options of transfers.
func (o Options) checkPD(check func(ok bool, name string, value any, want string)) {
	p := o.PD
	one := func(name, value string, of ...string) {
		check(slices.Contains(of, value), name, value, "one of "+strings.Join(of, ", "))
	}
	one("role", p.Role, RoleBoth, RolePrefill, RoleDecode)
	if p.Connector != "" {
		one("kv-connector", p.Connector, NIXL, NIXLPush, Mooncake, Rooms, Shared, Offload)
	}
	one("kv-load-failure", p.LoadFailure, LoadFail, LoadRecompute)
	one("kv-block-ids", p.BlockIDs, BlockInts, BlockStrings)
	for name, address := range map[string]string{"kv-side-channel": p.SideChannel, "kv-bootstrap": p.Bootstrap} {
		_, err := kvAddress(address, 0)
		check(err == nil, name, address, "an address with a port")
	}
	rooms := p.Connector == Rooms
	check(p.Connector == "" || rooms == (o.Engine == SGLang), "kv-connector", p.Connector, "sglang with SGLang, another with vLLM")
	check(!rooms || p.Role != RoleBoth, "role", p.Role, "prefill or decode: both legs of SGLang's requests look the same")
	check((p.Connector == Shared) == (p.SharedDir != ""), "kv-shared-dir", p.SharedDir, "it with the connector shared, and only then")
	check(p.Link > 0, "kv-link", p.Link, "a number above 0")
	check(p.LinkLatency > 0 && p.Lease > 0 && p.Wait > 0, "kv-lease", p.Lease, "durations above 0")
}

// pd is an engine's part in requests of two legs. What follows tickets is guarded
// by Server.mu.
type pd struct {
	options PDOptions
	// bytes of KV that a token has on all accelerators together.
	bytes   float64
	speedup float64
	latency time.Duration // as the wall clock sees it
	total   int           // blocks
	tp      int
	facts   []string // what must be alike in both engines
	dial    func(ctx context.Context, address string) (net.Conn, error)
	epoch   time.Time

	tickets     map[string]*ticket
	over        []string // names of the latest that have ended unfetched
	engineID    string   // new for each process
	incarnation uint64   // follows from it
	host        string
	port        int
	bootstrap   string              // address of the bootstrap server; empty for none
	workers     map[string]worker   // registered there, by data-parallel rank
	taken       map[int]struct{}    // numbers of blocks of tickets
	lastBlock   int                 // number given last
	free        time.Time           // when the link is
	room        chan struct{}       // closed when blocks or places may have become free
	incoming    int                 // requests whose KV is being fetched
	arriving    int                 // of those, how many have room
	reserved    int                 // blocks they will take
	records     []record            // of transfers that are over, the last ones
	counts      counts              // since the process was started
	conns       map[net.Conn]string // of the side channel
}

// newPD returns the part in transfers that options with defaults filled in say;
// nil for none.
func newPD(o Options) *pd {
	if o.PD.Connector == "" {
		return nil
	}
	v, err := o.serving()
	if err != nil {
		panic(err) // valid options serve
	}
	v = v.Normal()
	p := &pd{
		options: o.PD, speedup: o.Speedup, bytes: v.Shape.KVBytes(v.KV.Bytes()), tp: o.TP,
		latency: time.Duration(float64(o.PD.LinkLatency) / o.Speedup), total: int(o.KVTokens / enginesim.BlockTokens),
		facts: []string{
			"engine " + o.Engine + " " + Version, "connector " + o.PD.Connector + " " + connectorVersion, "model " + v.Shape.Name,
			fmt.Sprintf("weights %v", v.Weights), fmt.Sprintf("kv cache %v", v.KV),
			fmt.Sprintf("%d layers, %d heads of %d", v.Shape.Layers, v.Shape.KVHeads, v.Shape.HeadDim),
		},
		dial: dialTCP, epoch: time.Now(),
		tickets: map[string]*ticket{}, taken: map[int]struct{}{}, conns: map[net.Conn]string{}, workers: map[string]worker{},
		room: make(chan struct{}), host: "127.0.0.1",
	}
	p.rename()
	return p
}

// connectorVersion is what vLLM's NIXL connector has reached by Version.
const connectorVersion = "12"

// clock is the engine's own, in seconds since its process began.
func (p *pd) clock(t time.Time) float64 { return t.Sub(p.epoch).Seconds() }

// rename makes p a new process.
func (p *pd) rename() {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	p.engineID = hex.EncodeToString(b[:])
	p.incarnation = incarnationOf(p.engineID)
}

// incarnationOf is what the blocks of a process are marked with. The one who
// fetches them knows it from the engine id that it was given.
func incarnationOf(engineID string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(engineID))
	return h.Sum64()
}

// The states of a ticket.
const (
	ticketAwaited = "awaited" // somebody wants to fetch what nobody has begun to compute
	ticketPrefill = "prefill" // the prompt is waiting or being computed
	ticketReady   = "ready"   // its blocks are kept
	ticketPulling = "pulling"
	ticketDone    = "done"
	ticketExpired = "expired"
	ticketAborted = "aborted"
)

// ticket is a prompt to be fetched, as its source knows it.
type ticket struct {
	name     string // to others
	state    string
	reason   string // why it was aborted
	unwanted bool   // nobody will fetch it
	leg      *leg   // whose answer waits for the transfer; nil if it does not
	claimed  bool   // a request computes it, or has
	waiting  int    // who want it before it is ready

	ready chan struct{} // closed when it is, or never will be
	over  bool          // that is so
	until time.Time     // the lease, or the end of waiting
	id    fleet.ReqID   // in the engine

	keys        []uint64 // of the prompt's blocks; the last one may be partial
	tokens      int
	blocks      []int
	incarnation uint64

	sent record // what has been fetched of it
}

// move is a request's part in a transfer.
type move struct {
	keep   bool           // it computes the prompt for another engine
	name   string         // that both legs know the transfer by; empty until its end if the prompt's leg goes first
	waits  bool           // its answer does, for the transfer
	dies   bool           // the process does, before its answer
	lease  *time.Duration // by order; nil for the usual one
	from   kvParams
	room   *roomParams
	source *peer // has some of the prompt's prefix; nil for none

	threshold *float64 // of hits; nil for none
	short     bool     // it has fewer
	received  int      // tokens of the prompt that have come with their KV
	answer    []byte   // what the answer says for the next leg
}

// hold is called when a prompt to be kept has been computed, and its blocks are
// held. It reports whether the answer has to wait.
func (s *Server) hold(id fleet.ReqID, l *leg) bool {
	m := l.choice.move
	p := s.pd
	switch {
	case p == nil:
		return false
	case m == nil || !m.keep:
		return s.storeLater(l)
	case m.dies:
		go s.crash()
		return true
	case !l.choice.keeps():
		if t := p.tickets[m.name]; t != nil && !l.choice.repeat {
			s.closeTicket(t, ticketAborted, "its answer has ended by itself, not by its limit")
		}
		return false
	}
	t := p.tickets[m.name]
	if m.name == "" {
		t = p.newTicket(fmt.Sprintf("%s-%08x", l.call.id, uint64(id)))
	}
	if t == nil || t.unwanted {
		s.engine.Release(s.now(), id)
		if t != nil {
			s.closeTicket(t, ticketDone, "not wanted")
		}
		return false
	}
	t.id, t.keys, t.tokens, t.incarnation = id, l.choice.keys(), l.choice.prompt, p.incarnation
	t.blocks = p.number(len(t.keys))
	t.state, t.until = ticketReady, time.Now().Add(p.options.Lease)
	if m.lease != nil {
		t.until = time.Now().Add(*m.lease)
	}
	t.open()
	p.counts.Kept++
	if p.options.Connector == NIXL || p.options.Connector == NIXLPush {
		m.answer = p.answer(t)
	}
	if m.waits {
		t.leg = l
	}
	return m.waits
}

// open lets those go on who wait for t.
func (t *ticket) open() {
	if !t.over {
		t.over = true
		close(t.ready)
	}
}

func (p *pd) newTicket(name string) *ticket {
	t := &ticket{name: name, state: ticketPrefill, ready: make(chan struct{})}
	p.tickets[name] = t
	return t
}

// claim makes a request the one that computes what the name stands for.
func (s *Server) claim(m *move) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pd
	t := p.tickets[m.name]
	if t != nil && t.claimed {
		m.keep, m.name = false, "" // it is not this request's to end
		return badRequest("", "transfer %s is under way: another request computes it", t.name)
	}
	if t == nil {
		t = p.newTicket(m.name)
	}
	t.claimed, t.state = true, ticketPrefill
	return nil
}

// number gives numbers to n blocks, none of them in use.
func (p *pd) number(n int) []int {
	list := make([]int, 0, n)
	for len(list) < n && len(p.taken) < p.total {
		if p.lastBlock++; p.lastBlock >= p.total {
			p.lastBlock = 0
		}
		if _, ok := p.taken[p.lastBlock]; !ok {
			p.taken[p.lastBlock] = struct{}{}
			list = append(list, p.lastBlock)
		}
	}
	return list
}

// closeTicket ends t, and frees its blocks. It needs s.mu.
func (s *Server) closeTicket(t *ticket, state, reason string) {
	p := s.pd
	if p.tickets[t.name] != t {
		return
	}
	delete(p.tickets, t.name)
	if state != ticketDone && t.id != 0 {
		const most = 1024
		p.over = append(p.over[max(len(p.over)-most, 0):], t.name)
	}
	for _, b := range t.blocks {
		delete(p.taken, b)
	}
	t.state, t.reason = state, reason
	t.open()
	if t.id != 0 {
		s.engine.Release(s.now(), t.id)
		r := t.sent
		r.ID, r.Side, r.State, r.Reason = t.name, "out", state, reason
		p.note(r)
	}
	switch {
	case t.id == 0:
	case state == ticketDone:
		p.counts.Freed++
	case state == ticketExpired:
		p.counts.Expired++
	default:
		p.counts.Aborted++
	}
	if l := t.leg; l != nil {
		var err error
		if state != ticketDone {
			err = &apiError{http.StatusInternalServerError, fmt.Sprintf("KVTransferError(%s): %s %s", t.name, state, reason), ""}
		}
		s.endLater(t.id, l, err)
	}
	s.rousePD()
}

// endLater ends a leg whose answer has waited. It needs s.mu.
func (s *Server) endLater(id fleet.ReqID, l *leg, err error) {
	if s.legs[id] != l {
		return
	}
	if err != nil {
		l.call.fail(err)
	}
	l.state.Store(legDone)
	s.remove(id)
	nudge(l.call.wake)
}

// rousePD lets requests look again whether there is room for them. It needs s.mu.
func (s *Server) rousePD() {
	if s.pd != nil && s.pd.incoming > 0 {
		close(s.pd.room)
		s.pd.room = make(chan struct{})
	}
	nudge(s.wake)
}

// watchLeases ends the leases that are over, and says when to look again, if that
// is before wait. It needs s.mu.
func (s *Server) watchLeases(wait time.Duration, ok bool) (time.Duration, bool) {
	if s.pd == nil {
		return wait, ok
	}
	now := time.Now()
	for _, t := range s.pd.tickets {
		if t.until.IsZero() || t.state == ticketPrefill {
			continue
		}
		left := t.until.Sub(now)
		if left <= 0 {
			s.closeTicket(t, ticketExpired, "nobody came in time")
			continue
		}
		if !ok || left < wait {
			wait, ok = left, true
		}
	}
	return wait, ok
}

// leave ends what a request was to compute for another, if it has not.
func (s *Server) leave(choices []choice) {
	if s.pd == nil || len(choices) == 0 || choices[0].move == nil || !choices[0].move.keep {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.pd.tickets[choices[0].move.name]
	if t != nil && (t.state == ticketPrefill || t.leg != nil) {
		t.leg = nil
		s.closeTicket(t, ticketAborted, "its request was aborted")
	}
}

// answered is called when the whole answer has been sent.
func (s *Server) answered(w http.ResponseWriter, choices []choice) {
	if s.pd == nil || len(choices) == 0 || choices[0].move == nil || !choices[0].move.keep {
		return
	}
	if _, ok := s.faults.hit("pd-die-after", false); ok {
		_ = http.NewResponseController(w).Flush() // the client may be gone
		s.die()
	}
	if _, ok := s.faults.hit("pd-restart-after", false); ok {
		s.restartPD()
	}
}

// die ends the process in the middle of a request.
func (s *Server) die() {
	go s.crash()
	<-s.closed
	panic(http.ErrAbortHandler)
}

// lose forgets what was kept: the cache has been dropped. It needs s.mu.
func (s *Server) lose(reason string) {
	if s.pd == nil {
		return
	}
	for _, t := range s.pd.tickets {
		if t.id != 0 {
			s.closeTicket(t, ticketAborted, reason)
		}
	}
}

// restartPD is a new process at the same addresses, as far as anybody can see:
// it has another id, nothing is cached, and what was under way is broken off.
func (s *Server) restartPD() {
	if s.kv != nil {
		s.restartKV(false)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.legs {
		l.call.fail(errStopped)
		s.abortLocked(l.call)
	}
	s.engine.DropCache(s.now(), true)
	p := s.pd
	for _, t := range p.tickets {
		s.closeTicket(t, ticketAborted, "the process has ended")
	}
	for c := range p.conns {
		c.Close()
	}
	p.rename()
	s.register()
	nudge(s.wake)
}

// reserve books a transfer on the link, and says how long it waits for its turn
// and how long it then takes. It needs s.mu.
func (p *pd) reserve(tokens int, slow float64) (wait, took time.Duration) {
	now := time.Now()
	if p.free.Before(now) {
		p.free = now
	}
	wait = p.free.Sub(now)
	took = time.Duration(p.bytes * float64(tokens) / p.options.Link / p.speedup * slow * float64(time.Second))
	p.free = p.free.Add(took)
	return wait, took + time.Duration(float64(p.latency)*slow)
}

// keeps reports whether the blocks of c are kept after its end.
func (c *choice) keeps() bool {
	return c.move != nil && c.move.keep && !c.repeat && c.answer.finish == enginesim.FinishLength
}

// received is how much of its prompt has come from elsewhere.
func (c *choice) received() fleet.Tokens {
	if c.move == nil {
		return 0
	}
	return fleet.Tokens(c.move.received)
}

// keys returns a key for each block of the prompt, a partial one at the end too.
func (c *choice) keys() []uint64 {
	keys, last := enginesim.Chain(nil, startOf(c.adapter, c.salt), c.tokens)
	if len(c.tokens)%int(enginesim.BlockTokens) != 0 {
		keys = append(keys, last.Key())
	}
	return keys
}

// mode is what SGLang calls the role.
func (p *pd) mode() string {
	if p == nil || p.options.Role == RoleBoth {
		return "null"
	}
	return p.options.Role
}

// idleCall is a call of n sequences that have ended without a token.
func idleCall(n int) *call {
	c := &call{legs: make([]leg, n), wake: make(chan struct{}, 1)}
	for i := range c.legs {
		c.legs[i].state.Store(legDone)
	}
	nudge(c.wake)
	return c
}

// appendNext appends what the request's next leg needs to know, if there is one.
func (g *generation) appendNext(b []byte) []byte {
	if m := g.choices[0].move; m != nil && m.answer != nil {
		b = append(b, `,"kv_transfer_params":`...)
		b = append(b, m.answer...)
	}
	return g.appendEncoded(b)
}

// failBegun answers with an error that a stream tells of inside: KV that could not
// be fetched.
func (s *Server) failBegun(w http.ResponseWriter, r *http.Request, err error, stream bool) {
	if failure, ok := errors.AsType[*apiError](err); ok && stream && failure.status == http.StatusInternalServerError {
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		writeErrorEvent(w, failure)
		return
	}
	s.fail(w, r, err)
}

// writeErrorEvent ends a stream with an error, as vLLM and SGLang do.
func writeErrorEvent(w http.ResponseWriter, e *apiError) {
	b := append([]byte("data: "), appendJSON(nil, map[string]any{
		"error": map[string]any{"message": e.message, "type": kindOf(e.status), "param": nil, "code": e.status},
	})...)
	w.Write(append(b, "\n\ndata: [DONE]\n\n"...))
}
