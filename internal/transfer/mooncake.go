package transfer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
)

// keys are what Mooncake's transfer engine keeps in its metadata server: JSON
// under a name that ends in the server's address.
type keys struct {
	at    map[string]*keyValue
	bytes int
}

// keyValue is a value and whose it is.
type keyValue struct {
	tag
	data []byte
}

// Bounds of the metadata.
const (
	maxKey      = 1024
	maxKeys     = 65536
	allKeyBytes = 256 << 20
)

func (k *keys) drop(name string) {
	if v, ok := k.at[name]; ok {
		k.bytes -= len(v.data)
		delete(k.at, name)
	}
}

func (k *keys) put(name string, v *keyValue) error {
	old, there := 0, false
	if o, ok := k.at[name]; ok {
		old, there = len(o.data), true
	}
	if k.bytes-old+len(v.data) > allKeyBytes || !there && len(k.at) >= maxKeys {
		return fmt.Errorf("%w: metadata may have %d keys and %d MB", exchange.ErrFull, maxKeys, allKeyBytes>>20)
	}
	k.drop(name)
	k.at[name] = v
	k.bytes += len(v.data)
	return nil
}

// keyHosts are the hosts that a key and its value would send a reader to. The
// name ends in the server, "host:port"; a value of rpc_meta has an address of its
// own.
func keyHosts(name string, value []byte) (named, told string, err error) {
	if err := keyName(name); err != nil {
		return "", "", err
	}
	if !json.Valid(value) {
		return "", "", errors.New("the value must be JSON")
	}
	named = nameOf(name[strings.LastIndexByte(name, '/')+1:])
	var meta struct {
		Host *string `json:"ip_or_host_name"`
	}
	if json.Unmarshal(value, &meta) == nil && meta.Host != nil {
		return named, *meta.Host, nil
	}
	if strings.Contains(name, "rpc_meta/") {
		return "", "", errors.New("a value of rpc_meta must hold ip_or_host_name")
	}
	return named, named, nil
}

func keyName(name string) error {
	if name == "" || len(name) > maxKey || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("key: must have 1 to %d printable bytes, has %d", maxKey, len(name))
	}
	return nil
}

func (s *Server) putMetadata(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("key")
	data, err := io.ReadAll(r.Body)
	var named, told string
	if err == nil {
		named, told, err = keyHosts(name, data)
	}
	if err == nil {
		err = errors.Join(s.admit("key", named), s.admit("ip_or_host_name", told))
	}
	if err == nil {
		err = instanceInPath(r)
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.Do(func(now fleet.Time, _ *exchange.Book) {
		err = s.keys.put(name, &keyValue{s.tagLocked(now, s.whoseLocked(r), told), data})
	})
	if err != nil {
		s.refuse(w, err)
		return
	}
	text(w, http.StatusOK, "metadata updated")
}

// instanceInPath checks the name behind /at/, if the request has one.
func instanceInPath(r *http.Request) error {
	if err := exchange.Text(r.PathValue("instance"), false); err != nil {
		return fmt.Errorf("the instance in the path %w", err)
	}
	return nil
}

func (s *Server) getMetadata(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("key")
	var data []byte
	s.Do(func(_ fleet.Time, _ *exchange.Book) {
		v, ok := s.keys.at[name]
		if ok && s.staleLocked(v.tag) {
			s.keys.drop(name)
			ok = false
		}
		if ok {
			data = v.data
		}
	})
	if data == nil {
		text(w, http.StatusNotFound, "metadata not found")
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_, _ = w.Write(data) // the reader may have gone
}

func (s *Server) deleteMetadata(w http.ResponseWriter, r *http.Request) {
	s.Do(func(_ fleet.Time, _ *exchange.Book) { s.keys.drop(r.URL.Query().Get("key")) })
	text(w, http.StatusOK, "metadata deleted")
}

// bootstrap is what vLLM's Mooncake connector keeps of one prefill instance: its
// engines by data-parallel rank.
type bootstrap struct {
	engines map[int]*engine
	retired []string // ids of engines that others have taken the place of
}

// engine is one data-parallel rank: one process group with an id of its own, new
// with every start.
type engine struct {
	tag
	id    string
	addrs map[int]map[int]string // tp, pp
	ranks int
}

// standsAt reports whether one of the engine's workers is at a host.
func (e *engine) standsAt(host string) bool {
	for _, pps := range e.addrs {
		for _, addr := range pps {
			if nameOf(strings.TrimPrefix(addr, "tcp://")) == host {
				return true
			}
		}
	}
	return false
}

// retire takes the engine of a rank out; its id never comes back.
func (b *bootstrap) retire(dp int) {
	b.retired = append(b.retired, b.engines[dp].id)
	b.retired = b.retired[max(0, len(b.retired)-maxRetired):]
	delete(b.engines, dp)
}

// maxRetired bounds the ids that are remembered.
const maxRetired = 256

// worker is the body of POST /register. Newer connectors send more, which is not
// asked for again.
type worker struct {
	EngineID string `json:"engine_id"`
	DPRank   *int   `json:"dp_rank"`
	TPRank   *int   `json:"tp_rank"`
	PPRank   *int   `json:"pp_rank"`
	Addr     string `json:"addr"` // tcp://host:port
}

// engineEntry is one engine of GET /query.
type engineEntry struct {
	EngineID   string                 `json:"engine_id"`
	WorkerAddr map[int]map[int]string `json:"worker_addr"`
}

// check returns the worker's host.
func (p *worker) check() (host string, err error) {
	if err := exchange.Text(p.EngineID, true); err != nil {
		return "", fmt.Errorf("engine_id: %w", err)
	}
	for name, rank := range map[string]*int{"dp_rank": p.DPRank, "tp_rank": p.TPRank, "pp_rank": p.PPRank} {
		if rank == nil || *rank < 0 || *rank >= exchange.MaxRanks {
			return "", fmt.Errorf("%s: must be between 0 and %d", name, exchange.MaxRanks-1)
		}
	}
	if len(p.Addr) > exchange.MaxName {
		return "", fmt.Errorf("addr: at most %d bytes", exchange.MaxName)
	}
	bare := p.Addr
	if u, err := url.Parse(p.Addr); err == nil && u.Scheme != "" && u.Host != "" {
		if u.Scheme != "tcp" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
			return "", fmt.Errorf("addr: must be tcp://host:port, is %q", p.Addr)
		}
		bare = u.Host
	}
	if host, _, err = net.SplitHostPort(bare); err != nil {
		return "", fmt.Errorf("addr: must be tcp://host:port, is %q", p.Addr)
	}
	return host, nil
}

func (s *Server) postRegister(w http.ResponseWriter, r *http.Request) {
	var body worker
	err := loose(r, &body)
	var host string
	if err == nil {
		host, err = body.check()
	}
	if err == nil {
		err = s.admit("addr", host)
	}
	if err == nil {
		err = instanceInPath(r)
	}
	if err == nil {
		s.Do(func(now fleet.Time, _ *exchange.Book) {
			err = s.registerLocked(now, s.whoseLocked(r), host, body)
		})
	}
	if err != nil {
		status, name := statusOf(err)
		s.count(name)
		reply(w, status, map[string]string{"detail": err.Error()})
		return
	}
	reply(w, http.StatusOK, map[string]string{"status": "ok"})
}

// loose decodes a body of another project's schema, which may grow.
func loose(r *http.Request, v any) error {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return fmt.Errorf("read the body: %w", err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read the body: %w", err)
	}
	return nil
}

// registerLocked takes a worker on.
func (s *Server) registerLocked(now fleet.Time, instance, host string, p worker) error {
	b := s.mooncake[instance]
	if b == nil {
		if len(s.mooncake) >= s.o.Book.MaxInstances {
			maps.DeleteFunc(s.mooncake, func(_ string, b *bootstrap) bool { return len(b.engines) == 0 })
		}
		if len(s.mooncake) >= s.o.Book.MaxInstances {
			return fmt.Errorf("%w: there are %d bootstraps already", exchange.ErrFull, len(s.mooncake))
		}
		b = &bootstrap{engines: map[int]*engine{}}
		s.mooncake[instance] = b
	}
	if slices.Contains(b.retired, p.EngineID) {
		return fmt.Errorf("engine %q: another has taken its place", p.EngineID)
	}
	e := b.engines[*p.DPRank]
	if e != nil && e.id != p.EngineID {
		// At one host, or under a name of its own, it is the same engine started
		// again. Otherwise it is another, which would hide the first.
		if instance == "" && !e.standsAt(host) && !s.staleLocked(e.tag) {
			return fmt.Errorf("Engine ID mismatch for dp_rank=%d: expected %s, got %s: register instances side by side under /at/{instance}", *p.DPRank, e.id, p.EngineID) //nolint:staticcheck // vLLM's own words come first
		}
		b.retire(*p.DPRank)
		e = nil
	}
	if e == nil {
		e = &engine{id: p.EngineID, addrs: map[int]map[int]string{}}
		b.engines[*p.DPRank] = e
	}
	if e.addrs[*p.TPRank] == nil {
		e.addrs[*p.TPRank] = map[int]string{}
	}
	if old := e.addrs[*p.TPRank][*p.PPRank]; old != "" && old != p.Addr {
		return fmt.Errorf("worker with dp_rank=%d, tp_rank=%d, pp_rank=%d is registered at %s already, and not at %s", *p.DPRank, *p.TPRank, *p.PPRank, old, p.Addr)
	} else if old == "" {
		if e.ranks >= exchange.MaxRanks {
			return fmt.Errorf("%w: an engine may have %d workers", exchange.ErrFull, exchange.MaxRanks)
		}
		e.ranks++
	}
	e.addrs[*p.TPRank][*p.PPRank] = p.Addr
	e.tag = s.tagLocked(now, instance, host)
	return nil
}

func (s *Server) getQuery(w http.ResponseWriter, r *http.Request) {
	answer := map[int]engineEntry{}
	var body []byte
	var err error
	s.Do(func(_ fleet.Time, _ *exchange.Book) {
		b := s.mooncake[s.whoseLocked(r)]
		if b == nil {
			b = &bootstrap{}
		}
		for dp, e := range b.engines {
			if !s.staleLocked(e.tag) {
				answer[dp] = engineEntry{e.id, e.addrs}
			}
		}
		body, err = json.Marshal(answer) // under the lock, whose the maps are
	})
	if err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // the reader may have gone
}
