package kv

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
)

// ErrPayload says that a payload is not a batch of KV events, or is cut short.
var ErrPayload = errors.New("not a batch of KV events")

// Decode reads one payload in any form in the field. An event that cannot be
// read is left out alone and counted. With an error the batch holds what came
// before the damage.
func (b *Batch) Decode(payload []byte) error {
	b.Time, b.Rank, b.Events, b.Dropped, b.Holes = 0, -1, b.Events[:0], [Faults]int{}, false
	b.hashes, b.tokens, b.extras = b.hashes[:0], b.tokens[:0], b.extras[:0]
	r := msgReader{b: payload}
	switch k, n := r.head(); {
	case k == msgArray && n >= 2:
		for slot := range n {
			if !b.slot(&r, slot) {
				return ErrPayload
			}
		}
		return nil
	case k == msgMap:
		return b.envelope(&r, n)
	}
	return ErrPayload
}

// The slots of an envelope.
const (
	slotTime = iota
	slotEvents
	slotRank
	slotOther
)

// envelope reads an envelope that is a map of n pairs.
func (b *Batch) envelope(r *msgReader, n uint64) error {
	seen := false
	for range n {
		key, ok := r.text()
		if !ok {
			return ErrPayload
		}
		slot := uint64(slotOther)
		switch string(key) {
		case "ts", "timestamp":
			slot = slotTime
		case "events":
			slot, seen = slotEvents, true
		case "data_parallel_rank", "dp_rank", "attn_dp_rank":
			slot = slotRank
		}
		if !b.slot(r, slot) {
			return ErrPayload
		}
	}
	if !seen {
		return ErrPayload
	}
	return nil
}

func (b *Batch) slot(r *msgReader, slot uint64) bool {
	switch slot {
	case slotTime:
		switch k, n := r.head(); k {
		case msgFloat:
			b.Time = math.Float64frombits(n)
		case msgInt:
			b.Time = float64(int64(n))
		case msgNil:
		default:
			return false
		}
		return true
	case slotEvents:
		n, ok := r.list()
		for range n {
			if !b.event(r) {
				return false
			}
		}
		return ok
	case slotRank:
		n, set, ok := r.integer()
		if set && n >= 0 && n <= math.MaxInt32 {
			b.Rank = int32(n)
		}
		return ok
	}
	return r.skip()
}

// event reads one event, or counts why not and passes over it. It fails only
// when the payload ends too soon.
func (b *Batch) event(r *msgReader) bool {
	start, hashes, tokens, extras := r.at, len(b.hashes), len(b.tokens), len(b.extras)
	b.Events = append(b.Events, Event{})
	e := &b.Events[len(b.Events)-1]
	fault := FaultMalformed
	switch k, n := r.head(); k {
	case msgArray:
		fault = b.array(r, e, n)
	case msgMap:
		fault = b.pairs(r, e, n)
	}
	if fault == FaultNone {
		fault = e.judge()
	}
	if fault == FaultNone {
		return true
	}
	b.Dropped[fault]++
	if fault == FaultMalformed && e.Kind != Stored {
		b.Holes = true
	}
	b.Events = b.Events[:len(b.Events)-1]
	b.hashes, b.tokens, b.extras = b.hashes[:hashes], b.tokens[:tokens], b.extras[:extras]
	r.at = start
	return r.skip()
}

// judge finds events that say what cannot be.
func (e *Event) judge() Fault {
	if e.Kind != Stored {
		return FaultNone
	}
	if len(e.Tokens) > 0 && e.Spec.Chained() && (e.BlockSize == 0 || len(e.Tokens)%e.BlockSize != 0 || len(e.Tokens)/e.BlockSize != len(e.Blocks)) {
		return FaultTokenCount
	}
	if e.HasParent && slices.Contains(e.Blocks, e.Parent) {
		return FaultOwnParent
	}
	return FaultNone
}

// field is a field of an event, whatever its place or name.
type field uint8

const (
	fieldOther field = iota
	fieldBlocks
	fieldParent
	fieldTokens
	fieldBlockSize
	fieldLoRAID
	fieldMedium
	fieldLoRA
	fieldExtra
	fieldGroup
	fieldSpec
	fieldWindow
	fieldLocality
	fieldSalt
	fieldModel
	fieldBackend
	fieldRank
)

// The fields of positional events, after their type.
var (
	storedSlots = [...]field{
		fieldBlocks, fieldParent, fieldTokens, fieldBlockSize, fieldLoRAID, fieldMedium,
		fieldLoRA, fieldExtra, fieldGroup, fieldSpec, fieldWindow,
	}
	removedSlots = [...]field{fieldBlocks, fieldMedium, fieldGroup}
)

// array reads a positional event of n slots.
func (b *Batch) array(r *msgReader, e *Event, n uint64) Fault {
	if n == 0 {
		return FaultMalformed
	}
	name, ok := r.text()
	if !ok {
		return FaultMalformed
	}
	e.Kind = eventKind(name)
	var slots []field
	switch {
	case e.Kind == 0:
		return FaultType
	case e.Kind == Stored && n < 5, e.Kind == Removed && n < 2:
		return FaultMalformed
	case e.Kind == Stored:
		slots = storedSlots[:]
	case e.Kind == Removed:
		slots = removedSlots[:]
	}
	for i := range int(n) - 1 {
		f := fieldOther
		if i < len(slots) {
			f = slots[i]
		}
		if !b.field(r, e, f) {
			return FaultMalformed
		}
	}
	e.sortExtra()
	return FaultNone
}

// pairs reads an event that is a map of n pairs.
func (b *Batch) pairs(r *msgReader, e *Event, n uint64) Fault {
	kind, named := typeOf(*r, n)
	if !named {
		return FaultMalformed
	}
	if e.Kind = kind; kind == 0 {
		return FaultType
	}
	blocks := kind == Cleared
	for range n {
		key, ok := r.text()
		if !ok {
			return FaultMalformed
		}
		f := fieldOf(key)
		blocks = blocks || f == fieldBlocks
		if !b.field(r, e, f) {
			return FaultMalformed
		}
	}
	if !blocks {
		return FaultMalformed
	}
	e.sortExtra()
	return FaultNone
}

// typeOf finds the type of an event that is a map: nearly always its first
// pair.
func typeOf(r msgReader, n uint64) (kind EventKind, named bool) {
	for range n {
		key, ok := r.text()
		if !ok {
			return 0, false
		}
		if s := string(key); s == "type" || s == "event_type" {
			name, ok := r.text()
			return eventKind(name), ok
		}
		if !r.skip() {
			return 0, false
		}
	}
	return 0, false
}

func eventKind(name []byte) EventKind {
	switch string(name) {
	case "BlockStored", "stored":
		return Stored
	case "BlockRemoved", "removed":
		return Removed
	case "AllBlocksCleared", "cleared":
		return Cleared
	}
	return 0
}

func fieldOf(key []byte) field {
	switch string(key) {
	case "block_hashes", "seq_hashes":
		return fieldBlocks
	case "parent_block_hash", "parent_hash":
		return fieldParent
	case "token_ids":
		return fieldTokens
	case "block_size":
		return fieldBlockSize
	case "lora_id":
		return fieldLoRAID
	case "medium":
		return fieldMedium
	case "lora_name":
		return fieldLoRA
	case "extra_keys":
		return fieldExtra
	case "group_idx":
		return fieldGroup
	case "kv_cache_spec_kind":
		return fieldSpec
	case "kv_cache_spec_sliding_window":
		return fieldWindow
	case "locality":
		return fieldLocality
	case "cache_salt", "additional_salt":
		return fieldSalt
	case "model_name":
		return fieldModel
	case "backend_id":
		return fieldBackend
	case "dp_rank":
		return fieldRank
	}
	return fieldOther
}

// field reads the value of f into e.
func (b *Batch) field(r *msgReader, e *Event, f field) (ok bool) {
	var n int64
	switch f {
	case fieldBlocks:
		e.Blocks, ok = b.keys(r)
	case fieldParent:
		e.Parent, e.HasParent, ok = engineKey(r)
		// The llm-d simulator sends 0 for the first block's parent.
		e.HasParent = e.HasParent && e.Parent != 0
	case fieldTokens:
		e.Tokens, ok = b.tokenIDs(r)
	case fieldBlockSize:
		n, _, ok = r.integer()
		e.BlockSize, ok = int(n), ok && n >= 0 && n <= math.MaxInt32
	case fieldLoRAID:
		e.LoRAID, e.HasLoRAID, ok = r.integer()
	case fieldMedium:
		e.Medium, ok = r.text()
		e.Tier = tierOf(e.Medium)
	case fieldLoRA:
		ok = loraOrSalt(r, e)
	case fieldExtra:
		ok = b.extraKeys(r, e)
	case fieldGroup:
		n, _, ok = r.integer()
		e.Group, ok = int32(n), ok && n >= 0 && n <= math.MaxInt32
	case fieldSpec:
		var name []byte
		name, ok = r.text()
		e.Spec = specOf(name)
	case fieldWindow:
		e.Window, _, ok = r.integer()
	case fieldLocality:
		var name []byte
		name, ok = r.text()
		e.Remote = string(name) == "REMOTE"
	case fieldSalt:
		e.Salt, ok = r.text()
	case fieldModel:
		e.Model, ok = r.text()
	case fieldBackend:
		e.Backend, ok = r.text()
	case fieldRank:
		n, e.HasRank, ok = r.integer()
		e.Rank, ok = int32(n), ok && n >= 0 && n <= math.MaxInt32
	default:
		ok = r.skip()
	}
	return ok
}

// engineKey reads a block's hash. A digest is folded to its last 8 bytes, which
// is what engines send as an integer; nil reads as none.
func engineKey(r *msgReader) (key EngineKey, set, ok bool) {
	switch k, n := r.head(); k {
	case msgInt:
		return EngineKey(n), true, true
	case msgNil:
		return 0, false, true
	case msgBin, msgStr:
		if n < 8 {
			return 0, false, false
		}
		digest := r.take(n)
		return EngineKey(binary.BigEndian.Uint64(digest[n-8:])), true, true
	}
	return 0, false, false
}

func (b *Batch) keys(r *msgReader) ([]EngineKey, bool) {
	n, ok := r.list()
	if !ok {
		return nil, false
	}
	from := len(b.hashes)
	for range n {
		key, set, ok := engineKey(r)
		if !ok || !set {
			return nil, false
		}
		b.hashes = append(b.hashes, key)
	}
	return b.hashes[from:len(b.hashes):len(b.hashes)], true
}

func (b *Batch) tokenIDs(r *msgReader) ([]uint32, bool) {
	n, ok := r.list()
	if !ok {
		return nil, false
	}
	from := len(b.tokens)
	for range n {
		if left := r.b[r.at:]; len(left) >= 5 && left[0] == 0xce {
			// Half of all bytes are tokens, and most of these are of this form.
			b.tokens = append(b.tokens, binary.BigEndian.Uint32(left[1:]))
			r.at += 5
			continue
		}
		k, id := r.head()
		if k == msgArray && id > 0 {
			// A speculative engine sends each token with the one after it.
			rest := id - 1
			k, id = r.head()
			for range rest {
				if !r.skip() {
					return nil, false
				}
			}
		}
		if k != msgInt || id > math.MaxUint32 {
			return nil, false
		}
		b.tokens = append(b.tokens, uint32(id))
	}
	return b.tokens[from:len(b.tokens):len(b.tokens)], true
}

// loraOrSalt reads an adapter's name, or the map that older SGLang sends in its
// place.
func loraOrSalt(r *msgReader, e *Event) bool {
	k, n := r.head()
	switch k {
	case msgNil:
		return true
	case msgStr:
		e.LoRA = r.take(n)
		return true
	case msgMap:
	default:
		return false
	}
	for range n {
		key, ok := r.text()
		if !ok {
			return false
		}
		if string(key) == "cache_salt" {
			e.Salt, ok = r.text()
		} else {
			ok = r.skip()
		}
		if !ok {
			return false
		}
	}
	return true
}

// tierOf tells tiers by their names, which engines write in either case.
func tierOf(name []byte) Tier {
	var lower [16]byte
	if len(name) > len(lower) {
		return TierOther
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	switch string(lower[:len(name)]) {
	case "", "gpu":
		return TierGPU
	case "cpu", "cpu_pinned", "cpu_tier1":
		return TierCPU
	case "disk", "storage", "fs", "cpu_tier2":
		return TierDisk
	case "external", "obj":
		return TierShared
	}
	return TierOther
}

// specNames are the names of specs, by their number.
var specNames = [...]string{
	SpecUnsaid: "", SpecFull: "full_attention", SpecMLA: "mla_attention", SpecSink: "sink_full_attention",
	SpecSliding: "sliding_window", SpecSlidingMLA: "sliding_window_mla", SpecMamba: "mamba",
	SpecChunked: "chunked_local_attention", SpecEncoder: "encoder_only_attention", SpecCross: "cross_attention",
}

func specOf(name []byte) Spec {
	for s, known := range specNames {
		if string(name) == known {
			return Spec(s)
		}
	}
	return SpecOther
}
