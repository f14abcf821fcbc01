package app

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/control"
	"penstock.dev/penstock/internal/engine/tokens"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/obs"
)

// FeedsOf implements admin.Feeds.
func (t *table) FeedsOf(pool string) (map[string]admin.Feed, *admin.TokenStatus) {
	s := t.byName(pool)
	if s == nil {
		return nil, nil
	}
	feeds := map[string]admin.Feed{}
	for _, f := range s.feeds.Status() {
		feeds[f.Endpoint] = feedOut(&f)
	}
	if s.tokens == nil {
		return feeds, nil
	}
	return feeds, tokensOut(s.tokens.Source.Status())
}

func feedOut(f *control.FeedStatus) admin.Feed {
	v := &f.Follower
	batches, dropped := feedCounts(f)
	trim(batches)
	trim(dropped)
	out := admin.Feed{
		From: f.From.Events, State: v.State.String(), Connected: f.Link.Connected, Whole: v.Whole, Next: v.Next,
		Batches: batches, Dropped: dropped, Keys: v.Known, Orphans: v.Orphans, DirectKeys: v.Provable,
		Refused: v.Misfit.String(), EngineBlock: v.Block, KeysEqual: v.Names.Equal, KeysUnequal: v.Names.Unequal,
	}
	if f.Link.Err != nil {
		out.Error = f.Link.Err.Error()
	}
	if v.Rank >= 0 {
		out.Rank = new(v.Rank)
	}
	return out
}

// feedCounts returns what became of a feed's batches, and why events and blocks
// were left out, zeros included.
func feedCounts(f *control.FeedStatus) (batches, dropped map[string]uint64) {
	c, names := &f.Follower.Feed, &f.Follower.Names
	batches = map[string]uint64{
		"applied": c.Applied, "duplicate": c.Duplicate, "damaged": c.Damaged, "gaps": c.Gaps, "replays": c.Replays, "lost": c.Lost,
		"restarts": c.Restarts, "overflows": c.Overflows, "disconnects": c.Disconnect,
		"malformed": f.Link.Malformed, "mismatched": f.Link.Mismatched, "dropped": f.Link.Dropped,
	}
	dropped = map[string]uint64{"conflict": names.Conflicts}
	for fault := kv.FaultNone + 1; fault < kv.Faults; fault++ {
		dropped[fault.String()] += names.Faults[fault]
	}
	for drop, n := range names.Drops {
		dropped[kv.Drop(drop).String()] += n
	}
	return batches, dropped
}

// trim leaves out zeros, which tell people nothing.
func trim(counts map[string]uint64) {
	maps.DeleteFunc(counts, func(_ string, n uint64) bool { return n == 0 })
}

// counted returns what a pool's feeds and prompts have counted, for the metrics.
func (t *table) counted(pool string) obs.Counted {
	s := t.byName(pool)
	if s == nil {
		return obs.Counted{}
	}
	out := obs.Counted{Batches: map[string]map[string]uint64{}, Dropped: map[string]map[string]uint64{}}
	for _, f := range s.feeds.Status() {
		out.Batches[f.Endpoint], out.Dropped[f.Endpoint] = feedCounts(&f)
	}
	if s.tokens != nil {
		out.Found, out.Missing = tokenCounts(s.tokens.Source.Status())
	}
	return out
}

// tokenCounts returns prompts by how their tokens were found out, and by why not
// all of them were.
func tokenCounts(s tokens.Status) (found, missing map[string]uint64) {
	found, missing = map[string]uint64{}, map[string]uint64{}
	for how, n := range s.By {
		found[how.String()] = n
	}
	for why, n := range s.Without {
		missing[why.String()] = n
	}
	return found, missing
}

func tokensOut(s tokens.Status) *admin.TokenStatus {
	found, missing := tokenCounts(s)
	trim(found)
	trim(missing)
	out := &admin.TokenStatus{By: found, Without: missing, Circuit: "closed", Bytes: s.Cache.Bytes}
	if s.Answers.Count() > 0 {
		out.AnswerMs = s.Answers.Mean() / 1e6
	}
	for _, p := range s.Pools {
		if out.Circuit = p.Circuit; p.Has {
			out.Local = fmt.Sprintf("texts: %v %s; chats: %v %s", p.Local.Text, p.Local.WhyText, p.Local.Chat, p.Local.WhyChat)
		}
	}
	return out
}

// The form of what one gateway tells another: a magic, then for each feed its
// endpoint's name, its URL and its state, each with its length before it.
const (
	stateMagic = "PENSTOCK-KV-1\n"
	maxState   = 256 << 20 // bytes of one feed's state
	maxName    = 4096
)

// FeedStates implements admin.Feeds.
func (t *table) FeedStates(ctx context.Context, pool string, w io.Writer) error {
	s := t.byName(pool)
	if s == nil {
		return fmt.Errorf("there is no pool %q", pool)
	}
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	if _, err := io.WriteString(w, stateMagic); err != nil {
		return nil //nolint:nilerr // the peer has gone
	}
	for _, f := range s.feeds.States(ctx) {
		for _, part := range [][]byte{[]byte(f.Endpoint), []byte(f.URL), f.State} {
			if _, err := w.Write(binary.AppendUvarint(nil, uint64(len(part)))); err != nil {
				return nil //nolint:nilerr // the peer has gone
			}
			if _, err := w.Write(part); err != nil {
				return nil //nolint:nilerr // the peer has gone
			}
		}
	}
	return nil
}

// peerTimeout bounds how long a new gateway waits for what another knows.
const peerTimeout = 10 * time.Second

// peer is where a new gateway learns what is cached: another gateway, or a file
// that was got from one.
type peer struct {
	from, pool, token string
	log               *slog.Logger
	once              sync.Once
	states            map[string][]byte // by endpoint's name and URL
}

func newPeer(a *App, c config.Pool) *peer {
	return &peer{from: c.KV.Peer, pool: c.Name, token: a.o.AdminToken, log: a.log.With("pool", c.Name)}
}

// warm returns what the peer knew of an endpoint when it was asked, which is
// once. Every state is proven by the engine before it is believed.
func (p *peer) warm(ctx context.Context, e live.Endpoint) []byte {
	if p.from == "" {
		return nil
	}
	p.once.Do(func() {
		began := time.Now()
		if err := p.ask(ctx); err != nil {
			p.log.Warn("what another gateway knows of caches cannot be had; events alone will tell", "from", p.from, "err", err)
			return
		}
		p.log.Info("began with what another gateway knows of caches", "from", p.from, "feeds", len(p.states), "took", time.Since(began))
	})
	return p.states[e.Name+"\x00"+e.URL]
}

func (p *peer) ask(ctx context.Context) error {
	r, err := p.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	p.states, err = readStates(bufio.NewReaderSize(r, 1<<16))
	return err
}

func (p *peer) open(ctx context.Context) (io.ReadCloser, error) {
	if !strings.HasPrefix(p.from, "http://") && !strings.HasPrefix(p.from, "https://") {
		return os.Open(p.from)
	}
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(p.from, "/")+"/api/kv/state?pool="+url.QueryEscape(p.pool), http.NoBody)
	if err != nil {
		cancel()
		return nil, err
	}
	if p.token != "" {
		req.Header.Set("Authorization", "Bearer "+p.token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		cancel()
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		cancel()
		return nil, fmt.Errorf("it answered %s", resp.Status)
	}
	return &bodyOf{resp.Body, cancel}, nil
}

// bodyOf is a body whose context ends with it.
type bodyOf struct {
	io.ReadCloser
	cancel context.CancelFunc
}

// Close implements io.Closer.
func (b *bodyOf) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

// readStates reads what FeedStates wrote.
func readStates(r *bufio.Reader) (map[string][]byte, error) {
	head := make([]byte, len(stateMagic))
	if _, err := io.ReadFull(r, head); err != nil || string(head) != stateMagic {
		return nil, errors.New("it is not the state of a gateway's KV feeds, or of another version")
	}
	states := map[string][]byte{}
	for {
		name, err := readPart(r, maxName)
		if errors.Is(err, io.EOF) {
			return states, nil
		}
		if err != nil {
			return states, err
		}
		base, err := readPart(r, maxName)
		if err != nil {
			return states, io.ErrUnexpectedEOF
		}
		state, err := readPart(r, maxState)
		if err != nil {
			return states, io.ErrUnexpectedEOF
		}
		states[string(name)+"\x00"+string(base)] = state
	}
}

// readPart reads a length and so many bytes, no more memory ahead of them than
// they are.
func readPart(r *bufio.Reader, most uint64) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	if n > most {
		return nil, fmt.Errorf("a part of %d bytes, more than %d", n, most)
	}
	part, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && uint64(len(part)) < n {
		err = io.ErrUnexpectedEOF
	}
	return part, err
}
