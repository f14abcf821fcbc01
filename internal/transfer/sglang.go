package transfer

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"time"

	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
)

// topology is what SGLang's bootstrap server keeps of one prefill instance: where
// its ranks listen, and which of them has a request.
type topology struct {
	shape shape
	ranks map[place]*rankAddr
	rooms map[int64]room
}

// place is a rank: data, context, tensor, pipeline.
type place struct{ dp, cp, tp, pp int }

// rankAddr is where a rank listens.
type rankAddr struct {
	tag
	port int
}

// room is a request's data-parallel rank.
type room struct {
	dp int
	at fleet.Time
}

// shape is what all ranks of an instance tell alike. The last two are told by
// newer engines only, and older ones refuse to read them: they are answered when
// they were told.
type shape struct {
	AttnTPSize          int     `json:"attn_tp_size"`
	AttnCPSize          int     `json:"attn_cp_size"`
	DPSize              int     `json:"dp_size"`
	PPSize              int     `json:"pp_size"`
	PageSize            *int    `json:"page_size"`
	KVCacheDType        *string `json:"kv_cache_dtype"`
	FollowBootstrapRoom bool    `json:"follow_bootstrap_room"`
	LayerSplit          *bool   `json:"enable_dsa_cache_layer_split,omitempty"`
	PrefillHTTPPort     *int    `json:"prefill_http_port,omitempty"`
}

// all is how many ranks there are.
func (s shape) all() int { return s.AttnTPSize * s.AttnCPSize * s.DPSize * s.PPSize }

// same reports whether two shapes are of one instance.
func (s shape) same(o shape) bool {
	return s.AttnTPSize == o.AttnTPSize && s.AttnCPSize == o.AttnCPSize && s.DPSize == o.DPSize && s.PPSize == o.PPSize &&
		value(s.PageSize) == value(o.PageSize) && value(s.KVCacheDType) == value(o.KVCacheDType)
}

// value is what p points to, or nothing.
func value[T any](p *T) T {
	if p == nil {
		return *new(T)
	}
	return *p
}

// routePut is the body of PUT /route.
type routePut struct {
	AttnTPSize        int     `json:"attn_tp_size"`
	AttnTPRank        int     `json:"attn_tp_rank"`
	AttnCPSize        int     `json:"attn_cp_size"`
	AttnCPRank        int     `json:"attn_cp_rank"`
	AttnDPSize        int     `json:"attn_dp_size"`
	AttnDPRank        int     `json:"attn_dp_rank"`
	PPSize            int     `json:"pp_size"`
	PPRank            int     `json:"pp_rank"`
	SystemDPSize      int     `json:"system_dp_size"`
	SystemDPRank      int     `json:"system_dp_rank"`
	RankIP            string  `json:"rank_ip"`
	RankPort          int     `json:"rank_port"`
	PageSize          *int    `json:"page_size"`
	KVCacheDType      *string `json:"kv_cache_dtype"`
	LoadBalanceMethod string  `json:"load_balance_method,omitempty"`
	LayerSplit        *bool   `json:"enable_dsa_cache_layer_split,omitempty"`
	PrefillHTTPPort   *int    `json:"prefill_http_port,omitempty"`
}

// where returns the rank, and the shape of the whole.
func (p *routePut) where() (place, shape, error) {
	// One of the two data-parallelisms is in use: ranks that attend to their own
	// requests, or whole engines side by side.
	dp, size := p.SystemDPRank, p.SystemDPSize
	if p.SystemDPSize == 1 {
		dp, size = p.AttnDPRank, p.AttnDPSize
	}
	for _, n := range []struct {
		name       string
		rank, size int
	}{{"attn_tp", p.AttnTPRank, p.AttnTPSize}, {"attn_cp", p.AttnCPRank, p.AttnCPSize}, {"dp", dp, size}, {"pp", p.PPRank, p.PPSize}} {
		if n.size < 1 || n.size > exchange.MaxRanks || n.rank < 0 || n.rank >= n.size {
			return place{}, shape{}, fmt.Errorf("%s: rank %d of %d: want 0 <= rank < size <= %d", n.name, n.rank, n.size, exchange.MaxRanks)
		}
	}
	sh := shape{
		AttnTPSize: p.AttnTPSize, AttnCPSize: p.AttnCPSize, DPSize: size, PPSize: p.PPSize, PageSize: p.PageSize, KVCacheDType: p.KVCacheDType,
		FollowBootstrapRoom: p.LoadBalanceMethod == "" || p.LoadBalanceMethod == "follow_bootstrap_room", LayerSplit: p.LayerSplit, PrefillHTTPPort: p.PrefillHTTPPort,
	}
	switch {
	case sh.all() > exchange.MaxRanks: // each is at most that, so four of them cannot overflow
		return place{}, shape{}, fmt.Errorf("%d ranks: at most %d", sh.all(), exchange.MaxRanks)
	case p.RankPort < 1 || p.RankPort > 65535:
		return place{}, shape{}, fmt.Errorf("rank_port: must be between 1 and 65535, is %d", p.RankPort)
	case len(value(p.KVCacheDType)) > exchange.MaxName:
		return place{}, shape{}, fmt.Errorf("kv_cache_dtype: at most %d bytes", exchange.MaxName)
	}
	return place{dp, p.AttnCPRank, p.AttnTPRank, p.PPRank}, sh, nil
}

func (s *Server) putRoute(w http.ResponseWriter, r *http.Request) {
	var body routePut
	var at place
	var sh shape
	err := loose(r, &body)
	if err == nil {
		at, sh, err = body.where()
	}
	if err == nil {
		err = s.admit("rank_ip", body.RankIP)
	}
	if err == nil {
		err = instanceInPath(r)
	}
	if err == nil {
		s.Do(func(now fleet.Time, _ *exchange.Book) {
			err = s.routeLocked(now, s.whoseLocked(r), at, sh, body.RankIP, body.RankPort)
		})
	}
	if err != nil {
		status, name := statusOf(err)
		s.count(name)
		text(w, status, err.Error())
		return
	}
	text(w, http.StatusOK, "OK")
}

// routeLocked takes a rank on. One that moves, or tells another shape, is of a
// new process: the others of the old one are forgotten, so that nobody is given
// half of each.
func (s *Server) routeLocked(now fleet.Time, instance string, at place, sh shape, host string, port int) error {
	r, err := s.topologyLocked(instance)
	if err != nil {
		return err
	}
	old := r.ranks[at]
	moved := old != nil && (old.host != host || old.port != port)
	if moved || len(r.ranks) > 0 && !r.shape.same(sh) {
		clear(r.ranks)
	}
	r.shape = sh
	r.ranks[at] = &rankAddr{s.tagLocked(now, instance, host), port}
	return nil
}

// topologyLocked returns the topology of an instance, making them.
func (s *Server) topologyLocked(instance string) (*topology, error) {
	if r, ok := s.sglang[instance]; ok {
		return r, nil
	}
	if len(s.sglang) >= s.o.Book.MaxInstances {
		maps.DeleteFunc(s.sglang, func(_ string, r *topology) bool { return len(r.ranks)+len(r.rooms) == 0 })
	}
	if len(s.sglang) >= s.o.Book.MaxInstances {
		return nil, fmt.Errorf("%w: there are %d bootstraps already", exchange.ErrFull, len(s.sglang))
	}
	r := &topology{ranks: map[place]*rankAddr{}, rooms: map[int64]room{}}
	s.sglang[instance] = r
	return r, nil
}

// rankInfo answers GET /route for one rank.
type rankInfo struct {
	RankIP   string `json:"rank_ip"`
	RankPort int    `json:"rank_port"`
}

func (s *Server) getRoute(w http.ResponseWriter, r *http.Request) {
	want, whole, err := asked(r)
	if err != nil {
		text(w, http.StatusBadRequest, err.Error())
		return
	}
	var sh shape
	var rank rankInfo
	in, found := 0, false
	s.Do(func(_ fleet.Time, _ *exchange.Book) {
		rs := s.sglang[s.whoseLocked(r)]
		if rs == nil {
			return
		}
		for at, e := range rs.ranks {
			if s.staleLocked(e.tag) {
				delete(rs.ranks, at)
			}
		}
		sh, in = rs.shape, len(rs.ranks)
		if e := rs.ranks[want]; e != nil {
			rank, found = rankInfo{e.host, e.port}, true
		}
	})
	switch {
	case in == 0 || in < sh.all():
		text(w, http.StatusServiceUnavailable, fmt.Sprintf("Prefill server not fully registered yet (%d workers registered).", in))
	case whole:
		reply(w, http.StatusOK, sh)
	case !found:
		text(w, http.StatusNotFound, fmt.Sprintf("Bootstrap info not found for dp_rank=%d cp_rank=%d tp_rank=%d pp_rank=%d", want.dp, want.cp, want.tp, want.pp))
	default:
		reply(w, http.StatusOK, rank)
	}
}

// asked reads which rank is asked for; all -1 is for the shape of the whole.
func asked(r *http.Request) (at place, whole bool, err error) {
	q := r.URL.Query()
	minus := 0
	for _, p := range []struct {
		name string
		to   *int
	}{{"prefill_dp_rank", &at.dp}, {"prefill_cp_rank", &at.cp}, {"target_tp_rank", &at.tp}, {"target_pp_rank", &at.pp}} {
		v := q.Get(p.name)
		if v == "" {
			return at, false, errors.New("Missing inputs for bootstrap server.") //nolint:staticcheck,revive // SGLang's own words
		}
		if *p.to, err = strconv.Atoi(v); err != nil {
			return at, false, fmt.Errorf("%s: must be a number, is %q", p.name, v)
		}
		if *p.to == -1 {
			minus++
		}
	}
	return at, minus == 4, nil
}

// How long a request's rank is remembered, and of how many requests.
const (
	roomFor  = 2 * time.Minute
	maxRooms = 65536
)

// dpRank is the body of POST /register_dp_rank.
type dpRank struct {
	BootstrapRoom int64 `json:"bootstrap_room"`
	DPRank        int   `json:"dp_rank"`
}

func (s *Server) postDPRank(w http.ResponseWriter, r *http.Request) {
	var body dpRank
	err := loose(r, &body)
	if err == nil && (body.BootstrapRoom < 0 || body.DPRank < 0 || body.DPRank >= exchange.MaxRanks) {
		err = fmt.Errorf("want a bootstrap_room that is not negative and a dp_rank below %d", exchange.MaxRanks)
	}
	if err == nil {
		err = instanceInPath(r)
	}
	if err == nil {
		s.Do(func(now fleet.Time, _ *exchange.Book) { err = s.enterLocked(now, s.whoseLocked(r), body) })
	}
	if err != nil {
		status, name := statusOf(err)
		s.count(name)
		text(w, status, err.Error())
		return
	}
	text(w, http.StatusOK, "OK")
}

// enterLocked remembers a request's rank. When there are too many, those whose
// time is over make room.
func (s *Server) enterLocked(now fleet.Time, instance string, p dpRank) error {
	r, err := s.topologyLocked(instance)
	if err != nil {
		return err
	}
	all := 0
	for _, o := range s.sglang {
		all += len(o.rooms)
	}
	if all >= maxRooms && s.emptyLocked(now) == 0 {
		return fmt.Errorf("%w: %d rooms within %v", exchange.ErrFull, maxRooms, roomFor)
	}
	r.rooms[p.BootstrapRoom] = room{p.DPRank, now}
	return nil
}

// emptyLocked takes out the rooms whose time is over, and returns how many.
func (s *Server) emptyLocked(now fleet.Time) int {
	n := 0
	for _, r := range s.sglang {
		for id, o := range r.rooms {
			if now.Sub(o.at) > roomFor {
				delete(r.rooms, id)
				n++
			}
		}
	}
	return n
}

// roomQuery is the body of POST /query_dp_ranks.
type roomQuery struct {
	BootstrapRooms []int64 `json:"bootstrap_rooms"`
}

func (s *Server) postQueryDPRanks(w http.ResponseWriter, r *http.Request) {
	var body roomQuery
	if err := loose(r, &body); err != nil {
		text(w, http.StatusBadRequest, err.Error())
		return
	}
	answer := map[string]int{}
	s.Do(func(now fleet.Time, _ *exchange.Book) {
		rs := s.sglang[s.whoseLocked(r)]
		if rs == nil {
			return
		}
		for _, id := range body.BootstrapRooms {
			if o, ok := rs.rooms[id]; ok && now.Sub(o.at) <= roomFor {
				answer[strconv.FormatInt(id, 10)] = o.dp
			}
		}
	})
	reply(w, http.StatusOK, answer)
}
