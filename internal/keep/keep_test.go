package keep

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/pool"
)

func newKeep(t testing.TB) *Keep {
	t.Helper()
	p, err := live.NewPool(live.Options{Name: "p", Config: pool.Default()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return New(Options{Pool: p, Config: kv.KeepConfig{Declared: true, Hot: true, MaxBytes: 1 << 20, Share: 0.05, Quota: 100_000, MaxLife: time.Hour}})
}

// seen is a request whose prompt has so many keys, of a conversation.
func seen(id string, talk, keys int) *gateway.Seen {
	body := make([]byte, keys*kv.ChunkBytes)
	return &gateway.Seen{
		ID: id, Kind: api.Chat, Body: body, Declared: api.Declared{Part: 1},
		Prompt: kv.Prompt{Tokens: 64 * 10, KeyTokens: 64, Chain: kv.Chain(nil, kv.Seed(fmt.Append(nil, talk)), body)},
	}
}

func TestLateRequestsAreKnownUntilTheyAreOld(t *testing.T) {
	k := newKeep(t)
	first := seen("first", 1, 100)
	first.Declared.Session = "s" // of which nothing is declared: its keys are known, its text is not
	k.o.Config.Declared = false
	k.SetConfig(k.o.Config)
	k.Note(first)
	if p, ok := k.Request("first"); !ok || !slices.Equal(p.Chain, first.Prompt.Chain) {
		t.Fatalf("%v, %d keys", ok, len(p.Chain))
	}
	if _, text, ok := k.Session("", "s"); !ok || text != nil {
		t.Errorf("session: %v, text %v", ok, text != nil)
	}
	for i := range maxLateKeys/100 + 1 {
		k.Note(seen(fmt.Sprint(i), i+2, 100))
	}
	if _, ok := k.Request("first"); ok {
		t.Error("its keys have been written over, and are believed")
	}
	if p, ok := k.Request("7"); !ok || !slices.Equal(p.Chain, seen("", 9, 100).Prompt.Chain) {
		t.Errorf("a later one: %v, %d keys", ok, len(p.Chain))
	}
}

func TestTextsLeaveWithWhatIsKept(t *testing.T) {
	k := newKeep(t)
	for i := range 400 {
		s := seen(fmt.Sprint(i), i, 40)
		s.Declared.Life = time.Minute
		k.Note(s)
		if len(k.texts) > 102 || k.keeper.Bytes() > 1<<20 {
			t.Fatalf("%d texts, %d bytes", len(k.texts), k.keeper.Bytes())
		}
	}
	if len(k.texts) != len(k.keeper.Kept(k.o.Pool.Now())) {
		t.Errorf("%d texts for %d prefixes", len(k.texts), len(k.keeper.Kept(k.o.Pool.Now())))
	}
}

// BenchmarkNote is what a request costs that nobody has declared, with a prompt
// of 12,000 tokens that begins like many.
func BenchmarkNote(b *testing.B) {
	k := newKeep(b)
	requests := make([]*gateway.Seen, 64)
	for i := range requests {
		requests[i] = seen("r", i, 200)
	}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		k.Note(requests[n%len(requests)])
		n++
	}
}
