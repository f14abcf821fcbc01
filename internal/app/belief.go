package app

import (
	"cmp"
	"hash/fnv"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/discovery"
	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/live"
	"penstock.dev/penstock/internal/perf"
)

// Believe returns the step time believed of a variant before it carries anything:
// what its file states, else what its profile has measured, else what follows from
// the model's shape and the accelerator's data sheet.
func Believe(v config.Variant) perf.Step {
	if s := v.Step(); s.Known() {
		return s
	}
	return perf.Prior(v.Serving()).Step
}

// targetOf returns how a pool takes on its endpoints: each with the limits and
// the belief of its variant, else of the pool's engine section.
func targetOf(c config.Pool) func(discovery.Endpoint) live.Target {
	return func(e discovery.Endpoint) live.Target {
		t := live.Target{
			Name: e.Name, URL: e.URL, Limits: c.Engine.Limits(), Step: c.Engine.StepMs.Step(),
			Rank: live.Rank{Of: e.Ranks, Index: e.Rank, Shared: e.Shared},
		}
		if t.Feed = feedOf(&c, e); e.Store {
			t.Role = fleet.RoleStore
			return t
		}
		t.Links, t.Wire = c.KV.Links(catalog.Serving{}), c.KV.Wire(catalog.Serving{})
		t.Role = config.Endpoint{Role: e.Role}.FleetRole()
		if t.Role == fleet.RoleEncode {
			return t // of what follows it knows nothing: it computes no prompt and has no KV
		}
		t.Transfer = transferOf(c.KV.Transfer, e)
		if i, ok := c.FindVariant(e.Variant); ok {
			v := c.Variants[i]
			t.Limits = v.Limits().Merge(t.Limits)
			t.Variant, t.Step, t.Links = variantID(v.Name), Believe(v), c.KV.Links(v.Serving())
			t.Wire = c.KV.Wire(v.Serving())
			if stated := v.Step(); e.Ranks > 0 && !stated.Known() {
				t.Step = ofRank(t.Step, v.DP)
			}
		}
		return t
	}
}

// transferOf returns how an endpoint hands KV over.
func transferOf(t config.Transfer, e discovery.Endpoint) live.Transfer {
	return live.Transfer{
		Connector: t.Connector, Pulls: engine.Connector(t.Connector).CanPull(), Port: cmp.Or(e.KVPort, t.BootstrapPort), Notify: t.NotifyPort, HitThreshold: t.HitThreshold,
	}
}

// ofRank returns the step time of a whole replica as one of its ranks meets it:
// what is for each sequence and token of the rank is once more for its like on
// every other rank, whose load is believed to be the same.
func ofRank(s perf.Step, ranks int) perf.Step {
	n := float64(max(ranks, 1))
	s.PerSeq, s.PerKV, s.PerPrompt, s.PerPair, s.Shadow = s.PerSeq*n, s.PerKV*n, s.PerPrompt*n, s.PerPair*n, s.Shadow/n
	return s
}

// feedOf returns where an endpoint's KV events come from.
func feedOf(c *config.Pool, e discovery.Endpoint) live.Feed {
	f := live.Feed{Events: e.Events, Replay: e.Replay, Topic: c.KV.Topic, Rank: e.Rank}
	if f.Events == "" {
		f.Events, f.Replay = c.KV.FeedAt(e.URL)
	}
	if f.Events == "" {
		return live.Feed{}
	}
	return f
}

// variantID stands for a variant's name in the journal.
func variantID(name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	return h.Sum64()
}
