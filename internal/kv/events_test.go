package kv

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// reference opens a file of the reference that stands beside the repository;
// without it the test is skipped, except in CI.
func reference(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "..", "shared", "reference", name))
	switch {
	case err == nil:
		return string(raw)
	case os.Getenv("CI") != "":
		t.Fatalf("CI needs the reference vectors: %v", err)
	default:
		t.Skipf("no reference vectors here: %v", err)
	}
	return ""
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The keys of the two blocks [1 2 3 4] and [5 6 7 8] in the reference.
const (
	block1 = EngineKey(9561501211280363793)
	block2 = EngineKey(15292913576410714033)
)

// computed are the reference's own vectors, as they must be read.
func computed() map[string]Batch {
	two := Event{
		Kind: Stored, Spec: SpecFull, Blocks: []EngineKey{block1, block2}, Tokens: []uint32{1, 2, 3, 4, 5, 6, 7, 8}, BlockSize: 4, Medium: []byte("GPU"),
	}
	signed := int64(-3488128144981237669)
	return map[string]Batch{
		"V1": {Time: 1.5, Rank: 0, Events: []Event{two}},
		"V2": {Time: 1.5, Rank: 0, Events: []Event{two}},
		"V3": {Time: 2, Rank: -1, Events: []Event{{Kind: Removed, Tier: TierCPU, Medium: []byte("CPU"), Blocks: []EngineKey{block1}}, {Kind: Cleared}}},
		"V4": {Time: 2, Rank: -1, Events: []Event{{Kind: Removed, Medium: []byte("GPU"), Blocks: []EngineKey{block1}}}},
		"V5": {Time: 2, Rank: -1, Events: []Event{{Kind: Removed, Medium: []byte("GPU"), Blocks: []EngineKey{7, 200, EngineKey(signed)}}}},
		"V6": {Time: 2, Rank: 1, Events: []Event{{Kind: Removed, Blocks: []EngineKey{1}}, {Kind: Cleared}}, Dropped: [Faults]int{FaultType: 1}},
	}
}

// plain makes batches comparable: without buffers, and with no difference
// between nothing and an empty list.
func plain(b Batch) string {
	b.hashes, b.tokens, b.extras = nil, nil, nil
	b.Events = slices.Concat([]Event{}, b.Events)
	for i := range b.Events {
		e := &b.Events[i]
		e.Blocks, e.Tokens, e.Extra = slices.Concat([]EngineKey{}, e.Blocks), slices.Concat([]uint32{}, e.Tokens), slices.Concat([]Extra{}, e.Extra)
	}
	raw, err := json.Marshal(b)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

func TestComputedVectors(t *testing.T) {
	want := computed()
	encodings := map[string]Encoding{"V1": VLLMArray, "V2": VLLMMap}
	found := 0
	for _, m := range regexp.MustCompile("(?m)^- (V[0-9]) [^`\n]*(?:`Future`[^`\n]*)?`([0-9a-f]+)`").FindAllStringSubmatch(reference(t, "kv.md"), -1) {
		found++
		payload := unhex(t, m[2])
		var got Batch
		if err := got.Decode(payload); err != nil {
			t.Errorf("%s: %v", m[1], err)
			continue
		}
		if a, b := plain(got), plain(want[m[1]]); a != b {
			t.Errorf("%s: read\n%s, want\n%s", m[1], a, b)
		}
		if c, ok := encodings[m[1]]; ok {
			if again := c.AppendBatch(nil, got.Time, got.Rank, got.Events); !bytes.Equal(again, payload) {
				t.Errorf("%s: written as\n%x, is\n%x", m[1], again, payload)
			}
		}
	}
	if found != len(want) {
		t.Errorf("found %d vectors, want %d", found, len(want))
	}
}

// captured reads the frames of the simulator's recorded messages by section.
func captured(t *testing.T) map[string]map[string]string {
	t.Helper()
	sections := map[string]map[string]string{}
	var section map[string]string
	lines := bufio.NewScanner(strings.NewReader(reference(t, "kv_event_vectors.txt")))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "[") {
			name, _, _ := strings.Cut(line[1:], "]")
			section = map[string]string{}
			sections[name] = section
		} else if key, value, ok := strings.Cut(line, " = "); ok && section != nil {
			value, _, _ = strings.Cut(value, "   #")
			section[strings.TrimSpace(key)] = value
		}
	}
	return sections
}

func TestCapturedVectors(t *testing.T) {
	found := 0
	for name, s := range captured(t) {
		if s["frame2_payload"] == "" {
			continue
		}
		found++
		var got Batch
		if err := got.Decode(unhex(t, s["frame2_payload"])); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var want []json.RawMessage
		decoder := json.NewDecoder(strings.NewReader(s["decoded"]))
		if err := decoder.Decode(&want); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if a, b := plain(got), plain(told(t, want)); a != b {
			t.Errorf("%s: read\n%s, want\n%s", name, a, b)
		}
	}
	if found != 10 {
		t.Errorf("found %d vectors, want 10", found)
	}
}

// told reads the JSON that the reference gives for a payload.
func told(t *testing.T, slots []json.RawMessage) Batch {
	t.Helper()
	var b Batch
	var events []json.RawMessage
	read := func(raw json.RawMessage, to any) {
		if err := json.Unmarshal(raw, to); err != nil && len(raw) > 0 {
			t.Fatalf("%s: %v", raw, err)
		}
	}
	read(slots[0], &b.Time)
	read(slots[1], &events)
	read(slots[2], &b.Rank)
	names := []string{"type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"}
	for _, raw := range events {
		fields := map[string]json.RawMessage{}
		if raw[0] == '[' {
			var list []json.RawMessage
			read(raw, &list)
			if bytes.Contains(list[0], []byte("Removed")) {
				list = []json.RawMessage{list[0], list[1], nil, nil, nil, nil, list[2]}
			}
			for i, v := range list[:min(len(list), len(names))] {
				fields[names[i]] = v
			}
		} else {
			read(raw, &fields)
		}
		var e Event
		var kind, medium, lora string
		read(fields["type"], &kind)
		e.Kind = map[string]EventKind{"BlockStored": Stored, "BlockRemoved": Removed, "AllBlocksCleared": Cleared}[kind]
		read(fields["block_hashes"], &e.Blocks)
		read(fields["parent_block_hash"], &e.Parent)
		e.HasParent = e.Parent != 0
		read(fields["token_ids"], &e.Tokens)
		read(fields["block_size"], &e.BlockSize)
		read(fields["lora_id"], &e.LoRAID)
		e.HasLoRAID = e.LoRAID != 0
		if read(fields["medium"], &medium); medium != "" {
			e.Medium = []byte(medium)
		}
		if read(fields["lora_name"], &lora); lora != "" {
			e.LoRA = []byte(lora)
		}
		b.Events = append(b.Events, e)
	}
	return b
}

// batches draws what an engine that writes c may send.
func batches(c Encoding) *rapid.Generator[[]Event] {
	text := rapid.Custom(func(t *rapid.T) []byte { return []byte(rapid.StringMatching(`[a-z]{1,40}`).Draw(t, "text")) })
	key := rapid.Custom(func(t *rapid.T) EngineKey {
		return EngineKey(rapid.Uint64Range(1, math.MaxUint64).Draw(t, "key")>>rapid.IntRange(0, 62).Draw(t, "narrow") | 1)
	})
	vllm := c <= VLLMMapBytes
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Event {
		e := Event{Kind: EventKind(rapid.IntRange(1, 3).Draw(t, "kind"))}
		if c == Mooncake {
			e.Model, e.Backend, e.Rank, e.HasRank = text.Draw(t, "model"), text.Draw(t, "backend"), 3, true
		}
		if e.Kind == Cleared {
			return e
		}
		e.Blocks = rapid.SliceOfNDistinct(key, 1, 40, rapid.ID).Draw(t, "blocks")
		e.Medium = []byte(rapid.SampledFrom([]string{"GPU", "cpu", "CPU_PINNED", "disk", "EXTERNAL", "moon"}).Draw(t, "medium"))
		e.Tier = tierOf(e.Medium)
		if vllm {
			e.Group = rapid.Int32Range(0, 70_000).Draw(t, "group")
		}
		if e.Kind == Removed {
			return e
		}
		if e.BlockSize = rapid.SampledFrom([]int{0, 1, 16, 300}).Draw(t, "size"); e.BlockSize > 0 {
			n := e.BlockSize * len(e.Blocks)
			e.Tokens = rapid.SliceOfN(rapid.Uint32(), n, n).Draw(t, "tokens")
		}
		if e.Parent = key.Draw(t, "parent"); !slices.Contains(e.Blocks, e.Parent) && rapid.Bool().Draw(t, "chained") {
			e.HasParent = true
		} else {
			e.Parent = 0
		}
		drawRest(t, c, &e, text)
		return e
	}), 0, 5)
}

func drawRest(t *rapid.T, c Encoding, e *Event, text *rapid.Generator[[]byte]) {
	if c != Mooncake && rapid.Bool().Draw(t, "numbered") {
		e.LoRAID, e.HasLoRAID = rapid.Int64().Draw(t, "lora id"), true
	}
	if c > VLLMMapBytes {
		e.Salt = text.Draw(t, "salt")
		return
	}
	if rapid.Bool().Draw(t, "lora") {
		e.LoRA = text.Draw(t, "name")
	}
	if rapid.Bool().Draw(t, "sliding") {
		e.Spec, e.Window = SpecSliding, rapid.Int64Range(1, 9000).Draw(t, "window")
	}
	for i := range e.Blocks {
		if e.LoRA != nil {
			e.Extra = append(e.Extra, Extra{Block: int32(i), Kind: ExtraLoRA, Value: e.LoRA})
		}
		if rapid.Bool().Draw(t, "image") {
			e.Extra = append(e.Extra, Extra{Block: int32(i), Kind: ExtraMedia, Value: text.Draw(t, "image"), Offset: rapid.Int64().Draw(t, "at")})
		}
		if i == 0 && !e.HasParent {
			e.Extra = append(e.Extra, Extra{Kind: ExtraSalt, Value: []byte("UPPER")})
		}
		if rapid.Bool().Draw(t, "embeds") {
			e.Extra = append(e.Extra, Extra{Block: int32(i), Kind: ExtraEmbeds, Value: text.Draw(t, "digest")})
		}
	}
}

func TestEncodingsRoundTrip(t *testing.T) {
	for c := range Encodings {
		t.Run(c.String(), func(t *testing.T) {
			var got Batch
			rapid.Check(t, func(t *rapid.T) {
				want := Batch{Events: batches(c).Draw(t, "events"), Time: rapid.Float64Range(-1e12, 1e12).Draw(t, "time"), Rank: rapid.Int32Range(-1, 300).Draw(t, "rank")}
				payload := c.AppendBatch(nil, want.Time, want.Rank, want.Events)
				if err := got.Decode(payload); err != nil {
					t.Fatalf("%x: %v", payload, err)
				}
				if a, b := plain(got), plain(want); a != b {
					t.Fatalf("%x read as\n%s, was\n%s", payload, a, b)
				}
			})
		})
	}
}

// TestOddForms are shapes that engines or their forks send and no encoder here
// writes.
func TestOddForms(t *testing.T) {
	str := func(s string) []byte { return appendStr(nil, s) }
	join := func(parts ...any) (out []byte) {
		for _, p := range parts {
			switch p := p.(type) {
			case int:
				out = append(out, byte(p))
			case string:
				out = append(out, str(p)...)
			case []byte:
				out = append(out, p...)
			}
		}
		return out
	}
	salted := join(0x81, "cache_salt", "s")
	stored := join(0x95, "BlockStored", 0x91, 0x07, 0xc0, 0x91, 0x09, 0x01)
	removed := Event{Kind: Removed, Blocks: []EngineKey{5}}
	seven := Event{Kind: Stored, Blocks: []EngineKey{7}, Tokens: []uint32{9}, BlockSize: 1}
	with := func(e Event, change func(*Event)) Event { change(&e); return e }
	for name, c := range map[string]struct {
		payload []byte
		want    Batch
	}{
		"a map as envelope": {
			join(0x84, "seq", 0x07, "events", 0x91, stored, "ts", 0xca, 0x40, 0, 0, 0, "data_parallel_rank", 0x02),
			Batch{Time: 2, Rank: 2, Events: []Event{seven}},
		},
		"slots to come":    {join(0x95, 0x01, 0x91, stored, 0xc0, 0x92, 1, 2, "x"), Batch{Time: 1, Rank: -1, Events: []Event{seven}}},
		"no events as nil": {join(0x93, 0x01, 0xc0, 0xc0), Batch{Time: 1, Rank: -1}},
		"tokens in pairs": {
			join(0x92, 0x01, 0x91, 0x95, "BlockStored", 0x91, 0x07, 0xc0, 0x91, 0x92, 0x09, 0x0a, 0x01),
			Batch{Time: 1, Rank: -1, Events: []Event{seven}},
		},
		"old SGLang's salt": {
			join(0x92, 0x01, 0x91, 0x98, "BlockStored", 0x91, 0x07, 0xc0, 0x91, 0x09, 0x01, 0xc0, 0xc0, salted),
			Batch{Time: 1, Rank: -1, Events: []Event{with(seven, func(e *Event) { e.Salt = []byte("s") })}},
		},
		"type last, keys unknown": {
			join(0x92, 0x01, 0x91, 0x84, "block_hashes", 0x91, 0x05, "ownership", 0x81, 1, 2, "locality", "REMOTE", "type", "BlockRemoved"),
			Batch{Time: 1, Rank: -1, Events: []Event{with(removed, func(e *Event) { e.Remote = true })}},
		},
		"a removal that cannot be read": {
			join(0x92, 0x01, 0x92, 0x92, "BlockRemoved", 0x91, 0xc3, stored),
			Batch{Time: 1, Rank: -1, Events: []Event{seven}, Dropped: [Faults]int{FaultMalformed: 1}, Holes: true},
		},
		"a block size with a point": {
			join(0x92, 0x01, 0x92, 0x95, "BlockStored", 0x91, 0x07, 0xc0, 0x91, 0x09, 0xca, 0x40, 0, 0, 0, stored),
			Batch{Time: 1, Rank: -1, Events: []Event{seven}, Dropped: [Faults]int{FaultMalformed: 1}},
		},
		"tokens that do not fill the block": {
			join(0x92, 0x01, 0x91, 0x95, "BlockStored", 0x91, 0x07, 0xc0, 0x91, 0x09, 0x02),
			Batch{Time: 1, Rank: -1, Dropped: [Faults]int{FaultTokenCount: 1}},
		},
		"its own parent": {
			join(0x92, 0x01, 0x91, 0x95, "BlockStored", 0x91, 0x07, 0x07, 0x91, 0x09, 0x01),
			Batch{Time: 1, Rank: -1, Dropped: [Faults]int{FaultOwnParent: 1}},
		},
		"extras of every form": {
			join(0x92, 0x01, 0x91, 0x99, "BlockStored", 0x91, 0x07, 0xc0, 0x91, 0x09, 0x01, 0xc0, 0xc0, "ad", 0x91, 0x97,
				"ad", "salt", 0x92, "img", 0xff, 0xc4, 1, 0xee, 0x83, "type", "mm", "identifier", "i", "offset", 4, 0x81, "type", "new", 0x2a),
			Batch{Time: 1, Rank: -1, Events: []Event{with(seven, func(e *Event) {
				e.LoRA = []byte("ad")
				e.Extra = []Extra{
					{Kind: ExtraLoRA, Value: []byte("ad")},
					{Kind: ExtraSalt, Value: []byte("salt")},
					{Kind: ExtraMedia, Value: []byte("img"), Offset: -1},
					{Kind: ExtraEmbeds, Value: []byte{0xee}},
					{Kind: ExtraMedia, Value: []byte("i"), Offset: 4},
					{Kind: ExtraOther},
					{Kind: ExtraOther},
				}
			})}},
		},
	} {
		var got Batch
		if err := got.Decode(c.payload); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if a, b := plain(got), plain(c.want); a != b {
			t.Errorf("%s: read\n%s, want\n%s", name, a, b)
		}
	}
}

// bombs are payloads that promise more than they hold.
func bombs() [][]byte {
	open := []byte{0x92, 0x01, 0x91}
	stored := append(open, append([]byte{0x95}, appendStr(nil, "BlockStored")...)...)
	return [][]byte{
		{0xdd, 0xff, 0xff, 0xff, 0xff},
		{0xdf, 0xff, 0xff, 0xff, 0xff},
		{0x92, 0x01, 0xdd, 0xff, 0xff, 0xff, 0xff},
		{0x92, 0x01, 0xc6, 0xff, 0xff, 0xff, 0xff},
		slices.Concat(open, []byte{0xdf, 0xff, 0xff, 0xff, 0xff}),
		slices.Concat(stored, []byte{0xdd, 0xff, 0xff, 0xff, 0xff, 0x01}),
		slices.Concat(stored, []byte{0x91, 0x01, 0xc0, 0xdd, 0xff, 0xff, 0xff, 0xff, 0x01}),
		slices.Concat(open, bytes.Repeat([]byte{0x91}, 1<<20)),
		slices.Concat(open, bytes.Repeat([]byte{0xdd, 0, 0, 0xff, 0xff}, 1<<16)),
	}
}

func TestHostileLengthsAllocateNothing(t *testing.T) {
	for _, bomb := range bombs() {
		var b Batch
		b.Events = make([]Event, 0, 4) // room for the events that are begun
		b.hashes, b.tokens = make([]EngineKey, 0, 4), make([]uint32, 0, 4)
		var err error
		if n := testing.AllocsPerRun(1, func() { err = b.Decode(bomb) }); n > 0 || !errors.Is(err, ErrPayload) {
			t.Errorf("%.20x: %v allocations, %v", bomb, n, err)
		}
	}
}

func TestTruncatedPayloads(t *testing.T) {
	var b Batch
	for c := range Encodings {
		payload := typical(c)
		for n := range payload {
			if err := b.Decode(payload[:n]); !errors.Is(err, ErrPayload) {
				t.Fatalf("%v cut to %d of %d bytes: %v", c, n, len(payload), err)
			}
		}
	}
}

// typical is one step of a busy engine: two evictions and a prompt of 64 blocks
// stored in four runs.
func typical(c Encoding) []byte {
	events := []Event{{Kind: Removed, Blocks: []EngineKey{1 << 60, 3 << 60}}, {Kind: Removed, Tier: TierCPU, Blocks: []EngineKey{5 << 60}}}
	for i := range 4 {
		e := Event{Kind: Stored, BlockSize: 16, HasParent: true, Parent: 77 << 50, LoRA: []byte("adapter")}
		for j := range 16 {
			e.Blocks = append(e.Blocks, EngineKey(uint64(i*16+j+1)*0x9e3779b97f4a7c15))
			for k := range 16 {
				e.Tokens = append(e.Tokens, uint32(i*7919+j*104729+k*1299709)%150_000)
			}
		}
		events = append(events, e)
	}
	return c.AppendBatch(nil, 1.5e9, 0, events)
}

func TestDecodeAllocatesNothing(t *testing.T) {
	for c := range Encodings {
		payload := typical(c)
		var b Batch
		if err := b.Decode(payload); err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(20, func() { _ = b.Decode(payload) }); n > 0 {
			t.Errorf("%v: %v allocations", c, n)
		}
	}
}

// BenchmarkDecode reports a step of 6 events and 67 blocks of 16 tokens.
func BenchmarkDecode(b *testing.B) {
	for c := range Encodings {
		b.Run(c.String(), func(b *testing.B) {
			payload := typical(c)
			var batch Batch
			b.SetBytes(int64(len(payload)))
			b.ReportAllocs()
			for b.Loop() {
				if batch.Decode(payload) != nil {
					b.Fatal("unread")
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/6, "ns/event")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/67, "ns/block")
		})
	}
}

func FuzzDecode(f *testing.F) {
	for c := range Encodings {
		f.Add(typical(c)[:min(400, len(typical(c)))])
		f.Add(c.AppendBatch(nil, 2, 1, []Event{{Kind: Stored, Spec: SpecOther, BlockSize: 48, Blocks: []EngineKey{9}, Tokens: []uint32{4}}}))
		f.Add(c.AppendBatch(nil, 2, 1, []Event{{Kind: Stored, BlockSize: 1, Blocks: []EngineKey{9}, Tokens: []uint32{4}}, {Kind: Removed, Blocks: []EngineKey{9}}, {Kind: Cleared}}))
	}
	for _, bomb := range bombs()[:7] {
		f.Add(bomb)
	}
	var b, again Batch
	f.Fuzz(func(t *testing.T, payload []byte) {
		err := b.Decode(payload)
		total := 0
		for _, e := range b.Events {
			total += len(e.Blocks) + len(e.Tokens) + len(e.Extra)
			if e.Kind == 0 || e.judge() != FaultNone {
				t.Fatalf("kept %+v", e)
			}
		}
		if total+len(b.Events) > len(payload) {
			t.Fatalf("%d things of %d bytes", total, len(payload))
		}
		if err != nil || math.IsNaN(b.Time) {
			return
		}
		written := VLLMMap.AppendBatch(nil, b.Time, b.Rank, b.Events)
		if err := again.Decode(written); err != nil || len(again.Events) != len(b.Events) {
			t.Fatalf("%d events written as %x, read as %d: %v", len(b.Events), written, len(again.Events), err)
		}
		for i := range b.Events {
			if !slices.Equal(b.Events[i].Blocks, again.Events[i].Blocks) || !slices.Equal(b.Events[i].Tokens, again.Events[i].Tokens) {
				t.Fatalf("event %d changed when written again", i)
			}
		}
	})
}
