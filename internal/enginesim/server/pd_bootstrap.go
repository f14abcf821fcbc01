package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"penstock.dev/penstock/internal/enginesim"
)

// worker is what a bootstrap server knows of one data-parallel rank: Mooncake's
// view of it.
type worker struct {
	EngineID string                       `json:"engine_id"`
	Address  map[string]map[string]string `json:"worker_addr"` // by tensor rank, by pipeline rank
}

// rank is what SGLang's ranks say of themselves.
type rank struct {
	Role       string `json:"role,omitempty"`
	TPSize     int    `json:"attn_tp_size"`
	TPRank     int    `json:"attn_tp_rank"`
	CPSize     int    `json:"attn_cp_size"`
	CPRank     int    `json:"attn_cp_rank"`
	DPSize     int    `json:"attn_dp_size"`
	DPRank     int    `json:"attn_dp_rank"`
	PPSize     int    `json:"pp_size"`
	PPRank     int    `json:"pp_rank"`
	SystemDP   int    `json:"system_dp_size"`
	SystemRank int    `json:"system_dp_rank"`
	IP         string `json:"rank_ip"`
	Port       int    `json:"rank_port"`
	PageSize   int    `json:"page_size"`
	KVType     string `json:"kv_cache_dtype"`
	Balance    string `json:"load_balance_method"`
}

// bootstraps reports whether there is a bootstrap server: on the prompt's side of
// the connectors that have one.
func (p *pd) bootstraps() bool {
	return p != nil && p.options.Role != RoleDecode && (p.options.Connector == Mooncake || p.options.Connector == Rooms)
}

// register tells the bootstrap server of this engine. It needs s.mu.
func (s *Server) register() {
	p := s.pd
	if !p.bootstraps() {
		return
	}
	p.workers[strconv.Itoa(s.options.KVRank)] = worker{
		p.engineID, map[string]map[string]string{"0": {"0": "tcp://" + p.address()}},
	}
}

// address is that of the side channel.
func (p *pd) address() string { return net.JoinHostPort(p.host, strconv.Itoa(p.port)) }

// self is what the engine says of itself to others of SGLang.
func (s *Server) self() rank {
	p := s.pd
	return rank{
		Role: "Prefill", TPSize: 1, CPSize: 1, DPSize: 1, PPSize: 1, SystemDP: 1, IP: p.host, Port: p.port,
		PageSize: int(enginesim.BlockTokens), KVType: "auto", Balance: "round_robin",
	}
}

// bootstrapHandler is where decode engines ask who is there.
func (s *Server) bootstrapHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "OK") })
	if s.pd.options.Connector == Mooncake {
		mux.HandleFunc("POST /register", s.registerWorker)
		mux.HandleFunc("GET /query", s.showWorkers)
		return mux
	}
	mux.HandleFunc("PUT /route", s.registerRank)
	mux.HandleFunc("GET /route", s.showRoute)
	return mux
}

func (s *Server) registerWorker(w http.ResponseWriter, r *http.Request) {
	var q struct {
		EngineID string `json:"engine_id"`
		DP       int    `json:"dp_rank"`
		TP       int    `json:"tp_rank"`
		PP       int    `json:"pp_rank"`
		Address  string `json:"addr"`
	}
	if err := readJSON(r, &q); err != nil || q.EngineID == "" || q.Address == "" {
		http.Error(w, "engine_id and addr must be given", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	dp, tp := strconv.Itoa(q.DP), strconv.Itoa(q.TP)
	known := s.pd.workers[dp]
	if known.EngineID != q.EngineID { // a new process
		known = worker{q.EngineID, map[string]map[string]string{}}
	}
	if known.Address[tp] == nil {
		known.Address[tp] = map[string]string{}
	}
	known.Address[tp][strconv.Itoa(q.PP)] = q.Address
	s.pd.workers[dp] = known
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

func (s *Server) showWorkers(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	writeJSON(w, http.StatusOK, s.pd.workers)
}

// registerRank takes what a rank says of itself; there is one here, and it knows.
func (s *Server) registerRank(w http.ResponseWriter, r *http.Request) {
	var q rank
	if err := readJSON(r, &q); err != nil || q.IP == "" || q.Port == 0 {
		http.Error(w, "rank_ip and rank_port must be given", http.StatusBadRequest)
		return
	}
	_, _ = io.WriteString(w, "OK")
}

// showRoute tells the topology when all ranks asked for are -1, and else where one
// is.
func (s *Server) showRoute(w http.ResponseWriter, r *http.Request) {
	if _, ok := s.faults.hit("pd-unregistered", false); ok {
		http.Error(w, "Prefill server not fully registered yet", http.StatusServiceUnavailable)
		return
	}
	all, absent := true, ""
	for _, name := range []string{"prefill_dp_rank", "prefill_cp_rank", "target_tp_rank", "target_pp_rank"} {
		n, err := strconv.Atoi(r.URL.Query().Get(name))
		if err != nil {
			http.Error(w, "Missing inputs for bootstrap server.", http.StatusBadRequest)
			return
		}
		if all = all && n == -1; n > 0 {
			absent = fmt.Sprintf("%s %d is not registered", name, n)
		}
	}
	if absent != "" {
		http.Error(w, absent, http.StatusNotFound)
		return
	}
	s.mu.Lock()
	self := s.self()
	s.mu.Unlock()
	if all {
		writeJSON(w, http.StatusOK, map[string]any{
			"attn_tp_size": self.TPSize, "attn_cp_size": self.CPSize, "dp_size": self.DPSize, "pp_size": self.PPSize,
			"page_size": self.PageSize, "kv_cache_dtype": self.KVType, "follow_bootstrap_room": false,
		})
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"rank_ip": self.IP, "rank_port": self.Port})
}

// ask reads JSON from a bootstrap server.
func (s *Server) ask(ctx context.Context, url string, v any) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, address string) (net.Conn, error) { return s.pd.dial(ctx, address) },
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("bootstrap server: %w", err)
	}
	resp, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("bootstrap server: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxLine))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, strings.TrimSpace(string(b)))
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return fmt.Errorf("bootstrap server: %w", err)
	}
	return nil
}

// askWorkers finds the side channel of a prefill engine of Mooncake: that of the
// id given or, without one, the first.
func (s *Server) askWorkers(ctx context.Context, bootstrap, engineID string) (address, id string, err error) {
	if !strings.Contains(bootstrap, "://") {
		bootstrap = "http://" + bootstrap
	}
	var workers map[string]worker
	if err := s.ask(ctx, strings.TrimSuffix(bootstrap, "/")+"/query", &workers); err != nil {
		return "", "", err
	}
	for _, dp := range slices.Sorted(maps.Keys(workers)) {
		if w := workers[dp]; engineID == "" || w.EngineID == engineID {
			return strings.TrimPrefix(w.Address["0"]["0"], "tcp://"), w.EngineID, nil
		}
	}
	return "", "", fmt.Errorf("bootstrap server: no engine %s is registered; it may have been restarted", engineID)
}

// askRoute finds the side channel of a prefill engine of SGLang.
func (s *Server) askRoute(ctx context.Context, at *roomParams) (string, error) {
	const query = "prefill_dp_rank=%d&prefill_cp_rank=%d&target_tp_rank=%d&target_pp_rank=%d"
	url := "http://" + net.JoinHostPort(at.Host, strconv.Itoa(*at.Port)) + "/route?"
	var topology struct {
		PageSize int    `json:"page_size"`
		KVType   string `json:"kv_cache_dtype"`
	}
	if err := s.ask(ctx, url+fmt.Sprintf(query, -1, -1, -1, -1), &topology); err != nil {
		return "", err
	}
	if self := s.self(); topology.PageSize != self.PageSize || topology.KVType != self.KVType {
		return "", fmt.Errorf("incompatible: page_size %d and kv_cache_dtype %s here, %d and %s there",
			self.PageSize, self.KVType, topology.PageSize, topology.KVType)
	}
	var at0 rank
	if err := s.ask(ctx, url+fmt.Sprintf(query, 0, 0, 0, 0), &at0); err != nil {
		return "", err
	}
	return net.JoinHostPort(at0.IP, strconv.Itoa(at0.Port)), nil
}

// listenPD opens the side channel and the bootstrap server.
func (n *Node) listenPD() error {
	s := n.Server
	p, o := s.pd, s.options
	if p == nil {
		return nil
	}
	open := func(first string) (net.Listener, error) {
		address, err := kvAddress(first, o.Replica+o.KVRank)
		if err != nil {
			return nil, err
		}
		return net.Listen("tcp", address)
	}
	side, err := open(o.PD.SideChannel)
	if err != nil {
		return fmt.Errorf("simulated engine: side channel: %w", err)
	}
	var boot net.Listener
	if p.bootstraps() {
		if boot, err = open(o.PD.Bootstrap); err != nil {
			return errors.Join(fmt.Errorf("simulated engine: bootstrap server: %w", err), side.Close())
		}
	}
	n.side = side
	at, _ := side.Addr().(*net.TCPAddr)
	s.mu.Lock()
	p.port = at.Port
	if !at.IP.IsUnspecified() {
		p.host = at.IP.String()
	}
	if boot != nil {
		p.bootstrap = boot.Addr().String()
	}
	s.register()
	s.mu.Unlock()
	n.acceptKV(side, s.ServeTransfers)
	if boot != nil {
		n.bootstrap = s.httpServerPD()
		n.work.Go(func() { serveHTTP(n.bootstrap, boot) })
	}
	return nil
}

func (s *Server) httpServerPD() *http.Server { return Config{}.httpServer(s.bootstrapHandler()) }

func (n *Node) closePD() {
	if n.side != nil {
		n.side.Close()
	}
	if n.bootstrap != nil {
		n.bootstrap.Close()
	}
}

// PDAddresses returns where KV is fetched and where the bootstrap server is, as
// host:port; empty for nowhere.
func (n *Node) PDAddresses() (side, bootstrap string) {
	p := n.Server.pd
	if p == nil || n.side == nil {
		return "", ""
	}
	n.Server.mu.Lock()
	defer n.Server.mu.Unlock()
	return p.address(), p.bootstrap
}
