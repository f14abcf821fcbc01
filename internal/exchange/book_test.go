package exchange

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/fleet"
)

func at(s float64) fleet.Time { return fleet.Time(s * 1e9) }

// pairBook has p and d, and a ticket x between them.
func pairBook(t *testing.T) *Book {
	t.Helper()
	b := NewBook(DefaultConfig())
	for _, i := range []*Instance{vllm("p", "prefill"), vllm("d", "decode")} {
		if _, err := b.Register(at(0), *i, 5*time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if _, v, err := b.Plan(at(0), Order{ID: "x", Source: "p", Consumer: "d", Bytes: 1e9}); err != nil || !v.OK {
		t.Fatal(v, err)
	}
	return b
}

func TestTransfer(t *testing.T) {
	b := pairBook(t)
	if err := b.Readable(at(1), "x"); !errors.Is(err, ErrState) {
		t.Errorf("planned and readable: %v", err)
	}
	tk, err := b.Ready(at(1), "x", "p-1", 2e9, 0)
	if err != nil || tk.Deadline != at(31) || tk.Bytes != 2e9 {
		t.Fatalf("ready: %+v %v, want a deadline at 31 s", tk, err)
	}
	if tk, err = b.Pulling(at(2), "x", "d-1", 0); err != nil || tk.Deadline != at(32) {
		t.Fatalf("pulling: %+v %v", tk, err)
	}
	if tk, err = b.Done(at(2.5), "x", "d-1", 0, 0); err != nil || tk.Took != 500*time.Millisecond || tk.Moved != 2e9 {
		t.Fatalf("done: %+v %v", tk, err)
	}
	if _, err := b.Abort(at(3), "x", "late"); !errors.Is(err, ErrState) {
		t.Errorf("aborted after its end: %v", err)
	}
	if _, _, err := b.Plan(at(3), Order{ID: "x", Source: "p", Consumer: "d"}); !errors.Is(err, ErrState) {
		t.Errorf("an id used twice: %v", err)
	}
	if s := b.Links().List(); len(s) != 1 || s[0].From != "rack-1" || s[0].Samples != 1 {
		t.Errorf("links: %+v", s)
	}
	want := Tally{Opened: 1, Done: 1, Bytes: 2e9}
	if got := b.Tally(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestDeadlinesAreTheEngines(t *testing.T) {
	b := pairBook(t)
	p := vllm("p", "prefill")
	p.Connector.BlockLeaseMs = 480_000
	if _, err := b.Register(at(1), *p, 0); err != nil {
		t.Fatal(err)
	}
	if tk, err := b.Ready(at(2), "x", "p-1", 0, 0); err != nil || tk.Deadline != at(482) {
		t.Errorf("an engine that keeps blocks for 480 s: %v, %v", tk.Deadline, err)
	}
	b = pairBook(t)
	if tk, err := b.Ready(at(2), "x", "p-1", 0, 5*time.Second); err != nil || tk.Deadline != at(7) {
		t.Errorf("blocks kept for 5 s: %v, %v", tk.Deadline, err)
	}
	if due, ok := b.Wake(); !ok || due != at(7) {
		t.Errorf("due at %v", due)
	}
	b.Advance(at(7))
	if tk, _ := b.Ticket("x"); tk.Stage != Expired || tk.Reason == "" {
		t.Errorf("%+v", tk)
	}
}

func TestRestartFences(t *testing.T) {
	b := pairBook(t)
	if _, err := b.Ready(at(1), "x", "p-1", 0, 0); err != nil {
		t.Fatal(err)
	}
	next := vllm("p", "prefill")
	next.Incarnation = "p-2"
	if _, err := b.Register(at(2), *next, 0); err != nil {
		t.Fatal(err)
	}
	if tk, _ := b.Ticket("x"); tk.Stage != Aborted || tk.Reason != `the source "p" has restarted` {
		t.Errorf("%+v", tk)
	}
	if err := b.Readable(at(2), "x"); err == nil {
		t.Error("blocks of a dead process are readable")
	}
	if _, err := b.Register(at(3), *vllm("p", "prefill"), 0); !errors.Is(err, ErrStale) {
		t.Errorf("the old life registers: %v", err)
	}
	if _, err := b.Renew(at(3), "p", "p-1"); !errors.Is(err, ErrStale) {
		t.Errorf("the old life renews: %v", err)
	}
	if err := b.Leave(at(3), "p", "p-1"); !errors.Is(err, ErrStale) {
		t.Errorf("the old life leaves: %v", err)
	}
	b.Advance(at(100))
	if _, err := b.Renew(at(100), "p", "p-1"); !errors.Is(err, ErrStale) {
		t.Errorf("the old life renews when the new one is gone: %v", err)
	}
	if _, err := b.Renew(at(100), "p", "p-2"); !errors.Is(err, ErrUnknown) {
		t.Errorf("a lease that has ended is renewed: %v", err)
	}
	if _, err := b.Register(at(101), *next, 0); err != nil {
		t.Errorf("the same life comes back: %v", err)
	}
}

func TestStartedOrdersLives(t *testing.T) {
	b := NewBook(DefaultConfig())
	now, then := vllm("p", "prefill"), vllm("p", "prefill")
	now.Incarnation, now.Started, then.Started = "p-2", 2000, 1000
	if _, err := b.Register(at(0), *now, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Register(at(1), *then, 0); !errors.Is(err, ErrStale) {
		t.Errorf("a process begun earlier takes over: %v", err)
	}
}

func TestPlanRefuses(t *testing.T) {
	b := pairBook(t)
	other := vllm("q", "decode")
	other.Cache.DType = "fp8_e4m3"
	if _, err := b.Register(at(0), *other, 0); err != nil {
		t.Fatal(err)
	}
	if _, v, err := b.Plan(at(1), Order{ID: "y", Source: "p", Consumer: "q"}); !errors.Is(err, ErrIncompatible) || v.OK {
		t.Errorf("a bad pair: %v %v", v, err)
	}
	for want, o := range map[error]Order{
		ErrUnknown: {ID: "y", Source: "p", Consumer: "nobody"},
		ErrStale:   {ID: "y", Source: "p", Consumer: "d", SourceIncarnation: "p-0"},
		ErrState:   {ID: "x", Source: "p", Consumer: "d"},
	} {
		if _, _, err := b.Plan(at(1), o); !errors.Is(err, want) {
			t.Errorf("%+v: %v, want %v", o, err, want)
		}
	}
	if _, err := b.Ready(at(1), "x", "p-0", 0, 0); !errors.Is(err, ErrStale) {
		t.Errorf("ready by another life: %v", err)
	}
	if _, err := b.Pulling(at(1), "x", "d-1", 0); !errors.Is(err, ErrState) {
		t.Errorf("pulled before it is ready: %v", err)
	}
}

func TestPredictChargesTheSourcesLink(t *testing.T) {
	c := DefaultConfig()
	c.Prior = Prior{Latency: 10 * time.Millisecond, BytesPerSecond: 1e10}
	b := NewBook(c)
	p := vllm("p", "prefill")
	for _, i := range []*Instance{p, vllm("d", "decode"), vllm("e", "decode")} {
		if _, err := b.Register(at(0), *i, 5*time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	alone, err := b.Predict(at(0), "p", "d", 2e9) // 2 GB on two lanes of 10 GB/s
	if err != nil || math.Abs(alone.Seconds-0.11) > 1e-9 {
		t.Fatalf("%+v %v, want 110 ms", alone, err)
	}
	for i, bytes := range []int64{1e9, 8e9} {
		id := fmt.Sprint(i)
		if _, _, err := b.Plan(at(0), Order{ID: id, Source: "p", Consumer: "e", Bytes: bytes}); err != nil {
			t.Fatal(err)
		}
		if e, _ := b.Predict(at(0), "p", "d", 2e9); i == 0 && e != alone {
			t.Errorf("a planned move is charged: %+v", e)
		}
		if _, err := b.Ready(at(0), id, "p-1", 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	// The small one takes its 50 ms, the large one as much as the move itself.
	if e, _ := b.Predict(at(0), "p", "d", 2e9); math.Abs(e.Wait-0.15) > 1e-9 || math.Abs(e.Seconds-0.26) > 1e-9 {
		t.Errorf("%+v, want 150 ms for others", e)
	}
	if _, err := b.Pulling(at(0), "1", "e-1", 0); err != nil {
		t.Fatal(err)
	}
	if e, _ := b.Predict(at(0.4), "p", "d", 2e9); e.Wait > 0.06+0.05 || e.Wait < 0.05 {
		t.Errorf("nearly pulled: %+v", e)
	}
}

func TestBookIsBounded(t *testing.T) {
	c := DefaultConfig()
	c.MaxInstances, c.MaxTickets, c.KeepTickets = 2, 3, 4
	b := NewBook(c)
	for n := range 1000 { // ids come and go, each in two lives
		i := vllm(fmt.Sprint("p", n), "prefill")
		for life := range 2 {
			i.Incarnation = fmt.Sprint(life)
			if _, err := b.Register(at(float64(n)), *i, time.Second/2); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(b.fences) > fencesPer*2 || len(b.oldest) != len(b.fences) {
		t.Errorf("%d fences, %d names", len(b.fences), len(b.oldest))
	}
	b = NewBook(c)
	for _, i := range []*Instance{vllm("p", "prefill"), vllm("d", "decode")} {
		if _, err := b.Register(at(0), *i, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Register(at(0), *vllm("q", "decode"), 0); !errors.Is(err, ErrFull) {
		t.Errorf("a third of two: %v", err)
	}
	for n := range 100 {
		if _, _, err := b.Plan(at(0), Order{ID: fmt.Sprint(n), Source: "p", Consumer: "d"}); (n >= 3) != errors.Is(err, ErrFull) {
			t.Errorf("ticket %d: %v", n, err)
		}
	}
	for n := range 100 {
		_, _ = b.Abort(at(0), fmt.Sprint(n), "")
		_, _, _ = b.Plan(at(0), Order{ID: fmt.Sprint("again", n), Source: "p", Consumer: "d"})
		_, _ = b.Abort(at(0), fmt.Sprint("again", n), "")
	}
	if len(b.closed) > 4 || len(b.open) > 0 || len(b.dues) != 2 {
		t.Errorf("%d closed, %d open, %d due", len(b.closed), len(b.open), len(b.dues))
	}
}

// TestBookKeepsItsLaws drives a book with random histories beside what is known
// of lives: no ticket is lost or closed twice, and none is readable, made ready or
// pulled unless the lives it was opened for are the present ones.
func TestBookKeepsItsLaws(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := DefaultConfig()
		c.KeepTickets = 100000
		m := &model{b: NewBook(c), lives: map[string]int{}, ended: map[string]Stage{}}
		for range rapid.IntRange(1, 80).Draw(rt, "steps") {
			m.step(rt)
			m.check(rt)
		}
	})
}

// model drives a book.
type model struct {
	b     *Book
	now   fleet.Time
	lives map[string]int // the latest life of an instance
	ids   []string
	ended map[string]Stage
}

func life(id string, n int) string { return fmt.Sprintf("%s-%d", id, n) }

func (m *model) step(rt *rapid.T) {
	m.now = m.now.Add(time.Duration(rapid.IntRange(0, 20).Draw(rt, "seconds")) * time.Second)
	src := rapid.SampledFrom([]string{"p1", "p2"}).Draw(rt, "source")
	dst := rapid.SampledFrom([]string{"d1", "d2"}).Draw(rt, "consumer")
	back := rapid.IntRange(0, 1).Draw(rt, "lives back")
	id := "none"
	if len(m.ids) > 0 {
		id = rapid.SampledFrom(m.ids).Draw(rt, "ticket")
	}
	who := rapid.SampledFrom([]string{src, dst}).Draw(rt, "who")
	tk, _ := m.b.Ticket(id)
	sl, dl := life(tk.Source, m.lives[tk.Source]-back), life(tk.Consumer, m.lives[tk.Consumer]-back)
	switch rapid.SampledFrom([]string{"register", "register", "restart", "renew", "leave", "plan", "plan", "plan", "ready", "ready", "pulling", "done", "abort", "advance"}).Draw(rt, "op") {
	case "register":
		m.register(rt, who, max(1, m.lives[who]-back))
	case "restart":
		m.register(rt, who, m.lives[who]+1)
	case "renew":
		_, _ = m.b.Renew(m.now, who, life(who, m.lives[who]-back))
	case "leave":
		_ = m.b.Leave(m.now, who, life(who, m.lives[who]-back))
	case "plan":
		id := fmt.Sprint(len(m.ids))
		if _, _, err := m.b.Plan(m.now, Order{ID: id, Source: src, Consumer: dst, Bytes: 1e9}); err == nil {
			m.ids = append(m.ids, id)
		}
	case "ready":
		if _, err := m.b.Ready(m.now, id, sl, 0, 0); err == nil && back > 0 {
			rt.Fatalf("%q was made ready by a life that is over", id)
		}
	case "pulling":
		if _, err := m.b.Pulling(m.now, id, dl, 0); err == nil && back > 0 {
			rt.Fatalf("%q was pulled by a life that is over", id)
		}
	case "done":
		_, _ = m.b.Done(m.now, id, dl, 0, 0)
	case "abort":
		_, _ = m.b.Abort(m.now, id, "test")
	case "advance":
		m.b.Advance(m.now)
	}
}

func (m *model) register(rt *rapid.T, id string, n int) {
	role := "decode"
	if id[0] == 'p' {
		role = "prefill"
	}
	i := vllm(id, role)
	i.Incarnation = life(id, n)
	if _, err := m.b.Register(m.now, *i, time.Minute); (err == nil) != (n >= m.lives[id]) {
		rt.Fatalf("life %d of %q registers after %d: %v", n, id, m.lives[id], err)
	}
	m.lives[id] = max(m.lives[id], n)
}

func (m *model) check(rt *rapid.T) {
	m.b.Advance(m.now)
	tally := m.b.Tally()
	if tally.Opened != tally.Done+tally.Aborted+tally.Expired+uint64(tally.Open) || tally.Opened != uint64(len(m.ids)) {
		rt.Fatalf("tickets are lost: %+v, of %d", tally, len(m.ids))
	}
	for _, id := range m.ids {
		tk, ok := m.b.Ticket(id)
		if !ok {
			rt.Fatalf("%q is lost", id)
		}
		if was, over := m.ended[id]; over && was != tk.Stage {
			rt.Fatalf("%q was %s and is %s", id, was, tk.Stage)
		}
		if !tk.Stage.Open() {
			m.ended[id] = tk.Stage
			if m.b.Readable(m.now, id) == nil {
				rt.Fatalf("%q is %s and readable", id, tk.Stage)
			}
			continue
		}
		src, there := m.b.Find(tk.Source)
		if tk.Deadline <= m.now || !there || src.Incarnation != tk.SourceIncarnation {
			rt.Fatalf("%+v is open at %v, its source is %+v", tk, m.now, src.Incarnation)
		}
		if (m.b.Readable(m.now, id) == nil) != (tk.Stage != Planned) {
			rt.Fatalf("%q is %s: %v", id, tk.Stage, m.b.Readable(m.now, id))
		}
	}
	if n := tally.Open + len(m.b.held); n != len(m.b.dues) {
		rt.Fatalf("%d things are held and %d are due", n, len(m.b.dues))
	}
}

func BenchmarkTransfer(b *testing.B) {
	book := NewBook(DefaultConfig())
	for _, i := range []*Instance{vllm("p", "prefill"), vllm("d", "decode")} {
		if _, err := book.Register(at(0), *i, MaxLease); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		id := strconv.Itoa(n)
		_, _, _ = book.Plan(at(1), Order{ID: id, Source: "p", Consumer: "d", Bytes: 1e9})
		_, _ = book.Ready(at(1), id, "p-1", 0, 0)
		_, _ = book.Pulling(at(1), id, "d-1", 0)
		_, _ = book.Predict(at(1), "p", "d", 1e9)
		if _, err := book.Done(at(2), id, "d-1", 0, 0); err != nil {
			b.Fatal(err)
		}
	}
}
