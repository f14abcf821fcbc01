package app

import (
	"slices"
	"strings"

	"penstock.dev/penstock/internal/discovery"
	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/transfer"
)

// placed is an endpoint of a pool.
type placed struct {
	pool string
	live.Endpoint
}

// ids are those under which an instance can be registered as e: the endpoint's
// name, with its pool's or without; of a data-parallel rank, its server's as well.
func (e placed) ids() []string {
	ids := []string{e.pool + "/" + e.Name, e.Name}
	if e.Rank.Of > 0 {
		server := strings.TrimSuffix(e.Name, discovery.RankName("", e.Rank.Index))
		ids = append(ids, e.pool+"/"+server, server)
	}
	return ids
}

// match finds the instance that each endpoint is, by id, and where no id fits by
// the host, if one instance and one server are there. Endpoints that no instance
// is have no entry.
func match(all []placed, entries []exchange.Entry) map[string]map[fleet.EndpointID]*exchange.Instance {
	byID, free := map[string]*exchange.Instance{}, map[string]bool{}
	for i := range entries {
		if e := &entries[i].Instance; !strings.HasPrefix(e.ID, transfer.Unnamed) {
			byID[e.ID], free[e.ID] = e, true
		}
	}
	found := map[string]map[fleet.EndpointID]*exchange.Instance{}
	take := func(e placed, i *exchange.Instance) {
		if found[e.pool] == nil {
			found[e.pool] = map[fleet.EndpointID]*exchange.Instance{}
		}
		found[e.pool][e.ID] = i
		delete(free, i.ID)
	}
	var rest []placed
	for _, e := range all {
		at := slices.IndexFunc(e.ids(), func(id string) bool { return byID[id] != nil })
		if at < 0 {
			rest = append(rest, e)
			continue
		}
		take(e, byID[e.ids()[at]])
	}
	servers := map[string]map[string]bool{} // URLs by host
	for _, e := range all {
		if servers[hostOf(e.Endpoint)] == nil {
			servers[hostOf(e.Endpoint)] = map[string]bool{}
		}
		servers[hostOf(e.Endpoint)][e.URL] = true
	}
	at := alone(byID)
	for _, e := range rest {
		host := hostOf(e.Endpoint)
		if i := at[host]; i != nil && free[i.ID] && len(servers[host]) == 1 {
			take(e, i)
			free[i.ID] = true // all ranks behind one URL are of it
		}
	}
	return found
}

// alone returns the instances that have a host to themselves.
func alone(byID map[string]*exchange.Instance) map[string]*exchange.Instance {
	at := map[string]*exchange.Instance{}
	for _, i := range byID {
		for _, r := range i.Ranks {
			host := strings.ToLower(r.Host)
			if other, taken := at[host]; taken && other != i {
				at[host] = nil
				continue
			}
			at[host] = i
		}
	}
	return at
}

// barring is what has been found about the pairs of one pool: by the endpoint that
// answers those whose KV it cannot use, and by the pair why.
type barring struct {
	by  map[fleet.EndpointID][]fleet.EndpointID
	why map[fleet.Pair]string
}

// judge compares the endpoints of a pool that have told of themselves. Roles are
// the brain's own business, but that an endpoint that is to compute prompts says
// that it does not forbids it.
func judge(endpoints []live.Endpoint, is map[fleet.EndpointID]*exchange.Instance) barring {
	b := barring{by: map[fleet.EndpointID][]fleet.EndpointID{}, why: map[fleet.Pair]string{}}
	for _, d := range endpoints {
		for _, p := range endpoints {
			pi, di := is[p.ID], is[d.ID]
			if p.ID == d.ID || pi == nil || di == nil || pi.ID == di.ID || p.Transfer.Connector == "" || p.Transfer.Connector != d.Transfer.Connector {
				continue
			}
			splits := p.Role.Prefills() && d.Role.Decodes()
			if !splits && !(p.Transfer.Pulls && d.Role.Decodes()) {
				continue // nobody would have them exchange anything
			}
			v := exchange.Judge(pi, di)
			at := slices.IndexFunc(v.Hard, func(r exchange.Reason) bool { return splits || r.Field != "role" })
			if at >= 0 {
				b.by[d.ID] = append(b.by[d.ID], p.ID)
				b.why[fleet.Pair{Prefill: p.ID, Decode: d.ID}] = v.Hard[at].String()
			}
		}
	}
	return b
}
