package control

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"penstock.dev/penstock/internal/engine/kvfeed"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/live"
)

// Feeds follow the KV events of a pool's endpoints and tell the pool what changes.
type Feeds struct {
	pool  *live.Pool
	space kv.KeySpace
	log   *slog.Logger
	// Warm returns what another gateway knew of an endpoint, nil for nothing. It is
	// asked before the first connection, and may be nil.
	Warm func(ctx context.Context, e live.Endpoint) []byte

	running sync.WaitGroup
	tagged  atomic.Bool // an engine was seen to write extras with their kinds
	mu      sync.Mutex
	feeds   map[string]*feed // by endpoint
}

// feed is one endpoint's.
type feed struct {
	endpoint live.Endpoint
	status   FeedStatus
	save     chan func([]byte)
	ended    chan struct{}
}

// FeedStatus is what is known of one endpoint's feed.
type FeedStatus struct {
	Endpoint string
	From     live.Feed
	Follower kv.FollowerStatus
	Link     kvfeed.LinkStatus
}

// NewFeeds returns the feeds of a pool whose index has keys of the given space.
func NewFeeds(p *live.Pool, s kv.KeySpace, log *slog.Logger) *Feeds {
	return &Feeds{pool: p, space: s, log: log, feeds: map[string]*feed{}}
}

// Space returns how the keys of the index are made.
func (f *Feeds) Space() kv.KeySpace { return f.space }

// Form returns how the engines write what beside tokens makes a block's key, as far
// as any has shown. Those of one pool are taken to be of one release.
func (f *Feeds) Form() kv.ExtraForm {
	if f.tagged.Load() {
		return kv.ExtraTagged
	}
	return kv.ExtraPaired
}

// Follow follows an endpoint's events until ctx ends, if it publishes any.
func (f *Feeds) Follow(ctx context.Context, e live.Endpoint) {
	if e.Feed.Events == "" {
		return
	}
	one := &feed{endpoint: e, save: make(chan func([]byte)), ended: make(chan struct{})}
	one.status = FeedStatus{Endpoint: e.Name, From: e.Feed, Follower: kv.FollowerStatus{Rank: -1}}
	f.mu.Lock()
	f.feeds[e.Name] = one
	f.mu.Unlock()
	f.running.Go(func() { f.follow(ctx, one) })
}

// Wait returns when every feed has ended.
func (f *Feeds) Wait() { f.running.Wait() }

func (f *Feeds) follow(ctx context.Context, one *feed) {
	e := one.endpoint
	defer func() {
		close(one.ended)
		f.mu.Lock()
		if f.feeds[e.Name] == one {
			delete(f.feeds, e.Name)
		}
		f.mu.Unlock()
		f.pool.Cached(e, kv.Update{Ended: true})
	}()
	o := kvfeed.FollowOptions{
		Publish: e.Feed.Events, Replay: e.Feed.Replay, Rank: e.Feed.Rank, Topics: e.Feed.Topic, Keys: f.space, Save: one.save,
	}
	if f.Warm != nil {
		o.State = f.Warm(ctx, e)
	}
	err := kvfeed.Follow(ctx, o, func(u kvfeed.Update) { f.take(one, u) })
	if ctx.Err() == nil {
		f.log.Error("KV events cannot be followed; what is cached there is guessed from what was sent", "endpoint", e.Name, "from", e.Feed.Events, "err", err)
	}
}

// take passes on what a feed has to say.
func (f *Feeds) take(one *feed, u kvfeed.Update) {
	f.mu.Lock()
	before, refused := one.status.Follower.State, one.status.Follower.Misfit
	one.status.Follower, one.status.Link = u.Status, u.Link
	f.mu.Unlock()
	if u.Status.Form == kv.ExtraTagged {
		f.tagged.Store(true)
	}
	f.pool.Cached(one.endpoint, kv.Update{State: u.Status.State, Whole: u.Status.Whole && !u.More, Changes: u.Changes})
	if now := u.Status.State; now == kv.FeedMisfit && u.Status.Misfit != refused && u.Status.Misfit != kv.MisfitUnproven {
		f.log.Error("KV events cannot be used; what is cached there is guessed from what was sent", "endpoint", one.endpoint.Name, "because", u.Status.Misfit.String(),
			"engine_block", u.Status.Block, "own_block", f.space.Block)
	} else if now != before && (now == kv.FeedLive || before == kv.FeedLive) {
		f.log.Info("KV events", "endpoint", one.endpoint.Name, "feed", now.String(), "before", before.String(), "gaps", u.Status.Feed.Gaps, "lost", u.Status.Feed.Lost, "err", u.Link.Err)
	}
}

// Status returns the state of all feeds, by name of endpoint.
func (f *Feeds) Status() []FeedStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]FeedStatus, 0, len(f.feeds))
	for _, one := range f.feeds {
		all = append(all, one.status)
	}
	slices.SortFunc(all, func(a, b FeedStatus) int { return strings.Compare(a.Endpoint, b.Endpoint) })
	return all
}

// FeedState is what another gateway needs to go on with a feed.
type FeedState struct {
	Endpoint string
	URL      string
	State    []byte
}

// States returns what all feeds know, as of now.
func (f *Feeds) States(ctx context.Context) []FeedState {
	f.mu.Lock()
	feeds := maps.Clone(f.feeds)
	f.mu.Unlock()
	var all []FeedState
	for _, name := range slices.Sorted(maps.Keys(feeds)) {
		one := feeds[name]
		got := make(chan []byte, 1)
		select {
		case one.save <- func(state []byte) { got <- state }:
			all = append(all, FeedState{Endpoint: name, URL: one.endpoint.URL, State: <-got})
		case <-one.ended:
		case <-ctx.Done():
			return all
		}
	}
	return all
}
