package kv

import (
	"encoding/binary"

	"penstock.dev/penstock/internal/stat"
)

// Encoding is one of the ways in which engines write batches.
type Encoding uint8

// The encodings in the field.
const (
	VLLMArray    Encoding = iota // positional events, before June 2026
	VLLMMap                      // events as maps
	VLLMMapBytes                 // hashes as 32-byte digests
	SGLangArray                  // signed hashes; the salt in the adapter's place
	SGLangMap                    // signed hashes
	TRTLLM                       // maps, nothing that is not needed
	Mooncake                     // the store's event in the envelope of vLLM
	Encodings                    // how many there are
)

// String names c.
func (c Encoding) String() string {
	return [Encodings + 1]string{"vllm-array", "vllm-map", "vllm-map-bytes", "sglang-array", "sglang-map", "trtllm", "mooncake", "unknown"}[min(c, Encodings)]
}

// AppendBatch appends a payload to dst: events at time (s) of rank, of which
// less than 0 is none. What c has no field for is left out.
func (c Encoding) AppendBatch(dst []byte, time float64, rank int32, events []Event) []byte {
	dst = appendFloat(appendArray(dst, 3), time)
	dst = appendArray(dst, len(events))
	for i := range events {
		e := &events[i]
		switch c {
		case VLLMArray, SGLangArray:
			dst = c.appendArrayEvent(dst, e)
		default:
			dst = c.appendMapEvent(dst, e)
		}
	}
	if rank < 0 {
		return appendNil(dst)
	}
	return appendInt(dst, int64(rank))
}

func (c Encoding) appendArrayEvent(dst []byte, e *Event) []byte {
	slots := 1
	switch {
	case e.Kind == Stored && c == SGLangArray:
		slots = 8
	case e.Kind == Stored:
		slots = 12
	case e.Kind == Removed && c == SGLangArray:
		slots = 3
	case e.Kind == Removed:
		slots = 4
	}
	dst = appendStr(appendArray(dst, slots), kindName(e.Kind))
	if e.Kind == Cleared {
		return dst
	}
	dst = c.appendKeys(dst, e)
	if e.Kind == Removed {
		if dst = appendText(dst, c.medium(e)); c == SGLangArray {
			return dst
		}
		return appendInt(dst, int64(e.Group))
	}
	dst = c.appendParent(dst, e)
	dst = appendUint(appendTokens(dst, e.Tokens), uint64(e.BlockSize))
	dst = appendText(appendLoRAID(dst, e), c.medium(e))
	if c == SGLangArray {
		if e.Salt == nil {
			return appendNil(dst)
		}
		return appendStr(appendStr(appendMap(dst, 1), "cache_salt"), e.Salt)
	}
	dst = appendExtra(appendText(dst, e.LoRA), e)
	dst = appendText(appendInt(dst, int64(e.Group)), specName(e.Spec))
	if e.Window == 0 {
		return appendNil(dst)
	}
	return appendInt(dst, e.Window)
}

// pairs writes a map whose size is known when it has been written. Fifteen
// pairs are the most that its head of one byte can say.
type pairs struct {
	b  []byte
	at int // of the head
}

func (p *pairs) key(name string) { p.b[p.at]++; p.b = appendStr(p.b, name) }

func (p *pairs) text(name string, value []byte) {
	p.key(name)
	p.b = appendText(p.b, value)
}

func (p *pairs) int(name string, value int64) {
	p.key(name)
	p.b = appendInt(p.b, value)
}

func (c Encoding) appendMapEvent(dst []byte, e *Event) []byte {
	p := pairs{b: append(dst, 0x80), at: len(dst)}
	if c == Mooncake {
		c.store(&p, e)
		return p.b
	}
	p.text("type", []byte(kindName(e.Kind)))
	if e.Kind == Cleared {
		return p.b
	}
	p.key("block_hashes")
	p.b = c.appendKeys(p.b, e)
	if e.Kind == Stored {
		p.key("parent_block_hash")
		p.b = c.appendParent(p.b, e)
		p.key("token_ids")
		p.b = appendTokens(p.b, e.Tokens)
		p.int("block_size", int64(e.BlockSize))
		p.key("lora_id")
		p.b = appendLoRAID(p.b, e)
	}
	if medium := c.medium(e); c != TRTLLM || medium != nil {
		p.text("medium", medium)
	}
	switch {
	case c == VLLMMap || c == VLLMMapBytes:
		c.vllm(&p, e)
	case e.Kind == Stored && e.Salt != nil:
		p.text("cache_salt", e.Salt)
	}
	if e.Remote {
		p.text("locality", []byte("REMOTE"))
	}
	return p.b
}

// vllm writes what vLLM alone has.
func (c Encoding) vllm(p *pairs, e *Event) {
	if e.Kind == Removed {
		p.int("group_idx", int64(e.Group))
		return
	}
	p.text("lora_name", e.LoRA)
	p.key("extra_keys")
	p.b = appendExtra(p.b, e)
	p.int("group_idx", int64(e.Group))
	if e.Spec != SpecUnsaid {
		p.text("kv_cache_spec_kind", specName(e.Spec))
	}
	if e.Window != 0 {
		p.int("kv_cache_spec_sliding_window", e.Window)
	}
}

// store writes the event of Mooncake's store.
func (c Encoding) store(p *pairs, e *Event) {
	p.text("event_type", []byte([...]string{Stored: "stored", Removed: "removed", Cleared: "cleared"}[e.Kind]))
	p.text("model_name", e.Model)
	p.text("backend_id", e.Backend)
	if e.HasRank {
		p.int("dp_rank", int64(e.Rank))
	}
	if e.Kind == Cleared {
		return
	}
	p.text("medium", c.medium(e))
	p.key("seq_hashes")
	p.b = c.appendKeys(p.b, e)
	if e.Kind == Removed {
		return
	}
	p.int("block_size", int64(e.BlockSize))
	p.text("additional_salt", e.Salt)
	p.text("lora_name", e.LoRA)
	p.key("parent_hash")
	p.b = c.appendParent(p.b, e)
	p.key("token_ids")
	p.b = appendTokens(p.b, e.Tokens)
}

// medium returns the name that engines of this kind give to the event's tier.
func (c Encoding) medium(e *Event) []byte {
	if e.Medium != nil {
		return e.Medium
	}
	names := [...]string{TierGPU: "GPU", TierCPU: "CPU", TierDisk: "STORAGE", TierShared: "OBJ", TierOther: "OTHER"}
	switch c {
	case SGLangArray, SGLangMap:
		names = [...]string{TierGPU: "GPU", TierCPU: "CPU_PINNED", TierDisk: "DISK", TierShared: "EXTERNAL", TierOther: "OTHER"}
	case Mooncake:
		names[TierCPU], names[TierDisk] = "cpu", "disk"
	}
	return []byte(names[min(e.Tier, TierOther)])
}

func (c Encoding) appendKeys(dst []byte, e *Event) []byte {
	dst = appendArray(dst, len(e.Blocks))
	for i, k := range e.Blocks {
		if c == VLLMMapBytes && len(e.Full) == len(e.Blocks) {
			dst = appendBin(dst, e.Full[i][:])
			continue
		}
		dst = c.appendKey(dst, k)
	}
	return dst
}

func (c Encoding) appendKey(dst []byte, k EngineKey) []byte {
	switch c {
	case VLLMMapBytes:
		dst = append(dst, 0xc4, 32)
		for i := range uint64(3) { // a digest's other bytes mean nothing, but differ
			dst = binary.BigEndian.AppendUint64(dst, stat.Mix64(uint64(k)+i))
		}
		return binary.BigEndian.AppendUint64(dst, uint64(k))
	case SGLangArray, SGLangMap:
		return appendInt(dst, int64(k))
	}
	return appendUint(dst, uint64(k))
}

func (c Encoding) appendParent(dst []byte, e *Event) []byte {
	if !e.HasParent {
		return appendNil(dst)
	}
	if c == VLLMMapBytes && e.FullParent != (Digest{}) {
		return appendBin(dst, e.FullParent[:])
	}
	return c.appendKey(dst, e.Parent)
}

func appendTokens(dst []byte, tokens []uint32) []byte {
	dst = appendArray(dst, len(tokens))
	for _, t := range tokens {
		dst = appendUint(dst, uint64(t))
	}
	return dst
}

func appendLoRAID(dst []byte, e *Event) []byte {
	if !e.HasLoRAID {
		return appendNil(dst)
	}
	return appendInt(dst, e.LoRAID)
}

func appendText(dst, s []byte) []byte {
	if s == nil {
		return appendNil(dst)
	}
	return appendStr(dst, s)
}

// appendExtra writes one entry per block, nil for those with nothing.
func appendExtra(dst []byte, e *Event) []byte {
	dst = appendArray(dst, len(e.Blocks))
	at := 0
	for block := range e.Blocks {
		from := at
		for at < len(e.Extra) && int(e.Extra[at].Block) == block {
			at++
		}
		if from == at {
			dst = appendNil(dst)
			continue
		}
		dst = appendArray(dst, at-from)
		for _, x := range e.Extra[from:at] {
			switch x.Kind {
			case ExtraMedia:
				dst = appendInt(appendStr(appendArray(dst, 2), x.Value), x.Offset)
			case ExtraEmbeds:
				dst = appendBin(dst, x.Value)
			default:
				dst = appendStr(dst, x.Value)
			}
		}
	}
	return dst
}

func kindName(k EventKind) string {
	return [...]string{Stored: "BlockStored", Removed: "BlockRemoved", Cleared: "AllBlocksCleared"}[k]
}

// specName names s, so that reading it gives s again: a spec nobody knows must
// not come back as none, which would be a chain of prefixes.
func specName(s Spec) []byte {
	switch {
	case s == SpecUnsaid:
		return nil
	case int(s) < len(specNames):
		return []byte(specNames[s])
	}
	return []byte("other")
}
