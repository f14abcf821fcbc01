package transfer

import (
	"encoding/json"
	"fmt"

	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
)

// Instances register again with an exchange that has restarted. Engines that
// speak Mooncake's or SGLang's words do not: they say where they are once. What
// they have said can be kept over a restart.

// keptState is what is kept.
type keptState struct {
	Lives    map[string]string             `json:"lives,omitempty"` // incarnations, by instance
	Keys     map[string]keptKey            `json:"keys,omitempty"`
	Mooncake map[string]map[int]keptEngine `json:"mooncake,omitempty"`
	Retired  map[string][]string           `json:"retired,omitempty"`
	SGLang   map[string]keptTopology       `json:"sglang,omitempty"`
}

// keptTag is whose a thing is.
type keptTag struct {
	Owner string `json:"owner,omitempty"`
	Host  string `json:"host"`
}

type keptKey struct {
	keptTag
	Data json.RawMessage `json:"data"`
}

type keptEngine struct {
	keptTag
	engineEntry
}

type keptTopology struct {
	Shape shape      `json:"shape"`
	Ranks []keptRank `json:"ranks"`
}

type keptRank struct {
	keptTag
	Place [4]int `json:"place"` // data, context, tensor, pipeline
	Port  int    `json:"port"`
}

// Keep writes what engines have said that will not say it again.
func (s *Server) Keep() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nowLocked()
	k := keptState{Lives: map[string]string{}, Keys: map[string]keptKey{}, Mooncake: map[string]map[int]keptEngine{}, Retired: map[string][]string{}, SGLang: map[string]keptTopology{}}
	for id, l := range s.lives {
		k.Lives[id] = l.incarnation
	}
	for name, v := range s.keys.at {
		k.Keys[name] = keptKey{keptTag{v.owner, v.host}, v.data}
	}
	for of, b := range s.mooncake {
		k.Mooncake[of], k.Retired[of] = map[int]keptEngine{}, b.retired
		for dp, e := range b.engines {
			k.Mooncake[of][dp] = keptEngine{keptTag{e.owner, e.host}, engineEntry{e.id, e.addrs}}
		}
	}
	for of, t := range s.sglang {
		kt := keptTopology{Shape: t.shape}
		for at, r := range t.ranks {
			kt.Ranks = append(kt.Ranks, keptRank{keptTag{r.owner, r.host}, [4]int{at.dp, at.cp, at.tp, at.pp}, r.port})
		}
		k.SGLang[of] = kt
	}
	data, err := json.Marshal(k)
	if err != nil {
		return nil, fmt.Errorf("keep what engines have said: %w", err)
	}
	return data, nil
}

// Restore reads what Keep wrote, into an exchange that has just begun. Hosts that
// have left the fleet are left out. Instances have a default lease's time to
// register: what is of one that does not, or of one whose process is another by
// then, is dropped.
func (s *Server) Restore(data []byte) error {
	var k keptState
	if err := json.Unmarshal(data, &k); err != nil {
		return fmt.Errorf("restore what engines have said: %w", err)
	}
	var err error
	s.Do(func(now fleet.Time, _ *exchange.Book) {
		s.grace = now.Add(s.o.Book.Lease)
		for id, incarnation := range k.Lives {
			if _, known := s.lives[id]; !known {
				s.lives[id] = life{incarnation, now}
			}
		}
		for name, v := range k.Keys {
			if s.admit("host", v.Host) == nil && keyName(name) == nil && err == nil {
				err = s.keys.put(name, &keyValue{v.tag(now), v.Data})
			}
		}
		for of, engines := range k.Mooncake {
			s.mooncake[of] = s.restoredBootstrap(now, engines, k.Retired[of])
		}
		for of, t := range k.SGLang {
			s.sglang[of] = s.restoredTopology(now, t)
		}
	})
	return err
}

func (k keptTag) tag(now fleet.Time) tag { return tag{owner: k.Owner, host: k.Host, at: now} }

func (s *Server) restoredBootstrap(now fleet.Time, engines map[int]keptEngine, retired []string) *bootstrap {
	b := &bootstrap{engines: map[int]*engine{}, retired: retired}
	for dp, e := range engines {
		if s.admit("host", e.Host) != nil || e.WorkerAddr == nil {
			continue
		}
		b.engines[dp] = &engine{tag: e.tag(now), id: e.EngineID, addrs: e.WorkerAddr}
		for _, pps := range e.WorkerAddr {
			b.engines[dp].ranks += len(pps)
		}
	}
	return b
}

func (s *Server) restoredTopology(now fleet.Time, kept keptTopology) *topology {
	t := &topology{shape: kept.Shape, ranks: map[place]*rankAddr{}, rooms: map[int64]room{}}
	for _, r := range kept.Ranks {
		if s.admit("host", r.Host) == nil {
			t.ranks[place{r.Place[0], r.Place[1], r.Place[2], r.Place[3]}] = &rankAddr{r.tag(now), r.Port}
		}
	}
	return t
}
