package app

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/obs"
	"penstock.dev/penstock/internal/transfer"
)

// account is what the book has at one instant.
type account struct {
	entries []exchange.Entry
	flows   []exchange.Flow
	tickets []exchange.Ticket
}

func (x *exchanger) account() account {
	var a account
	x.server.Do(func(_ fleet.Time, b *exchange.Book) {
		a = account{b.Entries(), b.Flows(), b.Tickets()}
	})
	return a
}

// Transfers implements admin.Transfers.
func (x *exchanger) Transfers(tickets int) admin.TransferStatus {
	a, known := x.account(), x.server.Status()
	s := admin.TransferStatus{
		URL: x.app.TransferURL(), Instances: []admin.TransferInstance{}, Pools: x.poolsTold(), Pairs: []admin.TransferPair{}, Links: []admin.TransferLink{},
		Tickets: []admin.TransferTicket{}, Refused: known.Refused,
	}
	for _, l := range known.Links {
		s.Links = append(s.Links, *linkTold(l))
	}
	domains, endpoints := map[string]string{}, x.endpointsByInstance()
	for i := range a.entries {
		e := &a.entries[i]
		domains[e.ID] = e.Domain
		unnamed := strings.HasPrefix(e.ID, transfer.Unnamed)
		is := endpoints[e.ID]
		if unnamed {
			is = []string{strings.TrimPrefix(e.ID, transfer.Unnamed)}
		}
		s.Instances = append(s.Instances, admin.TransferInstance{
			ID: e.ID, Incarnation: e.Incarnation, Registered: !unnamed, Endpoints: append([]string{}, is...), Role: e.Role, Connector: e.Connector.Name, Domain: e.Domain,
			Expires: x.server.Clock(e.Expires),
		})
	}
	for i := range a.flows {
		p := pairTold(&a.flows[i])
		from, ok := domains[p.Source]
		if to, there := domains[p.Consumer]; ok && there {
			p.Link = linkTold(x.link(from, to))
		}
		s.Pairs = append(s.Pairs, p)
	}
	s.Tickets = x.ticketsTold(a.tickets, tickets)
	return s
}

// link is what is believed of the link between two domains.
func (x *exchanger) link(from, to string) exchange.State {
	var s exchange.State
	x.server.Do(func(_ fleet.Time, b *exchange.Book) { s = b.Links().State(from, to) })
	return s
}

// ticketsTold are the open tickets and the latest of the others, the newest first.
func (x *exchanger) ticketsTold(all []exchange.Ticket, most int) []admin.TransferTicket {
	slices.Reverse(all)
	slices.SortStableFunc(all, func(a, b exchange.Ticket) int {
		open := func(t exchange.Ticket) int {
			if t.Stage.Open() {
				return 0
			}
			return 1
		}
		return cmp.Compare(open(a), open(b))
	})
	list := []admin.TransferTicket{}
	for i := range all[:min(most, len(all))] {
		t := &all[i]
		list = append(list, admin.TransferTicket{
			ID: t.ID, Source: t.Source, Consumer: t.Consumer, Stage: string(t.Stage), Tokens: t.Tokens, Bytes: cmp.Or(t.Moved, t.Bytes),
			Planned: x.server.Clock(t.PlannedAt), TookMs: obs.Millis(t.Took), ExpectedMs: obs.Millis(t.Expected), Reason: t.Reason,
		})
	}
	return list
}

// endpointsByInstance names the endpoints that instances are.
func (x *exchanger) endpointsByInstance() map[string][]string {
	is := x.found.Load().is
	by := map[string][]string{}
	for _, s := range x.app.fleet.pools() {
		name := s.pool.Name()
		for id, i := range is[name] {
			by[i.ID] = append(by[i.ID], name+"/"+s.pool.EndpointName(id))
		}
	}
	for _, names := range by {
		slices.Sort(names)
	}
	return by
}

// poolsTold tells of every pool how its requests were served, and of its pairs.
func (x *exchanger) poolsTold() []admin.TransferPool {
	f := x.found.Load()
	list := []admin.TransferPool{}
	for _, s := range x.app.fleet.pools() {
		y := s.pool.Tally()
		p := admin.TransferPool{Pool: s.pool.Name(), Split: y.Split, Whole: y.Whole, Barred: []admin.BarredPair{}}
		why := f.pairs[p.Pool].why
		pairs := slices.SortedFunc(maps.Keys(why), func(a, b fleet.Pair) int {
			return cmp.Or(cmp.Compare(a.Prefill, b.Prefill), cmp.Compare(a.Decode, b.Decode))
		})
		for _, at := range pairs {
			p.Barred = append(p.Barred, admin.BarredPair{Prefill: nameAt(s.pool, at.Prefill), Decode: nameAt(s.pool, at.Decode), Why: why[at]})
		}
		list = append(list, p)
	}
	return list
}

func nameAt(p *live.Pool, id fleet.EndpointID) string { return cmp.Or(p.EndpointName(id), "(gone)") }

func pairTold(f *exchange.Flow) admin.TransferPair {
	p := admin.TransferPair{
		Source: f.Source, Consumer: f.Consumer, Planned: f.Planned, Done: f.Done, Aborted: f.Aborted, Expired: f.Expired, InFlight: f.Open,
		Bytes: f.Bytes, Tokens: f.Tokens, Took: timesTold(&f.Took), Expected: timesTold(&f.Expected), Failed: map[string]uint64{},
	}
	for kind, n := range f.Failed {
		p.Failed[kind.String()] = n
		p.Aborted -= n
	}
	return p
}

func timesTold(t *exchange.Times) admin.TransferTimes {
	return admin.TransferTimes{Count: t.Count, MeanMs: obs.Millis(t.Mean()), P50Ms: obs.Millis(t.P50), P95Ms: obs.Millis(t.P95)}
}

func linkTold(s exchange.State) *admin.TransferLink {
	const ms = 1e3
	return &admin.TransferLink{From: s.From, To: s.To, LatencyMs: s.LatencySeconds * ms, BytesPerSecond: s.BytesPerSecond, Samples: s.Samples, Error: s.Error}
}

// AbortTransfer implements admin.Transfers.
func (x *exchanger) AbortTransfer(id, reason string) error {
	var err error
	x.server.Do(func(now fleet.Time, b *exchange.Book) {
		_, err = b.Abort(now, id, shortened(cmp.Or(reason, "by the operator")))
	})
	if err != nil {
		return fmt.Errorf("%w: %w", admin.ErrNoTransfer, err)
	}
	return nil
}

// counted tells what metrics tell of transfers.
func (x *exchanger) counted() obs.Transfers {
	known := x.server.Status()
	c := obs.Transfers{Flows: x.account().flows, Instances: known.Instances, Refused: known.Refused, Links: known.Links, Barred: map[string]int{}}
	for pool, b := range x.found.Load().pairs {
		c.Barred[pool] = len(b.why)
	}
	return c
}
