package kv

import (
	"math"
	"slices"
	"testing"

	"penstock.dev/penstock/internal/stat"
)

// lru is a cache of so many blocks, to hold a Curve against.
type lru struct {
	size int
	keys []Key // oldest first
	hits float64
}

func (l *lru) use(chain []Key) {
	for _, k := range slices.Backward(chain) {
		if i := slices.Index(l.keys, k); i >= 0 {
			l.hits++
			l.keys = slices.Delete(l.keys, i, i+1)
		} else if len(l.keys) == l.size {
			l.keys = l.keys[1:]
		}
		l.keys = append(l.keys, k)
	}
}

// chats are conversations that grow, taken up at random.
func chats(n int, each func(chain []Key)) float64 {
	r := stat.NewRand(7, "curve")
	talks := make([][]Key, 40)
	asked := 0.0
	for range n {
		i := r.IntN(len(talks))
		if i%2 == 0 {
			i = r.IntN(6) * 2 // some are livelier
		}
		for range 1 + r.IntN(6) {
			talks[i] = append(talks[i], Key(stat.Mix64(uint64(i)<<32|uint64(len(talks[i])))))
		}
		each(talks[i])
		asked += float64(len(talks[i]))
		if len(talks[i]) > 60 {
			talks[i] = talks[i][:4:4]
		}
	}
	return asked
}

func TestCurveIsWhatCachesDo(t *testing.T) {
	for _, size := range []int{50, 150, 400, 2000} {
		whole, c := &lru{size: size}, NewCurve(1, 1<<20)
		asked := chats(600, func(chain []Key) { whole.use(chain); c.Use(chain) })
		want := whole.hits / asked
		if got := c.HitShare(float64(size)); math.Abs(got-want) > 0.02 {
			t.Errorf("%d blocks hold %.3f of what is asked for, the curve says %.3f", size, want, got)
		}
	}
}

func TestCurveOfASample(t *testing.T) {
	full, part := NewCurve(1, 1<<20), NewCurve(0.1, 1<<20)
	chats(6000, func(chain []Key) { full.Use(chain); part.Use(chain) })
	for _, size := range []float64{100, 300, 900} {
		if a, b := full.HitShare(size), part.HitShare(size); math.Abs(a-b) > 0.06 {
			t.Errorf("%v blocks: %.3f, from a tenth of the keys %.3f", size, a, b)
		}
	}
	if len(part.at) > len(full.at)/5 {
		t.Errorf("%d of %d keys are in a sample of a tenth", len(part.at), len(full.at))
	}
}

func TestCurveForgetsWhatIsFarAway(t *testing.T) {
	c := NewCurve(1, 100)
	for i := range 50_000 {
		c.Use([]Key{Key(i + 1)})
	}
	if len(c.at) > 2*1024 || len(c.order) > 4*1024 {
		t.Errorf("%d keys and %d positions kept", len(c.at), len(c.order))
	}
	if c.HitShare(100) != 0 || c.Ceiling() != 0 {
		t.Error("hits where no key comes twice")
	}
}

func BenchmarkCurve(b *testing.B) {
	c := NewCurve(0.01, 1<<22)
	chain := make([]Key, 750)
	n := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		for i := range chain {
			n++
			chain[i] = Key(stat.Mix64(n % 1_000_000))
		}
		c.Use(chain)
	}
}
