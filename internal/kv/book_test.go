package kv

import (
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// bookOfOne is a book of one slot whose feed is live and has told everything, and a
// prompt of 40 keys of the history, 2,560 tokens, and of 160 blocks.
type bookOfOne struct {
	*testing.T
	b *Book
	p Prompt
}

const second = fleet.Time(time.Second)

func newBookOfOne(t *testing.T) *bookOfOne {
	s := &bookOfOne{T: t, b: NewBook(Default())}
	s.b.SetCapacity(0, 100_000)
	s.b.Apply(0, 0, &Update{State: FeedLive, Whole: true})
	s.p = promptOf(1)
	return s
}

// promptOf returns a prompt of 2,561 tokens that shares nothing with another number's.
func promptOf(n Key) Prompt {
	p := Prompt{Tokens: 2561, KeyTokens: 64}
	for i := range Key(40) {
		p.Chain = append(p.Chain, n<<32|i)
	}
	for i := range Key(160) {
		p.Blocks = append(p.Blocks, n<<32|1<<16|i)
	}
	return p
}

// looks fails unless so many tokens are believed, from this source.
func (s *bookOfOne) looks(now fleet.Time, tokens fleet.Tokens, source fleet.CacheSource) {
	s.Helper()
	var out [1]fleet.Cached
	s.b.Look(now, &s.p, out[:])
	if out[0].Tokens != tokens || tokens > 0 && out[0].Source != source {
		s.Errorf("at %v: %d tokens, source %v; want %d, source %v", now, out[0].Tokens, out[0].Source, tokens, source)
	}
}

func (s *bookOfOne) send(now fleet.Time) *Ticket {
	var out [1]fleet.Cached
	s.b.Look(now, &s.p, out[:])
	t := new(Ticket)
	s.b.Sent(now, 0, &s.p, out[0], t)
	return t
}

func (s *bookOfOne) stored(now fleet.Time) {
	s.b.Apply(now, 0, &Update{State: FeedLive, Whole: true, Changes: []Change{{Kind: ChangeStore, Keys: s.p.Blocks}}})
}

func (s *bookOfOne) removed(now fleet.Time) {
	s.b.Apply(now, 0, &Update{State: FeedLive, Whole: true, Changes: []Change{{Kind: ChangeRemove, Keys: s.p.Blocks}}})
}

func TestWhatIsOnItsWayIsExpectedUntilEventsMustHaveTold(t *testing.T) {
	s := newBookOfOne(t)
	s.looks(0, 0, 0)
	k := s.send(0)
	s.looks(100*second, 2560, fleet.CacheExpected) // it stands in the engine's queue
	s.b.First(100*second, k, 0)
	s.looks(100*second+second/10, 2560, fleet.CacheExpected)
	s.looks(102*second, 0, 0) // its events should be here
	s.stored(103 * second)
	s.looks(103*second, 2560, fleet.CacheConfirmed)
}

func TestWhatEventsHaveTakenBackIsNotExpectedForOthersOnTheirWay(t *testing.T) {
	s := newBookOfOne(t)
	k := s.send(0)
	s.b.First(second, k, 0)
	s.stored(second)
	other := &bookOfOne{T: t, b: s.b, p: promptOf(2)}
	other.send(second) // waits from now on
	s.b.Done(2*second, k, &s.p, 1, fleet.Usage{})
	s.removed(3 * second)
	s.looks(60*second, 0, 0)
	other.looks(60*second, 2560, fleet.CacheExpected)
}

func TestWhatWillNotComeIsNotExpected(t *testing.T) {
	s := newBookOfOne(t)
	k := s.send(0)
	again := s.send(0)
	s.b.Drop(k)
	s.looks(second, 2560, fleet.CacheExpected)
	s.b.Drop(again)
	s.looks(second, 0, 0)
}

func TestAnswersOfAProcessThatIsGoneSettleNothingOfTheNext(t *testing.T) {
	s := newBookOfOne(t)
	old := s.send(0)
	s.b.Renew(0)
	s.b.Apply(second, 0, &Update{State: FeedLive, Whole: true})
	s.send(2 * second)
	s.b.Drop(old)
	s.looks(3*second, 2560, fleet.CacheExpected)
}

// answer has a prompt of which the events claim everything answered with so many
// tokens cached.
func (s *bookOfOne) answer(now fleet.Time, cached fleet.Tokens, between func()) {
	k := s.send(now)
	between()
	s.b.First(now, k, 0)
	s.b.Done(now, k, &Prompt{Chain: s.p.Chain}, uint64(now), fleet.Usage{Known: true, Prompt: s.p.Tokens, Cached: cached})
}

func TestAFeedIsBlamedForWhatItClaimsOnly(t *testing.T) {
	for _, c := range []struct {
		name    string
		between func(s *bookOfOne)
		demoted bool
	}{
		{"never taken back", func(*bookOfOne) {}, true},
		{"taken back before the answer", func(s *bookOfOne) { s.removed(second); s.stored(second) }, false},
		{"cleared before the answer", func(s *bookOfOne) {
			s.b.Apply(second, 0, &Update{State: FeedLive, Whole: true, Changes: []Change{{Kind: ChangeClear}}})
			s.stored(second)
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newBookOfOne(t)
			s.stored(0)
			for i := range fleet.Time(1000) {
				s.answer(i*second, 0, func() { c.between(s) })
			}
			if got := s.b.Standing(0).Demoted; got != c.demoted {
				t.Errorf("demoted %v, want %v", got, c.demoted)
			}
			if n := len(s.b.claims); n != 0 {
				t.Errorf("%d claims are left open", n)
			}
		})
	}
}

func TestBookAllocatesNothingInSteadyState(t *testing.T) {
	s := newBookOfOne(t)
	s.stored(0)
	out, k := make([]fleet.Cached, 1), new(Ticket)
	round := func() {
		s.b.Look(second, &s.p, out)
		s.b.Sent(second, 0, &s.p, out[0], k)
		s.b.First(second, k, 0)
		s.b.Drop(k)
	}
	round()
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

// TestOnlyStoresThatTellAreBelieved: what a shared store has counts for every
// endpoint, for as long as its events come.
func TestOnlyStoresThatTellAreBelieved(t *testing.T) {
	s := newBookOfOne(t)
	const store = 1
	s.b.SetStore(store, true)
	tell := func(state FeedState, changes ...Change) {
		s.b.Apply(0, store, &Update{State: state, Whole: state == FeedLive, Changes: changes})
	}
	tell(FeedLive, Change{Kind: ChangeStore, Keys: s.p.Blocks, Tier: TierShared})
	var out [1]fleet.Cached
	s.b.Look(0, &s.p, out[:])
	if out[0].Tokens != 2560 || out[0].Shared != 2560 {
		t.Errorf("while the store tells: %+v, want 2,560 tokens in the store", out[0])
	}
	tell(FeedUnknown)
	if s.b.Look(0, &s.p, out[:]); out[0].Tokens != 0 {
		t.Errorf("after it lost its history: %+v, want nothing", out[0])
	}
}
