package kv

import (
	"bytes"
	"encoding/hex"
	"hash/fnv"
	"slices"
	"testing"
)

// What vLLM's own hashing (kv_cache_utils, sha256_cbor) makes of the tokens 1
// to 8 in blocks of 4, by PYTHONHASHSEED.
const (
	noneUnseeded = "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0"
	firstBlock   = "58d0879dff3800f65f8c5fd449d73048c0f7699dd238a03b84b146b151d55111"
	secondBlock  = "e1bc29393a2da9fd798f35ff04d215f846aee6df4b803ce3d43b57df56b58fb1"
	none42       = "9fa6eb003f14425eb9c8e6baacfbcaab26257357b829c7bfa74ffcc4f31c1780"
	first42      = "0a99040f25d8a5f22275b867f403918da98c9d140eaea10f5319d4d1d84429df"
	none0        = "4e1195df020de59e0d65a33a4279f1183e7ae4e5d980e309f8b55adff2e61c3e"
	firstTagged  = "280bce663478b44320e68be593605214c94f7648ac34b4b94274fdcd0f2a8a04"
)

var oneToEight = []uint32{1, 2, 3, 4, 5, 6, 7, 8}

func TestVLLMHashes(t *testing.T) {
	embeds := make([]byte, 32)
	for i := range embeds {
		embeds[i] = byte(i)
	}
	tagged := &Extras{
		Form: ExtraTagged, Adapter: "adapter", AdapterPath: "/adapters/adapter",
		Media: []Media{{ID: "mm-abc", Length: 4}}, Salt: "salt-1", Embeds: [][]byte{embeds},
	}
	for _, c := range []struct {
		name, seed, root string
		tokens           int
		extras           *Extras
		want             []string
	}{
		{"unseeded", VLLMUnseeded, noneUnseeded, 8, nil, []string{firstBlock, secondBlock}},
		{"nothing extra", VLLMUnseeded, noneUnseeded, 8, &Extras{}, []string{firstBlock, secondBlock}},
		{"last block not full", VLLMUnseeded, noneUnseeded, 7, nil, []string{firstBlock}},
		{"seed 42", "42", none42, 4, nil, []string{first42}},
		{"seed 0", "0", none0, 0, nil, nil},
		{"tagged extras", VLLMUnseeded, noneUnseeded, 4, tagged, []string{firstTagged}},
	} {
		root := VLLMRoot(c.seed)
		if got := hex.EncodeToString(root[:]); got != c.root {
			t.Errorf("%s: root %s, want %s", c.name, got, c.root)
		}
		var got []string
		for _, d := range NewHasher(root, 4).Chain(nil, oneToEight[:c.tokens], c.extras) {
			got = append(got, hex.EncodeToString(d[:]))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	chain := NewHasher(VLLMRoot(VLLMUnseeded), 4).Chain(nil, oneToEight, nil)
	if a, b := chain[0].Low(), chain[1].Low(); a != 9561501211280363793 || b != 15292913576410714033 {
		t.Errorf("events would carry %d and %d", a, b)
	}
}

// TestExtrasAreWritten looks at the bytes that are hashed, which the digests of
// the other forms cannot be had for without an engine.
func TestExtrasAreWritten(t *testing.T) {
	x := Extras{Adapter: "l", Salt: "s", Media: []Media{{"a", 1, 2}, {"b", 3, 30}}}
	for _, c := range []struct {
		form  ExtraForm
		block int
		want  string // CBOR diagnostic notation behind it
	}{
		{ExtraBare, 0, "84" + "616c" + "6161" + "6162" + "6173"},                             // ["l","a","b","s"]
		{ExtraPaired, 0, "84" + "616c" + "82616101" + "82616203" + "6173"},                   // ["l",["a",1],["b",3],"s"]
		{ExtraPaired, 1, "82" + "616c" + "82616220"},                                         // ["l",["b",-1]]
		{ExtraPaired, 7, "82" + "616c" + "8261623818"},                                       // ["l",["b",-25]]
		{ExtraPaired, 9, "81" + "616c"},                                                      // ["l"]
		{ExtraTagged, 1, "82" + "83" + "646c6f7261" + "616c" + "60" + "83626d6d" + "616220"}, // [["lora","l",""],["mm","b",-1]]
	} {
		x.Form = c.form
		const size = 4
		from, media := c.block*size, 0
		for media < len(x.Media) && x.Media[media].Offset+x.Media[media].Length <= from {
			media++
		}
		got := x.append(nil, c.block, from, x.inside(media, from+size))
		if hex.EncodeToString(got) != c.want {
			t.Errorf("form %d, block %d: %x, want %s", c.form, c.block, got, c.want)
		}
	}
}

func TestChainsTellApart(t *testing.T) {
	tokens := make([]uint32, 40)
	for i := range tokens {
		tokens[i] = uint32(i * 7919)
	}
	h := NewHasher(VLLMRoot("0"), 8)
	plain := h.Chain(nil, tokens, nil)
	for _, c := range []struct {
		name string
		x    Extras
		same int // blocks that keep their names
	}{
		{"adapter", Extras{Adapter: "a"}, 0},
		{"salt", Extras{Salt: "a"}, 0},
		{"an image in the third block", Extras{Media: []Media{{"i", 20, 3}}}, 2},
		{"embeddings in the second", Extras{Embeds: [][]byte{nil, {1}}}, 1},
	} {
		got := h.Chain(nil, tokens, &c.x)
		for i := range plain {
			if (got[i] == plain[i]) != (i < c.same) {
				t.Errorf("%s: block %d is the same: %v", c.name, i, got[i] == plain[i])
			}
		}
		for cut := range got {
			if again := h.Chain(slices.Clone(got[:cut]), tokens, &c.x); !slices.Equal(again, got) {
				t.Errorf("%s: continuing behind block %d gives another chain", c.name, cut)
			}
		}
	}
}

// Computed with SGLang's own page hashing.
func TestSGLangHashes(t *testing.T) {
	for _, c := range []struct {
		page   int
		tokens []uint32
		want   []int64
	}{
		{4, []uint32{1, 2, 3, 4, 5}, []int64{-3488128144981237669}},
		{2, []uint32{10, 20, 30, 40, 50, 60, 70, 80}, []int64{978178666101069530, -895308556211281782, -8033692805846017938, 835415944263129316}},
	} {
		var got []int64
		for _, d := range SGLangChain(nil, SGLangRoot(""), c.page, c.tokens) {
			got = append(got, int64(d.High()))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("pages of %d: %v, want %v", c.page, got, c.want)
		}
	}
	if got := hex.EncodeToString(SGLangRoot("tenant-a")); got != "f5d0f785efe6042a4e4b0297a4d712917e1763c850835e93df58b373fd47fd2c" {
		t.Errorf("salted root %s", got)
	}
	salted := SGLangChain(nil, SGLangRoot("tenant-a"), 2, oneToEight)
	if salted[0] == SGLangChain(nil, nil, 2, oneToEight)[0] {
		t.Error("the salt changes nothing")
	}
	if again := SGLangChain(slices.Clone(salted[:2]), SGLangRoot("tenant-a"), 2, oneToEight); !slices.Equal(again, salted) {
		t.Error("a continued chain is another one")
	}
}

// TestCBOR checks the encoder with numbers of every width against the block
// hashes that llm-d-inference-sim (Apache-2.0) was seen to publish: FNV-1a over
// the same triple, with numbers for parents.
func TestCBOR(t *testing.T) {
	sum := func(b []byte) uint64 {
		h := fnv.New64a()
		h.Write(b)
		return h.Sum64()
	}
	block := func(parent uint64, tokens ...uint64) uint64 {
		b := appendCBORHead(appendCBORHead(nil, cborArray, 3), cborUint, parent)
		b = appendCBORHead(b, cborArray, uint64(len(tokens)))
		for _, x := range tokens {
			b = appendCBORHead(b, cborUint, x)
		}
		return sum(append(b, cborNull))
	}
	root := appendCBORHead(appendCBORHead(nil, cborArray, 3), cborUint, sum([]byte("42")))
	model := sum(appendCBORText(append(bytes.Clone(root), cborNull), "base-model"))
	first := block(model, 186949092, 2100038943, 2536109942, 2568826537, 1931129920, 623020091, 4280290770, 2705018965)
	second := block(first, 2067322348, 2906644583, 2268947966, 154232497, 2737735560, 355858115, 791929114, 2437856989)
	if model != 0x3c3f60cea9534430 || first != 0xa7e41f98e7c9f6b5 || second != 0x746df56b540a678d {
		t.Errorf("%x, %x, %x", model, first, second)
	}
	var b []byte
	for _, n := range []int{0, 23, 24, 255, 256, 65535, 65536, 1 << 32, -1, -24, -25, -256, -257} {
		b = appendCBORInt(b, n)
	}
	want := "00" + "17" + "1818" + "18ff" + "190100" + "19ffff" + "1a00010000" + "1b0000000100000000" + "20" + "37" + "3818" + "38ff" + "390100"
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestHasherAllocatesNothing(t *testing.T) {
	h, tokens := NewHasher(VLLMRoot("0"), 16), make([]uint32, 4096)
	x := &Extras{Adapter: "a", Salt: "s", Media: []Media{{"i", 20, 300}}}
	dst := h.Chain(nil, tokens, x)
	if n := testing.AllocsPerRun(10, func() { dst = h.Chain(dst[:0], tokens, x) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkHasher(b *testing.B) {
	h, tokens := NewHasher(VLLMRoot("0"), 16), make([]uint32, 8192)
	for i := range tokens {
		tokens[i] = uint32(i * 15)
	}
	var dst []Digest
	b.ReportAllocs()
	for b.Loop() {
		dst = h.Chain(dst[:0], tokens, nil)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(dst)), "ns/block")
}
