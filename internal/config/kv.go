package config

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/engine/kvfeed"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// KV says how a pool learns what its engines have cached, and how fast they get
// at what is not on their GPUs.
type KV struct {
	// EventsPort is the port on which every endpoint publishes its KV events, on the
	// host of its URL (vLLM and SGLang: 5557 by default); 0 for none.
	EventsPort int `json:"eventsPort"`
	// ReplayPort is the port on which past events can be asked for; 0 for none.
	ReplayPort int `json:"replayPort"`
	// Topic is what the topics of events must begin with; empty takes all.
	Topic string `json:"topic"`
	// Keys says how blocks are known: mapped hashes the tokens that events carry;
	// direct takes the engines' own hashes, which must be sha256_cbor (vLLM:
	// --prefix-caching-hash-algo sha256_cbor) of blocks of index.blockTokens. Engines
	// are held to it: the feed of one that hashes otherwise is refused.
	Keys string `json:"keys"`
	// HashSeed is the engines' PYTHONHASHSEED, for direct keys, or to find out whether
	// they are possible (directKeysPossible in /api/kv); empty when it is not set.
	HashSeed string `json:"hashSeed"`
	// Tokens says how a request becomes tokens, without which events cannot be
	// used for it.
	Tokens Tokens `json:"tokens"`
	// CPU is the engines' offload tier in host memory.
	CPU Tier `json:"cpu"`
	// Disk is their tier on storage of their own.
	Disk Tier `json:"disk"`
	// Transfer is how engines hand the KV of a prompt over to each other.
	Transfer Transfer `json:"transfer"`
	// Stores are stores of KV that all endpoints read and write.
	Stores []Store `json:"stores"`
	// Peer is the admin URL of another gateway of the same pool, or a file: where a
	// new gateway learns what is cached before it has heard it itself.
	Peer string `json:"peer"`
	// Keep says what is kept cached, and what it may cost.
	Keep Keep `json:"keep"`
}

// Tier is how fast KV comes from a slower tier to the GPU.
type Tier struct {
	// GBps is the bandwidth of each device, in 10^9 bytes per second.
	GBps float64 `json:"GBps"`
	// Latency is what it takes besides.
	Latency time.Duration `json:"latency"`
}

// Store is a store of KV that endpoints share.
type Store struct {
	// Name is unique among the pool's stores and endpoints.
	Name string `json:"name"`
	// Events is tcp://host:port where it publishes what it holds.
	Events string `json:"events"`
	// Replay is tcp://host:port where past events can be asked for.
	Replay string `json:"replay"`

	Tier
}

// Tokens says how a request becomes tokens.
type Tokens struct {
	// From is engine (its tokenize API), file (the model's own files), none, or auto:
	// the engine where there are KV events, and nobody where there are none.
	From string `json:"from"`
	// URL is a server that tokenizes, instead of the pool's endpoints.
	URL string `json:"url"`
	// File is the path of the model's tokenizer.json, or of the directory that has
	// it. A tokenizer_config.json and a chat_template.jinja beside it are read, too.
	File string `json:"file"`
	// Template is the path of the model's chat template, in the place of the one
	// beside the file.
	Template string `json:"template"`
	// Budget is how long a request waits for its tokens before it goes on without.
	Budget time.Duration `json:"budget"`
	// CacheBytes bounds the memory for prompts whose tokens are known.
	CacheBytes int `json:"cacheBytes"`
}

// The ways to know blocks by.
const (
	keysMapped = "mapped"
	keysDirect = "direct"
)

// The sources of tokens.
const (
	TokensAuto   = "auto"
	TokensEngine = "engine"
	TokensFile   = "file"
	TokensNone   = "none"
)

// maxStores bounds the stores of a pool.
const maxStores = 16

// defaultKV takes what PCIe 4 and one NVMe drive can do for the links.
func defaultKV() KV {
	return KV{
		Transfer: Transfer{Tier: Tier{GBps: 50, Latency: 10 * time.Millisecond}},
		Keys:     keysMapped, CPU: Tier{GBps: 25, Latency: time.Millisecond}, Disk: Tier{GBps: 6, Latency: 5 * time.Millisecond},
		Tokens: Tokens{From: TokensAuto, Budget: 100 * time.Millisecond, CacheBytes: 64 << 20}, Keep: defaultKeep(),
	}
}

// setDefaults fills a store before the file is decoded over it: 100 Gbit/s.
func (s *Store) setDefaults() { s.Tier = Tier{GBps: 12.5, Latency: 5 * time.Millisecond} }

func (k *KV) validate(path string, errs *problems) {
	port(errs, path+".eventsPort", k.EventsPort)
	port(errs, path+".replayPort", k.ReplayPort)
	if k.Keys != keysMapped && k.Keys != keysDirect {
		errs.add(path+".keys", "must be %s or %s, is %q", keysMapped, keysDirect, k.Keys)
	}
	k.CPU.validate(path+".cpu", errs)
	k.Disk.validate(path+".disk", errs)
	k.Transfer.validate(path+".transfer", errs)
	k.Tokens.validate(path+".tokens", errs)
	k.Keep.validate(path+".keep", errs)
	if len(k.Stores) > maxStores {
		errs.add(path+".stores", "must be at most %d, are %d", maxStores, len(k.Stores))
	}
	names := map[string]int{}
	for i, s := range k.Stores {
		at := fmt.Sprintf("%s.stores[%d]", path, i)
		if s.Name == "" {
			errs.add(at+".name", "is required")
		}
		unique(errs, at+".name", s.Name, i, names, "stores[%d]")
		if s.Events == "" {
			errs.add(at+".events", "is required: tcp://host:port where the store publishes its events")
		}
		address(errs, at+".events", s.Events)
		address(errs, at+".replay", s.Replay)
		s.Tier.validate(at, errs)
	}
}

func (t Tier) validate(path string, errs *problems) {
	if !(t.GBps > 0) {
		errs.add(path+".GBps", "must be above 0, is %v", t.GBps)
	}
	if t.Latency < 0 {
		errs.add(path+".latency", "must not be negative, is %v", t.Latency)
	}
}

func (t Tokens) validate(path string, errs *problems) {
	switch t.From {
	case TokensAuto, TokensEngine, TokensNone:
		if t.File != "" {
			errs.add(path+".file", "says nothing beside from: %s; write from: %s", t.From, TokensFile)
		}
	case TokensFile:
		if t.File == "" {
			errs.add(path+".file", "is required with from: %s", TokensFile)
		}
	default:
		errs.add(path+".from", "must be %s, %s, %s or %s, is %q", TokensAuto, TokensEngine, TokensFile, TokensNone, t.From)
	}
	if t.Template != "" && t.From != TokensFile {
		errs.add(path+".template", "says nothing beside from: %s; write from: %s", t.From, TokensFile)
	}
	if t.URL != "" {
		if _, err := engine.CheckURL(t.URL); err != nil {
			errs.add(path+".url", "%w", err)
		}
	}
	positive(errs, path+".budget", t.Budget)
	if t.CacheBytes < 1<<20 {
		errs.add(path+".cacheBytes", "must be at least %d, is %d", 1<<20, t.CacheBytes)
	}
}

func port(errs *problems, path string, n int) {
	if n < 0 || n > 65535 {
		errs.add(path, "must be a port, or 0 for none, is %d", n)
	}
}

// address checks where events come from; none is fine.
func address(errs *problems, path, s string) {
	if s == "" {
		return
	}
	if _, _, err := kvfeed.Address(s, 0); err != nil {
		errs.add(path, "%w", err)
	}
}

// Space returns how the keys of the pool's index of events are made.
func (p *Pool) Space() kv.KeySpace {
	s := kv.KeySpace{Block: int(p.Index.BlockTokens)}
	if p.KV.HashSeed != "" {
		s.Root = kv.VLLMRoot(p.KV.HashSeed)
	}
	if p.KV.Keys == keysDirect {
		s.Mode = kv.KeysDirect
		if p.KV.HashSeed == "" {
			s.Root = kv.VLLMRoot(kv.VLLMUnseeded)
		}
	}
	return s
}

// FeedAt returns where the endpoint of a URL publishes its events and answers for
// past ones; empty where it does not.
func (k *KV) FeedAt(base string) (events, replay string) {
	u, err := url.Parse(base)
	if err != nil || k.EventsPort == 0 {
		return "", ""
	}
	at := func(port int) string { return "tcp://" + net.JoinHostPort(u.Hostname(), strconv.Itoa(port)) }
	events = at(k.EventsPort)
	if k.ReplayPort != 0 {
		replay = at(k.ReplayPort)
	}
	return events, replay
}

// Feeds reports whether any endpoint or store of the pool may publish events.
func (p *Pool) Feeds() bool {
	if p.KV.EventsPort != 0 {
		return true
	}
	for i := range p.Endpoints {
		if p.Endpoints[i].Events != "" {
			return true
		}
	}
	return false
}

// assumedKVBytes is the KV of one token of a model whose shape is not known: that
// of an 8B model in 16 bits.
const assumedKVBytes = 131_072

// Links returns how fast KV is believed to come to the GPUs of an endpoint served
// so; the zero Serving is not known.
func (k *KV) Links(s catalog.Serving) fleet.Links {
	l := fleet.Links{CPU: k.link(k.CPU, s), Disk: k.link(k.Disk, s)}
	for i, st := range k.Stores {
		// All stores count as one tier: as fast as the slowest of them.
		if one := k.link(st.Tier, s); i == 0 || one.PerToken > l.Shared.PerToken {
			l.Shared = one
		}
	}
	return l
}

// link returns how fast a tier's KV comes to an endpoint served so.
func (k *KV) link(t Tier, s catalog.Serving) fleet.Link {
	bytes := float64(assumedKVBytes)
	if s.Shape.Name != "" {
		bytes = s.KVBytes() // devices fetch side by side, each over a link of its own
	}
	const giga = 1e9
	return fleet.Link{Latency: t.Latency.Seconds(), PerToken: bytes / (t.GBps * giga)}
}
